"""Leiden clusters of cells, their resolution chosen without knowledge of the cell types, and how they fit these."""

import numpy as np
import scanpy as sc
from anndata import AnnData
from scipy import sparse
from sklearn.metrics import silhouette_score
from sklearn.neighbors import kneighbors_graph

from common.metrics.clustering import agreement
from common.metrics.fidelity import pooled_pcs
from common.threads import torch_threads_kept

RESOLUTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
N_NEIGHBORS = 15  # of a cell, in graphs that are clustered
SILHOUETTE_CELLS = 3000  # of more, a random subset is taken: the width needs the distances of all pairs


def cluster_blindly(X: np.ndarray, *, seed: int) -> tuple[np.ndarray, float]:
    """Cluster cells by Leiden on their principal components, at the resolution that the silhouette prefers.

    Parameters
    ----------
    X
        Log-normalised values of shape (n_cells, n_genes).
    seed
        Of the order in which the cells are taken, and of Leiden.

    Returns
    -------
    Cluster of each cell, shape (n_cells,), and the resolution. Cells without any difference are one cluster, of no
    resolution (NaN).
    """
    if not np.ptp(X, axis=0).any():
        return np.full(len(X), "0"), np.nan
    order = shuffle(len(X), seed)
    (pcs,) = pooled_pcs(X[order])
    resolution = choose_resolution(pcs, n_neighbors=N_NEIGHBORS, seed=seed)
    clusters = cluster_cells(pcs, n_neighbors=N_NEIGHBORS, resolution=resolution, seed=seed)
    return clusters[np.argsort(order)], resolution


def cluster_and_score(X: np.ndarray, labels: np.ndarray, *, seed: int) -> dict[str, float]:
    """Cluster cells without their labels (`cluster_blindly`), then compare the clusters with the labels.

    Parameters
    ----------
    labels
        Cell types, shape (n_cells,).

    Returns
    -------
    ari, nmi and macro_f1 (`common.metrics.clustering`), n_clusters and resolution.
    """
    clusters, resolution = cluster_blindly(X, seed=seed)
    return agreement(labels, clusters) | {"n_clusters": len(np.unique(clusters)), "resolution": resolution}


def shuffle(n_cells: int, seed: int) -> np.ndarray:
    """Return a random order: files are often sorted by type, which would settle ties between equal cells."""
    return np.random.default_rng(seed).permutation(n_cells)


def cluster_cells(pcs: np.ndarray, *, n_neighbors: int, resolution: float, seed: int) -> np.ndarray:
    """Cluster cells by Leiden (Traag et al. 2019) on their graph of nearest neighbours, undirected and unweighted.

    Parameters
    ----------
    pcs
        Shape (n_cells, n_pcs).
    n_neighbors
        Of a cell, itself not counted; with fewer other cells, all of them.
    resolution
        Of the modularity: the higher, the more clusters.

    Returns
    -------
    Cluster of each cell, "0" being the largest, as str of shape (n_cells,); the same on every call.
    """
    return _leiden(_graph(pcs, n_neighbors), resolution, seed)


def choose_resolution(pcs: np.ndarray, *, n_neighbors: int, seed: int) -> float:
    """Choose the resolution of `RESOLUTIONS` whose clusters have the best mean silhouette width (Rousseeuw 1987).

    No labels are used: a resolution tuned to the cell types would flatter every method. One cluster alone, or every
    cell its own, has width 0, as Rousseeuw gives a cell without company: any clusters better than none win. Of equal
    resolutions the lowest is taken. Parameters as in `cluster_cells`.
    """
    graph, rows = _graph(pcs, n_neighbors), np.random.default_rng(seed).permutation(len(pcs))[:SILHOUETTE_CELLS]
    widths = [_silhouette(pcs[rows], _leiden(graph, resolution, seed)[rows]) for resolution in RESOLUTIONS]
    return RESOLUTIONS[int(np.argmax(widths))]


def _silhouette(pcs: np.ndarray, clusters: np.ndarray) -> float:
    return float(silhouette_score(pcs, clusters)) if 1 < len(np.unique(clusters)) < len(clusters) else 0.0


def _graph(pcs: np.ndarray, n_neighbors: int) -> sparse.csr_matrix:
    if len(pcs) < 2:
        return sparse.csr_matrix((len(pcs), len(pcs)))
    graph = kneighbors_graph(pcs, min(n_neighbors, len(pcs) - 1))
    return graph.maximum(graph.T)


@torch_threads_kept()
def _leiden(graph: sparse.csr_matrix, resolution: float, seed: int) -> np.ndarray:
    if graph.nnz == 0:  # no edges, which scanpy cannot take: every cell on its own
        return np.arange(graph.shape[0]).astype(str)
    cells = AnnData(sparse.csr_matrix((graph.shape[0], 1)))
    sc.tl.leiden(cells, resolution, adjacency=graph, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
    return cells.obs["leiden"].astype(str).to_numpy(dtype=str)
