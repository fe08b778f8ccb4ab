"""What sees what: the masks of the objectives, by changing what must not be seen."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from models.qformer.model import CaptionModel
from models.qformer.qformer import QFormer
from models.qformer.tokens import PAD
from models.qformer.vision import WIDTH


@pytest.fixture
def qformer(model: CaptionModel) -> QFormer:
    return model.qformer


@pytest.fixture
def picture(qformer: QFormer) -> Tensor:
    return qformer.sight(torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0)))


def text(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


def test_queries_see_no_text_that_is_written(qformer: QFormer, picture: Tensor) -> None:
    alone = qformer.see(picture)
    for words in (text([5, 6, 7], [8, 9, 1]), text([9, 9, 9], [4, 4, 4])):
        assert torch.allclose(qformer.write(picture, words)[0], alone, atol=1e-6)


def test_a_written_word_sees_what_is_before_it_and_the_picture(qformer: QFormer, picture: Tensor) -> None:
    words = text([5, 6, 7, 8], [5, 6, 7, 8])
    outputs = qformer.write(picture, words)[1]
    other = qformer.write(picture, text([5, 6, 9, 8], [5, 6, 9, 8]))[1]
    assert torch.allclose(outputs[:, :2], other[:, :2], atol=1e-6)
    assert not torch.allclose(outputs[:, 3], other[:, 3], atol=1e-4)
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-4)  # the same words, other pictures


def test_a_text_is_read_without_a_picture_and_without_its_padding(qformer: QFormer) -> None:
    short, padded = qformer.read(text([5, 6])), qformer.read(text([5, 6, PAD, PAD]))
    assert torch.allclose(short, padded[:, :2], atol=1e-6)
    assert not torch.allclose(qformer.read(text([5, 7]))[:, 0], short[:, 0], atol=1e-4)  # both ways


def test_matching_sees_all_but_padding(qformer: QFormer, picture: Tensor) -> None:
    one = qformer.match(picture, text([5, 6], [5, 6]))
    assert torch.allclose(one, qformer.match(picture, text([5, 6, PAD], [5, 6, PAD])), atol=1e-6)
    assert not torch.allclose(one, qformer.match(picture, text([5, 7], [5, 7])), atol=1e-4)


def test_every_part_of_the_picture_is_seen(qformer: QFormer) -> None:
    features = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(1))
    before = qformer.see(qformer.sight(features))
    ends = [0, 49 * 320, 49 * 320 + 1280, 49 * 320 + 1280 + 49 * 83, WIDTH]
    for start, stop in pairwise(ends):
        changed = features.clone()
        changed[:, start:stop] = torch.randn(stop - start, generator=torch.Generator().manual_seed(2))
        assert not torch.allclose(qformer.see(qformer.sight(changed)), before, atol=1e-5)


def test_training_hides_a_share_of_the_picture(qformer: QFormer) -> None:
    features = torch.randn(2, WIDTH)
    whole = qformer.sight(features).shape[1]
    assert whole == 49 + 2 + 49 + 2
    assert qformer.train().sight(features).shape[1] == round(whole * 0.8)
