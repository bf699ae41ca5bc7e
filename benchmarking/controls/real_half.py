"""Control: the training cells themselves. What a perfect generator would score, privacy apart."""

from anndata import AnnData


def fit(cells: AnnData, params: None = None, *, seed: int, device: str = "cpu") -> AnnData:
    """Keep the cells."""
    return cells


def sample(model: AnnData, n_cells: int, *, cell_type: str | None = None, seed: int) -> AnnData:
    """Return the training cells, all or those of a type, whatever n_cells says: there are no others."""
    return model if cell_type is None else model[model.obs["cell_type"] == cell_type].copy()
