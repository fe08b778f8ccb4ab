from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.semantic_ids.quantizer import RQKMEANS, RQVAE, Architecture, Quantizer
from models.semantic_ids.rqkmeans import State, fit_rqkmeans, set_statistics
from models.semantic_ids.rqvae import Schedule, fit_rqvae
from models.semantic_ids.training_rows import Vectors, collect
from tests.models.workers import on_ranks

SHAPE = Architecture(RQKMEANS, 16, (16, 16, 16), 16)


def embeddings(rows: int, scale: float = 1.0) -> torch.Tensor:
    """Clustered points with a decaying spectrum, as a PCA leaves them."""
    generator = torch.Generator().manual_seed(5)
    spectrum = torch.arange(1, 17) ** -0.7
    centres = 1.5 * torch.randn(8, 16, generator=generator)
    labels = torch.randint(8, (rows,), generator=generator)
    return scale * (centres[labels] + torch.randn(rows, 16, generator=generator)) * spectrum


def vectors(values: torch.Tensor) -> Vectors:
    return collect([(values.numpy(), np.empty((len(values), 0), np.float32))])


def errors(quantizer: Quantizer, data: torch.Tensor) -> list[float]:
    """Share of the variance that is lost by depth."""
    codes, inputs = quantizer.encode(data), quantizer.standardise(data)
    return [float((inputs - quantizer.standardise(quantizer.decode(codes[:, :h]))).square().mean()) for h in (1, 2, 3)]


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_uses_the_codebooks_and_loses_less_with_every_level(scale: float) -> None:
    data, history = embeddings(400, scale), []
    quantizer = fit_rqkmeans(vectors(data), SHAPE, seed=0, report=lambda metrics, _: history.append(metrics))
    assert all(len(level.unique()) == 16 for level in quantizer.encode(data).T)
    lost = errors(quantizer, data)
    assert lost[0] > lost[1] > lost[2]
    assert lost[2] < 0.2  # 12 bits for 16 dimensions
    assert [point["step"] for point in history] == [1, 2, 3]
    assert [point["reconstruction"] for point in history] == pytest.approx(lost, rel=1e-4)


@pytest.mark.parametrize("fit", ["rqkmeans", "rqvae"])
def test_whitening_keeps_a_strong_direction_from_owning_the_first_code(fit: str) -> None:
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(600, 16, generator=generator)
    groups = torch.arange(600) % 4
    data[:, 1] = 3 * (groups % 2) - 1.5
    data[:, 2] = 3 * (groups // 2) - 1.5
    data[:, 3:] *= 0.1
    data[:, 0] *= 20
    found = {}
    for whiten in (False, True):
        shape = replace(SHAPE, codebook_sizes=(16, 16), whiten=whiten)
        if fit == "rqkmeans":
            quantizer = fit_rqkmeans(vectors(data), shape, seed=0)
        else:
            shape = replace(shape, method=RQVAE, hidden_dims=(16,))
            quantizer = fit_rqvae(vectors(data), shape, Schedule(steps=20), seed=0)
        codes = quantizer.encode(data)
        group = torch.zeros(16, 4).index_put_((codes[:, 0].long(), groups), torch.ones(600), accumulate=True)
        found[whiten] = float(group.max(1).values.sum() / 600)  # share of the commonest group of a first code
        if whiten:
            inputs = quantizer.inputs(data)
            assert torch.allclose(inputs @ quantizer.unwhitening, quantizer.standardise(data), atol=1e-3)
            deviations = inputs.std(0)
            assert 1.0 < deviations[0] < 1.1  # its variance is 0.9 x + 0.1 of the mean before the map
            assert (deviations[3:] < 0.5).all()
            assert errors(quantizer, data)[1] < 0.5  # in the space of the embeddings
    assert found[False] < 0.5
    assert found[True] > 0.8


def test_balanced_levels_are_used_more_evenly() -> None:
    data = embeddings(600)
    codes = [fit_rqkmeans(vectors(data), SHAPE, seed=0, balanced=balanced).encode(data) for balanced in (False, True)]
    for plain, balanced in zip(*(part.T for part in codes), strict=True):
        sizes = [torch.bincount(level, minlength=16).float() for level in (plain, balanced)]
        assert float(sizes[1].std()) < 0.7 * float(sizes[0].std())


def test_the_order_of_rows_changes_nothing_and_the_seed_does() -> None:
    data = embeddings(200)
    first = fit_rqkmeans(vectors(data), SHAPE, seed=3).state_dict()
    second = fit_rqkmeans(vectors(data.flip(0)), SHAPE, seed=3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["codebooks.0"], fit_rqkmeans(vectors(data), SHAPE, seed=4).codebooks[0])


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_tiny_catalogues_fit(rows: int) -> None:
    quantizer = fit_rqkmeans(vectors(embeddings(rows)), SHAPE, seed=0)
    assert quantizer.encode(embeddings(rows)).shape == (rows, 3)
    assert all(torch.isfinite(tensor).all() for tensor in quantizer.state_dict().values())


def test_a_fit_that_stopped_after_a_level_goes_on_to_the_same_end() -> None:
    data, states = vectors(embeddings(200)), list[State]()

    def keep(metrics: dict[str, float], snapshot: object) -> None:
        states.append({name: tensor.clone() for name, tensor in snapshot().items()})  # type: ignore[operator]

    whole = fit_rqkmeans(data, SHAPE, seed=0, balanced=True, report=keep).state_dict()
    for state in states:
        resumed = fit_rqkmeans(data, SHAPE, seed=0, balanced=True, state=state)
        assert all(torch.equal(whole[name], tensor) for name, tensor in resumed.state_dict().items())


def test_statistics_are_those_of_all_rows() -> None:
    data = 3 + 0.01 * torch.randn(500, 16) * torch.arange(1, 17)
    quantizer = Quantizer(SHAPE)
    set_statistics(quantizer, vectors(data))
    inputs = quantizer.standardise(data)
    assert torch.allclose(inputs.mean(0), torch.zeros(16), atol=1e-3)
    assert float(inputs.square().mean()) == pytest.approx(1, abs=1e-3)
    assert float(inputs[:, 15].std() / inputs[:, 0].std()) == pytest.approx(16, rel=0.2)  # proportions stay


def fit_share(rank: int, values: torch.Tensor, bounds: list[int]) -> dict[str, torch.Tensor]:
    return dict(fit_rqkmeans(vectors(values[bounds[rank] : bounds[rank + 1]]), SHAPE, seed=0).state_dict())


def test_two_workers_agree_with_one_however_the_rows_are_shared(tmp_path: Path) -> None:
    data = embeddings(200)
    alone = fit_rqkmeans(vectors(data), SHAPE, seed=0).state_dict()
    for first, second in on_ranks(fit_share, tmp_path, [(data, [0, 60, 200]), (data, [0, 200, 200])]):
        for name, tensor in alone.items():
            assert torch.equal(first[name], second[name])
            assert torch.allclose(first[name], tensor, atol=1e-5), name
