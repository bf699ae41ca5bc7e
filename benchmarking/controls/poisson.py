"""Control: Poisson counts with the mean of the type. One line of statistics, and the bar for every network.

It knows the types and nothing else: neither the spread within a type, nor library sizes, nor how genes go together.
Linear values (RPKM, TPM, CPM) are taken for counts, logarithms are taken back first and again after drawing: the noise
is then that of as many molecules as the normalised library size claims, and values lie where whole numbers lie. Scaled
values can be no one's counts.
"""

from dataclasses import dataclass

import numpy as np
from anndata import AnnData

from benchmarking.controls.contract import Frame, by_type
from common.errors import UserError


@dataclass(frozen=True)
class Poisson:
    """Mean of each gene in each type, shape (n_genes,); of expm1 of the values if these are logarithms."""

    frame: Frame
    means: dict[str, np.ndarray]


def fit(cells: AnnData, params: None = None, *, seed: int, device: str = "cpu") -> Poisson:
    """Learn the mean profile of each type.

    Raises
    ------
    UserError
        If the values are scaled.
    """
    frame = Frame.of(cells)
    if frame.scale == "scaled":
        raise UserError("scaled values have no Poisson distribution: leave poisson out, or give counts")
    linear = {name: X.expm1() if frame.scale == "log" else X for name, X in by_type(cells).items()}
    return Poisson(frame, {name: np.asarray(X.mean(0, dtype=np.float64)).ravel() for name, X in linear.items()})


def sample(model: Poisson, n_cells: int, *, cell_type: str | None = None, seed: int) -> AnnData:
    """Draw every gene of a cell on its own."""
    rng = np.random.default_rng(seed)

    def draw(name: str, n: int) -> np.ndarray:
        counts = rng.poisson(model.means[name], (n, len(model.frame.genes)))
        return np.log1p(counts) if model.frame.scale == "log" else counts

    return model.frame.fill(n_cells, cell_type, draw)
