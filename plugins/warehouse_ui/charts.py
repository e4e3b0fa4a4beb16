"""Charts as inline SVG: no script, no style attributes, each with a text label."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup

from include.runs.project import Node
from include.warehouse_catalog.published import Bin
from include.warehouse_catalog.query import NUMBER, Answer
from warehouse_ui.history import Run

_SLOT = 10
_LEAST_SLOTS = 30  # keeps the first few runs from becoming wide blocks
_AXIS = 52  # room for the labels of the vertical axis, at the right: the newest is there


def run_strip(runs: Sequence[Run]) -> Markup:
    """Draw the last runs, oldest first: the bar shows the duration, the mark below it the outcome.

    Args:
        runs: newest first.
    """
    slots = max(_LEAST_SLOTS, len(runs))
    longest = max((run.seconds or 0 for run in runs), default=0) or 1
    width = slots * _SLOT
    parts = [_axis(width, 2, _duration(longest)), _axis(width, 62, "0")]
    for at, run in enumerate(runs):
        x = (slots - 1 - at) * _SLOT
        height = max(2.0, 60 * (run.seconds or 0) / longest)
        kind = run.state if run.state in ("success", "failed") else "running"
        where = f", failed at {run.stage}" if run.stage else ""
        seconds = f", {_duration(run.seconds)}" if run.seconds is not None else ""
        parts.append(
            Markup(
                '<g class="{}"><title>{}: {}{}{}</title><rect class="hit" x="{}" y="0" width="{}" height="80"/>'
                '<rect class="bar" x="{}" y="{:.1f}" width="{}" height="{:.1f}" rx="1"/>{}</g>'
            ).format(
                *(kind, run.run_id, run.state, where, seconds, x, _SLOT),
                *(x + 1, 62 - height, _SLOT - 2, height, _mark(kind, x)),
            )
        )
    dates = Markup('<text x="{}" y="92" text-anchor="{}">{:%Y-%m-%d}</text>')
    if runs and runs[0].started_at:
        parts.append(dates.format(width, "end", runs[0].started_at))
    if len(runs) * _SLOT > 140 and runs[-1].started_at:  # else the two would overlap
        parts.append(dates.format(width - len(runs) * _SLOT, "start", runs[-1].started_at))
    failed = sum(run.state == "failed" for run in runs)
    label = f"The last {len(runs)} runs: {failed} failed, the longest took {longest:.0f} seconds"
    return _svg("strip", width + _AXIS, 96, label, parts)


def _axis(width: float, y: float, text: str) -> Markup:
    return Markup('<path class="axis" d="M0 {y}h{}"/><text x="{}" y="{}">{}</text>').format(
        width, width + 6, max(y + 4, 10), text, y=y
    )


def _duration(seconds: float | None) -> str:
    seconds = seconds or 0
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def _mark(kind: str, x: int) -> Markup:
    if kind == "failed":
        return Markup('<path class="mark" d="M{0} 67l7 7m0-7l-7 7"/>').format(x + 1.5)
    return Markup('<rect class="mark" x="{}" y="67" width="7" height="7" rx="{}"/>').format(
        x + 1.5, 3.5 if kind == "running" else 1
    )


def trend(values: Sequence[int | None], bad: Sequence[int], name: str) -> Markup:
    """Draw rows loaded per run, oldest first, from zero, with rejected rows stacked on top.

    Args:
        values: rows loaded; None if nothing was loaded.
        bad: rows rejected in the same runs.
        name: the table's name.
    """
    slots = max(_LEAST_SLOTS, len(values))
    width = 250.0
    slot = width / slots
    high = max(((value or 0) + rejected for value, rejected in zip(values, bad, strict=True)), default=0) or 1
    parts = [_axis(width, 3, _count(high)), _axis(width, 59, "0")]
    for at, (value, rejected) in enumerate(zip(values, bad, strict=True), slots - len(values)):
        good, worse = 56 * (value or 0) / high, 56 * rejected / high
        worse = max(worse, 3.0) if rejected else 0
        title = f"{value:,} rows" if value is not None else "nothing loaded"
        parts.append(
            Markup(
                '<g><title>{}, {:,} rejected</title><rect class="bar" x="{x:.1f}" y="{:.1f}" width="{w:.1f}"'
                ' height="{:.1f}"/><rect class="rejected" x="{x:.1f}" y="{:.1f}" width="{w:.1f}" height="{:.1f}"/></g>'
            ).format(title, rejected, 59 - good, good, 59 - good - worse, worse, x=at * slot, w=max(1.0, slot - 2))
        )
    known = [value for value in values if value is not None]
    label = f"{name}: no loads yet"
    if known:
        label = f"{name}: {known[0]:,} to {known[-1]:,} rows over {len(known)} loads, {sum(bad):,} rejected"
    return _svg("trend", width + _AXIS, 66, label, parts)


def line(values: Sequence[float | None], label: str) -> Markup:
    """Draw a small line from zero to its highest value, oldest first; None is a gap."""
    high = max((one for one in values if one is not None), default=0) or 1
    step = 120 / max(1, len(values) - 1)
    path, pen = [], "M"
    for at, value in enumerate(values):
        if value is None:
            pen = "M"
            continue
        path.append(f"{pen}{at * step:.1f} {22 - 20 * value / high:.1f}")
        pen = "L"
    if len(path) == 1:
        path.append("h1")
    return _svg("line", 121, 24, label, [Markup('<path class="stroke" d="{}"/>').format("".join(path))])


def _count(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if number >= size:
            return f"{number / (1e3 if unit == 'k' else size):,.3g} {unit}"
    return f"{number:,.0f}"


def histogram(bins: Sequence[Bin], name: str) -> Markup:
    """Draw a column's histogram, or its most frequent values with their numbers, as bars."""
    most = max((one.rows for one in bins), default=0) or 1
    words = ", ".join(f"{one.label}: {one.rows:,}" for one in bins)
    label = f"Values of {name}. {words}"
    if not bins[0].is_range:
        rows = [
            Markup(
                '<g><title>{}: {:,}</title><text x="0" y="{y}">{}</text><rect class="bar" x="130" y="{top}"'
                ' width="{:.1f}" height="9"/><text x="{:.1f}" y="{y}">{:,}</text></g>'
            ).format(
                *(one.label, one.rows, _short(one.label, 18), max(1.0, 80 * one.rows / most)),
                *(134 + max(1.0, 80 * one.rows / most), one.rows),
                y=at * 15 + 11,
                top=at * 15 + 2,
            )
            for at, one in enumerate(bins)
        ]
        return _svg("histogram", 270, 15 * len(bins) + 2, label, rows)
    parts = [
        Markup(
            '<g><title>{}: {:,}</title><rect class="hit" x="{x}" y="0" width="16" height="36"/>'
            '<rect class="bar" x="{x1}" y="{:.1f}" width="14" height="{:.1f}"/></g>'
        ).format(
            one.label,
            one.rows,
            36 - max(1.0, 34 * one.rows / most) if one.rows else 36,
            max(1.0, 34 * one.rows / most) if one.rows else 0,
            x=at * 16,
            x1=at * 16 + 1,
        )
        for at, one in enumerate(bins)
    ]
    low, high = bins[0].label.split(" to ")[0], bins[-1].label.split(" to ")[-1]
    ends = Markup('<text x="0" y="49">{}</text><text x="192" y="49" text-anchor="end">{}</text>')
    return _svg("histogram", 192, 52, label, [*parts, ends.format(low, high)])


def lineage(
    layers: Sequence[Sequence[Node]],
    edges: Sequence[tuple[str, str]],
    here: Collection[str],
    links: Mapping[str, str],
    states: Mapping[str, str] | None = None,
) -> Markup:
    """Draw nodes from left to right, each layer built from those before it.

    Args:
        layers: from sources to exposures.
        edges: parent and child, by unique id.
        here: unique ids of the nodes that it is about.
        links: page URLs by unique id.
        states: `bad` or `warn`, of nodes whose tests are.
    """
    rows = max(len(layer) for layer in layers)
    gap_x, height, gap_y = (56, 34, 12) if rows <= 40 else (80, 22, 5)
    total = rows * (height + gap_y) - gap_y
    place: dict[str, tuple[float, float, float]] = {}
    left = 1.0
    for layer in layers:
        top = (total - (len(layer) * (height + gap_y) - gap_y)) / 2
        width = max(len(_elided(node.name)) for node in layer) * 7.4 + 22
        for row, node in enumerate(layer):
            place[node.unique_id] = (left, 1 + top + row * (height + gap_y), width)
        left += width + gap_x
    parts = [_edge(place[parent], place[child], height) for parent, child in edges]
    for layer in layers:
        for node in layer:
            x, y, width = place[node.unique_id]
            about = "here" if node.unique_id in here else node.kind
            kind = f"node {about} {(states or {}).get(node.unique_id, '')}".rstrip()
            owner = f", {node.owner}" if node.owner else ""
            box = Markup(
                '<title>{} {}{}</title><rect x="{:.0f}" y="{:.0f}" width="{:.0f}" height="{}" rx="6"/>'
                '<text x="{:.0f}" y="{:.1f}">{}</text>'
            ).format(node.kind, node.name, owner, x, y, width, height, x + 10, y + height / 2 + 4.5, _elided(node.name))
            link = links.get(node.unique_id)
            whole = Markup('<a href="{}" class="{}" aria-label="{} {}">{}</a>')
            parts.append(
                whole.format(link, kind, node.kind, node.name, box)
                if link
                else Markup('<g class="{}">{}</g>').format(kind, box)
            )
    return _svg("lineage", left - gap_x + 1, total + 2, "", parts, role="group")


def _edge(parent: tuple[float, float, float], child: tuple[float, float, float], height: float) -> Markup:
    (x1, y1, width), (x2, y2, _) = parent, child
    x1, y1, y2 = x1 + width, y1 + height / 2, y2 + height / 2
    bend = max(28.0, (x2 - x1) / 2)
    return Markup('<path class="edge" d="M{:.0f} {:.0f}C{:.0f} {:.0f} {:.0f} {:.0f} {:.0f} {:.0f}"/>').format(
        x1, y1, x1 + bend, y1, x2 - bend, y2, x2, y2
    )


def _elided(name: str) -> str:
    """Return a name without its middle, if it is long: names often differ at their ends."""
    return name if len(name) <= 44 else f"{name[:24]}…{name[-19:]}"


RESULT_KINDS = ("bar", "line", "scatter")
_MOST_SERIES = 6
_MOST_BARS = 200


@dataclass(frozen=True)
class _Frame:
    """Where a result's chart is drawn: its plot, and the values at its lower and upper end."""

    low: float
    high: float
    step: float
    left: float = 70
    top: float = 30
    width: float = 880
    height: float = 250

    def y(self, value: float) -> float:
        return self.top + self.height * (self.high - value) / (self.high - self.low)


def result(kind: str, answer: Answer) -> Markup:
    """Draw a query's result: the first column from left to right, each other column of numbers as a series.

    Args:
        kind: one of `RESULT_KINDS`.
        answer: with at least one row.

    Raises:
        ValueError: it cannot be drawn; the message says what is missing.
    """
    series = [at for at in range(1, len(answer.columns)) if NUMBER.fullmatch(answer.types[at])][:_MOST_SERIES]
    placed = [(place, row) for row in answer.rows if (place := _place(row[0], answer.types[0])) is not None]
    if kind == "scatter" and not placed:
        raise ValueError("A scatter chart needs numbers, dates or times in the first column.")
    continuous = kind != "bar" and bool(placed)
    placed.sort(key=lambda one: one[0])
    rows = [row for _, row in placed] if continuous else answer.rows
    names = ["NULL" if row[0] is None else row[0] for row in rows]
    if not series:
        raise ValueError("A chart needs a column of numbers after the first column.")
    if kind == "bar" and len(names) > _MOST_BARS:
        raise ValueError(f"A bar chart has room for {_MOST_BARS} rows: aggregate, or choose a line.")
    values = {at: [float(row[at] or "nan") for row in rows] for at in series}
    frame = _Frame(*_scale([value for column in values.values() for value in column if math.isfinite(value)]))
    slot = frame.width / len(names)
    xs = [frame.left + slot * (at + 0.5) for at in range(len(names))]
    if continuous:
        first, last = placed[0][0], placed[-1][0]
        xs = [frame.left + frame.width * (place - first) / ((last - first) or 1) for place, _ in placed]
    parts = _axes(frame, xs, names)
    for number, at in enumerate(series):
        parts.append(_legend(frame, number, answer.columns[at]))
        points = [one for one in zip(xs, values[at], names, strict=True) if math.isfinite(one[1])]
        parts += _series(kind, frame, number, len(series), slot, points, answer.columns[at])
    label = f"{', '.join(answer.columns[at] for at in series)} by {answer.columns[0]}, {len(names):,} rows"
    return _svg("result", frame.left + frame.width + 30, frame.top + frame.height + 34, label, parts)


def _axes(frame: _Frame, xs: Sequence[float], names: Sequence[str]) -> list[Markup]:
    parts = []
    line = Markup('<path class="axis" d="M{} {:.1f}h{}"/><text x="{}" y="{:.1f}" text-anchor="end">{:,g}</text>')
    for tick in range(round((frame.high - frame.low) / frame.step) + 1):
        value = frame.low + tick * frame.step
        parts.append(line.format(frame.left, frame.y(value), frame.width, frame.left - 8, frame.y(value) + 4, value))
    free = 0.0
    for x, name in zip(xs, names, strict=True):
        if x >= free:
            text = Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>')
            parts.append(text.format(x, frame.top + frame.height + 20, _short(name, 15)))
            free = x + 105  # the width of a label
    return parts


def _legend(frame: _Frame, number: int, name: str) -> Markup:
    key = Markup('<rect class="s{}" x="{}" y="6" width="10" height="10" rx="2"/><text x="{}" y="15">{}</text>')
    left = frame.left + 145 * number
    return key.format(number, left, left + 16, _short(name, 18))


def _series(
    kind: str,
    frame: _Frame,
    number: int,
    of: int,
    slot: float,
    points: Sequence[tuple[float, float, str]],
    column: str,
) -> list[Markup]:
    """Draw one series of a result.

    Args:
        kind: one of `RESULT_KINDS`.
        frame: where.
        number: its place among the series.
        of: how many there are.
        slot: width for the bars of a row.
        points: x, value and name.
        column: its name.
    """
    parts = []
    if kind == "line" and points:
        path = "L".join(f"{x:.1f} {frame.y(value):.1f}" for x, value, _ in points)
        parts.append(Markup('<path class="line s{}" d="M{}"/>').format(number, path))
    bar = slot * 0.8 / of
    for x, value, name in points:
        title = Markup("<title>{}, {}: {:,g}</title>").format(name, column, value)
        if kind == "bar":
            shape = Markup('<rect class="s{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">{}</rect>')
            start, zero = x - slot * 0.4 + bar * number, frame.y(0)
            top = min(frame.y(value), zero)
            parts.append(shape.format(number, start, top, bar, abs(frame.y(value) - zero), title))
        else:
            shape = Markup('<circle class="s{}" cx="{:.1f}" cy="{:.1f}" r="3">{}</circle>')
            parts.append(shape.format(number, x, frame.y(value), title))
    return parts


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _place(text: str | None, kind: str) -> float | None:
    """Return where a value is on a continuous axis, or None if it has no such place."""
    try:
        if text is None:
            return None
        if NUMBER.fullmatch(kind):
            return float(text)
        return datetime.fromisoformat(text).timestamp() if kind.startswith(("DATE", "TIMESTAMP")) else None
    except (ValueError, OverflowError):
        return None


def _scale(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower and upper end of an axis that includes zero, and the distance of its ticks."""
    low, high = min([0.0, *values]), max([0.0, *values])
    if low == high:
        return 0.0, 1.0, 0.5
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough)
    return math.floor(low / step) * step, math.ceil(high / step) * step, step


def median_seconds(runs: Sequence[Run]) -> float | None:
    """Return the median duration of the green runs, in seconds."""
    found = sorted(run.seconds for run in runs if run.state == "success" and run.seconds is not None)
    return found[len(found) // 2] if found else None


def _svg(kind: str, width: float, height: float, label: str, parts: Sequence[Markup], role: str = "img") -> Markup:
    return Markup(
        '<svg class="chart {}" viewBox="0 0 {w:.0f} {h:.0f}" width="{w:.0f}" height="{h:.0f}" role="{}"'
        ' aria-label="{}">{}</svg>'
    ).format(kind, role, label or "Lineage", Markup("").join(parts), w=width, h=height)
