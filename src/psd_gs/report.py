"""Building blocks of self-contained HTML reports: page, tables, pictures and inline SVG charts; no script, no network.

```python
page("A run", {"Scores": bar_chart([Bar("mini", 0.7, 0.6, 0.8)]), "Curves": line_chart({"reward": ys})})
```

Every function returns HTML as text. Text that is given is escaped, except for the bodies of sections.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple, TypeGuard

from psd_gs.errors import FormatError, InputError
from psd_gs.files import PICTURE_BYTES, read_bounded

COLOURS = ("#2f6fde", "#d9542b", "#2a9d5c", "#9b4fc4", "#b8860b", "#0f8b9d", "#c2387a", "#6b7280")
"""Of the series, in order; which most kinds of colour blindness can tell apart, readable on white and near black."""

_WIDTH, _HEIGHT = 480, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 10, 40
_POINTS = 400  # most per line: more are not seen at this width
_SMALL = 1e-100  # nothing that is measured is smaller, or larger than its inverse

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;max-width:1100px;margin:0 auto;padding:1rem;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.2;margin:.5rem 0}h2{font-size:1.15rem;margin:2rem 0 .6rem}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:1rem;align-items:start}
figure{margin:0;min-width:0}figcaption{font-size:.85rem;margin:.1rem 0 .3rem}
img,video,svg{display:block;width:100%;height:auto}img,video{border:1px solid var(--line);border-radius:6px}
svg text{font:11px system-ui,sans-serif;fill:currentColor}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}
th,td{padding:.25rem .7rem .25rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
td.number{text-align:right;font-variant-numeric:tabular-nums}
pre{font-size:.8rem;background:var(--soft);padding:.6rem;border-radius:6px;overflow-x:auto}
.legend{display:flex;flex-wrap:wrap;gap:.1rem .8rem;font-size:.8rem}.legend i{font-style:normal}
"""

_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"

_SIGNATURES = (
    (0, b"\x89PNG", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (4, b"ftyp", "video/mp4"),
)


class Bar(NamedTuple):
    """One row of :func:`bar_chart`; ``low`` and ``high`` bound its interval, if it has one."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None


# --- page ------------------------------------------------------------------------------------------------------------


def page(title: str, sections: Mapping[str, str], *, intro: str = "") -> str:
    """A whole HTML document, readable on a phone, light or dark as the reader's system is.

    Args:
        title: text.
        sections: heading (text) to body (HTML, such as the other functions return).
        intro: HTML below the title.
    """
    body = "\n".join(f"<section><h2>{escape(name)}</h2>\n{content}</section>" for name, content in sections.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{intro}\n{body}\n</body></html>\n"
    )


def grid(*items: str) -> str:
    """HTML side by side, as many in a row as fit."""
    return f'<div class="grid">{"".join(items)}</div>'


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def preformatted(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def details(summary: str, body: str) -> str:
    """HTML that shows when its ``summary`` (text) is touched."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def table(rows: Sequence[Sequence[Any]], head: Sequence[str] = ()) -> str:
    """Rows of cells; numbers are aligned to the right and rounded to four digits."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = [f"<tr>{top}</tr>"] if top else []
    lines += [f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows]
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f'<td class="number">{_number(value)}</td>'
    return f"<td>{escape(str(value))}</td>"


def image_tag(source: str | os.PathLike[str] | bytes, alt: str = "") -> str:
    """A picture (PNG, JPEG, GIF, WebP) or film (mp4, which plays silently in a loop), embedded.

    Args:
        source: a file or what it holds.
        alt: describes it in words.

    Raises:
        FormatError: not such a file, or one that is too large.
        InputError: it cannot be read.
    """
    name = "bytes" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else read_bounded(source, PICTURE_BYTES)
    kind = next((kind for at, mark, kind in _SIGNATURES if data[at : at + len(mark)] == mark), None)
    if kind is None:
        raise FormatError(f"{name}: expected a PNG, JPEG, GIF, WebP or mp4 file, received something else.")
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    if kind == "video/mp4":
        return f'<video src="{url}" aria-label="{escape(alt)}" autoplay loop muted playsinline controls></video>'
    return f'<img src="{url}" alt="{escape(alt)}">'


def image_or_reason(path: str | os.PathLike[str], alt: str = "") -> str:
    """:func:`image_tag`, or a line that says why there is none."""
    try:
        return image_tag(path, alt)
    except InputError as error:
        return paragraph(f"cannot be shown: {error}")


def figure(content: str, caption: str) -> str:
    """HTML with a caption (text) above it."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{content}</figure>"


# --- charts ----------------------------------------------------------------------------------------------------------


def line_chart(
    series: Mapping[str, Sequence[float | None]],
    xs: Sequence[float] | None = None,
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    smooth: bool = False,
    log: bool = False,
    markers: bool = False,
) -> str:
    """Lines over a common axis; values that are None or not finite leave the line out there.

    Args:
        series: values by name, one per ``xs`` (1, 2, 3, ... if that is None).
        xs: places.
        title: caption.
        x_label: below the horizontal axis.
        y_label: beside the vertical axis.
        smooth: draw a running mean over a fifteenth of the values in front of the faint values themselves.
        log: logarithmic vertical axis; values that are not positive are left out.
        markers: dots at the values.

    Raises:
        InputError: a series of another length than ``xs``.
    """
    places = list(xs) if xs is not None else list(range(1, 1 + max(map(len, series.values()), default=0)))
    for name, values in series.items():
        if len(values) != len(places):
            raise InputError(f"line_chart: expected {len(places)} values of {name}, received {len(values)}.")
    points = {
        name: [(x, y) for x, y in zip(places, values, strict=True) if _shown(x) and _shown(y, log)]
        for name, values in series.items()
    }
    axes = _axes([point for some in points.values() for point in some], x_label, y_label, log, tight=True)
    marks = []
    for colour, some in zip(_colours(len(points)), points.values(), strict=True):
        if smooth:
            marks.append(_polyline(axes, _thinned(some), colour, 'stroke-width="1" opacity=".3"'))
            some = _running_mean(some)
        marks.append(_polyline(axes, _thinned(some), colour, 'stroke-width="2"'))
        if markers or len(some) == 1:
            marks += [_dot(axes, x, y, colour, f"{_number(x)}: {_number(y)}") for x, y in some]
    return _chart(axes, marks, title, list(points))


def scatter_chart(
    groups: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    diagonal: bool = False,
) -> str:
    """Dots at (x, y) by group; ``diagonal`` draws the line y = x to compare paired values with."""
    points = {name: [(x, y) for x, y in some if _shown(x) and _shown(y)] for name, some in groups.items()}
    every = [point for some in points.values() for point in some]
    low, high = (min(map(min, every)), max(map(max, every))) if every else (0.0, 1.0)
    axes = _axes([*every, (low, low), (high, high)] if diagonal else every, x_label, y_label)
    marks = [_polyline(axes, [(low, low), (high, high)], "currentColor", 'opacity=".4"')] if diagonal else []
    for colour, some in zip(_colours(len(points)), points.values(), strict=True):
        marks += [_dot(axes, x, y, colour, f"{_number(x)}, {_number(y)}") for x, y in some]
    return _chart(axes, marks, title, list(points))


def bar_chart(rows: Sequence[Bar | Sequence[Any]], *, title: str = "", x_label: str = "") -> str:
    """Horizontal bars from zero, with intervals as whiskers; each row is a :class:`Bar` or such a tuple.

    Values that are not finite are left out.
    """
    bars = [bar for bar in (Bar(*row) for row in rows) if _shown(bar.value)]
    ends = [0.0, *(end for bar in bars for end in bar[1:] if _shown(end))]
    ticks = _ticks(min(ends), max(ends))
    low, high = ticks[0], ticks[-1]
    left = 12 + min(200, 6.2 * max((len(bar.label) for bar in bars), default=0))
    height = 26 * len(bars) + _BOTTOM

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (_WIDTH - left - 46)

    marks = []
    for tick in ticks:
        marks.append(f'<path d="M{at(tick):.1f} 0V{26 * len(bars)}" stroke="currentColor" opacity=".15"/>')
        marks.append(f'<text x="{at(tick):.1f}" y="{26 * len(bars) + 14}" text-anchor="middle">{_number(tick)}</text>')
    for i, bar in enumerate(bars):
        y, ends_of_bar = 26 * i + 5, sorted((at(0), at(bar.value)))
        tip = f"{bar.label}: {_number(bar.value)}"
        label = bar.label if len(bar.label) <= 32 else f"{bar.label[:31]}…"
        marks.append(f'<text x="{left - 6:.1f}" y="{y + 12}" text-anchor="end">{escape(label)}</text>')
        marks.append(
            f'<rect x="{ends_of_bar[0]:.1f}" y="{y}" width="{max(1.0, ends_of_bar[1] - ends_of_bar[0]):.1f}" '
            f'height="16" fill="{COLOURS[0]}" opacity=".75"><title>{escape(tip)}</title></rect>'
        )
        reach = max(ends_of_bar[1], at(0))
        if _shown(bar.low) and _shown(bar.high):
            a, b = at(bar.low), at(bar.high)
            whisker = f"M{a:.1f} {y + 8}H{b:.1f}M{a:.1f} {y + 4}v8M{b:.1f} {y + 4}v8"
            marks.append(f'<path d="{whisker}" stroke="currentColor" stroke-width="1.5" fill="none"/>')
            reach = max(reach, b)
        marks.append(f'<text x="{reach + 5:.1f}" y="{y + 12}">{_number(bar.value)}</text>')
    if x_label:
        middle = (left + _WIDTH) / 2
        marks.append(f'<text x="{middle:.1f}" y="{height - 8}" text-anchor="middle">{escape(x_label)}</text>')
    return _figure_of(marks, _WIDTH, height, title)


@dataclass(frozen=True)
class _Axes:
    """Data to places in the picture, and the marks of the frame; on a logarithmic axis y is log10."""

    x: tuple[float, float]
    y: tuple[float, float]
    log: bool
    frame: list[str]

    def at(self, x: float, y: float) -> tuple[float, float]:
        y = math.log10(y) if self.log else y
        right = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return _LEFT + right * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)


def _axes(
    points: Sequence[tuple[float, float]], x_label: str, y_label: str, log: bool = False, tight: bool = False
) -> _Axes:
    """Axes that hold all points, with ticks at round numbers; ``tight``: x ends where the points end."""
    xs, ys = zip(*points, strict=True) if points else ((0.0, 1.0), (1.0, 10.0))
    heights = [math.log10(y) for y in ys] if log else ys
    x_ticks = _ticks(min(xs), max(xs))
    y_ticks = _log_ticks(min(heights), max(heights)) if log else _ticks(min(heights), max(heights))
    x = (min(xs), max(xs)) if tight and max(xs) > min(xs) else (x_ticks[0], x_ticks[-1])
    axes = _Axes(x, (y_ticks[0], y_ticks[-1]), log, [])
    for tick in y_ticks:
        value = 10**tick if log else tick
        _, y = axes.at(x[0], value)
        axes.frame.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="currentColor" opacity=".15"/>')
        axes.frame.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
    for tick in x_ticks:
        if x[0] <= tick <= x[1]:
            left, _ = axes.at(tick, 10 ** y_ticks[0] if log else y_ticks[0])
            axes.frame.append(
                f'<text x="{left:.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{_number(tick)}</text>'
            )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    if x_label:
        axes.frame.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    if y_label:
        turn = f"translate(12 {(_TOP + _HEIGHT - _BOTTOM) / 2}) rotate(-90)"
        axes.frame.append(f'<text transform="{turn}" text-anchor="middle">{escape(y_label)}</text>')
    return axes


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers that enclose the range."""
    if not high - low > 1e-9 * max(abs(low), abs(high), _SMALL):
        low, high = (low - 0.5 * abs(low), low + 0.5 * abs(low)) if abs(low) > _SMALL else (0.0, 1.0)
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Logarithms of round numbers that enclose a range of logarithms: whole decades; 1, 2, 5 of less than three."""
    first, last = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
    if last - first > 8:
        return _ticks(low, high)
    factors = (1, 2, 5) if last - first < 3 else (1,)
    ticks = [k + math.log10(factor) for k in range(first, last) for factor in factors] + [float(last)]
    while len(ticks) > 2 and ticks[1] <= low:
        del ticks[0]
    while len(ticks) > 2 and ticks[-2] >= high:
        del ticks[-1]
    return ticks


def _shown(value: float | None, log: bool = False) -> TypeGuard[float]:
    """Whether there is a value, and one that axes can be drawn for."""
    return value is not None and abs(value) < 1 / _SMALL and (value > _SMALL or not log)


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most :data:`_POINTS` of them, the last one among them."""
    every = -(-len(points) // _POINTS)
    return points if every <= 1 else [*points[:-1:every], points[-1]]


def _running_mean(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each value replaced by the mean around it, over a fifteenth of all; shorter windows at the ends."""
    reach = len(points) // 30
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    out = []
    for i, (x, _) in enumerate(points):
        half = min(reach, i, len(points) - 1 - i)
        out.append((x, (sums[i + half + 1] - sums[i - half]) / (2 * half + 1)))
    return out


def _polyline(axes: _Axes, points: Sequence[tuple[float, float]], colour: str, style: str) -> str:
    places = " ".join("{:.1f},{:.1f}".format(*axes.at(x, y)) for x, y in points)
    return f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-linejoin="round" {style}/>'


def _dot(axes: _Axes, x: float, y: float, colour: str, tip: str) -> str:
    left, top = axes.at(x, y)
    return f'<circle cx="{left:.1f}" cy="{top:.1f}" r="3" fill="{colour}"><title>{escape(tip)}</title></circle>'


def _colours(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def _chart(axes: _Axes, marks: list[str], title: str, names: list[str]) -> str:
    legend = "".join(
        f'<span><i style="color:{colour}">●</i> {escape(name)}</span>'
        for colour, name in zip(_colours(len(names)), names, strict=True)
    )
    return _figure_of(axes.frame + marks, _WIDTH, _HEIGHT, title, legend if len(names) > 1 else "")


def _figure_of(marks: list[str], width: int, height: int, title: str, legend: str = "") -> str:
    label = f'role="img" aria-label="{escape(title or "chart")}"'
    svg = f'<svg viewBox="0 0 {width} {height}" {label}>{"".join(marks)}</svg>'
    keys = f'<div class="legend">{legend}</div>' if legend else ""
    return figure(svg + keys, title) if title else f"<figure>{svg}{keys}</figure>"


def _number(value: float) -> str:
    """At most four digits that matter: 1200, 0.1235, 1.2e-05."""
    if not math.isfinite(value):
        return "-"
    if float(value).is_integer() and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}"
