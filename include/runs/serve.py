"""Copy the published marts to a database server, for tools and applications that want one: PostgreSQL or MySQL.

`SERVE_URL` names it, without a password: postgresql://user@host:5432/database or mysql://user@host:3306. The password
is in `SERVE_PASSWORD`. Readers find the tables in the schema (in MySQL, the database) WAREHOUSE_marts, all of one
release, which its table `_release` names. That schema is this project's: other tables in it go with the next release.
"""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import unquote, urlsplit

import duckdb

from include import warehouse
from include.errors import PipelineError
from include.runs import project
from include.settings import warehouse_name
from include.sql import identifier, literal
from include.warehouse.errors import first_line
from include.warehouse.target import MARTS_SCHEMA

logger = logging.getLogger(__name__)

RELEASE = "_release"
_MEMORY = "512MB"
# How long to wait for queries of readers that still use the release before.
_LOCK_SECONDS = 60
_WRONG_LOGIN = ("authentication failed", "Access denied", "permission denied", "does not exist", "Unknown database")


class ServeError(PipelineError):
    """The marts could not be copied to the server; it still has the release before."""

    runbook = "The marts did not reach the database server"

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


@dataclass(frozen=True)
class Table:
    """A table to copy.

    Attributes:
        name: its name on the server.
        source: where it is in DuckDB.
        columns: name and DuckDB type of each column, in order.
        key: the column that a row is found by, or "".
        description, descriptions: of the table, and of columns by name.
    """

    name: str
    source: str
    columns: tuple[tuple[str, str], ...]
    key: str
    description: str
    descriptions: dict[str, str]


def serve() -> dict[str, int]:
    """Copy what is published, and switch the server's readers to it in one step.

    Returns:
        The number of rows of each table.

    Raises:
        ServeError: it failed; readers of the server still see the release before.
        include.warehouse.WarehouseError: nothing is published, or it cannot be read.
    """
    started = time.monotonic()
    server = _server()
    release = warehouse.published_release()
    if release is None:
        raise ServeError(f"Nothing is published as {warehouse.published_location()}.", retryable=False)
    with warehouse.open_release(release) as connection:
        connection.execute(f"set memory_limit = '{_MEMORY}'")
        connection.execute("set preserve_insertion_order = false")
        tables = _tables(connection, release)
        try:
            server.attach(connection)
            server.replace(connection, tables)
            rows = {one.name: _count(connection, one.source) for one in tables if one.name != RELEASE}
        except duckdb.Error as error:
            text = " ".join(str(error).split())
            retryable = not any(sign in text for sign in _WRONG_LOGIN)
            raise ServeError(f"{server.place}: {text[:1000]}", retryable=retryable) from error
    logger.info("Served %s to %s in %.1f s", release.id, server.place, time.monotonic() - started)
    return rows


def _count(connection: duckdb.DuckDBPyConnection, source: str) -> int:
    (rows,) = connection.execute(f"select count(*) from {source}").fetchall()[0]
    return int(rows)


def _tables(connection: duckdb.DuckDBPyConnection, release: warehouse.Release) -> list[Table]:
    query = """
        select table_name, list((column_name, data_type) order by column_index) from duckdb_columns()
        where database_name = ? and schema_name = ? group by all order by all
    """
    dbt = project.of_run(release.run_id)
    found = []
    for name, columns in connection.execute(query, [warehouse_name(), MARTS_SCHEMA]).fetchall():
        node = dbt.node_of(MARTS_SCHEMA, name)
        tests = {(test.column, test.title.split(": ")[-1]) for test in dbt.tests_of(node.unique_id)} if node else set()
        keys = [column for column, _ in columns if {(column, "unique"), (column, "not null")} <= tests]
        descriptions = {one.name: one.description for one in node.columns.values()} if node else {}
        source = f"{identifier(MARTS_SCHEMA)}.{identifier(name)}"
        description = node.description if node else ""
        found.append(Table(name, source, tuple(columns), keys[0] if keys else "", description, descriptions))
    columns = (("release_id", "VARCHAR"), ("run_id", "VARCHAR"), ("created_at", "TIMESTAMP WITH TIME ZONE"))
    values = (release.id, release.run_id, release.created_at.isoformat())
    listed = ", ".join(f"{literal(one)}::{type_} as {name}" for one, (name, type_) in zip(values, columns, strict=True))
    found.append(Table(RELEASE, f"(select {listed})", columns, "", "The release that these tables are of.", {}))
    return found


@dataclass(frozen=True)
class Server:
    """A database server, and how its tables are replaced.

    Attributes:
        place: where the tables are, for messages; without the password.
        secret: the options of DuckDB's secret.
    """

    place: str
    secret: dict[str, str]

    kind: ClassVar[str]
    extension: ClassVar[str]
    options: ClassVar[str] = ""

    @property
    def schema(self) -> str:
        """The schema (in MySQL, the database) that readers use."""
        return f"{warehouse_name()}_{MARTS_SCHEMA}"

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Attach it as `server`."""
        import duckdb_extensions  # lazily: the extensions are in a lock file of their own

        try:
            duckdb_extensions.import_extension(self.extension, con=connection)
        except ImportError as error:
            message = f"SERVE_URL needs DuckDB's extension {self.extension}: make setup-serve ({error})"
            raise ServeError(message, retryable=False) from error
        connection.load_extension(self.extension)
        listed = ", ".join(f"{name} {literal(value)}" for name, value in self.secret.items())
        connection.execute(f"create secret server (type {self.kind}, {listed})")
        connection.execute(f"attach '' as server (type {self.kind}, secret server{self.options})")

    def run(self, connection: duckdb.DuckDBPyConnection, statement: str) -> None:
        """Run the server's own SQL there."""
        connection.execute(f"call {self.kind}_execute('server', {literal(statement)})")

    def replace(self, connection: duckdb.DuckDBPyConnection, tables: Sequence[Table]) -> None:
        """Replace all tables in one step."""
        raise NotImplementedError


class Postgres(Server):
    """New tables are built beside the live ones, then the rows of these are changed to match, in one transaction.

    Not by renaming: a query finds its tables one after the other, so it could get one of the release before and one of
    the new release, with the rows of neither visible to it. Rows it sees as of one moment, in all tables. A changed row
    waits for no query either.
    """

    kind, extension = "postgres", "postgres_scanner"
    # DuckDB's default, repeatable read, would see the tables as they were before it waited for the lock.
    options = ", isolation_level 'read committed'"

    def replace(self, connection: duckdb.DuckDBPyConnection, tables: Sequence[Table]) -> None:
        """Replace all tables in one transaction; whoever could read the old ones can read the new ones."""
        live, old, new = (f"{self.schema}{end}" for end in ("", "_old", "_new"))
        connection.execute("begin")
        self._drop(connection, live, old)
        self.run(connection, f'drop schema if exists "{new}" cascade')
        self.run(connection, f'create schema if not exists "{live}"; create schema "{old}"')
        connection.execute(f"create schema server.{identifier(new)}")
        described = []
        for table in tables:
            columns = ", ".join(_selected(name, type_, "hugeint struct map union") for name, type_ in table.columns)
            target = f"{identifier(new)}.{identifier(table.name)}"
            connection.execute(f"create table server.{target} as select {columns} from {table.source}")
            if table.key:
                self.run(connection, f"alter table {target} add primary key ({identifier(table.key)})")
            self.run(connection, f"analyze {target}")
            shown = f"{identifier(live)}.{identifier(table.name)}"
            described.append(f"comment on table {shown} is {literal(table.description)}")
            for name, _ in table.columns:
                text = literal(table.descriptions.get(name, ""))
                described.append(f"comment on column {shown}.{identifier(name)} is {text}")
            described.append(f"analyze {shown}")
        names = {"live": literal(live), "old": literal(old), "new": literal(new), "seconds": _LOCK_SECONDS}
        self.run(connection, _SWITCH.format(**names))
        self.run(connection, "; ".join(described))
        connection.execute("commit")
        try:
            connection.execute("begin")
            self._drop(connection, live, old)
            connection.execute("commit")
        except duckdb.Error as error:  # tried again next time
            connection.execute("rollback")
            logger.warning("%s: the release before could not be removed yet: %s", self.place, first_line(error))

    def _drop(self, connection: duckdb.DuckDBPyConnection, live: str, schema: str) -> None:
        """Drop a schema, and keep others from serving until this transaction ends."""
        self.run(connection, f"select pg_advisory_xact_lock(hashtext({literal(live)}))")
        # Not `cascade`: somebody's view on these tables is not ours to drop.
        self.run(connection, _DROP.format(schema=literal(schema), seconds=_LOCK_SECONDS))


# A table whose columns or key have changed is replaced as a whole, and then waits for the queries that use it.
_SWITCH = """
do $$
declare
    one record;
    grants record;
    key text;
begin
    perform set_config('lock_timeout', '{seconds}s', true);
    for one in
        select relname from pg_class where relnamespace = to_regnamespace({live}) and relkind = 'r'
            and to_regclass(format('%I.%I', {new}, relname)) is null
    loop
        execute format('alter table %I.%I set schema %I', {live}, one.relname, {old});
    end loop;
    for one in
        select
            relname,
            array_agg((
                select coalesce(string_agg(concat_ws(' ', attname, format_type(atttypid, atttypmod), attnotnull), ', '
                    order by attnum), '') || coalesce((select pg_get_constraintdef(pg_constraint.oid)
                    from pg_constraint where conrelid = pg_class.oid and contype = 'p'), '')
                from pg_attribute where attrelid = pg_class.oid and attnum > 0 and not attisdropped
            ) order by relnamespace = to_regnamespace({new})) as definitions
        from pg_class where relnamespace in (to_regnamespace({live}), to_regnamespace({new})) and relkind = 'r'
        group by relname
    loop
        if one.definitions[1] = one.definitions[2] then
            select quote_ident(attname) into key from pg_index join pg_attribute on attrelid = indrelid
                and attnum = indkey[0]
                where indisprimary and indrelid = to_regclass(format('%I.%I', {live}, one.relname))
                    and not one.definitions[1] like '% json%'; -- has no equality
            if key is null then
                execute format('delete from %I.%I', {live}, one.relname);
                execute format('insert into %1$I.%3$I select * from %2$I.%3$I', {live}, {new}, one.relname);
            else
                execute format('delete from %1$I.%3$I was where not exists (select from %2$I.%3$I now
                    where now.%4$s = was.%4$s and now = was)', {live}, {new}, one.relname, key);
                execute format('insert into %1$I.%3$I select * from %2$I.%3$I now where not exists (
                    select from %1$I.%3$I was where was.%4$s = now.%4$s)', {live}, {new}, one.relname, key);
            end if;
            execute format('drop table %I.%I', {new}, one.relname);
            continue;
        end if;
        if array_length(one.definitions, 1) = 2 then
            for grants in
                select grantee::regrole::text as role, privilege_type as privilege from pg_class, aclexplode(relacl)
                where pg_class.oid = to_regclass(format('%I.%I', {live}, one.relname)) and grantee not in (0, relowner)
            loop
                execute format('grant %s on %I.%I to %s', grants.privilege, {new}, one.relname, grants.role);
            end loop;
            execute format('alter table %I.%I set schema %I', {live}, one.relname, {old});
        end if;
        execute format('alter table %I.%I set schema %I', {new}, one.relname, {live});
    end loop;
    execute format('drop schema %I', {new});
end $$
"""

_DROP = """
do $$
declare one record;
begin
    perform set_config('lock_timeout', '{seconds}s', true);
    for one in select relname from pg_class where relnamespace = to_regnamespace({schema}) and relkind = 'r' loop
        execute format('drop table %I.%I', {schema}, one.relname);
    end loop;
    execute format('drop schema if exists %I', {schema});
end $$
"""


class MySQL(Server):
    """Tables are built in a database of their own; one `rename table`, which is atomic, then moves all of them."""

    kind, extension = "mysql", "mysql_scanner"

    def replace(self, connection: duckdb.DuckDBPyConnection, tables: Sequence[Table]) -> None:
        """Replace all tables in one statement; grants are by name, so they stay."""
        live, old, new = (f"{self.schema}{end}" for end in ("", "_old", "_new"))
        connection.execute("begin")  # one connection for all that follows, which holds the lock
        # An error if not locked; `mysql_query`, which could return that, uses another connection.
        lock = f"set @locked = if(get_lock({literal(live)}, {_LOCK_SECONDS}) = 1, 1, (select 1 union select 2))"
        try:
            self.run(connection, lock)
        except duckdb.Error as error:
            if "more than 1 row" not in str(error):
                raise
            raise ServeError(f"{self.place}: another process is copying there; waited {_LOCK_SECONDS} s.") from error
        self.run(connection, f"create database if not exists `{live}` character set utf8mb4")
        for database in (old, new):
            self.run(connection, f"drop database if exists `{database}`")
            self.run(connection, f"create database `{database}` character set utf8mb4")
        for table in tables:
            self.run(connection, self._create(new, table))
        connection.execute("call mysql_clear_cache()")
        for table in tables:
            columns = ", ".join(
                _selected(name, type_, "hugeint struct map union [] timezone") for name, type_ in table.columns
            )
            connection.execute(
                f"insert into server.{identifier(new)}.{identifier(table.name)} select {columns} from {table.source}"
            )
        present = self._query(
            connection, f"select table_name from information_schema.tables where table_schema = {literal(live)}"
        )
        moves = [f"`{live}`.{_quoted(name)} to `{old}`.{_quoted(name)}" for (name,) in present]
        moves += [f"`{new}`.{_quoted(one.name)} to `{live}`.{_quoted(one.name)}" for one in tables]
        self.run(connection, f"rename table {', '.join(moves)}")
        for database in (old, new):
            self.run(connection, f"drop database `{database}`")
        connection.execute("commit")

    def _query(self, connection: duckdb.DuckDBPyConnection, query: str) -> list[tuple[str, ...]]:
        return connection.execute(f"from mysql_query('server', {literal(query)})").fetchall()

    def _create(self, database: str, table: Table) -> str:
        lines = []
        for name, type_ in table.columns:
            comment = f" comment {_text(table.descriptions.get(name, '')[:1024])}"
            lines.append(f"{_quoted(name)} {_mysql_type(type_)}{comment}")
            if name == table.key and "text" not in _mysql_type(type_):  # a text would need a length
                lines.append(f"primary key ({_quoted(name)})")
        listed = ", ".join(lines)
        return f"create table `{database}`.{_quoted(table.name)} ({listed}) comment {_text(table.description[:2048])}"


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _text(text: str) -> str:
    return literal(text.replace("\\", "\\\\"))


def _mysql_type(type_: str) -> str:
    """Return the MySQL type that holds all values of a DuckDB type; text for nested ones."""
    if type_.startswith("DECIMAL"):
        return type_.lower()
    if type_.startswith("TIMESTAMP"):
        return "datetime(6)"
    return {
        "BOOLEAN": "boolean",
        "TINYINT": "tinyint",
        "SMALLINT": "smallint",
        "INTEGER": "int",
        "BIGINT": "bigint",
        "UTINYINT": "tinyint unsigned",
        "USMALLINT": "smallint unsigned",
        "UINTEGER": "int unsigned",
        "UBIGINT": "bigint unsigned",
        "HUGEINT": "decimal(38, 0)",
        "UHUGEINT": "decimal(38, 0)",
        "FLOAT": "float",
        "DOUBLE": "double",
        "DATE": "date",
        "UUID": "char(36)",
        "BLOB": "longblob",
    }.get(type_, "longtext")


def _selected(name: str, type_: str, converted: str) -> str:
    """Return the expression for a column; it converts types that the server's extension cannot take exactly."""
    column, lowered = identifier(name), type_.lower()
    kinds = converted.split()
    if lowered in ("hugeint", "uhugeint"):
        return f"{column}::decimal(38, 0) as {column}"
    if lowered == "timestamp with time zone" and "timezone" in kinds:
        return f"timezone('UTC', {column}) as {column}"
    if lowered.startswith(("struct", "map", "union")) or ("[]" in kinds and lowered.endswith("]")):
        return f"to_json({column})::varchar as {column}"
    return column


def _server() -> Server:
    url = urlsplit(os.environ.get("SERVE_URL", ""))
    kinds = {"postgresql": Postgres, "postgres": Postgres, "mysql": MySQL}
    if url.scheme not in kinds or not url.hostname:
        raise ServeError(
            "SERVE_URL must be like postgresql://user@host/database or mysql://user@host.", retryable=False
        )
    if url.password:
        raise ServeError("SERVE_URL must not contain a password: use SERVE_PASSWORD.", retryable=False)
    given = {
        "host": url.hostname,
        "port": str(url.port or ""),
        "user": unquote(url.username or ""),
        "password": os.environ.get("SERVE_PASSWORD", ""),
        "database": url.path.strip("/"),
    }
    secret = {name: value for name, value in given.items() if value}
    kind = kinds[url.scheme]
    return kind(f"{kind.__name__} at {url.hostname}", secret)
