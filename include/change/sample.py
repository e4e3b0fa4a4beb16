"""A masked sample of what is published: for developers' machines and for CI.

    published ──rows that belong together──▶ masked ──▶ loaded tables of OUT ──dbt──▶ all that is built from them

Only loaded tables are taken over, and all else is built from them: what a model makes of a person's data, it makes of
masked data. Nothing unmasked is ever written to OUT. A text stays only if it is known to be nobody's, see `_Kept`.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from include.change.databases import MEMORY, Database, find_database, keys_of
from include.change.diff import relations
from include.change.masking import Masker
from include.change.preview import build_scratch
from include.change.report import Build
from include.change.views import UnsupportedViewError, Views
from include.dlt_pipelines.propose.personal import is_personal
from include.duckdb_session import open_duckdb
from include.runs import project
from include.settings import REJECTED_ROWS, is_audit, warehouse_name
from include.sql import identifier, literal
from include.warehouse import builds
from include.warehouse.connection import spill_config
from include.warehouse.errors import WarehouseError

ROWS = 10_000  # of a table that has no parent among the sampled ones; of others ten times as many at most
_FREQUENT = 5  # rows that have a text, for it to be nobody's
_EXAMPLES = 200
_MOST_ORIGINALS = 1_000_000  # of a column
_MOST_ORPHANS = 0.05  # of a column's values, for it still to be a key of another table
_KEY = re.compile(r"id|uuid|code|key|.*_(id|uuid|code|key|no|number)", re.IGNORECASE)
_TECHNICAL = re.compile(r"_dlt_.*", re.IGNORECASE)
_INTEGERS = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?")
_NUMBERS = re.compile(r"DECIMAL.*|FLOAT|DOUBLE")
_TIMES = re.compile(r"DATE|TIMESTAMP.*")
_TEXTS = re.compile(r"VARCHAR|UUID|ENUM\(.*\)", re.DOTALL)
_NESTED = re.compile(r"JSON|STRUCT\(.*|MAP\(.*|.*\[\d*\]", re.DOTALL)
_HARMLESS = ("TIME", "TIME WITH TIME ZONE", "INTERVAL")
_ENUM = re.compile(r"ENUM\((?:'(?:[^']|'')*'(?:, )?)*\)")  # its type has all values
_LITERAL = re.compile(r"'((?:[^'\n]|'')*)'|\"([^\"\n]*)\"")
_WORDS = re.compile(r"[^\W\d_]{3,}")


@dataclass
class _Table:
    """A loaded table of the release; `columns`: DuckDB types by name, `key`: its column that identifies a row."""

    schema: str
    name: str
    columns: dict[str, str]
    rows: int = 0
    key: str = ""
    personal: set[str] = field(default_factory=set)
    open: set[str] = field(default_factory=set)

    @property
    def relation(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def base(self) -> str:
        return identifier("base", self.schema, self.name)

    @property
    def kept(self) -> str:
        return identifier("temp", f"kept {self.relation}")


@dataclass(frozen=True)
class _Link:
    """`child.column` holds keys of `parent`."""

    child: _Table
    column: str
    parent: _Table


def write_sample(out: Path, base: str | None = None, rows: int = ROWS) -> Build:
    """Write a masked sample of a release.

    Args:
        out: the DuckDB file to write; replaced if it exists.
        base: release id, run id or path of a published file; default what readers see.
        rows: how many rows to keep of a table that refers to no other.

    Returns:
        What was built of it; failures are what does not work with masked data.

    Raises:
        WarehouseError: the base cannot be found, has no loaded table, or dbt could not be run.
        OSError: it cannot be written.
        duckdb.Error: the base cannot be read.
    """
    database = find_database(base)
    if database.path and out.exists() and out.samefile(database.path):
        raise WarehouseError(f"{out} is the published file itself: write the sample elsewhere.")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, so that the last step is a rename.
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        scratch = folder / f"{warehouse_name()}.duckdb"
        with _opened(database, scratch) as connection:
            _Sampler(connection, database).write(rows)
        result = build_scratch(folder, "--full", "--no-load", encrypted=False)
        scratch.replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result


@contextlib.contextmanager
def _opened(database: Database, scratch: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    config = {**spill_config(), "temp_file_encryption": bool(os.environ.get("WAREHOUSE_ENCRYPTION_KEY"))}
    with open_duckdb(config=config) as connection:
        connection.execute(f"set memory_limit = '{MEMORY}'")
        for statement in database.attach("base"):
            connection.execute(statement)
        connection.execute(f"attach {literal(scratch)} as sample")
        yield connection


class _Sampler:
    """Writes the loaded tables of an attached release, `base`, to an attached empty database, `sample`."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, database: Database) -> None:
        self._connection = connection
        self._manifest = database.manifest
        self._dbt = project.read(database.manifest_path) if database.manifest_path else project.Project()
        self._views = Views(connection, "base")
        self._all = {
            (schema, name): kind
            for (schema, name), kind in relations(connection, "base").items()
            if schema != "warehouse" and not is_audit(schema)
        }
        self._loads = self._recorded_loads()
        self._tables = [self._table(*one) for one in self._all if self._is_loaded(*one)]
        if not self._tables:
            raise WarehouseError(f"{database.title} has no loaded table: there is nothing to make a sample of.")

    def write(self, rows: int) -> None:
        links = list(self._links())
        self._mark_personal(links)
        masker = Masker(self._originals)
        kept = _Kept(self._connection, self._manifest, self._tables, self._originals)
        self._connection.execute("set variable salt = ?", [masker.salt])
        self._choose(links, rows)
        for table in self._tables:
            self._write(table, masker, kept)
        self._record()

    def _is_loaded(self, schema: str, name: str) -> bool:
        if self._all[schema, name] != "table" or name.lower().startswith("_dlt"):
            return False
        built = {
            f"{one.schema}.{one.table}" for one in self._dbt.nodes.values() if one.kind not in ("source", "exposure")
        }
        source = (self._dbt.node_of(schema, name) or _NO_NODE).kind == "source" and f"{schema}.{name}" not in built
        return source or f"{schema}.{name}" in self._loads

    def _recorded_loads(self) -> dict[str, builds.Build]:
        self._connection.execute("use base")
        try:
            return {one.relation: one for one in builds.recorded(self._connection, "node = relation").values()}
        finally:
            self._connection.execute("use memory")

    def _table(self, schema: str, name: str) -> _Table:
        described = self._query(f"describe {identifier('base', schema, name)}")
        table = _Table(schema, name, {row[0]: row[1] for row in described})
        table.rows = self._query(f"select count(*) from {table.base}")[0][0]
        known = [key[0] for key in keys_of(self._manifest).get(table.relation, ()) if len(key) == 1]
        named = [one for one in table.columns if _KEY.fullmatch(one)]
        for column in dict.fromkeys((*known, *list(table.columns)[:1], *named)):
            unique = f"select count(*) = count(distinct {identifier(column)}) from {table.base}"
            if column in table.columns and table.rows and self._query(unique)[0][0]:
                table.key = column
                break
        return table

    # Which rows.

    def _links(self) -> Iterator[_Link]:
        """Find what refers to what: by dbt's tests of relationships, by names, and for texts by their values alone."""
        told = set(self._told())
        for child in self._tables:
            for parent in (one for one in self._tables if one.key):
                for column, type_ in child.columns.items():
                    itself = child is parent
                    if column == child.key or (itself and not _KEY.fullmatch(column)):
                        continue
                    if _family(type_) is None or _family(type_) != _family(parent.columns[parent.key]):
                        continue
                    likely = (
                        (child.relation, parent.relation, column) in told
                        or ((child.relation, parent.relation, "") in told and _KEY.fullmatch(column))
                        or _names(column, parent)
                        or _family(type_) == "text"
                    )
                    if likely and self._is_contained(child, column, parent):
                        yield _Link(child, column, parent)

    def _told(self) -> Iterator[tuple[str, str, str]]:
        """Yield child, parent, and for tests of the sources themselves the column."""
        nodes = {**self._manifest.get("nodes", {}), **self._manifest.get("sources", {})}

        def sources(id_: str) -> set[str]:
            node = nodes.get(id_)
            if node is None:
                return set()
            if node["resource_type"] == "source":
                return {f"{node['schema']}.{node['identifier']}"}
            return {found for parent in node["depends_on"]["nodes"] for found in sources(parent)}

        for test in nodes.values():
            if (test.get("test_metadata") or {}).get("name") == "relationships":
                child = test.get("attached_node") or ""
                for parent in (one for one in test["depends_on"]["nodes"] if one != child):
                    for one in sources(child):
                        for other in sources(parent):
                            is_direct = child.startswith("source.") and parent.startswith("source.")
                            yield one, other, str(test.get("column_name") or "") if is_direct else ""

    def _is_contained(self, child: _Table, column: str, parent: _Table) -> bool:
        values = f"select distinct cast({identifier(column)} as varchar) as v from {child.base}"
        keys = f"select cast({identifier(parent.key)} as varchar) from {parent.base}"
        number, orphans = self._query(
            f"select count(v), count(v) filter (v not in ({keys} where {identifier(parent.key)} is not null))"
            f" from ({values})"
        )[0]
        return bool(number) and orphans <= _MOST_ORPHANS * number

    def _choose(self, links: list[_Link], rows: int) -> None:
        """Keep rows of each table in a temporary one, with all that they refer to."""
        done: list[_Table] = []
        left = list(self._tables)
        while left:
            ready = [
                one
                for one in left
                if all(link.parent in done or link.parent is one for link in links if link.child is one)
            ]
            table = (ready or left)[0]
            left.remove(table)
            mine = [link for link in links if link.child is table and link.parent in done]
            most = 10 * rows if mine else rows
            where = " and ".join(f"not ({self._orphaned(link)})" for link in mine) or "true"
            number = self._query(f"select count(*) from {table.base} as t where {where}")[0][0]
            if number > most:  # the same rows of each value of the key
                where += f" and {_fraction(f't.{identifier(table.key)}' if table.key else 't')} < {most / number}"
            self._connection.execute(
                f"create temp table {table.kept.split('.', 1)[1]} as select t.* from {table.base} as t where {where}"
            )
            done.append(table)
        changed = True
        while changed:  # tables that refer to each other, or to themselves
            changed = False
            for link in links:
                deleted = self._query(f"delete from {link.child.kept} as t where {self._orphaned(link)}")[0][0]
                changed = changed or bool(deleted)

    def _orphaned(self, link: _Link) -> str:
        """Return the condition that a row `t` has lost its parent; those that never had one stay."""
        key, value = identifier(link.parent.key), f"cast(t.{identifier(link.column)} as varchar)"
        before, now = (
            f"{value} in (select cast({key} as varchar) from {parent} where {key} is not null)"
            for parent in (link.parent.base, link.parent.kept)
        )
        return f"coalesce({before} and not ({now}), false)"

    # Which columns are about persons.

    def _mark_personal(self, links: list[_Link]) -> None:
        for table in self._tables:
            node = self._dbt.node_of(table.schema, table.name)
            for column in table.columns:
                if self._is_personal(table.schema, table.name, column):
                    table.personal.add(column)
                elif self._dbt.is_open(node, column):
                    table.open.add(column)
        for table in self._tables:  # under another name
            for column in table.columns.keys() - table.personal:
                if _TEXTS.fullmatch(table.columns[column]) and self._holds_originals(table, column):
                    table.personal.add(column)
        changed = True
        while changed:  # keys that are personal, on both sides
            changed = False
            for link in links:
                pair = ((link.child, link.column), (link.parent, link.parent.key))
                if any(column in table.personal for table, column in pair):
                    for table, column in pair:
                        changed = changed or column not in table.personal
                        table.personal.add(column)
        for table in self._tables:
            table.open -= table.personal

    def _is_personal(self, schema: str, name: str, column: str) -> bool:
        if _TECHNICAL.fullmatch(column):
            return False
        if column.lower() in self._marked:
            return True
        examples = self._query(
            f"select cast({identifier(column)} as varchar) from {self._views.readable(schema, name)}"
            f" where {identifier(column)} is not null limit {_EXAMPLES}"
        )
        return is_personal(column, name, [row[0] for row in examples])

    @cached_property
    def _marked(self) -> set[str]:
        """Names of columns that dbt's documentation marks, whichever the table."""
        return {name for node in self._dbt.nodes.values() for name, one in node.columns.items() if one.contains_pii}

    @cached_property
    def _originals(self) -> set[str]:
        """Texts of all personal columns of the release, of those that dbt has built too, in lower case."""
        found: set[str] = set()
        for schema, name in (one for one in self._all if one[1] != REJECTED_ROWS):
            with contextlib.suppress(duckdb.Error, UnsupportedViewError):  # a view that does not work
                readable = self._views.readable(schema, name)
                for column, type_, *_ in self._query(f"describe from {readable}"):
                    if _TEXTS.fullmatch(type_) and self._is_personal(schema, name, column):
                        values = f"select distinct lower(cast({identifier(column)} as varchar)) as v from {readable}"
                        found |= {
                            row[0] for row in self._query(f"{values} where len(trim(v)) > 2 limit {_MOST_ORIGINALS}")
                        }
        return found

    def _holds_originals(self, table: _Table, column: str) -> bool:
        """Whether most of a column's values are some personal column's."""
        text = f"lower(cast({identifier(column)} as varchar))"
        rows = self._query(f"select distinct {text} as v from {table.base} where len(v) > 2 limit {_EXAMPLES}")
        values = {row[0] for row in rows}
        return len(values) > 1 and 2 * len(values & self._originals) > len(values)

    # Masked.

    def _write(self, table: _Table, masker: Masker, kept: "_Kept") -> None:
        self._connection.execute(f"create schema if not exists {identifier('sample', table.schema)}")
        selected, joins = [], []
        is_empty = table.name == REJECTED_ROWS  # lines as they were delivered
        for at, (column, type_) in enumerate(table.columns.items()):
            mask = None if is_empty else self._mask(table, column, type_, masker, kept)
            if isinstance(mask, dict):
                name = f"masks_{at}"
                self._connection.register(name, pa.table({"v": list(mask), "m": list(mask.values())}, _MASKS))
                joins.append(f"left join {name} as m{at} on {_as_text('t', column, type_)} = m{at}.v")
                mask = f"m{at}.m::json" if _NESTED.fullmatch(type_) else f"m{at}.m"
            stored = _ENUM.sub("VARCHAR", type_)
            value = f"t.{identifier(column)}" if mask is None else f"try_cast({mask} as {stored})"
            selected.append(f"{value if stored == type_ else f'cast({value} as {stored})'} as {identifier(column)}")
        self._connection.execute(
            f"create table {identifier('sample', table.schema, table.name)} as select {', '.join(selected)}"
            f" from {table.kept} as t {' '.join(joins)} {'where false' if is_empty else ''}"
        )

    def _mask(
        self, table: _Table, column: str, type_: str, masker: Masker, kept: "_Kept"
    ) -> "str | dict[str, str] | None":
        """Return an expression, the masks by value, or None for a column that stays."""
        personal = column in table.personal
        if _TECHNICAL.fullmatch(column):
            return None
        if _TEXTS.fullmatch(type_) or _NESTED.fullmatch(type_):
            is_text = bool(_TEXTS.fullmatch(type_))
            if is_text and not personal and (type_ == "UUID" or self._is_plain(table, column)):
                return None
            values = self._values(table, column, type_)
            stays = kept.public
            if column in table.open:
                stays = kept.texts | kept.nested([one for one in values if not is_text or _is_nested(one)])

            def mask_text(one: str) -> str:
                return one if one in stays else masker.text(one)

            def is_field_personal(name: str) -> bool:
                return personal or (bool(name) and (name.lower() in self._marked or is_personal(name, table.name, ())))

            return {
                one: masker.nested(one, mask_text, is_field_personal)
                if not is_text or _is_nested(one)
                else masker.text(one)
                if personal
                else mask_text(one)
                for one in values
            }
        if not (
            _INTEGERS.fullmatch(type_) or _NUMBERS.fullmatch(type_) or _TIMES.fullmatch(type_) or type_ == "BOOLEAN"
        ):
            return None if type_ in _HARMLESS and not personal else "null"
        if not personal:
            return None
        if _INTEGERS.fullmatch(type_):
            return {one: str(masker.number(int(one))) for one in self._values(table, column, type_)}
        value, share = f"t.{identifier(column)}", _fraction(f"t.{identifier(column)}")
        if type_ == "BOOLEAN":
            return f"if({value} is null, null, {share} < 0.5)"
        # Within the range of most values: the ends of it are somebody's.
        low, high = (f"(select quantile_disc({identifier(column)}, {at}) from {table.base})" for at in (0.05, 0.95))
        if _TIMES.fullmatch(type_):
            low, high = (f"epoch_us(cast({one} as timestamp))" for one in (low, high))
            return f"if({value} is null, null, make_timestamp(cast({low} + {share} * ({high} - {low}) as bigint)))"
        return f"if({value} is null, null, {low} + {share} * ({high} - {low}))"

    def _values(self, table: _Table, column: str, type_: str) -> list[str]:
        text = _as_text("t", column, type_)
        return [
            row[0] for row in self._query(f"select distinct {text} as v from {table.kept} as t where v is not null")
        ]

    def _is_plain(self, table: _Table, column: str) -> bool:
        """Whether a text column has dates, or numbers with a fraction, only."""
        v = f"cast({identifier(column)} as varchar)"
        other = rf"try_cast({v} as timestamp) is null and not regexp_full_match({v}, '-?\d+[.,]\d+')"
        return not self._query(f"select count(*) from {table.base} where {identifier(column)} is not null and {other}")[
            0
        ][0]

    def _record(self) -> None:
        """Record the tables as loaded, under build ids of their own: real files are other data."""
        self._connection.execute("use sample")
        codes = {relation: one.code for relation, one in self._loads.items()}
        ids = {one.relation: f"sample-{Masker().salt[:16]}" for one in self._tables}
        loaded = {one for one in ids if one in self._loads}
        for stateful in (False, True):
            chosen = {one: ids[one] for one in loaded if self._loads[one].stateful is stateful}
            builds.record_load(self._connection, "sample", chosen, stateful=stateful, codes=codes)
        self._connection.execute("use memory")

    def _query(self, sql: str) -> list[Any]:
        return self._connection.execute(sql).fetchall()


class _Kept:
    """Texts that are nobody's, and may stay.

    `public` are in the code: literals of models, values that tests accept. `texts` are these, and what documented
    columns without personal data have often, short and without any word of a personal column.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, manifest: dict[str, Any], tables: list[_Table], originals: set[str]
    ) -> None:
        self._personal_words = {word for one in originals for word in _WORDS.findall(one)}
        self.public = set(_public(manifest))
        self.texts = set(self.public)
        for table in tables:
            for column in (one for one in table.open if _TEXTS.fullmatch(table.columns[one])):
                rows = connection.execute(
                    f"select cast({identifier(column)} as varchar) as v from {table.base} where v is not null"
                    f" group by v having count(*) >= {_FREQUENT}"
                ).fetchall()
                self.texts |= {row[0] for row in rows if self._is_nobodys(row[0])}

    def nested(self, values: list[str]) -> set[str]:
        """Return what may stay of texts and names of fields in JSON values."""
        seen: dict[str, int] = {}
        for value in values:
            for one in set(re.findall(r'"((?:[^"\\]|\\.)*)"', value)):
                seen[one] = seen.get(one, 0) + 1
        often = {one for one, number in seen.items() if number >= min(_FREQUENT, len(values)) and self._is_nobodys(one)}
        return self.public | (often if len(values) >= _FREQUENT else set())

    def _is_nobodys(self, text: str) -> bool:
        is_short = len(text) <= 40 and "@" not in text and not re.search(r"\d[\d /()-]{5,}\d", text)
        return is_short and self._personal_words.isdisjoint(_WORDS.findall(text.lower()))


def _public(manifest: dict[str, Any]) -> Iterator[str]:
    for node in manifest.get("nodes", {}).values():
        if node["resource_type"] in ("model", "snapshot", "test"):
            for one, other in _LITERAL.findall(node.get("raw_code") or ""):
                yield from (one, other)
        for value in ((node.get("test_metadata") or {}).get("kwargs") or {}).get("values") or ():
            yield str(value)


@dataclass(frozen=True)
class _NoNode:
    kind: str = ""


_NO_NODE = _NoNode()
_MASKS = pa.schema([("v", pa.string()), ("m", pa.string())])


def _is_nested(text: str) -> bool:
    """Whether a text is a JSON object or list."""
    try:
        return text.lstrip()[:1] in ("{", "[") and isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _family(type_: str) -> str | None:
    return "number" if _INTEGERS.fullmatch(type_) else "text" if _TEXTS.fullmatch(type_) else None


def _names(column: str, parent: _Table) -> bool:
    """Whether a column is named as another table's key: `order_id`, or as the key itself, if that is no `id`."""
    name = re.sub(r"^(raw|stg|src|base)_+", "", parent.name.lower())
    stem, key = re.sub(r"_?(id|uuid|code|key|no|number)$", "", column.lower()), parent.key.lower()
    singular = {name, name.removesuffix("s"), name.removesuffix("es"), re.sub("ies$", "y", name)}
    return (bool(stem) and any(stem == one or stem.endswith(f"_{one}") for one in singular)) or (
        column.lower() == key and key not in ("id", "uuid", "code", "key")
    )


def _as_text(alias: str, column: str, type_: str) -> str:
    value = f"{alias}.{identifier(column)}"
    return f"cast(to_json({value}) as varchar)" if _NESTED.fullmatch(type_) else f"cast({value} as varchar)"


def _fraction(value: str) -> str:
    """Return a random number from 0 to 1, the same for equal values."""
    digest = f"sha256(getvariable('salt') || coalesce(cast({value} as varchar), ''))"
    return f"(cast('0x' || left({digest}, 12) as ubigint) / {16**12})"
