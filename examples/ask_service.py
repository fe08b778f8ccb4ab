"""Ask a running service for recommendations.

    tesserec serve runs/demo                          # in one terminal
    python examples/ask_service.py --user user-748393 # in another

Without --user the service is asked on behalf of a visitor who has liked the items given by --liked, oldest first.
"""

from __future__ import annotations

import argparse
from typing import Any

import httpx


def recommend(client: httpx.Client, *, user_id: str | None = None, liked: list[str], k: int) -> dict[str, Any]:
    """Ask for k items: for a user of the log by id, or for anyone by the items that they liked."""
    who = {"history": liked} if user_id is None else {"user_id": user_id}
    answer = client.post("/v1/recommend", json={**who, "k": k})
    if answer.status_code >= 400:
        raise SystemExit(f"The service refused the request: {answer.json()['error']['message']}")
    return dict(answer.json())


def main() -> None:
    """Print the items, and all that is known of the first one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--user", help="user_id of the log")
    parser.add_argument("--liked", nargs="*", default=[], help="item ids, oldest first")
    parser.add_argument("-k", type=int, default=5)
    arguments = parser.parse_args()
    with httpx.Client(base_url=arguments.url, timeout=10) as client:
        ready = client.get("/readyz").raise_for_status().json()
        print(f"{ready['items']} items, {ready['users']} users")
        found = recommend(client, user_id=arguments.user, liked=arguments.liked, k=arguments.k)
        print(f"candidates from {found['source']}")
        for item in found["items"]:
            print(f"{item['score']:.3f}  {item['item_id']}  {item['title'] or ''}  {item['sid']}")
        if found["items"]:
            first = client.get(f"/v1/items/{found['items'][0]['item_id']}").raise_for_status().json()
            print(f"first of them: {first['caption'] or first['description'] or 'no text'}")


if __name__ == "__main__":
    main()
