"""Whether real and synthetic cells form clusters of their types on marker genes (paper, "Marker genes").

Markers are published ones, a list of one's own, or chosen on the training cells alone. On them the synthetic cells and
the held-out real ones are clustered, each by themselves and both together, by the same steps for everyone and at a
resolution chosen without labels (data_validation.py), and the clusters are compared with the cells' own types. What
counts is F1 over all types of the training cells, one cluster for each: a generator that leaves types out has 0 for
them, however tight the others are. It should come to what held-out cells have; above it, types are farther apart than
they are in reality.

Run:    python biological_analysis/marker_gene_clustering.py --runs results/synthetic/pbmc68k/garage/seed0 [more runs]
Reads:  cells.h5ad, heldout.csv and run.json of each run, and the real cells from where it had them
Writes: results/tables/marker_gene_clustering.csv: dataset, split, seed, method, group (synthetic cells, held-out cells,
        or synthetic among held-out cells), metric, n (cells), value, markers
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import f1_score

from benchmarking.controls import CONTROLS, DEFAULT_CONTROLS, load_controls
from biological_analysis.markers import MarkerSource, check_same_markers, find_markers
from common.cli import console, parse_flags, progress_bar, run_script
from common.clustering import cluster_and_score, cluster_blindly
from common.comparison import thin_synthetic
from common.data import types_of
from common.generation import print_notes
from common.judging import judge_runs, once_per_split
from common.metrics.catalogue import HELD, SYNTHETIC
from common.metrics.fidelity import compare_on
from common.results import score_rows
from common.runs import Run, identify
from common.summary import show_beside
from config import RESULTS_DIR

AMONG = "synthetic among held-out cells"
ALL_TYPES_F1 = "all_types_f1"
SHOWN = {"F1, all types": ALL_TYPES_F1, "types": "n_types", "clusters": "n_clusters", "ARI": "ari", "NMI": "nmi"}


@dataclass(frozen=True)
class Args:
    """Cluster the synthetic and the held-out real cells of runs on marker genes."""

    genes: MarkerSource
    runs: tuple[Path, ...]
    """folders of runs that held cells out (garage.py --holdout 0.5)"""
    controls: tuple[str, ...] = DEFAULT_CONTROLS
    """generators to fit to the same training cells, for comparison"""
    again: bool = False
    """judge controls anew that the table holds already"""
    out: Path = RESULTS_DIR / "tables" / "marker_gene_clustering.csv"
    """table to write; rows of other runs in it are kept"""


def make_judge(source: MarkerSource) -> Callable[[Run], pd.DataFrame]:
    """Return what judges runs, as `common.judging.judge_runs` takes it.

    Synthetic and held-out cells, clustered by themselves, have the scores of `score_alone`; both together, as many of
    one as of the other at most, that of `score_among`.
    """
    told: set[str] = set()

    @once_per_split
    def of_real(run: Run) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        markers, notes = find_markers(run.train, source)
        print_notes([note for note in notes if note not in told])
        told.update(notes)
        genes = run.train.var_names.isin([gene for genes in markers.values() for gene in genes])
        X, all_types = compare_on(run.held)[:, genes], np.unique(types_of(run.train))
        return genes, X, score_alone(X, types_of(run.held), all_types, seed=run.seed)

    def judge(run: Run) -> pd.DataFrame:
        genes, held, of_held = of_real(run)
        cells, all_types = thin_synthetic(run, run.held.n_obs), np.unique(types_of(run.train))
        drawn, types = compare_on(cells)[:, genes], types_of(cells)
        among = score_among(held, types_of(run.held), drawn, types, all_types, seed=run.seed)
        return score_rows({
            SYNTHETIC: (len(drawn), score_alone(drawn, types, all_types, seed=run.seed)),
            HELD: (len(held), of_held),
            AMONG: (len(drawn), among),
        }).assign(markers=source.describe(run.dataset))  # fmt: skip

    return judge


def score_alone(X: np.ndarray, types: np.ndarray, all_types: np.ndarray, *, seed: int) -> dict[str, float]:
    """Cluster cells without their types, then compare (`common.clustering.cluster_and_score`).

    Parameters
    ----------
    X
        Log-normalised values of the markers, shape (n_cells, n_markers).
    types
        Cell types, shape (n_cells,).
    all_types
        Names of the types that there should be.

    Returns
    -------
    ari, nmi, n_clusters, resolution, n_types (that are there) and all_types_f1: macro-F1 with a cluster of its own for
    each type (`common.metrics.clustering.macro_f1`), where a type that is not there has 0; from 0 to 1, higher is
    better.
    """
    found, n_types = cluster_and_score(X, types, seed=seed), len(np.unique(types))
    return found | {"n_types": n_types, ALL_TYPES_F1: found.pop("macro_f1") * n_types / len(all_types)}


def score_among(
    held: np.ndarray, held_types: np.ndarray, drawn: np.ndarray, types: np.ndarray, all_types: np.ndarray, *, seed: int
) -> dict[str, float]:  # fmt: skip
    """Cluster held-out and synthetic cells together; are synthetic cells in the clusters of their type's real cells?

    Each type is matched with the cluster of its own that its held-out cells fit best (Kuhn 1955), and a synthetic cell
    is taken for what its cluster is matched with.

    Parameters
    ----------
    held, drawn
        Log-normalised values of the markers, shape (n_cells, n_markers).

    Returns
    -------
    n_clusters, resolution, n_types and all_types_f1: macro-F1 of the synthetic cells over all types.
    """
    clusters, resolution = cluster_blindly(np.concatenate([held, drawn]), seed=seed)
    of_held, of_drawn = np.split(clusters, [len(held)])
    names = np.unique(clusters)
    f1 = np.array([[f1_score(held_types == name, of_held == c, zero_division=0) for c in names] for name in all_types])
    matched = {
        names[j]: all_types[i] for i, j in zip(*linear_sum_assignment(f1, maximize=True), strict=True) if f1[i, j]
    }
    taken_for = np.array([matched.get(cluster, "") for cluster in of_drawn], dtype=str)
    score = f1_score(types, taken_for, labels=all_types, average="macro", zero_division=0)
    return {
        "n_clusters": len(names), "resolution": resolution, "n_types": len(np.unique(types)), ALL_TYPES_F1: score,
    }  # fmt: skip


@run_script
def main(argv: list[str]) -> None:
    """Judge, write, and show the means."""
    args: Args = parse_flags(Args, argv, __doc__)
    check_same_markers(args.out, {identify(folder)[0] for folder in args.runs}, args.genes)
    with progress_bar() as report:
        rows = judge_runs(
            args.runs, make_judge(args.genes), controls=load_controls(args.controls), path=args.out, again=args.again,
            report=report,
        )  # fmt: skip
    show_beside(rows, SYNTHETIC, [HELD], SHOWN, controls=CONTROLS, title=f"{SYNTHETIC} on marker genes")
    together = dict(list(SHOWN.items())[:3])
    show_beside(rows, AMONG, [], together, controls=CONTROLS, title=f"{AMONG}, on marker genes")
    console.print(f"wrote {args.out}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
