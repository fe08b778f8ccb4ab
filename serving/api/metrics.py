"""What Prometheus reads: requests by route, answers by recommender, and the run that gave them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE

from serving.query import Answer

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

__all__ = ["CONTENT_TYPE", "Metrics"]


class Metrics:
    """Counters of one application, in a registry of its own.

    Args:
        runs: tells the names and fingerprints of the runs that are served, of which one is a label of everything; the
            first one's where no other is said.
        under_way: tells how many requests are under way.
    """

    def __init__(self, runs: Callable[[], Sequence[str]], under_way: Callable[[], int]) -> None:
        self._runs, self._registry = runs, (kept := CollectorRegistry())
        self._requests = Counter("tesserec_requests", "Requests", ("route", "method", "status", "run"), registry=kept)
        self._seconds = Histogram(
            "tesserec_request_seconds", "Time of requests", ("route", "run"), buckets=SECONDS, registry=kept
        )
        self._answers = Counter("tesserec_answers", "Answers", ("route", "source", "run"), registry=kept)
        self._items = Counter(
            "tesserec_answer_items", "Items, by who found them", ("route", "recommender", "run"), registry=kept
        )
        self._events = Counter("tesserec_events", "Events that were sent, by type", ("type", "run"), registry=kept)
        self._written = Counter(
            "tesserec_items", "Items that were written, by what was done", ("what", "run"), registry=kept
        )
        self._lost = Counter("tesserec_impressions_lost", "Answers that are not in the store", ("run",), registry=kept)
        Gauge("tesserec_requests_under_way", "Requests under way", registry=kept).set_function(under_way)
        self._shadowed = Counter(
            "tesserec_shadow_items", "Items that were shown while a run answered unseen", ("run",), registry=kept
        )
        self._same = Counter(
            "tesserec_shadow_same_items", "Of these, items that it would have shown, too", ("run",), registry=kept
        )
        self._unasked = Counter(
            "tesserec_shadow_lost", "Queries that a run in the shadow has not answered", ("run",), registry=kept
        )
        self._served = Gauge("tesserec_run_info", "The runs that are served", ("run",), registry=kept)

    @property
    def run(self) -> str:
        """The first of the runs that are served."""
        return self._runs()[0]

    def request(self, route: str, method: str, status: int, seconds: float, run: str | None = None) -> None:
        """Counts a request."""
        self._requests.labels(route, method, status, run or self.run).inc()
        self._seconds.labels(route, run or self.run).observe(seconds)

    def answer(self, route: str, answer: Answer) -> None:
        """Counts an answer and its items; an item that two recommenders found counts for both."""
        self._answers.labels(route, answer.source, answer.run).inc()
        for item in answer.items:
            for name in item.recommenders:
                self._items.labels(route, name, answer.run).inc()

    def shadow(self, shown: Answer, unseen: Answer) -> None:
        """Counts an answer that was not shown, beside the one that was."""
        ids = {item.item_id for item in shown.items}
        self._shadowed.labels(unseen.run).inc(len(ids))
        self._same.labels(unseen.run).inc(len(ids & {item.item_id for item in unseen.items}))

    def unasked(self, queries: int) -> None:
        """Counts queries that the run in the shadow has not answered."""
        self._unasked.labels(self._runs()[-1]).inc(queries)

    def events(self, kinds: Sequence[str]) -> None:
        """Counts events by their types."""
        for kind in kinds:
            self._events.labels(kind, self.run).inc()

    def item(self, what: str) -> None:
        """Counts an item that was `posted`, `changed` or `deleted`."""
        self._written.labels(what, self.run).inc()

    def lost(self, impressions: int) -> None:
        """Counts answers that could not be kept."""
        self._lost.labels(self.run).inc(impressions)

    def text(self) -> bytes:
        """Returns all of it in the format of Prometheus."""
        self._served.clear()
        for run in self._runs():
            self._served.labels(run).set(1)
        return generate_latest(self._registry)
