from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.captioning.captioner import Context
from models.captioning.qformer import QFormerCaptioner
from models.embedding.qformer import QFormerImages, QFormerTexts
from models.qformer.decoder import Decoder
from models.qformer.model import CaptionModel
from storage.artifacts import save_model
from storage.errors import UserError
from storage.identity import identity


@pytest.fixture
def weights(model: CaptionModel, tmp_path: Path) -> str:
    for parameter in model.parameters():
        parameter.data = parameter.data * 3  # so that captions differ
    model.save(str(tmp_path / "captioner"))
    return str(tmp_path / "captioner")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (12, 10, 3), np.uint8) for _ in range(7)]


def test_a_caption_is_of_the_picture_alone(weights: str, pictures: list[np.ndarray]) -> None:
    captioner = QFormerCaptioner(weights)
    captioner.load()
    together = captioner.caption(pictures, [Context()] * 7)
    assert len(together) == 7
    assert all(isinstance(text, str) and text == f"{text[0].upper()}{text[1:]}" for text in together)
    backwards = captioner.caption(pictures[::-1], [Context()] * 7)[::-1]
    alone = [captioner.caption([picture], [Context()])[0] for picture in pictures]
    assert together == backwards == alone
    assert captioner.caption([], []) == []


def test_a_wider_search_is_asked_of_the_decoder(
    weights: str, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(Decoder, "write", lambda self, queries, *, beams: asked.append(beams) or ["red"] * len(queries))
    assert QFormerCaptioner(weights, beams=3).caption(pictures, [Context()] * 7) == ["Red"] * 7
    assert asked == [3]


def test_weights_that_were_written_again_are_read_again(weights: str, model: CaptionModel) -> None:
    before = QFormerTexts(weights).embed_texts(["red mug"]).vectors
    model.of_text.bias.data += 1.0
    model.save(weights)
    embedder = QFormerTexts(weights)
    embedder.load()
    assert not np.allclose(embedder.embed_texts(["red mug"]).vectors, before)


def test_pictures_and_texts_lie_in_one_space(weights: str, pictures: list[np.ndarray]) -> None:
    images, texts = QFormerImages(weights), QFormerTexts(weights)
    assert images.width == texts.width == 8
    seen, read = images.embed_images(pictures), texts.embed_texts(["red mug", "blue lamp", "red mug " * 50])
    assert seen.shape == (7, 8)
    assert read.vectors.shape == (3, 8)
    assert not read.failures
    for vectors in (seen, read.vectors):
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.array_equal(images.embed_images(pictures[3:4])[0], seen[3])
    with pytest.raises(UserError, match="joint"):
        texts.embed_texts(["red mug"], [pictures[0]])


def test_other_weights_are_another_captioner(weights: str, model: CaptionModel) -> None:
    """What was captioned with the old ones must not be taken from a cache."""
    before = identity(QFormerCaptioner(weights)), identity(QFormerImages(weights))
    model.log_scale.data += torch.tensor(1.0)
    model.save(weights)
    assert before[0] != identity(QFormerCaptioner(weights))
    assert before[1] != identity(QFormerImages(weights))


def test_weights_that_are_not_there_are_found_missing_before_work(tmp_path: Path) -> None:
    for backend in (QFormerCaptioner(str(tmp_path)), QFormerImages(str(tmp_path))):
        with pytest.raises(UserError, match="There is no captioner at"):
            backend.check()
    save_model(str(tmp_path), "ranker", {"joint": 8}, {})
    with pytest.raises(UserError, match="of another kind"):
        QFormerImages(str(tmp_path)).check()
    with pytest.raises(UserError, match="of another kind"):
        _ = QFormerTexts(str(tmp_path)).width
