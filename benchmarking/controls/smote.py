"""Peer: SMOTE (Chawla et al. 2002), new cells on the lines between neighbouring cells of a type.

The usual remedy for rare types. It never leaves the convex hull of the training cells, varies less than they do, and
blends two of them into every new one: measure its privacy too. A type with one cell gives copies of it.

Counts are interpolated as counts, for cells have no common library size to bring them back to afterwards, and what lies
between two whole numbers goes up or down at random so that its mean stays where it was: rounding to the nearest would
take every gene in which two cells differ by one, which are most, from the nearer cell and so return a copy of it.
"""

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from imblearn.over_sampling import SMOTE

from benchmarking.controls.contract import Frame, by_type

NEIGHBORS = 5  # of the original, and of imbalanced-learn


def fit(cells: AnnData, params: None = None, *, seed: int, device: str = "cpu") -> AnnData:
    """Keep the cells."""
    return cells


def sample(model: AnnData, n_cells: int, *, cell_type: str | None = None, seed: int) -> AnnData:
    """Draw points between a cell and one of its five nearest neighbours, or of as many as its type has."""
    rng, cells, frame = np.random.default_rng(seed), by_type(model), Frame.of(model)

    def draw(name: str, n: int) -> sp.csr_matrix:
        drawn = interpolate(cells[name].astype(np.float64), n, rng)
        if frame.scale == "counts":
            drawn.data = np.floor(drawn.data + rng.random(len(drawn.data)))
        return drawn

    return frame.fill(n_cells, cell_type, draw)


def interpolate(X: sp.csr_matrix, n_cells: int, rng: np.random.Generator) -> sp.csr_matrix:
    """Draw points between neighbouring cells (n_cells, n_genes) of one type; copies if there is one cell only."""
    n = X.shape[0]
    if n == 1:
        return X[np.zeros(n_cells, dtype=int)]
    smote = SMOTE(
        sampling_strategy={1: n + n_cells}, k_neighbors=min(NEIGHBORS, n - 1), random_state=int(rng.integers(2**32))
    )
    # it insists on a second class, of which it draws nothing: an empty cell
    padded = sp.vstack([X, sp.csr_matrix((1, X.shape[1]))], format="csr")
    return smote.fit_resample(padded, np.repeat([1, 0], [n, 1]))[0][n + 1 :]
