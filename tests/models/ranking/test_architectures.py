from __future__ import annotations

from typing import get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from models.ranking.architectures import build
from models.ranking.config import Architecture, Dcnv2, Dlrm, RankMixer

LARGE = RankMixer(block="large", tokens=4, dim=16, heads=2)
DEEP = RankMixer(
    block="large", tokens=3, dim=8, heads=2, layers=3, inter_residual=2, auxiliary=True, experts=4, active=1
)
CONFIGS = {
    "dlrm": Dlrm(bottom=(8,), hidden=(32, 16)),
    "dcnv2": Dcnv2(cross_layers=2, hidden=(16,)),
    "dcnv2 of low rank": Dcnv2(cross_rank=3, hidden=(16,)),
    "rankmixer": RankMixer(tokens=4, dim=16),
    "large": LARGE,
    "large with all options": DEEP,
}
FIELDS, DIM = 3, 4
every = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
with_dense_or_without = pytest.mark.parametrize("dense", [0, 2])


def tower(config: Architecture, dense: int = 2, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build(config, fields=FIELDS, dim=DIM, dense=dense)


def inputs(rows: int, dense: int = 2, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(rows, FIELDS, DIM, generator=random), torch.randn(rows, dense, generator=random)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FIELDS * DIM + 2, 1)

    def forward(self, fields: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.cat([fields.flatten(1), dense], dim=1)).t()


def loss_after_training(model: nn.Module, steps: int = 100) -> float:
    """Of a click whose logit is twice the dot product of two fields, and one number of a third."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def loss(rows: int, seed: int) -> torch.Tensor:
        fields, dense = inputs(rows, seed=seed)
        logit = 2 * (fields[:, 0] * fields[:, 1]).sum(1) + fields[:, 2, 0]
        clicks = torch.bernoulli(logit.sigmoid(), generator=torch.Generator().manual_seed(seed))
        logits = model(fields, dense)
        return binary_cross_entropy_with_logits(logits, clicks.expand_as(logits))

    for step in range(steps):
        optimizer.zero_grad()
        loss(128, seed=step).backward()
        optimizer.step()
    model.eval()
    return loss(4_000, seed=steps).item()


@pytest.fixture(scope="module")
def linear_loss() -> float:
    torch.manual_seed(0)
    return loss_after_training(Linear())


@every
def test_learns_what_a_linear_model_cannot(config: Architecture, linear_loss: float) -> None:
    assert loss_after_training(tower(config)) < 0.75 * linear_loss


@every
@with_dense_or_without
def test_a_row_scores_alike_alone_and_in_a_batch(config: Architecture, dense: int) -> None:
    model, (fields, features) = tower(config, dense).eval(), inputs(5, dense)
    alone = torch.cat([model(fields[row : row + 1], features[row : row + 1]) for row in range(5)], dim=1)
    torch.testing.assert_close(model(fields, features), alone)
    assert alone.shape == (1, 5)


@every
@with_dense_or_without
def test_every_parameter_and_every_input_has_a_gradient(config: Architecture, dense: int) -> None:
    model, (fields, features) = tower(config, dense), inputs(64, dense)
    logits = model(fields.requires_grad_(), features.requires_grad_())
    logits.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert fields.grad.abs().sum(0).all()
    assert not dense or features.grad.abs().sum(0).all()


@every
@pytest.mark.parametrize("training", [True, False])
def test_traces_for_batches_of_any_size(config: Architecture, training: bool) -> None:
    model = tower(config).train(training)
    traced = torch.fx.symbolic_trace(model)
    for rows in (1, 7):
        torch.testing.assert_close(traced(*inputs(rows)), model(*inputs(rows)))


@every
def test_the_seed_decides(config: Architecture) -> None:
    torch.testing.assert_close(tower(config)(*inputs(4)), tower(config)(*inputs(4)), rtol=0, atol=0)
    assert not torch.equal(tower(config, seed=1)(*inputs(4)), tower(config)(*inputs(4)))


@every
def test_logits_are_single_precision_where_the_rest_is_not(config: Architecture) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        logits = tower(config)(*inputs(4))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, tower(config)(*inputs(4)), rtol=0.1, atol=0.1)


@every
def test_a_config_survives_json(config: Architecture) -> None:
    assert TypeAdapter(Architecture).validate_json(config.model_dump_json()) == config


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValidationError, match=r"'deepfm'.*'dlrm', 'dcnv2', 'rankmixer'"):
        TypeAdapter(Architecture).validate_python({"name": "deepfm"})


def test_every_architecture_has_a_tower() -> None:
    for config in get_args(get_args(Architecture)[0]):
        assert tower(config())(*inputs(2)).shape == (1, 2)


@with_dense_or_without
def test_dlrm_sees_every_pair_once(dense: int) -> None:
    model, (fields, features) = tower(CONFIGS["dlrm"], dense), inputs(6, dense)
    model.top, model.head = nn.Identity(), nn.Identity()
    seen = model(fields, features).t()
    for row in range(6):
        vectors = list(fields[row])
        if dense:
            vectors.append(model.bottom(features[row : row + 1])[0])
        dots = [vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i + 1, len(vectors))]
        torch.testing.assert_close(seen[row], torch.cat([*vectors, torch.stack(dots)]))
