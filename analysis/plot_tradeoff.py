"""Likeness against privacy: what cells of a method gain on one metric, and what they pay for it on another.

A panel a data set, a point a method: its mean over splits, with bars of a standard deviation. The band is the real
training half, mean ± sd: what cells as good as real ones reach on the vertical axis. Other controls are not drawn.

Run:    python analysis/plot_tradeoff.py --table results/tables/benchmark/nearest_rivals/benchmark.csv.gz
Reads:  results/tables/benchmark.csv, or any long table (--table)
Writes: results/figures/tradeoff.png
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.build_summary_tables import head_of
from analysis.rank_methods import of_methods
from benchmarking.controls import PURE_CONTROLS
from benchmarking.matrix import CALIBRATED
from common.checks import check_known
from common.cli import console, parse_flags, run_script
from common.errors import UserError
from common.metrics.catalogue import ALL
from common.plotting import MARKERS, ORIGIN_COLORS, PALETTE, save
from common.results import of_one_split, read_results, summarise
from common.summary import order_methods
from config import RESULTS_DIR

FLOOR, OURS = "real_half", "garage"
COLUMNS = 3  # panels beside each other
COLORS = [color for color in PALETTE[1:] if color not in ("#94a4a2", "#717581")]  # greys would be taken for the band


@dataclass(frozen=True)
class Args:
    """Draw one metric against another."""

    table: Path = RESULTS_DIR / "tables" / "benchmark.csv"
    """long table of results"""
    x: str = "calibrated_auc"
    """metric on the horizontal axis"""
    y: str = "rf_auroc_pcs"
    """metric on the vertical axis"""
    group: str = ALL
    """group of cells: all cells, rare cells, or a type"""
    methods: tuple[str, ...] = ()
    """methods to draw, by default all that the table has"""
    split: str | None = None
    """for data sets that were split in several ways: which, such as "holdout 0.5, 1000 genes\""""
    out: Path = RESULTS_DIR / "figures" / "tradeoff.png"
    """figure to write"""


@run_script
def main(argv: list[str]) -> None:
    """Read, choose, draw."""
    args: Args = parse_flags(Args, argv, __doc__)
    table = read_results(args.table, made_by="python benchmarking/run_benchmark.py")
    check_known(args.group, list(table["group"].unique()), f"{args.table} has no group")
    table = of_methods(table[table["group"] == args.group], args.methods, args.table)
    for metric in (args.x, args.y):
        check_known(metric, list(table["metric"].unique()), f"{args.table} has no metric")
    figure = draw(of_one_split(table, args.split, args.table), args.x, args.y)
    save(figure, args.out)
    console.print(f"wrote {args.out}", soft_wrap=True, markup=False)


def draw(table: pd.DataFrame, x: str, y: str) -> Figure:
    """Draw a panel a data set.

    Parameters
    ----------
    table
        Of one group of cells and one split a data set, with the columns `common.results.COLUMNS`.
    x, y
        Metrics of the axes.

    Raises
    ------
    UserError
        If no method but controls has both.
    """
    found = summarise(table[table["metric"].isin([x, y])])
    points = found.pivot(index=["dataset", "method"], columns="metric", values=["mean", "sd"])
    points = points.dropna(subset=[("mean", x), ("mean", y)])
    floor = points.xs(FLOOR, level="method") if FLOOR in points.index.get_level_values("method") else points.iloc[:0]
    points = points[~points.index.isin(PURE_CONTROLS, level="method")].fillna(0)  # no sd of one split
    if points.empty:
        raise UserError(f"no method has both {x} and {y}: judge some with python benchmarking/run_benchmark.py")
    datasets = list(points.index.unique("dataset"))
    styles = styles_of(list(points.index.unique("method")))
    columns = min(COLUMNS, len(datasets))
    rows = -(-len(datasets) // columns)
    figure = Figure(figsize=(3.4 * columns + 1.8, 3.1 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, dataset in zip(panels, datasets, strict=False):
        axes.set_title(dataset, fontsize="medium")
        if dataset in floor.index:
            mean, sd = (float(floor.loc[dataset, (which, y)]) for which in ("mean", "sd"))
            _band(axes, mean, 0.0 if pd.isna(sd) else sd)
        for method, style in styles.items():
            if (dataset, method) in points.index:
                _point(axes, points.loc[(dataset, method)], x, y, label=method, **style)
        axes.spines[["top", "right"]].set_visible(False)
    keys = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(keys.values()), list(keys), loc="outside right center", frameon=False, fontsize="small")
    for axes in panels[len(datasets) :]:
        axes.axis("off")
    figure.supxlabel(head_of(x), fontsize="medium")
    figure.supylabel(head_of(y), fontsize="medium")
    return figure


def styles_of(methods: list[str]) -> dict[str, dict[str, Any]]:
    """Return how each method is drawn, in the order of the legend: GARAGE as a star, a calibrated rival hollow."""
    names = order_methods([name.removesuffix(CALIBRATED) for name in methods if name != OURS], [])
    looks = dict(zip(names, itertools.cycle(itertools.product(MARKERS, COLORS)), strict=False))
    styles: dict[str, dict[str, Any]] = {}
    if OURS in methods:
        styles[OURS] = {"color": PALETTE[0], "marker": "*", "markersize": 15, "markeredgecolor": "black", "zorder": 3}
    for name, (marker, color) in looks.items():
        shape: dict[str, Any] = {"color": color, "marker": marker, "markersize": 7}
        styles |= {name: shape, name + CALIBRATED: {**shape, "markerfacecolor": "white"}}
    return {name: style for name, style in styles.items() if name in methods}


def _band(axes: Axes, mean: float, sd: float) -> None:
    color = ORIGIN_COLORS["real"]
    axes.axhline(mean, color=color, linewidth=1, zorder=0)
    axes.axhspan(mean - sd, mean + sd, color=color, alpha=0.5, linewidth=0, zorder=0, label="real training half")


def _point(axes: Axes, point: pd.Series, x: str, y: str, **style: Any) -> None:
    axes.errorbar(
        point["mean", x], point["mean", y], xerr=point["sd", x], yerr=point["sd", y], linestyle="", elinewidth=0.8,
        **style,
    )  # fmt: skip


if __name__ == "__main__":
    main()
