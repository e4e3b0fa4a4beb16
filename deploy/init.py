"""Prepare for Airflow's services: checks, migrations, the pool, permissions, the first login.

The service `init` of docker-compose.yaml runs this at each start; every step is idempotent. All steps share one
process, as each `airflow` command takes seconds to start.
"""

import os
import sys
from pathlib import Path

import psycopg2  # type: ignore[import-untyped]

COMMANDS = (
    ("db", "migrate"),
    ("pools", "import", "pools.json"),
    # Let everyone who can read DAGs see plugin pages; by default only Op and above can.
    ("roles", "add-perms", "Viewer", "User", "--action", "can_read", "--resource", "Plugins"),
    (
        *("users", "create", "--username", "admin", "--role", "Admin", "--email", "admin@localhost"),
        *("--firstname", "Airflow", "--lastname", "Admin", "--password", os.environ["ADMIN_PASSWORD"]),
    ),
)
NOT_THIS_ENV = "this .env does not match the volumes"
REMEDY = "Restore the .env they were created with, or delete their data and start over: docker compose down --volumes"
ENCRYPTED = """
    select password from connection where is_encrypted and password is not null
    union all select extra from connection where is_extra_encrypted and extra is not null
    union all select val from variable where is_encrypted
"""


def check_folders() -> None:
    """Exit if a mounted folder cannot be used."""
    for name in ("WAREHOUSE_DIR", "AIRFLOW__LOGGING__BASE_LOG_FOLDER"):
        if not os.access(os.environ[name], os.W_OK):
            sys.exit(f"error: user {os.getuid()} cannot write to the volume at {os.environ[name]}")
    (Path(os.environ["WAREHOUSE_DIR"]) / "published").mkdir(exist_ok=True)  # before a container mounts it
    if "://" in (location := os.environ["SOURCES__JAFFLE_SHOP__DATA_DIR"]):  # an object store: the load asks it
        return
    landing = Path(location)
    if unreadable := [str(path) for path in (landing, *landing.glob("*.csv*")) if not os.access(path, os.R_OK)]:
        sys.exit(f"error: user {os.getuid()} cannot read {', '.join(unreadable)} in LANDING_DIR")


def check_secrets() -> bool:
    """Exit if the secrets don't match the volumes; return whether ADMIN_PASSWORD is out of date."""
    from airflow.configuration import conf
    from airflow.models.crypto import get_fernet
    from cryptography.fernet import InvalidToken
    from werkzeug.security import check_password_hash

    try:
        db = psycopg2.connect(conf.get("database", "sql_alchemy_conn").replace("+psycopg2", ""), connect_timeout=30)
    except psycopg2.OperationalError as error:
        if "password authentication failed" in str(error):
            sys.exit(f"error: {NOT_THIS_ENV}: Postgres has another POSTGRES_PASSWORD. {REMEDY}")
        sys.exit(f"error: no connection to Postgres: {' '.join(str(error).split())}")
    with db, db.cursor() as cursor:
        cursor.execute("select to_regclass('connection'), to_regclass('ab_user')")
        if None in (cursor.fetchone() or (None,)):
            return False  # a new database
        cursor.execute(ENCRYPTED)
        try:
            for (value,) in cursor.fetchall():
                get_fernet().decrypt(value.encode())
        except InvalidToken:
            sys.exit(f"error: {NOT_THIS_ENV}: the connections were encrypted with another FERNET_KEY. {REMEDY}")
        cursor.execute("select password from ab_user where username = 'admin'")
        row = cursor.fetchone()
        return bool(row) and not check_password_hash(row[0], os.environ["ADMIN_PASSWORD"])


def main() -> None:
    """Run all checks and commands."""
    check_folders()
    admin_has_another_password = check_secrets()
    from airflow.cli import cli_parser

    parser = cli_parser.get_parser()
    for command in COMMANDS:
        print(f"airflow {' '.join(command[:2])} ...", flush=True)
        options = parser.parse_args(command)
        options.func(options)
    if admin_has_another_password:
        print(
            "warning: ADMIN_PASSWORD differs from the password of the login admin, which is unchanged. To set it:"
            " docker compose exec api-server airflow users reset-password --username admin"
        )


if __name__ == "__main__":
    main()
