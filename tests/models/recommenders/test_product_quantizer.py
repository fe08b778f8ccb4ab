from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from models.recommenders.product_quantizer import Quantized, quantize


def clusters(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Vectors in groups, off the origin."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(12, width)) * 2
    values = centres[random.integers(12, size=count)] + 0.3 * random.normal(size=(count, width)) + 5
    return values.astype(np.float32)


def reconstructed(found: Quantized) -> torch.Tensor:
    """What the codes say, in the rotated space."""
    return torch.cat([words[codes] for words, codes in zip(found.codewords, found.codes.T, strict=True)], dim=1)


def distances(vectors: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Between all pairs, squared: a rotation or a shift changes none of them."""
    return torch.cdist(*[torch.as_tensor(vectors).double()] * 2).square()


def error(vectors: np.ndarray, found: Quantized) -> float:
    """How far distances among reconstructions are from those among the vectors."""
    return float((distances(reconstructed(found)) - distances(vectors)).abs().mean())


def test_every_item_gets_the_codes_of_near_codewords() -> None:
    vectors = clusters(200, 16)
    found = quantize(vectors, dim=16, codes=4, codewords=16, seed=0)
    assert found.codes.shape == (200, 4)
    assert found.codewords.shape == (4, 16, 4)
    assert (found.codes.dtype, found.codewords.dtype) == (torch.int64, torch.float32)
    assert 0 <= int(found.codes.min()) <= int(found.codes.max()) < 16
    random = found._replace(codes=torch.randint(16, (200, 4), generator=torch.Generator().manual_seed(0)))
    assert error(vectors, found) < 0.2 * error(vectors, random)
    more = quantize(vectors, dim=16, codes=8, codewords=16, seed=0)
    assert error(vectors, more) < error(vectors, found)


def test_as_many_codewords_as_items_lose_nothing() -> None:
    vectors = clusters(16, 8)
    found = quantize(vectors, dim=8, codes=2, codewords=16, seed=0)
    torch.testing.assert_close(distances(reconstructed(found)), distances(vectors), atol=1e-3, rtol=1e-3)


def test_whitened_directions_count_alike() -> None:
    """Distances are then those of Mahalanobis; a direction in which nothing differs adds nothing."""
    vectors = clusters(16, 8) * np.geomspace(1, 5, 8, dtype=np.float32)
    root = np.linalg.cholesky(np.linalg.inv(np.cov(vectors.T.astype(np.float64), bias=True)))
    for given in (vectors, np.hstack([vectors, np.full((16, 1), 3, np.float32)])):
        found = quantize(given, dim=8, codes=2, codewords=16, seed=0, whiten=True)
        torch.testing.assert_close(distances(reconstructed(found)), distances(vectors @ root), atol=0.02, rtol=0.02)


@pytest.mark.parametrize(("items", "dim"), [(2, 128), (10, 32), (64, 128)])
def test_a_catalogue_may_have_fewer_items_than_dimensions(items: int, dim: int) -> None:
    """faiss wrote past its memory then: what is fitted here is fitted in a process that this would end."""
    code = (
        "import numpy as np; from models.recommenders.product_quantizer import quantize;"
        f"vectors = np.random.default_rng(0).normal(size=({items}, 20)).astype('float32');"
        f"found = quantize(vectors, dim={dim}, codes=4, codewords=2, seed=2**32 - 1);"
        f"assert found.codes.shape == ({items}, 4); assert found.codewords.isfinite().all()"
    )
    checked = {**os.environ, "MALLOC_CHECK_": "3"}
    subprocess.run([sys.executable, "-c", code], check=True, env=checked, timeout=300)


@pytest.mark.parametrize("width", [5, 40])
def test_narrower_and_wider_vectors_are_brought_to_the_width(width: int) -> None:
    """The wider ones have but eight directions, which PCA has to find."""
    vectors = clusters(16, min(width, 8))
    if width > 8:
        axes, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(width, 8)))
        vectors = (vectors @ axes.T).astype(np.float32)
    found = quantize(vectors, dim=8, codes=4, codewords=16, seed=0)
    assert found.codewords.shape == (4, 16, 2)
    torch.testing.assert_close(distances(reconstructed(found)), distances(vectors), atol=1e-2, rtol=1e-3)


def test_the_main_directions_are_those_that_are_kept() -> None:
    random = np.random.default_rng(0)
    main = random.normal(size=(16, 4)).astype(np.float32) * 10
    vectors = np.hstack([random.normal(size=(16, 30)).astype(np.float32) * 0.01, main])
    found = quantize(vectors, dim=4, codes=2, codewords=16, seed=0)
    torch.testing.assert_close(distances(reconstructed(found)), distances(main), atol=1.0, rtol=1e-2)


def test_the_same_seed_gives_the_same_codes_and_the_vectors_stay() -> None:
    vectors = clusters(100, 8)
    before = vectors.copy()
    first, second = (quantize(vectors, dim=8, codes=2, codewords=8, seed=3) for _ in range(2))
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.codewords, second.codewords)
    assert np.array_equal(vectors, before)
    other = quantize(vectors, dim=8, codes=2, codewords=8, seed=4)
    assert not torch.equal(first.codewords, other.codewords)


def test_codewords_may_be_learned_from_other_vectors_than_those_that_get_codes() -> None:
    vectors, learned = clusters(100, 20), clusters(100, 20, seed=1)
    for settings in ({"dim": 8}, {"dim": 32}, {"dim": 8, "whiten": True}):
        sized = {"codes": 2, "codewords": 8, "seed": 3, **settings}
        plain, same = quantize(vectors, **sized), quantize(vectors, **sized, learned=vectors.copy())
        assert torch.equal(plain.codes, same.codes)
        assert torch.equal(plain.codewords, same.codewords)
        other, wanted = quantize(vectors, **sized, learned=learned), quantize(learned, **sized)
        assert torch.equal(other.codewords, wanted.codewords)
        assert not torch.equal(other.codes, wanted.codes)
