"""The explorer: one page over the routes of the service. It is served as it stands here, without a build."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from fastapi import FastAPI, Request, Response

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",  # kept, but asked for again: a new version shows at once
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


FILES = {
    "/" if file.name == "index.html" else f"/{file.name}": file
    for file in sorted(Path(__file__).parent.iterdir())
    if file.suffix in TYPES
}


def mount(api: FastAPI) -> None:
    """Serves the page at `/` and its files beside it, each under its name; nothing else of this folder."""
    for path, file in FILES.items():
        api.add_api_route(path, _answer(file), methods=["GET", "HEAD"], include_in_schema=False)


def _answer(file: Path) -> Callable[[Request], Response]:
    content = file.read_bytes()
    headers = {**HEADERS, "ETag": f'"{sha256(content).hexdigest()[:16]}"'}

    def answer(request: Request) -> Response:
        if headers["ETag"] in request.headers.get("If-None-Match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=TYPES[file.suffix])

    return answer
