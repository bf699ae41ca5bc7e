"""Places: each method's mean rank over the metrics of a family, and over families (paper, "Results").

For every data set, seed and metric, methods are ranked by how far they fall short of the metric's ideal; ties share
their mean rank, and a method without a value comes last. Metrics of a family weigh alike, and so do families. Controls
do not compete: theirs is the rank that they would have among the others. Data sets and seeds on which not every method
was judged are left out: places among few are better than among many.

Run:    python analysis/rank_methods.py
Reads:  results/tables/benchmark.csv, or any long table (--table)
Writes: results/tables/ranks.csv: dataset ("all" for the mean over data sets), split, method, family ("all" for the mean
        over families), mean, sd and seeds, and of the means over all, behind, low and high: how far behind the first,
        with a 95 % interval over data sets; ranks.md, a table of it
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.markup import escape

from benchmarking.controls import PURE_CONTROLS
from common.checks import check_known
from common.cli import console, errors, parse_flags, run_script
from common.errors import UserError
from common.metrics.catalogue import ALL, METRICS, Family
from common.results import differences, of_one_split, over_datasets, read_results
from common.run import atomic, write_table
from common.summary import UNTOLD, UNTOLD_NOTE, mark_untold, markdown_table, order_methods
from config import RESULTS_DIR

EVERY = "all"


@dataclass(frozen=True)
class Args:
    """Mean ranks of methods."""

    table: Path = RESULTS_DIR / "tables" / "benchmark.csv"
    """long table of results"""
    group: str = ALL
    """group of cells: all cells, rare cells, or a type"""
    families: tuple[Family, ...] = ("fidelity", "utility", "privacy")
    """kinds of metrics"""
    methods: tuple[str, ...] = ()
    """rank these only, by default all that the table has: with fewer methods more data sets may have them all"""
    split: str | None = None
    """for data sets that were split in several ways: which, such as "holdout 0.5, 1000 genes\""""
    out: Path = RESULTS_DIR / "tables"
    """folder to write to"""


@run_script
def main(argv: list[str]) -> None:
    """Read, rank, write."""
    args: Args = parse_flags(Args, argv, __doc__)
    table = read_results(args.table, made_by="python benchmarking/run_benchmark.py")
    table = of_methods(table, args.methods, args.table)
    table = comparable(of_one_split(table[table["group"] == args.group], args.split, args.table))
    of_seeds = rank(table, args.families)
    if of_seeds.empty:
        raise UserError(f"{args.table} has no metric of {args.group} in {', '.join(args.families)}: choose others")
    ranks = summarise_ranks(of_seeds).merge(find_gaps(of_seeds), how="left")
    write_table(args.out / "ranks.csv", ranks)
    with atomic(args.out / "ranks.md") as part:
        part.write_text(as_markdown(ranks, args.group, mark_untold(table)))
    console.print(f"wrote {args.out / 'ranks.csv'} and .md", soft_wrap=True)


def of_methods(table: pd.DataFrame, methods: Sequence[str], path: Path) -> pd.DataFrame:
    """Return the rows of some methods; of all if none is named.

    Raises
    ------
    UserError
        If the table has nothing of one of them.
    """
    known = list(table["method"].unique())
    for name in methods:
        check_known(name, known, f"{path} has no method")
    return table[table["method"].isin(methods)] if methods else table


def comparable(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of those data sets, splits and seeds that have every method of the table; name the others.

    Raises
    ------
    UserError
        If there are none.
    """
    by = ["dataset", "split", "seed"]
    methods, of_each = set(table["method"]), table.groupby(by)["method"].agg(set)
    complete = of_each[of_each == methods].index
    if len(of_each) and not len(complete):
        at, lacking = max(of_each.items(), key=lambda item: len(item[1]))
        raise UserError(
            f"every method has to be judged on the same cells: {at[0]}, seed {at[2]}, lacks "
            f"{', '.join(sorted(methods - lacking))}; judge them, or give a --table of fewer methods"
        )
    for at, found in of_each.drop(complete).items():
        told = f"{at[0]}, seed {at[2]}, has {len(found)} of {len(methods)} methods: left out"
        errors.print(f"[yellow]note:[/] {escape(told)}", soft_wrap=True)
    return table[pd.MultiIndex.from_frame(table[by]).isin(complete)]


def rank(table: pd.DataFrame, families: Sequence[Family]) -> pd.DataFrame:
    """Rank methods on every data set and seed.

    Parameters
    ----------
    table
        Of one group of cells, with the columns `common.results.COLUMNS`.

    Returns
    -------
    Columns dataset, split, seed, method, family ("all" for the mean over families) and rank, 1 for the best.
    """
    ideal = {name for name, metric in METRICS.items() if not np.isnan(metric.ideal)}
    table = table[table["metric"].isin(ideal)]
    table = table.assign(family=table["metric"].map(lambda name: METRICS[name].family))
    table = table[table["family"].isin(families)]
    by = ["dataset", "split", "seed", "family", "metric"]
    found = []
    for key, rows in table.groupby(by, sort=False):
        if rows["value"].isna().all():  # nobody can have a value here
            continue
        shortfall = rows.set_index("method")["value"].map(METRICS[str(key[-1])].shortfall).fillna(np.inf)
        # of methods that this seed has, but not this metric: they failed
        shortfall = shortfall.reindex(_methods_of(table, key), fill_value=np.inf)
        ranks = place(shortfall, [name for name in shortfall.index if name in PURE_CONTROLS])
        found.append(pd.DataFrame(dict(zip(by, key, strict=True)), ranks.index).assign(rank=ranks))
    if not found:
        return pd.DataFrame(columns=["dataset", "split", "seed", "method", "family", "rank"])
    ranks = pd.concat(found).rename_axis("method").reset_index()
    by_family = ranks.groupby(["dataset", "split", "seed", "method", "family"])["rank"].mean().reset_index()
    over_all = by_family.groupby(["dataset", "split", "seed", "method"])["rank"].mean().reset_index()
    return pd.concat([by_family, over_all.assign(family=EVERY)], ignore_index=True)


def _methods_of(table: pd.DataFrame, key: tuple) -> pd.Index:
    same = (table[["dataset", "split", "seed"]] == key[:3]).all(axis=1)
    return pd.Index(table.loc[same, "method"].unique())


def place(shortfall: pd.Series, controls: Sequence[str]) -> pd.Series:
    """Return each method's rank, ties sharing their mean; a control's is the one it would have among the others."""
    own = shortfall.drop(list(controls))
    ranks = own.rank()
    for name in controls:
        ranks[name] = pd.concat([own, shortfall[[name]]]).rank()[name]
    return ranks


def summarise_ranks(ranks: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds, for each data set and for the mean over data sets.

    Data sets weigh alike however many seeds they have; the standard deviation of their mean is over the seeds that all
    of them have.
    """
    by = ["dataset", "split", "method", "family"]
    of_each = ranks.groupby(by, sort=False)["rank"].agg(mean="mean", sd="std", seeds="count").reset_index()
    over_all = of_each.groupby(["method", "family"], sort=False)["mean"].mean()
    by_seed = ranks.pivot_table(index=["seed", "method", "family"], columns="dataset", values="rank")
    shared = by_seed.dropna().mean(axis=1).groupby(["method", "family"]).agg(sd="std", seeds="count")
    both = over_all.to_frame().join(shared).fillna({"seeds": 0}).astype({"seeds": int}).reset_index()
    return pd.concat([of_each, both.assign(dataset=EVERY, split="")], ignore_index=True)[of_each.columns]


def find_gaps(ranks: pd.DataFrame) -> pd.DataFrame:
    """Tell how far methods are behind the first in mean rank, data set by data set.

    Returns
    -------
    Columns dataset and family, both "all", method, behind, and low and high, the ends of a 95 % interval over data sets
    (Student's t; NaN for one data set). The first itself is not in it.
    """
    over_all = ranks[ranks["family"] == EVERY]
    means = over_all.groupby(["method", "dataset"])["rank"].mean().groupby("method").mean()
    first = means.drop([name for name in means.index if name in PURE_CONTROLS]).idxmin()
    table = over_all.rename(columns={"rank": "value"}).assign(group=EVERY, metric="rank")
    found = over_datasets(differences(table, str(first), overlap=0)).rename(columns={"mean": "behind"})
    return found.assign(dataset=EVERY, family=EVERY)[["dataset", "family", "method", "behind", "low", "high"]]


def as_markdown(ranks: pd.DataFrame, group: str, shown: Mapping[str, str]) -> str:
    """Return one table: methods by their mean rank over data sets, controls last; families, then data sets.

    Parameters
    ----------
    shown
        How the table names each method.
    """
    means = ranks.set_index(["dataset", "family", "method"])
    over_all = ranks[(ranks["dataset"] == EVERY) & (ranks["family"] == EVERY)].set_index("method")["mean"]
    own = over_all.drop([name for name in over_all.index if name in PURE_CONTROLS]).sort_values()
    datasets = [name for name in ranks["dataset"].unique() if name != EVERY]
    columns = {family: (EVERY, family) for family in (EVERY, *(f for f in ranks["family"].unique() if f != EVERY))}
    columns |= {name: (name, EVERY) for name in datasets}

    def cell(method: str, column: tuple[str, str]) -> str:
        if (*column, method) not in means.index:
            return "—"
        row = means.loc[(*column, method)]
        return f"{row['mean']:.1f}" + ("" if np.isnan(row["sd"]) else f" ± {row['sd']:.1f}")

    def gap(method: str) -> str:
        row = means.loc[(EVERY, EVERY, method)]
        if np.isnan(row["behind"]):
            return ""
        return f"{row['behind']:.1f}" + ("" if np.isnan(row["low"]) else f" [{row['low']:.1f}, {row['high']:.1f}]")

    def line(method: str, name: str) -> list[str]:
        shown_ranks = [cell(method, column) for column in columns.values()]
        return [name, shown_ranks[0], gap(method), *shown_ranks[1:]]

    controls = [name for name in order_methods(over_all.index, PURE_CONTROLS) if name in PURE_CONTROLS]
    body = [line(name, shown[name]) for name in own.index]
    if controls:
        body.append(["*controls*", *[""] * (len(columns) + 1)])
    body += [line(name, name) for name in controls]
    n = int(ranks.loc[ranks["dataset"] != EVERY, "seeds"].max())
    note = f" {UNTOLD_NOTE}" if any(UNTOLD in name for name in shown.values()) else ""
    caption = (
        f"Mean rank of {len(own)} methods, {group}, 1 is best: mean ± sd over {n} seed{'s' * (n > 1)}. `{EVERY}`: "
        f"families weigh alike; `behind`: the first, with a 95 % interval over data sets; right of the families, each "
        f"data set. Controls do not compete.{note}"
    )
    head = ["method", EVERY, "behind", *(name for name in columns if name != EVERY)]
    return f"{caption}\n\n" + markdown_table(head, body)


if __name__ == "__main__":
    main()
