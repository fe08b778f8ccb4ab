from __future__ import annotations

import pytest
import torch
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from models.ranking.bags import EmbeddingBags, places
from models.ranking.config import Table
from models.ranking.quantized import Bits, QuantizedBags, float_bags, quantize_bags
from storage.artifacts import load_model, save_model

DIM, BATCH, TOKENS = 16, 40, 5
TABLES = {
    "user": Table(rows=50, features=("user",), pooling="sum"),
    "caption": Table(rows=300, features=("caption", "history_caption"), hashes=2, importance=500, pooling="mean"),
    "item": Table(rows=40, features=("item", "history_item"), pooling="mean"),
    "text": Table(rows=200, features=("text",), pooling="attention"),
    "title": Table(rows=300, features=("title",), hashes=3, importance=400, pooling="attention"),
    "sid": Table(rows=20, features=("sid",), importance=9, pooling="sum"),
}
SPREAD = 0.3  # of the logits and of the weights around 1


def made(tables: dict[str, Table]) -> EmbeddingBags:
    torch.manual_seed(0)
    bags = EmbeddingBags(tables, DIM)
    state = {name: 0.05 * torch.randn(value.size()) for name, value in bags.state_dict().items()}
    for name in state:
        if "_feature_processors" in name:
            state[name] = (torch.rand(state[name].size()) * 2 - 1) * SPREAD + ("importance" in name)
    bags.load_state_dict(state, assign=True)
    return bags.eval()


def inputs(tables: dict[str, Table]) -> tuple[KeyedJaggedTensor | None, KeyedJaggedTensor | None]:
    """Bags of 0 to 5 tokens."""
    random = torch.Generator().manual_seed(1)
    parts = []
    for weighted in (False, True):
        of = {f: t for t in tables.values() if t.weighted == weighted for f in t.features}
        values, weights, lengths = [], [], []
        for table in of.values():
            number = torch.randint(TOKENS + 1, (BATCH,), generator=random)
            total = int(number.sum())
            rows = torch.randint(table.rows, (total, table.hashes), generator=random)
            at = torch.randint(table.importance, (total,), generator=random) if table.importance else rows[:, 0]
            values.append(rows.flatten())
            weights.append(places(at, table.hashes))
            lengths.append(number * table.hashes)
        parts.append(
            KeyedJaggedTensor(
                keys=list(of),
                values=torch.cat(values),
                weights=torch.cat(weights) if weighted else None,
                lengths=torch.cat(lengths).int(),
            )
            if of
            else None
        )
    return parts[0], parts[1]


def bound(bags: EmbeddingBags, dtype: Bits) -> torch.Tensor:
    """How far off a pooled number may be, by feature: what its rows are off by, and what weighs them, [F]."""
    rows = {
        name: bag.weight.detach()
        for part in bags.modules()
        if isinstance(part, EmbeddingBagCollection)
        for name, bag in part.embedding_bags.items()
    }
    found = []
    for name, table in bags.tables.items():
        steps = (rows[name].max(1).values - rows[name].min(1).values) / 255
        largest = float(rows[name].abs().max())
        off = float(steps.max()) / 2 if dtype == "int8" else largest * 2**-11
        # float16 is off by 2^-11 of a weight; exp(logit) by the logit's error, above and below the line
        weight, relative = (1 + SPREAD if table.importance else 1.0), 2**-11 * (1 + 2 * SPREAD)
        share = TOKENS if table.pooling == "sum" else 1
        found += [table.hashes * share * weight * (off + 2 * relative * largest)] * len(table.features)
    return torch.tensor(found) * 1.1  # sums in float16 or float32 round, too


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize("weighted", [{False}, {True}, {False, True}])
def test_quantized_bags_are_within_half_a_step_of_the_float_ones(dtype: Bits, weighted: set[bool]) -> None:
    tables = {name: table for name, table in TABLES.items() if table.weighted in weighted}
    bags = made(tables)
    found, expected = quantize_bags(bags, dtype)(*inputs(tables)), bags(*inputs(tables))
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    off = (found - expected).abs().amax((0, 2))
    assert (off <= bound(bags, dtype)).all()
    assert (off > 0).all()


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_a_file_holds_them_without_the_float_ones(dtype: Bits, tmp_path) -> None:
    bags = made(TABLES)
    quantized = quantize_bags(bags, dtype)
    save_model(str(tmp_path), "ranker", {}, quantized.state_dict())
    loaded = QuantizedBags(TABLES, DIM, dtype)
    loaded.load_state_dict(load_model(str(tmp_path), "ranker")[1], assign=True)
    assert torch.equal(loaded(*inputs(TABLES)), quantized(*inputs(TABLES)))
    size = sum(value.numel() * 4 for value in bags.state_dict().values())
    written = (tmp_path / "model.safetensors").stat().st_size
    assert written < 0.55 * size
    assert all(value.dtype != torch.float32 for value in loaded.state_dict().values())


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_extreme_attention_survives_fewer_bits(dtype: Bits) -> None:
    tables = {"text": Table(rows=30, features=("text",), pooling="attention")}
    bags = made(tables)
    logits = bags.state_dict()["weighted._feature_processors.attention.text"]
    logits[:10], logits[10:] = 15.0, -15.0
    every = torch.arange(30)
    values = torch.cat([every, every[10:]])  # a bag of both, and one of the faint ones alone
    jagged = KeyedJaggedTensor(["text"], values, places(values, 1), torch.tensor([30, 20]).int())
    found, expected = quantize_bags(bags, dtype)(None, jagged), bags(None, jagged)
    assert expected.abs().amax(2).min() > 0.01
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("dtype", "off"), [("fp16", 1e-3), ("int8", 2e-3)])
def test_training_goes_on_with_what_was_kept_in_fewer_bits(dtype: Bits, off: float) -> None:
    bags = made(TABLES)
    found = float_bags(quantize_bags(bags, dtype), TABLES, DIM).state_dict()
    for name, value in bags.state_dict().items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], value, atol=off, rtol=1e-3)
