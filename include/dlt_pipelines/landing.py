"""Source files in an object store, for workers that share no disk: copied before each load, if new or changed.

The store is reached with the usual `AWS_*` variables, as the lake is.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from include.dlt_pipelines.files import SourceFileError
from include.errors import storage_errors
from include.masking import mask

_INDEX = ".copied.json"


class LandingError(SourceFileError):
    """The object store cannot be read."""

    retryable = True


def copy(url: str, folder: Path) -> None:
    """Bring a local folder to the state of a folder in an object store; what is unchanged is not read again.

    Args:
        url: such as `s3://landing/jaffle_shop`; files in folders below it are not copied.
        folder: the local folder; created if missing.

    Raises:
        LandingError: the store cannot be read; what has been copied stays.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / _INDEX
    try:
        copied = dict(json.loads(index.read_text()))
    except (OSError, ValueError):
        copied = {}
    with _reading(url) as (store, found):
        # The description has the size, the time and, in S3, a digest of the content.
        states = {name: _state(one) for name, one in found.items()}
        for name, one in found.items():
            if copied.get(name) != states[name] or not (folder / name).is_file():
                partial = folder / f".{name}.part"
                store.get_file(one["name"], str(partial))
                partial.replace(folder / name)
    for path in folder.iterdir():
        if path.name not in found and path != index:
            path.unlink()
    partial = folder / f"{_INDEX}.part"
    partial.write_text(json.dumps(states))
    partial.replace(index)


def look(url: str) -> dict[str, tuple[float, str]]:
    """Return when each file in a folder of an object store was written, in seconds since 1970, and its state.

    Raises:
        LandingError: the store cannot be read.
    """
    with _reading(url) as (store, found):
        return {name: (_written_at(store, one), _state(one)) for name, one in found.items()}


@contextmanager
def _reading(url: str) -> Iterator[tuple[Any, dict[str, dict[str, Any]]]]:
    """Return a store and what its folder has, by name; turn its errors into a LandingError."""
    try:
        # Lazily: its s3fs is in a lock file of its own.
        import fsspec  # type: ignore[import-untyped]

        store, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        yield store, {Path(one["name"]).name: one for one in store.ls(root, detail=True) if one["type"] == "file"}
    except storage_errors(ImportError, ValueError) as error:
        raise LandingError(
            mask(f"{url} cannot be read: {' '.join(str(error).split()) or type(error).__name__}. Nothing was loaded. ")
            + "Check the address and the AWS_* variables; s3:// also needs make setup-workers. Then clear this task."
        ) from None


def _state(described: dict[str, Any]) -> str:
    from fsspec.utils import tokenize  # type: ignore[import-untyped]

    return str(tokenize(described))


def _written_at(store: Any, described: dict[str, Any]) -> float:
    at = described.get("LastModified") or described.get("mtime") or store.modified(described["name"])
    return at.timestamp() if isinstance(at, datetime) else float(at)
