"""Whether clusters of synthetic cells find the cell types as well as clusters of real ones do (paper, "Validation").

The synthetic cells and the held-out real ones are clustered each on their own, with the same steps: log-normalised
values, their principal components, Leiden. The resolution is chosen by the silhouette, for every method from the same
grid; labels only score the clusters. What is right for the synthetic cells is the score of the held-out ones: a higher
one means types that are further apart than they are.

--published repeats the published protocol: genes chosen on the synthetic cells, the held-out REAL cells clustered on
these genes, and the resolution swept for the best agreement with the labels. It says little about synthetic cells: all
that it takes from them is a list of genes, and the sweep looks at the answer. So the sweep is the same for everyone,
and beside it stand the resolution chosen without labels, genes chosen on the real training cells, and random genes.

Run:    python data_validation/data_validation.py --runs results/synthetic/pbmc68k/garage/seed0 [more runs]
Reads:  cells.h5ad, heldout.csv and run.json of each run, and the real cells from where it had them
Writes: results/tables/data_validation.csv: dataset, split, seed, method, group, metric, n, value (with --published
        data_validation_published.csv, with its settings) and results/figures/validation_<dataset>_<method>_seed<k>.png
"""

from pathlib import Path

# run as a script, this file hides the package that it has the name of: it then stands in for it
__path__ = [str(Path(__file__).parent)]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from rich.markup import escape
from sklearn.preprocessing import normalize

from benchmarking.controls import CONTROLS, DEFAULT_CONTROLS, load_controls
from common.cli import console, parse_flags, progress_bar, run_script
from common.clustering import RESOLUTIONS, choose_resolution, cluster_and_score, cluster_cells, shuffle
from common.comparison import thin_synthetic
from common.data import types_of
from common.errors import UserError
from common.judging import judge_runs, once_per_split
from common.metrics.catalogue import HELD, SYNTHETIC
from common.metrics.clustering import AGREEMENT, agreement
from common.metrics.fidelity import compare_on, pooled_pcs
from common.plotting import figures_of, joint_umap
from common.results import read_results, score_rows
from common.runs import Run, load_run
from common.summary import show_beside
from config import RESULTS_DIR, SEED
from data_validation.feature_selection import Method, expressed_genes, select_features, values_for

SCORES = [*AGREEMENT, "n_clusters", "resolution"]
BY_SYNTHETIC, BY_TRAINING, AT_RANDOM = "genes of synthetic cells", "genes of training cells", "random genes"
SHOWN = {"ARI": "ari", "NMI": "nmi", "macro-F1": "macro_f1", "clusters": "n_clusters"}
PUBLISHED_SHOWN = {
    "best ARI": "published_best_ari", "its NMI": "published_best_nmi", "its macro-F1": "published_best_macro_f1",
    "ARI without labels": "published_unsupervised_ari",
}  # fmt: skip
PUBLISHED_PCS, PUBLISHED_NEIGHBORS, PUBLISHED_SEED = 20, 30, 42
PUBLISHED_RANGE = (0.1, 3.0)  # the widest of the four that the published code has for its four data sets

Scores = dict[str, float]
"""metric -> value"""


@dataclass(frozen=True)
class Args:
    """Cluster the synthetic and the held-out real cells of runs, and compare the clusters with the cell types."""

    runs: tuple[Path, ...]
    """folders of runs that held cells out (garage.py --holdout 0.5)"""
    controls: tuple[str, ...] = DEFAULT_CONTROLS
    """generators to fit to the same training cells, for comparison"""
    published: bool = False
    """the published protocol instead: real cells on genes chosen on synthetic ones, resolution swept by the labels"""
    n_genes: int = 100
    """with --published: genes to choose (as published)"""
    step: float = 0.1
    """with --published: step of the resolutions from 0.1 to 3 (0.01 as published)"""
    draws: int = 5
    """with --published: random sets of genes to average over"""
    umap: bool = True
    """draw held-out and synthetic cells of each run on one UMAP"""
    again: bool = False
    """judge controls anew that the table holds already"""
    out: Path | None = None
    """table to write; rows of other runs in it are kept"""


def make_judge() -> Callable[[Run], pd.DataFrame]:
    """Return what judges runs by their own clusters, as `common.judging.judge_runs` takes it."""
    score_held = once_per_split(lambda run: cluster_and_score(compare_on(run.held), types_of(run.held), seed=run.seed))

    def judge(run: Run) -> pd.DataFrame:
        cells = thin_synthetic(run, run.held.n_obs)
        found = cluster_and_score(compare_on(cells), types_of(cells), seed=run.seed)
        return score_rows({SYNTHETIC: (cells.n_obs, found), HELD: (run.held.n_obs, score_held(run))})

    return judge


def choose_genes(cells: AnnData, method: Method, n_genes: int, *, published: bool) -> np.ndarray | None:
    """Choose genes, or None where these cells do not admit it: too few expressed genes, or negative values for cv2.

    Parameters and the column numbers returned as in `feature_selection.select_features`.
    """
    try:
        return select_features(values_for(method, cells, published=published), method, n_genes, published=published)
    except UserError:
        return None


def random_genes(run: Run, n_genes: int, draws: int) -> list[np.ndarray]:
    """Draw sets of genes at random from those that the training cells express.

    Raises
    ------
    UserError
        If they express fewer.
    """
    expressed = np.flatnonzero(run.train.var_names.isin(expressed_genes(run.train)))
    if not 1 <= n_genes <= len(expressed):
        raise UserError(
            f"--n-genes is {n_genes}, but the training cells of {run.folder} express {len(expressed)}: give 1 to "
            f"{len(expressed)}"
        )
    rng = np.random.default_rng(run.seed)
    return [rng.permutation(expressed)[:n_genes] for _ in range(draws)]


def published_grid(step: float) -> list[float]:
    """Return the resolutions of the sweep: 0.1 to 3 by a step, and those that the silhouette chooses from."""
    low, high = PUBLISHED_RANGE
    swept = low + step * np.arange(int((high - low) / step + 1e-9) + 1)
    return sorted({*swept.round(6).tolist(), *RESOLUTIONS})


def published_scores(X: np.ndarray, labels: np.ndarray, resolutions: Sequence[float]) -> Scores:
    """Cluster cells as published, over a sweep of resolutions, and keep what agrees best with the labels.

    20 principal components, graph of 30 neighbours by cosine distance, Leiden with seed 42. As everywhere here, and
    unlike published, every edge of the graph weighs the same.

    Parameters
    ----------
    X
        Log-normalised values of the chosen genes, shape (n_cells, n_genes).
    labels
        Cell types, shape (n_cells,).
    resolutions
        Of the sweep, those of `common.clustering.RESOLUTIONS` among them (`published_grid`).

    Returns
    -------
    published_best_ari with nmi, macro_f1 and resolution of the same clusters: an upper bound that knows the labels; and
    the same four as published_unsupervised_..., at the resolution that the silhouette chose.
    """
    order = shuffle(len(X), PUBLISHED_SEED)
    (pcs,) = pooled_pcs(X[order], n_pcs=PUBLISHED_PCS)
    pcs = normalize(pcs)  # Euclidean neighbours on the unit sphere are those by cosine
    cluster = partial(cluster_cells, pcs, n_neighbors=PUBLISHED_NEIGHBORS, seed=PUBLISHED_SEED)
    swept = {resolution: agreement(labels[order], cluster(resolution=resolution)) for resolution in resolutions}
    best = max(swept, key=lambda resolution: swept[resolution]["ari"])  # the first of equal ones
    chosen = choose_resolution(pcs, n_neighbors=PUBLISHED_NEIGHBORS, seed=PUBLISHED_SEED)
    return {
        f"published_{name}_{metric}": value
        for name, resolution in {"best": best, "unsupervised": chosen}.items()
        for metric, value in (swept[resolution] | {"resolution": resolution}).items()
    }


def mean_scores(found: Sequence[Scores]) -> Scores:
    """Return the mean of each metric."""
    return {metric: float(np.mean([scores[metric] for scores in found])) for metric in found[0]}


def make_published_judge(n_genes: int, step: float, draws: int) -> Callable[[Run], pd.DataFrame]:
    """Return what judges runs by the published protocol, as `common.judging.judge_runs` takes it."""
    resolutions = published_grid(step)

    def score(run: Run, genes: np.ndarray) -> Scores:
        return published_scores(compare_on(run.held)[:, genes], types_of(run.held), resolutions)

    @once_per_split
    def score_real(run: Run) -> dict[str, Scores]:
        found = [score(run, genes) for genes in random_genes(run, n_genes, draws)]
        at_random = mean_scores(found)
        genes = choose_genes(run.train, "cv2", n_genes, published=True)
        chosen = dict.fromkeys(at_random, np.nan) if genes is None else score(run, genes)
        return {BY_TRAINING: chosen, AT_RANDOM: at_random}

    def judge(run: Run) -> pd.DataFrame:
        real = score_real(run)
        genes = choose_genes(thin_synthetic(run, run.held.n_obs), "cv2", n_genes, published=True)
        chosen = dict.fromkeys(real[AT_RANDOM], np.nan) if genes is None else score(run, genes)
        groups = {BY_SYNTHETIC: chosen, **real}
        return score_rows({group: (run.held.n_obs, found) for group, found in groups.items()})

    return judge


def check_settings(path: Path, settings: Mapping[str, float]) -> None:
    """Make sure that a table, if it is there, holds no rows made with other settings.

    Raises
    ------
    UserError
        If it does: its controls would stand beside runs judged otherwise.
    """
    if not path.exists():
        return
    table = read_results(path, made_by="the same command")
    for name, value in settings.items():
        if name not in table or not np.allclose(table[name], value):
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{path} holds rows that were made with another {flag}: give another --out, or remove it")


@run_script
def main(argv: list[str]) -> None:
    """Judge, draw, write, and show the means."""
    args = parse_flags(Args, argv, __doc__)
    settings = _settings(args)
    out = args.out or RESULTS_DIR / "tables" / f"data_validation{'_published' if args.published else ''}.csv"
    check_settings(out, settings)
    judge = make_published_judge(**settings) if args.published else make_judge()
    with progress_bar() as report:
        rows = judge_runs(
            args.runs, lambda run: judge(run).assign(**settings), controls=load_controls(args.controls), path=out,
            again=args.again, report=report,
        )  # fmt: skip
        for step, folder in enumerate(args.runs if args.umap else (), start=1):
            run = load_run(folder)
            name = f"validation_{run.dataset}_{run.method}_seed{run.seed}.png"
            joint_umap(run.held, run.synthetic, figures_of(out) / name, seed=SEED)
            report("drawing", step, len(args.runs))
    if args.published:
        shown, title = [BY_TRAINING, AT_RANDOM], f"{HELD} on {BY_SYNTHETIC}"
        show_beside(rows, BY_SYNTHETIC, shown, PUBLISHED_SHOWN, controls=CONTROLS, title=title)
    else:
        show_beside(rows, SYNTHETIC, [HELD], SHOWN, controls=CONTROLS, title=SYNTHETIC)
    drawn = f", pictures to {figures_of(out)}" if args.umap else ""
    console.print(f"wrote {escape(str(out))}{escape(drawn)}", soft_wrap=True)


def _settings(args: Args) -> dict[str, Any]:
    """Return the settings of the published protocol; there are none without it."""
    given = {name: getattr(args, name) for name in ("n_genes", "step", "draws")}
    if args.published:
        if not 0.001 <= args.step <= 1 or args.draws < 1:
            raise UserError(f"--step is {args.step} and --draws {args.draws}: give 0.001 to 1, and at least 1")
        return given
    for name, value in given.items():
        if value != getattr(Args, name):
            raise UserError(f"--{name.replace('_', '-')} is a setting of the published protocol: add --published")
    return {}


if __name__ == "__main__":
    main()
