"""What every store counts of the answers that users were shown, and the notes that it keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.stores.base import Event, Impression, LoadableStore, Note, Tally
from serving.stores.opening import open_store
from tests.stores import at_once

ACTS = st.one_of(
    st.builds(
        Impression,
        user_id=st.sampled_from(["u", "v", "w", None]),
        recommendation_id=st.sampled_from("abcdef"),
        time=st.integers(1, 9),
        run=st.sampled_from(["one:1", "two:2"]),
        route=st.just("/v1/recommend"),
        items=st.sampled_from([["x"], []]),
        scores=st.just([1.0]),
        recommenders=st.just([[]]),
        propensities=st.just([1.0]),
        since=st.sampled_from([0, 5, 6]),
        shown=st.booleans(),
    ),
    st.builds(
        Event,
        user_id=st.sampled_from("uvw"),
        event_id=st.sampled_from("0123456789"),
        item_id=st.just("x"),
        kind=st.just("click"),
        weight=st.sampled_from([-1.0, 0.0, 1.0, 2.0]),
        time=st.integers(1, 9),
        recommendation_id=st.none() | st.sampled_from("abcdef"),
    ),
    st.tuples(st.sampled_from("uvw"), st.integers(1, 9)),
)


@pytest.fixture
def store(store_uri: str) -> Iterator[LoadableStore]:
    opened = open_store(store_uri, create=True)
    yield opened
    opened.close()


def counted(store: LoadableStore, since: int) -> dict[str, Tally]:
    """The counts from all that is kept, as if there were none."""
    named = {(e.user_id, e.recommendation_id) for events in store.every_event() for e in events if e.weight > 0}
    shown, acted = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for each in (one for some in store.every_impression() for one in some):
        if each.user_id is not None and each.shown and each.items and each.since == since:
            place = each.run, each.user_id
            shown[place] += 1
            acted[place] += (each.user_id, each.recommendation_id) in named
    found: dict[str, Tally] = {}
    for run, user in shown:
        n, c = shown[run, user], acted[run, user]
        more = (1, n, c, n * n, n * c, c * c)
        found[run] = Tally(*map(sum, zip(found.get(run, Tally()), more, strict=True)))
    return found


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ACTS, max_size=25))
def test_counts_are_those_of_all_answers_and_events(store: LoadableStore, acts: list) -> None:
    """In whatever order they come: an event may be there before the answer that it names."""
    salt, at = str(uuid4()), int(uuid4().int % 2**40) * 10 + 10
    for act in acts:
        if isinstance(act, Impression):
            user = None if act.user_id is None else salt + act.user_id
            name = salt + act.recommendation_id
            store.show([act._replace(user_id=user, recommendation_id=name, since=act.since and at + act.since)])
        elif isinstance(act, Event):
            name = act.recommendation_id and salt + act.recommendation_id
            store.add([act._replace(user_id=salt + act.user_id, recommendation_id=name)])
        else:
            store.forget(salt + act[0], act[1])
    for since in (at + 5, at + 6):
        assert store.tallies(since) == counted(store, since)


def test_many_at_once_are_each_counted_once(store: LoadableStore, store_uri: str) -> None:
    stores = [open_store(store_uri, create=True) for _ in range(4)]

    def work(number: int) -> None:
        for n in range(20):
            name = f"{n % 10}"
            answer = Impression("u", name, 5, "one:1", "r", ["x"], [1.0], [[]], [1.0], 5)
            event = Event("u", f"{number} {n}", "x", "click", 1.0, 5, name)
            if (n + number) % 2:
                stores[number].show([answer, answer])
                stores[number].add([event, event])
            else:
                stores[number].add([event])
                stores[number].show([answer])

    at_once(work, 4)
    assert store.tallies(5) == counted(store, 5) == {"one:1": Tally(1, 10, 10, 100, 100, 100)}
    store.drop_tallies(5)
    assert store.tallies(5)
    store.drop_tallies(6)
    assert store.tallies(5) == {}
    for each in stores:
        each.close()


def test_notes_are_written_by_who_has_read_the_last_one(store: LoadableStore) -> None:
    assert store.notes("") == {}
    assert store.keep_note("served", "one", version=0)
    assert not store.keep_note("served", "two", version=0)
    assert store.keep_note("served", "é\n", version=1)
    assert store.keep_note("replica:a", "x")
    assert store.keep_note("replica:a", "y")
    assert store.keep_note("replica:b", "z")
    assert store.notes("served") == {"served": Note(2, "é\n")}
    assert store.notes("replica:") == {"replica:a": Note(2, "y"), "replica:b": Note(1, "z")}
    store.drop_note("replica:a")
    store.drop_note("replica:?")
    assert list(store.notes("replica:")) == ["replica:b"]
