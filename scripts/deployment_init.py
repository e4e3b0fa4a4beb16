"""What has to be done before Airflow's services start: migrations, the pool, permissions, the first login.

The service `init` of docker-compose.yaml runs it at each start, and each step is harmless where it has been done. One
process for all of it, as each `airflow` command takes seconds to start.
"""

import os
import sys
from pathlib import Path

COMMANDS = (
    ("db", "migrate"),
    ("pools", "import", "pools.json"),
    # Who may read DAGs may see the pages that plugins add; by default that begins with the role Op.
    ("roles", "add-perms", "Viewer", "User", "--action", "can_read", "--resource", "Plugins"),
    (
        *("users", "create", "--username", "admin", "--role", "Admin", "--email", "admin@localhost"),
        *("--firstname", "Airflow", "--lastname", "Admin", "--password", os.environ["ADMIN_PASSWORD"]),
    ),
)


def main() -> int:
    """Check the mounted folders, then run all commands; return the exit code."""
    for name in ("WAREHOUSE_DIR", "AIRFLOW__LOGGING__BASE_LOG_FOLDER"):
        if not os.access(os.environ[name], os.W_OK):
            print(f"error: user {os.getuid()} cannot write to the volume at {os.environ[name]}", file=sys.stderr)
            return 1
    landing = Path(os.environ["SOURCES__JAFFLE_SHOP__DATA_DIR"])
    if unreadable := [str(path) for path in (landing, *landing.glob("*.csv*")) if not os.access(path, os.R_OK)]:
        print(f"error: user {os.getuid()} cannot read {', '.join(unreadable)} in LANDING_DIR", file=sys.stderr)
        return 1
    from airflow.cli import cli_parser

    parser = cli_parser.get_parser()
    for command in COMMANDS:
        print(f"airflow {' '.join(command[:2])} ...", flush=True)
        options = parser.parse_args(command)
        options.func(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
