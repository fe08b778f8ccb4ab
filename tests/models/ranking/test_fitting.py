"""The loop of a ranker's fit in process groups of its own: one worker and two, and from a state on."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.ranking import fitting
from models.ranking.ranker import Ranker
from models.ranking.schedule import in_memory
from models.ranking.settings import RankerSettings, TableConfig, Tables
from models.ranking.training import Trainer
from operators.features.ranker_inputs import Examples, example_parts, laid_out
from operators.features.tokens import HASH
from storage import files
from storage.hashing import hash_ids
from tests.models.workers import apart, on_ranks

pytestmark = pytest.mark.long

USERS, ITEMS, EVENTS, VALID = 30, 20, 900, 301
CUTS = {"train": (290, 610), "valid": (0, 200)}  # where partitions begin; one of validation is empty
SMALL = TableConfig(rows=256)
TABLES = {"user": SMALL, "item": SMALL, "caption": SMALL, "interests": None, "text": None, "sid": None}
SETTINGS = RankerSettings(
    tables=Tables(**TABLES),
    epochs=2,
    patience=2,
    batch_size=60,
    embedding_lr=0.1,
    dense_lr=0.01,
    dropout=0.0,
    content=False,
)
HASHED = SETTINGS.model_copy(
    update={"tables": Tables(**{**TABLES, "caption": TableConfig(rows=64, hashes=2, importance=128)})}
)
SPEC = {"hash": HASH, "dense": ["age"], "history": 5}


class KilledError(Exception):
    """Stands for the end of a process."""


def make_data(settings: RankerSettings, folder: Path | None = None) -> fitting.Data:
    """Users like the items of their own colour, which only the caption tells; rows in three partitions in a folder."""
    random = np.random.default_rng(0)
    colour = random.integers(0, 3, ITEMS)
    ids = [f"i{n}" for n in range(ITEMS)]
    tokens = hash_ids([f"colour {c}" for c in colour])
    items = pa.table(
        {
            "item_id": ids,
            "item": hash_ids(ids),
            "caption": pa.ListArray.from_arrays(np.arange(ITEMS + 1, dtype=np.int32), tokens),
        }
    )
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(random.normal(size=ITEMS * 2).astype(np.float32)), 2)
    user, row = random.integers(0, USERS, EVENTS + VALID), random.integers(0, ITEMS, EVENTS + VALID)
    liked = random.random(len(user)) < np.where(user % 3 == colour[row], 0.9, 0.1)
    examples = pa.table(
        {
            "user": hash_ids([f"u{u}" for u in range(USERS)])[user],
            "row": row.astype(np.int32),
            "history": pa.array([random.integers(0, ITEMS, n % 4).tolist() for n in user], pa.list_(pa.int32())),
            "age": random.normal(size=len(user)).astype(np.float32),
            "label": liked.astype(np.float32),
        }
    )
    embeddings = pa.table({"item_id": ids, "embedding": vectors})
    config = settings.ranker(SPEC, 2)
    train, valid = examples.slice(0, EVENTS), examples.slice(EVENTS)
    if folder is None:
        parts = [in_memory(Examples(part, config.dense)) for part in (train, valid)]
    else:
        parts = []
        for name, table in (("train", train), ("valid", valid)):
            for number, (start, end) in enumerate(pairwise((0, *CUTS[name], table.num_rows))):
                files.write_part(str(folder / name / f"part-{number}.parquet"), table.slice(start, end - start))
            parts.append(example_parts(str(folder / name), config.dense))
    return fitting.Data(config, laid_out(items, embeddings, config), *parts)


def make_trainer(settings: RankerSettings, data: fitting.Data) -> Trainer:
    torch.manual_seed(1)
    return Trainer(fitting.make_ranker(data), device=torch.device("cpu"), seed=1, **settings.optimisation())


def curve(settings: RankerSettings, trainer: Trainer, data: fitting.Data) -> tuple[list[float], torch.Tensor]:
    """The loss of every step, and the logits of all validation rows after the last one."""
    losses = []
    for epoch in range(settings.epochs):
        at = {"epoch": epoch, "step": 0}
        losses += [
            trainer.mean(float(loss)) for loss in trainer.steps(fitting.batches(settings, trainer, data, at, seed=3))
        ]
    return losses, logits(trainer, data, batch_size=64)


def logits(trainer: Trainer, data: fitting.Data, **settings: int) -> torch.Tensor:
    """Logits of all validation rows in one partition."""
    return trainer.logits(data.valid.rows[0], partial(data.valid.part(0).batch, data.items), **settings)


def compare(rank: int, settings: dict[str, Any], folder: str) -> dict[str, Any]:
    """One worker (on each rank the same) beside two; then two save, and each alone loads and goes on."""
    made = RankerSettings.model_validate(settings)
    data, once_more = make_data(made), made.model_copy(update={"epochs": 1})
    with apart(rank):
        one = curve(made, make_trainer(made, data), data)
    trainer = make_trainer(made, data)
    two = curve(made, trainer, data)
    trainer.save(folder, {"epoch": 2, "step": 0})
    whole = trainer.gather()
    further = [curve(once_more, trainer, data)[1]]
    with apart(rank):
        alone = make_trainer(made, data)
        position = alone.load(folder)
        loaded = logits(alone, data)
        further.append(curve(once_more, alone, data)[1])
    return {
        "one": one,
        "two": two,
        "position": position,
        "loaded": loaded,
        "further": further,
        "gathered": rank != 0 or set(whole) == set(Ranker(data.config).state_dict()),
    }


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "hashed"])
def test_two_workers_take_the_steps_of_one_and_one_goes_on_from_their_state(tmp_path: Path, sharding: str) -> None:
    settings = HASHED if sharding == "hashed" else SETTINGS.model_copy(update={"sharding": sharding})
    calls = [(settings.model_dump(mode="json"), str(tmp_path / "state"))]
    (ranks,) = on_ranks(compare, tmp_path, calls)
    for found in ranks:
        (one, one_logits), (two, two_logits) = found["one"], found["two"]
        assert len(one) == SETTINGS.epochs * -(-EVENTS // SETTINGS.batch_size)
        np.testing.assert_allclose(two, one, atol=1e-3)
        assert np.mean(one[-10:]) < np.mean(one[:10])
        torch.testing.assert_close(two_logits, one_logits, atol=1e-3, rtol=0)
        torch.testing.assert_close(found["loaded"], two_logits, atol=1e-6, rtol=0)
        torch.testing.assert_close(*found["further"], atol=1e-3, rtol=0)
        assert found["position"] == {"epoch": 2, "step": 0}
        assert found["gathered"]
    torch.testing.assert_close(ranks[0]["two"][1], ranks[1]["two"][1])


def blocks(rank: int) -> list[Any]:
    """The statistics of content in blocks of a few items, beside those of all items at once."""
    data = make_data(SETTINGS.model_copy(update={"content": True}))
    vectors, sizes = data.items.vectors, list[int]()
    data.items.vectors = lambda rows: (sizes.append(len(rows)), vectors(rows))[1]
    with apart(rank), patch.object(fitting, "BLOCK", 8):
        found = fitting.make_ranker(data)
    wanted = vectors(torch.arange(ITEMS))
    same = [torch.allclose(found.content_mean, wanted.mean(0)), torch.allclose(found.content_std, wanted.std(0, False))]
    return [sizes, *same]


def test_vectors_of_items_are_read_block_by_block(tmp_path: Path) -> None:
    (ranks,) = on_ranks(blocks, tmp_path, [()])
    assert ranks == [[[8, 8, 4], True, True]] * 2


def resumed(rank: int, folder: str) -> dict[str, Any]:
    """A fit without disturbance, and one that is killed in the middle of its second epoch and started again."""
    made = SETTINGS.model_copy(update={"epochs": 3, "batch_size": 9, "dropout": 0.2, "window_rows": 500})
    data = make_data(made, Path(folder) / f"data-{rank}")
    reports: dict[str, Any] = {"whole": [], "first": [], "second": []}
    models: dict[str, Any] = {}

    def report(name: str):
        def keep(metrics, save):
            reports[name].append(metrics)
            if name == "first" and len(reports[name]) == 4:  # two in the first epoch, its end, one in the second
                save(folder)
                raise KilledError

        return fitting.Keep(keep, improved=lambda trainer: None)

    def fit(name: str, position: dict[str, float] | None = None, trainer: Trainer | None = None) -> None:
        trainer = trainer or make_trainer(made, data)
        fitting.fit(made, trainer, data, report(name), seed=5, position=position)
        models[name] = trainer.gather()

    folder = f"{folder}/{rank}"
    with apart(rank):
        fit("whole")
        with pytest.raises(KilledError):
            fit("first")
        trainer = make_trainer(made, data)
        fit("second", trainer.load(folder), trainer)
    return {**reports, "same": all(value.equal(models["second"][key]) for key, value in models["whole"].items())}


def test_a_killed_fit_goes_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    (ranks,) = on_ranks(resumed, tmp_path, [(str(tmp_path / "state"),)])
    for found in ranks:
        assert found.pop("same")
        ends = {name: [m for m in reports if "valid_auc" in m] for name, reports in found.items()}
        assert [m["epoch"] for m in ends["whole"]] == [1, 2, 3]
        assert [m["epoch"] for m in ends["second"]] == [2, 3]
        assert found["first"][-1] == {"epoch": 1, "step": 50}
        for whole, after in zip(ends["whole"][1:], ends["second"], strict=True):
            for name in ("train_log_loss", "valid_log_loss", "valid_auc"):
                assert after[name] == pytest.approx(whole[name], abs=1e-6), name


def shared(rank: int, folder: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Two workers on three partitions."""
    made = RankerSettings.model_validate(settings)
    data = make_data(made, Path(folder) / f"data-{rank}")
    read: list[Any] = []
    train = data.train._replace(read=lambda pieces: (read.append(pieces), data.train.read(pieces))[1])
    trainer, reports = make_trainer(made, data), list[dict[str, Any]]()
    keep = fitting.Keep(lambda metrics, save: reports.append(metrics), lambda trainer: None)
    fitting.fit(made, trainer, data._replace(train=train), keep, seed=5)
    with apart(rank):
        whole = fitting.make_ranker(make_data(made))
    ours = fitting.make_ranker(data)
    buffers = dict(ours.named_buffers())
    same = [torch.allclose(value, buffers[name], atol=1e-6) for name, value in whole.named_buffers()]
    return {"reports": reports, "read": read, "same": same, "rate": [float(whole.bias), float(ours.bias)]}


def test_workers_learn_from_partitions_of_their_own(tmp_path: Path) -> None:
    made = SETTINGS.model_copy(update={"epochs": 4, "patience": 4, "batch_size": 20, "content": True})
    (ranks,) = on_ranks(shared, tmp_path, [(str(tmp_path), made.model_dump(mode="json"))])
    for first, second in zip(*(found["reports"] for found in ranks), strict=True):
        assert {key: first[key] for key in first if key != "seconds"} == pytest.approx(
            {key: second[key] for key in second if key != "seconds"}
        )
    ends = [each for each in ranks[0]["reports"] if "valid_auc" in each]
    assert ends[-1]["valid_log_loss"] < ends[0]["valid_log_loss"] < 0.7
    assert ends[-1]["rows"] == EVENTS
    for found in ranks:
        assert all(found["same"])
        assert found["rate"][0] == pytest.approx(found["rate"][1], abs=1e-6)
        assert sum(high - low for pieces in found["read"] for _, low, high in pieces) == made.epochs * EVENTS // 2


def test_windows_of_unequal_lengths_are_learned_from_row_wise(tmp_path: Path) -> None:
    """On a CPU its collectives take messages of one size alone."""
    made = SETTINGS.model_copy(update={"sharding": "row_wise", "epochs": 4, "batch_size": 16, "window_rows": 200})
    (ranks,) = on_ranks(shared, tmp_path, [(str(tmp_path), made.model_dump(mode="json"))])
    for found in ranks:
        ends = [each["valid_log_loss"] for each in found["reports"] if "valid_auc" in each]
        assert ends[-1] < ends[0]


def nan(rank: int) -> str:
    made = SETTINGS.model_copy(update={"embedding_lr": 1e38, "dense_lr": 1e38, "weight_decay": 0.0})
    data = make_data(made)
    keep = fitting.Keep(report=lambda metrics, save: None, improved=lambda trainer: None)
    try:
        with apart(rank):
            fitting.fit(made, make_trainer(made, data), data, keep, seed=0)
    except Exception as error:  # noqa: BLE001 - told to the test
        return f"{type(error).__name__}: {error}"
    return "nothing"


def test_a_loss_that_is_not_a_number_is_explained(tmp_path: Path) -> None:
    (said,) = on_ranks(nan, tmp_path, [()])
    assert all(text.startswith("UserError: ") and "lower its embedding_lr" in text for text in said), said


def go_on(rank: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Two workers that go on from the weights of one; then without an epoch, so that these stand."""
    made = RankerSettings.model_validate(settings)
    data = make_data(made)
    with apart(rank):
        earlier = make_trainer(made, data)
        curve(made, earlier, data)
        weights, wanted = earlier.gather(), logits(earlier, data)
    trainer = make_trainer(made, data)
    trainer.fill(weights)
    kept: list[dict[str, torch.Tensor] | None] = []
    reports: list[dict[str, Any]] = []
    keep = fitting.Keep(lambda metrics, save: reports.append(metrics), lambda trained: kept.append(trained.gather()))
    fitting.fit(made.model_copy(update={"epochs": 0}), trainer, data, keep, seed=3, warm=True)
    same = rank != 0 or all(torch.equal(value, weights[name]) for name, value in kept[0].items())
    return {"wanted": wanted, "found": logits(trainer, data), "same": same, "reports": reports, "kept": len(kept)}


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "column_wise"])
def test_workers_go_on_from_earlier_weights_which_stand_where_nothing_is_better(tmp_path: Path, sharding: str) -> None:
    settings = SETTINGS.model_copy(update={"sharding": sharding}).model_dump(mode="json")
    (ranks,) = on_ranks(go_on, tmp_path, [(settings,)])
    for found in ranks:
        torch.testing.assert_close(found["found"], found["wanted"])
        assert found["same"]
        assert found["kept"] == 1
        assert [(report["epoch"], report["valid_log_loss"] > 0) for report in found["reports"]] == [(0, True)]
