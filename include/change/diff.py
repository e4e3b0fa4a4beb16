"""Compare two databases to the row: which tables, columns, rows and values differ.

    before ─┐                      for each table that was rebuilt, one full outer join by its key:
            ├─ tables, columns ──▶ rows added, removed, changed; per column values changed, change of the sum, samples
    after  ─┘

Both are catalogs attached to one in-memory DuckDB connection. A table without a key is compared as a bag of rows.
"""

import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import duckdb

from include.change.views import UnsupportedViewError, Views
from include.settings import is_audit
from include.sql import identifier
from include.warehouse.builds import recorded
from include.warehouse.connection import time_limit
from include.warehouse.errors import first_line
from include.warehouse.targets import named, target

Key = tuple[str, ...]
_Source = Literal["before", "after"]

SAMPLES = 3
_TEXT_LENGTH = 80
_TECHNICAL_SCHEMAS = ("warehouse", "information_schema", "pg_catalog")
# They differ in every row of every build.
_TECHNICAL_COLUMNS = re.compile(
    r"_dlt_.*|_file|dbt_scd_id|dbt_updated_at|dbt_valid_from|dbt_valid_to|dbt_is_deleted", re.IGNORECASE
)
_RENAMES_TRIED = 50
# Without a key, sums and samples take another pass over both tables.
_ROWS_READ_TWICE = 1_000_000
_COLUMNS_SHOWN = 6
_OUT_OF_TIME = "it took too long"
_INTEGERS = {"TINYINT": 3, "SMALLINT": 5, "INTEGER": 10, "BIGINT": 19, "HUGEINT": 39}  # and their digits
_INTEGERS |= {"UTINYINT": 3, "USMALLINT": 5, "UINTEGER": 10, "UBIGINT": 20, "UHUGEINT": 39}
_FLOATS = {"FLOAT": 1e-6, "DOUBLE": 1e-12}  # relative differences that the order of an addition makes
_TIMES = ("DATE", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP", "TIMESTAMP_NS", "TIMESTAMP WITH TIME ZONE")
_DECIMAL = re.compile(r"DECIMAL\((\d+),(\d+)\)")


@dataclass(frozen=True)
class Sample:
    """A value that differs, as text: the row's key, the value before and after; None for NULL."""

    key: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class ColumnDiff:
    """How a column differs.

    Attributes:
        status: changed also if only the sum differs, through rows added or removed; retyped whatever the values.
        was: its old name, if it was renamed.
        type_before, type_after: DuckDB types; empty where the column does not exist.
        changed: values that differ, of the rows in both; None if that is unknown without a key.
        sum_change: of a number, by how much its sum over all rows changed; empty if it did not, or is hidden.
        samples: the first values that differ, by key.
        hidden: whether its values are not for everyone, so that there are no samples and no sum.
    """

    name: str
    status: Literal["added", "removed", "renamed", "changed", "retyped"]
    was: str = ""
    type_before: str = ""
    type_after: str = ""
    changed: int | None = None
    sum_change: str = ""
    samples: tuple[Sample, ...] = ()
    hidden: bool = False


@dataclass(frozen=True)
class TableDiff:
    """How a table or view differs.

    Attributes:
        relation: `schema.name`.
        status: `failed` if it could not be read or compared, for the reason in `note`.
        rows_before, rows_after: number of rows; None where it does not exist or was not read.
        added, removed: rows in one only.
        changed: rows in both, by key, of which a value differs; None without a key.
        key: the columns that identify a row; empty if rows were compared as a whole.
        columns: those that differ.
        added_rows, removed_rows: the first of these rows, as text: their keys, or without a key their values.
        note: what else to know.
    """

    relation: str
    status: Literal["added", "removed", "changed", "same", "failed"]
    rows_before: int | None = None
    rows_after: int | None = None
    added: int = 0
    removed: int = 0
    changed: int | None = None
    key: Key = ()
    columns: tuple[ColumnDiff, ...] = ()
    added_rows: tuple[str, ...] = ()
    removed_rows: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Side:
    """One of the two databases.

    Attributes:
        catalog: the name it is attached under.
        keys: columns that identify a row, by relation; the best first.
        is_open: whether anyone may see the values of a column: relation, column.
        keeps_types: as `Target.keeps_types`. If only one side does, types of one kind are the same.
    """

    catalog: str
    keys: Mapping[str, Sequence[Key]] = field(default_factory=dict)
    is_open: Callable[[str, str], bool] = lambda relation, column: True
    keeps_types: bool = True


def compare(
    connection: duckdb.DuckDBPyConnection,
    before: Side,
    after: Side,
    only: Callable[[str], bool] = lambda relation: True,
    seconds: float = math.inf,
) -> list[TableDiff]:
    """Compare two databases, table by table.

    A table with the same build id in both was not rebuilt, and is not read. Technical tables and columns are ignored.

    Args:
        connection: an in-memory connection to which both are attached. A join that exceeds its memory limit uses its
            temporary directory.
        before: the first database.
        after: the second one.
        only: which relations to compare.
        seconds: time limit; tables that are left then have `failed`.

    Returns:
        The tables that differ or could not be compared, sorted by relation.
    """
    comparison, deadline = _Comparison(connection, before, after), time.monotonic() + seconds
    found = (comparison.run(relation, deadline) for relation in comparison.rebuilt() if only(relation))
    return [one for one in found if one]


def common_type(one: str, other: str) -> str:
    """Return the type as which two types are compared, so that equal values are equal and no others."""
    if one == other:
        return one
    digits = [_digits(one), _digits(other)]
    if digits[0] and digits[1]:
        scale = max(digits[0][1], digits[1][1])
        width = max(digits[0][0], digits[1][0]) + scale
        return f"DECIMAL({width},{scale})" if width <= 38 else "DOUBLE" if scale else "VARCHAR"
    if all(size or type_ in _FLOATS for type_, size in zip((one, other), digits, strict=True)):
        return "DOUBLE"
    if one in _TIMES and other in _TIMES:
        return _TIMES[-1] if _TIMES[-1] in (one, other) else "TIMESTAMP_NS" if "_NS" in one + other else "TIMESTAMP"
    return "VARCHAR"


def _digits(type_: str) -> tuple[int, int] | None:
    """Return a number's digits before and after the point; None for another type."""
    if type_ in _INTEGERS:
        return _INTEGERS[type_], 0
    found = _DECIMAL.fullmatch(type_)
    return (int(found[1]) - int(found[2]), int(found[2])) if found else None


def _kind(type_: str) -> str:
    """Return what a type says wherever it is kept."""
    if type_ in _FLOATS:
        return "float"
    if type_.startswith("TIMESTAMP") and type_ != "TIMESTAMP WITH TIME ZONE":
        return "timestamp"
    return "number" if _digits(type_) else type_


def is_summed(column: str, data_type: str) -> bool:
    """Whether the sum of a column means anything: it has numbers, and its name is not that of a key."""
    is_number = data_type in _FLOATS or _digits(data_type) is not None
    return is_number and not re.fullmatch(r"id|.*_id", column.lower())


@dataclass(frozen=True)
class _Column:
    name: str
    type: str
    kind: str  # the type itself, where both sides keep it
    is_open: bool


@dataclass(frozen=True)
class _Pair:
    """A column and its counterpart on the other side."""

    before: _Column
    after: _Column

    @property
    def type(self) -> str:
        return common_type(self.before.type, self.after.type)

    @property
    def hidden(self) -> bool:
        return not (self.before.is_open and self.after.is_open)

    @property
    def is_renamed(self) -> bool:
        return self.before.name.lower() != self.after.name.lower()

    @property
    def is_retyped(self) -> bool:
        return self.before.kind != self.after.kind

    @property
    def is_summed(self) -> bool:
        """Whether it has a sum that means anything and may be shown."""
        return is_summed(self.after.name, self.type) and not self.hidden

    def read(self, side: _Source) -> str:
        column: _Column = getattr(self, side)
        return (
            identifier(column.name) if column.type == self.type else f"cast({identifier(column.name)} as {self.type})"
        )

    def differs(self, left: str, right: str) -> str:
        distinct = f"{left} is distinct from {right}"
        if self.type in _FLOATS:
            largest = f"greatest(abs({left}), abs({right}))"
            near = f"isfinite({largest}) and abs({left} - {right}) <= {_FLOATS[self.type]} * {largest}"
            return f"({distinct} and not coalesce({near}, false))"
        return distinct


@dataclass(frozen=True)
class _Pairing:
    """A table's sources as SQL, and its columns: those on both sides, those only before, those only after."""

    sources: Mapping[_Source, str]
    both: Sequence[_Pair]
    gone: Sequence[_Column]
    new: Sequence[_Column]


class _Comparison:
    def __init__(self, connection: duckdb.DuckDBPyConnection, before: Side, after: Side) -> None:
        self._connection = connection
        self._sides: dict[_Source, Side] = {"before": before, "after": after}
        self._views = {side: Views(connection, one.catalog) for side, one in self._sides.items()}
        self._relations = {side: _relations(connection, one.catalog) for side, one in self._sides.items()}
        self._builds = {side: _builds(connection, one.catalog) for side, one in self._sides.items()}

    def rebuilt(self) -> list[str]:
        """Return the relations that may differ, sorted."""
        before, after = self._builds.values()
        in_both = self._relations["before"].keys() & self._relations["after"].keys()
        same = {one for one in in_both if before.get(one) and before[one] == after.get(one)}
        unchanged = {one for one in same if not self._was_edited(one)}
        return sorted((self._relations["before"].keys() | self._relations["after"].keys()) - unchanged)

    def _was_edited(self, relation: str) -> bool:
        """Whether rows were added or removed by hand, without a build; only where a table knows their number."""
        counts = set()
        for side, views in self._views.items():
            schema, name = self._relations[side][relation]
            if not views.is_stored(schema, name):
                return False
            counts.add(self._count(views.readable(schema, name)))
        return len(counts) > 1

    def run(self, relation: str, deadline: float) -> TableDiff | None:
        """Compare one relation; return None if it is the same."""
        left = deadline - time.monotonic()
        if left <= 0:
            return TableDiff(relation, "failed", note=_OUT_OF_TIME)
        try:
            # A timer cannot wait for ever, nor need it.
            with time_limit(self._connection, min(left, threading.TIMEOUT_MAX)):
                found = self._compare(relation)
        except duckdb.InterruptException:
            return TableDiff(relation, "failed", note=_OUT_OF_TIME)
        except (duckdb.Error, UnsupportedViewError) as error:
            return TableDiff(relation, "failed", note=first_line(error))
        if found.status == "changed" and not (found.added or found.removed or found.changed or found.columns):
            return None
        return found

    def _compare(self, relation: str) -> TableDiff:
        name = self._relations["before"].get(relation) or self._relations["after"][relation]
        if relation not in self._relations["after"]:
            rows = self._count(self._views["before"].readable(*name))
            return TableDiff(relation, "removed", rows_before=rows, removed=rows)
        if relation not in self._relations["before"]:
            rows = self._count(self._views["after"].readable(*name))
            return TableDiff(relation, "added", rows_after=rows, added=rows)
        pairing = self._pairing(relation, name)
        key, guessed = self._key(relation, pairing)
        if key:
            found = self._by_key(relation, pairing, key)
            kept = (found.rows_before or 0) - found.removed
            if not guessed or kept * 2 >= min(found.rows_before or 0, found.rows_after or 0):
                return found
        return self._by_row(relation, pairing)

    def _pairing(self, relation: str, name: tuple[str, str]) -> _Pairing:
        sources = {side: views.readable(*name) for side, views in self._views.items()}
        columns: dict[_Source, dict[str, _Column]] = {}
        kind = _kind if len({side.keeps_types for side in self._sides.values()}) > 1 else str
        for side, source in sources.items():
            described = self._connection.execute(f"describe from {source}").fetchall()
            columns[side] = {
                row[0].lower(): _Column(row[0], row[1], kind(row[1]), self._sides[side].is_open(relation, row[0]))
                for row in described
                if not _TECHNICAL_COLUMNS.fullmatch(row[0])
            }
        before, after = columns.values()
        return _Pairing(
            sources,
            [_Pair(before[one], after[one]) for one in before if one in after],
            [before[one] for one in before if one not in after],
            [after[one] for one in after if one not in before],
        )

    def _key(self, relation: str, pairing: _Pairing) -> tuple[list[_Pair], bool]:
        """Return the columns that identify a row, none if there are none, and whether they are a guess."""
        known = [
            [tuple(name.lower() for name in one) for one in side.keys.get(relation, ())]
            for side in self._sides.values()
        ]
        candidates = [(one, one) for one in (*known[0], *known[1])]
        candidates += [(one, other) for one in known[0] for other in known[1] if len(one) == len(other)]  # renamed
        is_guess = not candidates
        if is_guess and pairing.both and re.fullmatch(r"id|.*_(id|key)", first := pairing.both[0].before.name.lower()):
            candidates = [((first,), (first,))]
        before = {one.name.lower(): one for one in (*(pair.before for pair in pairing.both), *pairing.gone)}
        after = {one.name.lower(): one for one in (*(pair.after for pair in pairing.both), *pairing.new)}
        for one, other in candidates:
            if before.keys() >= set(one) and after.keys() >= set(other):
                names = ", ".join(identifier(name) for name in one)
                # On one side is enough: then no row of the other finds two counterparts.
                repeated = f"select 1 from {pairing.sources['before']} group by {names} having count(*) > 1 limit 1"
                if not self._connection.execute(repeated).fetchone():
                    return [_Pair(before[a], after[b]) for a, b in zip(one, other, strict=True)], is_guess
        return [], False

    def _by_key(self, relation: str, pairing: _Pairing, key: Sequence[_Pair]) -> TableDiff:
        compared = [
            pair for pair in pairing.both if not any(pair.before == k.before or pair.after == k.after for k in key)
        ]
        gone = [one for one in pairing.gone if not any(one == pair.before for pair in key)]
        new = [one for one in pairing.new if not any(one == pair.after for pair in key)]
        renames = [_Pair(one, other) for one in gone for other in new if one.kind == other.kind][:_RENAMES_TRIED]
        try:
            found = self._join(pairing, key, compared, renames, with_sums=True)
        except duckdb.OutOfRangeException:  # the sum of very large numbers
            found = self._join(pairing, key, compared, renames, with_sums=False)
        rows = {side: self._count(source) for side, source in pairing.sources.items()}
        added = rows["after"] - rows["before"] + found["removed"]
        columns = [
            ColumnDiff(
                pair.after.name, "renamed", pair.before.name, pair.before.type, pair.after.type, hidden=pair.hidden
            )
            for pair in key
            if pair.is_renamed
        ]
        for at, pair in enumerate(compared):
            changed = found[f"changed{at}"]
            by = found.get(f"sum{at}", 0) if changed or added or found["removed"] else 0
            if changed or by or pair.is_retyped:
                columns.append(
                    ColumnDiff(
                        pair.after.name,
                        "retyped" if pair.is_retyped else "changed",
                        "",
                        pair.before.type,
                        pair.after.type,
                        changed,
                        _signed(by),
                        tuple(Sample(**one) for one in found.get(f"samples{at}") or ()),
                        pair.hidden,
                    )
                )
        for at, pair in enumerate(renames):
            if pair.before in gone and pair.after in new and found[f"renamed{at}"]:
                gone.remove(pair.before)
                new.remove(pair.after)
                columns.append(
                    ColumnDiff(pair.after.name, "renamed", pair.before.name, pair.before.type, pair.after.type, 0)
                )
        names = ", ".join(pair.after.name for pair in key)
        repeated = found["pairs"] + found["removed"] - rows["before"]
        return TableDiff(
            relation,
            "changed",
            rows["before"],
            rows["after"],
            added,
            found["removed"],
            found["changed"],
            tuple(pair.after.name for pair in key),
            (*columns, *_one_sided(gone, new)),
            tuple(found.get("added_rows") or ()),
            tuple(found.get("removed_rows") or ()),
            f"{repeated:,} rows repeat the {names} of another: it does not identify a row any more" if repeated else "",
        )

    def _join(
        self,
        pairing: _Pairing,
        key: Sequence[_Pair],
        compared: Sequence[_Pair],
        renames: Sequence[_Pair],
        with_sums: bool,
    ) -> dict[str, Any]:
        """Join both sides by key in one pass, and return all that is counted, by name."""
        columns = [*compared, *renames]
        sides = {}
        for side, source in pairing.sources.items():
            read = [f"{pair.read(side)} as k{at}" for at, pair in enumerate(key)]
            read += [f"{pair.read(side)} as c{at}" for at, pair in enumerate(columns)]
            sides[side] = f"(select {', '.join(read)}, true as here from {source})"
        on = " and ".join(f"l.k{at} = r.k{at}" for at in range(len(key)))
        joined = ["l.here as l", "r.here as r", *(f"coalesce(l.k{at}, r.k{at}) as k{at}" for at in range(len(key)))]
        for at, pair in enumerate(columns):
            differs = pair.differs(f"l.c{at}", f"r.c{at}")
            joined += [f"l.c{at} as l{at}", f"r.c{at} as r{at}", f"(l.here and r.here and {differs}) as d{at}"]
        wanted = {
            "pairs": "count(*) filter (l and r)",
            "removed": "count(*) filter (r is null)",
            "changed": f"count(*) filter ({' or '.join(f'd{at}' for at in range(len(compared))) or 'false'})",
        }
        order = "k0" if len(key) == 1 else f"row({', '.join(f'k{at}' for at in range(len(key)))})"
        key_text = _text(f"concat_ws(', ', {', '.join(f'x.k{at}' for at in range(len(key)))})")
        keys = ", ".join(f"'k{at}': k{at}" for at in range(len(key)))
        are_keys_open = not any(pair.hidden for pair in key)
        if are_keys_open:
            for name, other in (("removed_rows", "r"), ("added_rows", "l")):
                first = f"arg_min({{{keys}}}, {order}, {SAMPLES}) filter ({other} is null)"
                wanted[name] = f"list_transform({first}, lambda x: {key_text})"
        for at, pair in enumerate(compared):
            wanted[f"changed{at}"] = f"count(*) filter (d{at})"
            if with_sums and pair.is_summed:
                wanted[f"sum{at}"] = f"coalesce(sum(r{at}), 0) - coalesce(sum(l{at}), 0)"
            if are_keys_open and not pair.hidden:
                first = f"arg_min({{{keys}, 'l': l{at}, 'r': r{at}}}, {order}, {SAMPLES}) filter (d{at})"
                text = f"{{'key': {key_text}, 'before': {_text('x.l')}, 'after': {_text('x.r')}}}"
                wanted[f"samples{at}"] = f"list_transform({first}, lambda x: {text})"
        for at in range(len(renames)):
            one = at + len(compared)
            wanted[f"renamed{at}"] = f"count(*) filter (d{one}) = 0 and count(*) filter (l{one} is not null) > 0"
        source = f"(select {', '.join(joined)} from {sides['before']} as l full join {sides['after']} as r on {on})"
        return self._row(wanted, source)

    def _by_row(self, relation: str, pairing: _Pairing) -> TableDiff:
        rows = {side: self._count(source) for side, source in pairing.sources.items()}
        columns = [
            ColumnDiff(pair.after.name, "retyped", "", pair.before.type, pair.after.type, hidden=pair.hidden)
            for pair in pairing.both
            if pair.is_retyped
        ]
        found: dict[str, Any] = {
            "removed": max(0, rows["before"] - rows["after"]),
            "added": max(0, rows["after"] - rows["before"]),
        }
        if pairing.both:
            hashes = {side: f"hash({', '.join(pair.read(side) for pair in pairing.both)})" for side in pairing.sources}
            before, after = (
                f"select {hashes[side]} as h, {{}} as sign from {pairing.sources[side]}" for side in hashes
            )
            self._connection.execute(
                "create or replace temp table one_sided as select h, sum(sign) as rows"
                f" from ({before.format(-1)} union all {after.format(1)}) group by h having sum(sign) <> 0"
            )
            wanted = {
                "removed": "cast(coalesce(-sum(rows) filter (rows < 0), 0) as bigint)",
                "added": "cast(coalesce(sum(rows) filter (rows > 0), 0) as bigint)",
            }
            found = self._row(wanted, "temp.one_sided")
            if max(rows.values()) <= _ROWS_READ_TWICE and (found["removed"] or found["added"]):
                found["removed_rows"] = self._first_rows(
                    pairing, "before", f"{hashes['before']} in (select h from temp.one_sided where rows < 0)"
                )
                found["added_rows"] = self._first_rows(
                    pairing, "after", f"{hashes['after']} in (select h from temp.one_sided where rows > 0)"
                )
                columns += self._sums(pairing)
            self._connection.execute("drop table temp.one_sided")
        return TableDiff(
            relation,
            "changed",
            rows["before"],
            rows["after"],
            columns=(*columns, *_one_sided(pairing.gone, pairing.new)),
            **found,
        )

    def _first_rows(self, pairing: _Pairing, side: _Source, condition: str) -> tuple[str, ...]:
        shown = [pair for pair in pairing.both if not pair.hidden][:_COLUMNS_SHOWN]
        if not shown:
            return ()
        values = ", ".join(_text(pair.read(side)) for pair in shown)
        rows = self._connection.execute(
            f"select {values} from {pairing.sources[side]} where {condition} order by all limit {SAMPLES}"
        ).fetchall()
        return tuple(
            ", ".join(f"{pair.after.name} {value}" for pair, value in zip(shown, row, strict=True)) for row in rows
        )

    def _sums(self, pairing: _Pairing) -> Iterator[ColumnDiff]:
        summed = [pair for pair in pairing.both if pair.is_summed]
        if not summed:
            return
        sums = {
            side: self._row(
                {f"s{at}": f"coalesce(sum({pair.read(side)}), 0)" for at, pair in enumerate(summed)}, source
            )
            for side, source in pairing.sources.items()
        }
        for at, pair in enumerate(summed):
            if by := sums["after"][f"s{at}"] - sums["before"][f"s{at}"]:
                yield ColumnDiff(
                    pair.after.name, "changed", "", pair.before.type, pair.after.type, sum_change=_signed(by)
                )

    def _row(self, wanted: Mapping[str, str], source: str) -> dict[str, Any]:
        """Return a query's only row, by column."""
        columns = ", ".join(f"{sql} as {name}" for name, sql in wanted.items())
        row = self._connection.execute(f"select {columns} from {source}").fetchone()
        return dict(zip(wanted, row or (), strict=True))

    def _count(self, source: str) -> int:
        return int(self._row({"rows": "count(*)"}, source)["rows"])


def relations(connection: duckdb.DuckDBPyConnection, catalog: str) -> dict[tuple[str, str], str]:
    """Return what `Target.relations` does, also of a DuckDB file where the target is another one."""
    type_ = connection.execute("select type from duckdb_databases() where database_name = ?", [catalog]).fetchone()
    return (named("duckdb") if type_ == ("duckdb",) else target()).relations(connection, catalog)


def _relations(connection: duckdb.DuckDBPyConnection, catalog: str) -> dict[str, tuple[str, str]]:
    """Return schema and name of the tables and views to compare, by relation."""
    return {
        f"{schema}.{name}": (schema, name)
        for schema, name in relations(connection, catalog)
        if schema.lower() not in _TECHNICAL_SCHEMAS and not is_audit(schema) and not name.lower().startswith("_dlt")
    }


def _builds(connection: duckdb.DuckDBPyConnection, catalog: str) -> dict[str, str | None]:
    connection.execute(f"use {identifier(catalog)}")
    try:
        return {one.relation: one.build_id for one in recorded(connection).values() if one.relation}
    finally:
        connection.execute("use memory")


def _one_sided(gone: Sequence[_Column], new: Sequence[_Column]) -> list[ColumnDiff]:
    added = [ColumnDiff(one.name, "added", type_after=one.type) for one in new]
    return added + [ColumnDiff(one.name, "removed", type_before=one.type) for one in gone]


def _text(value: str) -> str:
    return f"left(cast({value} as varchar), {_TEXT_LENGTH})"


def _signed(number: Any) -> str:
    """Return a difference with its sign, or an empty string if there is none."""
    if isinstance(number, float):
        return f"{number:+.10g}" if number and math.isfinite(number) else ""
    return format(number, "+d" if isinstance(number, int) else "+f") if number else ""
