"""The type of a column, and how its texts write it, from all of its texts.

A sample of the values rules most readings out; what is left is checked on all rows. A reading is proposed only if each
text has it, and no other reading fits as well: `01/02/2026` in every row stays text.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import islice, product
from typing import Any

import duckdb

from include.dlt_pipelines.propose.names import snake_case
from include.sql import identifier, literal

NULL_MARKS = (
    *("NA", "N/A", "n/a", "#N/A", "NULL", "null", "(null)", "None", "NaN", "nan", "\\N"),
    *("-", "--", "---", "\u2013", "?", ".", "..", "...", ":", "*", "n.a.", "k.A.", "#NV", "missing"),
)
_MARKS_OF_NULL = ("", *NULL_MARKS)  # with texts of nothing but spaces
_MARK_BITS = " ".join(f"when {literal(mark)} then {1 << bit}" for bit, mark in enumerate(_MARKS_OF_NULL))
# Of texts, only this one cannot be a value.
_SURE_MARKS = ("\\N",)
_SAMPLE, _SAMPLE_CELLS = 2_000, 1_000_000
_MARKED = 5  # values with a mark before three digits, from which this is no chance
_AT_ONCE = 25  # columns to check in one query
_SYMBOL = r"(?:[$€£¥₹₽₺₩%‰]|EUR|USD|GBP|CHF|JPY|CAD|AUD|SEK|NOK|DKK|PLN|CZK)"
_GROUPED = "[1-9][0-9]{{0,2}}({0}[0-9]{{3}})+"
_WHOLE = "0|[1-9][0-9]*"
# Decimal mark, mark of thousands.
_MARKS = (
    (".", ""),
    (",", ""),
    (".", ","),
    (",", "."),
    (",", " "),
    (",", "\u00a0"),
    (",", "\u202f"),
    (".", " "),
    (".", "'"),
    (".", "\u2019"),
)
_FLOAT = "-?(0|[1-9][0-9]*)([.][0-9]*)?([eE][+-]?[0-9]+)?"
_BOOLEANS = (
    *(("true", "false"), ("t", "f"), ("yes", "no"), ("y", "n"), ("ja", "nein"), ("j", "n"), ("oui", "non"), ("o", "n")),
    *(("si", "no"), ("sí", "no"), ("s", "n"), ("sim", "não"), ("vrai", "faux"), ("wahr", "falsch"), ("tak", "nie")),
    *(("verdadero", "falso"), ("vero", "falso"), ("on", "off"), ("ja", "nee"), ("ja", "nej")),
)
_DAYS = ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%Y.%m.%d")
_NAMED_DAYS = (
    "%d %b %Y",
    "%d-%b-%Y",
    "%d/%b/%Y",
    "%b %d, %Y",
    "%b %d %Y",
    "%d %B %Y",
    "%B %d, %Y",
    "%B %d %Y",
    "%Y-%b-%d",
)
_SHORT_DAYS = ("%d.%m.%y", "%d/%m/%y", "%m/%d/%y", "%y-%m-%d", "%d-%m-%y", "%d-%b-%y", "%d %b %y")
_TIMES = ("%H:%M:%S", "%H:%M", "%I:%M %p", "%I:%M:%S %p", "%I:%M%p", "%H:%M:%S.%f")
_TEXTS = {
    **{
        "%Y": "[0-9]{4}",
        "%y": "[0-9]{2}",
        "%m": "[0-9]{1,2}",
        "%d": "[0-9]{1,2}",
        "%H": "[0-9]{1,2}",
        "%I": "[0-9]{1,2}",
    },
    **{"%M": "[0-9]{2}", "%S": "[0-9]{2}", "%f": "[0-9]{1,6}", "%p": "[AaPp][Mm]", "%z": "[+-][0-9]{2}(:?[0-9]{2})?"},
    **{"%b": "[A-Za-z]{3}", "%B": "[A-Za-z]{3,9}"},
}
_COMPACT = "%Y%m%d"
_ISO = {
    "DATE": "[0-9]{4}-[0-9]{2}-[0-9]{2}",
    "TIME": "[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,6})?",
    "TIMESTAMP": "[0-9-]{10}[ T][0-9:]{8}([.][0-9]{1,6})?",
    "TIMESTAMP WITH TIME ZONE": "[0-9-]{10}[ T][0-9:]{8}([.][0-9]{1,6})?(Z|[+-][0-9]{2}(:?[0-9]{2})?)",
}
_MOMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ,:./+-]{3,39}")
_DAY_NAME = re.compile(r"(^|_)(date|day|datum|tag|fecha|data|dia|jour|dag|dt)(_|$)|_on$")
_AMOUNT = re.compile(
    r"(^|_)(amount|price|cost|total|subtotal|revenue|sales|tax|fee|balance|betrag|preis|saldo|umsatz|kosten|montant|prix"
    r"|importe|precio|importo|prezzo|valor|bedrag|kwota|cena|debit|credit|paid|gross|net|brutto|netto)(_|$)"
)


@dataclass(frozen=True)
class Reading:
    """What a column's texts are.

    Attributes:
        type: for the contract.
        options: the dialect's options for values that it needs, by name.
        cast: the type that the staging model can give its texts.
        note: why it is text, if its texts look like more; empty if they do not.
        rivals: whether its numbers can be read in another way, too.
        shows_decimal: whether its numbers show which decimal mark they have.
        marks: of text, values that mean NULL elsewhere.
    """

    type: str
    options: Mapping[str, Any] = field(default_factory=dict)
    cast: str = ""
    note: str = ""
    rivals: bool = False
    shows_decimal: bool = False
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Form:
    """A reading to try: a type, the form of its texts, and an SQL condition on the text `{v}`."""

    type: str
    regex: str
    condition: str = "true"
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(self.regex)


@dataclass(frozen=True)
class _Facts:
    """How all texts of a column keep to a form, not counting marks of NULL.

    Attributes:
        marks: the marks of NULL among them.
        misfits: how many do not have the form.
        count: how many there are.
        fewest: decimals of a number, at least.
        most: decimals, at most.
        digits: digits before the decimal mark, at most.
        small: whether whole numbers fit into a BIGINT.
    """

    marks: tuple[str, ...]
    misfits: int
    count: int
    fewest: int
    most: int
    digits: int
    small: bool


def read_columns(
    connection: duckdb.DuckDBPyConnection, rows: str, columns: Sequence[str], delimiter: str
) -> dict[str, Reading]:
    """Return how to read each column, in order.

    Args:
        connection: a database with the rows.
        rows: the relation of the rows, all columns VARCHAR.
        columns: their names.
        delimiter: what separates values in the file: a semicolon often comes with decimal commas.
    """
    reader = _Reader(connection, rows, columns, delimiter)
    readings = {column: reader.read(column) for column in columns}
    # The other columns show whether 1,250 is a thousand.
    shown = {one.options.get("decimal", ".") for one in readings.values() if one.shows_decimal and not one.rivals}
    for column, reading in readings.items():
        if reading.rivals:
            mark = reading.options.get("decimal", ".")
            known = min(shown) if len(shown) == 1 else "." if mark == "." and delimiter != ";" else ""
            note = f"text, as {mark!r} may be the decimal mark or that of thousands: declare it"
            readings[column] = reader.read(column, known) if known else Reading("VARCHAR", note=note)
    return readings


class _Reader:
    """Reads columns: first a sample, then what it leaves as possible on all rows, for many columns at a time."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, rows: str, columns: Sequence[str], delimiter: str
    ) -> None:
        self._connection, self._rows, self._delimiter = connection, rows, delimiter
        self._values = self._sample(columns)
        self._forms = {
            column: list(_forms(column, values)) if values else [] for column, values in self._values.items()
        }
        self._fitting = {
            column: [form for form in forms if all(map(form.pattern.fullmatch, self._values[column]))]
            for column, forms in self._forms.items()
        }
        self._facts = self._check({column: forms[0] if forms else None for column, forms in self._fitting.items()})

    def _sample(self, columns: Sequence[str]) -> dict[str, list[str]]:
        """Return some different values of each column, without marks of NULL."""
        size = min(_SAMPLE, max(_SAMPLE_CELLS // len(columns), 20))
        found = self._connection.execute(f"select * from {self._rows} limit {size}").fetchall()
        samples = {}
        for column, texts in zip(columns, zip(*found, strict=True) if found else [()] * len(columns), strict=True):
            values = _values(texts)
            if not values and len(found) == size:  # empty at the beginning
                v = identifier(column)
                query = f"select distinct {v} from {self._rows} where {v} not in {_list(NULL_MARKS)} limit {_SAMPLE}"
                values = _values([text for (text,) in self._connection.execute(query).fetchall()])
            samples[column] = values
        return samples

    def _misfits(self, column: str, form: _Form) -> int:
        return self._check({column: form})[column].misfits

    def read(self, column: str, decimal: str = "") -> Reading:
        """Return the reading of a column.

        Args:
            column: its name.
            decimal: the decimal mark of the file, if it is known.
        """
        values, fitting = self._values[column], self._fitting[column]
        if decimal:
            fitting = [form for form in fitting if form.options.get("decimal", ".") == decimal]
        for form in fitting:
            is_checked = form is self._fitting[column][0]
            facts = self._facts[column] if is_checked else self._check({column: form})[column]
            if not facts.misfits:
                break
        else:
            return self._text(column, self._almost(column))
        if form.type == "SHORT DATE":
            return self._text(column, f"text, as dates such as {form.options['date_format']} have no century")
        rivals = [one for one in fitting if _differs(form, one, values) and not self._misfits(column, one)]
        if rivals and form.type != "NUMBER":
            formats = " and ".join(dict.fromkeys(value for one in (form, *rivals) for value in one.options.values()))
            return self._text(column, f"text, as {formats} fit all rows: declare the right one")
        if rivals and _counts_thousands(form, values, self._delimiter):
            form, rivals = rivals[0], []
            facts = self._check({column: form})[column]
        commas = sum("," in one for one in values)
        if form.options.get("decimal") == "," == self._delimiter and not rivals and 0 < commas < len(values) / 2:
            return self._text(column, "text, as few values have a comma: they may be lists rather than decimals")
        options = dict(form.options) | ({"null_values": facts.marks} if facts.marks else {})
        shown = form.options.get("thousands") or form.options.get("decimal", ".")
        shows = any(shown in one for one in values)
        if form.type == "NUMBER":
            return Reading(_number(column, facts, options), options, rivals=bool(rivals), shows_decimal=shows)
        return Reading(form.type, options, shows_decimal=shows and form.type == "DOUBLE")

    def _text(self, column: str, note: str = "") -> Reading:
        found = tuple(mark for mark in self._facts[column].marks if mark)
        marks = tuple(mark for mark in found if mark in _SURE_MARKS)
        return Reading("VARCHAR", {"null_values": marks} if marks else {}, note=note, marks=found)

    def _almost(self, column: str) -> str:
        """Say which type nearly all texts have; nothing if there is none."""
        values = self._values[column]
        for form in self._forms[column]:
            misfits = (one for one in values if not form.pattern.fullmatch(one))
            too_many = next(islice(misfits, len(values) // 20, None), None)
            if values and too_many is None and form.type != "SHORT DATE":
                facts = self._check({column: form})[column]
                kind = "numbers" if form.type in ("NUMBER", "DOUBLE") else f"values of {form.type}"
                return f"text, as {facts.misfits:,} of {facts.count:,} values are no {kind}"
        return ""

    def _check(self, forms: Mapping[str, _Form | None]) -> dict[str, _Facts]:
        """Return the facts about all rows of some columns, each with a form or none."""
        facts = {}
        for start in range(0, len(forms), _AT_ONCE):
            some = list(forms.items())[start : start + _AT_ONCE]
            texts = ", ".join(f"trim({identifier(column)}) as v{at}" for at, (column, _) in enumerate(some))
            marks = ", ".join(f"v{at}, case v{at} {_MARK_BITS} else 0 end as m{at}" for at in range(len(some)))
            values = ", ".join(f"m{at}, case when m{at} = 0 then v{at} end as v{at}" for at in range(len(some)))
            wanted = ", ".join(_aggregates(at, form) for at, (_, form) in enumerate(some))
            query = (
                f"select {wanted} from (select {values} from (select {marks} from (select {texts} from {self._rows})))"
            )
            row = self._connection.execute(query).fetchone()
            assert row
            for at, (column, _) in enumerate(some):
                found, misfits, count, fewest, most, digits, small = row[7 * at : 7 * at + 7]
                known = tuple(mark for bit, mark in enumerate(_MARKS_OF_NULL) if (found or 0) >> bit & 1)
                bounds = (fewest or 0, most or 0, digits or 0)
                facts[column] = _Facts(known, misfits, count, *bounds, small is not False)
        return facts


def _values(texts: Iterable[str | None]) -> list[str]:
    stripped = dict.fromkeys(text.strip() for text in texts if text)
    return [text for text in stripped if text and text not in NULL_MARKS]


def _list(texts: Sequence[str]) -> str:
    return f"({', '.join(map(literal, texts))})"


def _aggregates(at: int, form: _Form | None) -> str:
    """Return the SQL of `_Facts` for a text `v` and the bit of its mark of NULL."""
    v = f"v{at}"
    if not form:
        return f"bit_or(m{at}), 0, count({v}), 0, 0, 0, true"
    fits = f"regexp_full_match({v}, {literal(form.regex)}) and {form.condition.format(v=v)}"
    counts = f"bit_or(m{at}), count(*) filter ({v} is not null and not ({fits})), count({v})"
    if form.type != "NUMBER":
        return f"{counts}, 0, 0, 0, true"
    decimal, thousands = form.options.get("decimal", "."), form.options.get("thousands", "")
    number = f"regexp_replace(replace({v}, {literal(thousands or ' ')}, ''), {literal(_SYMBOL)}, '', 'g')"
    number = f"trim(replace({number}, {literal(decimal)}, '.'))"
    fraction = f"strlen(regexp_replace({number}, '^[^.]*[.]?', ''))"
    digits = f"strlen(regexp_replace({number}, '[.].*|[^0-9.]', '', 'g'))"
    small = f"bool_and({fraction} > 0 or try_cast({number} as bigint) is not null) filter ({v} is not null)"
    return f"{counts}, min({fraction}), max({fraction}), max({digits}), {small}"


def _counts_thousands(form: _Form, values: Sequence[str], delimiter: str) -> bool:
    """Return whether a mark before three digits is one of thousands: decimals would be there always, or vary."""
    mark = form.options.get("decimal", ".")
    marked = [one for one in values if mark in one]
    # Lists of codes, such as 840,978, have three digits before the mark, too.
    varied = any(re.match(r"\D*[0-9]{1,2}\D", one) for one in marked)
    return _MARKED <= len(marked) < len(values) and varied and (mark == "," or delimiter == ";")


def _number(column: str, facts: _Facts, options: Mapping[str, Any]) -> str:
    """Return the type of numbers: exact ones if they have the same number of decimals, as amounts do."""
    if not facts.most:
        return "BIGINT" if facts.small else "DECIMAL(38,0)" if facts.digits <= 38 else "VARCHAR"
    amount = bool(_AMOUNT.search(snake_case(column))) or "symbols" in options
    if facts.digits + facts.most <= 18 and (facts.fewest == facts.most or (amount and facts.most <= 2)):
        return f"DECIMAL(18,{max(facts.most, 2) if amount else facts.most})"
    return "DOUBLE"


def _differs(form: _Form, other: _Form, values: Sequence[str]) -> bool:
    """Return whether another form gives the texts another meaning."""
    if form.type != other.type or form is other:
        return False
    if form.type == "NUMBER":
        mark, thousands = form.options.get("decimal", "."), other.options.get("thousands")
        return thousands == mark and any(mark in one for one in values)
    orders = [
        "".join(re.findall("%([dmbB])", text)).lower() for text in (*form.options.values(), *other.options.values())
    ]
    return form.type in ("DATE", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE") and len(set(orders)) > 1


def _forms(column: str, values: Sequence[str]) -> Iterator[_Form]:
    if _DAY_NAME.search(snake_case(column)):
        yield _moment("DATE", _COMPACT)
    yield from _numbers(values)
    low = {one.lower() for one in values}
    for true, false in _BOOLEANS:
        # One letter, or one word, says nothing: the next delivery may have others.
        if low == {true, false} or (low <= {true, false} and (true, false) == ("true", "false")):
            options = {} if true in ("true", "t") else {"true_values": (true,), "false_values": (false,)}
            yield _Form("BOOLEAN", f"(?i)({true}|{false})", options=options)
    for type_, regex in _ISO.items():
        yield _Form(type_, regex, f"try_cast({{v}} as {type_}) is not null")
    if all(_MOMENT.fullmatch(value) for value in values):
        yield from _moments()


def _numbers(values: Sequence[str]) -> Iterator[_Form]:
    sign = "[+-]?" if any(re.match(r"[+][0-9]*[.,]|-", one) for one in values) else "-?"  # +4930123 is a phone number
    symbols = {one for value in values for one in re.findall(_SYMBOL, value)}
    if len(symbols) > 1:
        return  # amounts in different currencies are not one number
    before = after = ""
    options: dict[str, Any] = {}
    for symbol in symbols:
        if symbol in "%‰" and not all(symbol in value for value in values):
            return
        before, after = f"({re.escape(symbol)} ?)?", f"( ?{re.escape(symbol)})?"
        options = {"symbols": (symbol,)}
    for decimal, thousands in _MARKS:
        whole = f"({_WHOLE}|{_GROUPED.format(re.escape(thousands))})" if thousands else f"({_WHOLE})"
        number = f"{sign}{before}{sign}{whole}({re.escape(decimal)}[0-9]+)?{after}"
        marks = {"decimal": decimal} if decimal != "." else {}
        marks |= {"thousands": thousands} if thousands else {}
        yield _Form("NUMBER", number, options={**options, **marks})
    if not symbols:
        yield _Form("DOUBLE", _FLOAT, "try_cast({v} as double) is not null")
        comma = _FLOAT.replace("[.]", ",")
        yield _Form("DOUBLE", comma, "try_cast(replace({v}, ',', '.') as double) is not null", {"decimal": ","})


@cache
def _moments() -> tuple[_Form, ...]:
    days = (*_DAYS, *_NAMED_DAYS)
    forms = [_moment("DATE", form) for form in days]
    forms += [_moment("SHORT DATE", form) for form in _SHORT_DAYS]
    forms += [_moment("TIME", form) for form in _TIMES[1:-1]]
    for day, between, time in product(("%Y-%m-%d", *days), (" ", "T", ", "), _TIMES):
        form = f"{day}{between}{time}"
        forms.append(_moment("TIMESTAMP", form))
        forms += [_moment("TIMESTAMP WITH TIME ZONE", f"{form}{zone}") for zone in ("%z", " %z")]
    return tuple(forms)


def _moment(type_: str, form: str) -> _Form:
    regex = re.sub("%[a-zA-Z]", lambda one: _TEXTS[one[0]], form.replace(".", "[.]"))
    if form == _COMPACT:
        regex = "(19|20)[0-9]{6}"
    option = f"{type_.split()[-1].lower()}_format" if type_.endswith(("DATE", "TIME")) else "timestamp_format"
    return _Form(type_, regex, f"try_strptime({{v}}, {literal(form)}) is not null", {option: form})
