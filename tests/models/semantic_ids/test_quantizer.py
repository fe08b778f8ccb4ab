from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.semantic_ids.quantizer import RQKMEANS, RQVAE, Architecture, Quantizer, suited_sizes
from storage.artifacts import save_model
from storage.errors import UserError

LEARNED = Architecture(RQVAE, 6, (4, 5), latent_dim=3, hidden_dims=(8,))
PLAIN = Architecture(RQKMEANS, 6, (4, 5), latent_dim=6)


def filled(architecture: Architecture) -> Quantizer:
    """A quantizer with random values throughout."""
    torch.manual_seed(0)
    quantizer = Quantizer(architecture)
    with torch.no_grad():
        for tensor in quantizer.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape))
        quantizer.scale.fill_(2.0)
    return quantizer


@pytest.fixture(params=[LEARNED, PLAIN], ids=[RQVAE, RQKMEANS])
def quantizer(request: pytest.FixtureRequest) -> Quantizer:
    return filled(request.param)


def test_codes_are_greedy_nearest_codewords(quantizer: Quantizer) -> None:
    latents = torch.randn(20, quantizer.architecture.latent_dim)
    codes = quantizer.quantize(latents)
    for row, latent in enumerate(latents):
        rest = latent
        for level, (codebook, offsets) in enumerate(zip(quantizer.codebooks, quantizer.level_offsets, strict=True)):
            assert int(codes[row, level]) == int(((codebook - rest).square().sum(1) + offsets).argmin())
            rest = rest - codebook[codes[row, level]]


@pytest.mark.parametrize("items", [0, 1, 29, 239, 240, 800, 7_679, 7_680, 10**6, 2 * 10**6, 10**9])
def test_sizes_that_suit_a_catalogue(items: int) -> None:
    sizes = suited_sizes(items)
    (size,) = set(sizes)
    assert size in (4, 8, 16, 32, 64, 128, 256)
    assert size == 4 or 30 * size <= items
    assert size == 256 or 60 * size > items
    assert 3 <= len(sizes) <= 8
    assert size ** len(sizes) >= 16 * items
    assert len(sizes) == 3 or size ** (len(sizes) - 1) < 16 * items


def test_whitening_comes_before_the_encoder_and_is_undone_behind_the_decoder(tmp_path: Path) -> None:
    quantizer, plain = filled(replace(PLAIN, whiten=True)), filled(PLAIN)
    whitening = torch.randn(6, 6)
    quantizer.whitening.copy_(whitening @ whitening.T + torch.eye(6))
    quantizer.unwhitening.copy_(torch.linalg.inv(quantizer.whitening))
    for name, tensor in plain.state_dict().items():
        tensor.copy_(quantizer.state_dict()[name])
    embeddings = torch.randn(20, 6) * 4 + 2
    codes, inputs = quantizer.encode(embeddings), plain.standardise(embeddings) @ quantizer.whitening
    assert torch.equal(codes, plain.quantize(inputs).int())
    assert not torch.equal(codes, plain.encode(embeddings))
    outputs = plain.standardise(plain.decode(codes)) @ quantizer.unwhitening
    assert torch.allclose(quantizer.standardise(quantizer.decode(codes)), outputs, atol=1e-4)
    nearest = quantizer.last_distances(embeddings).argmin(1)
    assert torch.equal(nearest.int(), codes[:, -1])
    quantizer.save(str(tmp_path))
    loaded = Quantizer.load(str(tmp_path))
    assert loaded.architecture == quantizer.architecture
    assert torch.equal(loaded.decode(codes), quantizer.decode(codes))


def test_an_artifact_without_whitening_says_nothing_of_it(tmp_path: Path) -> None:
    filled(PLAIN).save(str(tmp_path))  # its digest is that of earlier versions
    assert "whiten" not in json.loads((tmp_path / "config.json").read_text())


def test_encode_and_decode_are_made_of_the_parts(quantizer: Quantizer) -> None:
    embeddings = torch.randn(20, 6) * 4 + 2
    codes = quantizer.encode(embeddings)
    with torch.no_grad():
        assert torch.equal(codes, quantizer.quantize(quantizer.encoder(quantizer.standardise(embeddings))).int())
        for depth in (1, 2):
            words = [book[code.long()] for book, code in zip(quantizer.codebooks, codes.T[:depth], strict=False)]
            expected = quantizer.decoder(sum(words)) * quantizer.scale + quantizer.mean
            assert torch.allclose(quantizer.decode(codes[:, :depth]), expected, atol=1e-5)


def test_no_rows_encode_and_decode_to_none(quantizer: Quantizer) -> None:
    codes = quantizer.encode(torch.empty(0, 6))
    assert codes.shape == (0, 2)
    assert quantizer.decode(codes).shape == (0, 6)


def test_a_row_has_its_codes_whatever_stands_beside_it(quantizer: Quantizer) -> None:
    embeddings, order = torch.randn(9_000, 6), torch.randperm(9_000)
    codes = quantizer.encode(embeddings)
    shuffled = quantizer.encode(embeddings[order])
    assert float((shuffled == codes[order]).float().mean()) > 0.9999  # sums of other blocks round otherwise


@given(st.integers(0, 3), st.integers(0, 4))
def test_what_codes_stand_for_has_these_codes_where_levels_are_well_apart(first: int, second: int) -> None:
    quantizer = Quantizer(PLAIN)
    with torch.no_grad():
        quantizer.codebooks[0][:] = 10 * torch.eye(6)[:4]
        quantizer.codebooks[1][:] = torch.eye(6)[1:]
        quantizer.mean.fill_(3.0)
        quantizer.scale.fill_(0.5)
    codes = torch.tensor([[first, second]], dtype=torch.int32)
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)


def test_one_level_encodes_what_it_decodes(quantizer: Quantizer) -> None:
    flat = Quantizer(Architecture(RQKMEANS, 6, (16,), 6))
    flat.codebooks[0].copy_(torch.randn(16, 6))
    codes = torch.arange(16, dtype=torch.int32).unsqueeze(1)
    assert torch.equal(flat.encode(flat.decode(codes)), codes)


def test_distances_of_the_last_level_have_the_code_as_their_least(quantizer: Quantizer) -> None:
    embeddings = torch.randn(30, 6)
    distances = quantizer.last_distances(embeddings)
    assert distances.shape == (30, 5)
    assert torch.equal(distances.argmin(1).int(), quantizer.encode(embeddings)[:, 1])


def test_artifact_gives_the_same_codes_back(quantizer: Quantizer, tmp_path: Path) -> None:
    embeddings = torch.randn(50, 6) * 4 + 2
    quantizer.save(str(tmp_path / "quantizer"))
    loaded = Quantizer.load(str(tmp_path / "quantizer"))
    assert loaded.architecture == quantizer.architecture
    assert torch.equal(loaded.encode(embeddings), quantizer.encode(embeddings))
    assert loaded.encode(embeddings).dtype == torch.int32


def without_a_tensor(folder: Path) -> None:
    quantizer = filled(PLAIN)
    tensors = {name: tensor for name, tensor in quantizer.state_dict().items() if name != "mean"}
    save_model(str(folder), "quantizer", json.loads((folder / "config.json").read_text()), tensors)


def change(key: str, value: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, key: value}))

    return apply


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def not_numbers(folder: Path) -> None:
    quantizer = filled(PLAIN)
    quantizer.codebooks[0][0, 0] = torch.nan
    quantizer.save(str(folder))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "config.json").unlink(), "There is no quantizer"),
        (cut, "is damaged"),
        (lambda folder: (folder / "config.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not a quantizer"),
        (change("kind", "ranker"), "holds a ranker, not a quantizer"),
        (change("codebook_sizes", [4, 6]), "of another version"),
        (change("codebook_sizes", [10**12, 5]), "of another version"),
        (change("codebook_sizes", None), "of another version"),
        (change("codebook_sizes", ["4", "5"]), "of another version"),
        (change("latent_dim", -1), "of another version"),
        (change("method", "opq"), "of another version"),
        (change("surprise", 1), "of another version"),
        (without_a_tensor, "of another version"),
        (not_numbers, "no numbers"),
    ],
)
def test_a_damaged_or_foreign_artifact_is_one_sentence(
    tmp_path: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    filled(PLAIN).save(str(tmp_path))
    damage(tmp_path)
    with pytest.raises(UserError, match=sentence) as raised:
        Quantizer.load(str(tmp_path))
    assert "\n" not in str(raised.value)
