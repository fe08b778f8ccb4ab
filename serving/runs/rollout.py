"""Which runs are served, and to whom: a note in the store, which `tesserec roll` writes and every replica follows."""

from __future__ import annotations

import time
from typing import NamedTuple

from pydantic import Field

from models.common.settings import Settings
from operators.log.events import SECOND_US
from serving.stores.base import NoteStore
from storage.errors import UserError
from storage.hashing import hash_strings

NAME = "served"
REPLICAS = "replica:"  # before the id of a replica
BEAT_S = 5.0  # between two reports of a replica
ALIVE_S = 20.0  # after its last one


class Part(Settings):
    """A run that is served: its URI, the share of users whom it answers, and whether it answers them unseen."""

    run: str
    share: float = Field(1.0, ge=0, le=1)
    shadow: bool = False


class Rollout(Settings):
    """What is served.

    Attributes:
        start: the run that the service's settings name; where they name another by now, this rollout is over.
        runs: one or two, the second beside the first or in its shadow.
        since: when they began to be served so, microseconds; answers are counted from then on.
        before: what was served before.
    """

    start: str
    runs: tuple[Part, ...]
    since: int
    before: tuple[Part, ...] = ()

    def place(self, user_id: str | None) -> int:
        """Returns which of the runs answers a user, always the same; visitors, who cannot be told apart, get the first.

        A hash of the user and of both runs decides: whoever has the second run keeps it as long as its share grows,
        and who has it says nothing of who had the second one of another pair.
        """
        if user_id is None or len(self.runs) == 1 or not self.runs[1].share:
            return 0
        text = "\n".join((*(part.run for part in self.runs), user_id)).encode("utf-8", "replace").decode()
        return int(int(hash_strings([text])[0]) < self.runs[1].share * 2.0**64)

    def rolled(self, run: str, *, share: float | None = None, shadow: bool = False) -> Rollout:
        """Returns what is served once a run is: alone, to a share of the users, or in the shadow of the first one.

        Raises:
            UserError: it would be beside itself.
        """
        first = self.runs[0]
        if share is None and not shadow:
            return self._followed(Part(run=run))
        if run == first.run:
            raise UserError(f"{run} is the first of the runs that are served: name another one to serve beside it.")
        part = 0.0 if share is None else share
        return self._followed(Part(run=first.run, share=1 - part), Part(run=run, share=part, shadow=shadow))

    def back(self) -> Rollout:
        """Returns what was served before; of that, what is served now is `before`.

        Raises:
            UserError: there is nothing to go back to.
        """
        if not self.before:
            raise UserError("There is nothing to roll back to: no other run was served before this one.")
        return self._followed(*self.before)

    def _followed(self, *runs: Part) -> Rollout:
        since = max(int(time.time() * SECOND_US), self.since + 1)
        before = self.before if runs == self.runs else self.runs  # a run that was made anew in its place
        return Rollout(start=self.start, runs=runs, since=since, before=before)


class Report(Settings):
    """What a replica tells of itself.

    Attributes:
        time: of the report, seconds.
        start: the run that its settings name.
        serves: version of the rollout that it serves.
        looked: version that it has seen last; if another than `serves`, `problem` says why it cannot serve that.
    """

    time: float
    start: str
    serves: int
    looked: int
    problem: str | None = None


class Kept(NamedTuple):
    """A rollout and its version."""

    version: int
    rollout: Rollout


def read(store: NoteStore) -> Kept | None:
    """Returns what is served; None where no service has used the store yet."""
    note = store.notes(NAME).get(NAME)
    return None if note is None else Kept(note.version, Rollout.model_validate_json(note.text))


def write(store: NoteStore, rollout: Rollout, *, version: int) -> Kept | None:
    """Writes what is to be served in place of a version; None where others have written meanwhile."""
    kept = store.keep_note(NAME, rollout.model_dump_json(), version=version)
    return Kept(version + 1, rollout) if kept else None


def started(store: NoteStore, start: str) -> Kept:
    """Returns what a service serves whose settings name a run: that, until another one has taken its place."""
    while True:
        kept = read(store)
        if kept is not None and kept.rollout.start == start:
            return kept
        new = Rollout(start=start, runs=(Part(run=start),), since=int(time.time() * SECOND_US))
        if written := write(store, new, version=0 if kept is None else kept.version):
            return written


def reports(store: NoteStore, start: str) -> list[Report]:
    """Returns the newest reports of replicas that are alive and whose settings name a run; removes very old ones."""
    now, found = time.time(), []
    for name, note in store.notes(REPLICAS).items():
        report = Report.model_validate_json(note.text)
        if now - report.time > 100 * ALIVE_S:
            store.drop_note(name)
        elif now - report.time < ALIVE_S and report.start == start:
            found.append(report)
    return found
