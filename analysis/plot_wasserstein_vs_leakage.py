"""Wasserstein distance against leakage, with the real training half as floor (paper, "Effect of leakage").

Run:    python analysis/plot_wasserstein_vs_leakage.py
Reads:  results/tables/wasserstein.csv
Writes: results/figures/wasserstein_vs_leakage.png and .pdf

Only runs that share everything but leakage and seed are joined by a line: those whose names are the same up to an
ending such as _leakage0.1.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarking.controls import CONTROLS
from common.checks import nearest
from common.cli import console, errors, parse_flags, run_script
from common.errors import UserError
from common.plotting import ORIGIN_COLORS, PALETTE, save
from common.results import read_results
from common.summary import label_of
from config import RESULTS_DIR

FLOOR, RIVAL = "real_half", "copula"
REACH = 0.6  # a rival so far beyond the span of runs and floor is still drawn; farther, it would flatten them
POINTS_ASIDE = 1.0  # % of leakage to the right of the error bar, which would hide them
MAKE = "python data_generation/wasserstein_distance.py --runs DIR..."


@dataclass(frozen=True)
class Args:
    """Draw Wasserstein distance against leakage."""

    table: Path = RESULTS_DIR / "tables" / "wasserstein.csv"
    """table of wasserstein_distance.py"""
    metric: str = "w1_pcs"
    """w1_pcs, w1_genes or w1_genes_divided"""
    methods: tuple[str, ...] = ()
    """methods to draw; by default all that have a leakage"""
    out: Path = RESULTS_DIR / "figures" / "wasserstein_vs_leakage"
    """figure to write, without its ending"""


@run_script
def main(argv: list[str]) -> None:
    """Read, choose, draw."""
    args: Args = parse_flags(Args, argv, __doc__)
    table = read_results(args.table, made_by=MAKE)
    if "leakage" not in table:
        raise UserError(f"{args.table} has no column leakage: give the table that {MAKE} writes")
    if args.metric not in set(table["metric"]):
        raise UserError(f"{args.table} has no metric '{args.metric}'{nearest(args.metric, table['metric'].unique())}")
    table = table[table["metric"] == args.metric]
    curves = find_curves(table, args.methods)
    colors = dict(zip(curves["curve"].unique(), itertools.cycle(PALETTE), strict=False))
    levels = curves.groupby(["dataset", "split"])["leakage"].transform("nunique")
    if curves.empty or levels.max() < 2:
        raise UserError(
            f"{args.table} has no runs at different leakages: make them with python data_generation/garage.py "
            "--holdout 0.5 --leakage 0 --name garage_leakage0 --seed 0, so too for 0.1, 0.2, 0.3 and more seeds, each "
            f"with the flags that name your data; then {MAKE}"
        )
    _note_left_out(curves[levels < 2])
    panels = list(curves[levels > 1].groupby(["dataset", "split"]))
    figure = Figure(figsize=(1.2 + 3.6 * len(panels), 4.0), layout="constrained")
    for axes, ((dataset, split), rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, rows, table[(table["dataset"] == dataset) & (table["split"] == split)], colors)
        axes.set_title(f"{dataset}\n{split}", fontsize="medium")
    figure.supxlabel("leakage: share of training cells that are seeds (%)", fontsize="medium")
    figure.supylabel(f"{label_of(args.metric)}, to held-out cells", fontsize="medium")
    keys: dict[str, Artist] = {}
    for axes in figure.axes:
        keys |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    columns = min(2, len(panels))  # two are wider than a single panel
    figure.legend(
        list(keys.values()), list(keys), loc="outside upper center", ncols=columns, frameon=False, fontsize="small"
    )
    for ending in (".png", ".pdf"):
        save(figure, args.out.with_name(args.out.name + ending))
    console.print(f"wrote {args.out}.png and .pdf", soft_wrap=True, markup=False)


def _note_left_out(curves: pd.DataFrame) -> None:
    for dataset, split in sorted(set(zip(curves["dataset"], curves["split"], strict=True))):
        errors.print(f"note: {dataset} ({split}) has runs at one leakage only and no panel", markup=False)


def find_curves(table: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Return the rows of runs that have a leakage, with the curve they belong to.

    Parameters
    ----------
    table
        Rows of one metric.
    methods
        To keep; none keeps all.

    Returns
    -------
    The rows with the column curve: the name of the method without its leakage.

    Raises
    ------
    UserError
        If a method is not there, or two runs would be one point.
    """
    found = table[table["leakage"].notna() & ~table["method"].isin(CONTROLS)]
    for name in methods:
        if name not in set(found["method"]):
            raise UserError(f"no run with a leakage is called '{name}'{nearest(name, found['method'].unique())}")
    found = found[found["method"].isin(methods or found["method"])]
    curve = found["method"].str.replace(r"[_-]?leakage[_-]?[\d.]+$", "", regex=True)
    found = found.assign(curve=curve.where(curve != "", found["method"]))
    twice = found[found.duplicated(["dataset", "split", "curve", "leakage", "seed"], keep=False)]
    if len(twice):
        raise UserError(
            f"{' and '.join(twice['method'].unique())} have the same leakage and seed of {twice['dataset'].iloc[0]}: "
            "choose with --methods"
        )
    return found


def _draw(axes: Axes, curves: pd.DataFrame, table: pd.DataFrame, colors: dict[str, str]) -> None:
    """Draw a panel: curves of one data set, and controls from all its rows."""
    floor, rival = (table.loc[table["method"] == name, "value"].dropna() for name in (FLOOR, RIVAL))
    if floor.empty:
        raise UserError(f"{curves['dataset'].iloc[0]} has no rows of {FLOOR} to judge by: make them with {MAKE}")
    spread = floor.std() if len(floor) > 1 else 0.0
    axes.axhspan(
        floor.mean() - spread, floor.mean() + spread, color=ORIGIN_COLORS["real"], alpha=0.5, linewidth=0,
        label="floor: real training half, mean ± sd",
    )  # fmt: skip
    for line, (curve, rows) in enumerate(curves.groupby("curve")):
        _draw_curve(axes, rows, colors[str(curve)], table["seed"].nunique(), line)
    low, high = axes.get_ylim()
    reach = REACH * (high - low)
    if low - reach < rival.mean() < high + reach:
        axes.axhline(rival.mean(), color="black", linestyle="--", linewidth=1, label=f"{RIVAL}, mean")
    elif len(rival):
        text = f"{RIVAL}: {rival.mean():.3g}, off the axis"
        axes.text(0.98, 0.97, text, transform=axes.transAxes, ha="right", va="top", fontsize="x-small")
    axes.set_xticks(sorted(100 * curves["leakage"].unique()))
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_curve(axes: Axes, rows: pd.DataFrame, color: str, n_seeds: int, line: int) -> None:
    """Draw mean ± sd at each leakage, every seed beside it, and below how many seeds there are if some lack."""
    percent = 100 * rows["leakage"]
    axes.scatter(percent + POINTS_ASIDE, rows["value"], s=14, color=color, alpha=0.5, linewidths=0)
    found = rows.groupby(percent)["value"].agg(["mean", "std", "count"])
    axes.errorbar(
        found.index, found["mean"], found["std"], color=color, marker="o", markersize=6, capsize=4, linewidth=1.5,
        markerfacecolor="white", label=f"{rows['curve'].iloc[0]}, mean ± sd and each seed",
    )  # fmt: skip
    for x, count in found.loc[found["count"] < n_seeds, "count"].items():
        axes.text(
            x, 0.01 + 0.04 * line, f"{count} of {n_seeds} seeds", transform=axes.get_xaxis_transform(), ha="center",
            fontsize="x-small", color=color,
        )  # fmt: skip


if __name__ == "__main__":
    main()
