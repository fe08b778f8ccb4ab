"""SPRINT's bounds, and fits that push them down."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from models.common.data_parallel import Strategy
from models.common.jagged import Jagged
from models.common.settings import FitConfig
from models.recommenders.artifacts import load
from models.recommenders.build import next_item_task
from models.recommenders.catalogue_model import CatalogueModel
from models.recommenders.fitting import fit
from models.recommenders.product_codes import ProductCodes, ProductCodesConfig
from models.recommenders.product_quantizer import Quantized
from models.recommenders.sasrec import SasRec, SasRecConfig
from models.recommenders.settings import ProductCodesSettings, RpgSettings, SasRecSettings
from models.recommenders.sprint import (
    AttentionPenalty,
    ProductPenalty,
    SpectralNorm,
    SprintConfig,
    causal_attention,
    smooth_norm,
)
from tests.models.recommenders.test_fitting import ITEMS, Kept, asked
from tests.models.workers import on_ranks

SIZE = {"dim": 8, "layers": 2, "inner": 16, "length": 4, "dropout": 0.0}
ALL = {"attention": 1.0, "feed_forward": 0.5, "embedding": 0.1}
CONFIG = FitConfig(steps=8, batch_size=6, learning_rate=0.01, warmup=2, validate_every=4, precision="fp32")
WINDOWS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, ITEMS, ITEMS, ITEMS], [8, 9, 10, ITEMS, ITEMS]])


def model_of(kind: str, **settings: Any) -> CatalogueModel:
    torch.manual_seed(0)
    if kind == "sasrec":
        return SasRec(SasRecConfig(**{**SIZE, **settings}), torch.arange(ITEMS))
    quantized = Quantized(torch.randint(4, (ITEMS, 2)), torch.randn(2, 4, 4))
    return ProductCodes(ProductCodesConfig(**{**SIZE, **settings}), quantized)


def fitted(
    kind: str, *, steps: int = 8, state: Any = None, strategy: Strategy = "ddp", **settings: Any
) -> tuple[Kept, CatalogueModel]:
    """What a fit has reported, and the model as it ends."""
    random = torch.Generator().manual_seed(0)
    rows = [torch.randint(1, ITEMS, (2 + row % 4,), generator=random) for row in range(20)]
    sequences = Jagged(torch.cat(rows), torch.tensor([0, *map(len, rows)]).cumsum(0))
    model, kept = model_of(kind, **settings), Kept()
    task = next_item_task(model, sequences, CONFIG.batch_size, seed=0)
    config = CONFIG.model_copy(update={"steps": steps})
    fit(config, task, asked(9), kept.callbacks(), seed=0, state=state, strategy=strategy)
    return kept, model


def penalties(model: CatalogueModel) -> dict[str, float]:
    """What each term of weight 1 adds to the loss of a model, with spectral norms at their limits."""
    plain, found = model_of(model.kind, logits=model.config.logits), {}
    plain.load_state_dict(model.state_dict(), strict=False)
    for term in ALL:
        other = model_of(model.kind, logits=model.config.logits, sprint={term: 1.0})
        other.load_state_dict(plain.state_dict(), strict=False)
        with torch.no_grad():
            found[term] = float([other.loss(WINDOWS) for _ in range(100)][-1] - plain.loss(WINDOWS))
    return found


def attention_of(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of three heads, and sequences of one to `length` positions."""
    torch.manual_seed(1)
    query, key = torch.randn(2, batch, 3, length, 5) * 3
    return causal_attention(query, key), torch.arange(length) < torch.randint(1, length + 1, (batch, 1))


def largest_columns(attention: torch.Tensor, real: torch.Tensor) -> list[float]:
    """Of every head, sequence by sequence without its padding."""
    parts = [each[:, :count, :count] for each, count in zip(attention, real.sum(1).tolist(), strict=True)]
    return torch.stack([part.sum(1).amax(1) for part in parts]).amax(0).tolist()


def test_attention_is_what_the_fused_function_uses() -> None:
    query, key, value = torch.randn(3, 4, 2, 6, 5)
    attention = causal_attention(query, key)
    torch.testing.assert_close(attention.sum(-1), torch.ones(4, 2, 6))
    wanted = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(attention @ value, wanted)
    settings = {"attention": 1e-9}
    explicit, fused = (model_of("sasrec", **more).train() for more in ({"sprint": settings}, {}))
    torch.testing.assert_close(explicit.loss(WINDOWS), fused.loss(WINDOWS))


@pytest.mark.parametrize("temperature", [0.5, 1, 4, 8])
def test_the_smooth_norm_bounds_the_largest_column(temperature: float) -> None:
    attention, real = attention_of(6, 9)
    largest = torch.tensor(largest_columns(attention, real))
    found = smooth_norm(attention, real, temperature)
    assert (found >= largest).all()
    assert (found <= largest + math.log(int(real.sum())) / temperature + 1e-5).all()
    for head in range(3):
        norms = torch.linalg.matrix_norm(attention[:, head] * real[..., None], 2)
        assert (norms**2 <= found[head] + 1e-5).all()


def test_the_smooth_norm_tends_to_the_largest_column() -> None:
    attention, real = attention_of(6, 9)
    found = smooth_norm(attention.double(), real, 1e5)
    assert found.tolist() == pytest.approx(largest_columns(attention.double(), real), abs=1e-4)


def test_padding_counts_for_nothing() -> None:
    attention, real = attention_of(6, 9)
    wider = functional.pad(attention, (0, 3, 0, 3), value=0.7)
    found = smooth_norm(wider, functional.pad(real, (0, 3)), 4.0)
    torch.testing.assert_close(found, smooth_norm(attention, real, 4.0))


@pytest.mark.parametrize("shape", [(64, 64), (256, 64), (64, 256), (3, 32, 64)])
def test_fifty_steps_find_the_spectral_norm(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape, requires_grad=True)
    norm = SpectralNorm(*shape[:-2], shape[-1])
    for _ in range(50):
        found = norm(matrices)
    wanted = torch.linalg.matrix_norm(matrices, 2)
    torch.testing.assert_close(found, wanted, rtol=0.01, atol=0)
    assert (found <= wanted * (1 + 1e-5)).all()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(norm(matrices), wanted, rtol=0.01, atol=0)


def test_each_term_is_the_log_of_its_bound_and_its_gradient_lowers_it() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 2, 6, 4)
    value, merge, wide, narrow = torch.randn(2, 4, 8), torch.randn(8, 8), torch.randn(16, 8), torch.randn(8, 16)
    real = torch.arange(6) < torch.tensor([[6], [3], [1], [5]])
    parts = [part.requires_grad_() for part in (query, key, value, merge, wide, narrow)]
    config = SprintConfig(attention=2.0)
    attend, network = AttentionPenalty(config, 8, 2), ProductPenalty(3.0, 8, 16)

    def terms() -> torch.Tensor:
        for _ in range(100):
            found = attend(causal_attention(query, key), real, value, merge), network(wide, narrow)
        return torch.stack(found)

    @torch.no_grad()
    def exact() -> list[float]:
        norm = torch.linalg.matrix_norm
        columns = smooth_norm(causal_attention(query, key), real, config.temperature)
        root = (columns * norm(value, 2) ** 2).sum().sqrt()
        return [
            2.0 * float((1 + root * norm(merge, 2)).log()),
            3.0 * float((1 + norm(wide, 2) * norm(narrow, 2)).log()),
        ]

    before = exact()
    found = terms()
    assert found.tolist() == pytest.approx(before, rel=1e-3)
    found.sum().backward()
    assert all(part.grad is not None and part.grad.any() for part in parts)
    columns = smooth_norm(causal_attention(query, key), real, config.temperature)
    with torch.no_grad():
        for part in parts:
            part -= 0.02 * part.grad
    assert (smooth_norm(causal_attention(query, key), real, config.temperature) < columns).all()
    assert all(after < each for after, each in zip(exact(), before, strict=True))


@pytest.mark.parametrize("kind", ["sasrec", "product_codes"])
def test_without_weights_a_fit_is_that_without_the_setting(kind: str) -> None:
    settings = {"dropout": 0.3}
    plain, zero = fitted(kind, **settings)[0], fitted(kind, **settings, sprint={"temperature": 2})[0]
    assert plain.metrics == zero.metrics
    for one, other in zip(plain.states, zero.states, strict=True):
        one.pop("at.seconds"), other.pop("at.seconds")
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("logits", ["cosine", "dot"])
@pytest.mark.parametrize("kind", ["sasrec", "product_codes"])
def test_a_fit_lowers_what_it_penalises(kind: str, logits: str) -> None:
    plain = penalties(fitted(kind, steps=60, logits=logits)[1])
    for term in ALL:
        found = penalties(fitted(kind, steps=60, logits=logits, sprint={term: 3.0})[1])
        assert 0 < found[term] < 0.99 * plain[term]


def on_two(rank: int | None, strategy: Strategy) -> dict[str, Any]:
    kept, _ = fitted("sasrec", strategy=strategy, sprint=ALL)
    return {"metrics": kept.metrics, "bests": kept.bests}


def test_two_workers_fit_as_layers_or_as_a_whole(tmp_path: Path) -> None:
    whole, sharded = on_ranks(on_two, tmp_path, [("ddp",), ("fsdp",)])
    assert whole[0]["metrics"] == whole[1]["metrics"]
    for one, other in zip(whole[0]["metrics"], sharded[0]["metrics"], strict=True):
        assert other == pytest.approx(one, rel=1e-4)
    for one, other in zip(whole[0]["bests"], sharded[0]["bests"], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["sasrec", "product_codes"])
def test_answers_and_validation_know_nothing_of_it(kind: str) -> None:
    plain, other = model_of(kind).eval(), model_of(kind, sprint=ALL).eval()
    assert plain.loss(WINDOWS) == other.loss(WINDOWS)
    assert plain.train().loss(WINDOWS) < other.train().loss(WINDOWS)


@pytest.mark.parametrize("kind", ["sasrec", "product_codes"])
def test_a_batch_without_items_costs_nothing(kind: str) -> None:
    model = model_of(kind, sprint=ALL).train()
    loss = model.loss(torch.full((2, 3), ITEMS))
    loss.backward()
    assert loss == 0
    assert all(part.grad is not None and not part.grad.any() for part in model.parameters())


def test_an_item_that_nobody_chose_keeps_no_vector() -> None:
    for logits in ("cosine", "dot"):
        model = model_of("sasrec", logits=logits, sprint=ALL).train()
        model.loss(WINDOWS).backward()
        assert not model.item.grad[0].any()
        assert model.item.grad[11].any()


def test_a_fit_goes_on_from_its_vectors_and_an_artifact_keeps_them(tmp_path: Path) -> None:
    whole, _ = fitted("sasrec", dropout=0.3, sprint=ALL)
    at = next(number for number, metrics in enumerate(whole.metrics) if metrics["step"] == 4)
    after, _ = fitted("sasrec", dropout=0.3, sprint=ALL, state=dict(whole.states[at]))
    assert after.metrics == whole.metrics[at + 1 :]
    last, other = whole.states[-1], after.states[-1]
    assert all(torch.equal(last[name], other[name]) for name in last if name != "at.seconds")
    model = model_of("sasrec", sprint=ALL)
    model.load_state_dict(whole.bests[-1])
    model.save(str(tmp_path), model.state_dict())
    found = load(str(tmp_path))
    assert found.config.sprint == SprintConfig(**ALL)
    assert torch.equal(found.table_penalty.norms[0].right, model.table_penalty.norms[0].right)


@pytest.mark.parametrize("sprint", [{"attention": -1}, {"temperature": 0}, {"embeddings": 1}, {"feed_forward": "x"}])
def test_settings_that_do_not_fit(sprint: dict[str, Any]) -> None:
    for settings in (SasRecSettings, ProductCodesSettings):
        with pytest.raises(ValueError, match=next(iter(sprint))):
            settings.model_validate({"model": {"sprint": sprint}})
        settings.model_validate({"model": {"sprint": ALL}})
    with pytest.raises(ValueError, match="sprint"):
        RpgSettings.model_validate({"model": {"sprint": ALL}})
