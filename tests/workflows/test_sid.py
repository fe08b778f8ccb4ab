"""`tesserec sid` on a small run of real models, whose stages are called one by one since Ray is not needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
import yaml
from PIL import Image

from models.semantic_ids.quantizer import Architecture, Quantizer
from operators.assign_sids import AssignSids
from operators.base import apply, set_columns, with_outcome
from operators.cached import CachedOperator
from operators.columns import matrix_column, matrix_of, positions
from operators.interpreter import Interpreter, save_interpreter
from operators.project import Project
from operators.sid_registry import added_sids, give_sids
from storage import files
from storage.errors import UserError
from storage.hashing import hash_rows
from storage.manifest import Manifest, StageEntry, write_manifest
from storage.run import RunDir
from workflows.catalogs.canonical import MEDIA
from workflows.engine import definition
from workflows.engine.registry import stage
from workflows.engine.stage import Context
from workflows.sid import tokenize
from workflows.stages.interpret import stage as interpret

REPOSITORY = Path(__file__).parents[2]
ITEMS = 12
WORDS = ("red shoe", "blue lamp", "garden chair", "steel pan", "wool scarf", "toy train")


def picture(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.NEAREST).save(path)


def row(item_id: str, title: str | None, medium: str | None = None) -> dict[str, object]:
    return {"item_id": item_id, "title": title, "media": [medium] if medium else []}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with a catalogue and its finished run; half of the items have a picture."""
    place = tmp_path_factory.mktemp("tokenizing")
    (place / "catalog").mkdir()
    rows = []
    for n in range(ITEMS):
        medium = None if n % 2 else f"{n}.png"
        if medium:
            picture(place / "catalog" / medium, n)
        rows.append(row(f"item-{n}", f"{WORDS[n % 6]} {n}", medium))
    pl.DataFrame(rows).write_parquet(place / "catalog" / "items.parquet")
    stages = {"ingest": {}, "interpret": {"cache": False}, "project": {"width": 8}, "quantize": {}}
    raw = {"name": "tiny", "catalog": str(place / "catalog"), "stages": stages}
    settings = definition.resolve(raw, source="tiny")
    run = RunDir(str(place / "run"))
    context = Context(run, settings.catalog, 0, "f", log=lambda line: None, progress=lambda done, total: None)

    stage("ingest").run(settings.stages.ingest, context)
    interpret.write_source(settings.stages.interpret, context, run.uri("source"))
    table = with_outcome(run.read_table("source"))
    for step in interpret.steps(settings.stages.interpret, settings.catalog, None):
        table = apply(step.operator, table)
    operators = [step.operator for step in interpret.steps(settings.stages.interpret, settings.catalog, None)]
    save_interpreter(run, [one.operator if isinstance(one, CachedOperator) else one for one in operators])
    run.write_table(table.select(interpret.items_schema(settings.stages.interpret).names), "items")
    files.remove(run.uri("source"))
    stage("project").run(settings.stages.project, context)
    write_sids(run)

    files.write_bytes(run.uri("workflow.yaml"), definition.dump(settings).encode())
    write_manifest(run.root, Manifest(name="tiny", stages={name: StageEntry(state="complete") for name in stages}))
    return place


def write_sids(run: RunDir) -> None:
    """In place of the stage quantize: codewords drawn from the embeddings themselves."""
    embeddings = run.read_table("embeddings")
    vectors = torch.tensor(matrix_of(embeddings["embedding"]))
    quantizer = Quantizer(Architecture("rqkmeans", 8, codebook_sizes=(4, 4), latent_dim=8))
    with torch.no_grad():
        quantizer.codebooks[0].copy_(vectors[:4])
        quantizer.codebooks[1].copy_(vectors[4:8] / 2)
    quantizer.save(run.uri("models", "quantizer"))
    ids, codes = embeddings["item_id"].to_pylist(), quantizer.encode(vectors).numpy()
    nothing = {"known_ids": [], "known_codes": np.empty((0, 3), np.int32)}
    sids = give_sids(ids, codes, hash_rows(vectors.numpy()), **nothing)
    run.write_table(pa.table({"item_id": ids, "codes": matrix_column(sids)}), "sids")


def test_the_service_makes_of_every_item_what_the_batch_run_made(finished) -> None:
    run = RunDir(str(finished / "run"))
    items, batch = run.read_table("catalog", "items"), run.read_table("items")
    interpreter = Interpreter(run)
    interpreter.setup()
    interpreter.fetch.setup()
    found = interpreter(interpreter.fetch(with_outcome(items)))
    at = positions(items["item_id"], batch["item_id"])
    assert len(at) == ITEMS
    for name in ("caption", "interests"):
        assert found.table[name].to_pylist() == batch[name].take(pa.array(at)).to_pylist()
    for name, made in (("embedding", found.embedding), ("codes", found.codes)):
        table = run.read_table({"embedding": "embeddings", "codes": "sids"}[name])
        there = matrix_of(table[name])[positions(items["item_id"], table["item_id"])]
        np.testing.assert_allclose(made, there[:, : made.shape[1]], atol=1e-5 * (name == "embedding"))


@pytest.fixture
def place(finished, tmp_path, monkeypatch) -> Path:
    """A copy of the run and its catalogue; the current directory."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_items(path: Path, rows: list[dict[str, object]]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


def read_lines(text: str) -> dict[str, dict[str, object]]:
    return {found["item_id"]: found for found in map(json.loads, text.splitlines())}


def fitted(place: Path) -> dict[str, list[int]]:
    table = files.read_table(str(place / "run" / "sids"))
    return dict(zip(table["item_id"].to_pylist(), table["codes"].to_pylist(), strict=True))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def no_progress(done: int, total: int) -> None: ...


def test_every_item_of_the_run_gets_the_codes_of_the_run_under_another_name(place):
    """Fetched, embedded and coded anew, from another folder and in another order: one code path offline and online."""
    (place / "catalog").rename(place / "elsewhere")
    old = pl.read_parquet(place / "elsewhere" / "items.parquet")
    old.reverse().with_columns(item_id="new-" + pl.col("item_id")).write_parquet(place / "elsewhere" / "new.parquet")
    steps: list[tuple[int, int]] = []

    found = tokenize("run", "elsewhere/new.parquet", lambda done, total: steps.append((done, total)))

    before = fitted(place)
    assert found.sids["item_id"].to_pylist() == [f"new-{item}" for item in reversed(list(old["item_id"]))]
    assert found.sids.schema.field("codes").type == pa.list_(pa.int32(), 3)
    for item, codes in zip(found.sids["item_id"].to_pylist(), found.sids["codes"].to_pylist(), strict=True):
        assert codes[:2] == before[item.removeprefix("new-")][:2]
    given = [*map(tuple, before.values()), *map(tuple, found.sids["codes"].to_pylist())]
    assert len(set(given)) == 2 * ITEMS
    assert len({codes[:2] for codes in given}) > 3
    assert found.issues.is_empty()
    assert steps == [(ITEMS, ITEMS)]


def test_new_known_and_bad_rows_stand_side_by_side(place, tesserec):
    before = contents(place / "run")
    (place / "in" / "broken.png").parent.mkdir()
    (place / "in" / "broken.png").write_bytes(b"no picture")
    picture(place / "in" / "good.png", 99)
    rows = [
        row("fresh", "yellow boots", "good.png"),
        row("half", "green bowl", "broken.png"),
        row("item-3", "another title altogether"),
        row("", "nobody"),
        row("fresh", "once more"),
        row("lost", None, "broken.png"),
        row("plain", "brown desk"),
    ]

    status, out, err = tesserec("sid", "run", "--items", write_items(place / "in" / "items.jsonl", rows))

    assert status == 0, err
    found = read_lines(out)
    assert list(found) == ["fresh", "half", "item-3", "plain"]
    assert [item for item, one in found.items() if one["known"]] == ["item-3"]
    assert found["item-3"]["codes"] == fitted(place)["item-3"]
    for one in found.values():
        assert len(one["codes"]) == 3
        spelled = [f"<{letter}_{code}>" for letter, code in zip("abc", one["codes"], strict=True) if code >= 0]
        assert one["sid"] == "".join(spelled)
    lines = err.splitlines()
    assert "rejected None: no_item_id, 'row 4 of the items table'" in lines[0]
    assert "rejected 'fresh': duplicate_item_id, 'row 5 of the items table'" in lines[1]
    assert {line.split(", ")[0].split(" ", 1)[1] for line in lines[2:5]} == {
        "degraded 'half': not_an_image",
        "degraded 'lost': not_an_image",
        "rejected 'lost': nothing_to_interpret",
    }
    assert "sid: 3 new, 1 known, 3 rejected, 1 degraded; " in lines[5]
    assert len(lines) == 6
    after = contents(place / "run")
    assert before.items() <= after.items()
    added = {name.split("/")[0] for name in after.keys() - before.keys()}
    assert added == {"sids_added", "metrics"}


def test_whoever_asks_again_is_told_the_same_whatever_came_between(place, tesserec):
    first = write_items(place / "first.jsonl", [row("a", "pink hat"), row("b", "pink hat"), row("c", "grey rug")])
    _, out, _ = tesserec("sid", "run", "--items", first)
    between = write_items(
        place / "second.jsonl", [row("d", "pink hat"), row("a", "something else"), row("e", "pink hat")]
    )
    _, other, _ = tesserec("sid", "run", "--items", between)
    added = contents(place / "run" / "sids_added")
    status, again, err = tesserec("sid", "run", "--items", first)

    assert status == 0
    assert again == out.replace('"known":false', '"known":true')
    assert "sid: 0 new, 3 known" in err
    assert contents(place / "run" / "sids_added") == added
    found = read_lines(out) | {item: one for item, one in read_lines(other).items() if item != "a"}
    assert read_lines(other)["a"]["codes"] == found["a"]["codes"]
    assert len({one["sid"] for one in found.values()}) == 5
    assert len({tuple(found[item]["codes"][:2]) for item in "abde"}) == 1  # suffixes alone tell them apart


def test_given_captions_and_interests_are_kept_as_a_run_keeps_them(place):
    """And an item that has nothing but a caption is not rejected."""
    said = {"caption": "a hat of grey felt", "interests": ["hats", "felt"]}
    rows = [
        row("all", "warm", "hat.png") | said,
        row("bare", "warm"),
        row("alone", None) | {"caption": said["caption"]},
    ]
    picture(place / "hat.png", 3)
    items = pa.Table.from_pylist(rows[:1]).append_column("description", pa.nulls(1, pa.string()))
    table = with_outcome(items.append_column("gate", pa.array(["open"])))
    run = RunDir("run")
    config = definition.finished_definition(run).stages.interpret
    table = set_columns(table, {"media": pa.array([[{"uri": "hat.png", "kind": "image"}]], MEDIA)})
    models = Project(run.uri("models", "projector")), AssignSids(run.uri("models", "quantizer"))
    for operator in (*(step.operator for step in interpret.steps(config, str(place), None, list(said))), *models):
        operator.setup()
        table = apply(operator, table)

    found = tokenize("run", write_items(place / "items.jsonl", rows), no_progress)

    assert (found.issues.height, found.sids["item_id"].to_pylist()) == (0, ["all", "bare", "alone"])
    (added,) = added_sids(run)
    embeddings = dict(zip(added["item_id"].to_pylist(), matrix_of(added["embedding"]), strict=True))
    np.testing.assert_allclose(embeddings["all"], matrix_of(table["embedding"])[0], atol=1e-5)
    (place / "more.csv").write_text("item_id,title,interests,caption\nfew,warm,hats|felt,\nother,warm,,\n")
    few, other = tokenize("run", "more.csv", no_progress).sids["item_id"].to_pylist()
    added = pa.concat_tables(added_sids(run))
    embeddings = dict(zip(added["item_id"].to_pylist(), matrix_of(added["embedding"]), strict=True))
    assert (
        np.abs(embeddings[other] - embeddings["bare"]).max() < 1e-5 < np.abs(embeddings[few] - embeddings[other]).max()
    )


def test_a_csv_and_files_to_write_say_the_same(place, tesserec):
    picture(place / "good.png", 7)
    (place / "items.csv").write_text("item_id,title,media\n7,blue vase,good.png\n007,blue vase,\n")
    status, out, err = tesserec("sid", "run", "--items", "items.csv")
    assert (status, list(read_lines(out))) == (0, ["7", "007"]), err
    for output in ("out/sids.jsonl", "out/sids.parquet"):
        status, nothing, _ = tesserec("sid", "run", "--items", "items.csv", "-o", output)
        assert (status, nothing) == (0, "")
    known = out.replace('"known":false', '"known":true')
    assert (place / "out" / "sids.jsonl").read_text() == known
    table = files.read_table("out/sids.parquet")
    assert table.to_pylist() == list(read_lines(known).values())
    assert table.schema.types == [pa.string(), pa.list_(pa.int32(), 3), pa.string(), pa.bool_()]


def test_drift_looks_back_on_all_that_was_added(place, tesserec):
    tesserec("sid", "run", "--items", write_items(place / "a.jsonl", [row("a", "iron gate"), row("b", "tin cup")]))
    assert json.loads((place / "run" / "metrics" / "drift.json").read_text())["new_items"] == 2
    _, _, err = tesserec("sid", "run", "--items", write_items(place / "b.jsonl", [row("c", "oak door")]))
    found = json.loads((place / "run" / "metrics" / "drift.json").read_text())
    assert (found["old_items"], found["new_items"]) == (ITEMS, 3)
    assert found["reason"] in err
    assert "too early to tell" in err


def test_the_command_needs_no_ray_and_says_nothing_but_its_own(place):
    """`None` in sys.modules makes every import of Ray fail."""
    code = "import sys; sys.modules['ray'] = None\nfrom workflows.cli import main\nmain()"
    items = write_items(place / "items.jsonl", [row("a", "iron gate")])
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", code, "sid", "run", "--items", items]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, list(read_lines(done.stdout))) == (0, ["a"]), done.stderr
    assert all(" sid: " in line for line in done.stderr.splitlines())


def test_suffixes_are_given_as_the_run_gives_them(place, tesserec):
    file = write_items(place / "items.jsonl", [row(f"copy-{n}", "iron gate") for n in range(3)])
    path = place / "run" / "workflow.yaml"
    for name, settings in (("few", {"max_suffixes": 2}), ("always", {"collisions": "always_suffix"})):
        raw = yaml.safe_load(path.read_text())
        raw["stages"]["quantize"] |= settings
        shutil.copytree(place / "run", place / name)
        (place / name / "workflow.yaml").write_text(yaml.safe_dump(raw))
    status, _, err = tesserec("sid", "few", "--items", file)
    assert (status, "max_suffixes" in err, (place / "few" / "sids_added").exists()) == (2, True, False)
    file = write_items(place / "alone.jsonl", [row(f"item {n}", word) for n, word in enumerate(WORDS)])
    found = tokenize("always", file, no_progress).sids["codes"].to_pylist()
    assert min(codes[-1] for codes in found) >= 0
    assert min(codes[-1] for codes in tokenize("run", file, no_progress).sids["codes"].to_pylist()) < 0


def test_pictures_that_are_out_of_reach_decide_no_sid(place):
    rows = [row(f"n{n}", f"{word} new", f"n{n}.png") for n, word in enumerate(WORDS)]
    file = write_items(place / "new" / "items.jsonl", rows)
    with pytest.raises(UserError, match=r"6 of 6 new items .* \(6 missing\).*max_degraded_share = 0.5"):
        tokenize("run", file, no_progress)
    assert not (place / "run" / "sids_added").exists()
    for n in range(6):
        picture(place / "new" / f"n{n}.png", 50 + n)
    assert tokenize("run", file, no_progress).sids["known"].to_pylist() == [False] * 6


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "--items", "good.jsonl"], "There is no run at"),
        (["unfinished", "--items", "good.jsonl"], "stage quantize is pending"),
        (["damaged", "--items", "good.jsonl"], "quantizer at"),
        (["garbled", "--items", "good.jsonl"], "workflow.yaml is damaged"),
        (["old", "--items", "good.jsonl"], "unknown key stages.features.split; write split at the top"),
        (["run", "--items", "nothing.jsonl"], "There is no file nothing.jsonl"),
        (["run", "--items", "good.txt"], "ends in .parquet, .csv, .jsonl"),
        (["run", "--items", "catalog"], "ends in .parquet, .csv, .jsonl"),
        (["run", "--items", "broken.parquet"], "broken.parquet cannot be read"),
        (["run", "--items", "nameless.csv"], "no column 'item_id': the columns are product, title"),
        (["run", "--items", "empty.csv"], "it has no rows"),
        (["run", "--items", "anonymous.csv"], "every item_id is empty"),
        (["run", "--items", "bare.csv"], "no usable item (2 nothing_to_interpret)"),
        (["run", "--items", "good.jsonl", "-o", "out.csv"], "out.csv must end in .parquet or .jsonl"),
        (["run"], "Missing option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_and_no_sid_is_given(place, tesserec, arguments, says):
    write_items(place / "good.jsonl", [row("a", "iron gate")])
    for name, text in (
        ("good.txt", "item_id\na\n"),
        ("broken.parquet", "PAR1"),
        ("nameless.csv", "product,title\n1,x\n"),
        ("empty.csv", "item_id,title\n"),
        ("anonymous.csv", "item_id,title\n,x\n"),
        ("bare.csv", "item_id,title\n1,\n2,\n"),
    ):
        (place / name).write_text(text)
    for name in ("unfinished", "damaged", "garbled", "old"):
        shutil.copytree(place / "run", place / name)
    write_manifest(str(place / "unfinished"), Manifest(name="tiny", stages={
        name: StageEntry(state="complete") for name in ("ingest", "interpret", "project")
    }))  # fmt: skip
    (place / "damaged" / "models" / "quantizer" / "model.safetensors").write_bytes(b"half")
    (place / "garbled" / "workflow.yaml").write_text("{a: [")
    stored = yaml.safe_load((place / "old" / "workflow.yaml").read_text())
    stored["stages"]["features"] = {"split": stored.pop("split")}  # where the split stood once
    (place / "old" / "workflow.yaml").write_text(yaml.safe_dump(stored))
    before = contents(place)

    status, out, err = tesserec("sid", *arguments)

    assert (status, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
    assert contents(place) == before
