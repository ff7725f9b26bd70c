"""Rate and distortion of every codec and installed peer: the table, and the figure beside it."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from benchmarks.codecs import SIZE, Setting, absent, demo_layers, gaussian, heavy, settings
from benchmarks.timing import table
from vqdq.views import style

FIGURE = Path(__file__).with_name("rate_distortion.svg")
SOURCES = ("N(0,1)", "heavy tails", "demo layers")
TITLES = ("Gaussian weights", "Heavy tails, uneven rows", "Layers of the demo model")
_TOP, _RIGHT = 11.0, 6.2  # dB and bits: what lies beyond is in the table only


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """True bits per weight, relative squared error, and the dB between it and 2^(−2·bits)."""

    bits: float
    error: float

    @property
    def gap(self) -> float:
        return 10 * math.log10(self.error) + self.bits * 20 * math.log10(2)


def measured(setting: Setting, layers: Sequence[tuple[torch.Tensor, int]]) -> Point:
    """Returns the bits and the error over all layers, each weighted by its number of weights."""
    codec, count, size, lost = setting.codec(), 0, 0, 0.0
    for weight, taps in layers:
        packed = codec.encode(weight, taps=taps)
        exact = weight.double()
        error = (packed.decode().double() - exact).square().sum() / exact.square().sum()
        lost += float(error) * weight.numel()
        count += weight.numel()
        size += packed.storage.total_bytes
    return Point(bits=8 * size / count, error=lost / count)


def against(point: Point, line: Sequence[Point]) -> float | None:
    """Returns how many dB the error lies above the line at the same bits; None beyond its ends.

    Its gap to the bound is taken as linear in the bits between two of its points, and as constant
    for a tenth of a bit beyond its ends.
    """
    known = sorted(line, key=lambda item: item.bits)
    if not known or not known[0].bits - 0.1 <= point.bits <= known[-1].bits + 0.1:
        return None
    return point.gap - float(
        np.interp(point.bits, [item.bits for item in known], [item.gap for item in known])
    )


def run(size: int = SIZE, every: int = 7) -> str:
    """Returns the table as Markdown after writing the figure."""
    layers = [[(gaussian(size), 1)], [(heavy(size), 1)], demo_layers(every)]
    rows: list[tuple[Setting, list[Point]]] = []
    for setting in settings():
        rows.append((setting, [measured(setting, source) for source in layers]))
        print(setting.method, setting.text, [round(point.gap, 2) for point in rows[-1][1]])
    default = [
        [points[source] for setting, points in rows if setting.line == "Trellis"]
        for source in range(len(SOURCES))
    ]
    cells = [
        [
            setting.method,
            setting.text,
            f"{points[0].bits:.3f}",
            *(f"{point.error:.5f} ({point.gap:.2f})" for point in points[:2]),
            f"{points[2].bits:.3f}",
            f"{points[2].error:.5f} ({points[2].gap:.2f})",
            *(_behind(setting, points[source], default[source]) for source in (0, 2)),
        ]
        for setting, points in rows
    ]
    save(figure(rows), FIGURE)
    head = ["method", "settings", "bits", *(f"{name}: error (gap, dB)" for name in SOURCES[:2])]
    head += ["bits, demo", f"{SOURCES[2]}: error (gap, dB)"]
    head += ["above trellis, N(0,1), dB", "above trellis, demo, dB"]
    picture = f"![Distance to the bound over bits per weight]({FIGURE.name})"
    return "\n\n".join(part for part in (table(head, cells), picture, absent()) if part)


def _behind(setting: Setting, point: Point, line: Sequence[Point]) -> str:
    distance = None if setting.line == "Trellis" else against(point, line)
    return "–" if distance is None else f"{distance:.2f}".replace("-", "−")


_LOOKS = {  # colour, mark, line; types of their own that only share a name are not joined
    "Trellis": ("#4c8dd6", "o", "-"),
    "Trellis, 16 state bits": ("#1f4f8f", "D", "-"),
    "Additive": ("#e08a3c", "s", "-"),
    "Lloyd–Max": ("#3fa47a", "^", "-"),
    "Round to nearest, clipped": ("#8b94a1", "v", "-"),
    "NF4": ("#a879c9", "P", "none"),
    "HQQ": ("#b0413e", "x", "--"),
    "GGUF": ("#14181f", "+", "none"),
    "quanto": ("#7a5c2e", "1", "--"),
    "bitsandbytes NF4": ("#a879c9", "*", "none"),
    "SDNQ": ("#2c7f86", "2", "none"),
    "SDNQ, 8-bit scales": ("#2c7f86", "3", ":"),
    "SDNQ, Lloyd–Max rows": ("#2c7f86", "4", "-."),
}


def figure(rows: Sequence[tuple[Setting, list[Point]]]) -> Figure:
    """Returns dB above the bound over bits, a line a method and a panel a source."""
    look = style.LIGHT
    made = style.figure(1200, 520, look)
    panels = made.subplots(1, len(SOURCES), sharey=True)
    for source, axes in enumerate(panels):
        style.quiet(axes, look)
        style.title(axes, TITLES[source], look)
        for line, (colour, mark, dash) in _LOOKS.items():
            points = [found[source] for setting, found in rows if setting.line == line]
            shown = sorted((item.bits, item.gap) for item in points if item.bits <= _RIGHT)
            axes.plot(
                [bits for bits, _ in shown],
                [gap for _, gap in shown],
                color=colour,
                marker=mark,
                markersize=7,
                markeredgewidth=1.6,
                linestyle=dash,
                linewidth=2.4 if line == "Trellis" else 1.4,
                label=line if shown else None,
            )
        axes.set_xlabel("true bits per weight")
        axes.set_xlim(1.9, _RIGHT)
        axes.set_ylim(0, _TOP)
        axes.set_xticks(np.arange(2, _RIGHT, 1.0))
        axes.grid(axis="y", color=look.line, linewidth=0.8)
        axes.set_axisbelow(True)
    panels[0].set_ylabel("dB above the bound 2^(−2·bits)")
    marks, names = panels[0].get_legend_handles_labels()
    made.legend(
        marks, names, loc="outside lower center", ncols=5, frameon=False,
        fontsize=style.SMALL, labelcolor=look.text,
    )  # fmt: skip
    return made


def save(made: Figure, path: Path) -> None:
    """Writes a figure as SVG: the same file for the same numbers."""
    mpl.rcParams["svg.hashsalt"] = "vqdq"
    buffer = io.StringIO()
    FigureCanvasSVG(made).print_svg(buffer, metadata={"Date": None, "Creator": None})
    lines = (line.rstrip() for line in buffer.getvalue().splitlines())
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
