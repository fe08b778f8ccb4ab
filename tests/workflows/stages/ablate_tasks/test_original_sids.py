"""Original semantic IDs of a few films: of their titles and descriptions, by the run's own way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.semantic_ids.quantizer import RQKMEANS, Architecture
from models.semantic_ids.rqkmeans import fit_rqkmeans
from models.semantic_ids.training_rows import collect
from operators.columns import matrix_column, matrix_of
from storage.run import RunDir
from workflows.engine.definition import resolve
from workflows.engine.registry import stage
from workflows.engine.stage import Context
from workflows.stages.ablate_tasks import original_sids
from workflows.stages.ablate_tasks.original_sids import write_original
from workflows.stages.interpret import stage as interpret
from workflows.stages.quantize.settings import Config as QuantizeConfig

TITLES = [
    "A night in Tunis",
    "The lost sheep",
    "Numbers",
    "A night in Tunis",
    None,
    "Seven bridges",
    "Salt",
    "The well",
]
SIZES = (3, 2)
DEFINITION = {
    "name": "films",
    "catalog": "films",
    "stages": {
        "ingest": None,
        "interpret": {"cache": False},
        "project": {"width": 6, "weights": {"text": 0}},  # pictures alone, which the original ones do without
        "quantize": {"method": "rqkmeans", "codebook_sizes": list(SIZES)},
    },
}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A run up to quantize, whose first and fourth film share their title and nothing else."""
    run = RunDir(str(tmp_path_factory.mktemp("original") / "run"))
    schema = interpret.items_schema(interpret.Config())
    random, some = np.random.default_rng(0), np.ones(len(TITLES), bool)
    columns = {
        "item_id": [f"film {number}" for number in range(len(TITLES))],
        "title": TITLES,
        "description": [None] * len(TITLES),
        "attributes": [None] * len(TITLES),
        "caption": [f"caption {number}" for number in range(len(TITLES))],
        "interests": [[f"interest {number}"] for number in range(len(TITLES))],
        "interest_kinds": [["keyword"]] * len(TITLES),
    }
    for name in ("image_vector", "text_vector"):
        vectors = random.normal(size=(len(TITLES), schema.field(name).type.list_size)).astype(np.float32)
        columns[name] = matrix_column(vectors, some)
    run.write_table(pa.table(columns, schema=schema), "items")
    vectors = collect([(random.normal(size=(8, 6)).astype(np.float32), np.empty((8, 0), np.float32))], seed=0)
    fit_rqkmeans(vectors, Architecture(RQKMEANS, 6, SIZES, 6), seed=0).save(run.uri("models", "quantizer"))
    return Context(run, "films", 0, "print", lambda line: None, lambda done, total: None)


@pytest.fixture(autouse=True)
def _finished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(original_sids, "finished_definition", lambda run: resolve(DEFINITION, source="films"))


@pytest.mark.usefixtures("ray_cluster", "fits_here")
def test_they_come_from_titles_alone_and_tell_all_items_apart(context: Context, tmp_path: Path) -> None:
    to = RunDir(str(tmp_path / "to"))
    assert write_original(context, to)
    items = to.read_table("items")
    assert {row["item_id"]: row["title"] for row in items.to_pylist()} == {
        f"film {number}": title for number, title in enumerate(TITLES)
    }
    assert items["caption"].null_count == items["image_vector"].null_count == len(TITLES)
    assert items["text_vector"].null_count == 1  # of the film without a title
    sids = to.read_table("sids")
    codes = dict(zip(sids["item_id"].to_pylist(), matrix_of(sids["codes"]).tolist(), strict=True))
    assert len(codes) == len(set(map(tuple, codes.values()))) == len(TITLES)
    assert codes["film 0"][:-1] == codes["film 3"][:-1]
    assert len({tuple(each[:-1]) for each in codes.values()}) >= 4
    assert to.read_json("models", "quantizer", "config.json")["codebook_sizes"] == list(SIZES)

    written = Path(to.uri("sids")).stat().st_mtime_ns
    assert write_original(context, to)  # as after a kill later on
    assert Path(to.uri("sids")).stat().st_mtime_ns == written


def test_what_a_killed_attempt_wrote_in_part_is_written_again(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps before the SIDs stand still: they resume by themselves."""
    to, rows = RunDir(str(tmp_path / "to")), list[int]()
    ids = context.run.read_table("items", columns=["item_id"])

    def write_sids(config: QuantizeConfig, run: RunDir, pieces: object) -> None:
        run.write_table(ids.slice(0, rows.pop(0)), "sids")
        if rows:
            raise KeyboardInterrupt

    monkeypatch.setattr(original_sids, "_embed", lambda *_: to.write_table(ids, "embeddings"))
    monkeypatch.setattr(stage("project"), "run", lambda *_: None)
    monkeypatch.setattr(original_sids, "fit", lambda *_: [])
    monkeypatch.setattr(original_sids, "encode", lambda _: None)
    monkeypatch.setattr(original_sids, "write_sids", write_sids)
    rows[:] = [3, len(TITLES)]
    with pytest.raises(KeyboardInterrupt):
        write_original(context, to)
    assert write_original(context, to)
    assert to.read_table("sids").num_rows == len(TITLES)
    assert write_original(context, to)  # without writing anything once more


def test_there_are_none_without_titles_and_descriptions(context: Context, tmp_path: Path) -> None:
    other, items = RunDir(str(tmp_path / "run")), context.run.read_table("items")
    place = items.schema.get_field_index("title")
    other.write_table(items.set_column(place, "title", pa.nulls(items.num_rows, pa.string())), "items")
    to = RunDir(str(tmp_path / "to"))
    assert not write_original(
        Context(other, *(getattr(context, name) for name in ("catalog", "seed", "fingerprint", "log", "progress"))), to
    )
    assert not Path(to.root).exists()
