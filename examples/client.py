"""A client of the service in one file: copy it into your project, it needs httpx alone.

    tesserec serve runs/demo                     # in one terminal
    python examples/client.py --user user-748393 # in another

    with Client("http://127.0.0.1:8000", key="…") as service:
        page = service.recommend(user_id="ann", k=5, where={"attribute": "colour", "in": ["red"]})
        shown = page["items"][0]["item_id"]
        service.event("ann", shown, "like", recommendation_id=page["recommendation_id"])

What got no answer (a dying replica, a time-out, a full service) is sent once more after `Retry-After`. That is safe:
events carry an id, under which they are kept once; of an item that is there already the second time, the client returns
what the service has; what is deleted already counts as deleted.

Without --user the service is asked on behalf of a visitor who has liked the items given by --liked, oldest first.
"""

from __future__ import annotations

import argparse
import base64
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

LOST = (500, 502, 503, 504)  # the service or a proxy says that there is no answer; what was asked may be done
CONFLICT, MISSING = 409, 404
ITEMS = "/v1/items"
MOST_SECONDS = 10.0  # that a retry waits, whatever the service asks for


class ServiceError(Exception):
    """The service refused a request; the message is its own sentence.

    Attributes:
        status: of HTTP.
        code: stable word for the kind of error, such as `invalid` or `not_found`.
        request_id: under which the service's log has the request.
    """

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(error.get("message", f"status {status}"))
        self.status, self.code, self.request_id = status, error.get("code", ""), error.get("request_id", "")


class Client:
    """Asks a service and tells it what users do; answers are the JSON of `/docs` as dictionaries.

    One client may serve many threads. All calls raise `ServiceError` if the service refuses, and `httpx.TransportError`
    if it cannot be reached twice.
    """

    def __init__(self, url: str, *, key: str | None = None, timeout_s: float = 10.0) -> None:
        """Takes the address of the service, and a key where it wants one."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def recommend(self, **query: Any) -> dict[str, Any]:
        """Returns items for a `user_id` or a `history`; k, where, exclude, negative, recommenders, explain, cursor."""
        return self._ask("POST", "/v1/recommend", query)

    def pages(self, **query: Any) -> Iterator[dict[str, Any]]:
        """Yields answers of `recommend`, page after page, without an item twice."""
        while True:
            page = self.recommend(**query)
            yield page
            if page["cursor"] is None:
                return
            query["cursor"] = page["cursor"]

    def rank(self, items: Sequence[str], **who: Any) -> dict[str, Any]:
        """Returns items in the order in which a `user_id` or who has a `history` would like them."""
        return self._ask("POST", "/v1/rank", {"items": list(items), **who})

    def similar(self, *, picture: Path | None = None, **query: Any) -> dict[str, Any]:
        """Returns items like a picture's file, like `items`, or like a `text`; k, where."""
        return self._ask("POST", "/v1/similar", {**query, **_picture(picture)})

    def search(self, text: str, **query: Any) -> dict[str, Any]:
        """Returns the items whose texts are nearest to a text; k, where."""
        return self._ask("POST", "/v1/search", {"text": text, **query})

    def item(self, item_id: str) -> dict[str, Any]:
        """Returns what the service knows of an item."""
        return self._ask("GET", _path("items", item_id))

    def post_item(self, item_id: str, *, picture: Path | None = None, **fields: Any) -> dict[str, Any]:
        """Posts a new item, of a picture's file, a `uri`, a `title` or a `description` at least; attributes, hidden."""
        return self._ask("POST", ITEMS, {"item_id": item_id, **fields, **_picture(picture)})

    def change_item(self, item_id: str, *, picture: Path | None = None, **fields: Any) -> dict[str, Any]:
        """Changes some fields of an item, such as `hidden`."""
        return self._ask("PATCH", _path("items", item_id), {**fields, **_picture(picture)})

    def delete_item(self, item_id: str) -> None:
        """Removes an item."""
        self._ask("DELETE", _path("items", item_id))

    def event(self, user_id: str, item_id: str, kind: str, **fields: Any) -> dict[str, Any]:
        """Tells what a user did with an item; recommendation_id, timestamp, value, event_id."""
        return self.events([{"user_id": user_id, "item_id": item_id, "type": kind, **fields}])

    def events(self, events: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Tells several events at once; all are kept, or none, and each once."""
        named = [{"event_id": uuid.uuid4().hex, **event} for event in events]
        return self._ask("POST", "/v1/events/batch", {"events": named})

    def forget(self, user_id: str) -> None:
        """Erases all that the service has of a user."""
        self._ask("DELETE", _path("users", user_id))

    def ready(self) -> dict[str, Any]:
        """Returns what is served."""
        return self._ask("GET", "/readyz")

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = self._once(method, path, body)
        if answer is None or answer.status_code in LOST:
            wait = "1" if answer is None else answer.headers.get("Retry-After", "1")
            time.sleep(min(float(wait), MOST_SECONDS))
            answer = self._http.request(method, path, json=body)
            if (method, path, answer.status_code) == ("POST", ITEMS, CONFLICT) and body is not None:
                return self.item(body["item_id"])  # it was the answer that was lost
            if (method, answer.status_code) == ("DELETE", MISSING):
                return {}
            if (method, answer.status_code) == ("PATCH", CONFLICT):  # both were at work; the same change does no harm
                answer = self._http.request(method, path, json=body)
        if answer.is_error:
            kind = answer.headers.get("content-type", "")
            raise ServiceError(
                answer.status_code, answer.json()["error"] if kind.startswith("application/json") else {}
            )
        return dict(answer.json())

    def _once(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response | None:
        try:
            return self._http.request(method, path, json=body)
        except httpx.TransportError:
            return None


def _path(kind: str, name: str) -> str:
    return f"/v1/{kind}/{quote(name, safe='')}"


def _picture(file: Path | None) -> dict[str, str]:
    return {} if file is None else {"picture": base64.b64encode(file.read_bytes()).decode()}


def main() -> None:
    """Prints items for a user or a visitor, and all that is known of the first one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key", help="where the service wants one")
    parser.add_argument("--user", help="user_id of the log")
    parser.add_argument("--liked", nargs="*", default=[], help="item ids, oldest first")
    parser.add_argument("-k", type=int, default=5)
    given = parser.parse_args()
    who = {"history": given.liked} if given.user is None else {"user_id": given.user}
    with Client(given.url, key=given.key) as service:
        try:
            ready = service.ready()
            print(f"{ready['items']} items, {ready['users']} users")
            found = service.recommend(**who, k=given.k)
            print(f"candidates from {found['source']}")
            for item in found["items"]:
                print(f"{item['score']:.3f}  {item['item_id']}  {item['title'] or ''}  {item['sid']}")
            if found["items"]:
                first = service.item(found["items"][0]["item_id"])
                print(f"first of them: {first['caption'] or first['description'] or 'no text'}")
        except ServiceError as error:
            raise SystemExit(f"The service refused the request: {error}") from error


if __name__ == "__main__":
    main()
