from __future__ import annotations

import base64
import hashlib
import io
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import yaml
from PIL import Image

from models.semantic_ids.layout import map_table
from operators.base import rejects_table
from storage import files
from storage.errors import UserError
from storage.hashing import hash_order
from storage.manifest import Manifest, StageEntry, require_manifest, write_manifest
from storage.run import RunDir
from workflows.report import contents, gallery, pictures, write_report
from workflows.report.source import read_source

INJECTION = '<script>alert(1)</script><img src="http://evil.example/x.png" onerror="alert(2)">'
MEDIA = pa.list_(pa.struct([("uri", pa.string()), ("kind", pa.string())]))
STAGES = ("ingest", "interpret", "project", "quantize", "features", "rank", "evaluate")
SCORECARD = {
    "usage": [1.0, 0.5],
    "dead_codes": [0, 2],
    "perplexity": [3.5, 1.75],
    "prefix_entropy": [1.5, 2.0],
    "collision_share": 0.25,
    "collision_share_after": 0.0,
    "largest_collision": 2,
    "reconstruction_cosine": [0.5, 0.75],
    "reconstruction_mse": [0.5, 0.25],
}
EVALUATE = {
    "ranker": {
        "auc": 0.71,
        "user_auc": 0.65,
        "log_loss": 0.5,
        "ne": 0.9,
        "calibration": 1.01,
        "auc_interval": [0.7, 0.72],
    },
    "popularity": {"auc": 0.6, "user_auc": float("nan"), "log_loss": 0.55, "ne": 0.98, "calibration": 1.0},
    "auc_gain": {"over": "popularity", "mean": 0.11, "interval": [0.1, 0.12]},
    "retriever": {
        "queries": 50.0,
        "recall@5": 0.2,
        "recall@9": 0.3,
        "popularity_recall@5": 0.1,
        "popularity_recall@9": 0.2,
    },
    "slices": {
        "cold_items": {
            "rows": 1200,
            "positives": 0,
            "ranker": {"auc": None, "user_auc": None, "log_loss": 0.25, "ne": None, "calibration": None},
        },
        "warm_items": {"rows": 0, "positives": 0, "ranker": {"auc": float("nan")}, "popularity": {}},
    },
}
METRICS = {
    "ingest": {"interactions": {"rows_in": 100, "rows_out": 93, "dropped": {"unknown_item": 7, "no_label": 0}}},
    "quantize": SCORECARD,
    "features": {
        name: {"rows": rows, "positive_rate": 0.5, "cold_users": 0.25, "cold_items": 0.0}
        for name, rows in (("train", 1200), ("valid", 90), ("test", 80))
    },
    "rank": {"epoch": 2, "valid_log_loss": 0.4},
    "evaluate": EVALUATE,
}


class Page(HTMLParser):
    """A parsed page: its elements with their attributes, its text, and its tables as lists of rows of cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.tables: list[list[list[str]]] = []
        self._cell = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data):
        self.text += data
        if self._cell:
            self.tables[-1][-1][-1] += data.strip()

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def row(self, *start: str) -> list[str]:
        """The one table row that starts with these cells."""
        (found,) = [row for table in self.tables for row in table if tuple(row[: len(start)]) == start]
        return found


def picture(path: Path, size: tuple[int, int] = (40, 30)) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "JPEG")
    return path.read_bytes()


def video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 200, np.uint8))))
        container.mux(stream.encode())


def entry(position: int, name: str, **changes) -> StageEntry:
    values = {
        "state": "complete",
        "fingerprint": name,
        "rows_in": 1000 + position,
        "rows_out": 1000 + position,
        "seconds": 2.0,
        "rows_per_second": 500.0,
        "started": f"2026-01-02T03:{position:02}:00+00:00",
        "metrics": METRICS.get(name, {}),
    }
    return StageEntry(**{**values, **changes})


def write_states(run: RunDir, **changes) -> None:
    """A manifest in which every stage is complete, but for the changes; None leaves a stage out."""
    stages = {
        name: entry(position, name, **(changes.get(name, {})))
        for position, name in enumerate(STAGES)
        if changes.get(name, {}) is not None
    }
    write_manifest(run.root, Manifest(name="tiny", stages=stages))


def build_run(tmp_path: Path) -> RunDir:
    """A finished run of four items: a good picture, a broken one, a video, one outside of the catalogue."""
    catalog = tmp_path / "catalog"
    content = picture(catalog / "good.jpg", (400, 300))
    (catalog / "broken.jpg").write_bytes(content[:200])
    video(catalog / "film.mp4")
    picture(tmp_path / "secret.jpg")
    run = RunDir(str(tmp_path / "run"))
    ids = ["good", "broken", "film", "outside"]
    titles = ["A good one", INJECTION, None, "An escape"]
    media = [
        [{"uri": "absent.jpg", "kind": "image"}, {"uri": "good.jpg", "kind": "image"}],
        [{"uri": "broken.jpg", "kind": "image"}],
        [{"uri": "film.mp4", "kind": "video"}],
        [{"uri": "../secret.jpg", "kind": "image"}],
    ]
    items = pa.table({"item_id": ids, "title": titles, "media": pa.array(media, MEDIA)})
    run.write_table(items, "catalog", "items")
    captions = ["A caption with <b>marks</b> & more", None, "a film", "never seen"]
    run.write_table(pa.table({"item_id": ids, "title": titles, "caption": captions}), "items")
    codes = pa.array([[3, 1, 0], [1, 1, 0], [2, 3, 1], [1, 0, 0]], pa.list_(pa.int32(), 3))
    run.write_table(pa.table({"item_id": ids, "codes": codes}), "sids")
    rejects = pl.DataFrame(
        {
            "item_id": [None, "broken", *(f"gone{i}" for i in range(5))],
            "severity": ["rejected", "degraded", *["degraded"] * 5],
            "code": ["no_item_id", "broken_image", *["missing"] * 5],
            "detail": ["row 9", "<i>broken</i>", *["there is no such file"] * 5],
        }
    )
    run.write_table(rejects_table(rejects, stage="interpret"), "rejects", "interpret")
    steps = [{"step": step, "loss": 1.0, "reconstruction": 1 / step, "quantization": 2.0} for step in (50, 100)]
    naive = {**SCORECARD, "perplexity": [2.5, 1.2], "collision_share": 0.5}
    run.write_json({"scorecard": SCORECARD, "naive": naive, "history": steps}, "metrics", "quantize.json")
    run.write_json({"kind": "quantizer", "codebook_sizes": [4, 4]}, "models", "quantizer", "config.json")
    vectors = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    level_1 = np.array([[3], [1], [2], [1]])
    run.write_table(map_table(ids, vectors, level_1, level_1[::-1], seed=0), "metrics", "map")
    epochs = [{"epoch": e, "train_log_loss": 0.6 / e, "valid_log_loss": 0.5 / e} for e in (1, 2)]
    run.write_json(epochs, "metrics", "rank.json")
    settings = {**{name: {} for name in STAGES}, "report": {}}
    definition = {"name": "tiny", "seed": 7, "catalog": str(catalog), "stages": settings}
    files.write_bytes(run.uri("workflow.yaml"), yaml.safe_dump(definition).encode())
    write_states(run)
    return run


def page_of(run: RunDir) -> Page:
    return Page(files.read_bytes(write_report(run)).decode())


@pytest.fixture
def run(tmp_path) -> RunDir:
    return build_run(tmp_path)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    """The page of the finished run, for tests that only look at it."""
    return page_of(build_run(tmp_path_factory.mktemp("finished")))


def loads(page: Page) -> list[str]:
    """Everything that the page would fetch."""
    attributes = [(name, value or "") for _, found in page.elements for name, value in found.items()]
    addresses = [
        value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset", "data", "action")
    ]
    styles = page.text + " ".join(value for _, value in attributes)
    addresses += re.findall(r"url\(\s*['\"]?([^)'\"]*)", styles) + re.findall(r"@import\s+(\S+)", styles)
    return [address for address in addresses if not address.startswith(("#", "data:image/jpeg;base64,"))]


def test_the_page_loads_nothing_and_runs_the_map_alone(page):
    assert loads(page) == []
    tags = [tag for tag, _ in page.elements]
    assert not set(tags) & {"link", "iframe", "object", "embed", "base", "form"}
    assert tags.count("script") == 1
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]


def test_the_policy_admits_the_one_script_by_its_hash(page):
    policies = [meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policies[0].split(";"))
    (script,) = re.findall(r"<script>(.*?)</script>", page.html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"


def test_without_a_map_the_page_runs_nothing(run):
    files.remove(run.uri("metrics", "map"))
    page = page_of(run)
    assert page.of("script") == []
    assert "script-src" not in page.html
    assert "runs no script" in page.text


def test_every_point_of_the_map_has_its_row_and_hostile_titles_stay_text(page):
    assert len(page.of("circle")) == 8  # four items on two maps
    rows = page.tables[[table.get("id") for table in page.of("table")].index("map-items")][1:]
    assert sorted(int(circle["data-row"]) for circle in page.of("circle")) == sorted([*range(len(rows))] * 2)
    assert [row[0] for row in rows] == ["An escape", INJECTION, "film", "A good one"]
    assert [row[2:] for row in rows][1] == ["<a_1><b_1><c_0>", "<a_2>"]
    assert "the same positions" in page.text


def test_titles_captions_and_details_are_text(page):
    assert INJECTION in page.text
    assert "A caption with <b>marks</b> & more" in page.text
    assert "<i>broken</i>" in page.text
    assert not page.of("i")


def test_the_parser_of_these_tests_sees_what_would_be_loaded():
    assert len(loads(Page(f'{INJECTION}<style>a {{ background: url("//x.y/z") }}</style>'))) == 2


def test_pictures_are_small_jpegs_and_broken_media_say_why(run, page):
    cards = {card.item_id: card for card in gallery.sample(read_source(run))}
    sizes = {}
    for name, card in cards.items():
        if card.picture.uri:
            content = base64.b64decode(card.picture.uri.removeprefix("data:image/jpeg;base64,"))
            sizes[name] = Image.open(io.BytesIO(content)).size
    assert sizes == {"good": (160, 120), "film": (64, 48)}
    assert cards["film"].picture.video
    assert not cards["good"].picture.video
    assert cards["broken"].picture.missing == "broken image"
    assert cards["outside"].picture.missing == "outside root"
    assert [image["alt"] for image in page.of("img")] == ["a film", "A caption with <b>marks</b> & more", "", ""]
    assert "broken image" in page.text


def test_a_preview_that_raises_anything_leaves_the_page_whole(run, monkeypatch):
    def fail(*_):
        raise RuntimeError("a store of its own mind")

    monkeypatch.setattr(pictures, "read_limited", fail)
    assert page_of(run).of("img") == []


def test_items_are_set_out_by_their_semantic_ids(run):
    cards = gallery.sample(read_source(run))
    assert [card.sid for card in cards] == ["<a_1><b_0><c_0>", "<a_1><b_1><c_0>", "<a_2><b_3><c_1>", "<a_3><b_1><c_0>"]
    assert [card.item_id for card in cards] == ["outside", "broken", "film", "good"]


def test_a_quantizer_of_an_earlier_run_is_judged_on_the_page(run):
    drift = {"reconstruction_mse": {"old": 0.25, "new": 0.5}, "refit": True, "reason": "50% < 75% of it"}
    run.write_json({**run.read_json("metrics", "quantize.json"), "drift": drift}, "metrics", "quantize.json")
    page = page_of(run)
    assert "A refit pays: 50% < 75% of it." in page.text
    assert page.row("variance lost", "50.0%", "25.0%")


def test_the_sample_depends_on_the_set_of_items_alone(run):
    ids = [f"i{n}" for n in range(100)]
    chosen = []
    for order in (ids, ids[::-1]):
        items = pa.table({"item_id": order, "title": order, "media": pa.nulls(100, MEDIA), "caption": order})
        run.write_table(items, "catalog", "items")
        run.write_table(items, "items")
        chosen.append([card.item_id for card in gallery.sample(read_source(run))])
    assert chosen[0] == chosen[1] == [ids[row] for row in hash_order(ids)[: gallery.SIZE]]


def test_the_same_run_gives_the_same_page(run):
    first = files.read_bytes(write_report(run))
    assert files.read_bytes(write_report(run)) == first


def test_the_header_and_the_stages(run):
    write_states(run, interpret={"rejected": 4, "degraded": 3})
    page = page_of(run)
    assert "2026-01-02 03:00 UTC" in page.text
    assert read_source(run).catalog in page.text
    assert page.row("interpret", "complete")[2:] == ["1,001", "1,001", "4", "3", "2.0", "500"]
    assert [row[0] for row in page.tables[0][1:]] == list(STAGES)
    assert contents.problems(read_source(run)) == []


def test_metrics_stand_in_their_columns(page):
    assert page.row("ranker") == ["ranker", "0.7100", "0.6500", "0.5000", "0.9000", "1.0100", "0.7000 to 0.7200"]
    assert page.row("popularity", "0.6000") == ["popularity", "0.6000", "–", "0.5500", "0.9800", "1.0000", ""]
    assert page.row("retriever") == ["retriever", "20.0%", "30.0%"]
    assert page.row("popularity", "10.0%") == ["popularity", "10.0%", "20.0%"]
    assert page.row("codebook size") == ["codebook size", "4", "4"]
    assert page.row("perplexity") == ["perplexity", "3.52.5", "1.81.2"]  # below each figure the naive one
    assert page.row("items that share all codes with another")[1:] == ["25.0%50.0%"]
    assert page.row("train") == ["train", "1,200", "50.0%", "25.0%", "0.0%"]
    assert page.row("unknown_item") == ["unknown_item", "7", "7.0%"]
    assert "no_label" not in page.text
    assert len(page.of("svg")) == 6  # two of the quantizer, two maps, one of the ranker, the AUCs


def test_slices_stand_in_one_table_and_what_is_undefined_is_a_dash(page):
    assert page.row("cold items") == ["cold items", "ranker", "1,200", "0", "–", "–", "0.2500", "–", "–"]
    assert page.row("warm items", "ranker") == ["warm items", "ranker", "0", "0", *["–"] * 5]
    assert page.row("warm items", "popularity")
    assert "slices" not in [row[0] for table in page.tables for row in table]


def test_ablated_features_are_shown_where_there_are_some(run, page):
    assert "What helps the ranker" not in page.text
    ids = {"auc": 0.6, "auc_interval": [0.5, 0.7], "seeds": [0.6]}
    captions = {**ids, "gain": 0.1, "gain_interval": [0.05, 0.15]}
    found = {
        "test": {"variants": {"id": ids, "<caption>": captions}, "sentences": ["Captions < help & more."]},
        "gate_curve": [{"rate": rate, "auc": 0.6 + rate / 10, "interval": [0.5, 0.7]} for rate in (0.0, 1.0)],
    }
    run.write_json(found, "metrics", "ablate_features.json")
    assert read_source(run).fit("ablate_features") == {}  # no stage has finished it
    manifest = require_manifest(run.root)
    manifest.stages["ablate_features"] = entry(7, "ablate_features")
    write_manifest(run.root, manifest)
    shown = page_of(run)
    assert "What helps the ranker" in shown.text
    assert "Captions < help & more." in shown.text
    assert shown.row("<caption>") == ["<caption>", "1", "0.6000", "0.5000 to 0.7000", "+0.1000", "0.0500 to 0.1500"]
    assert shown.row("100.0%", "0.7000")
    assert len(shown.of("svg")) == len(page.of("svg")) + 2
    assert loads(shown) == []


def test_recommenders_are_shown_where_there_are_some_and_need_no_ranker(run, page):
    assert "Recommendation" not in page.text
    card = {"recall@10": 0.08, "recall@10_interval": [0.07, 0.09], "ndcg@10": 0.04, "ndcg@10_interval": [0.03, 0.05]}
    over = {"ndcg@10": 1.5, "ndcg@10_interval": [1.25, 1.75], "recall@10": 1.0, "recall@10_interval": [0.5, 1.5]}
    tasks = {"<task>": {"examples": 9, "exact@1": 0.5}}
    both = {**card, "coverage@10": 0.5, "as_is": {**card, "recall@10": 0.06, "coverage@10": 0.25}}
    metrics = {"generator": both, "language_model": both, "sasrec": card, "generator_over_sasrec": over, "tasks": tasks}
    curve = [{"penalty": 0.1, "ndcg@10": 0.03, "fair_0.8@10": 0.25, "tail_ndcg@10": 0.01, "popularity_bias@10": 2.0}]
    weights = {"sasrec": 0.25, "language_model": 0.75}
    metrics |= {"ensemble": {**card, "weights": weights, "penalties": curve}, "ensemble_over_sasrec": over}
    history = [{"step": step, "train_loss": 1 / step, "valid_ndcg@10": 0.01 * step} for step in (1, 2)]
    history.append({"step": 2, "averaged": [1, 2], "valid_ndcg@10": 0.77777})
    run.write_json({"chosen": "language_model", "history": {"language_model": history}}, "metrics", "generate.json")
    write_states(run, features=None, rank=None, evaluate={"metrics": metrics})
    manifest = require_manifest(run.root)
    manifest.stages["generate"] = entry(5, "generate")
    write_manifest(run.root, manifest)
    shown = page_of(run)
    row = shown.row("language model, chosen on validation")
    assert (row[1:3], row[5]) == (["0.0800", "0.0700 to 0.0900"], "0.0600")
    assert shown.row("coverage@10", "50.0%")
    assert shown.row("coverage@10", "25.0%")
    assert "lists of the same queries with such items left in" in shown.text
    assert shown.row("<task>", "the item is first", "9", "0.5000")
    assert "NDCG@10 is higher, 1.50 times (1.25 to 1.75); recall@10 is not told apart" in shown.text
    assert "The generator beside SASRec: NDCG@10 is higher" in shown.text
    assert "The ensemble beside SASRec: NDCG@10 is higher" in shown.text
    assert "The ensemble adds up the log-probabilities of other recommenders, weighed on validation: " in shown.text
    assert "SASRec 0.25, language model 0.75." in shown.text
    assert shown.row("ensemble", "0.10") == ["ensemble", "0.10", "0.0300", "25.0%", "0.0100", "2.00"]
    assert "0.7778" not in shown.text  # an average of states is not drawn among them
    assert "No test metrics" not in shown.text
    assert len([found for found in shown.of("div") if found.get("role") == "img"]) == 2 + 2 + 2  # quantizer, lists, fit
    assert loads(shown) == []
    tiles = {tile.label: (tile.value, tile.note) for tile in contents.tiles(read_source(run))}
    assert tiles["NDCG@10 of the generator"] == ("0.0400", "SASRec 0.0400")


def test_key_numbers(run):
    shown = {tile.label: tile.value for tile in contents.tiles(read_source(run))}
    assert shown == {
        "items": "1,001",
        "interactions": "93",
        "SID collisions": "25.0%",
        "AUC of the ranker": "0.710",
        "AUC gain over popularity": "+0.110",
        "recall@5 of the retriever": "20.0%",
        "time": "14.0 s",
    }


def test_rejects_are_counted_by_reason_with_three_examples(run, page):
    reasons = {(r.severity, r.code): r for r in contents.rejects(read_source(run))}
    assert {key: reason.rows for key, reason in reasons.items()} == {
        ("rejected", "no_item_id"): 1,
        ("degraded", "broken_image"): 1,
        ("degraded", "missing"): 5,
    }
    missing = [(f"gone{i}", "there is no such file") for i in range(3)]
    assert reasons["degraded", "missing"].examples == missing
    assert next(iter(reasons)) == ("rejected", "no_item_id")
    assert "no id: row 9" in page.text


def test_tables_name_their_columns_and_rows_and_figures_say_what_they_show(page):
    assert len(page.of("caption")) == len(page.tables)
    assert all(head.get("scope") in ("col", "row") for head in page.of("th"))
    assert len([found for found in page.of("div") if found.get("role") == "img" and found["aria-label"]]) == 4
    assert page.of("html") == [{"lang": "en"}]


def test_an_unfinished_run_says_so_and_shows_nothing_of_unfinished_stages(run):
    write_states(
        run, quantize={"state": "failed", "error": "UserError: <too few>"}, features=None, rank=None, evaluate=None
    )
    page = page_of(run)
    assert "quantize failed: UserError: <too few>" in page.text
    assert "Not run yet: features, rank and evaluate." in page.text
    assert "<a_1>" not in page.text
    assert page.of("svg") == []
    assert page.row("quantize", "failed")[2:6] == ["–"] * 4
    assert [image["alt"] for image in page.of("img")] != []
    for absent in ("No semantic IDs", "No examples", "No ranker", "No test metrics"):
        assert absent in page.text


EVERY_FIT = {  # metrics/STAGE.json of every stage whose figures the page draws
    "quantize": {"scorecard": SCORECARD, "naive": SCORECARD, "history": [{"step": s, "loss": 1.0} for s in (1, 2)]},
    "rank": [{"epoch": e, "train_log_loss": 0.6, "valid_log_loss": 0.5} for e in (1, 2)],
    "generate": {
        "chosen": "sasrec",
        "history": {"sasrec": [{"step": s, "train_loss": 1.0, "valid_ndcg@10": 0.1} for s in (1, 2)]},
    },
    "ablate_features": {
        "test": {
            "variants": {
                "id": {"auc": 0.6, "auc_interval": [0.5, 0.7], "seeds": [0.6]},
                "caption": {"auc": 0.7, "auc_interval": [0.6, 0.8], "gain": 0.1, "gain_interval": [0.05, 0.15]},
            }
        },
        "gate_curve": [{"rate": rate, "auc": 0.6, "interval": [0.5, 0.7]} for rate in (0.0, 0.5, 1.0)],
    },
    "ablate_tasks": {
        "steps": 10,
        "batch_size": 8,
        "queries": 9,
        "users": 9,
        "sentences": [],
        "variants": {
            str(n): {"tasks": ["t"] * n, "sids": "own", "ndcg@10": 0.1, "ndcg@10_interval": [0.0, 0.2]} for n in (1, 2)
        },
    },
}
LISTS = {"recall@10": 0.1, "recall@10_interval": [0.0, 0.2], "ndcg@10": 0.1, "ndcg@10_interval": [0.0, 0.2]}
RECOMMENDERS = {
    "generator": LISTS,
    "sasrec": LISTS | {"as_is": LISTS},
    "generator_over_sasrec": LISTS,
    "tasks": {"t": LISTS},
}


NONE = (None, float("nan"), float("inf"))


def undefined(value, draw):
    """A copy of metrics whose numbers, not their counts, are replaced by what `draw` makes of them."""
    if isinstance(value, dict):
        return {key: undefined(part, draw) for key, part in value.items()}
    if isinstance(value, list):
        return [undefined(part, draw) for part in value]
    return draw(value) if isinstance(value, float) else value


@pytest.mark.parametrize("chance", [1.0, 0.5, 0.1])
def test_the_page_is_written_whatever_is_not_defined(tmp_path, chance):
    numbers = random.Random(chance)

    def draw(value):
        return numbers.choice(NONE) if numbers.random() < chance else value

    run, metrics = build_run(tmp_path), METRICS | {"evaluate": EVALUATE | RECOMMENDERS} | EVERY_FIT
    shown = {name: undefined(metrics[name], draw) if isinstance(metrics[name], dict) else {} for name in metrics}
    stages = {name: entry(position, name, metrics=found) for position, (name, found) in enumerate(shown.items())}
    write_manifest(run.root, Manifest(name="tiny", stages=stages))
    for name, fit in EVERY_FIT.items():
        run.write_json(undefined(fit, draw), "metrics", f"{name}.json")
    assert not [row for table in page_of(run).tables for row in table if {"nan", "inf", "None"} & set(row)]


def test_before_interpret_the_items_come_from_the_catalogue(run):
    files.remove(run.uri("items"))
    write_states(run, interpret={"state": "running"}, **dict.fromkeys(STAGES[2:]))
    page = page_of(run)
    assert len(page.of("img")) == 2
    assert "a film" not in page.text
    assert "Still running, or killed before the end: interpret." in page.text


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    run = RunDir(str(tmp_path / "run"))
    write_manifest(run.root, Manifest(name="tiny"))
    page = page_of(run)
    assert "No items to show" in page.text
    assert "is not part of this workflow" in page.text


def test_a_workflow_without_interactions_names_what_it_leaves_out(run):
    stages = {name: {} for name in STAGES[:4]}
    definition = {"name": "tiny", "seed": 7, "catalog": "nowhere", "stages": stages}
    files.write_bytes(run.uri("workflow.yaml"), yaml.safe_dump(definition).encode())
    write_states(run, ingest={"metrics": {}}, **dict.fromkeys(STAGES[4:]))
    page = page_of(run)
    assert contents.problems(read_source(run)) == []
    left_out = "features, rank, generate, evaluate, ablate_features, ablate_tasks and adapt_captioner"
    assert f"Not part of this workflow: {left_out}." in page.text
    assert "stage rank is not part of this workflow" in page.text
    assert page.of("img") == []  # the catalogue is out of reach


def test_numbers_of_an_earlier_attempt_are_called_so(run):
    write_states(run, rank={"started": "2026-01-03T00:00:00+00:00"})
    (problem,) = contents.problems(read_source(run))
    assert problem.endswith("earlier attempt: evaluate.")


def test_a_run_without_items_of_an_older_ingest_still_has_a_page(run):
    items = run.read_table("catalog", "items")
    run.write_table(items.slice(0, 1), "catalog", "items")
    assert [card.item_id for card in gallery.sample(read_source(run))] == ["good"]


def test_without_the_histories_the_curves_are_left_out(run):
    files.remove(run.uri("metrics"))
    assert len(page_of(run).of("svg")) == 1  # the AUCs, which the manifest holds


def test_a_run_on_an_object_store(run):
    source = files.filesystem(run.root)[0]
    target = files.filesystem("memory://report-test")[0]
    for path in source.find(run.root):
        target.pipe_file("/report-test" + path.removeprefix(run.root), source.cat_file(path))
    uri = write_report(RunDir("memory://report-test"))
    assert uri == "memory://report-test/report/index.html"
    assert files.read_bytes(uri) == files.read_bytes(write_report(run))


def test_no_run_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="There is no run at"):
        write_report(RunDir(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []
