"""Judge synthetic cells by held-out real ones: every metric, every group of cells, the same settings for everyone."""

import warnings
from collections.abc import Collection, Iterable, Iterator
from itertools import chain

import numpy as np
import pandas as pd
from anndata import AnnData

from common.clustering import cluster_blindly
from common.comparison import View, compare, make_views, thin_synthetic
from common.data import rare_types, types_of
from common.metrics import clustering, fidelity, privacy, utility
from common.metrics.catalogue import ALL, HELD, METRICS, OTHERS, RARE, SEEDS, Computed, Scores
from common.runs import Run

GROUPWISE = [name for name, metric in METRICS.items() if metric.family == "fidelity" and name != "types_present"]


def evaluate(run: Run, *, families: Collection[Computed]) -> pd.DataFrame:
    """Compute every metric of some families.

    Parameters
    ----------
    run
        Synthetic cells, those that the generator saw and those that nothing has seen. Of more synthetic than training
        cells, a random subset of their number is taken, so that no generator wins by drawing more. Its seed is that of
        random forests, projections, subsets and clusters too.
    families
        Of `common.metrics.catalogue.METRICS`.

    Returns
    -------
    One row a metric and group of cells: columns group, metric, n (held-out cells of the group; training cells where it
    is one of those) and value. A value that cannot be known, such as that of a type with too few cells, is NaN.
    """
    train, held, drawn = make_views(run.train, run.held, thin_synthetic(run, run.train.n_obs))
    rare = find_rare(run)
    scores: Scores = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # constant genes, types of one cell: NaN says it
        if "fidelity" in families:
            scores |= _fidelity(run, rare)
        if "utility" in families:
            scores |= _utility(run, train, held, drawn, rare)
        if "privacy" in families:
            scores |= _privacy(run, train, held, drawn)
        if "clustering" in families:
            scores |= _clustering(held, drawn, run.seed)
    groups = _groups(held.labels, np.unique(held.labels), rare)
    sizes = {group: int(mask.sum()) for group, mask in groups} | _sizes_of_records(run)
    rows = [(group, metric, sizes.get(group, 0), value) for (metric, group), value in scores.items()]
    return pd.DataFrame(rows, columns=["group", "metric", "n", "value"])


def find_rare(run: Run) -> list[str]:
    """Return the names of the rare types, counted over all real cells of a run."""
    labels = np.concatenate([types_of(cells) for cells in (run.train, run.held)])
    names, codes = np.unique(labels, return_inverse=True)
    found: list[str] = names[np.unique(codes[rare_types(codes, run.rare_threshold)])].tolist()
    return found


def _groups(labels: np.ndarray, types: Iterable[str], rare: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name of every group of cells, and its mask on cells with given labels."""
    yield ALL, np.ones(len(labels), bool)
    yield RARE, np.isin(labels, rare)
    for name in sorted(types):
        yield name, labels == name


def _fidelity(run: Run, rare: list[str]) -> Scores:
    real, drawn = compare(run)
    told = {  # by one forest, whose verdict on a type's cells stands on its own
        f"rf_auroc_{space}": fidelity.forest_scores(getattr(real, space), getattr(drawn, space), seed=run.seed)
        for space in ("genes", "pcs")
    }
    types = np.unique(types_of(run.held))
    groups = zip(_groups(real.labels, types, rare), _groups(drawn.labels, types, rare), strict=True)
    trained = run.train.obs["cell_type"].unique()
    scores: Scores = {("types_present", ALL): float(np.isin(trained, run.synthetic.obs["cell_type"]).mean())}
    for (group, of_real), (_, of_drawn) in groups:
        found = {metric: fidelity.auroc(a[of_real], b[of_drawn]) for metric, (a, b) in told.items()}
        found |= _compare(real.take(of_real), drawn.take(of_drawn), run.seed)
        scores |= {(metric, group): found.get(metric, np.nan) for metric in GROUPWISE}
    return scores


def _compare(real: View, drawn: View, seed: int) -> dict[str, float]:
    found = {"library_size": fidelity.ks_distance(real.sizes, drawn.sizes)}
    if min(len(real), len(drawn)) < 2:
        return found
    density, coverage = fidelity.density_coverage(real.pcs, drawn.pcs)
    unit = fidelity.median_squared_distance(real.pcs)
    return found | {
        "w1_pcs": fidelity.wasserstein(real.pcs, drawn.pcs, p=1),
        "w2_pcs": fidelity.wasserstein(real.pcs, drawn.pcs, p=2),
        "sliced_w1_pcs": fidelity.sliced_wasserstein(real.pcs, drawn.pcs, seed=seed),
        "mmd_pcs": fidelity.mmd(real.pcs, drawn.pcs, unit=unit),
        "lisi_pcs": fidelity.lisi(real.pcs, drawn.pcs, seed=seed),
        "density_pcs": density,
        "coverage_pcs": coverage,
        **fidelity.gene_agreement(real.genes, drawn.genes),
        "gene_correlation": fidelity.correlation_agreement(real.genes, drawn.genes),
    }


def _utility(run: Run, train: View, held: View, drawn: View, rare: list[str]) -> Scores:
    real, unseen, synthetic = ((view.pcs, view.labels) for view in (train, held, drawn))
    # what real cells alone teach must not depend on the synthetic ones beside which it is set
    of_real = fidelity.project(train.genes, train.genes, drawn.genes, held.genes)
    augmented = zip(of_real, (train.labels, drawn.labels, held.labels), strict=True)
    per_10k = ((view.per_10k, view.labels) for view in (train, drawn, held))
    recovered = utility.lfc_recovery(*chain.from_iterable(per_10k), rare=rare)
    if run.held.uns["scale"] == "scaled":  # which has no fold changes
        recovered = dict.fromkeys(recovered, np.nan)
    return recovered | (
        utility.train_on_synthetic(*synthetic, *unseen, rare=rare, seed=run.seed)
        | utility.augmentation(*chain.from_iterable(augmented), rare=rare, seed=run.seed)
        | utility.label_agreement(*real, *synthetic, *unseen, rare=rare, seed=run.seed)
    )


def _has_counterpart(run: Run, cells: AnnData) -> np.ndarray:
    """Tell which cells are of a type that was held out, too: one of a single cell never is."""
    found: np.ndarray = cells.obs["cell_type"].isin(run.held.obs["cell_type"]).to_numpy()
    return found


def _is_seed(run: Run) -> np.ndarray | None:
    """Tell which of the training cells that have a counterpart were seeds."""
    if run.seeds is None:
        return None
    is_seed: np.ndarray = run.train.obs_names.isin(run.seeds["cell"][run.seeds["is_seed"]])
    return is_seed[_has_counterpart(run, run.train)]


def _sizes_of_records(run: Run) -> dict[str, int]:
    """Return the number of cells in the groups of `privacy.exposure`."""
    is_seed, sizes = _is_seed(run), {HELD: run.held.n_obs}
    return sizes if is_seed is None else sizes | {SEEDS: int(is_seed.sum()), OTHERS: int((~is_seed).sum())}


def _privacy(run: Run, train: View, held: View, drawn: View) -> Scores:
    """Measure privacy on types with cells on both sides: of others all would seem copied, whatever a generator does."""
    shared = np.unique(held.labels)
    pcs = [view.pcs[np.isin(view.labels, shared)] for view in (train, held, drawn)]
    return {
        ("copies", ALL): privacy.copies(train.X, drawn.X),
        **privacy.nearness(*pcs, seed=run.seed),
        **privacy.exposure(*pcs, is_seed=_is_seed(run), seed=run.seed),
    }


def _clustering(held: View, drawn: View, seed: int) -> Scores:
    """Score the clusters of the synthetic cells, and those of as many held-out cells for reference."""
    n, rng = min(len(held), len(drawn)), np.random.default_rng(seed)
    held, drawn = held.thin(n, rng), drawn.thin(n, rng)
    of_held, of_drawn = (
        clustering.agreement(view.labels, cluster_blindly(view.genes, seed=seed)[0]) for view in (held, drawn)
    )
    groups = {ALL: of_drawn | {"ari_gap": abs(of_drawn["ari"] - of_held["ari"])}, HELD: of_held}
    return {(metric, group): value for group, found in groups.items() for metric, value in found.items()}
