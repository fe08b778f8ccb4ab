from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.captioning.captioner import Context
from models.captioning.qformer import QFormerCaptioner
from models.qformer.training import Trainer
from storage import files
from storage.errors import UserError
from storage.manifest import read_manifest
from tests.workflows.local_streams import local_runs
from workflows.engine.definition import ADAPT_CAPTIONER, Definition, load
from workflows.engine.runner import execute

pytestmark = pytest.mark.long

COLOURS = {"red": (200, 20, 30), "blue": (20, 40, 200)}
ITEMS, TWINS = 72, 4
SIZES = {"dim": 16, "heads": 2, "layers": 2, "mlp": 32, "queries": 3, "joint": 8, "text_tokens": 8}
DECODER = {"name": "tiny", "dim": 16, "layers": 1, "heads": 2, "mlp": 32}
PHASE = {"steps": 6, "batch_size": 16, "learning_rate": 0.003, "validate_every": 3}
SETTINGS = {
    "base": "scratch",
    "views": 1,
    "architecture": {**SIZES, "vocabulary": 600, "decoder": DECODER},
    "recipe": {"align": PHASE, "write": PHASE, "texts": 1},
    "fetch": {"limits": {"max_side": 64}},
}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red and blue squares, whose titles say so and have a brand that nothing shows; some media are broken."""
    folder = tmp_path_factory.mktemp("squares")
    rng, rows = np.random.default_rng(0), []
    for number in range(ITEMS):
        colour = list(COLOURS)[number % 2]
        shade = tuple(rng.integers(-15, 15, 3) + COLOURS[colour])
        Image.new("RGB", (16, 16), tuple(np.clip(shade, 0, 255).tolist())).save(folder / f"{number}.png")
        title = f"{rng.choice(['Acme', 'Bolt'])} {colour} square"
        rows.append({"item_id": f"i{number}", "title": title, "media": [{"uri": f"{number}.png", "kind": "image"}]})
    (folder / "0.png").write_bytes(b"no picture")
    for number in range(TWINS):
        (folder / f"{number + 20}.png").write_bytes((folder / f"{number + 10}.png").read_bytes())
    rows += [{"item_id": "no-text", "title": None, "media": rows[1]["media"]}]
    rows += [{"item_id": "no-medium", "title": "red square", "media": []}]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def here() -> Iterator[None]:
    with local_runs():
        yield


def definition(catalog: Path, **settings: Any) -> Definition:
    chosen = json.dumps({**SETTINGS, **settings})
    return load(str(ADAPT_CAPTIONER), [f"catalog={catalog}", f"stages.adapt_captioner={chosen}"])


@pytest.mark.usefixtures("here")
def test_a_killed_adaptation_ends_where_an_undisturbed_one_does(
    catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(definition(catalog), str(tmp_path / "whole"))
    run = Trainer.run

    def killed(self: Trainer, report: Any) -> None:
        def until(metrics: dict[str, Any], state: Any) -> None:
            report(metrics, state)
            if metrics["stage"] == "write":
                raise KeyboardInterrupt

        run(self, until)

    monkeypatch.setattr(Trainer, "run", killed)
    with pytest.raises(BaseException):  # noqa: B017 - whatever Ray Train makes of it
        execute(definition(catalog, checkpoint_s=0.001), str(tmp_path / "killed"))
    monkeypatch.setattr(Trainer, "run", run)
    execute(definition(catalog, checkpoint_s=0.001), str(tmp_path / "killed"))
    files = ("model.safetensors", "tokenizer.json")
    one, two = (
        [(tmp_path / name / "models/captioner" / file).read_bytes() for file in files] for name in ("whole", "killed")
    )
    assert one == two
    entry = read_manifest(str(tmp_path / "whole")).stages["adapt_captioner"]  # type: ignore[union-attr]
    assert set(entry.metrics["words"]) == {"red", "blue"}  # neither the brands nor what all titles say
    assert (entry.rows_out, entry.degraded) == (ITEMS, 1)
    assert entry.metrics["pictures"] == ITEMS - 1 - TWINS
    assert {example["text"].split()[-1] for example in entry.metrics["examples"]} == {"square"}
    page = (tmp_path / "whole" / "report" / "index.html").read_text()
    assert "The adapted captioner" in page
    backend = QFormerCaptioner(str(tmp_path / "whole" / "models" / "captioner"))
    backend.load()
    assert isinstance(backend.caption([np.zeros((8, 8, 3), np.uint8)], [Context()])[0], str)


@pytest.mark.parametrize(
    ("column", "sentence"),
    [("title", "has a title or attributes to learn captions from"), ("media", "has a medium: there is nothing")],
)
def test_a_catalogue_without_texts_or_media_is_refused_before_any_work(
    catalog: Path, tmp_path: Path, tesserec: Any, column: str, sentence: str
) -> None:
    lines = [json.loads(line) for line in (catalog / "items.jsonl").read_text().splitlines()]
    for line in lines:
        line[column] = None
        line["description"] = "something"
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = (
        "adapt",
        "captioner",
        str(tmp_path),
        "-o",
        str(tmp_path / "out"),
        "--set",
        "stages.adapt_captioner.base=scratch",
    )
    status, out, err = tesserec(*arguments)
    assert (status, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("here")
def test_media_that_do_not_decode_are_told_and_tried_again(catalog: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"71 of 72 pictures did not decode \(71 .*mend the media"):
        execute(definition(elsewhere(catalog, tmp_path)), str(tmp_path / "out"))
    rejects = files.read_table(str(tmp_path / "out" / "rejects" / "adapt_captioner"))
    assert rejects.num_rows == 71
    execute(definition(tmp_path, fetch={"roots": [str(catalog)]}), str(tmp_path / "out"))


def elsewhere(catalog: Path, folder: Path) -> Path:
    """Write the catalogue to another folder, from which its media must not be read."""
    lines = [json.loads(line) for line in (catalog / "items.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        line["media"] = [{**medium, "uri": str(catalog / medium["uri"])} for medium in line["media"]]
        if number == 5:
            shutil.copy(line["media"][0]["uri"], folder / "own.png")
            line["media"] = [{"uri": "own.png", "kind": "image"}]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"base": "/no/such"}, "There is no captioner at /no/such"),
        ({"base": "/no/such", "architecture": {"dim": 48}}, "architecture is that of the base"),
        ({"architecture": {"decoder": {"name": "tiny", "heads": 3}}}, "a multiple of twice the heads"),
        (
            {"base": "scratch", "architecture": {"decoder": {"name": "pretrained", "model": "/no/such"}}},
            "There is no model at /no/such",
        ),
        ({"workers": 200}, "at least that of the workers"),
    ],
)
def test_settings_that_cannot_work_are_told_before_any_work(
    catalog: Path, tmp_path: Path, tesserec: Any, settings: dict[str, Any], said: str
) -> None:
    chosen = [f"stages.adapt_captioner={json.dumps(settings)}"]
    status, out, err = tesserec("adapt", "captioner", str(catalog), "-o", str(tmp_path / "out"), "--set", *chosen)
    assert (status, out) == (2, "")
    assert said in err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("here")
def test_texts_that_say_nothing_of_the_pictures_are_told(catalog: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (catalog / "items.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        line["title"] = "spring" if number % 4 < 2 else "autumn"
        line["media"] = [{**medium, "uri": str(catalog / medium["uri"])} for medium in line["media"]]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match="have hardly a word that the pictures tell"):
        execute(definition(tmp_path, fetch={"roots": [str(catalog)]}), str(tmp_path / "out"))
