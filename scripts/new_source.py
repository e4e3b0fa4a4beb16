"""Add files as a source, ready to run and to edit.

For the source `stores`, `make new-source FILES=path/to/stores.csv` shows what it proposes, and writes

    include/dlt_pipelines/stores_pipeline.py            the contract of each file
    include/dbt_project/models/staging/stores.yml       the source, as dbt sees it
    include/dbt_project/models/staging/stg_*.{sql,yml}  a staging model for each file, with tests
    include/data/stores/                                copies of files from outside the project

and adds it to `SOURCES` of the project's DAG. All of it is a proposal, made from all rows. Nothing is overwritten: for
a source that exists, it shows how the files differ from its contracts.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from include.dlt_pipelines.file_source import FileSource
from include.dlt_pipelines.load import find_source
from include.dlt_pipelines.propose import Header, ProposalError, add, compare, preview, propose
from include.dlt_pipelines.propose.names import NAME, entity, snake_case, table_name
from include.errors import PipelineError
from include.settings import REPOSITORY_ROOT as ROOT


def find_paths(given: str) -> list[Path]:
    """Return the files of an argument: the path that it is, or else those of its words, which a shell would split."""
    if Path(given).expanduser().exists():
        return [Path(given).expanduser().resolve()]
    try:
        words = [Path(word).expanduser() for word in shlex.split(given)]
    except ValueError:  # an apostrophe: one path that does not exist
        words = [Path(given)]
    return [path.resolve() for word in words for path in sorted(word.parent.glob(word.name)) or [word]]


def find_header(given: str) -> Header:
    """Return what an argument says about headers: whether there are any, or the names of columns by table."""
    if given in ("", "yes", "no"):
        return {"": None, "yes": True, "no": False}[given]
    names: dict[str, list[str]] = {}
    for table, colon, columns in (part.partition(":") for part in given.split(";") if part.strip()):
        if not colon:
            raise ProposalError(f"HEADER={given!r}: give yes, no, or names as in: orders: id, amount; stores: id")
        names[table.strip()] = [name.strip() for name in columns.split(",")]
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Add or compare a source; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="a path, or several words or patterns in one")
    parser.add_argument("--name", help="of the source; default: of the file, or of the folder of several")
    parser.add_argument(
        "--header", help="yes or no; default: found out; or the names, as `orders: id, amount; stores: id`"
    )
    parser.add_argument("--preview", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    try:
        header = find_header(options.header or "")
        paths = [path for given in options.files for path in find_paths(given)]
        name = options.name or _name(paths)
        if not NAME.fullmatch(name):
            raise ProposalError(f"{name!r} cannot name a source: NAME= takes lower-case letters, digits and _.")
        if (ROOT / "include" / "dlt_pipelines" / f"{name}_pipeline.py").exists():
            source = find_source(name)
            if not isinstance(source, FileSource):
                raise ProposalError(f"{name}_pipeline.py exists and is not a source of files. Choose another NAME=.")
            print(f"The source {name} exists; nothing was written.", *compare(source, paths, header), sep="\n")
            return 0
        tables = propose(paths, header)
        print(f"Source {name}:", *preview(tables), sep="\n", flush=True)
        if not options.preview:
            print(*add(name, tables, ROOT), sep="\n")
            print(
                "Review them: all of it is a proposal. Then `make run`, and approve the new graph of the DAG:\n"
                "UPDATE_SNAPSHOTS=1 make test ARGS=tests/dags/test_graphs.py"
            )
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _name(paths: Sequence[Path]) -> str:
    return entity(table_name(paths[0])) if len(paths) == 1 else snake_case(paths[0].parent.name)


if __name__ == "__main__":
    sys.exit(main())
