from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from models.quantizer import Architecture, Quantizer
from models.quantizer_training import Schedule, fit_quantizer, reset_dead_codes, start_codebooks

SHAPE = Architecture(input_dim=16, hidden_dims=(32,), latent_dim=8, codebook_sizes=(16, 16, 16))


def embeddings(rows: int, scale: float = 1.0) -> torch.Tensor:
    """Clustered points with a decaying spectrum, as a PCA leaves them."""
    generator = torch.Generator().manual_seed(5)
    spectrum = torch.arange(1, 17) ** -0.7
    centres = 1.5 * torch.randn(8, 16, generator=generator)
    labels = torch.randint(8, (rows,), generator=generator)
    return scale * (centres[labels] + torch.randn(rows, 16, generator=generator)) * spectrum


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_uses_the_codebooks_and_reconstructs_at_any_scale(scale: float) -> None:
    data, history = embeddings(400, scale), []
    quantizer = fit_quantizer(data, SHAPE, Schedule(steps=400, batch_size=128), seed=0, report=history.append)
    codes = quantizer.encode(data)
    assert all(len(level.unique()) >= 15 for level in codes.T)
    inputs = quantizer.standardise(data)
    errors = [
        float((inputs - quantizer.standardise(quantizer.decode(codes[:, :h]))).square().mean()) for h in (1, 2, 3)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.2  # 12 bits for 16 dimensions
    assert [metrics["step"] for metrics in history] == list(range(50, 401, 50))
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["loss"] == pytest.approx(16 * history[-1]["reconstruction"] + history[-1]["quantization"])


def test_one_seed_gives_one_result_and_another_another() -> None:
    data, schedule = embeddings(100), Schedule(steps=60, batch_size=32)
    torch.manual_seed(1)
    first = fit_quantizer(data, SHAPE, schedule, seed=3)
    torch.manual_seed(2)  # the surroundings' generator does not matter
    second = fit_quantizer(data, SHAPE, schedule, seed=3)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert not torch.equal(first.encode(data), fit_quantizer(data, SHAPE, schedule, seed=4).encode(data))


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_tiny_catalogues_fit(rows: int) -> None:
    quantizer = fit_quantizer(embeddings(rows), SHAPE, Schedule(steps=20, batch_size=4), seed=0)
    assert quantizer.encode(embeddings(rows)).shape == (rows, 3)
    assert all(torch.isfinite(tensor).all() for tensor in quantizer.state_dict().values())


def test_dead_codes_move_to_residuals_and_live_ones_stay() -> None:
    torch.manual_seed(0)
    quantizer, inputs = Quantizer(SHAPE), embeddings(200)
    generator = torch.Generator().manual_seed(0)
    start_codebooks(quantizer, inputs, generator)
    with torch.no_grad():
        quantizer.codebooks[0][3:9] = 1e3  # out of reach
    before = [codebook.detach().clone() for codebook in quantizer.codebooks]
    used = [level.unique() for level in quantizer.quantize(quantizer.encoder(inputs))[0].T]
    dead = sum(16 - len(level) for level in used)
    assert reset_dead_codes(quantizer, inputs, generator) == dead >= 6
    for codebook, old, alive in zip(quantizer.codebooks, before, used, strict=True):
        assert torch.equal(codebook[alive], old[alive])
    assert float(quantizer.codebooks[0].detach().abs().max()) < 1e2
    assert len(quantizer.quantize(quantizer.encoder(inputs))[0][:, 0].unique()) > len(used[0])


def test_codebooks_start_with_every_code_in_use() -> None:
    torch.manual_seed(0)
    quantizer, inputs = Quantizer(SHAPE), embeddings(400)
    start_codebooks(quantizer, inputs, torch.Generator().manual_seed(0))
    codes, _ = quantizer.quantize(quantizer.encoder(inputs))
    assert [len(level.unique()) for level in codes.T] == [16, 16, 16]


SHORT = Schedule(steps=20, batch_size=32)  # too short for differences of rounding to grow


def fit_on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    fit_quantizer(embeddings(101), SHAPE, SHORT, seed=0).save(f"{folder}/{rank}")
    dist.destroy_process_group()


def test_two_workers_agree_with_each_other_and_with_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(fit_on_rank, (str(tmp_path),), nprocs=2)
    ranks = [Quantizer.load(str(tmp_path / str(rank))).state_dict() for rank in (0, 1)]
    alone = fit_quantizer(embeddings(101), SHAPE, SHORT, seed=0).state_dict()
    for name, tensor in alone.items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        assert torch.allclose(ranks[0][name], tensor, atol=1e-4), name
