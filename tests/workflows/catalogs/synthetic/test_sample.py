from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from storage import files
from storage.errors import UserError
from workflows.catalogs.synthetic.behaviour import START
from workflows.catalogs.synthetic.sample import BROKEN, FUTURE, OUTCOMES, write_sample
from workflows.catalogs.synthetic.truth import pair_probability, true_probability
from workflows.catalogs.synthetic.wording import PATTERN_WORDS

# The default catalogue, frozen: later work is measured on it. It may change only when the lock moves an encoder or
# when the catalogue is changed on purpose; then every figure measured on it is measured anew.
FROZEN = {
    "catalog.json": "3b9c95b29f45acdce69aaaa7e07d80c99b8649db5a73482e6bdf49b41b460e9a",
    "interactions.parquet": "68c7c9cd383dd28a9c291f53318af71ee32e41af005ff54269d0fe68c6d193d9",
    "items.parquet": "5b4acf5c51296d86664ead269916a37d81e06cb59beb4c8c2238908cae30b9e3",
    "media": "ee7330559b216a9c12861ad13a1f5e842f8eae4da3b27a1a0b734505ef082e87",
    "truth.parquet": "bfeb9179f5bb31c7279c632c905a54101f66ad9123a6e0dfa08ff33354e97c98",
    "truth_items.parquet": "adc486ce2a5b12362dd4d04167336b5908f0f53cd145bc7ed289ae58b0a5274d",
    "truth_users.parquet": "df78b1c2718efd8dc1cf894de869959ac2c03f395ca576c5e8ff2793dae06a6c",
    "truth_visits.parquet": "9c7c27e48e47422185a95f2c60829094591054af955a7a6daeb67aa6797d72cd",
}


def digest(path: Path) -> str:
    """Hash of a file, or of the names and hashes of a folder's files."""
    if path.is_dir():
        listing = "".join(f"{file.name} {digest(file)}\n" for file in sorted(path.iterdir()))
        return hashlib.sha256(listing.encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digests(directory: Path) -> dict[str, str]:
    return {path.name: digest(path) for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("default") / "catalog"
    return directory, write_sample(str(directory))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("small") / "catalog"
    return directory, write_sample(str(directory), items=40, users=30, seed=3)


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve, ties at one half."""
    _, ranks, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    positives = labels.sum()
    above = middle[ranks][labels == 1].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(labels) - positives)))


def test_default_catalogue_is_frozen(default: tuple[Path, dict[str, Any]]) -> None:
    assert digests(default[0]) == FROZEN


def test_same_seed_same_bytes_other_seed_other_bytes(small: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    write_sample(str(tmp_path / "again"), items=40, users=30, seed=3)
    write_sample(str(tmp_path / "other"), items=40, users=30, seed=4)
    first, again, other = digests(small[0]), digests(tmp_path / "again"), digests(tmp_path / "other")
    assert first == again
    assert all(first[name] != other[name] for name in first)


def test_style_changes_the_drawings_alone(small: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    write_sample(str(tmp_path / "line"), items=40, users=30, seed=3, style="line")
    fill, line = digests(small[0]), digests(tmp_path / "line")
    assert {name for name in fill if fill[name] != line[name]} == {"media", "catalog.json"}


def test_default_counts(default: tuple[Path, dict[str, Any]]) -> None:
    directory, summary = default
    items, log = (pq.read_table(directory / f"{name}.parquet") for name in ("items", "interactions"))
    assert items.num_rows == summary["items"] == 800 + 5 * BROKEN
    assert log.num_rows == summary["interactions"] == 80_000 + 3 * BROKEN
    kinds = [[media["kind"] for media in row] for row in items["media"].to_pylist()[:800]]
    assert (kinds.count(["video"]), kinds.count(["image", "video"]), kinds.count(["image"])) == (20, 20, 760)
    uris = {media["uri"] for row in items["media"].to_pylist()[:800] for media in row}
    assert all((directory / uri).is_file() for uri in uris)
    assert log.schema.names == ["user_id", "item_id", "timestamp", "label", "position", "propensity"]
    assert 0.15 < pc.mean(log["label"]).as_py() < 0.3


def test_half_of_the_items_keep_silent_about_their_looks(default: tuple[Path, dict[str, Any]]) -> None:
    rows = pq.read_table(default[0] / "items.parquet").to_pylist()[:800]
    truth = pq.read_table(default[0] / "truth_items.parquet").to_pylist()
    assert sum(look["descriptive"] for look in truth) == 400
    for row, look in zip(rows, truth, strict=True):
        words = set(
            f"{row['title'] or ''} {row['description'] or ''}".lower().replace(",", " ").replace(".", " ").split()
        )
        told = {look["colour"], PATTERN_WORDS[look["pattern"]], look["material"]} & words
        assert len(told) == (3 if look["descriptive"] and words else 0), row


def test_new_items_come_late(default: tuple[Path, dict[str, Any]]) -> None:
    directory, _ = default
    items = pq.read_table(directory / "truth_items.parquet").to_pandas()
    days = (items.first_seen - START).dt.days
    assert 0.1 <= (days >= 76).mean() <= 0.15
    truth = pq.read_table(directory / "truth.parquet").to_pandas()
    test = truth.timestamp > truth.timestamp.quantile(0.9)
    cold = set(truth[test].item_id) - set(truth[~test].item_id)
    assert len(cold) >= 40
    assert truth[test].item_id.isin(cold).mean() > 0.05


def test_pair_probability_reproduces_the_truth(default: tuple[Path, dict[str, Any]]) -> None:
    directory, _ = default
    truth, planned = (pq.read_table(directory / f"truth{name}.parquet") for name in ("", "_visits"))
    assert truth.schema.names == ["user_id", "item_id", "timestamp", "probability", "visit", "position"]
    assert planned.schema.names == ["user_id", "start", "need"]
    pairs = truth.append_column("need", planned["need"].take(truth["visit"]))
    np.testing.assert_array_equal(pair_probability(str(directory), pairs), truth["probability"].to_numpy())


def test_the_log_tells_propensities_and_the_catalogue_how_uneven_they_are(
    default: tuple[Path, dict[str, Any]],
) -> None:
    directory, summary = default
    log = pq.read_table(directory / "interactions.parquet")
    assert 0 < pc.min(log["propensity"]).as_py() < pc.max(log["propensity"]).as_py() < 1
    note = next(note for note in summary["notes"] if "Gini" in note)
    assert 0.5 < float(note.rsplit(" ", 1)[1]) < 0.8


def test_truth_leaves_room_above_popularity(default: tuple[Path, dict[str, Any]]) -> None:
    directory, _ = default
    log, truth = (pq.read_table(directory / f"{name}.parquet").to_pandas() for name in ("interactions", "truth"))
    log = log.drop_duplicates().merge(truth, on=["user_id", "item_id", "timestamp"])
    assert len(log) == 80_000
    late = log.timestamp > log.timestamp.quantile(0.9)
    clicks = log[~late].groupby("item_id").label.agg(["sum", "count"])
    prior = log[~late].label.mean()
    rate = ((clicks["sum"] + 20 * prior) / (clicks["count"] + 20)).reindex(log.item_id[late]).fillna(prior)
    labels = log.label[late].to_numpy()
    assert 0.80 <= auc(labels, log.probability[late].to_numpy()) <= 0.85
    assert 0.58 <= auc(labels, rate.to_numpy()) <= 0.64


def test_broken_rows_are_broken_as_told(small: tuple[Path, dict[str, Any]]) -> None:
    directory, summary = small
    assert summary["broken"] == {kind: {"rows": BROKEN, "ends": ends} for kind, ends in OUTCOMES.items()}
    rows = pq.read_table(directory / "items.parquet").to_pylist()
    good, broken = rows[:40], [rows[start : start + BROKEN] for start in range(40, len(rows), BROKEN)]
    ids = {row["item_id"] for row in good}
    assert len(ids) == 40
    truncated, missing, nothing, duplicate, empty = broken
    for row in truncated:
        assert row["title"]
        assert row["item_id"] not in ids
        with pytest.raises(OSError, match="truncated"):
            Image.open(io.BytesIO((directory / row["media"][0]["uri"]).read_bytes())).load()
    assert all(row["title"] and not (directory / row["media"][0]["uri"]).exists() for row in missing)
    for row in nothing:
        assert row["title"] is row["description"] is None
        assert not (directory / row["media"][0]["uri"]).exists()
    assert all(row["item_id"] in ids for row in duplicate)
    assert all(row["item_id"] == "" for row in empty)


def test_broken_events_are_broken_as_told(small: tuple[Path, dict[str, Any]]) -> None:
    directory, _ = small
    log = pq.read_table(directory / "interactions.parquet")
    items = pq.read_table(directory / "items.parquet")["item_id"]
    frame = log.to_pandas()
    assert (~frame.item_id.isin(set(items.to_pylist()))).sum() == BROKEN
    assert (frame.timestamp == FUTURE).sum() == BROKEN
    assert frame.duplicated().sum() == BROKEN
    assert log.schema.field("timestamp").type == pa.timestamp("us", "UTC")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"items": 3}, "items must be from 40 to"),
        ({"items": 10**9}, "items must be from"),
        ({"users": 0}, "users must be from"),
        ({"seed": -1}, "seed must be from"),
        ({"style": "oil"}, "choose fill or line"),
    ],
)
def test_bad_settings_write_nothing(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        write_sample(str(tmp_path / "catalog"), **settings)
    assert not (tmp_path / "catalog").exists()


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match="not empty"):
        write_sample(str(tmp_path), items=40, users=30)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_true_probabilities_join_by_event_or_not_at_all(tmp_path: Path) -> None:
    stamps = pa.array([1, 2, 3], pa.timestamp("us", tz="UTC"))
    events = pa.table({"user_id": ["u", "u", "v"], "item_id": ["a", "b", "a"], "timestamp": stamps})
    truth = events.append_column("probability", pa.array([0.1, 0.2, 0.3]))
    files.write_part(files.join(str(tmp_path), "truth.parquet"), truth)
    asked = events.take([2, 0])
    assert true_probability(str(tmp_path), asked).tolist() == [0.3, 0.1]
    unknown = asked.set_column(0, "user_id", pa.array(["v", "w"]))
    assert true_probability(str(tmp_path), unknown) is None
    assert true_probability(str(tmp_path / "elsewhere"), asked) is None
