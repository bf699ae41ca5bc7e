"""Clusters on genes chosen by each method of selection, over seeds, with control rows beside (paper, "Evaluation").

For each way of choosing genes (data_validation/feature_selection.py) they are chosen on the synthetic cells and on the
real training cells; random genes stand beside them. The synthetic and the held-out real cells are then clustered on
these genes, at a resolution chosen without labels and by the same steps for everyone (data_validation.py).

Run:    python analysis/clustering_evaluation.py --runs results/synthetic/pbmc68k/garage/seed0 [more runs]
Reads:  cells.h5ad, heldout.csv and run.json of each run, and the real cells from where it had them
Writes: results/tables/clustering_evaluation.csv: dataset, split, seed, method, group, metric, n, value, selection,
        chosen_on, clustered, n_genes, draws. A metric is called by selection and score (cv2_ari), so that metric and
        group (the cells clustered and where the genes come from) tell every row of a run from the others
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from anndata import AnnData

from benchmarking.controls import CONTROLS, DEFAULT_CONTROLS, load_controls
from common.cli import console, parse_flags, progress_bar, run_script
from common.clustering import cluster_and_score
from common.comparison import thin_synthetic
from common.data import types_of
from common.judging import judge_runs, once_per_split
from common.metrics.catalogue import HELD, SYNTHETIC
from common.metrics.fidelity import compare_on
from common.runs import Run
from common.summary import show_beside
from config import RESULTS_DIR
from data_validation.data_validation import (
    AT_RANDOM,
    BY_SYNTHETIC,
    BY_TRAINING,
    SCORES,
    Scores,
    check_settings,
    choose_genes,
    mean_scores,
    random_genes,
)
from data_validation.feature_selection import Method

SELECTIONS: tuple[Method, ...] = get_args(Method)
CHOSEN_ON = {"synthetic": BY_SYNTHETIC, "real": BY_TRAINING, "random": AT_RANDOM}

GeneSets = Mapping[tuple[str, str], Sequence[np.ndarray]]
"""(selection, chosen on) -> sets of genes whose scores are averaged; none where cells do not admit a choice"""


@dataclass(frozen=True)
class Args:
    """Cluster synthetic and held-out real cells on chosen genes, for runs of several seeds."""

    runs: tuple[Path, ...]
    """folders of runs that held cells out (garage.py --holdout 0.5)"""
    controls: tuple[str, ...] = DEFAULT_CONTROLS
    """generators to fit to the same training cells, for comparison"""
    n_genes: int = 100
    """genes to choose (as published)"""
    draws: int = 3
    """random sets of genes to average over"""
    again: bool = False
    """judge controls anew that the table holds already"""
    out: Path = RESULTS_DIR / "tables" / "clustering_evaluation.csv"
    """table to write; rows of other runs in it are kept"""


def make_judge(n_genes: int, draws: int) -> Callable[[Run], pd.DataFrame]:
    """Return what judges runs, as `common.judging.judge_runs` takes it.

    Parameters
    ----------
    n_genes
        To choose by each method of selection.
    draws
        Random sets of genes to average over.
    """

    def choose(cells: AnnData, chosen_on: str) -> GeneSets:
        found = {name: choose_genes(cells, name, n_genes, published=False) for name in SELECTIONS}
        return {(name, chosen_on): [] if genes is None else [genes] for name, genes in found.items()}

    @once_per_split
    def of_real(run: Run) -> tuple[GeneSets, dict[tuple[str, str], Scores]]:
        at_random = random_genes(run, n_genes, draws)  # refuses an n_genes that is too large before anything is chosen
        sets = {**choose(run.train, "real"), ("", "random"): at_random}
        return sets, score_sets(run.held, sets, seed=run.seed)

    def judge(run: Run) -> pd.DataFrame:
        synthetic = thin_synthetic(run, run.held.n_obs)
        real_sets, held_scores = of_real(run)
        sets = choose(synthetic, "synthetic")
        scores = {
            SYNTHETIC: score_sets(synthetic, {**sets, **real_sets}, seed=run.seed),
            HELD: score_sets(run.held, sets, seed=run.seed) | held_scores,
        }
        n_cells = {SYNTHETIC: synthetic.n_obs, HELD: run.held.n_obs}
        return pd.DataFrame([
            {
                "group": f"{clustered}, {genes}", "metric": f"{selection}_{metric}", "n": n_cells[clustered],
                "value": value, "selection": selection, "chosen_on": chosen_on, "clustered": clustered,
            }
            for clustered, found in scores.items()
            for selection in SELECTIONS
            for chosen_on, genes in CHOSEN_ON.items()
            for metric, value in found["" if chosen_on == "random" else selection, chosen_on].items()
        ])  # fmt: skip

    return judge


def score_sets(cells: AnnData, sets: GeneSets, *, seed: int) -> dict[tuple[str, str], Scores]:
    """Cluster cells on each set of genes, without their labels, and compare the clusters with them.

    Parameters
    ----------
    cells
        On the scale in `uns["scale"]`, normalised by all their genes.
    sets
        Column numbers.
    seed
        As in `common.clustering.cluster_and_score`.

    Returns
    -------
    Scores of each set, NaN where there is none.
    """
    X, labels = compare_on(cells), types_of(cells)
    return {
        key: mean_scores([cluster_and_score(X[:, genes], labels, seed=seed) for genes in found])
        if found
        else dict.fromkeys(SCORES, np.nan)
        for key, found in sets.items()
    }


@run_script
def main(argv: list[str]) -> None:
    """Judge, write, and show the means."""
    args = parse_flags(Args, argv, __doc__)
    settings = {"n_genes": args.n_genes, "draws": args.draws}
    check_settings(args.out, settings)
    judge = make_judge(**settings)
    with progress_bar() as report:
        rows = judge_runs(
            args.runs, lambda run: judge(run).assign(**settings), controls=load_controls(args.controls), path=args.out,
            again=args.again, report=report,
        )  # fmt: skip
    columns = {f"{name}, ARI": f"{name}_ari" for name in SELECTIONS}
    references = [f"{HELD}, {BY_TRAINING}", f"{HELD}, {AT_RANDOM}"]
    for clustered in (SYNTHETIC, HELD):
        group, title = f"{clustered}, {BY_SYNTHETIC}", f"{clustered} on {BY_SYNTHETIC}"
        show_beside(rows, group, references, columns, controls=CONTROLS, title=title)
    console.print(f"wrote {args.out}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
