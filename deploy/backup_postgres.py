"""The part of backup.py for a warehouse on a lake or in PostgreSQL, passed to a container on its command line.

It imports nothing of the project until a restore: during an upgrade the container is still of the old version.

`plan` says what to dump; dumps are made and read by pg_dump and pg_restore, in the service `pg-client`. A restore moves
what is there aside, under names with a hyphen, which no warehouse has: `SCHEMA-before`, and in PostgreSQL the database
`DATABASE_NAME-before`. A kill at any step leaves a state that `put-back` can undo.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

DATA = Path(os.environ["WAREHOUSE_DIR"])
TARGET = os.environ.get("DBT_TARGET") or "duckdb"
LAKE = os.environ.get("DUCKLAKE_DATA") or str(DATA / "lake")
NOTHING_BEFORE = "made by a restore: there was no such schema"
GRANT = """
do $$
declare one record;
begin
    if exists (select from pg_roles where rolname = {role_text}) then
        execute format('grant connect on database %I to {role}', current_database());
        for one in
            select nspname from pg_namespace
            where nspname !~ '^pg_' and nspname <> 'information_schema' and ({schema} is null or nspname = {schema})
        loop
            execute format('grant usage on schema %I to {role}', one.nspname);
            execute format('grant select on all tables in schema %I to {role}', one.nspname);
        end loop;
    end if;
end $$
"""


def _home() -> str:
    """Return how to connect to the list of the releases, which on a lake is in the catalog."""
    if TARGET != "ducklake":
        return make_conninfo(dbname=os.environ.get("PGDATABASE") or "")
    if "password" in conninfo_to_dict(os.environ.get("DUCKLAKE_CATALOG", "")):
        sys.exit("error: DUCKLAKE_CATALOG must not contain a password: use PGPASSWORD.")
    return os.environ.get("DUCKLAKE_CATALOG", "")


def _connect(database: str | None = None) -> psycopg.Connection:
    try:
        return psycopg.connect(make_conninfo(_home(), dbname=database), autocommit=True, connect_timeout=10)
    except psycopg.OperationalError as error:
        sys.exit(f"error: the warehouse's PostgreSQL cannot be reached: {' '.join(str(error).split())}")


def _run(connection: psycopg.Connection, statement: str, **names: str | None) -> None:
    """Run SQL with names: those that end in `_text`, and `schema`, as literals, others as identifiers."""
    quoted = {
        name: sql.Literal(value) if name.endswith("_text") or name == "schema" else sql.Identifier(str(value))
        for name, value in names.items()
    }
    connection.execute(sql.SQL(statement).format(**quoted))


def _names() -> list[str]:
    """Return the warehouses that this deployment may have: its own, and one for each folder, as those of other DAGs."""
    others = {path.name for path in DATA.iterdir() if path.is_dir() and path.name[0] != "."}
    return [os.environ["WAREHOUSE_NAME"], *sorted(others - {"lake", "artifacts", "published", "releases"})]


def _schemas(name: str) -> list[str]:
    return [name, f"{name}_working"] if TARGET == "ducklake" else [name]


def _database(name: str) -> str:
    return f"{os.environ['PGDATABASE']}_{name}"


def plan() -> None:
    """Print what to back up, as JSON; an empty object if the warehouse is in the volume."""
    if TARGET in ("duckdb", "encrypted"):
        print("{}")
        return
    if TARGET not in ("ducklake", "postgres"):
        sys.exit(f"error: the warehouse is on {TARGET}, which make backup does not cover: docs/scaling.md")
    if TARGET == "ducklake" and "://" not in LAKE and Path(LAKE).resolve() != (DATA / "lake").resolve():
        sys.exit(
            f"error: DUCKLAKE_DATA={LAKE} is neither in the volume of this deployment nor in an object store: leave it "
            "unset, or back up by hand: docs/scaling.md, Backups"
        )
    published = {}
    with _connect() as connection:
        for name in _names():
            table = sql.Identifier(name, "releases")
            if connection.execute("select to_regclass(%s)", [table.as_string(connection)]).fetchone() == (None,):
                continue
            query = sql.SQL("select row_to_json(r) from {} r where published").format(table)
            if row := connection.execute(query).fetchone():
                published[name] = row[0]
        lists = "select nspname from pg_namespace where to_regclass(format('%I.releases', nspname)) is not null"
        others = sorted({name for (name,) in connection.execute(lists).fetchall()} - set(_names()))
    if others:
        without = "not in this backup, as they have no folder in the volume"
        print(f"warning: the server also has the warehouses {', '.join(others)}: {without}", file=sys.stderr)
    if not published:
        sys.exit("error: nothing is published yet, so there is nothing to back up.")
    found: dict[str, Any] = {
        "target": TARGET,
        "home": _home(),
        "data": LAKE if TARGET == "ducklake" else "",
        "schemas": [schema for name in published for schema in _schemas(name)],
        "databases": {},
        "published": published,
    }
    if TARGET == "postgres":
        for name, release in published.items():
            found["databases"][name] = make_conninfo(dbname=f"{_database(name)}-{release['version']}")
    print(json.dumps(found))


def home() -> None:
    """Print how to connect to the server, for pg_restore."""
    print(_home())


def find() -> None:
    """Exit if a file that standard input lists is missing in the object store."""
    import duckdb

    from include.warehouse.targets import ducklake

    wanted = {line.split("\t")[0] for line in sys.stdin.read().splitlines()}
    found: set[str] = set()
    for name in _names():
        os.environ["WAREHOUSE_NAME"] = name
        with duckdb.connect() as connection:
            for statement in ducklake.prepare_statements():
                connection.execute(statement)
            rows = connection.execute("select file from glob(?)", [f"{LAKE.rstrip('/')}/{name}/**"]).fetchall()
            found |= {path.rsplit("/", 1)[-1] for (path,) in rows}
    if missing := sorted(wanted - found):
        sys.exit(f"error: {len(missing)} of {len(wanted)} files of the lake are not in {LAKE}, such as {missing[0]}")


def prepare() -> None:
    """Remove what an earlier restore has left, and create an empty database for each dump of one."""
    saved = json.load(sys.stdin)
    if (saved["target"], saved["data"]) != (TARGET, LAKE if TARGET == "ducklake" else ""):
        sys.exit(
            f"error: the backup is of DBT_TARGET={saved['target']} {saved['data']}, this deployment has "
            f"DBT_TARGET={TARGET} {LAKE if TARGET == 'ducklake' else ''}"
        )
    with _connect() as connection:
        _drop_aside(connection, {*_names(), *saved["published"]})
        for name in saved["databases"]:
            _drop(connection, f"{_database(name)}-backup")
            _run(connection, "create database {new} template template0", new=f"{_database(name)}-backup")
            _run(connection, "revoke connect on database {new} from public", new=f"{_database(name)}-backup")
            print(name, make_conninfo(dbname=f"{_database(name)}-backup"), sep="\t")


def discard() -> None:
    """Remove what `prepare` created."""
    if TARGET == "postgres":
        with _connect() as connection:
            for name in _names():
                _drop(connection, f"{_database(name)}-backup")


def aside() -> None:
    """Move the schemas that the backup has aside, all or none."""
    with _connect() as connection, connection.transaction():
        for schema in json.load(sys.stdin)["schemas"]:
            names = {"old": schema, "before": f"{schema}-before"}
            if _has_schema(connection, schema):
                _run(connection, "alter schema {old} rename to {before}", **names)
            else:
                _run(connection, "create schema {before}", **names)
                _run(connection, "comment on schema {before} is {text_text}", **names, text_text=NOTHING_BEFORE)


def switch() -> None:
    """Take the restored schemas and databases into use, and check that what was published can be read."""
    saved = json.load(sys.stdin)
    for name, release in saved["published"].items():
        role = {"role": f"{name}_reader", "role_text": f"{name}_reader"}
        with _connect() as connection:
            if TARGET == "postgres":
                release["version"] = _take_in(connection, name)
                with connection.transaction():
                    table = sql.Identifier(name, "releases")
                    connection.execute(sql.SQL("delete from {}").format(table))
                    insert = "insert into {0} select * from json_populate_record(null::{0}, %s)"
                    connection.execute(sql.SQL(insert).format(table), [json.dumps(release)])
            else:
                _run(connection, GRANT, schema=name, **role)
        if TARGET == "postgres":
            with _connect(f"{_database(name)}-{release['version']}") as connection:
                _run(connection, GRANT, schema=None, **role)
        # PostgreSQL's working database is a copy of the release, as that of a file is.
        _in_project(name, "restore" if TARGET == "postgres" else "show")


def _take_in(connection: psycopg.Connection, name: str) -> int:
    """Move the working database aside, and give the restored one the next number of a release; return it."""
    working = _database(name)
    rows = connection.execute("select datname from pg_database where starts_with(datname, %s)", [f"{working}-"])
    numbers = [one.removeprefix(f"{working}-") for (one,) in rows.fetchall()]
    number = max((int(one) for one in numbers if one.isdecimal()), default=0) + 1
    _rename(connection, working, f"{working}-before")
    _rename(connection, f"{working}-backup", f"{working}-{number}")
    return number


def put_back() -> None:
    """Undo a restore, however far it got."""
    with _connect() as connection:
        for name in _names():
            if TARGET == "postgres" and _has_schema(connection, f"{name}-before"):
                if _has_database(connection, f"{_database(name)}-before") or _none_before(connection, name):
                    _drop(connection, _database(name))
                _rename(connection, f"{_database(name)}-before", _database(name))
            with connection.transaction():
                for schema in _schemas(name):
                    _put_back_schema(connection, {"new": schema, "before": f"{schema}-before"})
    discard()


def _put_back_schema(connection: psycopg.Connection, names: dict[str, str]) -> None:
    if _has_schema(connection, names["before"]):
        _run(connection, "drop schema if exists {new} cascade", **names)
        was_none = _none_before(connection, names["new"])
        _run(connection, "drop schema {before}" if was_none else "alter schema {before} rename to {new}", **names)


def keep() -> None:
    """Make a restore final."""
    with _connect() as connection:
        connection.execute("set lock_timeout = '60s'")
        _drop_aside(connection, set(_names()))


def _drop_aside(connection: psycopg.Connection, names: set[str]) -> None:
    for name in sorted(names):
        for schema in _schemas(name):
            _run(connection, "drop schema if exists {before} cascade", before=f"{schema}-before")
        if TARGET == "postgres":
            _drop(connection, f"{_database(name)}-before")


def _has_schema(connection: psycopg.Connection, schema: str) -> bool:
    return bool(connection.execute("select from pg_namespace where nspname = %s", [schema]).rowcount)


def _none_before(connection: psycopg.Connection, schema: str) -> bool:
    """Return whether there was no such schema before the restore."""
    query = "select obj_description(oid, 'pg_namespace') from pg_namespace where nspname = %s"
    return connection.execute(query, [f"{schema}-before"]).fetchone() == (NOTHING_BEFORE,)


def _has_database(connection: psycopg.Connection, database: str) -> bool:
    return bool(connection.execute("select from pg_database where datname = %s", [database]).rowcount)


def _drop(connection: psycopg.Connection, database: str) -> None:
    _run(connection, "drop database if exists {old} with (force)", old=database)


def _rename(connection: psycopg.Connection, old: str, new: str) -> None:
    if _has_database(connection, old):
        connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [old])
        _run(connection, "alter database {old} rename to {new}", old=old, new=new)


def _in_project(name: str, command: str) -> None:
    environ = dict(os.environ)
    if name != os.environ["WAREHOUSE_NAME"]:
        environ |= {"WAREHOUSE_DIR": str(DATA / name), "WAREHOUSE_NAME": name}
    words = [sys.executable, "-m", "include.warehouse", command]
    if subprocess.run(words, env=environ, stdout=subprocess.DEVNULL).returncode:
        sys.exit(1)


if __name__ == "__main__":
    commands = (plan, home, find, prepare, discard, aside, switch, put_back, keep)
    try:
        {command.__name__.replace("_", "-"): command for command in commands}[sys.argv[1]]()
    except psycopg.Error as error:
        sys.exit(f"error: the warehouse's PostgreSQL: {' '.join(str(error).split())}")
