"""Errors of databases without values of rows."""

from pathlib import Path

import duckdb
import pytest

from include import masking
from include.masking import without_values

pytestmark = pytest.mark.unit

FAILING = (
    "select cast(v as int) from (values ('O''Brien: \"x\"')) as q(v)",
    "select cast(x as tinyint) from range(4711, 4713) as r(x)",
    "insert into t values (2, 'o''brien@x.y', 1)",
    "select strptime(v || '4711x', '%Y') from (values ('')) as q(v)",
    "select cast(v as decimal(4, 2)) from (values ('4711.789')) as q(v)",
    "select cast(v as date) from (values ('4711-13-77' || chr(10) || 'o''brien')) as q(v)",
    "select json_extract(v, '$') from (values ('{bad4711')) as q(v)",
    "select 2147483647::int + x::int from (values (4711)) as q(x)",
)
# As PostgreSQL 17 says them.
POSTGRES = (
    'invalid input syntax for type integer: "o\'brien"',
    'duplicate key value violates unique constraint "t"\nDETAIL: Key (email, a)=(o\'brien@x.y, (4711)) already exists.',
    'new row for relation "t" violates check constraint "t_d"\nDETAIL:  Failing row contains (4711, o\'brien, -77).',
    'value "4711" is out of range for type smallint',
)


# As BigQuery says them.
BIGQUERY = (
    "Bad int64 value: o'brien 4711",
    "Invalid date: 'o'brien'",
    'Invalid datetime string "4711-13-77"',
    "Invalid NUMERIC value: 4711,0",
    'Failed to parse input string "o\'brien"',
    "Could not parse 'o'brien' as a TIMESTAMP",
    "int64 overflow: 4711 * 9223372036854775807",
    "division by zero: 4711 / 0",
)


@pytest.mark.parametrize("query", FAILING)
def test_duckdb_quotes_no_value(query: str) -> None:
    connection = duckdb.connect()
    connection.execute("create table t (a int primary key, email varchar unique, d int check (d > 0))")
    connection.execute("insert into t values (1, 'o''brien@x.y', 1)")
    with pytest.raises(duckdb.Error) as failed:
        connection.execute(query).fetchall()
    text = without_values(str(failed.value)).partition("LINE 1")[0]
    assert "***" in text and not any(value in text.lower() for value in ("4711", "brien"))


@pytest.mark.parametrize("text", POSTGRES)
def test_postgres_quotes_no_value(text: str) -> None:
    masked = without_values(
        f"Database Error in model orders (models/orders.sql)\n  {text}\n  compiled code at x/4711.sql"
    )
    assert "brien" not in masked and "4711" not in masked.partition("compiled")[0] and "-77" not in masked
    assert masked.startswith("Database Error in model orders (models/orders.sql)\n") and masked.endswith("x/4711.sql")


@pytest.mark.parametrize("text", BIGQUERY)
def test_bigquery_quotes_no_value(text: str) -> None:
    masked = without_values(f"400 {text}; reason: invalidQuery")
    assert "***" in masked and "brien" not in masked and "4711" not in masked


def test_errors_about_names_stay_as_they_are() -> None:
    for text in ('Binder Error: Referenced column "x" not found', "Catalog Error: Table with name o't does not exist!"):
        assert without_values(text) == text


def test_a_folder_that_a_declaration_names_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FILES_FROM", str(tmp_path))
    monkeypatch.setenv("FILES_KEY", "/not-a-folder/but-a-key")
    secrets = masking.in_environment(["FILES_FROM", "FILES_KEY"])
    assert masking.mask(f"{tmp_path}/a.csv:1 /not-a-folder/but-a-key", secrets) == f"{tmp_path}/a.csv:1 ***"
