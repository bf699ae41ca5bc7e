"""Drawing of how GARAGE works, for the README and the documentation. Everything in it is schematic.

Run:    python img/overview.py
Reads:  nothing
Writes: img/overview.svg, which is light or dark as the reader's screen is
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import scipy.sparse as sp
from sklearn.neighbors import kneighbors_graph

from common.cli import console, parse_flags, run_script
from common.plotting import PALETTE
from common.run import atomic
from config import ROOT
from data_generation.cell_selection import farthest_reach_first

WIDTH, HEIGHT = 1380, 400
TYPES = (PALETTE[0], PALETTE[1], PALETTE[2])  # the last one is rare
STYLE = """
  text { font: 14px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: var(--ink); }
  .title { font-size: 17px; font-weight: 600; }
  .small { font-size: 13px; fill: var(--faint); }
  .middle { text-anchor: middle; }
  .page { fill: var(--page); }
  .panel { fill: var(--panel); }
  .box { fill: var(--page); stroke: var(--faint); stroke-width: 1.5; }
  .line { stroke: var(--ink); stroke-width: 1.6; fill: none; }
  .dashed { stroke-dasharray: 5 4; }
  .edge { stroke: var(--faint); fill: none; }
  .seed { stroke: var(--ink); stroke-width: 2.5; }
  .noise { fill: var(--faint); }
  .head { fill: var(--ink); }
  :root { --page: #ffffff; --panel: #f2f4f7; --ink: #1d2733; --faint: #5f6b7a; }
  @media (prefers-color-scheme: dark) {
    :root { --page: #15191f; --panel: #212832; --ink: #e8edf3; --faint: #a3afbd; }
  }"""
ALT = (
    "Left to right. Real cells with their types. Stage 1: a graph attention network on the cells' neighbour graph; "
    "cells to which together most others attend become seeds, every type represented. Stage 2: a hybrid "
    "batch of noise rows and seed rows enters the generator, a decoder with an observation model, which is anchored by "
    "likelihood and judged against real cells by a critic. Calibration: each gene's distribution in each type is "
    "brought to that of the training cells. Synthetic cells with types, as many as wanted."
)


@dataclass(frozen=True)
class Args:
    """Draw the overview."""

    out: Path = ROOT / "img" / "overview.svg"
    """file to write"""


def text(x: float, y: float, *lines: str, kind: str = "") -> str:
    """Return lines of text, one below the other."""
    spans = (f'<tspan x="{x:g}" y="{y + 18 * i:g}">{escape(line)}</tspan>' for i, line in enumerate(lines))
    return f'<text class="{kind}">{"".join(spans)}</text>'


def rect(x: float, y: float, width: float, height: float, kind: str, *, fill: str = "", opacity: float = 1) -> str:
    """Return a rectangle, coloured by its class or by `fill`."""
    look = f'style="fill:{fill}" fill-opacity="{opacity:.2f}"' if fill else 'rx="8"'
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" class="{kind}" {look}/>'


def arrow(*points: tuple[float, float], dashed: bool = False) -> str:
    """Return a line through points that ends in an arrow."""
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polyline points="{path}" class="line{" dashed" * dashed}" marker-end="url(#head)"/>'


def heatmap(x: float, y: float, rng: np.random.Generator) -> list[str]:
    """Return cells as rows and genes as columns: each type, told by a bar at the left, raises genes of its own."""
    types = np.repeat([0, 1, 2], [6, 5, 2])
    shapes = []
    for row, t in enumerate(types):
        top = y + 15 * row
        shapes.append(rect(x, top, 7, 13, "", fill=TYPES[t]))
        level = rng.random(9) * np.where(np.arange(9) // 3 == t, 1.0, 0.25)
        shapes += [rect(x + 12 + 13 * g, top, 12, 13, "", fill=TYPES[t], opacity=0.08 + v) for g, v in enumerate(level)]
    return shapes


def graph(x: float, y: float, rng: np.random.Generator) -> list[str]:
    """Return cells joined to their neighbours, edges as wide as attention, seeds outlined and larger."""
    types = np.repeat([0, 1, 2], [14, 10, 5])
    middles = np.array([[65, 70], [185, 85], [110, 180]])
    turn, reach = 2.4 * np.arange(len(types)), np.sqrt(rng.permutation(len(types)) + 1) * np.array([10, 9, 6])[types]
    points = middles[types] + np.stack([np.cos(turn), np.sin(turn)], axis=1) * reach[:, None]
    source, target = kneighbors_graph(points, 4).nonzero()
    attention = rng.gamma(1.5, 0.6, len(source))
    paid = sp.csr_matrix((attention, (target, source)), (len(types), len(types)))
    members = [np.flatnonzero(types == t) for t in range(3)]
    seeds = [i for own in members for i in own[farthest_reach_first(paid[own][:, own])[:2]]]
    places = [f"{x + a:.0f} {y + b:.0f}" for a, b in points]
    shapes = [
        f'<path class="edge" stroke-width="{0.4 + attention[e]:.1f}" d="M{places[source[e]]} L{places[target[e]]}"/>'
        for e in range(len(source))
    ]
    for i, (a, b) in enumerate(points):
        kind, radius = ("seed", 8) if i in seeds else ("", 5)
        fill = f'style="fill:{TYPES[types[i]]}"'
        shapes.append(f'<circle class="{kind}" cx="{x + a:.0f}" cy="{y + b:.0f}" r="{radius}" {fill}/>')
    return shapes


def batch(x: float, y: float) -> list[str]:
    """Return the hybrid batch: noise rows, then a seed row of each type."""
    rows = [rect(x, y + 16 * i, 54, 13, "noise", fill="var(--faint)", opacity=0.55) for i in range(6)]
    return rows + [rect(x, y + 16 * (6 + i), 54, 13, "", fill=color) for i, color in enumerate(TYPES)]


def distributions(x: float, y: float) -> list[str]:
    """Return two distribution functions, and how a value of one is carried over to the other at the same rank."""
    at = np.linspace(0, 1, 40)

    def curve(middle: float, slope: float) -> str:
        height = 1 / (1 + np.exp(-slope * (at - middle)))
        return " ".join(f"{x + 130 * a:.1f},{y + 120 - 115 * h:.1f}" for a, h in zip(at, height, strict=True))

    rank = y + 120 - 115 * 0.6
    start, end = (x + 130 * (middle + np.log(0.6 / 0.4) / slope) for middle, slope in ((0.3, 16), (0.62, 9)))
    return [
        f'<path class="edge" stroke-width="1.2" d="M{x} {y} V{y + 120} H{x + 135}"/>',
        f'<polyline class="line dashed" points="{curve(0.3, 16)}"/>',
        f'<polyline class="line" stroke-width="2.4" points="{curve(0.62, 9)}"/>',
        arrow((start + 3, rank), (end - 4, rank)),
    ]


def draw() -> str:
    """Return the drawing as SVG."""
    rng = np.random.default_rng(3)
    panels = [(20, 180), (220, 275), (515, 430), (965, 200), (1185, 175)]
    shapes = [rect(0, 0, WIDTH, HEIGHT, "page")]
    shapes += [rect(x, 20, width, HEIGHT - 40, "panel") for x, width in panels]

    shapes += [text(36, 50, "Real cells", kind="title"), *heatmap(38, 84, rng)]
    shapes += [text(36, 316, "cells × genes,", "a type for each cell", kind="small")]

    shapes += [text(236, 50, "1  Seed cells", kind="title"), *graph(236, 70, rng)]
    shapes += [text(236, 316, "Graph attention learns the types.", "Seeds: cells to which, together,", kind="small")]
    shapes += [text(236, 352, "most attend; every type has some.", kind="small")]

    shapes += [text(531, 50, "2  Seeded generator", kind="title"), *batch(531, 88)]
    shapes += [text(531, 78, "hybrid batch", kind="small"), text(592, 140, "noise", kind="small")]
    shapes += [text(592, 214, "seeds", kind="small")]
    shapes += [rect(660, 118, 120, 76, "box"), text(720, 142, "decoder and", "observation", "model", kind="middle")]
    shapes += [rect(838, 118, 92, 76, "box"), text(884, 152, "critic:", "real?", kind="middle")]
    shapes += [rect(660, 262, 270, 30, "box"), text(795, 282, "real training cells", kind="middle")]
    shapes += [arrow((636, 156), (656, 156)), arrow((780, 156), (834, 156)), arrow((912, 262), (912, 198))]
    shapes += [arrow((684, 262), (684, 198), dashed=True), text(694, 252, "likelihood", kind="small")]
    shapes += [arrow((868, 194), (868, 226), (752, 226), (752, 198)), text(782, 218, "gradient", kind="small")]
    shapes += [text(531, 316, "Anchored by likelihood, then refined by the critic.", kind="small")]
    shapes += [text(531, 334, "A seed row is asked for a cell of the", kind="small")]
    shapes += [text(531, 352, "seed's neighbourhood, not for the seed.", kind="small")]

    shapes += [text(981, 50, "Calibration", kind="title"), *distributions(985, 96)]
    shapes += [text(985, 244, "dashed: the network", "solid: training cells", kind="small")]
    shapes += [text(981, 316, "In each type a gene keeps", "its ranks and takes on the", kind="small")]
    shapes += [text(981, 352, "distribution of real cells.", kind="small")]

    shapes += [text(1201, 50, "Synthetic cells", kind="title"), *heatmap(1203, 84, rng)]
    shapes += [text(1201, 316, "with types, on the", "input's scale, as", "many as wanted", kind="small")]

    for (x, width), (following, _) in pairwise(panels):
        shapes.append(arrow((x + width, 180), (following - 3, 180)))
    body = "\n".join(shapes)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="t d">
<title id="t">How GARAGE works</title>
<desc id="d">{escape(ALT)}</desc>
<style>{STYLE}
</style>
<defs><marker id="head" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="8" markerHeight="8" orient="auto">
<path class="head" d="M0 0 L10 5 L0 10 z"/></marker></defs>
{body}
</svg>
"""


@run_script
def main(argv: list[str]) -> None:
    """Draw, and write."""
    args = parse_flags(Args, argv, __doc__)
    with atomic(args.out) as part:
        part.write_text(draw())
    console.print(f"wrote {args.out}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
