from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from models.qformer.objectives import contrast, hard_negatives, shifted, written
from models.qformer.tokens import DEC, EOS, PAD


def unit(rows: int, seed: int) -> torch.Tensor:
    return functional.normalize(torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed)), dim=-1)


def brute_force(pictures, texts, owner, same, scale, mask_own) -> float:
    """The mean over texts of -log of the share of the right one, as a loop."""
    total = 0.0
    for text in range(len(texts)):
        right = math.exp(scale * float(texts[text] @ pictures[owner[text]]))
        others = 0.0
        for picture in range(len(pictures)):
            says_so = any(same[text, other] and owner[other] == picture for other in range(len(texts)))
            if picture != owner[text] and not says_so:
                others += math.exp(scale * float(texts[text] @ pictures[picture]))
        total -= math.log(right / (right + others))
        others = 0.0
        for other in range(len(texts)):
            own = mask_own and any(same[other, third] and owner[third] == owner[text] for third in range(len(texts)))
            if other != text and not same[text, other] and not own:
                others += math.exp(scale * float(texts[other] @ pictures[owner[text]]))
        total -= math.log(right / (right + others))
    return total / len(texts) / 2


@given(st.integers(0, 50), st.integers(2, 5), st.integers(1, 3), st.booleans())
def test_the_contrast_equals_a_loop(seed: int, pictures: int, several: int, mask_own: bool) -> None:
    says = torch.randint(0, 5, (pictures * several,), generator=torch.Generator().manual_seed(seed))
    owner = torch.arange(pictures).repeat_interleave(several)
    same = says[:, None] == says
    both = unit(pictures, seed), unit(pictures * several, seed + 1)
    found = contrast(*both, owner, same, torch.tensor(3.0), mask_own=mask_own)
    assert float(found) == pytest.approx(brute_force(*both, owner, same, 3.0, mask_own), abs=1e-4)


def test_other_texts_of_a_picture_are_no_negatives_under_the_mask() -> None:
    """Two texts of each picture that both fit it perfectly: without the mask they push one another away."""
    vectors = torch.eye(4)
    owner = torch.arange(4).repeat_interleave(2)
    arguments = (vectors, vectors[owner], owner, torch.eye(8, dtype=torch.bool), torch.tensor(50.0))
    assert float(contrast(*arguments, mask_own=True)) == pytest.approx(0.0, abs=1e-6)
    assert float(contrast(*arguments, mask_own=False)) == pytest.approx(math.log(2) / 2, abs=1e-6)


def test_a_negative_is_near_and_never_banned() -> None:
    logits = torch.tensor([[0.0, 9.0, 8.0], [9.0, 0.0, 0.0]])
    banned = torch.tensor([[True, True, False], [True, False, False]])
    drawn = torch.stack([hard_negatives(logits, banned) for _ in range(200)])
    assert set(drawn[:, 0].tolist()) == {2}
    assert set(drawn[:, 1].tolist()) == {1, 2}
    near = torch.stack([hard_negatives(logits, torch.eye(2, 3, dtype=torch.bool)) for _ in range(200)])
    assert (near[:, 0] == 1).float().mean() > 0.6
    assert hard_negatives(logits, torch.ones(2, 3, dtype=torch.bool)).shape == (2,)  # nothing is allowed


def test_what_is_read_is_one_behind_what_is_written() -> None:
    text = torch.tensor([[7, 8, EOS, PAD]])
    assert shifted(text).tolist() == [[DEC, 7, 8, EOS]]
    logits = torch.full((1, 4, 10), -50.0)
    logits[0, torch.arange(4), text[0]] = 50.0
    assert float(written(logits, text, 0.0)) == pytest.approx(0.0, abs=1e-6)
    logits[0, 3] = 0.0  # padding counts nowhere
    assert float(written(logits, text, 0.0)) == pytest.approx(0.0, abs=1e-6)
