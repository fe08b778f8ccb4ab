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
        run: name and fingerprint of the run, a label of everything: two versions may serve side by side.
        under_way: tells how many requests are under way.
    """

    def __init__(self, run: str, under_way: Callable[[], int]) -> None:
        self.run, self._registry = run, (kept := CollectorRegistry())
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
        Gauge("tesserec_run_info", "The run that is served", ("run",), registry=kept).labels(run).set(1)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self._requests.labels(route, method, status, self.run).inc()
        self._seconds.labels(route, self.run).observe(seconds)

    def answer(self, route: str, answer: Answer) -> None:
        """Counts an answer and its items; an item that two recommenders found counts for both."""
        self._answers.labels(route, answer.source, self.run).inc()
        for item in answer.items:
            for name in item.recommenders:
                self._items.labels(route, name, self.run).inc()

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
        return generate_latest(self._registry)
