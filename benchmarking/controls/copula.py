"""Control: a Gaussian copula for each type with the training cells' own marginals, the strongest simple rival.

Every gene's values are turned into normal scores (ties in random order), whose correlations are shrunk (Ledoit & Wolf
2004); new scores are drawn from that normal distribution and turned back by the empirical quantiles.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scipy.stats import norm
from sklearn.covariance import LedoitWolf

from data_generation.model import compose


@dataclass(frozen=True)
class Copula:
    """Shapes, a type: ordered (n_cells, n_genes), each gene sorted; factor of the correlation, (n_genes, n_genes)."""

    ordered: list[np.ndarray]
    factor: list[np.ndarray]
    types: list[str]
    cells: AnnData
    """no cells, but their genes and scale"""


def fit(cells: AnnData, params: None = None, *, seed: int, device: str = "cpu") -> Copula:
    """Learn marginals and correlations of each type."""
    rng = np.random.default_rng(seed)
    types = sorted(cells.obs["cell_type"].astype(str).unique())
    model = Copula([], [], types, cells[:0].copy())
    for name in types:
        values = cells[cells.obs["cell_type"] == name].X.toarray()
        n, n_genes = values.shape
        order = np.lexsort((rng.random(values.shape), values), axis=0)
        scores = norm.ppf((order.argsort(0) + 0.5) / n)
        covariance = LedoitWolf().fit(scores).covariance_ if n > 1 else np.eye(n_genes)
        sd = np.sqrt(covariance.diagonal().clip(1e-12))
        correlation = covariance / np.outer(sd, sd)
        model.factor.append(np.linalg.cholesky(correlation + 1e-6 * np.eye(n_genes)))
        model.ordered.append(np.take_along_axis(values, order, 0))
    return model


def sample(model: Copula, n_cells: int, *, cell_type: str | None = None, seed: int) -> AnnData:
    """Draw cells."""
    rng = np.random.default_rng(seed)
    weights = np.array(
        [len(o) * (cell_type in (None, name)) for o, name in zip(model.ordered, model.types, strict=True)]
    )
    quota = compose(weights, n_cells)
    drawn = []
    for ordered, factor, n in zip(model.ordered, model.factor, quota, strict=True):
        rank = norm.cdf(rng.standard_normal((n, len(factor))) @ factor.T)
        drawn.append(np.take_along_axis(ordered, (rank * len(ordered)).astype(int).clip(max=len(ordered) - 1), 0))
    obs = pd.DataFrame({"cell_type": np.repeat(model.types, quota)}, index=[f"synthetic_{i}" for i in range(n_cells)])
    X = sp.csr_matrix(np.concatenate(drawn).astype(np.float32))
    return AnnData(X, obs=obs, var=model.cells.var[[]], uns=dict(model.cells.uns))
