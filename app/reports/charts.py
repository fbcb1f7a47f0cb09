"""Charts as inline SVG; the page's CSS colours them for its light and dark themes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from markupsafe import Markup, escape

WIDTH, HEIGHT = 520, 340
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 12, 44
COLOURS = 6  # classes c0 … c5 of the style sheet

ScaleName = Literal["linear", "log", "log2", "deviate"]


@dataclass(frozen=True)
class Series:
    """One line."""

    name: str  # in the legend
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False  # as for baselines


@dataclass(frozen=True)
class Axis:
    """One axis."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]  # values with a grid line and a number
    scale: ScaleName = "linear"  # "deviate" is the normal quantile, as in DET plots

    def fraction(self, value: float) -> float:
        """Position of a value between the ends, clipped to [0, 1]."""
        warp = _SCALES[self.scale]
        value = min(max(value, min(self.low, self.high)), max(self.low, self.high))
        return (warp(value) - warp(self.low)) / (warp(self.high) - warp(self.low))


_SCALES: dict[ScaleName, Callable[[float], float]] = {
    "linear": lambda value: value,
    "log": math.log10,
    "log2": math.log2,
    "deviate": NormalDist().inv_cdf,
}


def line_chart(title: str, series: Sequence[Series], x: Axis, y: Axis) -> Markup:
    """Lines with axes and a legend."""
    lines = []
    for number, line in enumerate(series):
        points = " ".join(f"{_x(x, a):.1f},{_y(y, b):.1f}" for a, b in zip(line.x, line.y, strict=True))
        kind = f"line c{number % COLOURS}" + (" dashed" if line.dashed else "")
        lines.append(
            f'<polyline class="{kind}" points="{points}"><title>{escape(line.name)}</title></polyline>'
        )
    return _figure(title, "".join(lines), x, y, [(s.name, f"c{n % COLOURS}") for n, s in enumerate(series)])


def histogram_chart(
    title: str, edges: Sequence[float], areas: Sequence[tuple[str, Sequence[float]]], x_label: str
) -> Markup:
    """Overlaid histograms, each scaled to its highest bar, because numbers of pairs differ by orders."""
    x = Axis(x_label, edges[0], edges[-1], _round_ticks(edges[0], edges[-1]))
    y = Axis("relative frequency", 0, 1, [])
    shapes = []
    for number, (name, heights) in enumerate(areas):
        top = max(heights) or 1
        corners = [f"{_x(x, edges[0]):.1f},{_y(y, 0):.1f}"]
        for position, height in enumerate(heights):
            level = _y(y, height / top)
            corners += [
                f"{_x(x, edges[position]):.1f},{level:.1f}",
                f"{_x(x, edges[position + 1]):.1f},{level:.1f}",
            ]
        corners.append(f"{_x(x, edges[-1]):.1f},{_y(y, 0):.1f}")
        area = f'<polygon class="area c{number}" points="{" ".join(corners)}">'
        shapes.append(f"{area}<title>{escape(name)}</title></polygon>")
    return _figure(title, "".join(shapes), x, y, [(name, f"c{n}") for n, (name, _) in enumerate(areas)])


def bar_chart(title: str, heights: Sequence[int], x_label: str, y_label: str) -> Markup:
    """Bars over equal intervals of [0, 1]."""
    x = Axis(x_label, 0, 1, [0, 0.25, 0.5, 0.75, 1])
    y = Axis(y_label, 0, max(1, *heights), _round_ticks(0, max(1, *heights)))
    bars = []
    for position, height in enumerate(heights):
        left, right = _x(x, position / len(heights)), _x(x, (position + 1) / len(heights))
        top, bottom = _y(y, height), _y(y, 0)
        bars.append(
            f'<rect class="bar c0" x="{left + 1:.1f}" y="{top:.1f}" width="{right - left - 2:.1f}" '
            f'height="{bottom - top:.1f}"><title>{height}</title></rect>'
        )
    return _figure(title, "".join(bars), x, y, [])


def _figure(title: str, content: str, x: Axis, y: Axis, legend: Sequence[tuple[str, str]]) -> Markup:
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    foot = HEIGHT - BOTTOM
    for tick in x.ticks:
        at = _x(x, tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{foot}"/>')
        parts.append(_text("tick", at, foot + 16, "middle", _number(tick)))
    for tick in y.ticks:
        at = _y(y, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_text("tick", LEFT - 6, at + 4, "end", _number(tick)))
    parts.append(content)
    parts.append(_text("label", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "middle", x.label))
    centre = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="label" x="14" y="{centre}" text-anchor="middle" transform="rotate(-90 14 {centre})">'
        f"{escape(y.label)}</text></svg>"
    )
    keys = "".join(f'<span><i class="key {kind}"></i>{escape(name)}</span>' for name, kind in legend)
    caption = f"<figcaption><b>{escape(title)}</b>{keys}</figcaption>"
    return Markup(f"<figure>{caption}{''.join(parts)}</figure>")  # noqa: S704 - every text in it is escaped above


def _text(kind: str, x: float, y: float, anchor: str, text: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.fraction(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.fraction(value) * (HEIGHT - TOP - BOTTOM)


def _number(value: float) -> str:
    return f"{value:g}" if 0.001 <= abs(value) < 1e5 or value == 0 else f"{value:.0e}".replace("e-0", "e-")


def _round_ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers within a range."""
    step = 10 ** math.floor(math.log10((high - low) / 2))
    for factor in (1, 2, 5):
        if (high - low) / (step * factor) <= 8:
            step *= factor
            break
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 10) for n in range(first, math.floor(high / step + 1e-9) + 1)]
