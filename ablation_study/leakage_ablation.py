"""How many seeds: losses, fidelity, utility and privacy against leakage (paper, "Effect of leakage").

Leakage is the share of the training cells that become seeds, and of the generator's input rows that start from one. A
seed keeps the attention that it has whatever the leakage, so that the seeds of a smaller one are among those of a
larger; the log says how many there are. What `analysis/plot_wasserstein_vs_leakage.py` draws is made from these runs.

Run:    python ablation_study/leakage_ablation.py --datasets pbmc68k pbmc3k.h5ad --leakages 0 0.1 0.2 0.3 --seeds 5
Reads:  data sets of config.py, or h5ad files with cell types in obs
Writes: results/tables/ablation.csv as it goes, results/synthetic/<dataset>/<variant>/seed<k>/;
        results/tables/leakage_losses.csv and leakage_losses_summary.csv, as analysis/aggregate_losses.py has them;
        results/tables/leakage_seeds.csv: dataset, seed, method, leakage, training_cells, seed_cells, shared_with_less
        (share of the seeds of the next smaller leakage that are seeds here too);
        results/figures/leakage.png
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ablation_study.variants import SHOWN, VariantArgs, run_variants, with_leakage
from analysis import aggregate_losses
from benchmarking.experiment import tell
from common.cli import console, parse_flags, run_script
from common.errors import UserError
from common.generation import folder_of
from common.metrics.catalogue import ALL, SEEDS
from common.plotting import PALETTE, figures_of, save
from common.results import keep_other_datasets
from common.run import write_table
from common.runs import read_record
from common.summary import label_of

FLOOR = "real_half"


@dataclass(frozen=True)
class Args(VariantArgs):
    """GARAGE with several leakages on data sets and splits."""

    leakages: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3)
    """shares of seeds"""


def count_seeds(folders: Sequence[Path]) -> pd.DataFrame:
    """Count the seeds of runs, and those that a run shares with that of the next smaller leakage.

    Parameters
    ----------
    folders
        Of runs that differ in data set, seed and leakage only.
    """
    rows = []
    for folder in folders:
        record, is_seed = read_record(folder), pd.read_csv(folder / "seeds.csv")["is_seed"].to_numpy(bool)
        ids = {name: record[name] for name in ("dataset", "seed", "method")}
        rows.append({**ids, "leakage": record["params"]["leakage"], "training_cells": len(is_seed), "chosen": is_seed})
    table = pd.DataFrame(rows).sort_values(["dataset", "seed", "leakage"], ignore_index=True)
    table["seed_cells"] = [int(chosen.sum()) for chosen in table["chosen"]]
    fewer = table.groupby(["dataset", "seed"])["chosen"].shift()
    table["shared_with_less"] = [
        after[before].mean() if isinstance(before, np.ndarray) and before.any() else np.nan
        for before, after in zip(fewer, table.pop("chosen"), strict=True)
    ]
    return table


def plot_leakage(rows: pd.DataFrame) -> Figure:
    """Draw metrics against leakage: a panel a metric, a line a data set (mean ± sd), dotted its real training half.

    Parameters
    ----------
    rows
        Of the table, with the column leakage.
    """
    panels_of = [(metric, ALL) for metric in SHOWN] + [("calibrated_auc", SEEDS)]
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    panels = figure.subplots(2, len(panels_of) // 2, sharex=True).ravel()
    for axes, (metric, group) in zip(panels, panels_of, strict=True):
        of_panel = rows[(rows["metric"] == metric) & (rows["group"] == group)]
        for i, (dataset, found) in enumerate(of_panel.groupby("dataset")):
            color = PALETTE[i % len(PALETTE)]
            means = found.groupby("leakage")["value"].agg(["mean", "std"])
            axes.errorbar(
                100 * means.index, means["mean"], means["std"].fillna(0), color=color, marker="o", markersize=4,
                capsize=3, linewidth=1.2, label=dataset,
            )  # fmt: skip
            axes.axhline(found.loc[found["method"] == FLOOR, "value"].mean(), color=color, linestyle=":", linewidth=1)
        axes.set(title=label_of(metric) + ("" if group == ALL else f", {group}"), xlabel="leakage, %")
        axes.spines[["top", "right"]].set_visible(False)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", frameon=False, title="dotted: real half")
    return figure


@run_script
def main(argv: list[str]) -> None:
    """Run, gather the losses, count the seeds, draw."""
    args: Args = parse_flags(Args, argv, __doc__)
    if not args.leakages or not all(0 <= leakage <= 1 for leakage in args.leakages):
        raise UserError("--leakages are shares of the cells: give numbers from 0 to 1")
    variants = dict(map(with_leakage, args.leakages))
    outcomes, rows = run_variants(variants, args)
    finished = [outcome for outcome in outcomes if outcome.job.name in variants and outcome.status != "failed"]
    folders = [folder_of(None, outcome.dataset, outcome.job.name, outcome.job.seed) for outcome in finished]
    seeds = count_seeds(folders)
    path = args.out.with_name("leakage_seeds.csv")
    write_table(path, keep_other_datasets(path, seeds))
    for dataset, of_set in seeds.groupby("dataset"):
        cells = of_set.groupby("leakage")["seed_cells"].mean()
        told = ", ".join(f"{n:.0f} at {leakage:.0%}" for leakage, n in cells.items())
        console.print(f"{dataset}: seed cells of {of_set['training_cells'].mean():.0f}: {told}", markup=False)
    aggregate_losses.main(
        ["--runs", *map(str, sorted(folders)), "--out", str(args.out.with_name("leakage_losses.csv"))]
    )
    figure = figures_of(args.out) / "leakage.png"
    save(plot_leakage(rows), figure)
    tell(outcomes, f"wrote {args.out}, leakage_seeds.csv beside it and {figure}")


if __name__ == "__main__":
    main()
