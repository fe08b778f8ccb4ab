"""The runs that a replica answers from, and how others take their place while it answers.

What is served stands in one note of the store (`serving.runs.rollout`): one run, or two with the share of users of
each, or one with another in its shadow; and what was served before. `tesserec roll` checks a new run by loading it and
asking it the first queries, fills the store with its users, gives the posted items their places in it, and then writes
the note, unless somebody else has written it meanwhile. Nothing else decides what is served, so a replica that starts
anew serves what the others do.

Every replica looks at the note once a second. It loads what it does not have yet, beside what it serves, on a thread
of its own, and asks it the first queries; then one assignment swaps what answers. Requests under way end with the runs
that they began with. So no request waits or fails, with one replica or many, and for a while there is memory for the
old runs and the new. A replica that cannot load a run goes on with what it has, says why in the store and in `readyz`,
and `roll`, which waits for all replicas, then puts the note back: all of them serve the new run, or none.

Users, events, items and erasures are the store's, and of no run: both runs read them, and none is moved by a roll.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from operators.log.events import SECOND_US
from serving.filters import Filter
from serving.pipeline import Pipeline
from serving.query import Answer, NewItem, Query
from serving.runs.opening import check_answers
from serving.runs.rates import Rate, difference, rate
from serving.runs.rollout import BEAT_S, REPLICAS, Kept, Report, read, reports, started
from serving.stores.base import Event, Impression, ServedStore, Tally
from storage.errors import StoreError, UserError

LOOK_S = 1.0  # between two looks at the note
RETRY_S = 60.0  # until a run is tried again that could not be loaded
COUNT_S = 5.0  # for which counts of answers hold
LOG = logging.getLogger("tesserec.runs")


class Now(NamedTuple):
    """What a replica answers from: a rollout and the runs that it names, in its order."""

    kept: Kept
    pipelines: tuple[Pipeline, ...]


class Runs:
    """One or two loaded runs behind the routes; see `serving.api.served.Served`."""

    def __init__(
        self,
        store: ServedStore,
        start: str,
        open_run: Callable[[str], Pipeline],
        prepare: Callable[[str], None] = lambda run: None,
    ) -> None:
        """Loads what is served.

        Args:
            store: that all replicas share.
            start: URI of the run that the service's settings name.
            open_run: loads the run at a URI; raises UserError where it cannot.
            prepare: does what has to be done elsewhere before a run takes the place of another; likewise.

        Raises:
            UserError: a run that is served cannot be loaded.
        """
        self._store, self._start, self._open, self._prepare = store, start, open_run, prepare
        self._name = f"{REPLICAS}{uuid.uuid4().hex}"
        self._now = self._loaded(started(store, start), {})
        self._looked, self._tried = self._now.kept.version, 0.0
        self._problem: str | None = None
        self._counted: tuple[float, int, dict[str, Tally]] = (0.0, 0, {})
        self._ended, self._threads = threading.Event(), list[threading.Thread]()

    def start(self) -> None:
        """Follows what is to be served, and reports, from now on."""
        self._report()
        self._ended.clear()
        for work, seconds in ((self._follow, LOOK_S), (self._adopt, LOOK_S), (self._report, BEAT_S)):
            self._threads.append(threading.Thread(target=self._again, args=[work, seconds], daemon=True))
            self._threads[-1].start()

    def close(self) -> None:
        """Follows it no more."""
        if self._threads:
            self._ended.set()
            while self._threads:
                self._threads.pop().join()
            self._store.drop_note(self._name)

    @property
    def run(self) -> str:
        """Name and fingerprint of the first run."""
        return self._first.run

    @property
    def names(self) -> list[str]:
        """Names and fingerprints of all runs."""
        return [pipeline.run for pipeline in self._now.pipelines]

    @property
    def recommenders(self) -> list[str]:
        """Names of those of the first run that find candidates."""
        return self._first.recommenders

    @property
    def users(self) -> int:
        """Number of users in the store."""
        return self._store.count()

    @property
    def items(self) -> int:
        """Number of items of the first run that may be in an answer."""
        return self._first.items

    @property
    def warning(self) -> str | None:
        """One sentence about what is wrong while it answers all the same; None where all is well."""
        return next(filter(None, [self._problem, *(each.warning for each in self._now.pipelines)]), None)

    @property
    def shadowed(self) -> bool:
        """Whether a run answers in the shadow of another."""
        return self._now.kept.rollout.runs[-1].shadow

    def answering(self, user_id: str | None) -> Pipeline:
        """Returns the run that answers a user."""
        return self._now.pipelines[self._now.kept.rollout.place(user_id)]

    def recommend(self, queries: Sequence[Query]) -> list[Answer]:
        """Answers queries, each by the run of its user; those of one run together."""
        now = self._now
        places = [now.kept.rollout.place(query.user_id) for query in queries]
        answers: dict[int, Answer] = {}
        for place in set(places):
            mine = [at for at, other in enumerate(places) if other == place]
            found = now.pipelines[place].recommend([queries[at] for at in mine])
            answers.update((at, self._signed(answer, now, place)) for at, answer in zip(mine, found, strict=True))
        return [answers[at] for at in range(len(queries))]

    def shadow(self, queries: Sequence[Query]) -> list[Answer]:
        """Answers queries by the run that answers in the shadow of another; none where there is none by now."""
        now = self._now
        if not now.kept.rollout.runs[-1].shadow:
            return []
        return [self._signed(answer, now, -1) for answer in now.pipelines[-1].recommend(queries)]

    def rank(self, query: Query, items: Sequence[str]) -> Answer:
        """Puts items into the order of the ranker of the user's run."""
        now = self._now
        place = now.kept.rollout.place(query.user_id)
        return self._signed(now.pipelines[place].rank(query, items), now, place)

    def similar(
        self,
        *,
        items: Sequence[str] = (),
        text: str | None = None,
        picture: bytes | None = None,
        k: int,
        where: Filter | None = None,
    ) -> Answer:
        """Finds items of the first run like others, like a text or like a picture."""
        now = self._now
        found = now.pipelines[0].similar(items=items, text=text, picture=picture, k=k, where=where)
        return self._signed(found, now, 0)

    def search(self, text: str, *, k: int, where: Filter | None = None) -> Answer:
        """Finds items of the first run by their texts."""
        return self.similar(text=text, k=k, where=where)

    def item(self, item_id: str) -> dict[str, Any] | None:
        """Returns what there is to show of an item, as the first run has it that has it."""
        return self._having(item_id).item(item_id)

    def picture(self, item_id: str) -> bytes | None:
        """Returns a small JPEG of the first picture of an item, if there is one."""
        return self._having(item_id).picture(item_id)

    def post_item(self, new: NewItem) -> dict[str, Any]:
        """Takes an item, which gets its place in every run."""
        item = self._first.post_item(new)
        self._place(new.item_id)
        return item

    def change_item(self, item_id: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Changes an item."""
        item = self._having(item_id).change_item(item_id, given)
        self._place(item_id)
        return item

    def delete_item(self, item_id: str) -> None:
        """Removes an item from every run."""
        self._having(item_id).delete_item(item_id)

    def tree(self, prefix: Sequence[int]) -> dict[str, Any]:
        """Returns what follows a prefix of semantic IDs of the first run."""
        return self._first.tree(prefix)

    def attributes(self) -> dict[str, dict[str, int]]:
        """Returns the commonest values of attributes of the first run's items."""
        return self._first.attributes()

    def quality(self) -> dict[str, Any]:
        """Returns metrics of the first run."""
        return self._first.quality()

    def add(self, events: Sequence[Event]) -> tuple[int, list[str]]:
        """Keeps events, all or none; returns how many were new, and the ids of items that no run has."""
        added, unknown = self._store.add(events), {event.item_id: None for event in events}
        for pipeline in self._now.pipelines:
            unknown = dict.fromkeys(pipeline.unknown(list(unknown)))
        return added, list(unknown)

    def show(self, impressions: Sequence[Impression]) -> None:
        """Keeps answers."""
        self._store.show(impressions)

    def forget(self, user_id: str) -> None:
        """Removes all that is kept of a user, for good."""
        times = [event.time for event in self._store.events([user_id])]  # by clocks that may be ahead
        self._store.forget(user_id, max([int(time.time() * SECOND_US), *times]))

    def state(self) -> dict[str, Any]:
        """Returns which runs are served and how their answers fare; see `serving.api.runs.Runs`."""
        now, alive = self._now, reports(self._store, self._start)
        tallies = self._tallies(now.kept.rollout.since)
        rates = [rate(tallies.get(pipeline.run, Tally())) for pipeline in now.pipelines]
        runs = []
        for part, pipeline, own in zip(now.kept.rollout.runs, now.pipelines, rates, strict=True):
            tally = tallies.get(pipeline.run, Tally())
            beside = difference(rates[0], own) if rates[0] and own and pipeline is not now.pipelines[0] else None
            counts = {"users": tally.users, "answers": tally.answers, "acted": tally.acted}
            about = {"run": pipeline.run, "share": part.share, "shadow": part.shadow, "items": pipeline.items}
            runs.append({**about, **counts, "rate": _plain(own), "difference": _plain(beside)})
        ready = sum(report.serves == now.kept.version for report in alive)
        return {
            "runs": runs,
            "since": now.kept.rollout.since / SECOND_US,
            "replicas": {"alive": len(alive), "serving": ready},
            "warning": self.warning,
        }

    @property
    def _first(self) -> Pipeline:
        return self._now.pipelines[0]

    def _having(self, item_id: str) -> Pipeline:
        return next((each for each in self._now.pipelines if not each.unknown([item_id])), self._first)

    def _signed(self, answer: Answer, now: Now, place: int) -> Answer:
        return replace(answer, run=now.pipelines[place].run, since=now.kept.rollout.since)

    def _tallies(self, since: int) -> dict[str, Tally]:
        """Returns what the store has counted, at most a few seconds ago: the page asks again and again."""
        counted, of, found = self._counted
        if of != since or time.monotonic() - counted > COUNT_S:
            found = self._store.tallies(since)
            self._counted = (time.monotonic(), since, found)
        return found

    def _loaded(self, kept: Kept, known: Mapping[str, Pipeline]) -> Now:
        """Returns what a rollout is to be answered from; runs that are known are taken as they are."""
        return Now(kept, tuple(known.get(part.run) or self._open(part.run) for part in kept.rollout.runs))

    def _again(self, work: Callable[[], None], seconds: float) -> None:
        away = False
        while not self._ended.wait(seconds):
            try:
                work()
                away = False
            except Exception:  # the store may be away for a while
                if not away:
                    LOG.exception("What is to be served cannot be read or told: this replica goes on as it is.")
                away = True

    def _follow(self) -> None:
        if self._look():
            self._report()

    def _look(self) -> bool:
        """Takes what is to be served by now, if that is something else; says whether it was."""
        kept, now = read(self._store), self._now
        if kept is None or kept.rollout.start != self._start:
            return False
        again = kept.version != now.kept.version and time.monotonic() - self._tried > RETRY_S
        if kept.version == self._looked and not again:
            return False
        try:
            self._now, self._problem = self._next(kept, now), None
        except StoreError:  # the next look is soon enough
            raise
        except Exception as error:  # whatever it is, what is served goes on
            self._problem = str(error) if isinstance(error, UserError) else f"A run cannot be loaded ({error!r:.300})."
            LOG.exception("The runs of before are served: %s", self._problem)
        self._looked, self._tried = kept.version, time.monotonic()
        return True

    def _next(self, kept: Kept, now: Now) -> Now:
        known = {}
        for part, pipeline in zip(now.kept.rollout.runs, now.pipelines, strict=True):
            if pipeline.current():
                known[part.run] = pipeline
        fresh = [part.run for part in kept.rollout.runs if part.run not in known]
        for run in fresh:
            self._prepare(run)
        following = self._loaded(kept, known)
        for part, pipeline in zip(kept.rollout.runs, following.pipelines, strict=True):
            if part.run in fresh:
                pipeline.posted.adopt()
                check_answers(part.run, pipeline)
        return following

    def _place(self, item_id: str) -> None:
        """Gives an item that is written its place in the other run; what goes wrong there is tried again beside."""
        with suppress(StoreError):
            self._adopt(item_id)

    def _adopt(self, item_id: str | None = None) -> None:
        for pipeline in self._now.pipelines:
            pipeline.posted.adopt(item_id)

    def _report(self) -> None:
        report = Report(
            time=time.time(),
            start=self._start,
            serves=self._now.kept.version,
            looked=self._looked,
            problem=self._problem,
        )
        self._store.keep_note(self._name, report.model_dump_json())


def _plain(found: Rate | None) -> dict[str, float] | None:
    return None if found is None else found._asdict()
