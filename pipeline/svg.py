"""Line charts as SVG text: colours come from CSS variables, so a page in a light or dark theme needs one drawing.

A few dozen lines instead of a plotting library, because the report shall be one small file without a script.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

Series = tuple[str, Sequence[tuple[float, float]]]
"""A name and its (x, y) points."""

WIDTH, HEIGHT = 460.0, 220.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 10.0, 10.0, 30.0
_NUM_COLOURS = 6
_SMOOTH_OVER = 40
"""Curves with more steps than this are drawn as a running mean over a twentieth of them."""


def line_chart(series: Sequence[Series], x_name: str, title: str) -> str:
    """An SVG element; points that are not finite are left out. Empty text when nothing can be drawn."""
    drawn = [(name, [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]) for name, points in series]
    drawn = [(name, points) for name, points in drawn if points]
    if not drawn:
        return ""
    xs = [x for _, points in drawn for x, _ in points]
    ys = [y for _, points in drawn for _, y in points]
    x_ticks, y_ticks = ticks(min(xs), max(xs), about=8), ticks(min(ys), max(ys))
    x0, x1 = min(xs), max(max(xs), min(xs) + 1e-9)
    y0, y1 = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def px(x: float) -> float:
        return _LEFT + (x - x0) / (x1 - x0) * (WIDTH - _LEFT - _RIGHT)

    def py(y: float) -> float:
        return HEIGHT - _BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{html.escape(title)}">']
    for y in y_ticks:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{py(y):.1f}" y2="{py(y):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{py(y) + 4:.1f}" text-anchor="end">{number(y)}</text>')
    for x in x_ticks:
        if x0 <= x <= x1:
            parts.append(f'<text x="{px(x):.1f}" y="{HEIGHT - 15}" text-anchor="middle">{number(x)}</text>')
    parts.append(f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{html.escape(x_name)}</text>')
    for i, (_, points) in enumerate(drawn):
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
        shape = (
            f'<polyline points="{path}"'
            if len(points) > 1
            else f'<circle r="2.5" cx="{px(points[0][0]):.1f}" cy="{py(points[0][1]):.1f}"'
        )
        parts.append(f'{shape} class="c{i % _NUM_COLOURS}"/>')
    parts.append("</svg>")
    names = [f'<span class="key c{i % _NUM_COLOURS}">{html.escape(name)}</span>' for i, (name, _) in enumerate(drawn)]
    if len(names) == 1:  # the title says it
        names = []
    return f"<figure><figcaption>{html.escape(title)} {' '.join(names)}</figcaption>{''.join(parts)}</figure>"


def running_mean(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Long curves smoothed over the steps before; short ones as they are."""
    width = window(len(points))
    return [
        (points[i][0], sum(y for _, y in points[max(0, i - width + 1) : i + 1]) / min(i + 1, width))
        for i in range(len(points))
    ]


def window(steps: int) -> int:
    """Steps in one mean of `running_mean`."""
    return 1 if steps <= _SMOOTH_OVER else steps // 20


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that span [low, high]."""
    if high <= low:
        high = low + (abs(low) * 0.1 or 1.0)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [i * step for i in range(first, last + 1)]


def number(value: float) -> str:
    """A short label: 12000 -> 12,000; 0.00125 -> 0.00125."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
