"""Command line: publish what was built by hand, serve what is published, show the rows that failed dbt tests."""

import argparse
import logging
import sys
from collections.abc import Sequence

from include.change.releases import keep_difference
from include.errors import PipelineError, storage_errors
from include.runs import artifacts, dbt_results, manifest
from include.runs.publish import publish
from include.sql import identifier
from include.warehouse.targets import target


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command line after the program's name; default `sys.argv`.

    Returns:
        The exit code: 0, or 1 with the reason on standard error.
    """
    parser = argparse.ArgumentParser(prog="python -m include.runs", description="Publish by hand, show failing rows.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "publish", help="publish the working database if everything in it is current and passed"
    )
    command.add_argument("id", metavar="RUN_ID", help="the run to publish it under")
    commands.add_parser("serve", help="copy what is published to the database server that SERVE_URL names")
    commands.add_parser("failures", help="show the rows in the working database that failed dbt tests")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        if options.command == "publish":
            release = publish(options.id, manifest.current().manifest)
            print(f"Published {release.id} as {target().published_location()}")
            for table, text in keep_difference(release).items():
                print(f"{table}: {text}")
            for table, text in artifacts.unusual_in(options.id).items():
                print(f"warning: {table}: {text}")
        elif options.command == "serve":
            from include.serving import serve  # optional

            for table, rows in serve().items():
                print(f"{table}: {rows:,} rows")
        else:
            _failures()
    except storage_errors(PipelineError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _failures() -> None:
    with target().open_working() as connection:
        failing = dbt_results.failing_tests(connection)
        if not failing:
            print("No test has failing rows in the working database.")
        for table, rows in failing.items():
            schema, name = table.split(".", 1)
            target().fetch(connection, schema, name.__eq__)
            found = connection.sql(f"from {identifier(*table.split('.', 1))} limit 20")
            print(f"{table}: {rows} failing row(s)\n{found}\n")


if __name__ == "__main__":
    sys.exit(main())
