"""Serve the dashboards: set up Superset's metadata and login, import bi/assets, run the web server until it is stopped.

WAREHOUSE_DIR, WAREHOUSE_NAME   the warehouse whose published file is shown
BI_HOME                         generated secrets, logs, and Superset's metadata (or SUPERSET_DATABASE_URI)
BI_HOST, BI_PORT                where to listen (127.0.0.1, 8088)
"""

import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
HOME = Path(os.environ["BI_HOME"]).resolve()
SECRETS = HOME / "secrets.json"
HOST, PORT = os.environ.get("BI_HOST", "127.0.0.1"), os.environ.get("BI_PORT", "8088")
LOG = HOME / "superset.log"


def main() -> int:
    """Set up and serve; what Superset prints goes to BI_HOME/superset.log."""
    HOME.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ.update(environment())
    terminal = os.fdopen(os.dup(1), "w", buffering=1)
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        print("Starting Superset ...", file=terminal)
        from superset.app import create_app

        app = create_app()
        with app.app_context():
            set_up(terminal)
        serve(app, terminal)
    except Exception as error:  # anything: the traceback is in the log, one line is for the terminal
        print(f"error: Superset did not start: {error}; see {LOG}", file=terminal)
        raise
    return 0


def environment() -> dict[str, str]:
    """Return Superset's environment; secrets that are not given are generated once."""
    if SECRETS.exists():
        kept = json.loads(SECRETS.read_text())
    else:
        kept = {"SUPERSET_SECRET_KEY": secrets.token_urlsafe(32), "ADMIN_PASSWORD": secrets.token_urlsafe(16)}
        SECRETS.touch(mode=0o600)
        SECRETS.write_text(json.dumps(kept))
    return {
        "SUPERSET_DATABASE_URI": f"sqlite:///{HOME / 'superset.db'}",
        **kept,
        **os.environ,
        "SUPERSET_CONFIG_PATH": str(FOLDER / "superset_config.py"),
        "SUPERSET_HOME": str(HOME),
        "SCARF_ANALYTICS": "false",  # a pixel on each page that calls another host
    }


def set_up(terminal: Any) -> None:
    """Bring metadata, roles, the login and the dashboards up to date; what people have added stays."""
    import flask_migrate
    from flask import g
    from superset import appbuilder, db, security_manager
    from superset.commands.importers.v1.assets import ImportAssetsCommand

    print("Setting up: metadata ...", file=terminal)
    flask_migrate.upgrade()
    print("Setting up: roles and login ...", file=terminal)
    appbuilder.add_permissions(update_perms=True)
    security_manager.sync_role_definitions()
    if not security_manager.find_user("admin"):
        role = security_manager.find_role("Admin")
        security_manager.add_user("admin", "Admin", "User", "admin@localhost", role, os.environ["ADMIN_PASSWORD"])
    print("Setting up: dashboards ...", file=terminal)
    g.user = security_manager.find_user("admin")
    assets = FOLDER / "assets"
    # Not `superset import-directory`, which is for examples and rewrites the datasets' SQL.
    ImportAssetsCommand({str(path.relative_to(assets)): path.read_text() for path in assets.rglob("*.yaml")}).run()
    db.session.commit()
    db.engine.dispose()  # before the worker is forked


def serve(app: Any, terminal: Any) -> None:
    """Run the web server in one worker process until SIGINT or SIGTERM."""
    from gunicorn.app.base import BaseApplication

    class Server(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            settings = {"bind": f"{HOST}:{PORT}", "worker_class": "gthread", "threads": 8, "timeout": 120}
            settings["control_socket_disable"] = True
            for name, value in settings.items():
                self.cfg.set(name, value)
            self.cfg.set("when_ready", lambda _: ready(terminal))

        def load(self) -> Any:
            return app

    Server().run()


def ready(terminal: Any) -> None:
    """Say where the dashboards are."""
    where = "in the variable ADMIN_PASSWORD" if not SECRETS.exists() else f"in {SECRETS}"
    print(f"\n  Dashboards:  http://{HOST}:{PORT}", file=terminal)
    print(f"  login:       admin, with the password {where}\n  Ctrl-C stops it.\n", file=terminal)


if __name__ == "__main__":
    sys.exit(main())
