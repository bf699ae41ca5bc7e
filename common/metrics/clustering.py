"""How well clusters found without labels agree with the cell types. Clusters may have any names."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix


def ari(types: np.ndarray, clusters: np.ndarray) -> float:
    """Adjusted Rand index (Hubert & Arabie 1985): at most 1, about 0 for random clusters, higher is better.

    NaN without cells.

    Parameters
    ----------
    types, clusters
        One name a cell, shape (n_cells,).
    """
    return float(adjusted_rand_score(types, clusters)) if len(types) else float("nan")


def nmi(types: np.ndarray, clusters: np.ndarray) -> float:
    """Mutual information over the mean of the two entropies: from 0 to 1, higher is better (Strehl & Ghosh 2002).

    It grows with the number of clusters even when they are random (Vinh et al. 2010); read it beside the `ari`, whose
    parameters it takes.
    """
    return float(normalized_mutual_info_score(types, clusters)) if len(types) else float("nan")


def macro_f1(types: np.ndarray, clusters: np.ndarray) -> float:
    """Mean F1 over types, each matched with a cluster of its own so that the mean is the best one (Kuhn 1955).

    From 0 to 1, higher is better, every type weighing the same. Cells of clusters left over are wrong; a type left over
    has F1 0. Parameters as in `ari`.
    """
    if not len(types):
        return float("nan")
    shared = contingency_matrix(types, clusters)
    # a matched pair's F1 takes nothing from the other pairs, so the best sum of F1 is an assignment problem
    f1 = 2 * shared / (shared.sum(1, keepdims=True) + shared.sum(0))
    return float(f1[linear_sum_assignment(f1, maximize=True)].sum() / len(f1))


AGREEMENT = {"ari": ari, "nmi": nmi, "macro_f1": macro_f1}


def agreement(types: np.ndarray, clusters: np.ndarray) -> dict[str, float]:
    """Compute `ari`, `nmi` and `macro_f1`."""
    return {name: metric(types, clusters) for name, metric in AGREEMENT.items()}
