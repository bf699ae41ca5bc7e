"""Tables for people: mean ± sd over seeds, one table a data set, controls below the line (paper, "Results").

A seed that failed or was not run stays visible, as "0.55 ± 0.01 (4 of 5)", and a value that no seed has as a dash.

Run:    python analysis/build_summary_tables.py --families fidelity --group "rare cells"
Reads:  results/tables/evaluation.csv, or any long table (--table)
Writes: results/tables/summary_<dataset>[_<group>].csv (long form, full precision), .md and .tex (booktabs)
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pandas as pd

from benchmarking.controls import PURE_CONTROLS
from common.checks import nearest
from common.cli import console, parse_flags, run_script
from common.errors import UserError
from common.evaluation import ALL
from common.metrics.catalogue import METRICS, Family
from common.results import of_one_split, read_results, summarise
from common.run import atomic, write_table
from common.summary import (
    NOTHING,
    UNTOLD_NOTE,
    cell_parts,
    decimals_of,
    label_of,
    mark_untold,
    markdown_table,
    order_methods,
    order_metrics,
)
from config import RESULTS_DIR

ARROWS = {"lower": "↓", "higher": "↑", "near": "≈"}
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "†": r"$^\dagger$",
    "±": r"$\pm$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "≈": r"$\approx$", "²": r"\textsuperscript{2}", "—": "---",
}  # fmt: skip


@dataclass(frozen=True)
class Args:
    """Mean ± sd over seeds as CSV, Markdown and LaTeX."""

    table: Path = RESULTS_DIR / "tables" / "evaluation.csv"
    """long table of results"""
    group: str = ALL
    """group of cells: all cells, rare cells, or a type"""
    metrics: tuple[str, ...] = ()
    """columns; by default all that the group has"""
    families: tuple[Family, ...] = get_args(Family)
    """kinds of metrics; metrics outside the catalogue are of none and always shown"""
    split: str | None = None
    """for data sets that were split in several ways: which, such as "holdout 0.5, 1000 genes\""""
    out: Path = RESULTS_DIR / "tables"
    """folder to write to"""


@run_script
def main(argv: list[str]) -> None:
    """Read, summarise, and write the tables of each data set."""
    args: Args = parse_flags(Args, argv, __doc__)
    table = read_results(args.table, made_by="python analysis/evaluate.py --runs DIR..., or the script of that table")
    if args.split is not None:
        table = table[table["split"] == args.split]
    metrics = _choose_metrics(table, args)
    written = []
    for dataset, rows in table.groupby("dataset"):
        if args.group not in set(rows["group"]):  # a type that other data sets have
            continue
        summary = fill_gaps(of_one_split(rows, args.split, args.table), args.group, metrics)
        name = f"summary_{dataset}" + ("" if args.group == ALL else "_" + re.sub(r"[^\w+-]+", "_", args.group))
        write_table(args.out / f"{name}.csv", summary)
        for ending, layout in (("md", as_markdown), ("tex", as_latex)):
            with atomic(args.out / f"{name}.{ending}") as part:
                part.write_text(layout(summary))
        written.append(f"{args.out / name}.csv, .md and .tex")
    console.print(f"wrote {'; '.join(written)}", soft_wrap=True, markup=False)


def _choose_metrics(table: pd.DataFrame, args: Args) -> list[str]:
    """Return the columns of the tables, in their order."""
    if args.group not in set(table["group"]):
        groups = f"; it has {', '.join(table['group'].unique())}" if len(table) else " in that split"
        raise UserError(
            f"{args.table} has no group '{args.group}'{groups}{nearest(args.group, table['group'].unique())}"
        )
    there = table.loc[table["group"] == args.group, "metric"].unique().tolist()
    for name in args.metrics:
        if name not in there:
            raise UserError(f"{args.table} has no metric '{name}' of {args.group}{nearest(name, there)}")
    chosen = [m for m in args.metrics or there if m not in METRICS or METRICS[m].family in args.families]
    if not chosen:
        raise UserError(
            f"{args.table} has no metric of {args.group} among {' and '.join(args.families)}: choose other --families"
        )
    return order_metrics(chosen)


def fill_gaps(rows: pd.DataFrame, group: str, metrics: Sequence[str]) -> pd.DataFrame:
    """Summarise a data set so that every method has a row for every metric, whatever failed or was not run.

    Parameters
    ----------
    rows
        Of one data set and split, with the columns `common.results.COLUMNS`.
    group, metrics
        Which to keep.

    Returns
    -------
    Columns as of `common.results.summarise` and labels, methods in the order of a table, controls last.
    """
    every = pd.MultiIndex.from_product(
        [order_methods(rows["method"], PURE_CONTROLS), metrics], names=["method", "metric"]
    )
    found = summarise(rows[rows["metric"].notna()])
    found = found[found["group"] == group].set_index(["method", "metric"]).reindex(every).reset_index()
    found["seeds"] = found["seeds"].fillna(0).astype(int)
    found["missing"] = rows["seed"].nunique() - found["seeds"]
    found[["dataset", "split", "group"]] = [rows["dataset"].iloc[0], rows["split"].iloc[0], group]
    found["labels"] = found["method"].map(rows.groupby("method")["labels"].first()) if "labels" in rows else None
    return found[["dataset", "split", "group", "method", "metric", "mean", "sd", "seeds", "missing", "labels"]]


def find_best(column: pd.Series, metric: str, decimals: int) -> set[str]:
    """Return the methods nearest to a metric's ideal.

    Parameters
    ----------
    column
        Mean of each method, controls left out.
    decimals
        Means that are equal with so many decimals tie.

    Returns
    -------
    None of them if fewer than two have a mean, or nobody knows which way is better.
    """
    column = column.dropna()
    if len(column) < 2 or metric not in METRICS:
        return set()
    shortfall = column.round(decimals).map(METRICS[metric].shortfall).round(decimals)
    return set(shortfall.index[shortfall == shortfall.min()])


def head_of(metric: str) -> str:
    """Return a metric's label with an arrow, and its ideal where it has one that is no end of its range."""
    if metric not in METRICS:
        return label_of(metric)
    about = METRICS[metric]
    if math.isnan(about.ideal):
        return f"{about.label} {ARROWS[about.better]}" if about.better != "near" else about.label
    end = {"lower": about.low, "higher": about.high}.get(about.better)
    return f"{about.label} {ARROWS[about.better]}" + ("" if about.ideal == end else f" {about.ideal:g}")


def _caption(summary: pd.DataFrame) -> str:
    dataset, split, group = summary.loc[0, ["dataset", "split", "group"]]
    n = summary.loc[0, ["seeds", "missing"]].sum()
    return (
        f"{dataset} ({split}), {group}: mean ± sd over {n} {'seed' if n == 1 else 'seeds'}. Controls are set apart; "
        "bold: the best mean of the other methods; in brackets: seeds with a value, where some have none; "
        f"{NOTHING}: none has." + (f" {UNTOLD_NOTE}" if (summary["labels"] == "classifier").any() else "")
    )


def _body(summary: pd.DataFrame) -> list[tuple[str, list[tuple[tuple[str, str, str], bool]]]]:
    """Return each method with the parts of its cells, and whether they are the best of their column."""
    decimals, best = {}, {}
    for metric, column in summary.set_index("method").groupby("metric", sort=False):
        decimals[metric] = decimals_of(column["mean"], column["sd"])
        own = column.loc[[name for name in column.index if name not in PURE_CONTROLS], "mean"]
        best[metric] = find_best(own, str(metric), decimals[metric])
    return [
        (str(method), [
            (cell_parts(row, decimals[row["metric"]]), method in best[row["metric"]]) for _, row in cells.iterrows()
        ])
        for method, cells in summary.groupby("method", sort=False)
    ]  # fmt: skip


def as_markdown(summary: pd.DataFrame) -> str:
    """Return a table of `fill_gaps` as Markdown."""

    def escape(text: str) -> str:
        return re.sub(r"([\\`*_<>|\[\]])", r"\\\1", text)

    def cell(parts: tuple[str, str, str], is_best: bool) -> str:
        mean, sd, gap = parts
        text = mean + (f" ± {sd}" if sd else "")
        return (f"**{text}**" if is_best else text) + (f" ({gap})" if gap else "")

    metrics = summary["metric"].unique()
    lines: list[list[str]] = []
    body, shown = _body(summary), mark_untold(summary)
    for i, (method, cells) in enumerate(body):
        if method in PURE_CONTROLS and (i == 0 or body[i - 1][0] not in PURE_CONTROLS):
            lines.append(["*controls*"] + [""] * len(metrics))
        lines.append([escape(shown[method]), *(cell(*parts) for parts in cells)])
    head = ["method", *(escape(head_of(m)) for m in metrics)]
    return f"{escape(_caption(summary))}\n\n{markdown_table(head, lines)}"


def as_latex(summary: pd.DataFrame) -> str:
    """Return a table of `fill_gaps` as LaTeX; it needs the package booktabs."""

    def escape(text: str) -> str:
        return "".join(LATEX.get(character, character) for character in text)

    def cell(parts: tuple[str, str, str], is_best: bool) -> str:
        mean, sd, gap = parts
        if mean == NOTHING:
            return escape(NOTHING)
        value = (rf"\mathbf{{{mean}}}" if is_best else mean) + (rf" \pm {sd}" if sd else "")
        return f"${value}$" + (f" ({gap})" if gap else "")

    metrics = summary["metric"].unique()
    lines = [
        r"\begin{table}", r"\centering", rf"\caption{{{escape(_caption(summary))}}}",
        rf"\begin{{tabular}}{{l{'r' * len(metrics)}}}", r"\toprule",
        " & ".join(["method", *(escape(head_of(m)) for m in metrics)]) + r" \\", r"\midrule",
    ]  # fmt: skip
    body, shown = _body(summary), mark_untold(summary)
    for i, (method, cells) in enumerate(body):
        if method in PURE_CONTROLS and i > 0 and body[i - 1][0] not in PURE_CONTROLS:
            lines.append(r"\midrule")
        lines.append(" & ".join([escape(shown[method]), *(cell(*parts) for parts in cells)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


if __name__ == "__main__":
    main()
