"""Find the files of a table in the source's folder."""

import os
from fnmatch import fnmatchcase
from pathlib import Path

from include.dlt_pipelines.files.contract import SourceFileError, TableContract
from include.dlt_pipelines.files.text import PACKED, unreadable


def find_files(data_dir: Path, table: TableContract) -> dict[str, Path]:
    """Return the files of a table, by name, in the order in which they apply.

    Args:
        data_dir: the folder of the source files.
        table: the contract of the files to find.

    Raises:
        SourceFileError: there is no file, one exists both plain and packed or is none, or the folder cannot be read.
    """
    if not table.files:
        path = _find_file(data_dir, table)
        return {path.name: path}
    try:
        with os.scandir(data_dir) as listed:  # which knows of most entries what they are
            matching = [one for one in listed if is_of(one.name, table)]
            entries = [data_dir / one.name for one in matching]
            odd = [data_dir / one.name for one in matching if not one.is_file()]
    except PermissionError:
        raise SourceFileError(f"{data_dir}: this user cannot read the folder. Grant it: chmod a+rx") from None
    except (FileNotFoundError, NotADirectoryError):
        raise SourceFileError(f"{data_dir}: no such folder. Create it, or set the source's data_dir.") from None
    except OSError as error:
        raise unreadable(data_dir, error) from None
    if odd:
        raise SourceFileError(f"{odd[0]}: is not a file. Replace it with the file of that name, or remove it.")
    if nameless := [path for path in entries if not _is_utf8(path.name)]:
        shown = os.fsencode(nameless[0].name)
        raise SourceFileError(
            f"{data_dir}: the name of {shown!r} is not UTF-8. Have the file delivered under another name."
        )
    found = {path.name: path for path in sorted(entries)}
    if not found:
        # Not taken for a withdrawal of everything: more likely the folder is not mounted.
        raise SourceFileError(
            f"{data_dir / table.files}: no such file. Deliver one there, or set the source's data_dir to the folder "
            "that has them."
        )
    for name, path in found.items():
        plain = next((name.removesuffix(ending) for ending in PACKED if name.endswith(ending)), name)
        if plain != name and plain in found:
            raise SourceFileError(f"{path}: {plain} exists too, so its rows would be loaded twice. Remove one.")
    return found


def is_of(name: str, table: TableContract) -> bool:
    """Return whether a file of this name is one of a table's, plain or packed."""
    if not table.files:
        return name in {f"{table.file_name}{ending}" for ending in ("", *PACKED)}
    return any(fnmatchcase(name, table.files + ending) for ending in ("", *PACKED))


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _find_file(data_dir: Path, table: TableContract) -> Path:
    name = table.file_name
    try:
        found = [path for ending in ("", *PACKED) if (path := data_dir / f"{name}{ending}").exists()]
        if found and not found[0].is_file():
            raise SourceFileError(f"{found[0]}: is not a file. Replace it with the file of that name.")
    except PermissionError:
        raise SourceFileError(f"{data_dir}: this user cannot access the folder. Grant it: chmod a+rx") from None
    except OSError as error:
        raise unreadable(data_dir, error) from None
    if not found:
        raise SourceFileError(
            f"{data_dir / name}: no such file (nor with {', '.join(PACKED)}). Deliver it there, or set the source's "
            "data_dir to the folder that has it."
        )
    if len(found) > 1:
        raise SourceFileError(f"{found[0]}: {found[1].name} exists too, so it is ambiguous which to load. Remove one.")
    return found[0]
