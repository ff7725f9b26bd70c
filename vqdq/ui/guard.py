"""The wall in front of Gradio: what it refuses, no event ever sees.

* Another site's page: a request whose origin is not the studio's own; without a login also a host
  name that is not this computer's, which a hostile name server could point here.
* Files: only what the workspace offers, by its real place (links do not help), and of runs only
  one's own; nothing is fetched from other servers.
* Sizes and rates: of a request's body, of logins, uploads and requests.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vqdq.errors import UserError
from vqdq.jobs.store import Workspace
from vqdq.ui.rates import LOGINS, REQUESTS, UPLOADS, Buckets

MAX_BODY_BYTES = 4 << 20
MAX_UPLOAD_BYTES = 101 << 20  # one file of the size that Gradio takes, and what is around it
LOCAL = ("localhost", "127.0.0.1", "::1")
_FILE = "/file="
_NO_SCRIPT = "sandbox; default-src 'none'; img-src data:; font-src data:; style-src 'unsafe-inline'"
_ACTIVE = (".html", ".htm", ".svg", ".xml", ".xhtml")


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: what is behind it.
        workspace: whose runs are served.
        login: whether people have names.
    """

    def __init__(self, app: ASGIApp, *, workspace: Workspace, login: bool) -> None:
        self._app = app
        self._workspace = workspace
        self._login = login
        self._logins = Buckets(LOGINS)
        self._uploads = Buckets(UPLOADS)
        self._requests = Buckets(REQUESTS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request itself, or hands it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), unquote(scope["path"])
        who = _user(scope, headers) if self._login else None
        refused = self._refusal(scope, headers, path, who)
        if refused is not None:
            await refused(scope, receive, send)
            return
        active = _FILE in path and path.lower().endswith(_ACTIVE)
        await self._app(scope, receive, _marked(send, active=active))

    def _refusal(
        self, scope: Scope, headers: Headers, path: str, who: str | None
    ) -> PlainTextResponse | None:
        host = _name(f"//{headers.get('host', '')}")
        if not self._login and host not in LOCAL:
            return _no(421, "This address is not the studio's. Use localhost, or add a login.")
        origin = headers.get("origin")
        if origin is not None and scope["method"] != "GET" and not _same(origin, headers):
            return _no(403, "Another site asked this.")
        if _FILE in path:
            return self._file(path.split(_FILE, 1)[1], who)
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return None
        return self._size(headers, path) or self._rate(scope, path, who)

    def _size(self, headers: Headers, path: str) -> PlainTextResponse | None:
        length = headers.get("content-length", "")
        if not length.isdigit():
            return _no(411, "The size of the request is not said.")
        most = MAX_UPLOAD_BYTES if path.endswith("/upload") else MAX_BODY_BYTES
        if int(length) > most:
            return _no(413, f"The request is larger than {most >> 20} MB.")
        return None

    def _rate(self, scope: Scope, path: str, who: str | None) -> PlainTextResponse | None:
        client = scope.get("client")
        address = client[0] if client else "unknown"
        name = who or address
        if path.rstrip("/").endswith("/login"):
            wait = self._logins.wait(address)
        elif path.endswith("/upload"):
            wait = self._uploads.wait(name)
        else:
            wait = self._requests.wait(name)
        if not wait:
            return None
        answer = _no(429, f"Too many requests. Try again in {wait:.0f} seconds.")
        answer.headers["Retry-After"] = f"{wait + 1:.0f}"
        return answer

    def _file(self, name: str, who: str | None) -> PlainTextResponse | None:
        """Refuses a file of the workspace that is not this person's, or leads out of it."""
        if "://" in name or "\0" in name:
            return _no(403, "Files of other servers are not fetched.")
        place = Path(name)
        runs = self._workspace.runs_folder
        if not _below(place, runs):
            real = Path(os.path.realpath(place))  # Gradio's own files and uploads it checks itself
            return _no(403, "That is not served.") if _below(real, self._workspace.path) else None
        real = Path(os.path.realpath(place))
        if not _below(real, Path(os.path.realpath(runs))):
            return _no(403, "The file lies outside of the workspace.")
        run = real.relative_to(os.path.realpath(runs)).parts[:1]
        if who is None:
            return None if not self._login else _no(401, "Log in first.")
        if not run or not self._workspace.shown_to(run[0], who):
            return _no(403, "That belongs to another person.")
        return None


def _below(path: Path, folder: Path) -> bool:
    """True for what a path names inside a folder, `..` resolved as text."""
    return Path(os.path.abspath(path)).is_relative_to(folder)


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _same(origin: str, headers: Headers) -> bool:
    """True when the page that asks came from the host that is asked, directly or by a proxy."""
    try:
        asked = urlsplit(origin).netloc
    except ValueError:
        return False
    return asked in (headers.get("host"), headers.get("x-forwarded-host"))


def _user(scope: Scope, headers: Headers) -> str | None:
    """The name behind Gradio's cookie, as Gradio itself looks it up."""
    from starlette.requests import cookie_parser

    app: Any = scope.get("app")
    tokens, cookie = getattr(app, "tokens", {}), getattr(app, "cookie_id", "")
    given = cookie_parser(headers.get("cookie", ""))
    for name in (f"access-token-{cookie}", f"access-token-unsecure-{cookie}"):
        if name in given:
            return tokens.get(given[name])
    return None


def _marked(send: Send, *, active: bool) -> Callable[[Message], Any]:
    """Adds the headers that keep a browser from guessing, framing, telling, and running."""

    async def marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Referrer-Policy"] = "no-referrer"
            if active:
                headers["Content-Security-Policy"] = _NO_SCRIPT
        await send(message)

    return marked


def _no(status: int, words: str) -> PlainTextResponse:
    return PlainTextResponse(f"{words}\n", status_code=status)


def allow_runs(buckets: Buckets, who: str) -> None:
    """Raises `UserError` when somebody starts runs faster than they could ever work."""
    wait = buckets.wait(who)
    if wait:
        raise UserError(
            "too many runs were started at once.",
            where="queue",
            remedy=f"Try again in {max(1, round(wait))} seconds.",
        )
