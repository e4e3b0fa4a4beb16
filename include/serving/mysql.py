"""The marts in MySQL or MariaDB."""

from collections.abc import Sequence

import duckdb

from include.serving.base import LOCK_SECONDS, ServeError, Server, Table, masked, own_words, selected
from include.sql import identifier, literal

_NAME_LENGTH = 64


class MySQL(Server):
    """Tables are built in a database of their own; one `rename table`, which is atomic, then moves all of them."""

    title, kind, extension = "MySQL", "mysql", "mysql_scanner"

    def replace(self, connection: duckdb.DuckDBPyConnection, tables: Sequence[Table]) -> None:
        """Replace all tables in one statement; grants are by name, so they stay."""
        live, old, new = (f"{self.schema}{end}" for end in ("", "_old", "_new"))
        connection.execute("begin")  # one connection for all that follows, which holds the lock
        # An error if not locked; `mysql_query`, which could return that, uses another connection.
        lock = f"set @locked = if(get_lock({literal(live)}, {LOCK_SECONDS}) = 1, 1, (select 1 union select 2))"
        try:
            self.run(connection, lock)
        except duckdb.Error as error:
            if "more than 1 row" not in str(error):
                raise
            raise ServeError(f"{self.place}: another process is copying there; waited {LOCK_SECONDS} s.") from error
        self.run(connection, f"create database if not exists `{live}` character set utf8mb4")
        for database in (old, new):
            self.run(connection, f"drop database if exists `{database}`")
            self.run(connection, f"create database `{database}` character set utf8mb4")
        for table in tables:
            self.run(connection, self._create(new, table))
        connection.execute("call mysql_clear_cache()")
        for table in tables:
            columns = ", ".join(selected(name, type_, "struct map union [] timezone") for name, type_ in table.columns)
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

    def name_problem(self, name: str) -> str:
        """Return why MySQL cannot have a name, or ""."""
        if name != name.rstrip():
            return "it ends with a space"
        return f"it is longer than {_NAME_LENGTH} characters" if len(name) > _NAME_LENGTH else ""

    def name_as_kept(self, name: str) -> str:
        """Return a name as MySQL compares it; a longer one is refused."""
        return name[:_NAME_LENGTH].lower()

    def value_problems(self, name: str, type_: str) -> list[tuple[str, str]]:
        """Return the conditions on values that MySQL cannot hold."""
        column, problems = identifier(name), super().value_problems(name, type_)
        if type_ in ("FLOAT", "DOUBLE"):
            problems.append((f"not isfinite({column})", "an infinite number or NaN"))
        elif type_.startswith(("DATE", "TIMESTAMP")):
            outside = f"not isfinite({column}) or year({column}) not between 1 and 9999"
            problems.append((outside, "a date outside the years 1 to 9999"))
        return problems

    def describe(self, error: duckdb.Error) -> str:
        """Return MySQL's message."""
        return masked(own_words(error), "(?:value:|entry) (?P<value>'.*') for")

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
    if type_.startswith("TIMESTAMP") and type_ != "TIMESTAMP_NS":
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
