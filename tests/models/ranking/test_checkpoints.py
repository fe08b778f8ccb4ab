from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor import ShardedTensor

from models.ranking import checkpoints
from models.ranking.config import Sharding
from storage.errors import UserError
from tests.models.bags import ROWS, Batch, Module, batches, spread, train
from tests.models.workers import apart, on_ranks

POSITION = {"epoch": 1, "step": 10, "best": 0.5}
OWN = "own"  # the checkpoint that each rank wrote into a folder of its own
Trained = tuple[torch.Tensor, list[float]]


def call(rank: int, function: Callable[..., Any], *arguments: Any) -> Any:
    return function(rank, *arguments)


def data(steps: int, seed: int, rank: int | None = None) -> Iterator[Batch]:
    """A rank's half of some batches, or the whole of them."""
    return (
        batches(steps, seed) if rank is None else batches(steps, seed, share=(slice(4), slice(4, 8))[rank], workers=2)
    )


def onwards(model: Any, optimizer: Any, rank: int | None) -> Trained:
    """Logits of eight rows, float32 [8], and the losses of five further steps."""
    with torch.no_grad():
        logits = model(next(data(1, seed=7)))[1][1]
    return logits, train(model, optimizer, data(5, seed=1, rank=rank))


def save(rank: int, root: str, how: Sharding, name: str, scaled: bool = True) -> Trained:
    """Ten steps on both ranks, a checkpoint, and on from there."""
    model, optimizer = spread(Module(scaled=scaled), how)
    train(model, optimizer, data(10, seed=0, rank=rank))
    folder = Path(root, f"{name}-{rank}" if name == OWN else name)
    checkpoints.save(str(folder), model=model, optimizer=optimizer, position=POSITION)
    if name == OWN:
        dist.barrier()
        shutil.copytree(folder, Path(root, name), dirs_exist_ok=True)
        dist.barrier()
    return onwards(model, optimizer, rank)


def resume(rank: int, root: str, name: str, how: Sharding, workers: int, begun: bool = False) -> Trained:
    """On from a checkpoint, on both ranks together or on each alone; where `begun`, after steps that do not count."""
    with nullcontext() if workers == 2 else apart(rank):
        model, optimizer = spread(Module(), how)
        part = rank if workers == 2 else None
        if begun:
            train(model, optimizer, data(2, seed=3, rank=part))
        assert checkpoints.load(str(Path(root, name)), model=model, optimizer=optimizer) == POSITION
        return onwards(model, optimizer, part)


def refuse(rank: int, root: str, name: str, changed: dict[str, Any], how: Sharding = "table_wise") -> tuple[str, bool]:
    """What a rank is told of a checkpoint that its module cannot take, and whether it keeps its weights."""
    model, optimizer = spread(Module(**changed), how)
    before = weights(model)
    said = ""
    try:
        checkpoints.load(str(Path(root, name)), model=model, optimizer=optimizer)
    except UserError as error:
        said = str(error)
    return said, all(torch.equal(old, new) for old, new in zip(before, weights(model), strict=True))


def weights(model: Any) -> list[torch.Tensor]:
    """What this rank holds of them."""
    held: list[torch.Tensor] = []
    for value in model.state_dict().values():
        held += [part.tensor for part in value.local_shards()] if isinstance(value, ShardedTensor) else [value]
    return [tensor.detach().clone() for tensor in held]


def flip(file: Path) -> None:
    """Change one byte of a weight, which tensors are read with as without."""
    content = bytearray(file.read_bytes())
    content[content.index(b"/data/0FB") + 200] ^= 0xFF
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


DAMAGE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a changed byte": ("__1_0.distcp", flip, "is damaged: __1_0.distcp is not what was written"),
    "a part that is cut": ("__1_0.distcp", cut, "is damaged: __1_0.distcp is not what was written"),
    "metadata that are cut": (".metadata", cut, "is damaged: .metadata is not what was written"),
    "an index that is cut": ("index.json", cut, "cannot be read (JSONDecodeError"),
    "no part": ("__0_0.distcp", Path.unlink, "is incomplete: __0_0.distcp is missing"),
    "no metadata": (".metadata", Path.unlink, "is incomplete: .metadata is missing"),
    "no index": ("index.json", Path.unlink, "is incomplete: index.json is missing"),
}


def unwritable(rank: int, root: str) -> str:
    """What a rank is told where rank 1 cannot write."""
    Path(root, "file").touch()
    model, optimizer = spread(Module())
    folder = Path(root, "file" if rank == 1 else "unwritable")
    try:
        checkpoints.save(str(folder), model=model, optimizer=optimizer, position=POSITION)
    except UserError as error:
        return str(error)
    return ""


def refuse_damaged(rank: int, root: str, damage: str) -> tuple[str, bool]:
    if rank == 0:
        shutil.copytree(Path(root, "table_wise"), Path(root, damage))
        name, harm, _ = DAMAGE[damage]
        harm(Path(root, damage, name))
    dist.barrier()
    return refuse(rank, root, damage, {})


CALLS: dict[str, tuple[Any, ...]] = {
    "table_wise": (save, "table_wise", "table_wise"),
    "column_wise": (save, "column_wise", "column_wise"),
    "row_wise": (save, "row_wise", "row_wise"),
    OWN: (save, "table_wise", OWN),
    "unscaled": (save, "table_wise", "unscaled", False),
    "table_wise on one": (resume, "table_wise", "table_wise", 1),
    "table_wise again": (resume, "table_wise", "table_wise", 2, True),
    "table_wise by rows": (resume, "table_wise", "row_wise", 2),
    "row_wise on one": (resume, "row_wise", "table_wise", 1),
    "column_wise again": (resume, "column_wise", "column_wise", 2),
    "own on one": (resume, OWN, "table_wise", 1),
    "rows": (refuse, "table_wise", {"rows": {**ROWS, "caption": 2000}}),
    "columns": (refuse, "table_wise", {"dim": 16}),
    "shape": (refuse, "table_wise", {"hidden": 6}),
    "extra": (refuse, "table_wise", {"scaled": False}),
    "missing": (refuse, "unscaled", {}),
    "shards": (refuse, "table_wise", {}, "column_wise"),
    "nothing": (refuse, "nothing", {}),
    "unwritable": (unwritable,),
    **{damage: (refuse_damaged, damage) for damage in DAMAGE},
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What both ranks return, all calls in one pair of processes."""
    folder = tmp_path_factory.mktemp("ranks")
    calls = [(function, str(folder), *arguments) for function, *arguments in CALLS.values()]
    return dict(zip(CALLS, on_ranks(call, folder, calls), strict=True))


@pytest.mark.parametrize(
    "way",
    [
        "table_wise on one",
        "table_wise again",
        "table_wise by rows",
        "row_wise on one",
        "column_wise again",
        "own on one",
    ],
)
def test_training_goes_on_as_if_nothing_had_been(found: dict[str, list[Any]], way: str) -> None:
    (logits, first), (_, second) = found[way.split()[0]]
    undisturbed = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    for seen, _ in found[way]:
        torch.testing.assert_close(seen, logits, rtol=0, atol=1e-6)
    losses = [losses for _, losses in found[way]]
    if not way.endswith("on one"):
        losses = [[(a + b) / 2 for a, b in zip(*losses, strict=True)]]
    for one in losses:
        assert one == pytest.approx(undisturbed, abs=1e-5)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("rows", "is of another model: table caption has 23 rows in the checkpoint and 2,000 in the model:"),
        ("columns", "is of another model: table caption has 8 columns in the checkpoint and 16 in the model"),
        ("shape", "head.weight has the shape [1, 5] in the checkpoint and [1, 6] in the model"),
        ("extra", "is of another model: the model has no scale:"),
        ("missing", "is of another model: it lacks scale:"),
        ("shards", "is of another optimizer or another number of column-wise shards"),
        ("nothing", "is incomplete: index.json is missing"),
        *((damage, words) for damage, (_, _, words) in DAMAGE.items()),
    ],
)
def test_what_does_not_fit_is_told_to_all_and_changes_nothing(
    found: dict[str, list[Any]], case: str, words: str
) -> None:
    (first, unchanged), (second, also) = found[case]
    assert first == second
    assert words in first
    assert first.endswith(f"{checkpoints.ADVICE}.")
    assert "\n" not in first
    assert unchanged
    assert also


def test_a_worker_that_cannot_write_ends_all(found: dict[str, list[Any]]) -> None:
    assert all(said.startswith("Worker 1 cannot write the checkpoint") for said in found["unwritable"])
