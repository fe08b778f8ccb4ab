from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import UserError
from workflows.catalogs import canonical
from workflows.catalogs.amazon import import_amazon
from workflows.catalogs.fashion import import_fashion
from workflows.catalogs.movielens import import_movielens

DATA = Path(__file__).parents[4] / "shared" / "data"
Importer = Callable[[str, str], dict[str, Any]]

MOVIES = 'movieId,title,genres\n007,"Two, Rooms (1995)",Drama|Comedy\n2,,Drama\n3,Three,\n'
RATINGS = "userId,movieId,rating,timestamp\n1,007,4.0,964982703\n1,2,3.5,964982704\n2,3,5,0\n"
PRODUCTS = "product_id,title,attributes\n11,Blue Tee,Apparel - Topwear - Tshirts - Navy Blue - Casual\n12,Bag,\n"


def write(folder: Path, **texts: str) -> str:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(text)
    return str(folder)


def movielens(folder: Path, movies: str = MOVIES, ratings: str = RATINGS) -> str:
    return write(folder, movies__csv=movies, ratings__csv=ratings)


def tables(directory: Path) -> tuple[pa.Table, pa.Table | None, dict[str, Any]]:
    log = directory / "interactions.parquet"
    items = pq.read_table(directory / "items.parquet")
    assert items.schema == canonical.ITEMS
    return items, pq.read_table(log) if log.exists() else None, json.loads((directory / "catalog.json").read_text())


def real(name: str) -> str:
    if not (DATA / name).is_dir():
        pytest.skip(f"the data set {name} is not beside the project (../shared/data/{name})")
    return str(DATA / name)


def test_movielens(tmp_path: Path) -> None:
    source = movielens(tmp_path / "source")
    (tmp_path / "source" / "posters").mkdir()
    (tmp_path / "source" / "posters" / "007.jpg").write_bytes(b"poster")
    (tmp_path / "source" / "posters" / "999.jpg").write_bytes(b"of no film")
    summary = import_movielens(source, str(tmp_path / "out"))
    assert (summary["items"], summary["interactions"]) == (3, 3)
    items, log, about = tables(tmp_path / "out")
    assert log is not None
    assert items.to_pylist()[0] == {
        "item_id": "007",
        "title": "Two, Rooms (1995)",
        "description": None,
        "media": [{"uri": "media/007.jpg", "kind": "image"}],
        "attributes": [("genres", "Drama|Comedy")],
    }
    assert items["title"].to_pylist()[1:] == [None, "Three"]
    assert items["attributes"].to_pylist()[2] == []
    assert log.schema.names == ["user_id", "item_id", "timestamp", "label"], "the rating would give the label away"
    assert log.schema.field("label").type == pa.float32()
    assert log["label"].to_pylist() == [1.0, 0.0, 1.0]
    assert log["timestamp"].to_pylist()[0] == dt.datetime(2000, 7, 30, 18, 45, 3, tzinfo=dt.UTC)
    assert log.schema.field("timestamp").type == canonical.TIMESTAMP
    assert [path.name for path in (tmp_path / "out" / "media").iterdir()] == ["007.jpg"]
    assert about["timestamps"] == "real"


def test_fashion(tmp_path: Path) -> None:
    source = write(tmp_path / "source", products__csv=PRODUCTS)
    import_fashion(source, str(tmp_path / "out"))
    items, log, about = tables(tmp_path / "out")
    assert log is None
    assert about["timestamps"] == "none"
    assert dict(items["attributes"].to_pylist()[0]) == {
        "master_category": "Apparel",
        "sub_category": "Topwear",
        "article_type": "Tshirts",
        "colour": "Navy Blue",
        "usage": "Casual",
    }
    assert items["attributes"].to_pylist()[1] == []
    assert items["media"].to_pylist() == [[], []]


def test_amazon(tmp_path: Path) -> None:
    source = write(tmp_path / "source", items__tsv='5\ta "quoted" thing\n6\t\n', sequences__txt="9 5 6 5\n8 6\n")
    import_amazon(source, str(tmp_path / "out"))
    items, log, about = tables(tmp_path / "out")
    assert log is not None
    assert items["title"].to_pylist() == ['a "quoted" thing', None]
    assert log.schema.names == ["user_id", "item_id", "timestamp"], "every row is a positive"
    rows = [(row["user_id"], row["item_id"], row["timestamp"].timestamp()) for row in log.to_pylist()]
    assert rows == [("9", "5", 1), ("9", "6", 2), ("9", "5", 3), ("8", "6", 1)]
    assert about["timestamps"] == "order"
    assert "position" in about["notes"][0]


@pytest.mark.parametrize(
    ("importer", "texts", "message"),
    [
        (import_movielens, {}, "no movies.csv"),
        (import_movielens, {"movies__csv": MOVIES}, "no ratings.csv"),
        (
            import_movielens,
            {"movies__csv": "id,name\n1,a\n", "ratings__csv": RATINGS},
            "columns movieId, title, genres",
        ),
        (import_movielens, {"movies__csv": MOVIES, "ratings__csv": RATINGS + "1,2,good,1\n"}, "well formed"),
        (import_movielens, {"movies__csv": MOVIES, "ratings__csv": RATINGS + "1,2\n"}, "well formed"),
        (import_movielens, {"movies__csv": MOVIES, "ratings__csv": RATINGS + "1,2,,5\n"}, "rows with empty fields"),
        (import_movielens, {"movies__csv": "", "ratings__csv": RATINGS}, "movies.csv must have"),
        (import_fashion, {}, "no products.csv"),
        (import_fashion, {"products__csv": PRODUCTS + "13,Hat,Apparel - Hats\n"}, "product 13 .* must be 5 values"),
        (import_fashion, {"products__csv": "product_id,title\n1,a\n"}, "columns product_id, title, attributes"),
        (import_amazon, {"items__tsv": "1\ta\n"}, "no sequences.txt"),
        (import_amazon, {"items__tsv": "1 a\n", "sequences__txt": "1 1\n"}, "Line 1 of items.tsv"),
        (import_amazon, {"items__tsv": "1\ta\n", "sequences__txt": "1 1\n2\n"}, "Line 2 of sequences.txt"),
        (import_amazon, {"items__tsv": "1\ta\n", "sequences__txt": "\n"}, "sequences.txt in .* is empty"),
    ],
)
def test_bad_sources_write_nothing(importer: Importer, texts: dict[str, str], message: str, tmp_path: Path) -> None:
    source = write(tmp_path / "source", **texts)
    with pytest.raises(UserError, match=message) as caught:
        importer(source, str(tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("importer", [import_movielens, import_fashion, import_amazon])
def test_missing_source_and_used_target_are_refused(importer: Importer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="point to the folder"):
        importer(str(tmp_path / "nowhere"), str(tmp_path / "out"))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match="not empty"):
        importer(movielens(tmp_path / "source"), str(tmp_path / "used"))
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["mine.txt"]


def test_source_that_is_not_text_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write(source, items__tsv="1\ta\n")
    (source / "sequences.txt").write_bytes(b"\xff\xfe 1 2\n")
    with pytest.raises(UserError, match="UTF-8"):
        import_amazon(str(source), str(tmp_path / "out"))


def test_real_movielens(tmp_path: Path) -> None:
    summary = import_movielens(real("movielens-posters"), str(tmp_path / "out"))
    items, log, _ = tables(tmp_path / "out")
    assert log is not None
    assert (summary["items"], summary["interactions"]) == (items.num_rows, log.num_rows) == (3_631, 90_148)
    assert items["title"].null_count == 42
    assert len(list((tmp_path / "out" / "media").iterdir())) == 3_631
    assert set(log["item_id"].to_pylist()) <= set(items["item_id"].to_pylist())
    years = {stamp.year for stamp in log["timestamp"].to_pylist()}
    assert (min(years), max(years)) == (1996, 2018)


def test_real_fashion_tables(tmp_path: Path) -> None:
    source = write(tmp_path / "source", products__csv=Path(real("fashion"), "products.csv").read_text())
    import_fashion(source, str(tmp_path / "out"))  # without the 16,000 photos, to stay quick
    items, log, _ = tables(tmp_path / "out")
    assert (items.num_rows, log) == (16_000, None)
    assert all(len(attributes) == 5 for attributes in items["attributes"].to_pylist())


@pytest.mark.parametrize(
    ("name", "users", "items", "events"), [("beauty", 22_363, 12_101, 198_502), ("sports", 35_598, 18_357, 296_337)]
)
def test_real_amazon(name: str, users: int, items: int, events: int, tmp_path: Path) -> None:
    summary = import_amazon(real(f"amazon/{name}"), str(tmp_path / "out"))
    _, log, _ = tables(tmp_path / "out")
    assert log is not None
    assert (summary["items"], summary["interactions"]) == (items, events)
    assert len(log["user_id"].unique()) == users
