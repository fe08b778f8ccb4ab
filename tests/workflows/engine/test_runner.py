"""Which stages the runner runs anew, and what it hands them; the stages themselves stand still."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import polars as pl
import pytest

from operators.base import rejects_table
from operators.log.split import Split
from storage import files
from storage.errors import UserError
from storage.manifest import read_manifest
from storage.run import RunDir
from workflows.distributed import cluster
from workflows.distributed.pools import Node
from workflows.engine.definition import resolve
from workflows.engine.preflight import preflight
from workflows.engine.registry import stage
from workflows.engine.runner import _fingerprints, _reasons, execute
from workflows.engine.stage import Context, Result, StageConfig

STAGES = ("ingest", "interpret", "project", "quantize", "features", "rank")
METHODS = {"rqvae": ["features", "rank"], "rqvae+collaborative": ["quantize", "features", "rank"]}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> dict[str, Split]:
    """The split that every stage was handed which ran since this was last cleared."""
    found: dict[str, Split] = {}

    def stand_in(name: str) -> None:
        def run(config: StageConfig, context: Context) -> Result:
            found[name] = context.split
            return Result(rows_in=1, rows_out=1)

        monkeypatch.setattr(stage(name), "run", run)

    for name in STAGES:
        stand_in(name)
    monkeypatch.setattr(cluster, "connected", lambda address, cpus: nullcontext())
    return found


@pytest.mark.parametrize("method", METHODS)
def test_every_stage_gets_the_split_and_those_that_read_it_run_anew_with_another(
    tmp_path: Path, ran: dict[str, Split], method: str
) -> None:
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "items.csv").write_text("item_id,title\na,vase\n")
    (tmp_path / "catalog" / "interactions.csv").write_text("user_id,item_id,timestamp\nu,a,1700000000\n")
    stages = {name: {} for name in STAGES} | {"quantize": {"method": method}}

    def run(**split: object) -> list[str]:
        ran.clear()
        raw = {"name": "w", "catalog": str(tmp_path / "catalog"), "split": split, "stages": stages}
        definition = resolve(raw, source="w")
        execute(definition, str(tmp_path / "run"))
        assert all(handed == definition.split for handed in ran.values())
        return list(ran)

    assert run(kind="time", valid=0.2) == list(STAGES)
    assert run(kind="time", valid=0.2, test=0.1) == []  # the default, spelled out
    assert run(kind="time", valid=0.3) == METHODS[method]
    assert run(kind="leave_last") == METHODS[method]


def test_models_and_pools_are_checked_of_the_stages_that_run(
    tmp_path: Path, ran: dict[str, Split], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\na,vase\n")
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\nu,a,1700000000\n")
    pool = {"num_cpus": 0.5, "num_gpus": 1}
    caption = {"backend": "openai", "model": "x", "api_key_env": "NO_SUCH_KEY", "pool": pool}
    stages = {name: {} for name in STAGES} | {"interpret": {"caption": caption}, "rank": {"use_gpu": True}}
    definition = resolve({"name": "w", "catalog": str(tmp_path), "stages": stages}, source="w")
    root = str(tmp_path / "run")
    execute(definition, root, until="ingest")
    with pytest.raises(UserError, match="NO_SUCH_KEY"):
        execute(definition, root, until="interpret")
    monkeypatch.setenv("NO_SUCH_KEY", "key")
    with pytest.raises(UserError, match=r"stages\.interpret\.caption\.pool"):
        execute(definition, root, until="interpret")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(cluster, "nodes", lambda address: [Node(8, 1)])
        execute(definition, root, until="features")
    monkeypatch.delenv("NO_SUCH_KEY")
    execute(definition, root, start="features", until="features")
    with pytest.raises(UserError, match=r"stages\.rank asks for 1 GPUs and there are 0"):
        execute(definition, root)
    assert "rank" not in ran
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(cluster, "nodes", lambda address: [Node(8, 1)])
        execute(definition, root)
    execute(definition, root)
    assert "Nothing to do" in capsys.readouterr().err
    with pytest.raises(UserError, match="NO_SUCH_KEY"):
        preflight(definition, root)  # as `tesserec check` does, of all


def test_no_stage_goes_on_from_before_a_stage_that_ran_anew(tmp_path: Path, ran: dict[str, Split]) -> None:
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "items.csv").write_text("item_id,title\na,vase\n")
    (tmp_path / "catalog" / "interactions.csv").write_text("user_id,item_id,timestamp\nu,a,1700000000\n")
    stages = {name: {} for name in STAGES}
    definition = resolve({"name": "w", "catalog": str(tmp_path / "catalog"), "stages": stages}, source="w")
    execute(definition, str(tmp_path / "run"), until="quantize")
    killed = tmp_path / "run" / "checkpoints" / "features" / _fingerprints(definition)["features"]
    killed.mkdir(parents=True)
    execute(definition, str(tmp_path / "run"), until="quantize")
    assert killed.exists()
    execute(definition, str(tmp_path / "run"), start="interpret", until="quantize")  # brings other items
    assert not killed.exists()


def test_what_an_attempt_with_other_settings_left_is_gone_before_a_stage_begins(
    tmp_path: Path, ran: dict[str, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What both write into the run is this one's alone, whatever the other one's state says is written."""
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "items.csv").write_text("item_id,title\na,vase\n")
    (tmp_path / "catalog" / "interactions.csv").write_text("user_id,item_id,timestamp\nu,a,1700000000\n")
    raw = {"name": "w", "catalog": str(tmp_path / "catalog"), "stages": {name: {} for name in STAGES}}
    definition = resolve(raw, source="w")
    left: dict[str, list[str]] = {}
    for name, fingerprint in _fingerprints(definition).items():
        for attempt in ("other", fingerprint):
            (tmp_path / "run" / "checkpoints" / name / attempt).mkdir(parents=True)

        def run(config: StageConfig, context: Context, name: str = name) -> Result:
            left[name] = [each.name for each in (tmp_path / "run" / "checkpoints" / name).iterdir()]
            return Result(rows_in=1, rows_out=1)

        monkeypatch.setattr(stage(name), "run", run)
    execute(definition, str(tmp_path / "run"))
    assert left == {name: [fingerprint] for name, fingerprint in _fingerprints(definition).items()}


def test_a_stage_that_reads_one_of_two_runs_anew_with_another_fit_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(stage("evaluate")), "reads_all", False)

    def fingerprint(**rank: object) -> str:
        stages = {name: {} for name in STAGES} | {"rank": rank, "evaluate": {}}
        return _fingerprints(resolve({"name": "w", "catalog": str(tmp_path), "stages": stages}, source="w"))["evaluate"]

    assert fingerprint(epochs=2) == fingerprint(epochs=2) != fingerprint(epochs=3)


@pytest.mark.parametrize(
    ("settings", "uses"),
    [
        ({"method": "rqvae+collaborative", "collaborative": {"source": "sasrec"}}, True),
        ({"method": "rqvae+collaborative"}, False),
        ({"collaborative": {"source": "sasrec"}}, False),
    ],
)
def test_quantize_runs_anew_with_another_version_of_the_sasrec_that_it_is_aligned_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict, uses: bool
) -> None:
    stages = {name: {} for name in STAGES} | {"quantize": settings}
    definition = resolve({"name": "w", "catalog": str(tmp_path), "stages": stages}, source="w")
    before = _fingerprints(definition)["quantize"]
    monkeypatch.setattr(type(stage("generate")), "version", 1_000)
    assert (_fingerprints(definition)["quantize"] != before) == uses


def test_rejected_rows_are_told_with_their_commonest_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\na,1\n,2\nNULL,3\na,4\nb,5,6\n")

    def run(limit: float) -> None:
        stages = {"ingest": {"max_reject_share": limit}}
        execute(resolve({"name": "w", "catalog": str(tmp_path), "stages": stages}, source="w"), str(tmp_path / "run"))

    with pytest.raises(
        UserError, match=r"rejected 4 of 5 rows, 2 as no_item_id \(such as 'row 2 of the items table'\)"
    ):
        run(0.75)
    run(1)
    assert "ingest: 1 rows, 4 rejected (2 no_item_id), " in capsys.readouterr().err


def test_metrics_are_the_same_live_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\na,vase\n")
    metrics = {"auc": float("nan"), "interval": (float("inf"), 1.0), "counts": {1: None}}
    monkeypatch.setattr(stage("ingest"), "run", lambda config, context: Result(rows_in=1, rows_out=1, metrics=metrics))
    definition = resolve({"name": "w", "catalog": str(tmp_path), "stages": {"ingest": {}}}, source="w")
    live = execute(definition, str(tmp_path / "run"))
    assert live == read_manifest(str(tmp_path / "run"))
    assert live.stages["ingest"].metrics == {"auc": None, "interval": [None, 1.0], "counts": {"1": None}}


def test_what_the_catalogue_cannot_feed_is_told_and_kept_in_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\na,vase\n")
    monkeypatch.setattr(stage("ingest"), "check_data", lambda config, catalog: ["no spoons"])
    definition = resolve({"name": "w", "catalog": str(tmp_path), "stages": {"ingest": {}}}, source="w")
    manifest = execute(definition, str(tmp_path / "run"))
    assert manifest.left_out == ["ingest: no spoons"] == read_manifest(str(tmp_path / "run")).left_out
    assert "ingest: no spoons" in capsys.readouterr().err


def test_rows_of_the_log_that_are_left_out_need_no_table_of_rejects(
    tmp_path: Path, ran: dict[str, Split], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the features stage does with the events of items that interpret rejected."""
    (tmp_path / "items.csv").write_text("item_id,title\na,vase\n")
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\nu,a,1700000000\n")
    monkeypatch.setattr(stage("features"), "run", lambda config, context: Result(rows_in=5, rows_out=3, rejected=2))
    stages = {name: {} for name in STAGES}
    raw = {"name": "w", "catalog": str(tmp_path), "stages": stages}
    manifest = execute(resolve(raw, source="w"), str(tmp_path / "run"))
    assert (manifest.stages["features"].state, manifest.stages["rank"].state) == ("complete", "complete")
    assert "features: 3 rows, 2 rejected, " in capsys.readouterr().err


def test_the_commonest_reasons_are_counted_batch_by_batch(tmp_path, monkeypatch) -> None:
    rows = [("degraded", "missing", f"{n}.png") for n in range(9, 2, -1)]
    rows += [("degraded", "empty", "0.png")] * 7 + [("rejected", "no_title", "none"), ("rejected", "old", "a")] * 2
    issues = pl.DataFrame(rows, ["severity", "code", "detail"], orient="row").with_columns(item_id=pl.lit("a"))
    run = RunDir(str(tmp_path))
    run.write_table(rejects_table(issues, stage="interpret"), "rejects", "interpret")
    monkeypatch.setattr(files, "read_table", lambda *_: pytest.fail("read whole"))
    for rows_of_a_batch in (10_000, 2):
        monkeypatch.setattr("workflows.engine.runner.BATCH_ROWS", rows_of_a_batch)
        assert {severity: reason.long for severity, reason in _reasons("interpret", run).items()} == {
            "degraded": "7 as empty (such as '0.png')",
            "rejected": "2 as no_title (such as 'none')",
        }
