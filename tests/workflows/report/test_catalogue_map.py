from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from storage import files
from storage.manifest import Manifest, StageEntry
from storage.run import RunDir
from workflows.report import catalogue_map
from workflows.report.source import Source

MEDIA = pa.list_(pa.struct([("uri", pa.string()), ("kind", pa.string())]))
LONG = "<b>" * 100_000
IDS = ["long", "plain", "outside", "nameless", "gone"]
CODES = [[3, 1, 0], [1, 1, -1], [3, 0, -1], [0, 2, -1], [2, 2, -1]]


def write_map(run: RunDir, naive: list[int | None], positions: np.ndarray | None = None) -> None:
    positions = np.arange(10).reshape(5, 2) if positions is None else positions
    columns = {"item_id": IDS, "x": positions[:, 0].astype(np.float32), "y": positions[:, 1].astype(np.float32)}
    codes = {"code": pa.array([codes[0] for codes in CODES], pa.int32()), "naive_code": pa.array(naive, pa.int32())}
    run.write_table(pa.table({**columns, **codes}), "metrics", "map")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """A run with a map of five items, each with the same picture; one lies outside of the catalogue, one is gone."""
    catalog = tmp_path / "catalog"
    catalog.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    for place in (catalog, tmp_path):
        Image.fromarray(pixels).save(place / "picture.jpg")
    run = RunDir(str(tmp_path / "run"))
    media = [[{"uri": uri, "kind": "image"}] for uri in ("picture.jpg", "picture.jpg", "../picture.jpg", "picture.jpg")]
    titles = [LONG, "A plain one", "An escape", None]
    items = {"item_id": IDS[:4], "title": titles, "media": pa.array(media, MEDIA)}
    run.write_table(pa.table(items), "catalog", "items")
    run.write_table(pa.table({"item_id": IDS, "codes": pa.array(CODES, pa.list_(pa.int32(), 3))}), "sids")
    write_map(run, [4, 4, 5, 5, 4])
    manifest = Manifest(name="tiny", stages={"quantize": StageEntry(state="complete")})
    return Source(run, manifest, {"catalog": str(catalog)})


def rows_of(plot: catalogue_map.Plot) -> dict[int, list[int]]:
    return {group.hue: [row for row, _, _ in group.points] for group in plot.groups}


def places_of(plot: catalogue_map.Plot) -> dict[int, tuple[int, int]]:
    return {row: (x, y) for group in plot.groups for row, x, y in group.points}


def test_items_come_in_the_order_of_their_ids_with_bounded_titles(source):
    items = catalogue_map.read_map(source).items
    assert [item.item_id for item in items] == ["nameless", "plain", "gone", "outside", "long"]
    assert [item.title for item in items[:4]] == ["nameless", "A plain one", "gone", "An escape"]
    assert items[4].title == LONG[: catalogue_map.TITLE_LENGTH]
    assert items[4].sid == "<a_3><b_1><c_0>"
    assert [item.naive for item in items] == ["<a_5>", "<a_4>", "<a_4>", "<a_5>", "<a_4>"]


def test_both_plots_have_the_same_places_and_colours_by_their_own_codes(source):
    own, naive = catalogue_map.read_map(source).plots
    assert places_of(own) == places_of(naive)
    assert sorted(rows_of(own).values()) == [[0], [1], [2], [3, 4]]
    assert sorted(rows_of(naive).values()) == [[0, 3], [1, 2, 4]]
    assert own.text == "5 items of 4 codes; the largest code has 40.0% of them"


def test_without_naive_codes_there_is_one_plot(source):
    write_map(source.run, [None] * 5)
    found = catalogue_map.read_map(source)
    assert len(found.plots) == 1
    assert {item.naive for item in found.items} == {""}


def test_pictures_are_thumbnails_of_the_first_items_and_never_from_outside(source, monkeypatch):
    pictures = {item.item_id: item.picture for item in catalogue_map.read_map(source).items}
    assert {name for name, found in pictures.items() if found} == {"long", "plain", "nameless"}
    content = base64.b64decode(pictures["plain"].removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(content)).size == (48, 36)
    monkeypatch.setattr(catalogue_map, "PICTURES", 1)
    items = catalogue_map.read_map(source).items
    assert [item.item_id for item in items if item.picture] == [IDS[0]]


def test_a_slow_store_costs_pictures_and_not_the_page(source, monkeypatch):
    monkeypatch.setattr(catalogue_map, "PATIENCE", -1.0)
    items = catalogue_map.read_map(source).items
    assert len(items) == 5
    assert not any(item.picture for item in items)


@pytest.mark.parametrize("scale", [(1, 1), (1, 5), (1e-6, 1e-7), (0, 1), (0, 0)])
def test_the_drawing_holds_every_place_in_proportion(source, scale):
    positions = np.random.default_rng(1).normal(size=(5, 2)) * scale
    write_map(source.run, [None] * 5, positions)
    found = catalogue_map.read_map(source)
    places = places_of(found.plots[0])
    drawn = np.array([places[[item.item_id for item in found.items].index(item_id)] for item_id in IDS])
    assert drawn.min() >= found.radius
    assert (drawn.max(0) <= [found.width - found.radius, found.height - found.radius]).all()
    want, got = (np.linalg.norm(points[:, None] - points, axis=-1) for points in (positions, drawn))
    np.testing.assert_allclose(got / max(got.max(), 1), want / max(want.max(), 1e-12), atol=0.002)


def test_there_is_no_map_before_quantize_or_without_its_file(source):
    assert catalogue_map.read_map(Source(source.run, Manifest(name="tiny"), source.definition)) is None
    files.remove(source.run.uri("metrics", "map"))
    assert catalogue_map.read_map(source) is None
