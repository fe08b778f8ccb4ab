from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.quantizer import Architecture, Quantizer
from storage.errors import UserError

SMALL = Architecture(input_dim=6, hidden_dims=(8,), latent_dim=3, codebook_sizes=(4, 5), commitment=0.5)


@pytest.fixture
def quantizer() -> Quantizer:
    torch.manual_seed(0)
    return Quantizer(SMALL)


def test_codes_are_greedy_nearest_codewords(quantizer: Quantizer) -> None:
    latents = torch.randn(20, 3)
    codes, residuals = quantizer.quantize(latents)
    for row, latent in enumerate(latents):
        rest = latent
        for level, codebook in enumerate(quantizer.codebooks):
            assert torch.allclose(residuals[level, row], rest, atol=1e-6)
            assert int(codes[row, level]) == int((codebook - rest).square().sum(1).argmin())
            rest = rest - codebook[codes[row, level]]


def test_losses_and_gradients_are_those_of_the_formula(quantizer: Quantizer) -> None:
    inputs = torch.randn(7, 6)
    losses = quantizer(inputs)
    gradients = torch.autograd.grad(losses.quantization, [quantizer.encoder[0].weight, *quantizer.codebooks])

    latents = quantizer.encoder(inputs)
    first, second = quantizer.quantize(latents)[0].T
    words = [quantizer.codebooks[0][first], quantizer.codebooks[1][second]]
    rests = [latents, latents - words[0].detach()]
    terms = [
        (rest.detach() - word).square().sum() + 0.5 * (rest - word.detach()).square().sum()
        for rest, word in zip(rests, words, strict=True)
    ]
    output = quantizer.decoder(words[0] + words[1])
    assert torch.allclose(losses.reconstruction, (inputs - output).square().sum(), rtol=1e-5)
    assert torch.allclose(losses.quantization, sum(terms), rtol=1e-5)
    expected = torch.autograd.grad(sum(terms), [quantizer.encoder[0].weight, *quantizer.codebooks])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(gradients, expected, strict=True))


def test_reconstruction_trains_the_encoder_straight_through_and_no_codeword(quantizer: Quantizer) -> None:
    quantizer(torch.randn(7, 6)).reconstruction.backward()
    assert float(quantizer.encoder[0].weight.grad.abs().sum()) > 0
    assert all(codebook.grad is None for codebook in quantizer.codebooks)


def test_standardised_inputs_are_centred_with_unit_mean_square(quantizer: Quantizer) -> None:
    embeddings = 3 + 0.01 * torch.randn(500, 6) * torch.arange(1, 7)
    quantizer.set_statistics(embeddings)
    inputs = quantizer.standardise(embeddings)
    assert torch.allclose(inputs.mean(0), torch.zeros(6), atol=1e-3)
    assert float(inputs.square().mean()) == pytest.approx(1, abs=1e-3)
    assert float(inputs[:, 5].std() / inputs[:, 0].std()) == pytest.approx(6, rel=0.15)  # proportions stay


def test_decode_of_a_prefix_uses_its_levels_alone(quantizer: Quantizer) -> None:
    codes = torch.tensor([[1, 2], [3, 0]], dtype=torch.int32)
    quantizer.set_statistics(torch.randn(50, 6) * 4 + 2)
    expected = quantizer.decoder(quantizer.codebooks[0][[1, 3]])
    assert torch.allclose(quantizer.standardise(quantizer.decode(codes[:, :1])), expected, atol=1e-6)


def test_artifact_gives_the_same_codes_back(quantizer: Quantizer, tmp_path: Path) -> None:
    embeddings = torch.randn(50, 6) * 4 + 2
    quantizer.set_statistics(embeddings)
    quantizer.save(str(tmp_path / "quantizer"))
    loaded = Quantizer.load(str(tmp_path / "quantizer"))
    assert loaded.architecture == SMALL
    assert torch.equal(loaded.encode(embeddings), quantizer.encode(embeddings))
    assert loaded.encode(embeddings).dtype == torch.int32


def test_absent_artifact_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no quantizer"):
        Quantizer.load(str(tmp_path / "none"))
