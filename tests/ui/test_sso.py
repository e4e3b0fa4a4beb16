"""Single sign-on: deploy/sso.py with a small OpenID Connect provider, in a real api-server."""

import base64
import contextlib
import hashlib
import importlib.util
import json
import os
import secrets
import signal
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import rsa

from testing.airflow_processes import START_SECONDS, Deployment, interrupt_with_parent
from testing.project import PROJECT
from testing.targets import free_port

pytestmark = [pytest.mark.ui, pytest.mark.long, pytest.mark.timeout(900)]

if importlib.util.find_spec("authlib") is None:
    pytest.skip("needs make setup-sso", allow_module_level=True)

CLIENT, SECRET = "airflow", "s3cr3t-of-the-client"
FAB = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"


class Provider(ThreadingHTTPServer):
    """An OpenID Connect provider with the authorization code flow and PKCE. Everybody who comes is `claims`."""

    def __init__(self) -> None:
        self.claims: dict[str, Any] = {}
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.codes: dict[str, dict[str, str]] = {}
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urllib.parse.urlsplit(self.path)
                if url.path == "/authorize":
                    asked = dict(urllib.parse.parse_qsl(url.query))
                    code = secrets.token_urlsafe(16)
                    provider.codes[code] = asked
                    back = urllib.parse.urlencode({"code": code, "state": asked["state"]})
                    self.send_response(302)
                    self.send_header("Location", f"{asked['redirect_uri']}?{back}")
                    self.end_headers()
                elif url.path == "/jwks":
                    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(provider.key.public_key()))
                    self.answer({"keys": [{**public, "kid": "1", "use": "sig", "alg": "RS256"}]})
                else:
                    self.answer(provider.metadata())

            def do_POST(self) -> None:
                sent = dict(urllib.parse.parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
                asked = provider.codes.pop(sent["code"])
                digest = hashlib.sha256(sent["code_verifier"].encode()).digest()
                assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == asked["code_challenge"]
                basic = base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode()
                assert basic == f"{CLIENT}:{SECRET}"
                now = int(time.time())
                fixed = {"iss": provider.url, "aud": CLIENT, "sub": "1", "iat": now, "exp": now + 300}
                token = fixed | {"nonce": asked["nonce"]} | provider.claims
                signed = jwt.encode(token, provider.key, "RS256", headers={"kid": "1"})
                self.answer({"access_token": "opaque", "token_type": "Bearer", "id_token": signed})

            def answer(self, body: Any) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def metadata(self) -> dict[str, Any]:
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/jwks",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic"],
            "code_challenge_methods_supported": ["S256"],
        }


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    provider = Provider()
    threading.Thread(target=provider.serve_forever, daemon=True).start()
    yield provider
    provider.shutdown()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, provider: Provider) -> Iterator[str]:
    deployment = Deployment(tmp_path_factory.mktemp("sso"))
    port = free_port()
    env = deployment.env | {
        "AIRFLOW__CORE__AUTH_MANAGER": FAB,
        "AIRFLOW__FAB__CONFIG_FILE": str(PROJECT / "deploy" / "sso.py"),
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "OIDC_ISSUER": provider.url,
        "OIDC_CLIENT_ID": CLIENT,
        "OIDC_CLIENT_SECRET": SECRET,
        "OIDC_ROLES": json.dumps({"readers": "Viewer", "on-call": "Op"}),
    }
    Path(env["AIRFLOW_HOME"]).mkdir()
    person = ["--firstname", "A", "--lastname", "B", "--email", "admin@localhost", "--password", "pw-of-admin"]
    for command in (["db", "migrate"], ["users", "create", "--username", "admin", "--role", "Admin", *person]):
        subprocess.run(["airflow", *command], env=env, cwd=PROJECT, check=True, capture_output=True)
    log = (deployment.root / "api-server.log").open("wb")
    process = subprocess.Popen(
        ["airflow", "api-server"],
        env=env,
        cwd=PROJECT,
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=interrupt_with_parent,
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                if requests.get(f"http://127.0.0.1:{port}/api/v2/version", timeout=60).status_code == 200:
                    break
            assert process.poll() is None and time.monotonic() < deadline, "the api-server did not start"
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def log_in(url: str, provider: Provider, **claims: Any) -> requests.Session:
    """Go through the login as a browser does: Airflow, provider, Airflow."""
    provider.claims = {"email": "ann@example.com", "email_verified": True, "given_name": "Ann", **claims}
    browser = requests.Session()
    browser.headers["Accept"] = "text/html"
    browser.get(f"{url}/auth/login/oidc?next={urllib.parse.quote(url + '/', safe='')}", timeout=60)
    return browser


def status(browser: requests.Session, url: str, method: str = "GET", path: str = "/warehouse/api/releases") -> int:
    return browser.request(method, f"{url}{path}", headers={"Accept": "application/json"}, timeout=60).status_code


def wait_for(expected: int, browser: requests.Session, url: str) -> None:
    """Airflow knows a user's roles for up to 30 s."""
    deadline = time.monotonic() + 60
    while (found := status(browser, url, "GET", "/api/v2/connections")) != expected:
        assert time.monotonic() < deadline, found
        time.sleep(1)


def test_groups_of_the_provider_give_roles_and_leaving_one_takes_it_away(url: str, provider: Provider) -> None:
    assert status(requests.Session(), url) == 401
    viewer = log_in(url, provider, groups=["readers", "something-else"])
    assert status(viewer, url) == 200 and status(viewer, url, "GET", "/api/v2/connections") == 403
    wait_for(200, log_in(url, provider, groups=["on-call"]), url)
    left = log_in(url, provider, groups=["readers"])
    wait_for(403, left, url)
    assert status(left, url) == 200


@pytest.mark.parametrize(
    "claims",
    [
        {"groups": [], "email": "none@example.com"},
        {"groups": ["Admin"], "email": "admins@example.com"},
        {"groups": ["on-call"], "email_verified": False, "email": "new@example.com"},
        {"groups": ["on-call"], "email": "admin"},
        {"groups": ["on-call"], "email": ""},
        {"groups": ["on-call"], "email": "new@example.com", "aud": "another-application"},
        {"groups": ["on-call"], "email": "new@example.com", "iss": "https://elsewhere.example.com"},
        {"groups": ["on-call"], "email": "new@example.com", "exp": 1},
        {"groups": ["on-call"], "email": "new@example.com", "nonce": "replayed"},
    ],
)
def test_others_get_in_nowhere(url: str, provider: Provider, claims: dict[str, Any]) -> None:
    browser = log_in(url, provider, **claims)
    assert status(browser, url) in (401, 403)
    assert status(browser, url, "GET", "/api/v2/connections") in (401, 403)


def test_a_token_signed_by_somebody_else_is_refused(url: str, provider: Provider) -> None:
    kept = provider.key
    provider.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = kept.public_key()
    try:
        original = jwt.algorithms.RSAAlgorithm.to_jwk
        jwt.algorithms.RSAAlgorithm.to_jwk = staticmethod(lambda _: original(public))  # what the provider publishes
        browser = log_in(url, provider, groups=["on-call"], email="new@example.com")
    finally:
        jwt.algorithms.RSAAlgorithm.to_jwk = staticmethod(original)
        provider.key = kept
    assert status(browser, url) in (401, 403)


def test_the_login_page_offers_the_provider_and_no_password(url: str, provider: Provider) -> None:
    page = requests.get(f"{url}/auth/login/", headers={"Accept": "text/html"}, timeout=60)
    assert page.status_code == 200 and 'type="password"' not in page.text
    # Scripts log in with the password of a local user, which remains.
    body = {"username": "admin", "password": "pw-of-admin"}
    assert requests.post(f"{url}/auth/token", json=body, timeout=60).status_code == 201
