"""Control: training cells drawn with replacement within each type. The copy that every measure of privacy must catch.

Its distribution is that of the real half, so fidelity alone has nothing against it, but where repeated cells betray one
another: a forest that has learnt from a cell knows its twin in another fold.
"""

import numpy as np
from anndata import AnnData

from benchmarking.controls.contract import Frame, by_type


def fit(cells: AnnData, params: None = None, *, seed: int, device: str = "cpu") -> AnnData:
    """Keep the cells."""
    return cells


def sample(model: AnnData, n_cells: int, *, cell_type: str | None = None, seed: int) -> AnnData:
    """Draw training cells, each as likely as any other of its type."""
    rng, cells = np.random.default_rng(seed), by_type(model)
    return Frame.of(model).fill(
        n_cells, cell_type, lambda name, n: cells[name][rng.integers(cells[name].shape[0], size=n)]
    )
