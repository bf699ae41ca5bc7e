"""Control: cells in which nothing is expressed. The floor: whatever a measure gives to these, it gives for nothing."""

import scipy.sparse as sp
from anndata import AnnData

from benchmarking.controls.contract import Frame


def fit(cells: AnnData, params: None = None, *, seed: int, device: str = "cpu") -> Frame:
    """Keep types and genes."""
    return Frame.of(cells)


def sample(model: Frame, n_cells: int, *, cell_type: str | None = None, seed: int) -> AnnData:
    """Return labelled cells without any expression."""
    return model.fill(n_cells, cell_type, lambda name, n: sp.csr_matrix((n, len(model.genes))))
