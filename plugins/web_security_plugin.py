"""Security middleware for every page and API of the api-server, whether or not they protect themselves.

    request ──▶ SecurityHeaders ──▶ GuessLimit ──▶ LoginFirst ──▶ Airflow, its login, plugins

Every task process imports this file, so imports that only the api-server needs are inside the functions.
"""

import asyncio
import ipaddress
import json
import math
import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlencode

from airflow.plugins_manager import AirflowPlugin

if TYPE_CHECKING:
    from fastapi.security import HTTPAuthorizationCredentials
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The login with its static files, and the task API, which has its own tokens.
OPEN_FOLDERS = ("/auth/", "/execution/")
OPEN = {"/api/v2/auth/login", "/api/v2/auth/logout", "/api/v2/monitor/health", "/api/v2/version", "/ready/"}
LOGOUT = re.compile(r"(/api/v2)?/auth/logout/?")

# Where a password is checked: the token APIs of both auth managers, FAB's form, and Flask-AppBuilder's own API.
PASSWORD = re.compile(r"/auth/(token|token/cli|login|api/v1/security/login)/?")
SECONDS = 40.0
# Wrong passwords within that time. A single client cannot lock a user out: it is stopped earlier.
GUESSES_OF_ADDRESS, GUESSES_OF_USER = 5, 20
MAX_LOGIN_BYTES = 10_000

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
}
# Airflow's pages create styles and a worker at run time and compile the SQL formatter; FAB's have inline scripts.
_POLICY = (
    "default-src 'self'; script-src 'self' {}; style-src 'self' 'unsafe-inline'; worker-src 'self' blob:; "
    "img-src 'self' data:; font-src 'self' data:; object-src 'none'; frame-ancestors 'self'; base-uri 'self'; "
    "form-action 'self'"
)
AIRFLOW_POLICY = _POLICY.format("'wasm-unsafe-eval'")
LOGIN_POLICY = _POLICY.format("'unsafe-inline'")


def _path(scope: "Scope") -> str:
    """Return the path as in Airflow's routes, without the path of `[api] base_url`."""
    root = scope.get("root_path", "")
    path = str(scope["path"])
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


def _is_for(path: str, routes: re.Pattern[str]) -> bool:
    """Return whether a path matches one of the routes; Flask collapses repeated slashes."""
    return routes.fullmatch(re.sub("/+", "/", path)) is not None


class LoginFirst:
    """Answer 401 without a login, redirect browsers to the login page, and keep other sites from logging users out."""

    def __init__(self, app: "ASGIApp") -> None:
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Handle one connection."""
        from airflow.api_fastapi.core_api.security import get_user
        from fastapi import HTTPException
        from fastapi.security import HTTPBearer
        from starlette.requests import Request
        from starlette.responses import JSONResponse, RedirectResponse, Response

        if scope["type"] == "http":
            path = _path(scope)
            request = Request(scope)
            if _is_for(path, LOGOUT) and request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
                refusal = JSONResponse({"detail": "Another site requested this logout."}, 403)
                return await refusal(scope, receive, send)
            if path not in OPEN and not path.startswith(OPEN_FOLDERS):
                try:
                    credentials = await HTTPBearer(auto_error=False)(request)
                    if not await _has_token(request, path, credentials):
                        await get_user(request, None, credentials)
                except HTTPException as refused:
                    response: Response = JSONResponse({"detail": refused.detail}, refused.status_code)
                    if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
                        login = f"{scope.get('root_path', '')}/api/v2/auth/login"
                        response = RedirectResponse(f"{login}?{urlencode({'next': request.url})}", 303)
                    return await response(scope, receive, send)
        return await self.app(scope, receive, send)


async def _has_token(request: "Request", path: str, credentials: "HTTPAuthorizationCredentials | None") -> bool:
    """Return whether a request to the Warehouse section has one of its tokens, and leave there whose it is.

    Raises:
        HTTPException: the token is not valid.
    """
    if credentials is None or not path.startswith("/warehouse/"):
        return False
    try:
        from warehouse_ui import tokens
    except ImportError:  # the section can be deleted
        return False
    from fastapi import HTTPException
    from starlette.concurrency import run_in_threadpool

    if not credentials.credentials.startswith(tokens.PREFIX):
        return False
    request.state.token_login = await run_in_threadpool(tokens.log_in, credentials.credentials)
    if request.state.token_login is None:
        raise HTTPException(401, "This token is unknown, revoked or expired, or its owner may not log in.")
    return True


class GuessLimit:
    """Answer 429 after too many wrong passwords, per address and per user name; correct ones don't count.

    Each process keeps its own count, in memory.
    """

    def __init__(self, app: "ASGIApp") -> None:
        self.app = app
        self._failures: list[tuple[float, set[str]]] = []
        self._one_at_a_time = asyncio.Lock()  # otherwise many could be in flight before the first fails

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Handle one connection."""
        from starlette.datastructures import Headers
        from starlette.responses import JSONResponse

        if scope["type"] != "http" or scope["method"] != "POST" or not _is_for(_path(scope), PASSWORD):
            return await self.app(scope, receive, send)
        body = await _read(receive)
        if body is None or "multipart" in Headers(scope=scope).get("content-type", "").lower():
            refusal = JSONResponse({"detail": "A login must be short JSON or a form without files."}, 400)
            return await refusal(scope, receive, send)
        address, users = _address(scope), _users(body)
        unread: list[Message] = [{"type": "http.request", "body": body}]
        answer: list[Message] = []

        async def read_again() -> "Message":
            return unread.pop() if unread else await receive()

        async def keep(message: "Message") -> None:
            answer.append(message)

        async with self._one_at_a_time:
            limits = {address: GUESSES_OF_ADDRESS} | dict.fromkeys(users, GUESSES_OF_USER)
            if wait := self._seconds_to_wait(limits):
                detail = {"detail": f"Too many wrong passwords. Try again in {wait} s."}
                await JSONResponse(detail, 429, {"Retry-After": str(wait)})(scope, receive, keep)
            else:
                is_right = False
                try:
                    await self.app(scope, read_again, keep)
                    is_right = _is_right(answer)
                finally:
                    if not is_right:
                        self._failures.append((time.monotonic(), {address, *users}))
        # Outside the lock: a client that doesn't read its answer must not block the others.
        for message in answer:
            await send(message)

    def _seconds_to_wait(self, limits: dict[str, int]) -> int:
        now = time.monotonic()
        self._failures = [one for one in self._failures if one[0] > now - SECONDS]
        wait = 0
        for key, limit in limits.items():
            times = [at for at, keys in self._failures if key in keys]
            if len(times) >= limit:
                wait = max(wait, math.ceil(times[-limit] + SECONDS - now))
        return wait


async def _read(receive: "Receive") -> bytes | None:
    """Return a request's body, or None if it is too long for a login or incomplete."""
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += bytes(message.get("body", b""))
        if len(body) > MAX_LOGIN_BYTES:
            break
        if not message.get("more_body"):
            return body
    return None


def _address(scope: "Scope") -> str:
    """Return a request's client address; for IPv6 the /64 network, which belongs to one customer."""
    host = (scope.get("client") or ("",))[0]
    with suppress(ValueError):
        ip = ipaddress.ip_address(host)
        if isinstance(ip, ipaddress.IPv6Address):
            return str(ip.ipv4_mapped or ipaddress.ip_network((ip, 64), strict=False))
    return str(host)


def _users(body: bytes) -> set[str]:
    """Return the user names in a login, parsed as JSON and as a form: a body can be both, with two names."""
    names = parse_qs(body.replace(b";", b"&").decode(errors="replace")).get("username", [])
    with suppress(ValueError, RecursionError):
        found = json.loads(body)
        if isinstance(found, dict):
            names.append(str(found.get("username")))
    return {f"user {name.strip().casefold()[:256]}" for name in names}


def _is_right(answer: "list[Message]") -> bool:
    """Return whether the password was right: the answer has a token, as JSON or as FAB's cookie."""
    from airflow.api_fastapi.auth.managers.base_auth_manager import COOKIE_NAME_JWT_TOKEN
    from starlette.datastructures import Headers

    headers = Headers(raw=answer[0]["headers"])
    if answer[0]["status"] in (200, 201):
        return headers.get("content-type", "").startswith("application/json")
    return any(one.startswith(f"{COOKIE_NAME_JWT_TOKEN}=") for one in headers.getlist("set-cookie"))


class SecurityHeaders:
    """Add security headers that forbid what no page needs; a page's own headers take precedence."""

    def __init__(self, app: "ASGIApp") -> None:
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Handle one connection."""
        from starlette.datastructures import MutableHeaders

        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        policy = LOGIN_POLICY if _path(scope).startswith("/auth/") else AIRFLOW_POLICY

        async def send_with_headers(message: "Message") -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Content-Security-Policy", policy)
            await send(message)

        return await self.app(scope, receive, send_with_headers)


class WebSecurityPlugin(AirflowPlugin):
    """Installs the middleware in front of everything; the last is the outermost."""

    name = "web_security"
    fastapi_root_middlewares = [  # noqa: RUF012
        {"name": "login first", "middleware": LoginFirst},
        {"name": "guess limit", "middleware": GuessLimit},
        {"name": "security headers", "middleware": SecurityHeaders},
    ]
