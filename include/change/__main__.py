"""Command line: preview a change, list previews, compare two releases."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import duckdb

from include.change import databases, gate, preview, sample
from include.change.report import Report
from include.errors import PipelineError, storage_errors
from include.warehouse.__main__ import main as warehouse
from include.warehouse.errors import WarehouseError, first_line, size_text
from include.warehouse.targets import target
from include.warehouse.targets.base import find

_SECONDS = 30.0  # of comparing before a rollback


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command line after the program's name; default `sys.argv`.

    Returns:
        The exit code: 0, 1 if something failed or was found broken, with the reason on standard error or in the report.
    """
    parser = argparse.ArgumentParser(prog="python -m include.change", description="What a change does to the data.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("diff", help="compare two kept releases or database files")
    command.add_argument("a", nargs="?", help="release id, run id or file; default: the release before B")
    command.add_argument("b", nargs="?", help="as A; default: what readers see")
    _add_outputs(command)
    command = commands.add_parser("preview", help="build what differs from a release in a scratch, test and compare it")
    command.add_argument("--base", metavar="RELEASE", help="release id, run id or file; default: what readers see")
    command.add_argument("--full", action="store_true", help="build everything, not only what differs")
    _add_outputs(command)
    command = commands.add_parser("sample", help="write a masked sample of a release, without personal data")
    command.add_argument("out", metavar="FILE", type=Path, help="the DuckDB file to write")
    command.add_argument("--base", metavar="RELEASE", help="release id, run id or file; default: what readers see")
    command.add_argument("--rows", type=int, default=sample.ROWS, help="of a table that refers to no other")
    command = commands.add_parser("rollback", help="show readers another kept release; say first what would change")
    command.add_argument("id", metavar="ID", help="id or run id, as `make releases` lists them")
    for name, text in (("approve", "show readers the release that waits"), ("refuse", "remove the release that waits")):
        command = commands.add_parser(name, help=text)
        command.add_argument("id", metavar="ID", help="of the release that waits, or of its run")
        command.add_argument("note", metavar="NOTE", help="why")
    command = commands.add_parser("previews", help="list the kept previews, and remove old ones")
    command.add_argument("--days", type=float, default=preview.KEPT_DAYS, help="remove those older than this")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        if options.command == "previews":
            _previews(options.days)
            return 0
        if options.command == "rollback":
            return _roll_back(options.id)
        if options.command in ("approve", "refuse"):
            return _decide(options.id, options.note, approved=options.command == "approve")
        if options.command == "sample":
            return _sample(options.out, options.base, options.rows)
        diffed = options.command == "diff"
        report = _diff(options.a, options.b) if diffed else preview.preview(options.base, options.full)
        _write(report, options)
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head`; else the interpreter complains again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except storage_errors(PipelineError, ValueError, duckdb.Error) as error:
        text = first_line(error) if isinstance(error, duckdb.Error) else str(error)
        print(f"error: {text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return int(report.has_failed)


def _add_outputs(command: argparse.ArgumentParser) -> None:
    command.add_argument("--markdown", metavar="FILE", type=Path, help="also write it as Markdown")
    command.add_argument("--html", metavar="FILE", type=Path, help="also write it as a page")
    command.add_argument("--json", metavar="FILE", type=Path, help="also write it as JSON")


def _diff(a: str | None, b: str | None) -> Report:
    after = databases.find_database(b)
    before = databases.find_database(a) if a else databases.find_before(after)
    tables = tuple(databases.compare_databases(before, after))
    return Report(_titled(before), _titled(after), tables)


def _previews(days: float) -> None:
    for folder in preview.expire(days):
        print(f"Removed {folder}")
    kept = preview.list_previews()
    if not kept:
        print("No previews are kept.")
    for one in kept:
        running = " (running)" if one.is_running else ""
        print(f"{one.created_at:%Y-%m-%d %H:%M} UTC {size_text(one.size_bytes):>10}  {one.title}{running}")
        print(f"  {one.folder}")


def _roll_back(release_id: str) -> int:
    now, chosen = (
        target().published_release(),
        find(target().list_releases(), release_id, target().published_location()),
    )
    if now:
        try:
            before, after = databases.find_database(now.id), databases.find_database(chosen.id)
            tables = tuple(databases.compare_databases(before, after, seconds=_SECONDS))
            print(Report(_titled(before), _titled(after), tables).to_text(), end="")
        except (duckdb.Error, WarehouseError) as error:  # a damaged release is one reason to roll back
            print(f"What changes is not known: {first_line(error)}")
    if sys.stdin.isatty() and not _agreed("Roll back?"):
        print("Nothing was changed.")
        return 1
    return warehouse(["rollback", chosen.id])


def _agreed(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        print()
        return False


def _decide(release_id: str, note: str, *, approved: bool) -> int:
    release = gate.decide(release_id, approved=approved, note=note)
    if approved:
        print(f"Readers now see {release.id} in {target().published_location()}")
    else:
        print(f"Refused {release.id}; readers see no change")
    return 0


def _sample(out: Path, base: str | None, rows: int) -> int:
    build = sample.write_sample(out, base, rows)
    print(
        f"Wrote {out}, {size_text(out.stat().st_size)}: {build.tests_passed} of {build.tests} tests pass on masked data"
    )
    for failure in build.failures:
        print(f"  FAIL {failure}")
    return 0


def _titled(database: databases.Database) -> str:
    return f"{database.title} ({database.id})" if database.is_release else database.title


def _write(report: Report, options: argparse.Namespace) -> None:
    for path, write in (
        (options.markdown, report.to_markdown),
        (options.html, report.to_html),
        (options.json, report.to_json),
    ):
        if path:
            path.write_text(write())
    print(report.to_text(), end="")


if __name__ == "__main__":
    sys.exit(main())
