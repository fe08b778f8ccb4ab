"""The loop of a ranker's fit in process groups of its own: one worker and two, and from a state on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.ranking import fitting
from models.ranking.settings import RankerSettings, TableConfig, Tables
from models.ranking.training import Trainer
from operators.features.ranker_inputs import Examples, ItemFeatures
from operators.features.tokens import HASH, token_hashes
from tests.models.workers import apart, on_ranks

pytestmark = pytest.mark.long

USERS, ITEMS, EVENTS, VALID = 30, 20, 900, 301
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


def make_data(settings: RankerSettings) -> fitting.Data:
    """Users like the items of their own colour, which only the caption tells."""
    random = np.random.default_rng(0)
    colour = random.integers(0, 3, ITEMS)
    ids = [f"i{n}" for n in range(ITEMS)]
    tokens = token_hashes([f"colour {c}" for c in colour])
    items = pa.table(
        {
            "item_id": ids,
            "item": token_hashes(ids),
            "caption": pa.ListArray.from_arrays(np.arange(ITEMS + 1, dtype=np.int32), tokens),
        }
    )
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(random.normal(size=ITEMS * 2).astype(np.float32)), 2)
    user, row = random.integers(0, USERS, EVENTS + VALID), random.integers(0, ITEMS, EVENTS + VALID)
    liked = random.random(len(user)) < np.where(user % 3 == colour[row], 0.9, 0.1)
    examples = pa.table(
        {
            "user": token_hashes([f"u{u}" for u in range(USERS)])[user],
            "row": row.astype(np.int32),
            "history": pa.array([random.integers(0, ITEMS, n % 4).tolist() for n in user], pa.list_(pa.int32())),
            "age": random.normal(size=len(user)).astype(np.float32),
            "label": liked.astype(np.float32),
        }
    )
    embeddings = pa.table({"item_id": ids, "embedding": vectors})
    config = settings.ranker(SPEC, 2)
    train, valid = (Examples(part, config.dense) for part in (examples.slice(0, EVENTS), examples.slice(EVENTS)))
    return fitting.Data(config, ItemFeatures(items, embeddings, config), train, valid)


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
    return losses, trainer.logits(len(data.valid), lambda rows: data.valid.batch(data.items, rows), batch_size=64)


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
        loaded = alone.logits(len(data.valid), lambda rows: data.valid.batch(data.items, rows))
        further.append(curve(once_more, alone, data)[1])
    return {
        "one": one,
        "two": two,
        "position": position,
        "loaded": loaded,
        "further": further,
        "gathered": rank != 0 or set(whole) == set(fitting.make_ranker(data).state_dict()),
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


def resumed(rank: int, folder: str) -> dict[str, Any]:
    """A fit without disturbance, and one that is killed in the middle of its second epoch and started again."""
    made = SETTINGS.model_copy(update={"epochs": 3, "batch_size": 9, "dropout": 0.2})
    data = make_data(made)
    reports: dict[str, list[dict[str, Any]]] = {"whole": [], "first": [], "second": []}

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

    folder = f"{folder}/{rank}"
    with apart(rank):
        fit("whole")
        with pytest.raises(KilledError):
            fit("first")
        trainer = make_trainer(made, data)
        fit("second", trainer.load(folder), trainer)
    return reports


def test_a_killed_fit_goes_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    (ranks,) = on_ranks(resumed, tmp_path, [(str(tmp_path / "state"),)])
    for found in ranks:
        ends = {name: [m for m in reports if "valid_auc" in m] for name, reports in found.items()}
        assert [m["epoch"] for m in ends["whole"]] == [1, 2, 3]
        assert [m["epoch"] for m in ends["second"]] == [2, 3]
        assert found["first"][-1] == {"epoch": 1, "step": 50}
        for whole, after in zip(ends["whole"][1:], ends["second"], strict=True):
            for name in ("train_log_loss", "valid_log_loss", "valid_auc"):
                assert after[name] == pytest.approx(whole[name], abs=1e-6), name


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
