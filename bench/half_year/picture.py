"""Draws the half year as SVG: for each lag the calls and the matches of both policies, night by night."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date
from html import escape
from itertools import pairwise
from typing import Any

WIDTH, HEIGHT = 330, 190  # of one plot
LEFT, TOP, GAP = 64, 66, 78
POLICIES = (("ancestor", "every title, every night", "#b3541e"), ("this", "this one", "#1e6bb3"))
STYLE = (
    "text{font:12px sans-serif;fill:#333}.title{font-weight:bold}.small{font-size:10px;fill:#666}"
    ".axis{stroke:#999;fill:none}.grid{stroke:#ddd;fill:none}"
)


def draw(results: Sequence[dict[str, Any]]) -> str:
    """Return the picture of what simulate.compare gave for each lag."""
    columns, rows = 2, len(results)
    width = LEFT + columns * WIDTH + GAP + 20
    height = TOP + rows * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<style>{STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, (_, name, colour) in enumerate(POLICIES):
        at = LEFT + 230 * number
        parts.append(f'<path d="M{at} 22h26" stroke="{colour}" stroke-width="2.5"/>')
        parts.append(f'<text x="{at + 32}" y="26">{escape(name)}</text>')
    for row, result in enumerate(results):
        top = TOP + row * (HEIGHT + GAP)
        lag = f"median lag {result['lag']:g} days"
        parts += _plot(LEFT, top, f"calls, {lag}", result["lived"], _calls)
        parts += _plot(LEFT + WIDTH + GAP, top, f"papers matched, {lag}", result["lived"], _matches)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _calls(lived: Any) -> list[int]:
    return [counted["list"] + counted["search"] for counted in lived.calls]


def _matches(lived: Any) -> list[int]:
    by_night: Counter[date] = Counter(night for _, night, _ in lived.found.values())
    sums, total = [], 0
    for night in lived.nights:
        total += by_night[night]
        sums.append(total)
    return sums


def _plot(left: int, top: int, title: str, lived: dict[str, Any], value: Any) -> list[str]:
    series = {policy: value(lived[policy]) for policy, _, _ in POLICIES}
    nights: list[date] = lived["this"].nights
    highest = max(max(values) for values in series.values())
    step = _step(highest)
    ceiling = step * -(-highest // step)
    span = (nights[-1] - nights[0]).days or 1
    parts = [f'<text class="title" x="{left}" y="{top - 12}">{escape(title)}</text>']
    for mark in range(0, ceiling + 1, step):
        y = top + HEIGHT - HEIGHT * mark / ceiling
        parts.append(f'<path class="grid" d="M{left} {y:.1f}h{WIDTH}"/>')
        parts.append(f'<text class="small" x="{left - 6}" y="{y + 3:.1f}" text-anchor="end">{mark:,}</text>')
    for night, after in pairwise(nights):
        if night.month != after.month:
            x = left + WIDTH * (after - nights[0]).days / span
            parts.append(f'<path class="axis" d="M{x:.1f} {top + HEIGHT}v4"/>')
            parts.append(
                f'<text class="small" x="{x:.1f}" y="{top + HEIGHT + 16}" text-anchor="middle">{after:%b}</text>'
            )
    parts.append(f'<path class="axis" d="M{left} {top}v{HEIGHT}h{WIDTH}"/>')
    for policy, _, colour in POLICIES:
        points = " ".join(
            f"{left + WIDTH * (night - nights[0]).days / span:.1f},{top + HEIGHT - HEIGHT * count / ceiling:.1f}"
            for night, count in zip(nights, series[policy], strict=True)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return parts


def _step(highest: int) -> int:
    """Return a round distance of about five marks up to `highest`."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if highest <= 5 * factor * power:
                return factor * power
        power *= 10
