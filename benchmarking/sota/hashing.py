"""Thinning of cells by locality-sensitive hashing, the sub-sampling of LSH-GAN (Lall et al. 2022).

Signs of random projections (Charikar 2002) meet in a hash table with a chance that falls with the angle between two
cells. The hash tables are those of faiss.
"""

import faiss
import numpy as np


def hash_neighbors(X: np.ndarray, n_neighbors: int, *, tables: int, bits: int, seed: int) -> np.ndarray:
    """Find neighbours among the cells that share a hash bucket with a cell, nearest first by all bits of the hash.

    Parameters
    ----------
    X
        Values of shape (n_cells, n_genes).
    n_neighbors
        At most so many of a cell, the cell itself counted as one.
    tables, bits
        Hash tables, and random projections of each. More tables find more neighbours, more bits nearer ones.

    Returns
    -------
    Rows of neighbours, shape (n_cells, n_neighbors); -1 where a cell's buckets hold no more.
    """
    X = np.ascontiguousarray(X, dtype=np.float32)
    n_bits = -(-tables * bits // 8) * 8  # faiss counts in bytes
    hashing = faiss.IndexLSH(X.shape[1], n_bits, True, True)  # projections rotated, and cut at their medians
    hashing.rrot.init(seed % 2**31)
    hashing.train(X)
    codes = hashing.sa_encode(X)
    buckets = faiss.IndexBinaryMultiHash(n_bits, tables, bits)
    buckets.add(codes)
    found: np.ndarray = buckets.search(codes, n_neighbors)[1]
    return found


def subsample(neighbors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Keep cells, in random order, each striking out its neighbours; (n_cells, n_neighbors) -> mask (n_cells,)."""
    kept = np.ones(len(neighbors), dtype=bool)
    for cell in rng.permutation(len(neighbors)):
        if kept[cell]:
            others = neighbors[cell]
            kept[others[(others >= 0) & (others != cell)]] = False
    return kept
