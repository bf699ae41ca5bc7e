"""Means over seeds as a person reads them: methods as rows, controls last; metrics as columns; no gap hidden."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from rich.markup import escape
from rich.table import Column, Table

from common.cli import console
from common.metrics.catalogue import METRICS
from common.results import summarise

NOTHING = "—"
UNTOLD = "†"
UNTOLD_NOTE = f"{UNTOLD}: not told the cell type; a classifier trained on the training cells labels what it makes."
ROLES = {"real_half": "floor", "all_zeros": "ceiling", "gene_wise_normal": "ceiling"}  # of a distance


def order_methods(methods: Iterable[str], controls: Collection[str]) -> list[str]:
    """Return methods by name, then controls in the order that `controls` has."""
    rank = {name: i for i, name in enumerate(controls, start=1)}
    return sorted(set(methods), key=lambda name: (rank.get(name, 0), name))


def order_metrics(metrics: Iterable[str]) -> list[str]:
    """Return metrics in the order of the catalogue; those that it does not have last, by name."""
    rank = {name: i for i, name in enumerate(METRICS)}
    return sorted(set(metrics), key=lambda name: (rank.get(name, len(rank)), name))


def mark_untold(table: pd.DataFrame) -> dict[str, str]:
    """Return the name of each method as a table shows it: marked if its generator is not told what type to make.

    Parameters
    ----------
    table
        With a column method, and labels ("given" or "classifier") where that is known.
    """
    untold = set(table.loc[table["labels"] == "classifier", "method"]) if "labels" in table else set()
    return {name: f"{name} {UNTOLD}" if name in untold else name for name in table["method"].unique()}


def label_of(metric: str) -> str:
    """Return what the catalogue calls a metric, or its own name."""
    return METRICS[metric].label if metric in METRICS else metric


def decimals_of(means: pd.Series, sds: pd.Series) -> int:
    """Return how many decimals a column of means needs, 0 to 5.

    Three digits of the largest mean, or more if the typical standard deviation is smaller than that.
    """
    sizes = (np.abs(means).max(), sds[sds > 0].median())
    wanted = [
        digits - np.floor(np.log10(size)) for digits, size in zip((2, 0), sizes, strict=True) if 0 < size < np.inf
    ]
    return int(np.clip(max(wanted, default=0), 0, 5))


def cell_parts(row: pd.Series, decimals: int) -> tuple[str, str, str]:
    """Return mean, standard deviation and gap of a row of `common.results.summarise` as text.

    Returns
    -------
    Such as ("0.55", "0.01", "4 of 5"). Without any value the mean is a dash; the standard deviation of one seed and the
    gap where no seed is missing are empty.
    """
    if not row["seeds"]:
        return NOTHING, "", ""
    sd = "" if np.isnan(row["sd"]) else f"{row['sd']:.{decimals}f}"
    gap = f"{row['seeds']:.0f} of {row['seeds'] + row['missing']:.0f}" if row["missing"] else ""
    return f"{row['mean']:z.{decimals}f}", sd, gap


def show(rows: pd.DataFrame, *, controls: Collection[str]) -> None:
    """Print the means of a long table, one table for each data set, split and group of cells.

    Parameters
    ----------
    rows
        With the columns `common.results.COLUMNS`.
    controls
        Names of the methods that go last; floor and ceiling of a distance are named as such.
    """
    for (dataset, split, group), found in summarise(rows).groupby(["dataset", "split", "group"], sort=False):
        metrics = order_metrics(found["metric"])
        decimals = {m: decimals_of(*(found.loc[found["metric"] == m, c] for c in ("mean", "sd"))) for m in metrics}
        table = Table(
            Column("method", overflow="fold"),
            *(escape(label_of(m)) for m in metrics),
            title=escape(f"{dataset}, {split}, {group}"),
        )
        by_cell = {(row["method"], row["metric"]): row for _, row in found.iterrows()}
        for method in order_methods(found["method"], controls):
            role = f" ({ROLES[method]})" if method in ROLES else ""
            texts = (text_of(by_cell.get((method, m)), decimals[m]) for m in metrics)
            table.add_row(escape(method + role), *texts)
        console.print(table)


def show_beside(
    rows: pd.DataFrame, group: str, references: Sequence[str], columns: Mapping[str, str], *, controls: Collection[str],
    title: str,
) -> None:  # fmt: skip
    """Print the means of one group of cells, a method a row; below, groups that are the same for every method.

    Parameters
    ----------
    rows
        With the columns `common.results.COLUMNS`.
    group
        The group of cells to show.
    references
        Groups whose values are the same for every method; each has a row of its own.
    columns
        Heading to metric.
    controls
        Names of the methods that go last.
    """
    chosen = rows[rows["metric"].isin(columns.values())]
    shared = chosen[chosen["group"].isin(references)].sort_values("value")  # NaN last: of a control that failed
    shared = shared.drop_duplicates(["dataset", "split", "seed", "group", "metric"])
    chosen = pd.concat([chosen[chosen["group"] == group], shared.assign(method=shared["group"])])
    for (dataset, split), found in summarise(chosen).groupby(["dataset", "split"], sort=False):
        table = Table("", *columns, title=escape(f"{dataset}, {split}: {title}"))
        decimals = {metric: decimals_of(of["mean"], of["sd"]) for metric, of in found.groupby("metric")}
        by_cell = {(row["method"], row["metric"]): row for _, row in found.iterrows()}
        for method in order_methods(found["method"], [*controls, *references]):
            texts = (text_of(by_cell[method, metric], decimals[metric]) for metric in columns.values())
            table.add_row(escape(method), *texts)
        console.print(table)


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, names on the left and numbers on the right; what is special in Markdown is so here."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join(f"| {' | '.join(fields)} |" for fields in lines) + "\n"


def text_of(row: pd.Series | None, decimals: int) -> str:
    """Return a row of `common.results.summarise` as one text, such as "0.55 ± 0.01 (4 of 5)"; a dash for None."""
    if row is None:
        return NOTHING
    mean, sd, gap = cell_parts(row, decimals)
    return mean + (f" ± {sd}" if sd else "") + (f" ({gap})" if gap else "")
