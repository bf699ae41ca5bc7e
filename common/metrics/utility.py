"""What synthetic cells are good for: to train a classifier of cell types on, and to find the genes of a type.

Everything is judged on held-out real cells. Every value is given for each of their types, under "all cells" as the mean
over types, each weighing the same, and under "rare cells" as the mean over the rare ones.
"""

from collections.abc import Collection, Iterable

import numpy as np
from scipy.stats import rankdata
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import f1_score, recall_score

from common.metrics.catalogue import ALL, RARE, Scores

N_TREES = 300
TARGET_SUM = 1e4  # library size for log-fold changes, as in Seurat and scanpy
PSEUDOCOUNT = 1.0
N_MARKERS = 50
FEWEST_CELLS = 3  # a type with fewer held-out cells has no log-fold change or share worth a comparison, as in Seurat


def train_on_synthetic(
    synthetic: np.ndarray, synthetic_labels: np.ndarray, held: np.ndarray, held_labels: np.ndarray, *,
    rare: Collection[str], seed: int,
) -> Scores:  # fmt: skip
    """Train a classifier on synthetic cells, test it on held-out real ones (TSTR, Esteban et al. 2017).

    Parameters
    ----------
    synthetic, held
        Shape (n_cells, n_pcs), components of all cells together.
    synthetic_labels, held_labels
        Cell types, shape (n_cells,).
    rare
        Names of the rare types.
    seed
        Of the balanced random forest (Chen, Liaw & Breiman 2004: every tree weighs the types alike; 300 trees).

    Returns
    -------
    tstr_f1 and tstr_recall: from 0 to 1, higher is better, at best those of the real training cells. A type that is
    never predicted has 0. NaN for "rare cells" if none are held out.
    """
    predicted = _classify(synthetic, synthetic_labels, held, seed)
    f1, recall = _by_type(predicted, held_labels)
    return _scores("tstr_f1", f1, rare) | _scores("tstr_recall", recall, rare)


def augmentation(
    training: np.ndarray, training_labels: np.ndarray, synthetic: np.ndarray, synthetic_labels: np.ndarray,
    held: np.ndarray, held_labels: np.ndarray, *, rare: Collection[str], seed: int,
) -> Scores:  # fmt: skip
    """Train a classifier on real training cells with and without synthetic ones, test it on held-out real ones.

    Parameters as in `train_on_synthetic`; `training` are the cells that the generator learnt from.

    Returns
    -------
    augmentation_f1 and augmentation_recall: what the synthetic cells gain, from -1 to 1, higher is better; 0 if they
    change nothing.
    """
    without = _by_type(_classify(training, training_labels, held, seed), held_labels)
    both, both_labels = np.concatenate([training, synthetic]), np.concatenate([training_labels, synthetic_labels])
    f1, recall = (
        {name: after[name] - before[name] for name in before}
        for before, after in zip(without, _by_type(_classify(both, both_labels, held, seed), held_labels), strict=True)
    )
    return _scores("augmentation_f1", f1, rare) | _scores("augmentation_recall", recall, rare)


def label_agreement(
    training: np.ndarray, training_labels: np.ndarray, synthetic: np.ndarray, synthetic_labels: np.ndarray,
    held: np.ndarray, held_labels: np.ndarray, *, rare: Collection[str], seed: int,
) -> Scores:  # fmt: skip
    """Ask a classifier of real training cells for synthetic cells' types: is it as often right as of held-out ones?

    New real cells do not agree in full with it where types overlap. Copies of training cells do, for a forest knows its
    training cells by heart, and so do caricatures, cells of a type that vary too little; so more is not better.

    Parameters
    ----------
    training, synthetic, held
        Coordinates, shape (n_cells, n_features), on components of all three together: on those of real cells alone,
        what synthetic cells do outside their span would not be seen. The share of held-out cells moves with them (.64
        to .67 among generators of half of pbmc68k).

    Returns
    -------
    label_agreement_gap: how far the share of a type's synthetic cells that are taken for it lies from that of its
    held-out cells; from 0 to 1, lower is better. A type without synthetic cells has a share of 0. NaN for types with
    fewer than three held-out cells.
    """
    both = np.concatenate([synthetic, held])
    predicted = np.split(_classify(training, training_labels, both, seed), [len(synthetic)])
    gaps = {}
    for name, size in zip(*np.unique(held_labels, return_counts=True), strict=True):
        of_drawn, of_held = (
            (found[labels == name] == name).mean() if (labels == name).any() else 0.0
            for found, labels in zip(predicted, (synthetic_labels, held_labels), strict=True)
        )
        gaps[str(name)] = abs(of_drawn - of_held) if size >= FEWEST_CELLS else np.nan
    return _scores("label_agreement_gap", gaps, rare)


def log_fold_changes(normalised: np.ndarray, labels: np.ndarray, types: Collection[str]) -> np.ndarray:
    """Log2 of the mean expression in a type over that in all other cells, 1 added to each (Seurat, Hao et al. 2021).

    Parameters
    ----------
    normalised
        log1p of counts scaled to `TARGET_SUM` (10,000) a cell, shape (n_cells, n_genes); means are taken of the counts.
    labels
        Cell types, shape (n_cells,).
    types
        Names of types.

    Returns
    -------
    Shape (n_types, n_genes); NaN for a type that no cell is of, or every cell.
    """
    of_type, counts = _membership(labels, types), np.expm1(normalised, dtype=np.float64)
    inside, n = of_type @ counts, of_type.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        outside = (counts.sum(0) - inside) / (len(counts) - n)
        change: np.ndarray = np.log2((inside / n + PSEUDOCOUNT) / (outside + PSEUDOCOUNT))
    return change


def rank_sum_scores(normalised: np.ndarray, labels: np.ndarray, types: Collection[str]) -> np.ndarray:
    """Wilcoxon's rank-sum z-score of each gene in a type against all other cells, as scanpy gives it.

    Not corrected for ties, so that a type's genes are in the order of their AUROC. Parameters and shape as in
    `log_fold_changes`; any monotone scale gives the same.
    """
    of_type, n_cells = _membership(labels, types), len(labels)
    n = of_type.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        z: np.ndarray = (of_type @ rankdata(normalised, axis=0) - n * (n_cells + 1) / 2) / np.sqrt(
            n * (n_cells - n) * (n_cells + 1) / 12
        )
    return z


def lfc_recovery(
    training: np.ndarray, training_labels: np.ndarray, synthetic: np.ndarray, synthetic_labels: np.ndarray,
    held: np.ndarray, held_labels: np.ndarray, *, rare: Collection[str],
) -> Scores:  # fmt: skip
    """Compare log-fold changes of the types' marker genes between synthetic and held-out real cells.

    A type's markers are the 50 genes that rank highest in it against all other real cells, training and held-out
    together (`rank_sum_scores`, upregulated ones only). Markers chosen on the held-out cells alone would have their
    log-fold changes overestimated there and nowhere else, and the slope of any other real cells would lie below 1; so
    chosen, the two real halves are equals. For the same reason the slope is that of the line through the origin with
    the least squared distance at right angles (Deming's regression for errors of equal variance): ordinary least
    squares takes the held-out log-fold changes for exact, and their errors would flatten the slope. Halves of pbmc3k,
    baron_mouse and pollen then reach 1.03, 1.01 and 1.00 (least squares with an intercept, markers of the held-out
    cells: 0.94, 0.93, 0.83).

    Parameters
    ----------
    training, synthetic, held
        log1p of counts scaled to `TARGET_SUM` (10,000) a cell, shape (n_cells, n_genes).
    training_labels, synthetic_labels, held_labels
        Cell types, shape (n_cells,).
    rare
        Names of the rare types.

    Returns
    -------
    NaN for types with fewer than three held-out cells; 0, the value of cells that know nothing, for types without
    synthetic ones:

    lfc_slope
        Ideally 1; below it synthetic types differ less than real ones do, above it more.
    lfc_correlation
        Pearson correlation over the markers: from -1 to 1, higher is better. 0 if the synthetic ones are all the same.
    marker_overlap
        Share of the 50 markers of held-out cells alone that are among as many of synthetic cells alone: from 0 to 1,
        higher is better. Two samples are far from 1: compare with the real training half.
    """
    types, sizes = np.unique(held_labels, return_counts=True)
    pooled, pooled_labels = np.concatenate([training, held]), np.concatenate([training_labels, held_labels])
    markers = _top_genes(rank_sum_scores(pooled, pooled_labels, types))
    tops = [_top_genes(rank_sum_scores(*of, types)) for of in ((held, held_labels), (synthetic, synthetic_labels))]
    real, drawn = (log_fold_changes(*of, types) for of in ((held, held_labels), (synthetic, synthetic_labels)))
    slope, correlation, overlap = ({name: float("nan") for name in types.tolist()} for _ in range(3))
    for i, name in enumerate(types.tolist()):
        if sizes[i] < FEWEST_CELLS or np.isnan(real[i][markers[i]]).any():
            continue
        x, y = real[i][markers[i]], np.nan_to_num(drawn[i][markers[i]])
        slope[name], correlation[name] = _slope(x, y), _correlation(x, y)
        overlap[name] = _mean(np.isin(tops[0][i], tops[1][i][: len(tops[0][i])]))
    return (
        _scores("lfc_slope", slope, rare)
        | _scores("lfc_correlation", correlation, rare)
        | _scores("marker_overlap", overlap, rare)
    )


def _classify(X: np.ndarray, labels: np.ndarray, unknown: np.ndarray, seed: int) -> np.ndarray:
    if not len(X) or not len(unknown):
        return np.full(len(unknown), "")  # no type
    forest = RandomForestClassifier(N_TREES, class_weight="balanced_subsample", n_jobs=-1, random_state=seed)
    predicted: np.ndarray = forest.fit(X, labels).predict(unknown)
    return predicted


def _by_type(predicted: np.ndarray, labels: np.ndarray) -> list[dict[str, float]]:
    """Return F1 and recall of each type."""
    types = np.unique(labels)
    if not len(types):
        return [{}, {}]
    return [
        dict(zip(types.tolist(), score(labels, predicted, labels=types, average=None, zero_division=0), strict=True))
        for score in (f1_score, recall_score)
    ]


def _scores(metric: str, values: dict[str, float], rare: Collection[str]) -> Scores:
    return {
        (metric, ALL): _mean(values.values()),
        (metric, RARE): _mean(value for name, value in values.items() if name in rare),
        **{(metric, name): float(value) for name, value in values.items()},
    }


def _mean(values: Iterable[float] | np.ndarray) -> float:
    """Return the mean of those that are known."""
    known = np.array([value for value in values if not np.isnan(value)])
    return float(known.mean()) if len(known) else float("nan")


def _membership(labels: np.ndarray, types: Collection[str]) -> np.ndarray:
    return np.array([labels == name for name in types], dtype=np.float64).reshape(len(types), len(labels))


def _top_genes(scores: np.ndarray) -> list[np.ndarray]:
    """Return each type's genes with the highest scores above 0, best first."""
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, :N_MARKERS]
    return [genes[row[genes] > 0] for genes, row in zip(ranked, scores, strict=True)]


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Return the slope of the line through the origin that is nearest to the points, at right angles."""
    return float(np.tan(np.arctan2(2 * x @ y, x @ x - y @ y) / 2)) if len(x) else float("nan")


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 2 or np.ptp(x) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(y) > 0 else 0.0
