"""Who may ask what: bearer keys, of which the service knows digests alone."""

from __future__ import annotations

import hashlib
import hmac
import os
import re

from fastapi.security import HTTPBearer

from serving.api.errors import ApiError
from serving.explorer import FILES
from serving.settings import KEYS, Settings
from storage import files
from storage.errors import UserError

ROLES = ("read", "write", "admin")  # each may do what those before it may
FREE = {"/healthz", "/readyz", "/docs", "/openapi.json", *FILES}  # what needs no key: nothing of the catalogue
NEEDED = {  # or `read`
    ("GET", "/metrics"): "admin",
    ("POST", "/v1/events"): "write",
    ("DELETE", "/v1/users"): "admin",
    **{(method, "/v1/items"): "write" for method in ("POST", "PATCH", "DELETE")},
}
BEARER = HTTPBearer(auto_error=False, description="a key of the service, where it has keys")  # the guard checks it
LINE = re.compile(r"(read|write|admin):([0-9a-f]{64})")


class Keys:
    """The keys of a service; without any, everyone may do everything.

    Args:
        text: lines of `role:sha256`, the digest in hexadecimal; blank lines and lines that begin with # do not count.
        source: where they stand, for errors, which never show a line.

    Raises:
        UserError: a line is no such pair.
    """

    def __init__(self, text: str, source: str) -> None:
        self._digests: list[tuple[str, bytes]] = []
        for number, line in enumerate(text.splitlines(), 1):
            if not (line := line.strip()) or line.startswith("#"):
                continue
            if not (pair := LINE.fullmatch(line)):
                raise UserError(
                    f"Line {number} of {source} is no key: write role:sha256, with {', '.join(ROLES)} as role and 64 "
                    "hexadecimal digits in lower case."
                )
            self._digests.append((pair[1], bytes.fromhex(pair[2])))

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, method: str, path: str, authorization: str | None) -> None:
        """Lets a request pass that may go to a path, and below it.

        Raises:
            ApiError: 401 without a known key, 403 where its role may not.
        """
        if path in FREE or not self._digests:
            return
        scheme, _, key = (authorization or "").partition(" ")
        role = self._role(key.strip()) if scheme.lower() == "bearer" else None
        if role is None:
            ask = "send a key of this service as `Authorization: Bearer KEY`."
            raise ApiError(401, "unauthorized", ask, {"WWW-Authenticate": "Bearer"})
        needed = next((least for (verb, at), least in NEEDED.items() if verb == method and _below(path, at)), "read")
        if ROLES.index(role) < ROLES.index(needed):
            raise ApiError(403, "forbidden", f"{path} needs a key with the role {needed}.")

    def _role(self, key: str) -> str | None:
        """Returns the role of a key, in a time that depends on no digest."""
        given = hashlib.sha256(key.encode("utf-8", "replace")).digest()
        found = [role for role, digest in self._digests if hmac.compare_digest(digest, given)]
        return max(found, key=ROLES.index, default=None)


def _below(path: str, at: str) -> bool:
    return path == at or path.startswith(f"{at}/")


def read_keys(settings: Settings) -> Keys:
    """Reads the keys of a service.

    Raises:
        UserError: the file is missing, a line is no key, or there are none and the service is not to be open.
    """
    if settings.keys is None:
        keys = Keys(os.environ.get(KEYS, ""), KEYS)
    else:
        try:
            keys = Keys(files.read_bytes(settings.keys).decode(), settings.keys)
        except FileNotFoundError as error:
            raise UserError(f"There is no file of keys at {settings.keys}: correct `keys`.") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{settings.keys} is no text with keys: write one role:sha256 a line.") from error
    if not keys and not settings.open:
        raise UserError(
            f"The service has no keys, so that anyone could ask it: put role:sha256 lines into {KEYS} or into a file "
            "that `keys` names, or set `open: true`."
        )
    return keys
