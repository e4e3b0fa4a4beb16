"""Nothing is served before the login, whatever guards itself or forgets to: pages, API descriptions, plugins' files."""

from typing import TYPE_CHECKING
from urllib.parse import urlencode

from airflow.plugins_manager import AirflowPlugin

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

# The login with its files, and the API of the tasks, which have tokens of their own.
OPEN_FOLDERS = ("/auth/", "/execution/")
OPEN = {"/api/v2/auth/login", "/api/v2/auth/logout", "/api/v2/monitor/health", "/api/v2/version"}


class LoginFirst:
    """Answer 401 to who is not logged in, and lead browsers to the login page."""

    def __init__(self, app: "ASGIApp") -> None:
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Handle one connection."""
        # Here, as every task process imports the plugins.
        from airflow.api_fastapi.core_api.security import get_user
        from fastapi import HTTPException
        from fastapi.security import HTTPBearer
        from starlette.requests import Request
        from starlette.responses import JSONResponse, RedirectResponse, Response

        if scope["type"] == "http":
            root = scope.get("root_path", "")
            path = scope["path"].removeprefix(root)
            if path not in OPEN and not path.startswith(OPEN_FOLDERS):
                request = Request(scope)
                try:
                    await get_user(request, None, await HTTPBearer(auto_error=False)(request))
                except HTTPException as refused:
                    response: Response = JSONResponse({"detail": refused.detail}, refused.status_code)
                    if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
                        response = RedirectResponse(f"{root}/api/v2/auth/login?{urlencode({'next': request.url})}", 303)
                    return await response(scope, receive, send)
        return await self.app(scope, receive, send)


class LoginFirstPlugin(AirflowPlugin):
    """Put the login before everything."""

    name = "login_first"
    fastapi_root_middlewares = [{"name": "login first", "middleware": LoginFirst}]  # noqa: RUF012
