"""Parse JSON Lines: an object per line, with a column per key; a missing key is NULL, an unknown one an error.

Numbers stay as they are written: no digit is lost in a float on the way.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from include.dlt_pipelines.files.contract import FORMATS, SourceFileError, TableContract
from include.dlt_pipelines.files.parser import Parser
from include.dlt_pipelines.files.records import Outcome, lines, without_end
from include.dlt_pipelines.files.text import MAX_LINE_BYTES, Text, count_filled_lines, detect_format, line_blocks


class _Number(str):
    """A number as it is written."""

    __slots__ = ()


class _RowError(ValueError):
    def __init__(self, reason: str, column: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.column = reason, column


def _refuse(constant: str) -> Any:
    raise _RowError(f"{constant} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _RowError("a key is repeated")
    return found


_decoder = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_Number, parse_int=_Number, parse_constant=_refuse, strict=True
)


class JsonLinesParser(Parser):
    """Parses one JSON Lines file."""

    @staticmethod
    def check(path: Path, table: TableContract) -> None:
        """Check that a file is text, and is not empty."""
        with Text(path, table.dialect.encoding).open() as file:
            if not file.peek(1):
                raise SourceFileError(f"{path}: the file is empty. Expected a JSON object in each line.")
        if (found := detect_format(path)) in ("parquet", "xlsx"):
            raise SourceFileError(f"{path}: is a {FORMATS[found]} file, and the contract says format='jsonl'.")

    def parse(self, path: Path, out_dir: Path) -> int:
        """Parse a file."""
        text = Text(path, self._dialect.encoding)
        names = list(self._table.columns)
        known, defaults = set(names), self._table.optional

        def records() -> Iterator[tuple[int, str, Outcome]]:
            with text.open() as file:
                for line in lines(file, 1):
                    if line.content.strip(b"\r\n"):
                        content = without_end(line.content)
                        yield line.number, text.shown(content), _read(content, names, known, defaults)

        self._output.add_records(records(), names)
        with text.open() as file:
            return count_filled_lines(line_blocks(file))


def _read(line: bytes, names: list[str], known: set[str], defaults: Mapping[str, str | None]) -> Outcome:
    nothing = [None] * len(names)
    if len(line) > MAX_LINE_BYTES:
        return Outcome(nothing, None, f"the row is longer than {MAX_LINE_BYTES} bytes; only its beginning is kept")
    try:
        row = _decoder.decode(line.decode())
        if not isinstance(row, dict):
            raise _RowError("not a JSON object")
        if unknown := [key for key in row if key not in known]:
            shown = unknown[0] if re.fullmatch(r"\w{1,60}", unknown[0]) else "a key"
            raise _RowError(f"{shown} is not among the columns")
        values = [_text(row.get(name, defaults.get(name))) for name in names]
        if b"\\u" in line:
            "".join(filter(None, values)).encode()
        return Outcome(values)
    except UnicodeDecodeError as error:
        return Outcome(nothing, None, f"not valid UTF-8 at byte {error.start + 1} of the row")
    except UnicodeEncodeError:
        return Outcome(nothing, None, "half of a surrogate pair is no character")
    except json.JSONDecodeError as error:
        return Outcome(nothing, None, f"not valid JSON at character {error.pos + 1} of the row")
    except RecursionError:
        return Outcome(nothing, None, "nested too deeply")
    except _RowError as error:
        return Outcome(nothing, error.column, error.reason)


def _text(value: Any) -> str | None:
    """Return a value as text; objects and lists as JSON."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return _json(value)


def _json(value: Any) -> str:
    if isinstance(value, _Number):
        return value
    if isinstance(value, dict):
        members = (f"{json.dumps(key, ensure_ascii=False)}: {_json(one)}" for key, one in value.items())
        return "{" + ", ".join(members) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_json, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
