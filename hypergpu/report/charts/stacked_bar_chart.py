"""Stacked bars over rounds, and shares of a whole over time."""

from collections.abc import Mapping, Sequence

from hypergpu.common.text import duration
from hypergpu.report.charts.canvas import (
    AXIS,
    LABELS,
    RIGHT,
    WIDE,
    Scale,
    count_axis,
    drawing,
    time_axis,
    time_scale,
    value_axis,
)
from hypergpu.report.markup import Markup, tag

HEIGHT = 240
TOP = 8
MOST_BARS = 300


def stacked_bars(bars: Sequence[tuple[int, Mapping[str, float]]], styles: Mapping[str, str], summary: str) -> Markup:
    """Return one bar of seconds per round; `styles` maps each part to its class, from the bottom up.

    Where there are more than `MOST_BARS`, each bar is the mean of several rounds.
    """
    bottom = HEIGHT - AXIS
    left, right = LABELS, WIDE - RIGHT
    groups = _grouped(bars)
    tallest = max(sum(parts.values()) for _, _, parts in groups)
    y = Scale(0.0, tallest * 1.05 or 1.0, bottom, TOP)
    x = Scale(bars[0][0] - 0.5, bars[-1][0] + 0.5, left, right)
    content = [count_axis(x, bottom, bottom, 12), value_axis(y, left, right)]
    content.append(tag("text", "seconds", class_="tick", x=0, y=TOP + 8))
    for first, last, parts in groups:
        start, end = x(first - 0.5), x(last + 0.5)
        inset = min((end - start) * 0.12, 3.0)
        name = f"round {first}" if first == last else f"rounds {first} to {last}, mean"
        tooltip = f"{name}: {duration(sum(parts.values()))}\n" + "\n".join(
            f"{part} {duration(parts[part])}" for part in styles if part in parts
        )
        level = 0.0
        for part, style in styles.items():
            seconds = parts.get(part, 0.0)
            if seconds <= 0:
                continue
            above = y(level + seconds)
            box = {"x": start + inset, "width": max(end - start - 2 * inset, 0.6), "y": above}
            content.append(tag("rect", class_=f"mark {style}", height=y(level) - above, data_tooltip=tooltip, **box))
            level += seconds
    return drawing(WIDE, HEIGHT, summary, *content)


def shares(
    changes: Sequence[tuple[float, Mapping[str, int]]],
    styles: Mapping[str, str],
    span: tuple[float, float],
    summary: str,
) -> Markup:
    """Return a chart of the shares of states over time, from the counts after each change."""
    height = 150
    bottom = height - AXIS
    scale = time_scale(span)
    content = [time_axis(scale, bottom, bottom)]
    for (at, counts), end in zip(changes, [*(at for at, _ in changes[1:]), span[1]], strict=True):
        whole = sum(counts.values())
        x, level = scale(at), float(bottom)
        width = scale(end) - x
        if not whole or width <= 0:
            continue
        tooltip = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        for state, style in styles.items():
            piece = counts.get(state, 0) / whole * (bottom - TOP)
            if piece:
                level -= piece
                content.append(
                    tag(
                        "rect",
                        class_=f"mark {style}",
                        x=x,
                        y=level,
                        width=width + 0.2,
                        height=piece,
                        data_tooltip=tooltip,
                    )
                )
    for share, label in ((0.0, "100 %"), (1.0, "0")):
        y = TOP + share * (bottom - TOP)
        content.append(tag("text", label, class_="tick end", x=LABELS - 10, y=y + 4))
    return drawing(WIDE, height, summary, *content, time=scale)


def _grouped(bars: Sequence[tuple[int, Mapping[str, float]]]) -> list[tuple[int, int, Mapping[str, float]]]:
    width = -(-len(bars) // MOST_BARS)
    groups: list[tuple[int, int, Mapping[str, float]]] = []
    for start in range(0, len(bars), width):
        piece = bars[start : start + width]
        names = dict.fromkeys(name for _, parts in piece for name in parts)
        mean = {name: sum(parts.get(name, 0.0) for _, parts in piece) / len(piece) for name in names}
        groups.append((piece[0][0], piece[-1][0], mean))
    return groups
