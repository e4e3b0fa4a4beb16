"""A client of Airflow's REST API, for the scripts and the tests."""

import json
import urllib.error
import urllib.request
from email.message import Message
from typing import Any


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


OPENER = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))


class Api:
    """An api-server, which need not be up yet.

    Attributes:
        url: its address.
        token: sent with each call; empty before `log_in`.
    """

    def __init__(self, url: str) -> None:
        """Set the address, without a login."""
        self.url = url
        self.token = ""

    def request(self, method: str, path: str, body: object = None, token: str = "") -> tuple[int, bytes]:
        """Send a request; return status and content, also of an error. Redirects are not followed.

        Raises:
            OSError: no response.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body).encode()
        try:
            with OPENER.open(
                urllib.request.Request(self.url + path, data, headers, method=method), timeout=120
            ) as answer:
                return int(answer.status), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Send a request with the token and return the decoded response.

        Raises:
            urllib.error.HTTPError: an error status, with the response's text.
            OSError: no response.
        """
        return self._decoded(path, *self.request(method, path, body, self.token))

    def task_instances(self, run: str) -> list[Any]:
        """Return all task instances of a run, given as its path in the API; Airflow's pages end at 100.

        Raises:
            urllib.error.HTTPError: an error status, such as 404 for no such run.
            OSError: no response.
        """
        found: list[Any] = []
        while True:
            page = self.call("GET", f"{run}/taskInstances?order_by=id&limit=100&offset={len(found)}")
            found += page["task_instances"]
            if not page["task_instances"] or len(found) >= page["total_entries"]:
                return found

    def log_in(self, user: str, password: str) -> None:
        """Fetch a token.

        Raises:
            urllib.error.HTTPError: the password is wrong, or there were too many logins.
            OSError: no response.
        """
        answer = self.request("POST", "/auth/token", {"username": user, "password": password})
        self.token = self._decoded("/auth/token", *answer)["access_token"]

    def _decoded(self, path: str, status: int, content: bytes) -> Any:
        if status >= 300:
            text = content.decode(errors="replace")
            raise urllib.error.HTTPError(self.url + path, status, text, Message(), None)
        return json.loads(content)
