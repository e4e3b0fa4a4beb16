"""What a database server must offer to serve the published marts."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import duckdb

from include.errors import PipelineError
from include.settings import MARTS_SCHEMA, warehouse_name
from include.sql import exact_type, identifier, literal

RELEASE = "_release"
# How long to wait for queries of readers that still use the release before.
LOCK_SECONDS = 60
_LARGEST_DECIMAL = 10**38 - 1


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


@dataclass(frozen=True)
class Server(ABC):
    """A database server, and how its tables are replaced.

    Attributes:
        place: where the tables are, for messages; without the password.
        secret: the options of DuckDB's secret.
    """

    place: str
    secret: dict[str, str]

    title: ClassVar[str]
    kind: ClassVar[str]  # as DuckDB names it
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

    def check(self, connection: duckdb.DuckDBPyConnection, tables: Sequence[Table]) -> None:
        """Refuse what the server cannot take, before anything is written there.

        Raises:
            ServeError: names the table, the column and the remedy; has no value.
        """
        if (longest := f"{self.schema}_new") != self.name_as_kept(longest):
            raise ServeError(f"{self.title} cuts the name {longest}: choose a shorter WAREHOUSE_NAME.", retryable=False)
        for table in tables:
            for name in (table.name, *dict(table.columns)):
                if problem := self.name_problem(name):
                    raise ServeError(f"{self.title} cannot have the name {name}: {problem}.", retryable=False)
        self._check_equal(f"schema {MARTS_SCHEMA}", [table.name for table in tables], "tables")
        for table in tables:
            self._check_equal(f"{MARTS_SCHEMA}.{table.name}", list(dict(table.columns)), "columns")
            self._check_values(connection, table)

    def _check_equal(self, place: str, names: Sequence[str], what: str) -> None:
        """Refuse names that are one for the server."""
        seen: dict[str, str] = {}
        for name in names:
            if (other := seen.get(self.name_as_kept(name))) is not None:
                message = f"{place}: {self.title} cannot tell the {what} {other} and {name} apart. Rename one."
                raise ServeError(message, retryable=False)
            seen[self.name_as_kept(name)] = name

    def _check_values(self, connection: duckdb.DuckDBPyConnection, table: Table) -> None:
        """Refuse values that the server's types cannot hold."""
        checks = [(name, *one) for name, type_ in table.columns for one in self.value_problems(name, type_)]
        if not checks:
            return
        counts = ", ".join(f"count(*) filter ({condition})" for _, condition, _ in checks)
        found = connection.execute(f"select {counts} from {table.source}").fetchall()[0]
        for rows, (name, _, problem) in zip(found, checks, strict=True):
            if rows:
                message = f"{MARTS_SCHEMA}.{table.name}: column {name} has {problem} in {rows} rows, which"
                raise ServeError(f"{message} {self.title} cannot hold. Change it in the model.", retryable=False)

    def value_problems(self, name: str, type_: str) -> list[tuple[str, str]]:
        """Return the condition on a column, in DuckDB's SQL, and the description of each value it cannot hold."""
        column = identifier(name)
        if type_ in ("HUGEINT", "UHUGEINT"):
            return [(f"{column} not between -{_LARGEST_DECIMAL} and {_LARGEST_DECIMAL}", "an integer of 39 digits")]
        return []

    @abstractmethod
    def name_problem(self, name: str) -> str:
        """Return why the server cannot have a name for a schema, table or column, or ""."""

    @abstractmethod
    def name_as_kept(self, name: str) -> str:
        """Return a name as the server keeps and compares it."""

    @abstractmethod
    def replace(self, connection: duckdb.DuckDBPyConnection, tables: Sequence[Table]) -> None:
        """Replace all tables in one step; grants stay."""

    @abstractmethod
    def describe(self, error: duckdb.Error) -> str:
        """Return what went wrong while tables were replaced, without values of rows."""


def own_words(error: duckdb.Error, begin: str = '": ') -> str:
    """Return the server's message out of DuckDB's, which has the statement, and so values, before it.

    Args:
        error: what DuckDB raised.
        begin: what precedes the server's message.
    """
    if isinstance(error, duckdb.ConversionException | duckdb.OutOfRangeException):  # DuckDB's own, with the value
        return f"a value cannot be converted ({type(error).__name__})"
    return " ".join(str(error).split()).rsplit(begin, 1)[-1][:1000]


def masked(text: str, pattern: str) -> str:
    """Return a text in which what the pattern's group `value` matches is left out."""
    return re.sub(pattern, lambda found: found[0].replace(found["value"], "…"), text)


def selected(name: str, type_: str, converted: str) -> str:
    """Return the expression for a column; it converts types that the server's extension cannot take exactly."""
    column, lowered = identifier(name), type_.lower()
    kinds = converted.split()
    if lowered == "timestamp with time zone" and "timezone" in kinds:
        return f"timezone('UTC', {column}) as {column}"
    if lowered.startswith(("struct", "map", "union")) or ("[]" in kinds and lowered.endswith("]")):
        return f"to_json({column})::varchar as {column}"
    exact = exact_type(type_, "enum", "nanoseconds")
    return column if exact == type_ else f"cast({column} as {exact}) as {column}"
