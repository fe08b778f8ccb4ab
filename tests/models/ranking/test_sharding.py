from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from models.ranking import sharding
from models.ranking.config import Sharding
from storage.errors import UserError
from tests.models.bags import RATES, ROWS, Module, batches, spread, start, state, train
from tests.models.workers import apart, on_ranks

STEPS = 20
SHARDINGS: tuple[Sharding, ...] = get_args(Sharding)
Fitted = tuple[list[float], dict[str, torch.Tensor]]


def call(rank: int, function: Callable[..., Any], *arguments: Any) -> Any:
    return function(rank, *arguments)


def together(rank: int, how: Sharding, cut: int, pipelined: bool) -> Fitted:
    """Both ranks train one module: rank 0 on the first `cut` of eight rows, rank 1 on the others."""
    model, optimizer = spread(Module(), how)
    data = batches(STEPS, share=(slice(cut), slice(cut, 8))[rank], workers=2)
    if not pipelined:
        return train(model, optimizer, data), state(model)
    pipeline = TrainPipelineSparseDist(model, optimizer, torch.device("cpu"), execute_all_batches=True)
    losses = [pipeline.progress(data)[0].item() for _ in range(STEPS)]
    pipeline.detach()
    return losses, state(model)


def alone(rank: int) -> Fitted:
    """Each rank trains a module of its own, on data of its own."""
    with apart(rank):
        model, optimizer = spread(Module())
        return train(model, optimizer, batches(STEPS, seed=rank)), state(model)


def gradients(rank: int, how: Sharding) -> dict[str, torch.Tensor]:
    """Of all but the tables, as the optimizer sees them after one step."""
    model, _ = spread(Module(), how)
    loss, _ = model(next(batches(1, share=(slice(4), slice(4, 8))[rank], workers=2)))
    loss.backward()
    return {name: value.grad for name, value in model.named_parameters() if "embedding_bags" not in name}


def refused(rank: int, how: Sharding, dim: int, captions: int, broken: bool) -> str:
    """What a rank is told; where `broken`, rank 1 alone cannot plan."""
    planner = sharding.EmbeddingShardingPlanner
    if broken and rank == 1:
        sharding.EmbeddingShardingPlanner = None  # type: ignore[assignment,misc]
    try:
        spread(Module({**ROWS, "caption": captions}, dim), how)
    except UserError as error:
        return str(error)
    finally:
        sharding.EmbeddingShardingPlanner = planner  # type: ignore[misc]
    return ""


def placed(rank: int) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of this rank's parts of the tables, by kind of sharding."""
    found = {}
    for how in SHARDINGS:
        model, _ = spread(Module(), how)
        shards = [value.local_shards() for name, value in model.state_dict().items() if "embedding_bags" in name]
        found[how] = [tuple(part.tensor.shape) for parts in shards for part in parts]
    return found


def begun() -> Module:
    module = Module().to_empty(device="cpu")
    with torch.no_grad():
        for name, value in module.state_dict().items():
            value.copy_(start(name, value.shape))
    return module


def plain(seed: int = 0, blocks: int = 1) -> Fitted:
    """The same training in PyTorch alone, with row-wise Adagrad written out for each block of columns."""
    module = begun()
    tables = [value for name, value in module.named_parameters() if "embedding_bags" in name]
    matrices = [module.hidden.weight, module.head.weight]
    others = [*module.norm.parameters(), module.hidden.bias, module.head.bias, module.scale]
    others += module.weighted._feature_processors.parameters()
    decay = {"weight_decay": RATES["weight_decay"]}
    dense = torch.optim.AdamW(
        [{"params": matrices, **decay}, {"params": others, "weight_decay": 0}], lr=RATES["dense_lr"]
    )
    squares = [torch.zeros(len(table), blocks, 1) for table in tables]
    losses = []
    for batch in batches(STEPS, seed):
        module.zero_grad()
        loss, _ = module(batch)
        loss.backward()
        dense.step()
        with torch.no_grad():
            for table, square in zip(tables, squares, strict=True):
                gradient = table.grad.unflatten(1, (blocks, -1))
                square += gradient.square().mean(2, keepdim=True)
                table -= (RATES["embedding_lr"] * gradient / (square.sqrt() + 1e-6)).flatten(1)
        losses.append(loss.item())
    return losses, module.state_dict()


CALLS: dict[str, tuple[Any, ...]] = {
    **{
        f"{how} {'pipelined' if pipelined else 'stepwise'}": (together, how, 4 if how == "row_wise" else 5, pipelined)
        for how in SHARDINGS
        for pipelined in (False, True)
    },
    "apart": (alone,),
    **{f"{how} gradients": (gradients, how) for how in SHARDINGS},
    "placed": (placed,),
    "broken": (refused, "table_wise", 8, 23, True),
    "columns": (refused, "column_wise", 12, 23, False),
    "large": (refused, "table_wise", 8, 1 << 45, False),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What both ranks return, all calls in one pair of processes."""
    answers = on_ranks(call, tmp_path_factory.mktemp("ranks"), list(CALLS.values()))
    return dict(zip(CALLS, answers, strict=True))


def same(fitted: Fitted, expected: Fitted) -> None:
    assert fitted[0] == pytest.approx(expected[0], abs=1e-5)
    assert fitted[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        torch.testing.assert_close(fitted[1][name], value, rtol=0, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("way", ["stepwise", "pipelined"])
@pytest.mark.parametrize(("how", "blocks"), [("table_wise", 1), ("column_wise", 2), ("row_wise", 1)])
def test_two_workers_train_as_plain_pytorch_does(found: dict[str, list[Any]], how: str, blocks: int, way: str) -> None:
    (first, whole), (second, nothing) = found[f"{how} {way}"]
    losses = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    same((losses, whole), plain(blocks=blocks))
    assert nothing == {}


@pytest.mark.parametrize("how", SHARDINGS)
def test_gradients_are_those_of_the_whole_steps_mean(found: dict[str, list[Any]], how: str) -> None:
    module = begun()
    module(next(batches(1)))[0].backward()
    expected = {name: value.grad for name, value in module.named_parameters() if "embedding_bags" not in name}
    for got in found[f"{how} gradients"]:
        assert {name.removeprefix("_dmp_wrapped_module.module.") for name in got} == expected.keys()
        for name, value in got.items():
            torch.testing.assert_close(value, expected[name.removeprefix("_dmp_wrapped_module.module.")])


def test_workers_of_groups_of_their_own_train_apart(found: dict[str, list[Any]]) -> None:
    for rank, fitted in enumerate(found["apart"]):
        same(fitted, plain(seed=rank))


def test_tables_are_parted_as_asked(found: dict[str, list[Any]]) -> None:
    first, second = ({how: sorted(parts) for how, parts in rank.items()} for rank in found["placed"])
    assert sorted(first["table_wise"] + second["table_wise"]) == [(11, 8), (23, 8), (30, 8)]
    assert first["column_wise"] == second["column_wise"] == [(11, 4), (23, 4), (30, 4)]
    assert first["row_wise"] == [(6, 8), (12, 8), (15, 8)]
    assert second["row_wise"] == [(5, 8), (11, 8), (15, 8)]


def test_a_plan_that_fails_on_one_worker_ends_all_with_its_message(found: dict[str, list[Any]]) -> None:
    first, second = found["broken"]
    assert first == second
    assert first.startswith("Worker 1 of 2 has no plan for the embedding tables: TypeError")


def test_tables_that_fit_no_machine_end_all_workers(found: dict[str, list[Any]]) -> None:
    for said in found["large"]:
        assert "no plan for the embedding tables" in said
        assert "insufficient storage" in said


def test_columns_that_do_not_divide_are_the_users_to_mend(found: dict[str, list[Any]]) -> None:
    for said in found["columns"]:
        assert "2 workers cannot share the 12 columns" in said
        assert "multiple of 8" in said
