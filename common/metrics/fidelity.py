"""How far synthetic cells can be told from held-out real ones.

Cells are compared on log-normalised values (`compare_on`) and on the principal components of all cells together
(`pooled_pcs`): components of the real cells alone would hide whatever the synthetic cells do outside their span.
"""

import numpy as np
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors

from common.scale import to_log

TARGET_SUM = 1e3  # library size to which counts are scaled before log1p
N_PCS = 30
N_TREES = 400


def compare_on(cells: AnnData) -> np.ndarray:
    """Return log-normalised values of shape (n_cells, n_genes): counts scaled to 1,000 a cell, then log1p."""
    values: np.ndarray = to_log(cells.X, cells.uns["scale"], TARGET_SUM).toarray()
    return values


def pooled_pcs(*groups: np.ndarray, n_pcs: int = N_PCS) -> list[np.ndarray]:
    """Return the principal components of groups of cells (n_cells, n_genes), fitted on all of them together."""
    pooled = np.concatenate(groups)
    pca = PCA(min(n_pcs, *(size - 1 for size in pooled.shape)), random_state=0).fit(pooled)
    return [pca.transform(group) for group in groups]


def rf_auroc(real: np.ndarray, synthetic: np.ndarray, *, seed: int) -> float:
    """Area under the ROC curve of a random forest that tells real from synthetic cells, out of fold (5 folds).

    From 0 to 1; 0.5 is the ideal: the forest can do no better than guess. Cells of the larger group are left out at
    random until both are equal.

    Parameters
    ----------
    real, synthetic
        Shape (n_cells, n_features), real cells that the generator has not seen.
    """
    rng = np.random.default_rng(seed)
    n = min(len(real), len(synthetic))
    X = np.concatenate([group[rng.permutation(len(group))[:n]] for group in (real, synthetic)])
    is_synthetic = np.repeat([0, 1], n)
    forest = RandomForestClassifier(N_TREES, n_jobs=-1, random_state=seed)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    chance = cross_val_predict(forest, X, is_synthetic, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(is_synthetic, chance))


def coverage(real: np.ndarray, synthetic: np.ndarray, *, k: int = 5) -> float:
    """Share of real cells that have a synthetic cell nearer than their k-th real neighbour (Naeem et al. 2020).

    From 0 to 1, higher is better; for two samples of one distribution about 1 - 2^-k.

    Parameters
    ----------
    real, synthetic
        Shape (n_cells, n_features), real cells that the generator has not seen.
    """
    radius = NearestNeighbors(n_neighbors=k).fit(real).kneighbors()[0][:, -1]
    nearest = NearestNeighbors(n_neighbors=1).fit(synthetic).kneighbors(real)[0][:, 0]
    return float((nearest < radius).mean())
