"""What every request passes on its way to a route: its id, its key, its limits, its line in the log."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from contextlib import nullcontext

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api import logs
from serving.api.errors import ApiError, as_response, unavailable
from serving.api.metrics import Metrics
from serving.api.security import Keys
from serving.api.work import Work
from serving.settings import Settings

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class Guard:
    """ASGI middleware around the routes; nothing but an answer leaves it."""

    def __init__(self, app: ASGIApp, *, settings: Settings, keys: Keys, metrics: Metrics, work: Work) -> None:
        self._app, self._settings, self._keys, self._metrics, self._work = app, settings, keys, metrics, work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given, began = headers.get("x-request-id", ""), time.perf_counter()
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state = scope["state"] = {**scope.get("state", {}), "request_id": request_id}
        status, error = 0, None

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                known = MutableHeaders(scope=message)
                known["X-Request-Id"], known["X-Content-Type-Options"] = request_id, "nosniff"
            await send(message)

        try:
            await self._pass(scope, headers, receive, answer)
        except Exception as unforeseen:  # noqa: BLE001 - a client learns nothing of it but the id under which the log has it
            refusal = unforeseen if isinstance(unforeseen, ApiError) else None
            error = None if refusal else logs.where(unforeseen)
            if not status:  # else the answer is under way, and all that can be done is to end it
                failed = ApiError(500, "internal", "The service failed; its log has more under this request_id.")
                await as_response(refusal or failed, request_id)(scope, receive, answer)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "none")  # a path may hold an id
            method = scope["method"] if scope["method"] in METHODS else "other"
            run = state.get("run", self._metrics.run)
            self._metrics.request(route, method, status, seconds, run)
            logs.line(
                logging.ERROR if error else logging.INFO,
                request_id=request_id,
                method=method,
                route=route,
                status=status,
                ms=round(1e3 * seconds, 1),
                run=run,
                recommendation_id=state.get("recommendation_id"),
                error=error,
            )

    async def _pass(self, scope: Scope, headers: Headers, receive: Receive, answer: Send) -> None:
        most, size = self._settings.max_body_bytes, 0
        large = ApiError(413, "too_large", f"Send at most {most:,} bytes.")

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > most:
                raise large
            return message

        self._keys.check(scope["method"], scope["path"], headers.get("authorization"))
        if (length := headers.get("content-length", "")).isdecimal() and int(length[:20]) > most:
            raise large
        with self._work.admitted() if scope["path"].startswith("/v1/") else nullcontext():
            try:
                async with asyncio.timeout(self._settings.timeout_seconds):
                    await self._app(scope, limited, answer)
            except TimeoutError as error:
                seconds = self._settings.timeout_seconds
                raise unavailable(
                    "timeout", f"The answer takes more than {seconds:g} seconds: ask for less."
                ) from error
