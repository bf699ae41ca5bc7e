"""How far synthetic cells can be told from held-out real ones.

Cells are compared on log-normalised values (`compare_on`) and on the principal components of held-out and synthetic
cells together (`pooled_pcs`): components of the real cells alone would hide whatever the synthetic cells do outside
their span, and only on components of both can new cells of the same distribution not be told from the held-out ones,
however few there are. All functions take two groups of cells, as many of one as of the other where
their numbers matter (`common.evaluation` sees to it): distances between finite samples shrink with the number of cells.

Ranges, directions and sources of the metrics stand in `catalogue.py`.
"""

import numpy as np
from anndata import AnnData
from scipy.spatial.distance import cdist, pdist
from scipy.stats import ks_2samp
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors

from common.scale import to_log

TARGET_SUM = 1e3  # library size to which counts are scaled before log1p
N_PCS = 30
N_TREES = 400
N_FOLDS = 5
N_PROJECTIONS = 200
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the MMD's kernels, in median squared distances between real cells
LISI_NEIGHBORS = 30
COVERAGE_NEIGHBORS = 5
CORRELATED_GENES = 200
FEWEST_CELLS = 10  # below, a variance or a correlation within a type says nothing


def compare_on(cells: AnnData) -> np.ndarray:
    """Return log-normalised values of shape (n_cells, n_genes): counts scaled to 1,000 a cell, then log1p."""
    values: np.ndarray = to_log(cells.X, cells.uns["scale"], TARGET_SUM).toarray()
    return values


def pooled_pcs(*groups: np.ndarray, n_pcs: int = N_PCS) -> list[np.ndarray]:
    """Return the principal components of groups of cells (n_cells, n_genes), fitted on all of them together."""
    return project(np.concatenate(groups), *groups, n_pcs=n_pcs)


def project(reference: np.ndarray, *groups: np.ndarray, n_pcs: int = N_PCS) -> list[np.ndarray]:
    """Return groups of cells (n_cells, n_genes) on the principal components of reference cells."""
    pca = PCA(min(n_pcs, *(size - 1 for size in reference.shape)), random_state=0).fit(reference)
    return [pca.transform(group) for group in groups]


def wasserstein(real: np.ndarray, synthetic: np.ndarray, *, p: int) -> float:
    """Exact Wasserstein distance of order p with Euclidean ground distance, every cell weighing the same.

    At least 0; two finite samples of one distribution are apart, the more so the more dimensions: compare with the real
    training half. A shift of all cells by a vector c gives its length (Villani 2009; solved by POT, Flamary 2021).

    Parameters
    ----------
    real, synthetic
        Shape (n_cells, n_features).
    p
        1 or 2.
    """
    import ot  # a second, most of it JAX where there is one: only those who ask for a distance should wait

    cost = cdist(real, synthetic) ** p
    return float(ot.emd2(ot.unif(len(real)), ot.unif(len(synthetic)), cost, numItermax=2_000_000) ** (1 / p))


def sliced_wasserstein(real: np.ndarray, synthetic: np.ndarray, *, seed: int) -> float:
    """Mean Wasserstein distance of order 1 between projections on 200 random directions (Bonneel et al. 2015).

    At least 0, lower is better. Shapes as in `wasserstein`.
    """
    import ot  # as above

    return float(ot.sliced_wasserstein_distance(real, synthetic, n_projections=N_PROJECTIONS, p=1, seed=seed))


def median_squared_distance(real: np.ndarray) -> float:
    """Median squared distance between real cells (n_cells, n_features): the unit of the MMD's bandwidths."""
    return float(np.median(pdist(real, "sqeuclidean")))


def mmd(real: np.ndarray, synthetic: np.ndarray, *, unit: float) -> float:
    """Unbiased squared maximum mean discrepancy, mean over five Gaussian kernels (Gretton et al. 2012).

    About 0 for two samples of one distribution, and below as often as above; lower is better.

    Parameters
    ----------
    real, synthetic
        Shape (n_cells, n_features), two cells at least.
    unit
        Of the squared bandwidths, from real cells only (`median_squared_distance`): a bandwidth that saw the synthetic
        cells would be another measure for each generator, wider and milder for the bad ones. NaN if it is 0.
    """
    if not unit > 0:
        return float("nan")
    within, without, between = (
        cdist(a, b, "sqeuclidean") / unit for a, b in ((real, real), (synthetic, synthetic), (real, synthetic))
    )
    n, m = between.shape
    value = 0.0
    for s in BANDWIDTHS:
        # the cells' kernels with themselves are 1
        value += (np.exp(-within / s).sum() - n) / (n * (n - 1)) + (np.exp(-without / s).sum() - m) / (m * (m - 1))
        value -= 2 * np.exp(-between / s).mean()
    return float(value / len(BANDWIDTHS))


def forest_scores(real: np.ndarray, synthetic: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Chance of being synthetic that a random forest gives each cell, out of fold (400 trees, 5 folds).

    Parameters
    ----------
    real, synthetic
        Shape (n_cells, n_features), real cells that the generator has not seen.

    Returns
    -------
    For real, then synthetic cells, shape (n_cells,). NaN if there are fewer cells than folds of either.
    """
    if min(len(real), len(synthetic)) < N_FOLDS:
        return np.full(len(real), np.nan), np.full(len(synthetic), np.nan)
    X = np.concatenate([real, synthetic])
    is_synthetic = np.repeat([0, 1], [len(real), len(synthetic)])
    forest = RandomForestClassifier(N_TREES, n_jobs=-1, random_state=seed)
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed)
    scores = cross_val_predict(forest, X, is_synthetic, cv=folds, method="predict_proba")[:, 1]
    return scores[: len(real)], scores[len(real) :]


def auroc(negatives: np.ndarray, positives: np.ndarray) -> float:
    """Area under the ROC curve: chance that a positive scores above a negative, ties counting half.

    Scores that are NaN do not count; NaN if there are none left of either.
    """
    negatives, positives = negatives[~np.isnan(negatives)], positives[~np.isnan(positives)]
    if not len(negatives) or not len(positives):
        return float("nan")
    labels = np.repeat([0, 1], [len(negatives), len(positives)])
    return float(roc_auc_score(labels, np.concatenate([negatives, positives])))


def lisi(real: np.ndarray, synthetic: np.ndarray, *, seed: int) -> float:
    """Mean inverse Simpson index of real and synthetic among the 30 nearest cells of a cell (Korsunsky et al. 2019).

    From 1 (apart) to 2 (mixed), higher is better. Neighbours weigh the same here, the original weighs them by distance;
    two samples of one distribution reach about 1.94, for a sample of 30 is seldom half and half.

    Parameters
    ----------
    real, synthetic
        Shape (n_cells, n_features); the larger group is thinned at random to the number of the smaller.
    """
    rng, n = np.random.default_rng(seed), min(len(real), len(synthetic))
    X = np.concatenate([group[rng.permutation(len(group))[:n]] for group in (real, synthetic)])
    k = min(LISI_NEIGHBORS, len(X) - 1)
    neighbors = NearestNeighbors(n_neighbors=k).fit(X).kneighbors(return_distance=False)
    share = (neighbors >= n).mean(1)
    return float((1 / (share**2 + (1 - share) ** 2)).mean())


def density_coverage(real: np.ndarray, synthetic: np.ndarray) -> tuple[float, float]:
    """Density and coverage of real cells by synthetic ones (Naeem et al. 2020), with 5 neighbours.

    Density: synthetic cells within a real cell's neighbourhood, a fifth of them, averaged over the synthetic cells: at
    least 0, about 1 for two samples of one distribution, above where synthetic cells crowd. Coverage: share of real
    cells with a synthetic cell in their neighbourhood, from 0 to 1, about 1 - 2^-5 at best. A neighbourhood reaches to
    the fifth real neighbour. NaN with fewer than six real cells.

    Parameters
    ----------
    real, synthetic
        Shape (n_cells, n_features), real cells that the generator has not seen.
    """
    if len(real) <= COVERAGE_NEIGHBORS:
        return float("nan"), float("nan")
    radius = NearestNeighbors(n_neighbors=COVERAGE_NEIGHBORS).fit(real).kneighbors()[0][:, -1]
    inside = cdist(real, synthetic) < radius[:, None]
    return float(inside.sum() / (COVERAGE_NEIGHBORS * len(synthetic))), float(inside.any(1).mean())


def concordance(a: np.ndarray, b: np.ndarray) -> float:
    """Concordance correlation coefficient of two vectors (Lin 1989): 1 only if they are equal, 0 without relation.

    From -1 to 1, higher is better; unlike a correlation it falls with a shift or a change of spread.
    """
    apart = a.var() + b.var() + (a.mean() - b.mean()) ** 2
    return float(2 * ((a - a.mean()) * (b - b.mean())).mean() / apart) if apart > 0 else 1.0


def gene_agreement(real: np.ndarray, synthetic: np.ndarray) -> dict[str, float]:
    """Concordance over genes of mean, variance and share of zeros, on log-normalised values (n_cells, n_genes)."""
    return {
        "gene_mean": concordance(real.mean(0), synthetic.mean(0)),
        "gene_variance": concordance(real.var(0), synthetic.var(0)),
        "gene_zeros": concordance((real == 0).mean(0), (synthetic == 0).mean(0)),
    }


def correlation_agreement(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Concordance of the gene-gene correlations among the 200 genes that vary most in the real cells.

    From -1 to 1, higher is better; a gene that does not vary is taken to correlate with none. NaN with fewer than ten
    cells on a side.

    Parameters
    ----------
    real, synthetic
        Log-normalised values of shape (n_cells, n_genes).
    """
    if min(len(real), len(synthetic)) < FEWEST_CELLS or real.shape[1] < 2:
        return float("nan")
    genes = np.argsort(-real.var(0), kind="stable")[:CORRELATED_GENES]
    pairs = np.triu_indices(len(genes), 1)

    def correlations(X: np.ndarray) -> np.ndarray:
        centred = X[:, genes].astype(np.float64)
        centred -= centred.mean(0)
        length = np.linalg.norm(centred, axis=0)
        scaled = centred / np.where(length > 0, length, 1.0)
        found: np.ndarray = (scaled.T @ scaled)[pairs]
        return found

    return concordance(correlations(real), correlations(synthetic))


def library_sizes(cells: AnnData) -> np.ndarray:
    """Sum of each cell's counts or linear values, shape (n_cells,); of expm1 of log values. NaN for scaled values."""
    if cells.uns["scale"] == "scaled":
        return np.full(cells.n_obs, np.nan)
    X = cells.X.expm1() if cells.uns["scale"] == "log" else cells.X
    return np.asarray(X.sum(1, dtype=np.float64)).ravel()


def ks_distance(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples: from 0 to 1, lower is better. NaN if a sample is empty or NaN."""
    if not len(real) or not len(synthetic) or np.isnan(real).any():
        return float("nan")
    return float(ks_2samp(real, synthetic).statistic)
