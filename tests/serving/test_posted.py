"""Items posted to a service over a small run of real models, whose stages are called one by one without Ray."""

from __future__ import annotations

import base64
import io
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from operators.columns import matrix_column
from serving import posted
from serving.api.routes import http_api
from serving.cascade import CONTENT, POPULARITY, Blend
from serving.filters import Condition
from serving.pipeline import Pipeline
from serving.query import MissingError, NewItem, Query, TakenError
from serving.settings import read_settings
from serving.stores.opening import open_store
from storage.errors import UserError
from storage.run import RunDir
from tests.conftest import REPOSITORY
from tests.served import alone
from tests.serving.interpreted import ITEMS, context_of, other_projection, png
from tests.stores import at_once
from tests.workflows.test_sid import WORDS
from workflows.engine.registry import stage
from workflows.stages.features import stage as features

POSTER = """
import sys
from serving.pipeline import Pipeline
from serving.query import NewItem
from serving.stores.opening import open_store
from storage.run import RunDir
pipeline = Pipeline(RunDir(sys.argv[1]), open_store(sys.argv[2], create=True))
for number in range(1000):
    pipeline.post_item(NewItem(f"posted {number}", title=f"steel pan {number}"))
    print(number, flush=True)
"""


@pytest.fixture(scope="module")
def run(interpreted_run: RunDir) -> RunDir:
    return interpreted_run


@pytest.fixture(scope="module")
def other(run: RunDir, tmp_path_factory) -> RunDir:
    """The run with another projection, to which what the first one has made of an item says nothing."""
    place = RunDir(str(shutil.copytree(run.root, tmp_path_factory.mktemp("other") / "run")))
    other_projection(place)
    return place


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path}/store.db"


@pytest.fixture
def pipeline(run: RunDir, uri: str) -> Pipeline:
    return Pipeline(run, open_store(uri, create=True))


def recommended(pipeline: Pipeline, history: list[str], **query: object) -> list[str]:
    return [item.item_id for item in pipeline.recommend([Query(history=history, k=100, **query)])[0].items]


def similar(pipeline: Pipeline, **query: object) -> list[str]:
    return [item.item_id for item in pipeline.similar(k=100, **query).items]


def test_an_item_with_a_picture_alone_is_in_the_next_answers(pipeline: Pipeline) -> None:
    item = pipeline.post_item(NewItem("new", attributes={"kind": ["x", "y"]}, picture=png(3)))  # as item-3 looks
    assert item["caption"] == pipeline.item("item-3")["caption"]
    assert (item["attributes"], item["hidden"], item["title"]) == ({"kind": ["x", "y"]}, False, None)
    assert item["sid"].startswith(pipeline.item("item-3")["sid"].split("<c")[0])
    sids = [pipeline.item(f"item-{n}")["sid"] for n in range(ITEMS)]
    assert item["sid"] not in sids
    assert similar(pipeline, items=["item-3"])[0] == "new"
    assert similar(pipeline, picture=png(3))[:2] in (["item-3", "new"], ["new", "item-3"])
    assert similar(pipeline, items=["new"])[0] == "item-3"
    assert "new" in recommended(pipeline, ["item-3"])
    assert "new" not in recommended(pipeline, [])  # who has no history gets what is popular
    assert recommended(pipeline, ["item-3"], where=Condition(attribute="kind", among=("y",))) == ["new"]
    assert similar(pipeline, text="x", where=Condition(attribute="kind", among=("y",))) == ["new"]
    with_it = pipeline.recommend([Query(history=["new", "item-4"], k=100, explain=True)])[0]
    assert (with_it.unknown, len(with_it.items)) == ([], ITEMS - 1)
    why = {item.item_id: item.why for item in with_it.items}["item-3"]
    assert why is not None
    assert why.nearest == "new"
    assert {item.item_id for item in pipeline.rank(Query(history=["item-3"], k=9), ["new", "item-1"]).items} == {
        "new",
        "item-1",
    }
    assert Image.open(io.BytesIO(pipeline.picture("new") or b"")).size == (64, 64)
    assert pipeline.items == ITEMS + 1
    level = int(item["sid"][3])
    (branch,) = [each for each in pipeline.tree([])["codes"] if each["code"] == level]
    assert branch["items"] == 1 + sum(sid.startswith(f"<a_{level}>") for sid in sids)


def test_lists_that_cannot_have_a_new_item_do_not_count_against_it(pipeline: Pipeline) -> None:
    pipeline.cascade.blend = Blend({POPULARITY: 12, CONTENT: 30}, {POPULARITY: 0.8, CONTENT: 0.2}, 5.0)
    pipeline.post_item(NewItem("new", picture=png(3)))
    (answer,) = pipeline.recommend([Query(history=["item-3"], k=ITEMS)])
    found = {item.item_id: item for item in answer.items}
    assert len(found) == ITEMS
    assert found["new"].recommenders == [CONTENT]  # where it is the first; of the other 23 the other list has 12
    assert found["new"].score == pytest.approx(0.2 + 0.8 * 12 / 23)


def test_a_posted_item_scores_as_a_run_with_it_says(run: RunDir, pipeline: Pipeline, tmp_path: Path) -> None:
    for n, title in enumerate(["wool scarf with trains", "blue lamp"]):
        pipeline.post_item(NewItem(f"new {n}", title=title, attributes={"kind": ["x"]}, picture=png(90 + n)))
    shutil.copytree(run.root, tmp_path / "run")
    other = RunDir(str(tmp_path / "run"))
    catalogue, new = pipeline.catalogue, ["new 0", "new 1"]
    items = [catalogue.item(name) for name in new]
    for parts in (["catalog", "items"], ["items"]):
        table = run.read_table(*parts)
        pairs = [[(name, value) for name, values in item["attributes"].items() for value in values] for item in items]
        rows = [
            {name: pair if name == "attributes" else item.get(name) for name in table.column_names}
            for item, pair in zip(items, pairs, strict=True)
        ]
        other.write_table(pa.concat_tables([table, pa.Table.from_pylist(rows, table.schema)]), *parts)
    codes = catalogue.codes[catalogue.rows(new)]
    vectors = np.stack([pipeline.store.items_after(0)[1][n].vector for n in range(2)])
    for name, column, values in (("sids", "codes", codes), ("embeddings", "embedding", vectors)):
        table = run.read_table(name).select(["item_id", column])
        more = pa.table({"item_id": new, column: matrix_column(values)}).cast(table.schema)
        other.write_table(pa.concat_tables([table, more]), name)
    shutil.rmtree(Path(other.root, "features"))
    shutil.rmtree(Path(other.root, "checkpoints"))
    stage("features").run(features.Config(history=5, long_history=4), context_of(other, other.root))
    offline = Pipeline(other, open_store(f"sqlite:{tmp_path}/other.db", create=True))
    every = [*(f"item-{n}" for n in range(ITEMS)), *new]
    for history in (["item-1", "item-2"], ["new 1", "item-5"], []):
        one, two = (
            {item.item_id: item.probability for item in each.rank(Query(history=history, k=50), every).items}
            for each in (pipeline, offline)
        )
        assert set(one) == set(every)
        assert one == pytest.approx(two, rel=1e-5)


def test_every_replica_and_whoever_starts_later_knows_it(run: RunDir, pipeline: Pipeline, uri: str) -> None:
    other = Pipeline(run, open_store(uri))
    assert "new" not in similar(other, text="lamp")
    pipeline.post_item(NewItem("new", title="blue lamp"))
    assert "new" in similar(other, text="lamp")
    with pytest.raises(TakenError):
        other.post_item(NewItem("new", title="blue lamp"))
    other.post_item(NewItem("newer", title="blue lamp"))
    assert {"new", "newer"} < set(recommended(pipeline, ["item-1"]))
    sids = {each.item(name)["sid"] for each in (pipeline, other) for name in ("new", "newer")}
    assert len(sids) == 2
    later = Pipeline(run, open_store(uri))
    assert [later.item(name) for name in ("new", "newer")] == [pipeline.item(name) for name in ("new", "newer")]
    assert similar(later, text="lamp") == similar(pipeline, text="lamp")
    assert recommended(later, ["new"]) == recommended(pipeline, ["new"])


@pytest.mark.parametrize("name", ["new", "item-3"])
def test_what_is_hidden_or_deleted_comes_no_more(run: RunDir, pipeline: Pipeline, uri: str, name: str) -> None:
    pipeline.post_item(NewItem("new", title="blue lamp", picture=png(50)))
    other = Pipeline(run, open_store(uri))
    before = recommended(other, ["item-1"])

    def everywhere(each: Pipeline) -> list[bool]:
        ranked = each.rank(Query(history=["item-1"], k=9), [name, "item-2"])
        lists = [recommended(each, ["item-1"]), recommended(each, []), recommended(each, [name, "item-1"])]
        lists += [similar(each, text="lamp"), similar(each, items=["item-1"]), similar(each, picture=png(3))]
        lists += [[item.item_id for item in ranked.items]]
        lists += [recommended(each, ["item-1"], recommenders=(by,)) for by in each.recommenders]
        return [name in found for found in lists]

    assert not all(everywhere(other))  # of their own history nobody gets anything
    assert sum(everywhere(other)) >= 6
    assert pipeline.change_item(name, {"hidden": True})["hidden"]
    for each in (pipeline, other, Pipeline(run, open_store(uri))):
        assert not any(everywhere(each))
        assert each.item(name)["hidden"]
        assert each.recommend([Query(history=[name], k=3)])[0].unknown == []
        assert each.items == ITEMS
    pipeline.change_item(name, {"hidden": False})
    assert recommended(other, ["item-1"]) == before
    pipeline.delete_item(name)
    for each in (pipeline, other, Pipeline(run, open_store(uri))):
        assert not any(everywhere(each))
        assert each.item(name) is None
        assert each.picture(name) is None
        assert each.recommend([Query(history=[name], k=3)])[0].unknown == [name]
    for act in (lambda: other.delete_item(name), lambda: other.change_item(name, {"hidden": True})):
        with pytest.raises(MissingError, match="There is no item"):
            act()
    if name == "new":
        pipeline.post_item(NewItem(name, title="steel pan"))
        assert other.item(name)["title"] == "steel pan"
        assert name in similar(other, text="lamp")
    else:
        with pytest.raises(TakenError):
            pipeline.post_item(NewItem(name, title="steel pan"))


def test_a_posted_item_changes(run: RunDir, pipeline: Pipeline, uri: str) -> None:
    pipeline.post_item(NewItem("new", title="blue lamp", attributes={"kind": ["x"]}, picture=png(3)))
    kept = pipeline.picture("new")
    changed = pipeline.change_item("new", {"title": "garden chair", "attributes": {"kind": ["y"]}})
    assert (changed["title"], changed["attributes"]) == ("garden chair", {"kind": ["y"]})
    assert pipeline.picture("new") == kept
    for each in (pipeline, Pipeline(run, open_store(uri))):
        assert recommended(each, ["item-1"], where=Condition(attribute="kind", among=("y",))) == ["new"]
        assert recommended(each, ["item-1"], where=Condition(attribute="kind", among=("x",))) == []
        found = similar(each, items=["item-3"])
        assert (len(found), len(set(found))) == (ITEMS, ITEMS)
    pipeline.change_item("new", {"picture": png(7), "title": None, "hidden": True})
    assert (pipeline.picture("new") != kept, pipeline.item("new")["hidden"]) == (True, True)
    pipeline.change_item("new", {"hidden": False})
    assert similar(pipeline, items=["item-7"])[0] == "new"
    with pytest.raises(UserError, match="only its `hidden` can be set"):
        pipeline.change_item("item-1", {"title": "x"})


def test_an_item_is_as_new_as_when_it_was_posted_first(run: RunDir, pipeline: Pipeline, uri: str) -> None:
    pipeline.post_item(NewItem("new", title="blue lamp"))
    (posted_at,) = pipeline.catalogue.times
    for title in ("garden chair", "steel pan"):
        pipeline.change_item("new", {"title": title})
    assert pipeline.catalogue.times.tolist() == [posted_at] * 3
    assert Pipeline(run, open_store(uri)).catalogue.times.tolist() == [posted_at]
    pipeline.delete_item("new")
    pipeline.post_item(NewItem("new", title="blue lamp"))
    assert pipeline.catalogue.times[-1] > posted_at


def test_what_cannot_be_interpreted_is_refused_in_a_sentence(
    pipeline: Pipeline, finished_run: RunDir, uri: str
) -> None:
    with pytest.raises(UserError, match="nothing to interpret: send a picture, a title or a description"):
        pipeline.post_item(NewItem("new", title=" "))
    given = Pipeline(finished_run, open_store(uri))
    with pytest.raises(UserError, match="no model for new texts and pictures"):
        given.post_item(NewItem("new", title="lamp"))
    assert pipeline.items == ITEMS


def test_what_has_no_vector_finds_nothing(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no vector"):
        pipeline.search("  ", k=3)
    nothing = pipeline.finder.interpreted(title="lamp")
    monkeypatch.setattr(pipeline.finder, "interpreted", lambda **_: nothing._replace(embedding=nothing.embedding * 0))
    with pytest.raises(UserError, match="no vector"):
        pipeline.similar(picture=png(3), k=3)


@pytest.mark.parametrize("error", [UserError("The endpoint is away."), ConnectionError("away")])
@pytest.mark.parametrize("place", ["finder.interpreted", "posted._placed"])
def test_an_item_without_a_place_keeps_none_away_and_is_tried_again(
    pipeline: Pipeline, other: RunDir, uri: str, monkeypatch: pytest.MonkeyPatch, caplog, place: str, error: Exception
) -> None:
    for name in ("a", "b", "c"):
        pipeline.post_item(NewItem(name, title=f"wool {name}"))
    away, tried = {"wool b", "b"}, list[object]()

    def opened() -> Pipeline:
        found = Pipeline(other, open_store(uri))
        part, method = place.split(".")
        works = getattr(getattr(found, part), method)

        def fails(*args: object, **fields: object) -> object:
            if away & {each for each in (*args, *fields.values()) if isinstance(each, str)}:
                tried.append(args)
                raise error
            return works(*args, **fields)

        monkeypatch.setattr(getattr(found, part), method, fails)
        return found

    rolled = opened()
    assert (rolled.posted.adopt(), rolled.posted.waiting) == (2, 1)
    assert {"a", "c"} < set(recommended(rolled, ["item-1"]))
    assert (rolled.posted.adopt(), rolled.item("b"), len(tried)) == (0, None, 1)  # it is not its time yet
    monkeypatch.setattr(posted, "RETRY_S", 0.0)
    rolled = opened()
    assert (rolled.posted.adopt(), rolled.posted.adopt(), len(tried)) == (0, 0, 3)
    assert caplog.text.count("'b' has no place in a run") == 2  # of each once
    away.clear()
    assert (rolled.posted.adopt(), rolled.posted.waiting) == (1, 0)
    assert "b" in recommended(rolled, ["item-1"])


def test_an_item_without_a_place_is_there_all_the_same(
    pipeline: Pipeline, other: RunDir, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        pipeline.post_item(NewItem(name, title="wool scarf"))
    rolled = Pipeline(other, open_store(uri))
    with monkeypatch.context() as away:
        away.setattr(rolled.finder, "interpreted", lambda **fields: 1 / 0)
        assert rolled.posted.adopt() == 0
    with pytest.raises(TakenError, match="There is an item 'a' already"):
        rolled.post_item(NewItem("a", title="somebody else's"))
    rolled.delete_item("a")
    for each in (pipeline, rolled):
        assert each.item("a") is None
        with pytest.raises(MissingError):
            each.delete_item("a")
    assert rolled.post_item(NewItem("a", title="steel pan"))["title"] == "steel pan"
    assert rolled.change_item("b", {"title": "blue lamp"})["title"] == "blue lamp"
    assert rolled.change_item("c", {"hidden": True})["hidden"]
    assert pipeline.posted.adopt() == 3
    assert [pipeline.item(name)["title"] for name in ("a", "b", "c")] == ["steel pan", "blue lamp", "wool scarf"]
    assert pipeline.item("c")["hidden"]
    assert rolled.posted.waiting == 0


@pytest.mark.parametrize("times", [100, pytest.param(1_000, marks=pytest.mark.soak)])
def test_one_item_posted_at_once_is_there_once(run: RunDir, uri: str, times: int) -> None:
    settings = read_settings(run.root, None).model_copy(update={"open": True, "store": uri, "timeout_seconds": 600.0})
    pipelines = [Pipeline(run, open_store(uri, create=True)) for _ in range(2)]
    body = {"item_id": "new", "picture": base64.b64encode(png(3)).decode()}
    with ThreadPoolExecutor(8) as threads:
        clients = [TestClient(http_api(alone(each), settings)) for each in pipelines]
        found = list(threads.map(lambda n: clients[n % 2].post("/v1/items", json=body).status_code, range(times)))
    assert sorted(found) == [200, *[409] * (times - 1)]
    assert similar(pipelines[0], items=["item-3"]).count("new") == 1


@pytest.mark.parametrize("each", [10, pytest.param(334, marks=pytest.mark.soak)])
def test_who_reads_while_others_post_misses_nothing_that_was_said_to_be_there(run: RunDir, uri: str, each: int) -> None:
    """Three post and two read, of two replicas."""
    pipelines = [Pipeline(run, open_store(uri, create=True)) for _ in range(2)]
    posted, done = list[str](), list[int]()

    def found(pipeline: Pipeline) -> list[str]:
        return [item.item_id for item in pipeline.similar(text="lamp", k=ITEMS + 3 * each).items]

    def work(number: int) -> None:
        pipeline = pipelines[number % 2]
        if number < 3:
            try:
                for n in range(each):
                    pipeline.post_item(NewItem(f"{number} {n}", title=f"{WORDS[n % 6]} of {number}"))
                    posted.append(f"{number} {n}")
            finally:
                done.append(number)
        while len(done) < 3:
            there, seen = list(posted), found(pipeline)
            assert len(seen) == len(set(seen))
            assert set(there) <= set(seen)
            answer = pipeline.recommend([Query(history=["item-1", *there[-2:]], k=5, explain=True)])[0]
            assert (answer.unknown, len(answer.items)) == ([], 5)

    at_once(work, 5)
    assert len(posted) == 3 * each
    for pipeline in (*pipelines, Pipeline(run, open_store(uri))):
        assert sorted(found(pipeline)) == sorted([*posted, *(f"item-{n}" for n in range(ITEMS))])
        assert len({pipeline.item(name)["sid"] for name in posted}) == 3 * each


def test_what_was_said_to_be_posted_outlives_a_kill(run: RunDir, uri: str) -> None:
    open_store(uri, create=True).close()
    writer = subprocess.Popen(
        [sys.executable, "-c", POSTER, run.root, uri],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert writer.stdout is not None
    told = [int(writer.stdout.readline()) for _ in range(5)]
    writer.send_signal(signal.SIGKILL)
    told += [int(line) for line in writer.communicate()[0].split()]
    pipeline = Pipeline(run, open_store(uri))
    found = similar(pipeline, text="pan")
    assert {f"posted {n}" for n in told} <= set(found)
    assert len(found) == len(set(found))
