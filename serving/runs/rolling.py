"""What a service serves, changed while it answers: a new run in place of the one before, beside it, or back again.

Nothing is changed before the new run has been loaded and asked its first queries here, and nothing stays changed where
a replica cannot load it; `serving.runs.side_by_side` says how replicas follow.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from serving.pipeline import Pipeline
from serving.runs.opening import check_answers, open_run
from serving.runs.rollout import Kept, Part, Report, Rollout, read, reports, write
from serving.settings import check_servable
from serving.stores.base import LoadableStore
from serving.stores.opening import open_store
from storage import files
from storage.errors import UserError

LOOK_S = 0.5  # between two looks at what the replicas tell
FASTER = "Somebody else has rolled meanwhile: see GET /v1/runs, and try again."
Tell = Callable[[str], None]


def roll(
    run: str,
    store_uri: str,
    fill: Callable[[], None],
    tell: Tell,
    *,
    share: float | None = None,
    shadow: bool = False,
    wait: float = 600.0,
) -> None:
    """Serves a run: in place of those of now, beside the first of them to a share of the users, or in its shadow.

    Args:
        run: URI of the run directory.
        store_uri: of the service's store.
        fill: puts the run's users into the store, once the run is known to be sound.
        tell: called with lines that say what happens.
        share: of the users, above 0 and below 1; None for all.
        shadow: whether the run answers in the shadow of the first one.
        wait: seconds until all replicas have to serve it.

    Raises:
        UserError: the run cannot be served, a replica cannot load it, or somebody else has rolled meanwhile; then all
            is served as before.
    """
    root = files.absolute(run)
    store, kept = _opened(store_uri)
    try:
        new = kept.rollout.rolled(root, share=share, shadow=shadow)
        check_servable(root)
        pipeline = open_run(root, store)
        check_answers(root, pipeline)
        tell(f"roll: {root} is loaded and answers")
        fill()
        _adopt(pipeline, tell)
        del pipeline
        _follow(store, kept, new, tell, wait)
    finally:
        store.close()


def roll_back(store_uri: str, tell: Tell, *, wait: float = 600.0) -> None:
    """Serves what was served before; see `roll`.

    Raises:
        UserError: as `roll` does, or there is nothing to go back to.
    """
    store, kept = _opened(store_uri)
    try:
        new = kept.rollout.back()
        for part in new.runs:
            check_servable(part.run)
        _follow(store, kept, new, tell, wait)
    finally:
        store.close()


def _opened(uri: str) -> tuple[LoadableStore, Kept]:
    store = open_store(uri)
    kept = read(store)
    if kept is None:
        store.close()
        raise UserError(
            "No service has used this store yet: start one with `tesserec serve`, or name in --store the one it uses."
        )
    return store, kept


def _adopt(pipeline: Pipeline, tell: Tell) -> None:
    if posted := pipeline.posted.adopt():
        tell(f"roll: {posted} posted items have their places in the run")
    if waiting := pipeline.posted.waiting:
        tell(f"roll: {waiting} posted items found no place in it (the log says why): the service tries again")


def _follow(store: LoadableStore, kept: Kept, new: Rollout, tell: Tell, wait: float) -> None:
    """Writes what is to be served, and waits until all replicas serve it; puts it back where one cannot."""
    written = write(store, new, version=kept.version)
    if written is None:
        raise UserError(FASTER)
    try:
        replicas = _awaited(partial(reports, store, new.start), written.version, wait)
    except BaseException:  # Ctrl-C, too
        write(store, kept.rollout, version=written.version)
        raise
    store.drop_tallies(kept.rollout.since)
    shown = " and ".join(map(_shown, new.runs))
    tell(f"roll: {replicas} replicas serve {shown}" if replicas else f"roll: what starts next serves {shown}")


def _awaited(look: Callable[[], list[Report]], version: int, wait: float) -> int:
    """Returns how many replicas serve a version, once all do that are alive.

    Raises:
        UserError: one cannot, or has not for too long.
    """
    end = time.monotonic() + wait
    while True:
        alive = look()
        for report in alive:
            if report.looked >= version and report.serves != report.looked and report.problem:
                raise UserError(f"A replica cannot serve it, so all is served as before: {report.problem}")
        missing = sum(report.serves < version for report in alive)
        if not missing:
            return len(alive)
        if time.monotonic() > end:
            raise UserError(
                f"{missing} of {len(alive)} replicas have not loaded it after {wait:g} seconds, so all is served as "
                "before: give them longer with --wait."
            )
        time.sleep(LOOK_S)


def _shown(part: Part) -> str:
    return f"{part.run} (in its shadow)" if part.shadow else f"{part.run} ({part.share:.4g} of the users)"
