"""Keep secrets of sources out of errors, logs and alerts: values that are known, and places where secrets stand."""

import logging
import os
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

MASK = "***"
_SHORTEST = 5  # characters; a shorter value is also an ordinary word. Airflow's limit, too
_NAMES = r"(?:password|passwd|passphrase|pwd|secret|token|credentials?|api[-_]?key|access[-_]?key)"
_SECRET_NAME = re.compile(rf"(?i)(?:^|_)(?:{_NAMES}|key|sas|dsn)(?:_|$)")
_NO_SECRET_NAME = re.compile(r"(?i)^(OLD)?PWD$|_(FILE|PATH|DIR|CMD|ID)$")
_PLACES = (
    (re.compile(r"""(://[^\s:/@'"]*:)[^\s'"]+@"""), rf"\1{MASK}@"),
    (re.compile(r"""([?&][^=&\s'"]+=)[^&\s'"<>)]+"""), rf"\1{MASK}"),
    (
        re.compile(r"""(?i)\b((?:proxy-)?authorization|cookie|x-[\w-]+)(["']?\s*[:=]\s*["']?)[^\s"',][^\n"',]*"""),
        rf"\1\2{MASK}",
    ),
    (re.compile(r"\bBearer\s+[\w.~+/=-]{6,}"), f"Bearer {MASK}"),
    (re.compile(rf"""(?i)({_NAMES}(?:["']\s*:|\s*=)\s*["']?)[^\s"',;&]+"""), rf"\1{MASK}"),
)


def in_environment(names: Iterable[str] = ()) -> set[str]:
    """Return the secrets in the environment: variables named like one, passwords and queries of URLs, and others.

    Args:
        names: variables of any name whose values are secret; of a URL, only its password and query are.
    """
    listed = set(names)
    found: set[str] = set()
    for name, value in os.environ.items():
        found |= _in_url(value)
        secret = bool(_SECRET_NAME.search(name)) and not _NO_SECRET_NAME.search(name)
        if (secret or name in listed) and "://" not in value:
            found.add(value)
    return _long_enough(found)


def in_values(value: Any) -> set[str]:
    """Return the texts in nested lists and mappings; of a URL, its password and query."""
    if isinstance(value, Mapping):
        return {text for one in value.values() for text in in_values(one)}
    if isinstance(value, list | tuple | set):
        return {text for one in value for text in in_values(one)}
    text = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    return _long_enough(_in_url(text) if "://" in text else {text})


def mask(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a text without secrets.

    Args:
        text: any, such as an error's.
        secrets: known values, besides those of the environment.
    """
    known = sorted({*secrets, *in_environment()}, key=len, reverse=True)
    if known:
        text = re.sub("|".join(map(re.escape, known)), MASK, text)
    for place, masked in _PLACES:
        text = place.sub(masked, text)
    return text


@contextmanager
def masked_logs(secrets: Iterable[str]) -> Iterator[None]:
    """Mask what any library logs meanwhile: a retry names its URL.

    Args:
        secrets: as for `mask`.
    """
    create, known = logging.getLogRecordFactory(), set(secrets)

    def masked(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = create(*args, **kwargs)
        text = record.getMessage()
        if record.exc_info and record.exc_info[0]:
            text += "\n" + "".join(traceback.format_exception(*record.exc_info))
        record.msg, record.args, record.exc_info = mask(text, known), (), None
        return record

    logging.setLogRecordFactory(masked)
    try:
        yield
    finally:
        logging.setLogRecordFactory(create)


def _in_url(text: str) -> set[str]:
    if "://" not in text and "password=" not in text:
        return set()
    found = set(re.findall(r"(?i)password=([^\s&;']+)", text))
    try:
        parts = urlsplit(text)
    except ValueError:
        return found
    found |= {one.partition("=")[2] for one in parts.query.split("&")}
    found.add(parts.netloc.rpartition("@")[0].partition(":")[2])
    return found | {unquote(one) for one in found}


def _long_enough(found: Iterable[str]) -> set[str]:
    # A folder or file that is there is where whoever is on call must look.
    values = {one for value in found if not ((one := value.strip()).startswith("/") and os.path.lexists(one))}
    return {text for one in values for text in (one, repr(one)[1:-1]) if len(one) >= _SHORTEST}


_CONSTRAINT = re.compile(r"Constraint Error:|violates .*constraint")
_DATA_ERROR = re.compile(
    r"(?:Conversion|Out of Range|Invalid Input|Mismatch Type|TypeMismatch|Serialization) Error:"
    r"|invalid input (?:syntax|value) for |out of range|invalid byte sequence|division by zero|malformed "
)
# BigQuery's, in which nothing marks the end of the value.
_UNMARKED = re.compile(
    r"\b(Bad \w+ value: |Invalid (?:date|time|datetime|timestamp|interval|NUMERIC|BIGNUMERIC|JSON)\b[a-z ]*[: ]+"
    r"|Could not (?:cast literal|parse) |Failed to parse input string |\w+ overflow: ).*",
    re.DOTALL,
)
_STATEMENT = re.compile(r"\n?\s*LINE \d+:|\n\s*compiled code at ")
_IN_CONSTRAINTS = (
    (re.compile(r'"([^":]+): .*"', re.DOTALL), rf'"\1: {MASK}"'),
    (re.compile(r"(\)=\().*(\) )", re.DOTALL), rf"\1{MASK}\2"),
    (re.compile(r"(row contains \().*\)", re.DOTALL), rf"\1{MASK})"),
)
_NUMBER = re.compile(r"\b[A-Za-z]\w*\([\d, ]+\)|(?<!\w)-?\d[\w.:+-]*")


def without_values(text: str) -> str:
    """Return a database's error without values of rows: those that it has if a cast or a constraint fails.

    Args:
        text: the error of DuckDB, PostgreSQL or BigQuery; one about names or syntax is returned unchanged, with what it
            quotes.
    """
    constraint = _CONSTRAINT.search(text)
    found = constraint or _DATA_ERROR.search(text)
    if not found:
        return _UNMARKED.sub(rf"\1{MASK}", text)
    statement = _STATEMENT.search(text, found.start())
    end = statement.start() if statement else len(text)
    begin = text.rfind("\n", 0, found.start()) + 1
    shown = text[begin:end]
    if constraint:
        for place, masked in _IN_CONSTRAINTS:
            shown = place.sub(masked, shown)
    else:
        for mark in "'\"":  # from the first to the last: what is quoted may have the mark itself
            shown = re.sub(f"{mark}.*{mark}", f"{mark}{MASK}{mark}", shown, flags=re.DOTALL)
        shown = shown.splitlines()[0]  # the rest shows where in the value
        shown = _NUMBER.sub(lambda match: match[0] if match[0][0].isalpha() else MASK, shown)
    return text[:begin] + shown + text[end:]
