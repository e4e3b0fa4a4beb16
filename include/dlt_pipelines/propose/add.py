"""Write a proposal into the project, and copy its files."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from include.dlt_pipelines.propose.table import ProposalError, Table
from include.dlt_pipelines.propose.write import dag_with, source_files


def add(name: str, tables: Sequence[Table], root: Path) -> list[str]:
    """Write a new source's files; return their paths and what is left to do, in words.

    Args:
        name: the source's name.
        tables: the proposal.
        root: the project.

    Raises:
        ProposalError: a file that would be written exists, or the data are in several folders of the project.
    """
    paths = [table.path for table in tables]
    inside = all(path.is_relative_to(root) for path in paths)
    if inside and len({path.parent for path in paths}) > 1:
        raise ProposalError("A source's files must be in one folder. Move them, or add each folder as a source.")
    folder = paths[0].parent if inside else root / "include" / "data" / name
    written = source_files(name, folder.relative_to(root).as_posix(), tables, root)
    copies = {} if inside else {path: folder / path.name for path in paths}
    if exist := [str(path.relative_to(root)) for path in (*written, *copies.values()) if path.exists()]:
        raise ProposalError(
            f"{', '.join(exist)} exists, and nothing is overwritten. Remove it, or choose another NAME=."
        )
    dag, edited = dag_with(name, root)
    for source, copy in copies.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    for path, text in written.items():
        path.write_text(text)
    if dag:
        dag.write_text(edited)
    return [
        "Written:",
        *(f"  {path.relative_to(root)}" for path in (*written, *copies.values())),
        f"  {dag.relative_to(root)} (SOURCES)" if dag else f'Add "{name}" to SOURCES of a DAG.',
    ]
