"""Any catalogue that has something to interpret: `init` writes a definition, `check` accepts it, and it runs."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import random
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest
import yaml
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from storage.errors import UserError
from storage.manifest import Manifest
from tests.workflows.local_streams import local_runs
from workflows.engine.definition import load
from workflows.engine.preflight import preflight
from workflows.engine.runner import execute
from workflows.init import choices, costs, init
from workflows.stages.ingest.stage import Config

COLOURS = ("red", "green", "blue", "black")
THINGS = ("shirt", "boots", "vase", "lamp", "chair")


class Kind(NamedTuple):
    """What a catalogue has; `log` is "", "plain", "labels", "liked" (all 1), "zeros", "ratings" or "order"."""

    title: bool
    description: bool
    media: bool
    log: str
    empty: bool = False  # whether what it has not is a column without a value, not absent

    def __str__(self) -> str:
        has = [name for name in self._fields[:3] if getattr(self, name)]
        return "+".join([*has, self.log or "no log", *(["empty columns"] if self.empty else [])])


LOGS = ("", "plain", "labels", "liked", "zeros", "ratings", "order")
KINDS = [Kind(*has, log) for has in itertools.product((False, True), repeat=3) for log in LOGS if any(has)]
KINDS += [Kind(*has, "plain", empty=True) for has in itertools.product((False, True), repeat=3) if any(has)]


def write(folder: Path, kind: Kind, *, items: int = 12, users: int = 6, events: int = 60, seed: int = 0) -> str:
    """Writes a catalogue of this kind and returns its path."""
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    looks = [(draw.choice(COLOURS), draw.choice(THINGS)) for _ in range(items)]
    table = {"item_id": [f"p-{n}" for n in range(items)]}
    if kind.title:
        table["title"] = [f"{colour} {thing} {n}" for n, (colour, thing) in enumerate(looks)]
    if kind.description:
        table["description"] = [f"A {thing} in {colour}, made to last." for colour, thing in looks]
    if kind.media:
        table["media"] = [f"{n}.png" for n in range(items)]
        for n, (colour, thing) in enumerate(looks):
            picture = Image.new("RGB", (48, 48), "white")
            picture.paste(colour, (4, 4, 20 + 4 * THINGS.index(thing), 44))
            picture.save(folder / f"{n}.png")
    if kind.empty:
        table = {**dict.fromkeys(("title", "description", "media", "attributes"), [None] * items), **table}
    pl.DataFrame(table).write_csv(folder / "items.csv")
    if kind.log:
        write_log(folder, kind.log, draw, items=items, users=users, events=events)
    return str(folder)


def write_log(folder: Path, kind: str, draw: random.Random, *, items: int, users: int, events: int) -> None:
    start, at = dt.datetime(2026, 3, 1, tzinfo=dt.UTC), 0.0
    rows, places = [], [0] * users
    for _ in range(events):
        at += draw.random() * 10
        user = draw.randrange(users)
        places[user] += 1
        row = {"user_id": f"u{user}", "item_id": f"p-{int(items * draw.random() ** 2)}"}
        row["timestamp"] = str(places[user]) if kind == "order" else (start + dt.timedelta(hours=at)).isoformat()
        row |= {"labels": {"label": draw.randrange(2)}, "liked": {"label": 1}, "zeros": {"label": 0}}.get(kind, {})
        row |= {"rating": draw.randrange(1, 6), "hour": 3} if kind == "ratings" else {}
        rows.append(row)
    pl.DataFrame(rows).write_csv(folder / "interactions.csv")
    if kind == "order":
        (folder / "catalog.json").write_text(json.dumps({"timestamps": "order"}))


def stages_of(path: Path) -> dict:
    return yaml.safe_load(path.read_text())["stages"]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_kind_of_catalogue_gets_a_definition_that_passes_the_check(tmp_path: Path, kind: Kind) -> None:
    catalog = write(tmp_path / "catalog", kind, events=150)
    said = init(catalog, str(tmp_path / "mine.yaml"))
    text = (tmp_path / "mine.yaml").read_text()
    told: list[str] = []
    preflight(load(str(tmp_path / "mine.yaml"), []), str(tmp_path / "run"), tell=told.append)

    stages = stages_of(tmp_path / "mine.yaml")
    assert list(stages)[:4] == ["ingest", "interpret", "project", "quantize"]
    assert "12 items" in said[0]
    for name in choices.LOG_STAGES:  # runs, or is left out with a reason
        assert (name in stages) != any(name in line and "left out" in line for line in text.splitlines()), name
    if kind.log in ("plain", "labels", "liked", "ratings"):
        assert "rank" in stages
    if kind.log == "ratings":
        assert stages["ingest"] == {"label": "rating", "positive_from": 4.0}
    if kind.log == "order":
        assert "rank" not in stages


def finished(folder: Path, kind: Kind, **sizes: int) -> Manifest:
    """Writes a catalogue and its definition, and runs that as it is."""
    catalog = write(folder / "catalog", kind, **sizes)
    init(catalog, str(folder / "mine.yaml"))
    one_thread = ["stages.generate.cpus_per_worker=1"] if "generate" in stages_of(folder / "mine.yaml") else []
    with local_runs():  # two threads of a fit crawl where another process is busy
        return execute(load(str(folder / "mine.yaml"), one_thread), str(folder / "run"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds as they are for small catalogues, and short fits."""
    bounds = {"FITTED_FROM": 50, "TEXTS_FROM": 40}
    for name, value in {**bounds, "EPOCHS": 1, "LEAST_STEPS": 10, "VALIDATIONS": 1, "DOCUMENTS": 8}.items():
        monkeypatch.setattr(choices, name, value)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (Kind(title=True, description=False, media=False, log="plain"), {"items": 60, "users": 20, "events": 400}),
        (Kind(title=False, description=True, media=True, log="ratings"), {"items": 30, "users": 5, "events": 200}),
    ],
    ids=lambda part: str(part) if isinstance(part, Kind) else "",
)
def test_a_definition_runs_to_its_end_unchanged(tmp_path: Path, kind: Kind, sizes: dict[str, int]) -> None:
    manifest = finished(tmp_path, kind, **sizes)
    assert {entry.state for entry in manifest.stages.values()} == {"complete"}
    assert list(manifest.stages) == list(stages_of(tmp_path / "mine.yaml"))
    assert ("generate" in manifest.stages) == (sizes["items"] == 60)
    if "generate" in manifest.stages:  # on the tasks that have their texts
        scored = manifest.stages["evaluate"].metrics["tasks"]
        assert "sids_to_title" in scored
        assert not any("caption" in name for name in scored)


@pytest.mark.soak
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("seed", range(12))
def test_drawn_catalogues_run_to_their_ends(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    sizes = {"items": draw.randrange(1, 90), "users": draw.randrange(1, 40), "events": draw.randrange(1, 900)}
    manifest = finished(tmp_path, draw.choice(KINDS), seed=seed, **sizes)
    assert {entry.state for entry in manifest.stages.values()} == {"complete"}


@pytest.mark.parametrize(
    "items",
    ["item_id,title,price\n,,3\n,,4\n", 'item_id,attributes\na,"{""colour"": ""red""}"\n', "item_id,title\n,vase\n"],
)
def test_a_catalogue_without_a_usable_item_is_refused(tmp_path: Path, items: str) -> None:
    (tmp_path / "items.csv").write_text(items)
    with pytest.raises(UserError, match="no item with an item_id and a title, a description or a medium"):
        init(str(tmp_path), str(tmp_path / "mine.yaml"))


def test_pictures_that_are_named_by_ids_are_found(tmp_path: Path) -> None:
    kind = Kind(title=True, description=False, media=True, log="")
    catalog = Path(write(tmp_path / "catalog", kind))
    pl.read_csv(catalog / "items.csv").drop("media").write_csv(catalog / "items.csv")
    (catalog / "photos").mkdir()
    for n in range(12):
        (catalog / f"{n}.png").rename(catalog / "photos" / f"p-{n}.png")
    init(str(catalog), str(tmp_path / "mine.yaml"))
    assert stages_of(tmp_path / "mine.yaml")["ingest"] == {"media": "photos/{item_id}.png"}


@pytest.mark.parametrize("ids", [("1.0", "2.0"), ("a", "b")])
def test_an_empty_column_of_media_is_none(tmp_path: Path, ids: tuple[str, ...]) -> None:
    (tmp_path / "items.csv").write_text("item_id,title,media\n" + "".join(f"{item},,\n" for item in ids))
    (tmp_path / "pics").mkdir()
    for item in ids:
        Image.new("RGB", (48, 48)).save(tmp_path / "pics" / f"{item.removesuffix('.0')}.jpg")
    init(str(tmp_path), str(tmp_path / "mine.yaml"))
    assert stages_of(tmp_path / "mine.yaml")["ingest"] == {"media": "pics/{item_id}.jpg"}
    preflight(load(str(tmp_path / "mine.yaml"), []), str(tmp_path / "run"))
    items = Config(media="pics/{item_id}.jpg").with_media(pl.read_csv(tmp_path / "items.csv"))
    assert items["media"].to_list() == [f"pics/{item.removesuffix('.0')}.jpg" for item in ids]


def test_only_some_folders_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"{n},vase\n" for n in range(99)))
    for n in range(99):
        (tmp_path / f"{n:02}").mkdir()
    looked, exists = [], LocalFileSystem.exists
    monkeypatch.setattr(LocalFileSystem, "exists", lambda fs, path: looked.append(path) or exists(fs, path))
    init(str(tmp_path), str(tmp_path / "mine.yaml"))
    assert len(looked) < 5_000


def test_a_log_that_loses_most_of_its_events_gets_the_setting_that_allows_it(tmp_path: Path) -> None:
    catalog = Path(write(tmp_path / "catalog", Kind(title=True, description=False, media=False, log="plain")))
    items = pl.read_csv(catalog / "items.csv").head(2)
    items.write_csv(catalog / "items.csv")
    said = init(str(catalog), str(tmp_path / "mine.yaml"))
    assert stages_of(tmp_path / "mine.yaml")["ingest"] == {"max_dropped_share": 1.0}
    assert any("events will be dropped" in line for line in said)


def test_what_is_odd_in_a_catalogue_is_said(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text(
        "item_id,title,brand\n" + "".join(f"{n:03},thing {n},b\n" for n in range(8)) + "008,,b\n001,again,b\n"
    )
    events = [f"u{n % 60},{n % 7:03},2026-01-{1 + n % 28:02}\n" for n in range(200)]
    events += [f"whale,{n % 7:03},2026-02-{1 + n % 28:02}\n" for n in range(90)]
    events += ["u1,5,2026-01-01\n", "u2,6.0,2026-01-02\n", "u3,001,2096-01-02\n"]
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "".join(events))
    said = "\n".join(init(str(tmp_path), str(tmp_path / "mine.yaml")))
    assert "brand" in said
    assert "1 items have no id or that of another item" in said
    assert "1 items have no title, no description and no medium" in said
    assert "'whale' has 31% of all events" in said
    assert "of 293 events will be dropped 62 duplicate_event, 2 unknown_item (such as '5', '6.0'), 1 future" in said
    assert "ids such as '000', '001', '002'" in said
    assert "zeros or .0 alone" in said


def test_ids_that_ingest_matches_are_not_told(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\n1.0,vase\n1.5,vase\n2.0,vase\n")
    log = "".join(f"u,{item},2026-01-{n + 1:02}\n" for n, item in enumerate(("1.0", "2.0", "7.0")))
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\n" + log)
    said = "\n".join(init(str(tmp_path), str(tmp_path / "mine.yaml")))
    assert "will be dropped 1 unknown_item (such as '7.0')" in said
    assert "zeros" not in said


# Rows, sizes and seconds of benchmarks/RESULTS.md, "Seconds per stage" and "The next item on Amazon Beauty"
MEASURED = {
    "interpret of the demo": (costs.interpret(809, 789, 20, cpus=2), 86),
    "interpret of MovieLens": (costs.interpret(3_631, 3_631, 0, cpus=2), 307),
    "quantize of the demo": (costs.quantize(806, 800), 64),
    "quantize of MovieLens": (costs.quantize(3_631, 1_500), 77),
    "rank of the demo": (costs.rank(63_999, 10), 65),
    "rank of MovieLens": (costs.rank(72_118, 10), 50),
    "item_knn of Beauty": (costs.item_knn(200_000, 12_000), 30),
    "sasrec of MovieLens": (1_000 * costs.sasrec_step(64 * 50, 3_631), 121),
    "sasrec of Beauty": (5_000 * costs.sasrec_step(256 * 6.9, 12_100) + 28 * costs.validation(20_000, 12_100), 1_104),
    "product codes of MovieLens": (1_000 * costs.product_codes_step(64 * 50, large=False), 125),
    "product codes of Beauty": (6_000 * costs.product_codes_step(128 * 6.9, large=True), 1_170),
    "language model of MovieLens": (1_000 * costs.language_model_step(64 * 75, 3) + costs.searches(2_000, 3), 486),
}


@pytest.mark.parametrize("name", MEASURED)
def test_estimates_are_near_what_was_measured(name: str) -> None:
    estimate, seconds = MEASURED[name]
    assert 2 / 3 < estimate / seconds < 1.5


def test_fits_take_longer_on_a_slower_machine_and_nothing_else_does() -> None:
    fit = choices.Choice("generate", seconds=10.0, parts=(choices.Choice("sasrec", seconds=20.0),))
    plan = choices.Plan((choices.Choice("interpret", seconds=5.0), fit))
    assert [choice.cost for choice in choices.at_pace(plan, 3.0).stages] == [5.0, 90.0]


def test_the_pace_of_this_machine_is_that_of_its_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1_000))
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(clock) * 2 * costs.SIDE**3 / costs.PRODUCTS * 2.5)
    assert costs.pace() == pytest.approx(2.5)
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(clock) * 1e-9)
    assert costs.pace() == 1.0


def test_events_of_one_moment_are_not_learned_from(tmp_path: Path) -> None:
    catalog = Path(write(tmp_path / "catalog", Kind(title=True, description=False, media=False, log="labels")))
    log = pl.read_csv(catalog / "interactions.csv").with_columns(timestamp=pl.lit("2026-01-01"))
    log.unique().write_csv(catalog / "interactions.csv")
    init(str(catalog), str(tmp_path / "mine.yaml"))
    assert not set(stages_of(tmp_path / "mine.yaml")) & set(choices.LOG_STAGES)
    assert "left out, all events have the same time" in (tmp_path / "mine.yaml").read_text()


@pytest.mark.parametrize(
    ("output", "sentence"), [("there.yaml", "is there already"), (".yaml", "gives the workflow its name")]
)
def test_a_definition_is_not_overwritten_and_its_name_is_one(tmp_path: Path, output: str, sentence: str) -> None:
    catalog = write(tmp_path / "catalog", KINDS[0])
    (tmp_path / "there.yaml").write_text("mine")
    with pytest.raises(UserError, match=sentence):
        init(catalog, str(tmp_path / output))


@pytest.mark.parametrize("name", ["2024", "on", "1e3", "null", "2026-01-02"])
def test_the_name_of_a_workflow_is_text(tmp_path: Path, name: str) -> None:
    catalog = write(tmp_path / "catalog", KINDS[0])
    init(catalog, str(tmp_path / f"{name}.yaml"))
    assert load(str(tmp_path / f"{name}.yaml"), []).name == name


def test_a_definition_in_the_home_folder_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        init(write(tmp_path / "catalog", KINDS[0]), "~/mine.yaml")


def test_lines_that_are_no_rows_are_told(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},vase\n" for n in range(9)) + "a,b,c\n")
    said = init(str(tmp_path), str(tmp_path / "mine.yaml"))
    assert any("1 lines of" in line and "cannot be read (line 11 has another number of fields" in line for line in said)
