"""Peer: training cells with noise added, the smoothed bootstrap (Silverman & Young 1987; ROSE, Menardi & Torelli 2014).

The cheapest way to more cells of a rare type. A cell of the type is drawn, and normal noise is added to each gene on
its own, half as wide as the gene varies within the type. The genes' variance grows by a quarter, so their correlations
shrink by a fifth, and what is drawn lies about training cells: measure its privacy too. A type with one cell gives
copies of it.

Noise is added to logarithms (of counts, as they are: each cell keeps its library size), cut off at zero, and counts go
up or down at random, as in `smote`.
"""

import numpy as np
from anndata import AnnData

from benchmarking.controls.contract import Frame, by_type

NOISE = 0.5  # of the gene's standard deviation within its type


def fit(cells: AnnData, params: None = None, *, seed: int, device: str = "cpu") -> AnnData:
    """Keep the cells."""
    return cells


def sample(model: AnnData, n_cells: int, *, cell_type: str | None = None, seed: int) -> AnnData:
    """Draw training cells, each as likely as any other of its type, and add noise."""
    rng, cells, frame = np.random.default_rng(seed), by_type(model), Frame.of(model)
    is_linear = frame.scale in ("counts", "linear")

    def draw(name: str, n: int) -> np.ndarray:
        real = (cells[name].log1p() if is_linear else cells[name]).toarray()
        drawn = real[rng.integers(len(real), size=n)]
        drawn = drawn + NOISE * real.std(0) * rng.standard_normal(drawn.shape)
        if frame.scale != "scaled":
            drawn = drawn.clip(min=0)
        if is_linear:
            drawn = np.expm1(drawn)
        return np.floor(drawn + rng.random(drawn.shape)) if frame.scale == "counts" else drawn

    return frame.fill(n_cells, cell_type, draw)
