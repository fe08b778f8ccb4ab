"""The first queries of a service, asked before anyone else's: what is loaded late is loaded then."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable

from PIL import Image

from serving.api import logs
from serving.api.served import Answering
from serving.query import Query
from storage.errors import UserError

PAUSE_S = 2.0  # until queries are asked again that could not be answered then


def warm_up(served: Answering) -> dict[str, Exception]:
    """Asks one query of each kind; returns what went wrong with which, a UserError where the run has no answer."""
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "white").save(picture, "PNG")
    liked: list[str] = []

    def recommend() -> None:
        (answer,) = served.recommend([Query(history=[], k=2)])
        liked.extend(item.item_id for item in answer.items)
        served.recommend([Query(history=liked, k=2, explain=True)])

    queries: dict[str, Callable[[], object]] = {
        "recommend": recommend,
        "rank": lambda: served.rank(Query(history=liked, k=len(liked)), liked),
        "similar": lambda: served.similar(items=liked, k=2, where=None),
        "similar to a text": lambda: served.similar(text="warm", k=2, where=None),
        "similar to a picture": lambda: served.similar(picture=picture.getvalue(), k=2, where=None),
        "search": lambda: served.search("warm", k=2, where=None),
        "item": lambda: [(served.item(item_id), served.picture(item_id)) for item_id in liked],
        "tree": lambda: served.tree([]),
        "quality": served.quality,
    }
    failed: dict[str, Exception] = {}
    for kind, ask in queries.items():
        try:
            ask()
        except UserError as error:  # of the run, not of a user: its sentence holds none
            logs.line(logging.WARNING, warm_up=kind, cannot=str(error))
            failed[kind] = error
        except Exception as error:  # noqa: BLE001 - the service says that it is not ready
            logs.line(logging.ERROR, warm_up=kind, error=logs.where(error))
            failed[kind] = error
    return failed
