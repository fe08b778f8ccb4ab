from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.runs.rollout import ALIVE_S, REPLICAS, Part, Report, Rollout, read, reports, started, write
from serving.stores.opening import open_store
from storage.errors import UserError

START = Rollout(start="a", runs=(Part(run="a"),), since=1)
USERS = [f"user {n}" for n in range(1_500)]
SHARES = st.floats(0.001, 0.999)


@given(st.text(min_size=1), st.text(min_size=1), SHARES)
def test_a_share_of_the_users_gets_the_second_run(first: str, second: str, share: float) -> None:
    if first == second:
        return
    alone = Rollout(start=first, runs=(Part(run=first),), since=1)
    rollout = alone.rolled(second, share=share)
    found = [rollout.place(user) for user in USERS]
    assert abs(sum(found) - len(USERS) * share) <= 5 * (len(USERS) * share * (1 - share)) ** 0.5 + 1
    assert [rollout.place(user) for user in USERS] == found
    assert {alone.place(user) for user in USERS} == {0}


@given(SHARES, SHARES, st.text(st.characters(exclude_categories=()), min_size=1))
def test_who_has_the_second_run_keeps_it_as_its_share_grows(one: float, other: float, user: str) -> None:
    low, high = sorted((one, other))
    small, large = START.rolled("b", share=low), START.rolled("b", share=high)
    assert small.place(user) <= large.place(user)
    assert Rollout.model_validate_json(large.model_dump_json()).place(user) == large.place(user)


def test_another_pair_of_runs_has_other_users() -> None:
    one, other = START.rolled("b", share=0.5), START.rolled("c", share=0.5)
    both = sum(one.place(user) and other.place(user) for user in USERS) / len(USERS)
    assert both == pytest.approx(0.25, abs=0.04)


@given(st.none() | st.text(), st.booleans())
def test_visitors_and_whoever_is_shadowed_get_the_first_run(user: str | None, shadow: bool) -> None:
    rollout = START.rolled("b", shadow=True) if shadow else START.rolled("b", share=0.999)
    assert rollout.place(user if shadow else None) == 0


def test_rolls_follow_each_other_and_go_back() -> None:
    beside = START.rolled("b", share=0.1)
    assert [(part.run, part.share) for part in beside.runs] == [("a", 0.9), ("b", 0.1)]
    more = beside.rolled("b", share=0.5)
    assert [(part.run, part.share) for part in more.runs] == [("a", 0.5), ("b", 0.5)]
    alone = more.rolled("b")
    assert [(part.run, part.share) for part in alone.runs] == [("b", 1.0)]
    assert alone.back().runs == more.runs
    assert alone.back().back().runs == alone.runs
    assert START.since < beside.since < more.since < alone.since < alone.back().since
    assert alone.rolled("b").before == more.runs
    shadow = alone.rolled("c", shadow=True)
    assert [(part.run, part.share, part.shadow) for part in shadow.runs] == [("b", 1.0, False), ("c", 0.0, True)]
    with pytest.raises(UserError, match="is the first of the runs that are served"):
        alone.rolled("b", share=0.5)
    with pytest.raises(UserError, match="nothing to roll back to"):
        START.back()


def test_what_is_served_outlives_the_service_until_its_settings_name_another_run(store_uri: str) -> None:
    store = open_store(store_uri, create=True)
    assert read(store) is None
    first = started(store, "a")
    assert (first.version, [part.run for part in first.rollout.runs]) == (1, ["a"])
    rolled = first.rollout.rolled("b", share=0.5)
    assert write(store, rolled, version=1) == (2, rolled)
    assert write(store, rolled, version=1) is None
    assert started(store, "a") == read(store) == (2, rolled)
    assert [part.run for part in started(store, "c").rollout.runs] == ["c"]
    store.close()


def test_only_replicas_that_told_lately_are_alive(store_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(store_uri, create=True)
    now = 1_000_000.0
    monkeypatch.setattr("serving.runs.rollout.time.time", lambda: now)
    for name, age in (("a", 0.0), ("b", ALIVE_S + 1), ("c", 200 * ALIVE_S)):
        report = Report(time=now - age, start="r", serves=1, looked=2, problem="no")
        store.keep_note(f"{REPLICAS}{name}", report.model_dump_json())
    assert reports(store, "other") == []
    assert reports(store, "r") == [Report(time=now, start="r", serves=1, looked=2, problem="no")]
    assert sorted(store.notes(REPLICAS)) == [f"{REPLICAS}a", f"{REPLICAS}b"]
    store.close()
