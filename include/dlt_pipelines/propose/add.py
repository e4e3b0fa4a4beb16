"""Write a proposal into the project, and copy its files."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
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
    if exist := [path for path in (*written, *copies.values()) if path.exists()]:
        raise _exists(exist, root)
    dag, edited = dag_with(name, root)
    _write(written, copies, root)
    if dag:
        new = dag.with_suffix(".new")
        new.write_text(edited)
        new.replace(dag)
    return [
        "Written:",
        *(f"  {path.relative_to(root)}" for path in (*written, *copies.values())),
        f"  {dag.relative_to(root)} (SOURCES)" if dag else f'Add "{name}" to SOURCES of a DAG.',
    ]


def _exists(paths: Iterable[Path], root: Path) -> ProposalError:
    shown = ", ".join(str(path.relative_to(root)) for path in paths)
    return ProposalError(f"{shown} exists, and nothing is overwritten. Remove it, or choose another NAME=.")


def _write(written: Mapping[Path, str], copies: Mapping[Path, Path], root: Path) -> None:
    """Write all files, or none."""
    made: list[Path] = []
    try:
        for source, copy in copies.items():
            copy.parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as content, copy.open("xb") as target:
                made.append(copy)
                shutil.copyfileobj(content, target)
        for path, text in written.items():
            with path.open("x") as file:
                made.append(path)
                file.write(text)
    except OSError as error:
        for path in made:
            path.unlink(missing_ok=True)
        if isinstance(error, FileExistsError):  # by another run, meanwhile
            raise _exists([Path(error.filename)], root) from None
        raise ProposalError(f"{error.filename or root}: {error.strerror}. Nothing was written.") from None
