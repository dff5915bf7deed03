"""Figures as inline SVG with the fonts and colours of the page, light and dark.

matplotlib draws with placeholder colours, which are then replaced by CSS variables. The output holds no random ids and
no date, so that the same numbers give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

_INK, _SOFT, _FIRST, _SECOND = "#010203", "#040506", "#070809", "#0a0b0c"
_VARIABLES = {_INK: "var(--ink)", _SOFT: "var(--soft)", _FIRST: "var(--first)", _SECOND: "var(--second)"}
_HEIGHT, _WIDTH, _NARROW = 3.2, 5.4, 4.6
"""Height and width of a figure in inches, and the width of one whose text can be read at 400 pixels."""
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "memlm",
    "font.size": 11,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _SOFT,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def learning_curve(tokens: Sequence[float], accuracy: Sequence[float], loss: Sequence[float]) -> str:
    """Draw validation token accuracy and training loss over training tokens."""

    def draw(axes: Any) -> None:
        millions = [t / 1e6 for t in tokens]
        axes.plot(millions, [100 * a for a in accuracy], color=_FIRST, linewidth=2.2, marker="o", markersize=3.5)
        axes.locator_params(axis="x", nbins=4)  # numbers of many digits would touch
        axes.set_xlabel("training tokens, millions")
        axes.set_ylabel("validation token accuracy, %", color=_FIRST)
        axes.set_ylim(0, 102)
        other = axes.twinx()
        other.plot(millions, loss, color=_SECOND, linewidth=1.6, linestyle=(0, (4, 2)))
        other.set_ylabel("training loss, nats per token", color=_SECOND)
        other.set_ylim(bottom=0)
        other.grid(visible=False)

    return _svg(draw, title="Learning curve", name="curve")


def accuracy_by_position(accuracy: Sequence[float]) -> str:
    """Draw the token accuracy at each position of a chunk."""

    def draw(axes: Any) -> None:
        percent = [100 * a for a in accuracy]
        axes.bar(range(1, len(percent) + 1), percent, color=_FIRST, width=1.0, linewidth=0)
        lowest = min(percent, default=0.0)
        # bars must begin at zero unless all are nearly full, where only the missing part can be seen
        floor = 0.0 if lowest < 90 else max(0.0, lowest - 1.5 * (100 - lowest) - 0.01)
        axes.set_ylim(floor, 100)
        axes.set_xlabel("position in the chunk" + ("" if floor == 0 else f" (axis begins at {floor:.2f} %)"))
        axes.set_ylabel("token accuracy, %")

    return _svg(draw, title="Accuracy by position", name="position")


def capacity_curve(
    lengths: Sequence[int], figures: Mapping[str, Sequence[float]], controls: Mapping[str, Sequence[float]]
) -> str:
    """Draw the recovered shares over passage length, and the token accuracy of the controls.

    Args:
        lengths: tokens per passage.
        figures: shares by name, one for each length; drawn with thick lines.
        controls: token accuracies by name; drawn with thin lines.
    """

    def draw(axes: Any) -> None:
        styles = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
        for (name, shares), style in zip(figures.items(), styles, strict=True):
            axes.plot(lengths, [100 * s for s in shares], color=_FIRST, linestyle=style, marker="o", label=name)
        markers = "sv^dxP"
        for i, (name, shares) in enumerate(controls.items()):
            look = {"color": _SECOND, "linewidth": 0.9, "marker": markers[i % len(markers)], "markersize": 5}
            axes.plot(lengths, [100 * s for s in shares], label=name.replace("_", " "), **look)
        axes.set_xlabel("tokens in the passage")
        axes.set_ylabel("%")
        axes.set_xticks(list(lengths), [str(n) for n in lengths])
        axes.set_ylim(-2, 102)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8.5)

    return _svg(draw, title="Shares recovered from the vector", name="capacity")


def memory_cost(names: Sequence[str], bits_per_byte: Sequence[float]) -> str:
    """Draw bits per byte of text as horizontal bars."""

    def draw(axes: Any) -> None:
        places = list(range(len(names)))[::-1]
        colours = [_FIRST if name.startswith("memory") else _SECOND for name in names]
        axes.barh(places, bits_per_byte, color=colours, height=0.62)
        for place, bits in zip(places, bits_per_byte, strict=True):
            axes.text(bits, place, f" {bits:.2f}", va="center", color=_INK)
        axes.set_yticks(places, names)
        axes.set_xlabel("bits per byte of text")
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.12)

    return _svg(draw, title="Size of the memory beside the text", name="cost")


Interval = tuple[float, float, float]
"""The value and the two ends of its interval."""


def shares_with_intervals(
    rows: Sequence[str],
    series: Mapping[str, Sequence[Interval | None]],
    *,
    what: str = "% of tokens",
    title: str = "Tokens recovered from memory",
) -> str:
    """Draw up to four series of shares with their intervals, one line for each, below the name of their row.

    The figure is narrow, so that it can be read on a telephone too.

    Args:
        rows: the names of the rows, from the top.
        series: shares by name, one for each row, None where a row has none.
        what: the unit of the shares.
        title: of the figure.
    """
    looks = ((_FIRST, "o", _FIRST), (_SECOND, "D", _SECOND), (_SECOND, "D", "none"), (_FIRST, "s", "none"))
    step = 1 / (len(series) + 1.5)

    def draw(axes: Any) -> None:
        for line, ((name, shares), (colour, marker, filled)) in enumerate(zip(series.items(), looks, strict=False)):
            there = [(len(rows) - 1 - i - (line + 1) * step, share) for i, share in enumerate(shares) if share]
            values = [100 * value for _, (value, _, _) in there]
            reach = [[100 * (v - low) for _, (v, low, _) in there], [100 * (high - v) for _, (v, _, high) in there]]
            places = [place for place, _ in there]
            axes.errorbar(values, places, xerr=reach, fmt=marker, color=colour, mfc=filled, capsize=3, label=name)
        for i, name in enumerate(rows):
            axes.text(
                0.005, len(rows) - 1 - i, name.replace("_", " "), transform=axes.get_yaxis_transform(), va="center"
            )
        axes.set_yticks([])
        axes.set_ylim(-1, len(rows) - 0.6)
        lowest = min((100 * share[1] for shares in series.values() for share in shares if share), default=0.0)
        axes.set_xlim(min(0.0, lowest) - 4, 104)
        axes.set_xlabel(what)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=9)

    height = 1.0 + (0.22 + 0.2 * len(series)) * len(rows)
    return _svg(draw, title=title, name="shares", height=height, width=_NARROW)


def share_over_ratio(ratios: Sequence[int], series: Mapping[str, Sequence[Interval]]) -> str:
    """Draw shares of the full-context gain with their intervals over tokens per memory; the first series is thick."""

    def draw(axes: Any) -> None:
        looks = (
            *((_FIRST, "-", "o"), (_FIRST, "--", "v"), (_SECOND, "-", "D"), (_SECOND, "--", "s")),
            *((_SECOND, ":", "^"), (_FIRST, ":", "x")),
        )
        for i, ((name, shares), (colour, line, marker)) in enumerate(zip(series.items(), looks, strict=False)):
            values = [100 * value for value, _, _ in shares]
            reach = [[100 * (v - low) for v, low, _ in shares], [100 * (high - v) for v, _, high in shares]]
            look = {"color": colour, "linestyle": line, "marker": marker, "linewidth": 1.2 if i else 2.4, "capsize": 3}
            axes.errorbar(ratios, values, yerr=reach, label=name, **look)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ratios, [str(ratio) for ratio in ratios])
        axes.minorticks_off()
        axes.set_xlabel("tokens per memory")
        axes.set_ylabel("share of the full-context gain, %")
        axes.legend(loc="lower left", frameon=False, fontsize=9)

    return _svg(draw, title="Share of the full-context gain", name="gain")


def times_over_length(lengths: Sequence[int], series: Mapping[str, Sequence[float]]) -> str:
    """Draw up to four series of ratios over the length of the context, on logarithmic axes."""

    def draw(axes: Any) -> None:
        styles = ((_FIRST, "-"), (_FIRST, "--"), (_SECOND, "-"), (_SECOND, "--"))
        for (name, values), (colour, line) in zip(series.items(), styles, strict=False):
            axes.plot(lengths, values, color=colour, linestyle=line, linewidth=2.0, marker="o", label=name)
        axes.axhline(1, color=_SOFT, linewidth=1.0)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        best = max(max(values) for values in series.values())
        ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if tick <= best]
        axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("tokens of context")
        axes.set_ylabel("times better than full context")
        axes.legend(loc="upper left", frameon=False, fontsize=9)

    return _svg(draw, title="Memory against full context", name="times")


def standalone(svg: str) -> str:
    """Return a figure as a complete SVG file with a light and a dark colour scheme."""
    light = "--ink:#1b2330;--soft:#b9c1cd;--first:#1666b0;--second:#b4561a;--font:system-ui,sans-serif"
    dark = "--ink:#e4e9f0;--soft:#5a6472;--first:#6cb4f5;--second:#f0a265"
    style = f"<style>svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    opened, rest = svg.split(">", 1)
    return f'{opened} xmlns="http://www.w3.org/2000/svg">{style}{rest}'


def _svg(draw: Callable[[Any], None], *, title: str, name: str, height: float = _HEIGHT, width: float = _WIDTH) -> str:
    # imported here since it takes half a second and only reports need it
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(cast(Any, _STYLE)):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _adapted(out.getvalue(), title=title, name=name)


def _adapted(svg: str, *, title: str, name: str) -> str:
    """Return the svg element without a size, with CSS variables for colours and ids that are unique in a page."""
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    opened, body = body.split(">", 1)
    opened = re.sub(r'\s(width|height|xmlns|xmlns:xlink)="[^"]*"', "", opened)
    body = body.replace("xlink:href", "href")
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub(r"(font:[^;\"]*?px)[^;\"]*", r"\1 var(--font)", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    label = f'<title id="{name}-title">{title}</title>'
    return f'{opened} role="img" aria-labelledby="{name}-title">{label}{body}'
