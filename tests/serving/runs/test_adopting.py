"""Posted items in runs of other models."""

from __future__ import annotations

import time

import pytest

from operators.project import Project
from serving import posted
from serving.finder import Finder
from serving.query import NewItem, Query
from serving.runs import rolling
from storage.errors import StoreError
from storage.run import RunDir
from tests.serving.finished import next_run
from tests.serving.interpreted import other_projection, png
from tests.serving.runs.following import USERS, listed, replicas, roll, store_at
from tests.workflows.test_sid import write_sids


@pytest.fixture(scope="module")
def projected(interpreted_run: RunDir, tmp_path_factory) -> RunDir:
    """The interpreted run with another projection, and what follows from it."""
    other = next_run(interpreted_run, tmp_path_factory.mktemp("projected") / "run")
    other_projection(other)
    again = Project(other.uri("models", "projector"))(interpreted_run.read_table("items"))
    other.write_table(again.select(["item_id", "embedding"]), "embeddings")
    write_sids(other)
    return other


def test_posted_items_have_their_place_in_a_run_of_other_models(
    uri: str, interpreted_run: RunDir, projected: RunDir
) -> None:
    store, other = store_at(uri, interpreted_run), projected
    with replicas(uri, interpreted_run) as both:
        for n in range(3):
            both[n % 2].post_item(NewItem(f"new {n}", picture=png(3 + n)))
        both[0].change_item("new 2", {"hidden": True})
        before = {name: both[0].item(name) for name in ("new 0", "new 1", "new 2")}
        assert roll(other, uri)[-2] == "roll: 3 posted items have their places in the run"

        def everywhere(names: list[str], *, adopted: bool) -> None:
            for runs in both:
                for name in names:
                    # An adopted item is what is kept of its picture, a little less than what was posted.
                    like = {"picture": runs.picture(name)} if adopted else {"items": [f"item-{3 + int(name[-1])}"]}
                    assert listed([runs.similar(**like, k=1)]) == [[name]]
                    assert name in listed(runs.recommend([Query(history=["item-1"], k=60)]))[0]
            assert len({both[n % 2].item(name)["sid"] for n, name in enumerate(names)}) == len(names)

        everywhere(["new 0", "new 1"], adopted=True)
        assert both[1].item("new 2")["hidden"]
        assert both[1].picture("new 1") is not None
        both[0].post_item(NewItem("new 3", picture=png(6)))  # which the run of before has never seen
        both[1].change_item("new 1", {"attributes": {"kind": ["x"]}})
        rolling.roll_back(uri, lambda line: None)
        everywhere(["new 0"], adopted=False)
        everywhere(["new 3"], adopted=True)
        assert both[0].item("new 0") == before["new 0"]
        roll(other, uri, share=0.5)
        both[1].post_item(NewItem("new 4", picture=png(7)))
        for user in USERS:
            for runs in both:
                assert "new 4" in listed([runs.answering(user).similar(text="lamp", k=60)])[0]
        assert len(store.items_after(0)[1]) == 5


def test_where_items_find_no_place_others_are_posted_and_those_find_it_later(
    uri: str, interpreted_run: RunDir, projected: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posted, "RETRY_S", 0.0)
    store_at(uri, interpreted_run).close()
    interpret, away = Finder.interpreted, {"wool scarf"}

    def interpreted_here(finder: Finder, **fields: object) -> object:
        if fields.get("title") in away and finder._run.root == projected.root:
            raise ConnectionError("away")
        return interpret(finder, **fields)

    monkeypatch.setattr(Finder, "interpreted", interpreted_here)
    with replicas(uri, interpreted_run, count=1) as (runs,):
        for name, title in (("a", "blue lamp"), ("b", "wool scarf")):
            runs.post_item(NewItem(name, title=title))
        told = roll(projected, uri, share=0.5)
        assert told[1:3] == [
            "roll: 1 posted items have their places in the run",
            "roll: 1 posted items found no place in it (the log says why): the service tries again",
        ]
        for name in ("c", "d"):
            assert runs.post_item(NewItem(name, title="wool scarf"))["item_id"] == name
        assert runs.change_item("c", {"hidden": True})["hidden"]
        assert not runs.answering(None).unknown(["a", "b", "c", "d"])
        second = next(each for user in USERS if (each := runs.answering(user)).root == projected.root)
        assert second.unknown(["a", "b", "c", "d"]) == ["b", "c", "d"]
        away.clear()
        deadline = time.monotonic() + 30
        while second.unknown(["b", "c", "d"]):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_an_item_that_is_written_is_posted_even_if_the_store_goes_away_then(
    uri: str, interpreted_run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_at(uri, interpreted_run).close()

    def away(*_: object) -> int:
        raise StoreError("The store is away.")

    with replicas(uri, interpreted_run, count=1) as (runs,):
        monkeypatch.setattr(posted.PostedItems, "adopt", away)
        assert runs.post_item(NewItem("a", title="wool scarf"))["item_id"] == "a"
        assert runs.change_item("a", {"hidden": True})["hidden"]
