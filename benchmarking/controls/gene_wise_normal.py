"""Control: an independent normal for each gene, the same for all types. What means and variances of genes are worth.

Labels have nothing to do with expression here, so that a measure of types which does not fall to chance for this row
measures something else. On scales without negative values the normals are cut off at zero, which raises their means;
counts are rounded.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from sklearn.utils.sparsefuncs import mean_variance_axis

from benchmarking.controls.contract import Frame


@dataclass(frozen=True)
class GeneWiseNormal:
    """Mean and standard deviation of each gene over all cells, on the scale of the input, shape (n_genes,)."""

    frame: Frame
    mean: np.ndarray
    sd: np.ndarray


def fit(cells: AnnData, params: None = None, *, seed: int, device: str = "cpu") -> GeneWiseNormal:
    """Learn two numbers a gene."""
    mean, variance = mean_variance_axis(sp.csr_matrix(cells.X, dtype=np.float64), axis=0)
    return GeneWiseNormal(Frame.of(cells), mean, np.sqrt(variance))


def sample(model: GeneWiseNormal, n_cells: int, *, cell_type: str | None = None, seed: int) -> AnnData:
    """Draw every gene of a cell on its own, without regard to the cell's type."""
    rng, scale = np.random.default_rng(seed), model.frame.scale

    def draw(name: str, n: int) -> np.ndarray:
        values = rng.normal(model.mean, model.sd, (n, len(model.mean)))
        if scale != "scaled":
            values = values.clip(min=0)
        return np.rint(values) if scale == "counts" else values

    return model.frame.fill(n_cells, cell_type, draw)
