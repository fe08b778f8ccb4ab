"""`tesserec update`: a run that goes on from another, week after week, on a shop that grows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.evaluation.verdict import DRIFT, KEEP
from storage import files
from storage.errors import UserError
from storage.manifest import Manifest, StageEntry, require_manifest, write_manifest
from storage.run import RunDir
from tests.workflows.local_streams import local_runs
from tests.workflows.weeks import MORE, ODD, definition, write_week
from workflows.engine.registry import stage
from workflows.engine.runner import execute
from workflows.engine.update import next_definition, next_root, status_of, verdict_of
from workflows.stages.generate.earlier import earlier_of

pytestmark = pytest.mark.long

FITTED = ("ranker", "generator/sasrec", "generator/product_codes", "generator/language_model/model")


@pytest.fixture(scope="module")
def here() -> Iterator[None]:
    with local_runs():
        yield


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, here: None) -> RunDir:
    """The run of the first weeks."""
    folder = tmp_path_factory.mktemp("weeks")
    execute(definition(write_week(folder / "week-0", 0)), str(folder / "run"))
    return RunDir(str(folder / "run"))


def update(run: RunDir, catalog: Path, name: str, **how: Any) -> tuple[RunDir, Manifest]:
    target = str(Path(run.root).parent / name)
    return RunDir(target), execute(next_definition(run.root, str(catalog), target, []), target, **how)


@pytest.fixture(scope="module")
def second(first: RunDir) -> tuple[RunDir, Manifest]:
    """The run of a week later; an item has gone, and one has another title."""
    catalog = Path(first.root).parent / "week-1"
    write_week(catalog, 1, gone=frozenset({"item-3"}), renamed=frozenset({"item-5"}))
    return update(first, catalog, "run-2")


def sids(run: RunDir) -> dict[str, tuple[int, ...]]:
    table = run.read_table("sids")
    return dict(zip(table["item_id"].to_pylist(), map(tuple, table["codes"].to_pylist()), strict=True))


def weights(run: RunDir) -> dict[str, bytes]:
    return {name: files.read_bytes(run.uri("models", *name.split("/"), "model.safetensors")) for name in FITTED}


def test_no_sid_moves_and_new_items_get_theirs(first: RunDir, second: tuple[RunDir, Manifest]) -> None:
    run, _ = second
    old, new = sids(first), sids(run)
    assert {item: new[item] for item in old} == old  # also that of the item which has gone
    assert len(set(new.values())) == len(new) == len(old) + MORE
    added = run.read_table("sids").filter(run.read_table("sids")["added"])
    assert set(added["item_id"].to_pylist()) == new.keys() - old.keys()


def test_what_has_not_changed_is_not_interpreted_again(
    first: RunDir, second: tuple[RunDir, Manifest], tmp_path: Path
) -> None:
    run, manifest = second
    assert manifest.stages["interpret"].metrics["reused"] == 88
    catalog = Path(first.root).parent / "week-1"
    fresh = RunDir(str(tmp_path / "run"))
    execute(definition(catalog), fresh.root, until="interpret")
    assert run.read_table("items").equals(fresh.read_table("items"))


def test_models_go_on_from_their_weights(first: RunDir, second: tuple[RunDir, Manifest]) -> None:
    run, manifest = second
    ranks = run.read_json("metrics", "rank.json")
    assert [epoch["epoch"] for epoch in ranks] == [0, 1]  # a quarter of four
    assert 0 < ranks[0]["rows"] < first.read_json("metrics", "rank.json")[0]["rows"] / 2  # new examples alone
    history = run.read_json("metrics", "generate.json")["history"]
    for name, steps in {"sasrec": 10, "product_codes": 10, "language_model": 5}.items():
        assert [point["step"] for point in history[name] if "valid_ndcg@10" in point] == [0, steps]
    ids = run.read_table("models", "generator", "items")["item_id"]
    earlier = earlier_of(first.root, ids)
    assert earlier is not None
    settings = definition(Path(first.root)).stages.generate.product_codes
    before, now = earlier.codes(settings), earlier_of(run.root, ids).codes(settings)  # type: ignore[union-attr]
    known = earlier.rows >= 0
    assert (now.codes[known] == before.codes[earlier.rows[known]]).all()
    assert manifest.stages["rank"].state == "complete"


def test_the_verdict_stands_in_the_manifest_and_on_the_page(second: tuple[RunDir, Manifest]) -> None:
    run, manifest = second
    update = manifest.stages["evaluate"].metrics["update"]
    assert set(update["scores"]) == {"ranker", "generator"}
    assert update["items"] == {"new": MORE, "gone": 1, "new_values": {}}
    assert 410 < update["log"]["new"] < 420  # but for those about the item that has gone
    assert update["log"]["users_gone"] == 0
    assert update["learned_from"]["items"] == 1
    assert update["learned_from"]["refit_by"] is None  # items have no right to be forgotten
    assert update["log"]["missing"] == 0
    verdict, reasons = verdict_of(manifest)  # type: ignore[misc]
    assert verdict == update["verdict"]
    assert verdict in Path(run.uri("report", "index.html")).read_text()
    assert len(reasons) >= 1


def test_run_twice_the_second_does_nothing(
    first: RunDir, second: tuple[RunDir, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in require_manifest(first.root).stages:
        monkeypatch.setattr(type(stage(name)), "run", lambda *_: pytest.fail("ran again"))
    _, again = update(first, Path(first.root).parent / "week-1", "run-2")
    assert again == second[1]


def test_killed_in_each_stage_it_comes_to_the_same(
    first: RunDir, second: tuple[RunDir, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, works = set[str](), {name: stage(name).run for name in second[1].stages}
    for name in second[1].stages:

        def run(config: Any, context: Any, name: str = name, work: Any = works[name]) -> Any:
            result = work(config, context)
            if name not in killed:
                killed.add(name)
                raise KeyboardInterrupt  # all is done but said
            return result

        monkeypatch.setattr(stage(name), "run", run)
    catalog = Path(first.root).parent / "week-1"
    for _ in second[1].stages:
        with pytest.raises(KeyboardInterrupt):
            update(first, catalog, "killed")
    run, manifest = update(first, catalog, "killed")
    assert killed == second[1].stages.keys()
    assert sids(run) == sids(second[0])
    assert weights(run) == weights(second[0])
    one, other = ({**each.stages["evaluate"].metrics["update"]} for each in (manifest, second[1]))
    assert one == other


def test_a_week_of_broken_data_keeps_the_old_run(first: RunDir, second: tuple[RunDir, Manifest]) -> None:
    catalog = write_week(Path(first.root).parent / "week-2", 2, broken=True)
    _, manifest = update(second[0], catalog, "run-3")
    verdict, reasons = verdict_of(manifest)  # type: ignore[misc]
    assert verdict == KEEP
    assert status_of(manifest) == 3
    assert "events a day came in, where" in reasons[0]
    assert "of the new events are positive" in reasons[1]


def test_a_week_of_other_items_asks_for_a_refit(first: RunDir, second: tuple[RunDir, Manifest]) -> None:
    catalog = write_week(Path(first.root).parent / "shift", 2, shifted=True)
    run, manifest = update(second[0], catalog, "run-shift")
    verdict, reasons = verdict_of(manifest)  # type: ignore[misc]
    assert verdict == DRIFT
    assert status_of(manifest) == 4
    assert "which a refit could mend" in reasons[0]
    new_values = manifest.stages["evaluate"].metrics["update"]["items"]["new_values"]
    assert new_values == {"kind": sorted(ODD)}
    assert set(run.read_json("metrics", "quantize.json")["drift"]) > {"newest", "refit"}


def test_erased_users_are_told_until_a_refit(first: RunDir, second: tuple[RunDir, Manifest]) -> None:
    gone = frozenset({"user-1", "user-2", "item-3"})
    catalog = write_week(Path(first.root).parent / "erased", 3, gone=gone)
    _, manifest = update(second[0], catalog, "run-erased")
    update_ = manifest.stages["evaluate"].metrics["update"]
    before = second[1].stages["evaluate"].metrics["update"]["learned_from"]
    assert update_["log"]["users_gone"] == 2
    assert update_["learned_from"]["users"] == 2
    assert update_["learned_from"]["items"] == before["items"]
    assert update_["learned_from"]["since"] == "2025-02-04"  # the last day of the log that had them
    assert not update_["learned_from"]["due"]
    assert update_["log"]["missing"] > 0.02  # what they did


def test_the_command_tells_its_verdict_by_its_status(
    first: RunDir, second: tuple[RunDir, Manifest], tesserec: Callable[..., tuple[int, str, str]]
) -> None:
    folder = Path(first.root).parent
    status, out, error = tesserec("update", first.root, "--catalog", str(folder / "week-1"))
    assert (status, f"verdict: {verdict_of(second[1])[0]}" in out) == (status_of(second[1]), True), error  # type: ignore[index]
    status, _, error = tesserec("update", first.root, "--catalog", str(folder / "week-0"))
    assert status == 2
    assert "holds a run of other data" in error
    status, _, error = tesserec("update", first.root, "--catalog", str(folder / "week-1"), "--run-dir", first.root)
    assert status == 2
    assert "other data" in error


def test_a_log_in_files_is_read_where_it_is_new(tmp_path: Path, here: None) -> None:
    def run(catalog: Path, name: str, *, before: RunDir | None = None) -> tuple[RunDir, Manifest]:
        stages = {
            **dict.fromkeys(("project", "quantize", "rank", "generate", "evaluate", "report", "features")),
            "ingest": {"partition_events": 500},
        }
        made = definition(catalog, stages=stages, previous=before and before.root)
        return RunDir(str(tmp_path / name)), execute(made, str(tmp_path / name))

    old, _ = run(write_week(tmp_path / "week-0", 0, parted=True), "old")
    catalog = write_week(tmp_path / "week-2", 2, parted=True)
    new, manifest = run(catalog, "new", before=old)
    whole, other = run(catalog, "whole", before=None)
    assert new.read_json("log", "about.json") == whole.read_json("log", "about.json") or (
        new.read_json("log", "about.json")["partitions"] < whole.read_json("log", "about.json")["partitions"]
    )
    for kind, order in (("events", ["user", "timestamp", "item", "label"]), ("users", ["user"])):
        one, two = (
            each.read_table("log", kind).sort_by([(name, "ascending") for name in order]) for each in (new, whole)
        )
        assert one.equals(two)
    told = [entry.stages["ingest"].metrics["interactions"] for entry in (manifest, other)]
    assert told[0] == told[1]


def test_the_place_of_the_next_run() -> None:
    assert next_root("runs/shop") == "runs/shop-2"
    assert next_root("s3://bucket/shop-9/") == "s3://bucket/shop-10"


def test_a_run_whose_earlier_one_is_gone_says_what_that_was(tmp_path: Path) -> None:
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "items.csv").write_text("item_id,title\na,vase\n")
    gone = str(tmp_path / "gone")
    with pytest.raises(UserError, match=rf"^previous names {gone}, the run .* put it back, or set previous to null"):
        execute(definition(tmp_path / "catalog", previous=gone), str(tmp_path / "next"))


def test_an_earlier_run_has_to_be_another_finished_one(first: RunDir, tmp_path: Path) -> None:
    catalog = Path(first.root).parent / "week-0"
    with pytest.raises(UserError, match="this very run"):
        execute(definition(catalog, previous=first.root), first.root)
    broken = json.loads(files.read_bytes(first.uri("manifest.json")))
    broken["stages"]["rank"]["state"] = "failed"
    write_manifest(
        str(tmp_path), Manifest(name="shop", stages={k: StageEntry(**v) for k, v in broken["stages"].items()})
    )
    with pytest.raises(UserError, match="stage rank is failed: finish that run first"):
        execute(definition(catalog, previous=str(tmp_path)), str(tmp_path / "next"))
