"""How much is chance: one split, several seeds; do they choose the same cells and fare alike (paper, "Stability").

Real cells are split once, and everything random in GARAGE is drawn anew for each seed: the attention network, with it
the seed cells, and the generator. Beside the spread of each metric over seeds stands its spread over splits, of the
benchmark's kind, in which cells and genes change too. Seed cells are compared by their Jaccard index, and by what it
would be for seeds taken at random, as many from each type.

Run:    python ablation_study/multi_seed_synthesis.py --datasets pbmc68k pbmc3k.h5ad --seeds 5
Reads:  data sets of config.py, or h5ad files with cell types in obs; of results/tables/ablation.csv the rows of other
        splits, for comparison
Writes: results/tables/ablation.csv as it goes, results/synthetic/<dataset>/garage_split<k>/seed<k>/;
        results/tables/seed_stability.csv: dataset, group (all cells, rare cells or a type), cells, seed_cells, jaccard,
        jaccard_sd (over pairs of seeds), jaccard_by_chance, attention_correlation (Spearman, mean over pairs);
        results/tables/metric_stability.csv: dataset, metric, mean, sd_over_seeds, seeds, sd_over_splits, splits
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from rich.table import Table
from scipy.stats import spearmanr

from ablation_study.variants import SHOWN, WHOLE, VariantArgs, run_variants
from benchmarking.experiment import tell
from common.cli import console, parse_flags, run_script
from common.errors import UserError
from common.generation import folder_of
from common.metrics.catalogue import ALL, RARE
from common.results import keep_other_datasets, read_results
from common.run import write_table
from common.summary import label_of

COLUMNS = ["group", "cells", "seed_cells", "jaccard", "jaccard_sd", "jaccard_by_chance", "attention_correlation"]


@dataclass(frozen=True)
class Args(VariantArgs):
    """GARAGE with several seeds on one split of each data set."""

    split_seed: int = 0
    """of the split"""


def compare_seeds(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Compare the seed cells and the attention of runs on the same training cells.

    Parameters
    ----------
    tables
        Of seeds.csv, one a run.

    Returns
    -------
    Columns as of seed_stability.csv, without dataset; one row a group of cells.
    """
    first = tables[0]
    chosen = np.array([table["is_seed"].to_numpy(bool) for table in tables])
    attention = np.array([table["attention"].to_numpy(float) for table in tables])
    rare = first["is_rare"].to_numpy(bool)
    types = first["cell_type"].astype(str).to_numpy()
    by_type = {str(name): types == name for name in np.unique(types)}
    rows = []
    for group, members in {ALL: np.ones(len(first), bool), RARE: rare, **by_type}.items():
        pairs = [_overlap(a, b, members, by_type) for a, b in combinations(chosen, 2)]
        found, expected = zip(*pairs, strict=True)
        agreement = np.mean([_agreement(a, b, members) for a, b in combinations(attention, 2)])
        n_seeds, sd = chosen[:, members].sum(1).mean(), np.std(found, ddof=1) if len(found) > 1 else np.nan
        rows.append((group, members.sum(), n_seeds, np.mean(found), sd, np.mean(expected), agreement))
    return pd.DataFrame(rows, columns=COLUMNS)


def _overlap(
    a: np.ndarray, b: np.ndarray, members: np.ndarray, by_type: Mapping[str, np.ndarray]
) -> tuple[float, float]:
    """Return the Jaccard index of two choices among some cells, and about what chance gives with their quotas."""
    quotas = [(a[own & members].sum(), b[own & members].sum(), (own & members).sum()) for own in by_type.values()]
    shared = sum(m * n / cells for m, n, cells in quotas if cells)  # mean of the hypergeometric distribution
    total = a[members].sum() + b[members].sum()
    if not total:
        return np.nan, np.nan
    return (a & b)[members].sum() / (a | b)[members].sum(), shared / (total - shared)


def _agreement(a: np.ndarray, b: np.ndarray, members: np.ndarray) -> float:
    """Return Spearman's rank correlation of two runs' attention among some cells; NaN where one does not vary."""
    a, b = a[members], b[members]
    return float(spearmanr(a, b).statistic) if len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0 else np.nan


def compare_spread(by_seed: pd.DataFrame, by_split: pd.DataFrame) -> pd.DataFrame:
    """Set the spread of each metric over seeds beside that over splits.

    Parameters
    ----------
    by_seed, by_split
        Long tables of one method and group of cells: of one split and several seeds, and of as many splits as seeds.

    Returns
    -------
    Columns as of metric_stability.csv.
    """
    by = ["dataset", "metric"]
    found = by_seed.groupby(by, sort=False)["value"].agg(mean="mean", sd_over_seeds="std", seeds="count")
    others = by_split.groupby(by)["value"].agg(sd_over_splits="std", splits="count")
    return found.join(others).reset_index()


@run_script
def main(argv: list[str]) -> None:
    """Run the seeds, compare what they chose and how they fared."""
    args: Args = parse_flags(Args, argv, __doc__)
    name = f"{WHOLE}_split{args.split_seed}"
    outcomes, rows = run_variants({name: ()}, args, split_seed=args.split_seed)
    stability = []
    for dataset in dict.fromkeys(outcome.dataset for outcome in outcomes):
        folders = [folder_of(None, dataset, name, seed) for seed in range(args.seeds)]
        tables = [pd.read_csv(folder / "seeds.csv") for folder in folders if (folder / "run.json").exists()]
        if len(tables) > 1:
            stability.append(compare_seeds(tables).assign(dataset=dataset))
    if not stability:
        raise UserError("no data set has two finished runs to compare: give --seeds 2 at least, and see what failed")
    seeds = pd.concat(stability)[["dataset", *COLUMNS]]
    path = args.out.with_name("seed_stability.csv")
    write_table(path, keep_other_datasets(path, seeds))
    spread = compare_spread(_of(rows, name), _of(_other_splits(args, rows), WHOLE))
    path = args.out.with_name("metric_stability.csv")
    write_table(path, keep_other_datasets(path, spread))
    _show(seeds, spread)
    tell(outcomes, f"wrote {args.out}, with seed_stability.csv and metric_stability.csv beside it")


def _of(rows: pd.DataFrame, method: str) -> pd.DataFrame:
    return rows[(rows["method"] == method) & (rows["group"] == ALL)]


def _other_splits(args: Args, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of runs on the same data sets in which each seed has its own split."""
    table = read_results(args.out, made_by="the same command")
    own_split = rows["split"].str.replace(f" by seed {args.split_seed},", ",").unique()
    return table[table["split"].isin(own_split) & table["seed"].lt(args.seeds)]


def _show(seeds: pd.DataFrame, spread: pd.DataFrame) -> None:
    """Print how alike seed cells are, and the spread of the metrics that matter most."""
    table = Table("data set", "cells", "seed cells", "Jaccard", "by chance", "attention, Spearman", box=None)
    for _, row in seeds[seeds["group"].isin([ALL, RARE])].iterrows():
        table.add_row(
            row["dataset"], f"{row['group']}: {row['cells']}", f"{row['seed_cells']:.0f}",
            f"{row['jaccard']:.2f} ± {row['jaccard_sd']:.2f}", f"{row['jaccard_by_chance']:.2f}",
            f"{row['attention_correlation']:.2f}",
        )  # fmt: skip
    console.print(table)
    table = Table("data set", "metric", "mean", "sd over seeds", "sd over splits", box=None)
    for _, row in spread[spread["metric"].isin(SHOWN)].iterrows():
        values = (f"{row[name]:.3f}" for name in ("mean", "sd_over_seeds", "sd_over_splits"))
        table.add_row(row["dataset"], label_of(row["metric"]), *values)
    console.print(table)


if __name__ == "__main__":
    main()
