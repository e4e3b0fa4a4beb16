"""Mask values: nothing of the old one is in the new one, equal values get equal masks, others different ones.

The masks depend on a secret that is not kept: nobody can compute the mask of a value that they guess.
"""

import hmac
import json
import re
import secrets
import uuid
from collections.abc import Callable, Collection, Iterator
from datetime import date, timedelta
from itertools import count
from typing import Any

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_LONGEST_WORD, _LONGEST = 12, 120  # a rare length would identify a value as well
_FORM = re.compile(r"(?P<word>[^\W\d_]+)|(?P<digits>\d+)|(?P<other>.)", re.DOTALL)
_SEPARATORS = " @.,-_/+:;()[]#&'\n"
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DATE = re.compile(r"(\d{4}-\d{2}-\d{2}|\d{1,2}[./]\d{1,2}[./]\d{4})([ t]\d{2}:\d{2}[\d:.]*z?)?")
# The largest values of integer types: a mask fits where the value does.
_SIZES = (8, 16, 32, 64, 128)
_LARGEST = sorted((1 << bits) - 1 for size in _SIZES for bits in (size - 1, size))
_SMALLEST = [1 << size - 1 for size in _SIZES]  # negated


class Masker:
    """Masks with one secret."""

    def __init__(self, originals: Collection[str] = ()) -> None:
        """Choose a secret.

        Args:
            originals: values in lower case that no mask may be equal to.
        """
        self._salt = secrets.token_bytes(32)
        self._originals = originals
        self._texts: dict[str, str] = {}
        self._numbers: dict[int, int] = {}
        self._used_texts: set[str] = set()
        self._used_numbers: set[int] = set()

    @property
    def salt(self) -> str:
        """The secret, for expressions in SQL."""
        return self._salt.hex()

    def text(self, value: str) -> str:
        """Return a mask of the same form, also in case; the same one for values that differ only in case."""
        if not value.strip():
            return value
        usual = next((case for case in (str.lower, str.upper, str.title) if case(value) == value), None)
        form = value.lower() if usual else value
        if form not in self._texts:
            self._texts[form] = self._new_text(form.lower(), form)
        return (usual or str.lower)(self._texts[form])

    def number(self, value: int) -> int:
        """Return an integer of as many digits, which fits where the value does."""
        if value not in self._numbers:
            size, sign = abs(value), -1 if value < 0 else 1
            digits = len(str(size))
            low = 10 ** (digits - 1) if size else 0
            bounds = _SMALLEST if value < 0 else _LARGEST
            number = min(10**digits - 1 if size else 0, next(one for one in bounds if one >= size)) - low + 1
            start = next(self._random(f"number {value}")) % number
            found = next(  # there is one left: as many values can have these digits
                one
                for step in range(number)
                if (one := sign * (low + (start + step) % number)) not in self._used_numbers
            )
            self._used_numbers.add(found)
            self._numbers[value] = found
        return self._numbers[value]

    def nested(self, value: str, mask_text: Callable[[str], str], is_personal: Callable[[str], bool]) -> str:
        """Mask a JSON text.

        Args:
            value: the text.
            mask_text: masks a text in it that need not be about a person, and the name of a field.
            is_personal: whether a field of this name is about a person, with all that is below it.
        """

        def walk(node: Any, personal: bool) -> Any:
            if isinstance(node, dict):
                return {mask_text(name): walk(one, personal or is_personal(name)) for name, one in node.items()}
            if isinstance(node, list):
                return [walk(one, personal) for one in node]
            if isinstance(node, str):
                return self.text(node) if personal else mask_text(node)
            if not personal or node is None:
                return node
            if isinstance(node, bool):
                return bool(next(self._random(f"bool {node}")) % 2)
            return self.number(node) if isinstance(node, int) else float(self.number(round(node)))

        try:
            return json.dumps(walk(json.loads(value), is_personal("")))
        except (ValueError, RecursionError):  # not JSON after all
            return json.dumps(self.text(value))

    def _new_text(self, value: str, seed: str) -> str:
        for attempt in count():
            random = self._random(f"text {attempt} {seed}")
            if found_date := _DATE.fullmatch(value):  # remains a date; two can get the same
                return _masked_date(found_date[1], random) + re.sub(r"\d", "0", found_date[2] or "")
            if _UUID.fullmatch(value):
                return str(uuid.UUID(int=(next(random) << 64) | next(random)))
            local, at, domain = value.rpartition("@") if _EMAIL.fullmatch(value) else (value, "", "")
            found = "".join(self._words(local, random))[:_LONGEST]
            if at:  # nobody's address
                found = f"{found}@{_word(_only_letters(domain), random)}.example"
            # All masks of short values can be in use.
            found += _word("x" * min(attempt // 20, 8), random) if attempt >= 20 else ""
            if found not in self._used_texts and found not in self._originals:
                self._used_texts.add(found)
                return found
        raise AssertionError  # pragma: no cover, count() does not end

    def _words(self, value: str, random: Iterator[int]) -> Iterator[str]:
        for part in _FORM.finditer(value[: 2 * _LONGEST]):
            text = part[0]
            if part["word"]:
                yield _word(text, random)
            elif part["digits"]:
                first = "0" if text[0] == "0" else str(1 + next(random) % 9)
                yield first + "".join(str(next(random) % 10) for _ in text[1:])
            else:
                yield text if text in _SEPARATORS else "_"

    def _random(self, seed: str) -> Iterator[int]:
        """Yield random 64-bit numbers, the same for the same seed."""
        for block in count():
            yield int.from_bytes(hmac.digest(self._salt, f"{block} {seed}".encode(), "sha256")[:8], "big")


def _word(text: str, random: Iterator[int]) -> str:
    return "".join(_LETTERS[next(random) % 26] for _ in text[:_LONGEST_WORD])


def _only_letters(text: str) -> str:
    return "".join(one for one in text if one.isalpha()) or "x"


def _masked_date(value: str, random: Iterator[int]) -> str:
    parts = re.split(r"[-./]", value)
    year = int(parts[0] if len(parts[0]) == 4 else parts[2])
    day = date(min(max(year, 1900), 2100), 1, 1) + timedelta(days=next(random) % 3650 - 1825)
    if len(parts[0]) == 4:
        return day.isoformat()
    day = day.replace(day=min(day.day, 12))  # whichever comes first, day or month
    return re.sub(r"^\d+(.)\d+(.)\d+$", rf"{day:%d}\g<1>{day:%m}\g<2>{day:%Y}", value)
