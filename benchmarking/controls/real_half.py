"""Control: the training cells themselves. What a perfect generator would score, privacy apart: the ceiling of a table.

On held-out halves two samples of the same cells are compared, so whatever it lacks to the ideal is chance, not fault.
"""

from anndata import AnnData

from benchmarking.controls.contract import Frame, by_type


def fit(cells: AnnData, params: None = None, *, seed: int, device: str = "cpu") -> AnnData:
    """Keep the cells."""
    return cells


def sample(model: AnnData, n_cells: int, *, cell_type: str | None = None, seed: int) -> AnnData:
    """Return the training cells, all or those of a type, whatever n_cells says: there are no others."""
    cells = by_type(model)
    return Frame.of(model).fill(n_cells, cell_type, lambda name, n: cells[name])
