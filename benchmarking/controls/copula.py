"""Peer: a Gaussian copula for each type with the training cells' own marginals, the strongest simple rival.

Every gene's values are turned into normal scores (ties in random order), whose correlations are shrunk (Ledoit & Wolf
2004); new scores are drawn from that normal distribution and turned back by the empirical quantiles. So marginals are
right by construction, and what its row lacks is dependence: where genes are many and mostly zero, shrinking leaves
little of their correlations. Every value is a training value, so measure its privacy too.
"""

from dataclasses import dataclass

import numpy as np
from anndata import AnnData
from scipy.stats import norm

from benchmarking.controls.contract import Frame, by_type


@dataclass(frozen=True)
class TypeCopula:
    """Copula of one type. The correlation of its scores is (1 - shrinkage) factor' factor + shrinkage I."""

    ordered: np.ndarray
    """values of shape (n_cells, n_genes), each gene sorted"""
    factor: np.ndarray
    """shape (n_cells or n_genes, whichever is less, n_genes)"""
    shrinkage: float


@dataclass(frozen=True)
class Copula:
    """One copula a type."""

    frame: Frame
    types: dict[str, TypeCopula]


def fit(cells: AnnData, params: None = None, *, seed: int, device: str = "cpu") -> Copula:
    """Learn marginals and correlations of each type."""
    rng = np.random.default_rng(seed)
    return Copula(Frame.of(cells), {name: _fit_type(X.toarray(), rng) for name, X in by_type(cells).items()})


def _fit_type(values: np.ndarray, rng: np.random.Generator) -> TypeCopula:
    n = len(values)
    order = np.lexsort((rng.random(values.shape), values), axis=0)
    # every gene has the same n scores in some order, so their covariance has one value all along its diagonal
    unit_scores = norm.ppf((np.arange(n) + 0.5) / n)
    unit_scores /= unit_scores.std() or 1.0
    scores = unit_scores[order.argsort(0)]
    factor: np.ndarray = np.linalg.qr(scores / np.sqrt(n), mode="r")  # type: ignore[assignment]
    return TypeCopula(np.take_along_axis(values, order, 0), factor, shrinkage(scores, factor))


def shrinkage(scores: np.ndarray, factor: np.ndarray) -> float:
    """Compute how far correlations are shrunk towards none (Ledoit & Wolf 2004), from 0 to 1.

    The correlations' sum of squares is that of the smaller Gram matrix, so none of n_genes x n_genes is ever formed.

    Parameters
    ----------
    scores
        Shape (n_cells, n_genes), each gene of mean 0 and variance 1.
    factor
        Shape (any, n_genes), factor' factor being the correlation of the scores.
    """
    n, n_genes = scores.shape
    sum_of_squares = float(np.square(factor @ factor.T).sum())
    signal = sum_of_squares - n_genes
    noise = float(np.square(np.square(scores).sum(1)).mean() - sum_of_squares) / n
    return min(max(noise, 0.0) / signal, 1.0) if signal > 0 else 1.0


def sample(model: Copula, n_cells: int, *, cell_type: str | None = None, seed: int) -> AnnData:
    """Draw cells."""
    rng = np.random.default_rng(seed)

    def draw(name: str, n: int) -> np.ndarray:
        copula = model.types[name]
        scores = np.sqrt(1 - copula.shrinkage) * rng.standard_normal((n, len(copula.factor))) @ copula.factor
        scores += np.sqrt(copula.shrinkage) * rng.standard_normal(scores.shape)
        last = len(copula.ordered) - 1
        rank = (norm.cdf(scores) * len(copula.ordered)).astype(int).clip(max=last)
        return np.take_along_axis(copula.ordered, rank, 0)

    return model.frame.fill(n_cells, cell_type, draw)
