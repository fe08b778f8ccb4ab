from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from models.common.jagged import Jagged
from workflows.catalogs.synthetic import behaviour, visits
from workflows.catalogs.synthetic.sample import write_sample
from workflows.catalogs.synthetic.truth import true_lists


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("truth") / "catalog"
    write_sample(str(directory), items=60, users=200, seed=2)
    return directory


def test_lists_are_in_the_order_in_which_users_choose(catalog: Path) -> None:
    truth, items, users, planned = (
        pq.read_table(catalog / f"truth{name}.parquet") for name in ("", "_items", "_users", "_visits")
    )
    asked = truth.take(pa.array([5000, 17, 6000, 18]))
    ids = pa.chunked_array([pa.array(["stranger", *items["item_id"].to_pylist()[::-1]])])
    banned = Jagged(torch.tensor([9, 60, 1]), torch.tensor([0, 2, 2, 3, 3]))
    time = asked["timestamp"].cast(pa.int64()).to_numpy()
    found = true_lists(str(catalog), ids, asked["user_id"], time, k=60, banned=banned)
    known = behaviour.world(users, items)
    for row, query in enumerate(asked.to_pylist()):
        user = np.array([users["user_id"].to_pylist().index(query["user_id"])])
        visit = planned.slice(query["visit"], 1).to_pylist()[0]
        assert visit["user_id"] == query["user_id"]
        need, day = behaviour.need_rows([visit["need"]]), (visit["start"] - behaviour.START).days
        chance = visits.shown_chance(known, user, np.array([day]), need)[0]
        pairs = pa.table(
            {
                "user_id": [query["user_id"]] * 60,
                "item_id": items["item_id"],
                "timestamp": [query["timestamp"]] * 60,
                "position": [query["position"]] * 60,
                "need": pa.array([visit["need"]] * 60, pa.string()),
            }
        )
        chance = np.append(0, (chance * behaviour.click_probability(pairs, users, items))[::-1])
        before = truth.filter(pc.field("visit") == query["visit"]).filter(pc.field("position") < query["position"])
        chance[[ids.to_pylist().index(item) for item in before["item_id"].to_pylist()]] = 0
        chance[banned.values[banned.offsets[row] : banned.offsets[row + 1]].numpy()] = 0
        listed = found.items[row][found.scores[row] > 0]
        assert len(listed) == (chance > 0).sum()
        assert (np.diff(chance[listed]) <= 1e-6 * chance.max()).all()


def test_no_other_order_is_nearer_to_what_is_chosen(catalog: Path) -> None:
    """The first of the true lists is hit more often than the most chosen item, and as often as its chance says."""
    log = pl.read_parquet(catalog / "interactions.parquet").unique()
    truth = pl.read_parquet(catalog / "truth.parquet")
    clicked = truth.join(log.filter(label=1), on=["user_id", "item_id", "timestamp"]).sort("timestamp", "user_id")
    ids = pq.read_table(catalog / "truth_items.parquet")["item_id"]
    time = clicked["timestamp"].cast(pl.Int64).to_numpy()
    found = true_lists(str(catalog), ids, clicked["user_id"].to_arrow().cast(pa.string()), time, k=60, banned=None)
    first = np.array(ids.to_pylist())[found.items[:, 0].numpy()]
    hits = (first == clicked["item_id"].to_numpy()).mean()
    popular = clicked["item_id"].value_counts()["count"].max() / len(clicked)
    assert hits > popular + 0.03
    shares = found.scores.clamp_min(0).double()
    assert hits == pytest.approx(float((shares[:, 0] / shares.sum(1)).mean()), abs=0.03)


def test_without_a_truth_there_are_no_true_lists(catalog: Path, tmp_path: Path) -> None:
    ids = pq.read_table(catalog / "truth_items.parquet")["item_id"]
    users, time = pa.array(["nobody"]), np.array([0])
    assert true_lists(str(catalog), ids, users, time, k=5, banned=None) is None
    assert true_lists(str(tmp_path), ids, users, time, k=5, banned=None) is None
