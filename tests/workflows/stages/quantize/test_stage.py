from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.semantic_ids.collaborative import item_vectors
from models.semantic_ids.quantizer import Quantizer
from models.semantic_ids.suffixes import NO_SUFFIX
from operators.columns import matrix_column
from operators.log.encoding import encode
from operators.log.split import Split, SplitLeaveLast, SplitTime, split_numbers
from operators.sid_registry import add_sids, fitted_items, known_sids, quantizer_digest
from storage import files
from storage.artifacts import save_model
from storage.errors import UserError
from storage.hashing import hash_order
from storage.manifest import Manifest, StageEntry, write_manifest
from storage.run import RunDir
from tests.logs import read_log_table, write_log
from workflows.engine.previous import check_previous
from workflows.engine.registry import stage
from workflows.engine.stage import Context
from workflows.stages.quantize.settings import Collaborative, Config

pytestmark = pytest.mark.long

SETTINGS = Config(codebook_sizes=(16, 16), hidden_dims=(32,), latent_dim=8, steps=100, batch_size=64)


def context_of(run: RunDir) -> Context:
    return Context(run, "", seed=3, fingerprint="f1", log=lambda line: None, progress=lambda done, total: None)


def write_run(run: RunDir, values: np.ndarray, ids: list[str] | None = None) -> pa.Table:
    """What the stages before have left, of items with these embeddings."""
    ids = ids or [f"item-{n}" for n in range(len(values))]
    colours = [[("colour", "red" if n % 2 else "blue")] for n in range(len(values))]
    attributes = pa.array(colours, pa.map_(pa.string(), pa.string()))
    table = pa.table({"item_id": ids, "embedding": matrix_column(values)})
    run.write_table(table, "embeddings")
    save_model(run.uri("models", "projector"), "projector", {"width": values.shape[1]}, {})
    run.write_table(pa.table({"item_id": ids, "text_vector": matrix_column(values[:, :6])}), "items")
    run.write_table(pa.table({"item_id": ids, "attributes": attributes}), "catalog", "items")
    return table


def vectors(rows: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(rows, 12)).astype(np.float32)
    values[1] = values[0]  # two items with one look have one code prefix
    return values


def sids_of(run: RunDir) -> dict[str, list[int]]:
    table = run.read_table("sids")
    return dict(zip(table["item_id"].to_pylist(), table["codes"].to_pylist(), strict=True))


@pytest.mark.usefixtures("ray_cluster", "fits_here")
def test_every_item_gets_one_unique_sid(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = RunDir(str(tmp_path))
    table = write_run(run, vectors(301))
    steps: list[tuple[int, int]] = []
    context = replace(context_of(run), progress=lambda done, total: steps.append((done, total)))
    result = stage("quantize").run(SETTINGS, context)

    assert (result.rows_in, result.rows_out, result.rejected) == (301, 301, 0)
    assert run.read_table("sids").schema.field("codes").type == pa.list_(pa.int32(), 3)
    codes = sids_of(run)
    assert sorted(codes) == sorted(table["item_id"].to_pylist())
    assert len({tuple(sid) for sid in codes.values()}) == 301
    assert codes["item-0"][:2] == codes["item-1"][:2]
    assert sorted([codes["item-0"][2], codes["item-1"][2]])[0] >= 0
    alone = [sid for sid in codes.values() if sum(other[:2] == sid[:2] for other in codes.values()) == 1]
    assert {sid[2] for sid in alone} == {NO_SUFFIX}

    values = torch.from_numpy(np.stack(table["embedding"].to_pylist()).astype(np.float32))
    assigned = Quantizer.load(run.uri("models", "quantizer")).encode(values).tolist()
    assert assigned == [codes[item][:2] for item in table["item_id"].to_pylist()]

    assert result.metrics["collision_share"] > 0
    assert result.metrics["collision_share_after"] == 0
    assert min(result.metrics["usage"]) > 0.9
    written = run.read_json("metrics", "quantize.json")
    assert written["scorecard"] == result.metrics
    assert set(written["naive"]) == set(result.metrics)
    assert [point["step"] for point in written["history"]] == [50, 100]
    assert run.read_table("metrics", "map").num_rows == 301
    assert steps[-1] == (100, 100)
    assert "arquet" not in capfd.readouterr().err  # what Ray Data's readers say on the way


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The stage with a fit that does without Ray: what the loop adds is tested above."""
    from models.semantic_ids.rqkmeans import fit_rqkmeans
    from models.semantic_ids.training_rows import collect
    from workflows.stages.quantize import fitting

    def fit(config: Config, context: Context, **others: Any) -> list[Any]:
        batches = [batch.to_pydict()["embedding"] for batch in context.run.read_table("embeddings").to_batches()]
        values = np.array([row for batch in batches for row in batch], np.float32)
        held = collect([(values, np.empty((len(values), 0), np.float32))], seed=context.seed)
        architecture = config.architecture(*values.shape[::-1])
        fit_rqkmeans(held, architecture, seed=context.seed, balanced=config.balanced).save(
            context.run.uri("models", "quantizer")
        )
        return []

    monkeypatch.setattr(fitting, "fit", fit)

    def run_stage(run: RunDir, **settings: Any) -> Any:
        config = Config(method="rqkmeans", codebook_sizes=(6, 4), **settings)
        result = stage("quantize").run(config, context_of(run))
        files.remove(run.uri("checkpoints"))  # as the runner does
        write_manifest(run.root, Manifest(name="w", stages={"quantize": StageEntry(state="complete")}))
        return result

    return run_stage


def test_sids_follow_the_contents_whatever_items_are_called(tmp_path: Path, fitted: Callable[..., Any]) -> None:
    values = vectors(80)
    values[1] += 0.01  # all contents differ
    first, second = RunDir(str(tmp_path / "a")), RunDir(str(tmp_path / "b"))
    write_run(first, values)
    order = np.random.default_rng(1).permutation(80)
    write_run(second, values[order], [f"renamed-{row}" for row in order])
    fitted(first)
    fitted(second)
    one, other = sids_of(first), sids_of(second)
    assert {f"renamed-{item.split('-')[1]}": sid for item, sid in one.items()} == other


def test_always_a_suffix_and_sinkhorn(tmp_path: Path, fitted: Callable[..., Any]) -> None:
    shares = {}
    for policy in ("suffix", "always_suffix", "sinkhorn"):
        run = RunDir(str(tmp_path / policy))
        write_run(run, vectors(20))
        card = fitted(run, collisions=policy).metrics
        sids = np.array(list(sids_of(run).values()))
        assert len(np.unique(sids, axis=0)) == 20
        assert card["collision_share_after"] == 0
        shares[policy] = card["collision_share"], float((sids[:, -1] >= 0).mean())
    assert shares["always_suffix"][1] == 1
    assert shares["sinkhorn"][1] < shares["suffix"][1] < 1
    assert shares["sinkhorn"][0] == shares["suffix"][0]  # what the quantizer itself leaves


def test_a_full_prefix_names_the_way_out(tmp_path: Path, fitted: Callable[..., Any]) -> None:
    run = RunDir(str(tmp_path))
    write_run(run, vectors(200))
    with pytest.raises(UserError, match="max_suffixes"):
        fitted(run, max_suffixes=2)


def test_a_quantizer_taken_over_moves_no_sid_and_gives_none_twice(tmp_path: Path, fitted: Callable[..., Any]) -> None:
    first, second = RunDir(str(tmp_path / "first")), RunDir(str(tmp_path / "second"))
    values = vectors(100)
    write_run(first, values[:60])
    fitted(first)
    ids = [f"item-{n}" for n in range(10, 100)]  # ten have left, forty are new
    write_run(second, values[10:], ids)
    result = fitted(second, previous=first.root)
    old, new = sids_of(first), sids_of(second)
    assert (result.rows_in, result.rows_out) == (90, 90)
    assert all(new[item] == old[item] for item in old)  # also of those that have left
    assert len({tuple(sid) for sid in new.values()}) == 100
    assert second.read_json("metrics", "quantize.json")["drift"]["refit"] is None  # forty are too few to tell
    fitted(second, previous=first.root)
    assert sids_of(second) == new


def test_a_quantizer_of_another_width_is_refused(tmp_path: Path, fitted: Callable[..., Any]) -> None:
    first, second = RunDir(str(tmp_path / "first")), RunDir(str(tmp_path / "second"))
    write_run(first, vectors(30))
    fitted(first)
    write_run(second, vectors(30)[:, :8])
    with pytest.raises(UserError, match="take that over, too"):
        fitted(second, previous=first.root)


def test_results_do_not_depend_on_what_a_worker_gets() -> None:
    config = Config(use_gpu=True, cpus_per_worker=4, workers=2, checkpoint_s=1)
    assert config.identity() == Config().identity()


def test_codebooks_by_name_and_settings_that_do_not_fit() -> None:
    assert Config(codebook_sizes="trialigngr").codebook_sizes == (4096, 2048, 1024)  # type: ignore[arg-type]
    auto = Config(codebook_sizes="auto")  # type: ignore[arg-type]
    assert auto.sizes(800) == auto.architecture(8, 800).codebook_sizes == (16, 16, 16, 16)
    assert Config.model_validate(auto.model_dump(mode="json")) == auto
    assert Config().sizes(800) == (256, 256, 256)
    with pytest.raises(ValueError, match="no preset"):
        Config(codebook_sizes="huge")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="balanced is for method rqkmeans"):
        Config(balanced=True)


def log_of(run: RunDir, **columns: Any) -> None:
    table = pl.DataFrame(columns).with_columns(pl.col("timestamp").cast(pl.Datetime("us", "UTC")))
    write_log(run, table.to_arrow(compat_level=pl.CompatLevel.oldest()))


@pytest.mark.parametrize("split", [SplitTime(valid=0.2, test=0.2), SplitLeaveLast(kind="leave_last")])
def test_an_alignment_knows_nothing_of_what_the_split_holds_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: Split
) -> None:
    from workflows.stages.quantize import fitting

    run, random = RunDir(str(tmp_path)), np.random.default_rng(0)
    write_run(run, vectors(12))
    users = np.repeat([f"u{n}" for n in range(30)], 8)
    items = np.array([f"item-{n}" for n in random.integers(0, 14, 240)])  # two of them have no embedding
    time = random.integers(0, 12, 240) * 1_000_000  # many ties
    log_of(run, user_id=users.tolist(), item_id=items.tolist(), timestamp=time)
    monkeypatch.setattr(fitting, "parquet_rows", mock.MagicMock())
    monkeypatch.setattr(fitting.training, "fit", lambda _, task, **others: files.read_table(task["signals"]))
    config = Config(method="rqvae+collaborative", collaborative=Collaborative(width=4))
    found: Any = fitting.fit(config, replace(context_of(run), split=split))

    ids = run.read_table("embeddings")["item_id"]
    ids = ids.take(hash_order(ids.to_pylist()))
    events = encode(read_log_table(run), ids).events
    train = events.take(split_numbers(split, events) == 0)
    assert 0 < len(train) < len(events)
    wanted = item_vectors(train.user, train.item, len(ids), width=4, seed=3)
    known = ~np.isnan(wanted).any(1)
    assert found["item_id"].to_pylist() == ids.filter(pa.array(known)).to_pylist()
    assert np.allclose(np.stack(found["vector"].to_pylist()), wanted[known])


def test_only_a_fit_that_goes_by_the_log_reads_the_split() -> None:
    aligned = Config(method="rqvae+collaborative")
    assert aligned.reads_split()
    assert not Config().reads_split()
    assert not aligned.model_copy(update={"previous": "runs/may"}).reads_split()  # nothing is fitted


def new_item(item_id: str, codes: list[int]) -> pa.Table:
    table = pa.table({"item_id": [item_id], "embedding": matrix_column(vectors(2, seed=9)[:1])})
    return table.append_column("codes", matrix_column(np.array([codes])))


def test_what_was_given_since_stands_when_the_same_quantizer_is_fitted_again(
    tmp_path: Path, fitted: Callable[..., Any]
) -> None:
    run = RunDir(str(tmp_path))
    write_run(run, vectors(30))
    fitted(run)
    alone = next(sid for sid in sids_of(run).values() if sid[2] == NO_SUFFIX)
    assert add_sids(run, new_item("new", alone[:2]), quantizer=quantizer_digest(run)) == {"new"}
    fitted(run, collisions="always_suffix")
    ids, codes = known_sids(run)
    ids = ids.to_pylist()
    assert len(ids) == len(np.unique(codes, axis=0)) == 31


def test_a_takeover_is_refused_where_two_runs_gave_one_sid(tmp_path: Path, fitted: Callable[..., Any]) -> None:
    first, second = RunDir(str(tmp_path / "first")), RunDir(str(tmp_path / "second"))
    for run in (first, second):
        write_run(run, vectors(30))
    fitted(first)
    fitted(second, previous=first.root)
    alone = next(sid for sid in sids_of(first).values() if sid[2] == NO_SUFFIX)
    for run in (first, second):
        add_sids(run, new_item(f"new of {run.root}", alone[:2]), quantizer=quantizer_digest(run))
    with pytest.raises(UserError, match="one SID to different items"):
        fitted(second, previous=first.root)


def test_a_rerun_moves_nothing_that_was_given(tmp_path: Path, fitted: Callable[..., Any]) -> None:
    first, second = RunDir(str(tmp_path / "first")), RunDir(str(tmp_path / "second"))
    values = vectors(60)
    write_run(first, values[:30])
    fitted(first)
    write_run(second, values[:40])
    fitted(second, previous=first.root)
    given = sids_of(second)
    write_run(second, values)
    fitted(second, previous=first.root)
    assert all(sids_of(second)[item] == sid for item, sid in given.items())


def test_an_unfinished_run_gives_nothing_over(tmp_path: Path) -> None:
    first = str(tmp_path / "first")
    write_manifest(first, Manifest(name="w", stages={"quantize": StageEntry(state="failed")}))
    with pytest.raises(UserError, match="finish that run first"):
        check_previous(first, str(tmp_path / "second"), "quantize")
    with pytest.raises(UserError, match="this very run"):
        check_previous(first, first, "quantize")


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    weeks=st.lists(st.tuples(st.sets(st.integers(0, 59), max_size=20), st.integers(0, 15)), min_size=2, max_size=4),
    collisions=st.sampled_from(["suffix", "always_suffix", "sinkhorn"]),
)
def test_no_sid_moves_in_any_weeks(
    tmp_path: Path, fitted: Callable[..., Any], weeks: list[tuple[set[int], int]], collisions: str
) -> None:
    """Items come, go and come back; of every four, two look alike."""
    looks = vectors(100)
    looks[3::4] = looks[2::4]
    number, before, previous = 30, dict[str, list[int]](), None
    for week, (away, new) in enumerate(weeks):
        number += new * (week > 0)
        there = [item for item in range(number) if week == 0 or item not in away]
        run = RunDir(str(tmp_path / uuid.uuid4().hex))
        write_run(run, looks[there], [f"item-{item}" for item in there])
        fitted(run, collisions=collisions, **({} if previous is None else {"previous": previous.root}))
        now = sids_of(run)
        assert {item: now[item] for item in before} == before
        assert len({tuple(sid) for sid in now.values()}) == len(now)
        assert set(fitted_items(run).to_pylist()) == {f"item-{item}" for item in range(30)}
        before, previous = now, run
