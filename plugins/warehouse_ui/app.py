"""The application mounted by the api-server: every route checks permissions, every response has strict headers."""

import contextlib
import hashlib
import logging
import re
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from airflow.api_fastapi.core_api.security import get_user
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException as NotAnswered

from include.errors import storage_errors
from include.settings import in_warehouse
from include.warehouse.errors import WarehouseError
from include.warehouse_catalog.metrics import is_installed
from warehouse_ui import api, downloads, pages
from warehouse_ui.access import is_known, may_read, user_of, within_token

logger = logging.getLogger(__name__)

STATIC = Path(__file__).with_name("static")
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_OTHER = re.compile(r"/w/([a-z_][a-z0-9_]*)(?=/)")
_STRICT = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "frame-ancestors 'self'; base-uri 'none'"
)
# dbt's page is one file with inline scripts, styles and fonts, and compiles its templates. No other host is allowed.
_DBT_DOCS = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "img-src 'self' data:; font-src data:; connect-src 'self'; frame-ancestors 'self'; base-uri 'self'; "
    "form-action 'none'"
)


def create_app(prefix: str, base_path: str) -> FastAPI:
    """Create the application.

    Args:
        prefix: where the api-server mounts it.
        base_path: path of Airflow's base URL, without a trailing slash; usually empty.
    """
    app = FastAPI(
        title="Warehouse",
        version="1",
        description="What the pipeline published, and whether to trust it. Log in as for Airflow's own API.",
        # FastAPI's own pages load a script from another host and require no login.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[within_token, may_read, is_known],
    )
    app.dependency_overrides[get_user] = user_of
    assets = {path.name: path.read_bytes() for path in STATIC.iterdir() if path.suffix in _TYPES}
    version = hashlib.sha256(b"".join(assets[name] for name in sorted(assets))).hexdigest()[:12]
    pages.prepare(base_path, prefix, version)
    app.include_router(pages.router)
    app.include_router(api.router)
    app.include_router(downloads.router)
    if find_spec("mcp"):
        from warehouse_ui import mcp_server

        app.include_router(mcp_server.router)
    if is_installed():
        from warehouse_ui import metrics

        app.include_router(metrics.router)

    @app.get("/api/openapi.json", include_in_schema=False)
    def openapi() -> dict[str, object]:
        return {**app.openapi(), "servers": [{"url": base_path + prefix}]}

    @app.get("/static/{name}", include_in_schema=False)
    def static(name: str, v: str = "") -> Response:
        if name not in assets:
            raise HTTPException(404, "There is no such file.")
        keep = "private, max-age=31536000, immutable" if v == version else "private, max-age=300"
        return Response(assets[name], media_type=_TYPES[Path(name).suffix], headers={"Cache-Control": keep})

    app.middleware("http")(_protect)
    _answer_errors(app, base_path)
    return app


async def _protect(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Answer for the warehouse that the path names, `/w/NAME/...`, and add the headers that every answer has."""
    other = _OTHER.match(get_route_path(request.scope))
    if other:  # what follows is routed as without it
        request.scope["root_path"] = request.scope.get("root_path", "") + other[0]
    try:
        with in_warehouse(other[1]) if other else contextlib.nullcontext():
            answer = await call_next(request)
    except storage_errors() as error:  # an object store that does not answer
        logger.exception("%s", request.url.path)
        answer = _unavailable(request, f"What runs have left behind cannot be read: {' '.join(str(error).split())}")
    own_page = request.url.path.rstrip("/").endswith("/dbt-docs")
    answer.headers.setdefault("Content-Security-Policy", _DBT_DOCS if own_page else _STRICT)
    answer.headers.setdefault("Cache-Control", "no-store")
    answer.headers["X-Content-Type-Options"] = "nosniff"
    answer.headers["Referrer-Policy"] = "same-origin"
    return answer


def _answer_errors(app: FastAPI, base_path: str) -> None:
    """Answer errors as a page or as JSON, as asked for; send a browser without a login to it."""

    @app.exception_handler(NotAnswered)
    async def refuse(request: Request, error: NotAnswered) -> Response:
        if not _wants_page(request):
            return JSONResponse({"detail": error.detail}, error.status_code, error.headers)
        if error.status_code == 401:
            target = quote(str(request.url), safe="")
            return RedirectResponse(f"{base_path}/api/v2/auth/login?next={target}", 302)
        return pages.problem(request, error.status_code, str(error.detail))

    @app.exception_handler(WarehouseError)
    async def unreadable(request: Request, error: WarehouseError) -> Response:
        return _unavailable(request, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        if _wants_page(request):
            return pages.problem(request, 422, "Invalid parameter in this URL.")
        return JSONResponse(
            {"detail": [{key: str(one[key]) for key in ("loc", "msg", "type")} for one in error.errors()]}, 422
        )


def _unavailable(request: Request, reason: str) -> Response:
    if _wants_page(request):
        return pages.problem(request, 503, reason)
    return JSONResponse({"detail": reason}, 503)


def _wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")
