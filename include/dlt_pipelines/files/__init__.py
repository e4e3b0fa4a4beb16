"""Files with a contract: every row of a file is either loaded, or rejected with its line, column and reason."""

from include.dlt_pipelines.files.contract import (
    SourceChangedError,
    SourceFileError,
    TableContract,
    column_names,
)
from include.dlt_pipelines.files.dialect import CsvDialect
from include.dlt_pipelines.files.folder import find_files, is_of
from include.dlt_pipelines.files.header import read_header, read_names
from include.dlt_pipelines.files.output import WIDE, ParsedFile, merge, write
from include.dlt_pipelines.files.parse import MEMORY, check, connect, parse
from include.dlt_pipelines.files.text import detect_format, open_unpacked

__all__ = [
    "MEMORY",
    "WIDE",
    "CsvDialect",
    "ParsedFile",
    "SourceChangedError",
    "SourceFileError",
    "TableContract",
    "check",
    "column_names",
    "connect",
    "detect_format",
    "find_files",
    "is_of",
    "merge",
    "open_unpacked",
    "parse",
    "read_header",
    "read_names",
    "write",
]
