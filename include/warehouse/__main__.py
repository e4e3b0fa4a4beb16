"""Command line of the warehouse: show what readers see, list the kept releases, roll back, restore, move."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import duckdb

from include.settings import MARTS_SCHEMA
from include.warehouse import hold
from include.warehouse.copy_from import copy_from
from include.warehouse.errors import WarehouseError, first_line, size_text
from include.warehouse.targets import TARGETS, target
from include.warehouse.targets.base import Release

_SAMPLE = (MARTS_SCHEMA, "customers")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command line after the program's name; default `sys.argv`.

    Returns:
        The exit code: 0, or 1 with one line on standard error.
    """
    parser = argparse.ArgumentParser(prog="python -m include.warehouse", description="The published warehouse.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("show", help="show what readers see now, and how to open it")
    commands.add_parser("releases", help="list the kept releases, newest first")
    commands.add_parser("snapshots")  # the old name of `releases`, for one version; not in the list of commands
    command = commands.add_parser("rollback", help="show readers another kept release, and hold it")
    command.add_argument("id", metavar="ID", help="id or run id, as `releases` lists them")
    commands.add_parser("release-hold", help="let runs publish again after a rollback")
    command = commands.add_parser("restore", help="replace a damaged working database with a release")
    command.add_argument("id", metavar="ID", nargs="?", help="as for rollback; default: the published one")
    command = commands.add_parser(
        "copy-from", help="fill an empty warehouse with what another DBT_TARGET has published"
    )
    command.add_argument("target", metavar="TARGET", help=" or ".join(TARGETS))
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        if options.command == "show":
            _show()
        elif options.command == "releases":
            _list()
        elif options.command == "snapshots":
            print("`snapshots` is now `releases`; the next version drops the old name.", file=sys.stderr)
            _list()
        elif options.command == "release-hold":
            found = hold.end()
            print(f"{found.text}. The next green run publishes again." if found else "No rollback holds.")
        elif options.command == "restore":
            print(target().restore(options.id))
        elif options.command == "copy-from":
            print(copy_from(options.target))
        else:
            print(f"Readers now see {hold.roll_back(options.id).id} in {target().published_location()}")
            if hold.current():
                print("It holds: runs publish nothing until you run make release-hold.")
        sys.stdout.flush()
    except BrokenPipeError:  # `show | head`; else the interpreter complains again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (WarehouseError, ValueError, OSError, duckdb.Error) as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _list() -> None:
    releases = target().list_releases()
    if not releases:
        print("No releases yet: a run that passes its tests publishes the first one.")
        return
    rows = [
        (
            "*" if release.published else "",
            release.id,
            release.run_id,
            _time(release),
            release.made_by.text,
            size_text(release.size_bytes),
        )
        for release in releases
    ]
    _print_table(("", "release", "run", "created (UTC)", "code", "size"), rows)
    print("\n* is what readers see. To change it: python -m include.warehouse rollback RELEASE")
    if waiting := target().waiting_release():
        print(f'{waiting.id} waits for approval: make approve ID={waiting.id} NOTE="...", or make refuse')


def _show() -> None:
    release, location = target().published_release(), target().published_location()
    if release is None:
        print(f"Nothing is published as {location} yet: a run that passes its tests publishes the first release.")
        return
    with target().open_release(release) as connection:
        counts = target().count_rows(connection)
        sample = str(connection.sql(f"from {'.'.join(_SAMPLE)} order by all limit 5")) if _SAMPLE in counts else ""
    age = datetime.now(UTC) - release.created_at
    if held := hold.current():
        print(f"HELD: {held.text}. Runs publish nothing until make release-hold.\n")
    facts = (
        ("path", location),
        ("release", release.id),
        ("run", release.run_id),
        ("created", f"{_time(release)} UTC"),
        ("age", str(age).split(".")[0]),
        ("size", size_text(release.size_bytes)),
        ("code", release.made_by.text or "unknown"),
        ("versions", ", ".join(f"{name} {one}" for name, one in release.made_by.versions.items()) or "unknown"),
        ("started by", release.made_by.started_by or "unknown"),
    )
    for name, value in facts:
        print(f"{name:<10} {value}")
    print()
    shown = {(schema, table): rows for (schema, table), rows in counts.items() if not _is_technical(schema, table)}
    _print_table(("table", "rows"), [(f"{schema}.{table}", f"{rows:,}") for (schema, table), rows in shown.items()])
    if sample:
        print(f"\n{'.'.join(_SAMPLE)}\n{sample.rstrip()}")
    print(f"\n{target().how_to_open()}")


def _is_technical(schema: str, table: str) -> bool:
    return schema == "warehouse" or table.startswith("_dlt_")


def _print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table; the last column is right-aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, tuple("-" * width for width in widths), *rows):
        cells = [f"{cell:<{width}}" for cell, width in zip(row[:-1], widths, strict=False)]
        print("  ".join([*cells, f"{row[-1]:>{widths[-1]}}"]))


def _time(release: Release) -> str:
    return f"{release.created_at:%Y-%m-%d %H:%M:%S}"


if __name__ == "__main__":
    sys.exit(main())
