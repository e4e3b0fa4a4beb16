"""A preview or a difference as text for a terminal, as Markdown for a pull request, as a page, and as JSON."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from include.change.diff import ColumnDiff, Sample, TableDiff

CODES = "codes.json"  # beside a scratch: the digests of its nodes on the engine of its base, if not on DuckDB
_SIGNS = {"added": "+", "removed": "-", "changed": "~", "failed": "!"}
_UNCHANGED = "No table differs."
_PAGE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class Reader:
    """Something that reads a table that differs.

    Attributes:
        kind: what it is: dashboard, query, ...
        detail: its owner, or what of it is broken.
        error: why it does not work any more; empty if it does.
    """

    kind: str
    name: str
    detail: str = ""
    error: str = ""


@dataclass(frozen=True)
class Build:
    """What a preview built and tested.

    Attributes:
        changed, also_built, removed: names of nodes: those that differ, those that read them, those that are gone.
        tests: how many ran.
        failures: what failed, one line each: a model that was not built, a test and its number of failing rows.
        notes: what else to know.
        place: the scratch database.
        left_out: relations of views that the base's copy left out, so that they may look new.
    """

    changed: tuple[str, ...] = ()
    also_built: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    tests: int = 0
    tests_passed: int = 0
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    place: str = ""
    left_out: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, text: str) -> "Build":
        """Return what `asdict` made, read from JSON."""
        read: dict[str, Any] = json.loads(text)
        read |= {name: tuple(one) for name, one in read.items() if isinstance(one, list)}
        return cls(**read)


@dataclass(frozen=True)
class Report:
    """A difference, and of a preview what was built for it."""

    before: str
    after: str
    tables: tuple[TableDiff, ...]
    readers: tuple[Reader, ...] = ()
    build: Build | None = None

    @classmethod
    def from_json(cls, text: str) -> "Report | None":
        """Return the difference that `to_json` wrote, without what was built and who reads it; None for other text."""
        try:
            raw = json.loads(text)
            return cls(str(raw["before"]), str(raw["after"]), tuple(_table(one) for one in raw["tables"]))
        except (ValueError, TypeError, KeyError):
            return None

    @property
    def has_failed(self) -> bool:
        """Whether something was not built, did not pass, or cannot be read any more."""
        failed = bool(self.build and self.build.failures)
        return failed or any(one.error for one in self.readers) or any(one.status == "failed" for one in self.tables)

    def to_json(self) -> str:
        """Return all of it as JSON."""
        return json.dumps({**asdict(self), "failed": self.has_failed}, indent=2) + "\n"

    def to_text(self) -> str:
        """Return it for a terminal."""
        return "\n".join(self._lines()) + "\n"

    def to_markdown(self) -> str:
        """Return it for a pull request."""
        return "\n".join(self._markdown()) + "\n"

    def to_html(self) -> str:
        """Return it as a page that needs nothing else."""

        def printable(value: Any) -> Any:
            return _plain(value) if isinstance(value, str) else value

        pages = Environment(loader=FileSystemLoader(_PAGE.parent), autoescape=True, finalize=printable)
        return pages.get_template(_PAGE.name).render(
            title=self._title(),
            build=self.build,
            tables=self.tables,
            readers=self.readers,
            unchanged=_UNCHANGED,
            summarize=summarize,
            describe=describe,
            describe_reader=_reader,
        )

    def _title(self) -> str:
        if self.build:
            return f"Preview of {self.after}, against {self.before}"
        return f"From {self.before} to {self.after}"

    def _lines(self) -> Iterator[str]:
        yield _plain(self._title())
        if self.build:
            changed, also = _names(self.build.changed), _names(self.build.also_built)
            yield f"Changed     {changed}        Also built   {also}"
            if self.build.removed:
                yield f"Removed     {_names(self.build.removed)}"
            yield f"Tests       {self.build.tests_passed} of {self.build.tests} passed"
            yield from (f"  FAIL {_plain(one)}" for one in self.build.failures)
            yield from (f"Note        {_plain(one)}" for one in self.build.notes)
        if not self.tables:
            yield _UNCHANGED
        for table in self.tables:
            yield _plain(f"{_SIGNS[table.status]} {table.relation}   {summarize(table)}")
            yield from (_plain(f"    {line}") for line in describe(table))
        for at, reader in enumerate(self.readers):
            yield _plain(f"{'Read by' if at == 0 else '':<11} {_reader(reader)}")
        if self.build:
            yield "Not touched: readers, the working database"
            if self.build.place:
                yield f"Kept        {self.build.place}"

    def _markdown(self) -> Iterator[str]:
        yield f"### {_code_free(self._title())}"
        yield ""
        if self.build:
            yield f"**Changed:** {_codes(self.build.changed)} · **also built:** {_codes(self.build.also_built)}" + (
                f" · **removed:** {_codes(self.build.removed)}" if self.build.removed else ""
            )
            yield ""
            yield f"**Tests:** {self.build.tests_passed} of {self.build.tests} passed"
            yield from ("", *(f"- ❌ {_code(one)}" for one in self.build.failures)) if self.build.failures else ()
            yield from ("", *(f"- {_code_free(one)}" for one in self.build.notes)) if self.build.notes else ()
            yield ""
        if not self.tables:
            yield _UNCHANGED
        else:
            yield "| table | rows | added | removed | changed |"
            yield "|---|---|---|---|---|"
            for table in self.tables:
                cells = (_code(f"{_SIGNS[table.status]} {table.relation}"), *_cells(table))
                yield "| " + " | ".join(one.replace("|", r"\|") for one in cells) + " |"
        for table in self.tables:
            if lines := list(describe(table)):
                yield ""
                yield f"<details><summary>{_code_free(table.relation)}</summary>"
                yield ""
                yield from (f"- {_code(line)}" for line in lines)
                yield ""
                yield "</details>"
        if self.readers:
            yield ""
            yield "**Read by**"
            yield ""
            yield from (f"- {'❌ ' if one.error else ''}{_code_free(_reader(one))}" for one in self.readers)


def _table(raw: dict[str, Any]) -> TableDiff:
    columns = tuple(
        ColumnDiff(**{**one, "samples": tuple(Sample(**sample) for sample in one["samples"])}) for one in raw["columns"]
    )
    lists = {name: tuple(raw[name]) for name in ("key", "added_rows", "removed_rows")}
    return TableDiff(**{**raw, **lists, "columns": columns})


def summarize(table: TableDiff) -> str:
    """Return how a table differs, in a line."""
    if table.status == "failed":
        return f"could not be compared: {table.note}"
    if table.status in ("added", "removed"):
        rows = table.rows_after if table.status == "added" else table.rows_before
        return f"{'new' if table.status == 'added' else 'gone'}, {rows:,} rows"
    before, after = f"{table.rows_before:,}", f"{table.rows_after:,}"
    counts = f"{table.added:,} added, {table.removed:,} removed"
    if table.changed is not None:
        counts += f", {table.changed:,} changed by {', '.join(table.key)}"
    return f"{after if before == after else f'{before} -> {after}'} rows: {counts}"


def _cells(table: TableDiff) -> tuple[str, str, str, str]:
    if table.status == "failed":
        return "could not be compared", "", "", ""
    rows = [f"{one:,}" for one in (table.rows_before, table.rows_after) if one is not None]
    changed = "" if table.changed is None else f"{table.changed:,} by {_codes(table.key)}" if table.key else ""
    return " → ".join(dict.fromkeys(rows)), f"{table.added:,}", f"{table.removed:,}", changed


def describe(table: TableDiff) -> Iterator[str]:
    """Yield what of a table differs, and samples, in lines."""
    if table.note and table.status != "failed":
        yield table.note
    for sign, rows, number in (("+", table.added_rows, table.added), ("-", table.removed_rows, table.removed)):
        if rows:
            key = f"{', '.join(table.key)} " if table.key else ""
            more = " | ..." if number > len(rows) else ""
            yield f"{sign} {key}{' | '.join(rows)}{more}"
    width = max((len(column.name) for column in table.columns), default=0)
    for column in table.columns:
        yield f"{column.name:<{max(width, 12)}} {_column(column)}"
        if column.samples:
            key = f"{', '.join(table.key)} " if table.key else ""
            samples = (f"{one.key}: {_value(one.before)} -> {_value(one.after)}" for one in column.samples)
            more = " | ..." if (column.changed or 0) > len(column.samples) else ""
            yield f"  {key}{' | '.join(samples)}{more}"


def _column(column: ColumnDiff) -> str:
    facts = []
    if column.status == "added":
        facts.append(f"new column, {column.type_after}")
    elif column.status == "removed":
        facts.append(f"column removed, {column.type_before}")
    elif column.status == "renamed":
        facts.append(f"renamed from {column.was}, same values")
    elif column.status == "retyped":
        facts.append(f"{column.type_before} -> {column.type_after}")
    if column.changed:
        facts.append(f"{column.changed:,} changed{' (values hidden)' if column.hidden else ''}")
    elif column.status == "retyped" and column.changed == 0:
        facts.append("same values")
    if column.sum_change:
        facts.append(f"sum {column.sum_change}")
    return ", ".join(facts)


def _reader(reader: Reader) -> str:
    about = ", ".join(one for one in (reader.kind, reader.detail) if one)
    return f"{reader.name} ({about})" + (f": BROKEN: {reader.error}" if reader.error else "")


def _names(names: Sequence[str]) -> str:
    return _plain(", ".join(names)) or "nothing"


def _value(value: str | None) -> str:
    return "NULL" if value is None else value


def _plain(text: str) -> str:
    """Return text without what could move a terminal's cursor: values are data."""
    return "".join(one if one.isprintable() else "\ufffd" for one in text)


def _code(text: str) -> str:
    """Return text as inline code, in which GitHub sees no markup, link or mention; of one line."""
    return f"`{_plain(text).replace('`', chr(39))}`"


def _codes(names: Sequence[str]) -> str:
    return ", ".join(_code(one) for one in names) or "nothing"


def _code_free(text: str) -> str:
    return "".join(f"&#{ord(one)};" if one in "<>&*_`[]()|@#~\\!" else one for one in _plain(text))
