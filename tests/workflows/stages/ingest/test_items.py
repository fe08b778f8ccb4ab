"""Media and attributes in the shapes in which tables hold them."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import blocks
from storage.errors import UserError
from workflows.stages.ingest.items import canonical_items, to_arrow
from workflows.stages.ingest.items import split_items as split_rows


def split_items(items: pl.DataFrame, bad: list[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    return split_rows(items.with_row_index("row"), bad, items["item_id"].is_first_distinct())


def items(folder: Path, name: str, text: str) -> list[dict[str, object]]:
    (folder / name).write_text(text)
    scanned = blocks.scan(str(folder / name))
    usable, _ = split_items(canonical_items(scanned.rows, name), scanned.bad)
    return to_arrow(usable).to_pylist(maps_as_pydicts="strict")  # as the service shows them


@pytest.mark.parametrize(
    "media",
    [
        "a.jpg|b.mp4",
        "['a.jpg', 'b.mp4']",
        "['a.jpg' 'b.mp4']",
        "('a.jpg', 'b.mp4')",
        '"[""a.jpg"", ""b.mp4""]"',
        "[{'uri': 'a.jpg', 'kind': 'image'}, {'uri': 'b.mp4'}]",
        '"[{""uri"": ""a.jpg""}, ""b.mp4""]"',
    ],
)
def test_lists_of_media_as_text(tmp_path: Path, media: str) -> None:
    media = media if media.startswith('"') else f'"{media}"'
    found = [{"uri": "a.jpg", "kind": "image"}, {"uri": "b.mp4", "kind": "video"}]
    rows = items(tmp_path, "items.csv", f"item_id,media\n1,{media}\n2,\n3,nan\n4,[]\n5,(1).jpg\n")
    assert [row["media"] for row in rows] == [found, None, None, [], [{"uri": "(1).jpg", "kind": "image"}]]


@pytest.mark.parametrize(
    ("cell", "uris"),
    [
        ("a.jpg, b.PNG", ["a.jpg", "b.PNG"]),
        ("a.jpg;https://x.org/b c.mp4?w=1 ; c.webp,", ["a.jpg", "https://x.org/b c.mp4?w=1", "c.webp"]),
        ("a, b.jpg", ["a, b.jpg"]),
        ("https://x.org/c_fill,w_200/a.jpg", ["https://x.org/c_fill,w_200/a.jpg"]),
        ("a.jpg?w=1,2", ["a.jpg?w=1,2"]),
        ("data:image/png;base64,aGk=", ["data:image/png;base64,aGk="]),
    ],
)
def test_commas_and_semicolons_part_files_of_media(cell: str, uris: list[str]) -> None:
    found = canonical_items(pl.DataFrame({"item_id": ["a"], "media": [cell]}), "items")["media"][0]
    assert [medium["uri"] for medium in found] == uris


@pytest.mark.parametrize("other", ['["b.jpg"]', '[{"uri": "b.jpg"}]', '{"uri": "b.jpg"}', '"b.jpg"', "\"['b.jpg']\""])
@pytest.mark.parametrize("one", ['"a.jpg"', '["a.jpg"]', '[{"uri": "a.jpg"}]'])
def test_media_of_one_kind_here_and_another_there(tmp_path: Path, one: str, other: str) -> None:
    text = f'{{"item_id": 1, "media": {one}}}\n{{"item_id": 2, "media": {other}}}\n'
    rows = items(tmp_path, "items.jsonl", text)
    assert [[medium["uri"] for medium in row["media"]] for row in rows] == [["a.jpg"], ["b.jpg"]]


RED = {"colour": "red, blue", "size": "3"}
ATTRIBUTES = {
    "object": '{"colour": ["red", "blue"], "size": 3}',
    "twice": '{"colour": "red", "colour": "blue", "size": 3}',
    "pairs": '[{"key": "colour", "value": "red"}, {"key": "size", "value": 3}, {"key": "colour", "value": "blue"}]',
    "twice the same": '[["colour", "red"], ["colour", "blue"], ["colour", "red"], ["size", "3"], ["x", null]]',
    "names": '[{"name": "colour", "value": "red"}, {"name": "colour", "value": "blue"}, {"name": "size", "value": 3}]',
    "written": "colour=red; size = 3;colour: blue",
    "commas": "colour: red, size: 3, colour: blue",
    "bars": "colour=red, blue|size=3",
    "python": "{'colour': ['red', 'blue'], 'size': 3, 'x': None}",
    "markup": '{"colour": ["<b>red</b>", "blue"], " size": "3"}',
}


@pytest.mark.parametrize("shape", ATTRIBUTES)
def test_attributes_as_text(tmp_path: Path, shape: str) -> None:
    text = ATTRIBUTES[shape].replace('"', '""')
    rows = items(tmp_path, "items.csv", f'item_id,attributes\n1,"{text}"\n2,\n3,{{}}\n')
    assert [row["attributes"] for row in rows] == [RED, None, {}]


@pytest.mark.parametrize("shape", ["object", "twice", "pairs", "names", "markup"])
def test_an_item_with_two_attributes_of_one_key_keeps_both(tmp_path: Path, shape: str) -> None:
    rows = items(tmp_path, "items.jsonl", f'{{"item_id": 1, "attributes": {ATTRIBUTES[shape]}}}\n{{"item_id": 2}}\n')
    assert [row["attributes"] for row in rows] == [RED, None]


def test_attributes_that_cannot_be_read_degrade_their_item() -> None:
    raw = pl.DataFrame({"item_id": ["a", "b", "c"], "attributes": ['{"x": "y"}', '{"x": "y"}', "x y"]})
    usable, issues = split_items(canonical_items(raw, "items"), ["line 3 is no JSON object"])
    assert usable["item_id"].to_list() == ["a", "b", "c"]
    assert issues.rows() == [
        (None, "rejected", "unreadable_row", "line 3 is no JSON object"),
        ("c", "degraded", "no_attributes", "x y"),
    ]


@pytest.mark.parametrize("cell", ["red", "color: red, blue", "12:30", "=red", ": x", ";"])
def test_a_cell_that_is_no_attributes_costs_its_own(cell: str) -> None:
    raw = pl.DataFrame({"item_id": ["a", "b", "c"], "attributes": ["color=red", "link: https://x.org/?a=b;", cell]})
    usable, issues = split_items(canonical_items(raw, "items"), [])
    assert to_arrow(usable)["attributes"].to_pylist()[:2] == [[("color", "red")], [("link", "https://x.org/?a=b")]]
    assert issues.rows() == [("c", "degraded", "no_attributes", cell)]


def test_names_with_values_in_lists_are_attributes() -> None:
    raw = pl.DataFrame({"item_id": ["1"], "attributes": [[{"name": "genre", "value": 7}]]})
    assert canonical_items(raw, "items")["attributes"].to_list() == [[{"key": "genre", "value": "7"}]]


def test_several_values_of_an_attribute_are_joined() -> None:
    pairs = [("colour", ["red", "blue"]), ("size", None)]
    mapped = pl.Series(pl.from_arrow(pa.array([pairs], pa.map_(pa.string(), pa.list_(pa.string())))))
    listed = pl.Series([[{"name": name, "value": value} for name, value in pairs]])
    fixed = listed.cast(pl.List(pl.Struct({"name": pl.String, "value": pl.Array(pl.String, 2)})))
    field = pl.Series([{"colour": ["red", "blue"], "size": None}]).cast(
        pl.Struct({"colour": pl.Array(pl.String, 2), "size": pl.String})
    )
    for attributes in (mapped, listed, fixed, field):
        raw = pl.DataFrame({"item_id": ["1"], "title": ["vase"], "attributes": attributes})
        found = canonical_items(raw, "items")["attributes"].to_list()
        assert found == [[{"key": "colour", "value": "red, blue"}]]


BROKEN = '{"url": "b.jpg"}'


@pytest.mark.parametrize(
    ("cell", "uris"),
    [(BROKEN, []), (f'["a.jpg", {BROKEN}]', ["a.jpg"]), (["a.jpg", BROKEN], ["a.jpg"]), ('{"uri": null}', None)],
)
def test_media_that_cannot_be_read_degrade_their_item(cell: object, uris: list[str] | None) -> None:
    media = [["x.jpg"] if isinstance(cell, list) else "x.jpg"] * 2 + [cell]
    raw = pl.DataFrame({"item_id": ["a", "b", "c"], "media": media})
    usable, issues = split_items(canonical_items(raw, "items"), [])
    assert [[medium["uri"] for medium in media] for media in usable["media"]] == [["x.jpg"], ["x.jpg"], uris or []]
    assert [row[:3] for row in issues.rows()] == ([] if uris is None else [("c", "degraded", "no_media")])


def test_rows_are_counted_from_1_as_lines_are() -> None:
    _, issues = split_items(canonical_items(pl.DataFrame({"item_id": ["a", "a"]}), "items"), [])
    assert issues["detail"].to_list() == ["row 2 of the items table"]


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("title", b"\xff", r"'title' that cannot be read \(type Binary\): write text"),
        ("media", 1, r"'media' that cannot be read \(type Int64\)"),
        ("attributes", "Apparel - Tops", r"cannot be read \(Apparel - Tops\): write objects .* column to description"),
        ("media", "[{'large': 'a.jpg'}]", r"'media' that cannot be read \(\[\{'large': 'a.jpg'\}\]\): write URIs"),
    ],
)
def test_a_column_in_another_shape_is_refused(column: str, value: object, says: str) -> None:
    with pytest.raises(UserError, match=says):
        canonical_items(pl.DataFrame({"item_id": ["a"], column: [value]}), "items")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.text("ab\ud800'\"[{|", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["uri", "key", "value", "x"]), inner),
    max_leaves=6,
)


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.tuples(JSON, JSON), min_size=1, max_size=3), how=st.sampled_from(["jsonl", "json", "python"]))
def test_any_media_and_attributes_are_read_or_refused_in_one_sentence(tmp_path_factory, rows, how) -> None:
    folder = tmp_path_factory.mktemp("catalog")
    with contextlib.suppress(UserError):
        if how == "jsonl":
            lines = (json.dumps({"item_id": n, "media": m, "attributes": a}) for n, (m, a) in enumerate(rows))
            found = items(folder, "items.jsonl", "\n".join(lines))
        else:
            text = json.dumps if how == "json" else repr
            out = io.StringIO(newline="")
            csv.writer(out).writerows([("item_id", "media", "attributes"), *((1, text(m), text(a)) for m, a in rows)])
            found = items(folder, "items.csv", out.getvalue().encode(errors="replace").decode())
        assert len(found) == (len(rows) if how == "jsonl" else 1)
