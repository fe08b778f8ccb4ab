from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from models.ranking.bags import EmbeddingBags, places
from models.ranking.config import Sharding, Table
from models.ranking.sharding import shard
from tests.models.workers import WORLD, on_ranks

DIM, BATCH = 8, 6  # two workers share eight columns, not four
TABLES = {
    "user": Table(rows=20, features=("user",), pooling="sum"),
    "caption": Table(rows=30, features=("caption", "history_caption"), hashes=2, importance=50, pooling="mean"),
    "item": Table(rows=15, features=("item", "history_item"), pooling="mean"),
    "text": Table(rows=25, features=("text", "history_text"), pooling="attention"),
    "title": Table(rows=30, features=("title",), hashes=3, importance=40, pooling="attention"),
    "sid": Table(rows=12, features=("sid",), importance=9, pooling="sum"),
}
PLAIN = {name: table for name, table in TABLES.items() if not table.weighted}
WEIGHTED = {name: table for name, table in TABLES.items() if table.weighted}
Tokens = dict[str, list[list[tuple[list[int], int]]]]  # per feature and row its tokens: rows of the table, D(t)


def tokens(seed: int = 0, tables: dict[str, Table] = TABLES) -> Tokens:
    """Random bags of 0 to 4 tokens, some of them NULL."""
    random = torch.Generator().manual_seed(seed)

    def draw(below: int) -> int:
        return int(torch.randint(below, (), generator=random))

    def token(table: Table) -> tuple[list[int], int]:
        if draw(5) == 0:
            return [0] * table.hashes, 0
        rows = [draw(table.rows) for _ in range(table.hashes)]
        return rows, draw(table.importance) if table.importance else rows[0]

    return {
        feature: [[token(table) for _ in range(draw(5))] for _ in range(BATCH)]
        for table in tables.values()
        for feature in table.features
    }


def jagged(bags: Tokens, tables: dict[str, Table]) -> KeyedJaggedTensor | None:
    """The bags of some tables, features in another order than the tables have."""
    of = {feature: table for table in tables.values() for feature in reversed(table.features)}
    if not of:
        return None
    every = [(of[feature], token) for feature in of for bag in bags[feature] for token in bag]
    at = [places(torch.tensor([row]), table.hashes) for table, (_, row) in every]
    return KeyedJaggedTensor(
        keys=list(of),
        values=torch.tensor([row for _, (rows, _) in every for row in rows]),
        weights=torch.cat(at) if any(table.weighted for table in of.values()) else None,
        lengths=torch.tensor([len(bag) * of[feature].hashes for feature in of for bag in bags[feature]]).int(),
    )


def inputs(
    bags: Tokens, tables: dict[str, Table] = TABLES
) -> tuple[KeyedJaggedTensor | None, KeyedJaggedTensor | None]:
    plain = {name: table for name, table in tables.items() if not table.weighted}
    weighted = {name: table for name, table in tables.items() if table.weighted}
    return jagged(bags, plain), jagged(bags, weighted)


def whole(name: str, size: torch.Size) -> torch.Tensor:
    """Values of a parameter that depend on its name alone."""
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(name.encode())))


def made(tables: dict[str, Table] = TABLES) -> EmbeddingBags:
    bags = EmbeddingBags(tables, DIM)
    bags.load_state_dict({name: whole(name, value.size()) for name, value in bags.state_dict().items()}, assign=True)
    return bags


def named(parameters: Iterator[tuple[str, Any]]) -> dict[tuple[str, str], Any]:
    """Parameters by kind, E, P or A, and table."""
    kinds = {"embedding_bags": "E", "importance": "P", "attention": "A"}
    found = {}
    for name, parameter in parameters:
        parts = [part for part in name.split(".") if part != "weight"]
        found[kinds[parts[-2]], parts[-1]] = parameter
    return found


def reference(parameters: dict[tuple[str, str], torch.Tensor], bags: Tokens, tables: dict[str, Table]) -> torch.Tensor:
    """The definition, token by token."""
    columns = []
    for name, table in tables.items():
        for feature in table.features:
            for bag in bags[feature]:
                vectors = [torch.zeros(DIM)]
                for rows, at in bag:
                    weights = parameters["P", name][at] if table.importance else torch.ones(table.hashes)
                    vectors.append(sum(w * parameters["E", name][row] for w, row in zip(weights, rows, strict=True)))
                shares = torch.ones(len(bag))
                if table.pooling == "mean" and bag:
                    shares = shares / len(bag)
                if table.pooling == "attention" and bag:
                    shares = torch.stack([parameters["A", name][at] for _, at in bag]).softmax(0)
                columns.append(vectors[0] + sum(s * v for s, v in zip(shares, vectors[1:], strict=True)))
    return torch.stack(columns).view(-1, BATCH, DIM).transpose(0, 1)


def loss(pooled: torch.Tensor) -> torch.Tensor:
    return torch.tanh(pooled * whole("loss", pooled.size()[1:])).sum()


@pytest.mark.parametrize("tables", [TABLES, PLAIN, WEIGHTED, {"caption": TABLES["caption"]}])
def test_bags_and_their_gradients_are_what_the_definition_says(tables: dict[str, Table]) -> None:
    bags = made(tables)
    parameters = named(bags.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_()
    expected = reference(parameters, tokens(), tables)
    found = bags(*inputs(tokens(), tables))
    assert found.shape == (BATCH, len(bags.features), DIM)
    torch.testing.assert_close(found, expected)
    gradients, wanted = (torch.autograd.grad(loss(pooled), list(parameters.values())) for pooled in (found, expected))
    torch.testing.assert_close(gradients, wanted)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


@dataclass
class Batch(Pipelineable):
    sparse: KeyedJaggedTensor | None
    weighted: KeyedJaggedTensor | None

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        return Batch(
            *(part if part is None else part.to(device) for part in (getattr(self, f.name) for f in fields(self)))
        )

    def record_stream(self, stream: torch.Stream) -> None:
        raise NotImplementedError


class Module(nn.Module):
    def __init__(self, tables: dict[str, Table]) -> None:
        super().__init__()
        self.bags = EmbeddingBags(tables, DIM)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = self.bags(batch.sparse, batch.weighted) * self.scale
        return loss(pooled), pooled.detach()


def spread(tables: dict[str, Table], sharding: Sharding) -> tuple[Any, Any]:
    model, optimizer = shard(
        Module(tables), device=torch.device("cpu"), embedding_lr=0.1, dense_lr=0.01, weight_decay=0, sharding=sharding
    )
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if isinstance(value, ShardedTensor):
                values = whole(name.removeprefix("bags."), value.size())
                for part in value.local_shards():
                    spans = zip(part.metadata.shard_offsets, part.metadata.shard_sizes, strict=True)
                    part.tensor.copy_(values[tuple(slice(at, at + size) for at, size in spans)])
            elif name != "scale":
                value.copy_(whole(name.removeprefix("bags."), value.size()))
    return model, optimizer


CASES: tuple[tuple[dict[str, Table], Sharding], ...] = (
    (TABLES, "table_wise"),
    (TABLES, "column_wise"),
    (TABLES, "row_wise"),
    (PLAIN, "table_wise"),
    (WEIGHTED, "row_wise"),
)


def on_rank(rank: int) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """Of each case this rank's fields in a pipeline's first step, and the gradients of P and A."""
    found = []
    for tables, sharding in CASES:
        model, optimizer = spread(tables, sharding)
        pipeline = TrainPipelineSparseDist(model, optimizer, torch.device("cpu"), execute_all_batches=True)
        pooled = pipeline.progress(iter([Batch(*inputs(tokens(rank), tables))]))
        pipeline.detach()
        learned = named((name, p) for name, p in model.named_parameters() if "_feature_processors" in name)
        found.append((pooled, {" ".join(name): parameter.grad for name, parameter in learned.items()}))
    return found


def test_bags_sharded_are_those_of_one_worker(tmp_path: Path) -> None:
    [ranks] = on_ranks(on_rank, tmp_path, [()])
    for (tables, _), *found in zip(CASES, *ranks, strict=True):
        parameters = {name: value.requires_grad_() for name, value in named(made(tables).named_parameters()).items()}
        expected = [reference(parameters, tokens(rank), tables) for rank in range(WORLD)]
        learned = {name: value for name, value in parameters.items() if name[0] != "E"}
        step = torch.stack([loss(pooled) for pooled in expected]).mean()
        gradients = torch.autograd.grad(step, list(learned.values())) if learned else ()
        for pooled, (fields_of_rank, gradients_of_rank) in zip(expected, found, strict=True):
            torch.testing.assert_close(fields_of_rank, pooled.detach())
            torch.testing.assert_close(
                gradients_of_rank, {" ".join(name): gradient for name, gradient in zip(learned, gradients, strict=True)}
            )


EMBEDDING = "weighted._embedding_bag_collection.embedding_bags.text.weight"
IMPORTANCE, ATTENTION = (f"weighted._feature_processors.{kind}.text" for kind in ("importance", "attention"))


def one_bag(rows: torch.Tensor, weights: torch.Tensor) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(keys=["text"], values=rows, weights=weights, lengths=torch.tensor([len(rows)]).int())


def test_one_hash_and_unit_weights_are_the_hashing_trick() -> None:
    hashes = torch.tensor([0, 7, 12_345, 678, 12_345])
    rows, importance = 1 + hashes % 9, 1 + hashes % 49
    bags = EmbeddingBags({"text": Table(rows=10, features=("text",), importance=50, pooling="mean")}, DIM)
    table = whole("table", torch.Size([10, DIM]))
    bags.load_state_dict({EMBEDDING: table}, strict=False, assign=True)
    found = bags(None, one_bag(rows, places(importance, 1)))
    torch.testing.assert_close(found[0], nn.functional.embedding_bag(rows, table, torch.tensor([0]), mode="mean"))


def test_a_row_per_token_is_a_normal_table() -> None:
    rows = torch.tensor([3, 1, 4, 1])
    bags = EmbeddingBags({"text": Table(rows=10, features=("text",), importance=10, pooling="sum")}, DIM)
    table, weights = whole("table", torch.Size([10, DIM])), whole("weights", torch.Size([10, 1]))
    bags.load_state_dict({EMBEDDING: table, IMPORTANCE: weights}, strict=False, assign=True)
    found = bags(None, one_bag(rows, places(rows, 1)))
    torch.testing.assert_close(
        found[0], nn.functional.embedding_bag(rows, table * weights, torch.tensor([0]), mode="sum")
    )


def test_null_is_a_token_with_an_embedding_of_its_own() -> None:
    bags = made({"caption": TABLES["caption"]})
    null = {"caption": [[([0, 0], 0)]] * BATCH, "history_caption": [[]] * BATCH}
    parameters = {name: value.requires_grad_() for name, value in named(bags.named_parameters()).items()}
    found = bags(*inputs(null, bags.tables))
    assert (found[:, 0] != 0).all()
    assert (found[:, 1] == 0).all()  # not so a bag without any token
    found.sum().backward()
    for kind in "EP":
        assert (parameters[kind, "caption"].grad[0] != 0).all()
        assert (parameters[kind, "caption"].grad[1:] == 0).all()


@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_attention_stays_finite_whatever_it_learns(logit: float) -> None:
    bags = EmbeddingBags({"text": Table(rows=10, features=("text",), pooling="attention")}, DIM)
    table, logits = whole("table", torch.Size([10, DIM])), torch.zeros(10)
    logits[1:] = logit
    bags.load_state_dict({EMBEDDING: table, ATTENTION: logits}, strict=False, assign=True)
    rows = torch.tensor([0, 2])
    found = bags(None, one_bag(rows, places(rows, 1)))
    torch.testing.assert_close(found[0, 0], table[2 if logit > 0 else 0])


def test_a_place_too_far_for_float32_is_refused() -> None:
    last = Table(rows=2, features=("text",), hashes=2, importance=2**23)
    assert places(torch.tensor([last.importance - 1]), 2).long().tolist() == [2**24 - 2, 2**24 - 1]
    for table in (
        {"rows": 2, "hashes": 2, "importance": 2**23 + 1},
        {"rows": 2**24 + 1, "pooling": "attention"},
    ):
        with pytest.raises(ValidationError, match="at most 16777216 learned weights"):
            Table(features=("text",), **table)


def test_several_hashes_need_importance() -> None:
    with pytest.raises(ValidationError, match="set importance above 0"):
        Table(rows=10, features=("text",), hashes=2)
