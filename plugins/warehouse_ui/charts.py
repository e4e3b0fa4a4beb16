"""Charts as inline SVG: no script, no style attributes, each with a text label."""

import math
from collections.abc import Sequence
from datetime import datetime

from markupsafe import Markup

from include.runs.project import Node
from include.warehouse_catalog.published import Bin
from include.warehouse_catalog.query import NUMBER, Answer
from warehouse_ui.history import Run

_SLOT = 10
_LEAST_SLOTS = 30  # keeps the first few runs from becoming wide blocks


def run_strip(runs: Sequence[Run]) -> Markup:
    """Draw the last runs, oldest first: the bar shows the duration, the mark below it the outcome.

    Args:
        runs: newest first.
    """
    slots = max(_LEAST_SLOTS, len(runs))
    longest = max((run.seconds or 0 for run in runs), default=0) or 1
    parts = []
    for at, run in enumerate(runs):
        x = (slots - 1 - at) * _SLOT
        height = max(2.0, 60 * (run.seconds or 0) / longest)
        kind = run.state if run.state in ("success", "failed") else "running"
        where = f", failed at {run.stage}" if run.stage else ""
        seconds = f", {run.seconds:.0f} s" if run.seconds is not None else ""
        parts.append(
            Markup(
                '<g class="{}"><title>{}: {}{}{}</title><rect class="hit" x="{}" y="0" width="{}" height="80"/>'
                '<rect class="bar" x="{}" y="{:.1f}" width="{}" height="{:.1f}" rx="1"/>{}</g>'
            ).format(
                kind,
                run.run_id,
                run.state,
                where,
                seconds,
                x,
                _SLOT,
                x + 1,
                62 - height,
                _SLOT - 2,
                height,
                _mark(kind, x),
            )
        )
    failed = sum(run.state == "failed" for run in runs)
    label = f"The last {len(runs)} runs: {failed} failed, the longest took {longest:.0f} seconds"
    empty = Markup('<rect class="empty" x="0" y="61" width="{}" height="1"/>').format(slots * _SLOT)
    return _svg("strip", slots * _SLOT, 80, label, [empty, *parts], stretch=True)


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
    high = max(((value or 0) + rejected for value, rejected in zip(values, bad, strict=True)), default=0) or 1
    parts = [Markup('<rect class="empty" x="0" y="59" width="{}" height="1"/>').format(slots * _SLOT)]
    for at, (value, rejected) in enumerate(zip(values, bad, strict=True), slots - len(values)):
        x, good, worse = at * _SLOT + 1, 56 * (value or 0) / high, 56 * rejected / high
        worse = max(worse, 3.0) if rejected else 0
        title = f"{value:,} rows" if value is not None else "nothing loaded"
        parts.append(
            Markup(
                '<g><title>{}, {:,} rejected</title><rect class="bar" x="{x}" y="{:.1f}" width="{w}" height="{:.1f}"/>'
                '<rect class="rejected" x="{x}" y="{:.1f}" width="{w}" height="{:.1f}"/></g>'
            ).format(title, rejected, 59 - good, good, 59 - good - worse, worse, x=x, w=_SLOT - 2)
        )
    known = [value for value in values if value is not None]
    label = f"{name}: no loads yet"
    if known:
        label = f"{name}: {known[0]:,} to {known[-1]:,} rows over {len(known)} loads, {sum(bad):,} rejected"
    return _svg("trend", slots * _SLOT, 60, label, parts, stretch=True)


def histogram(bins: Sequence[Bin], name: str) -> Markup:
    """Draw a column's histogram, or its most frequent values, as bars."""
    most = max((one.rows for one in bins), default=0) or 1
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
    words = ", ".join(f"{one.label}: {one.rows:,}" for one in bins)
    return _svg("histogram", 192, 36, f"Values of {name}. {words}", parts)


def lineage(
    layers: Sequence[Sequence[Node]], edges: Sequence[tuple[str, str]], here: str, links: dict[str, str]
) -> Markup:
    """Draw a table's ancestors to its left and its descendants to its right.

    Args:
        layers: from sources to exposures.
        edges: parent and child, by unique id.
        here: unique id of the table itself.
        links: page URLs by unique id.
    """
    width, gap_x, height, gap_y = 168, 56, 34, 12
    rows = max(len(layer) for layer in layers)
    total = rows * (height + gap_y) - gap_y
    place: dict[str, tuple[float, float]] = {}
    for column, layer in enumerate(layers):
        top = (total - (len(layer) * (height + gap_y) - gap_y)) / 2
        for row, node in enumerate(layer):
            place[node.unique_id] = (1 + column * (width + gap_x), 1 + top + row * (height + gap_y))
    parts = []
    for parent, child in edges:
        (x1, y1), (x2, y2) = place[parent], place[child]
        x1, y1, y2 = x1 + width, y1 + height / 2, y2 + height / 2
        bend = max(28.0, (x2 - x1) / 2)
        parts.append(
            Markup('<path class="edge" d="M{} {}C{} {} {} {} {} {}"/>').format(
                x1, y1, x1 + bend, y1, x2 - bend, y2, x2, y2
            )
        )
    for layer in layers:
        for node in layer:
            x, y = place[node.unique_id]
            name = node.name if len(node.name) <= 22 else node.name[:21] + "…"
            kind = "node here" if node.unique_id == here else f"node {node.kind}"
            box = Markup(
                '<title>{}</title><rect x="{}" y="{}" width="{}" height="{}" rx="6"/><text x="{}" y="{}">{}</text>'
            ).format(f"{node.kind} {node.name}", x, y, width, height, x + 10, y + 21.5, name)
            link = links.get(node.unique_id)
            parts.append(
                Markup('<a href="{}" class="{}" aria-label="{} {}">{}</a>').format(
                    link, kind, node.kind, node.name, box
                )
                if link and node.unique_id != here
                else Markup('<g class="{}">{}</g>').format(kind, box)
            )
    columns = len(layers)
    return _svg("lineage", columns * (width + gap_x) - gap_x + 2, total + 2, "", parts, role="group")


RESULT_KINDS = ("bar", "line", "scatter")
_MOST_SERIES = 6
_MOST_BARS = 200


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
    left, top, width, height = 70, 30, 880, 250
    slot = width / len(names)
    xs = [left + slot * (at + 0.5) for at in range(len(names))]
    if continuous:
        first = min(place for place, _ in placed)
        span = (max(place for place, _ in placed) - first) or 1
        xs = [left + width * (place - first) / span for place, _ in placed]
    values = {at: [float(row[at] or "nan") for row in rows] for at in series}
    low, high, step = _scale([value for column in values.values() for value in column if math.isfinite(value)])

    def y(value: float) -> float:
        return top + height * (high - value) / (high - low)

    parts = []
    for tick in range(round((high - low) / step) + 1):
        parts.append(
            Markup(
                '<path class="axis" d="M{} {:.1f}h{}"/><text x="{}" y="{:.1f}" text-anchor="end">{:,g}</text>'
            ).format(left, y(low + tick * step), width, left - 8, y(low + tick * step) + 4, low + tick * step)
        )
    free = 0.0
    for x, name in zip(xs, names, strict=True):
        if x >= free:
            text = Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>')
            parts.append(text.format(x, top + height + 20, _short(name, 15)))
            free = x + 105  # the width of a label
    for number, at in enumerate(series):
        key = Markup('<rect class="s{}" x="{}" y="6" width="10" height="10" rx="2"/><text x="{}" y="15">{}</text>')
        parts.append(key.format(number, left + 145 * number, left + 145 * number + 16, _short(answer.columns[at], 18)))
        points = [one for one in zip(xs, values[at], names, strict=True) if math.isfinite(one[1])]
        if kind == "line" and points:
            path = "L".join(f"{x:.1f} {y(value):.1f}" for x, value, _ in points)
            parts.append(Markup('<path class="line s{}" d="M{}"/>').format(number, path))
        bar = slot * 0.8 / len(series)
        for x, value, name in points:
            title = Markup("<title>{}, {}: {:,g}</title>").format(name, answer.columns[at], value)
            if kind == "bar":
                shape = Markup('<rect class="s{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">{}</rect>')
                start = x - slot * 0.4 + bar * number
                shape = shape.format(number, start, min(y(value), y(0)), bar, abs(y(value) - y(0)), title)
            else:
                shape = Markup('<circle class="s{}" cx="{:.1f}" cy="{:.1f}" r="3">{}</circle>')
                shape = shape.format(number, x, y(value), title)
            parts.append(shape)
    label = f"{', '.join(answer.columns[at] for at in series)} by {answer.columns[0]}, {len(names):,} rows"
    return _svg("result", left + width + 30, top + height + 34, label, parts)


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


def _svg(
    kind: str,
    width: float,
    height: float,
    label: str,
    parts: Sequence[Markup],
    stretch: bool = False,
    role: str = "img",
) -> Markup:
    ratio = Markup(' preserveAspectRatio="none"') if stretch else Markup("")
    named = Markup(' aria-label="{}"').format(label) if label else Markup(' aria-label="Lineage"')
    fixed = Markup("") if stretch else Markup(' width="{:.0f}" height="{:.0f}"').format(width, height)
    return Markup('<svg class="chart {}" viewBox="0 0 {:.0f} {:.0f}"{}{} role="{}"{}>{}</svg>').format(
        kind, width, height, ratio, fixed, role, named, Markup("").join(parts)
    )
