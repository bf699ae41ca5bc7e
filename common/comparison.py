"""Held-out and synthetic cells side by side: which of them are compared, and in which forms."""

from dataclasses import dataclass, fields

import numpy as np
from anndata import AnnData
from scipy import sparse

from common.data import types_of
from common.metrics.fidelity import compare_on, library_sizes, pooled_pcs
from common.metrics.utility import TARGET_SUM
from common.runs import Run
from common.scale import to_log

MOST_CELLS = 3000  # a side, in distances between all pairs; of more, a random subset of this number is compared


@dataclass(frozen=True)
class View:
    """Cells in the forms that metrics take, one row a cell in each."""

    X: sparse.csr_matrix
    """on the scale of the input, shape (n_cells, n_genes)"""
    genes: np.ndarray
    """log-normalised values (`compare_on`), shape (n_cells, n_genes)"""
    per_10k: np.ndarray
    """the same with counts scaled to 10,000 a cell, as log-fold changes are taken"""
    pcs: np.ndarray
    """on the components of all views that are compared, shape (n_cells, n_pcs)"""
    labels: np.ndarray
    """cell types, str"""
    sizes: np.ndarray
    """library sizes"""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "View":
        """Return some of the cells, by a mask or by numbers."""
        return View(*(getattr(self, field.name)[rows] for field in fields(self)))

    def thin(self, n_cells: int, rng: np.random.Generator) -> "View":
        """Return at most this many cells, at random."""
        return self.take(np.sort(rng.permutation(len(self))[:n_cells]))


def make_views(*groups: AnnData) -> list[View]:
    """Bring groups of cells of the same genes into the forms that metrics take, on components of them all."""
    genes = [compare_on(cells) for cells in groups]
    return [
        View(
            X=cells.X,
            genes=values,
            per_10k=to_log(cells.X, cells.uns["scale"], TARGET_SUM).toarray(),
            pcs=pcs,
            labels=types_of(cells),
            sizes=library_sizes(cells),
        )
        for cells, values, pcs in zip(groups, genes, pooled_pcs(*genes), strict=True)
    ]


def thin_synthetic(run: Run, n_cells: int) -> AnnData:
    """Return at most so many synthetic cells, at random: no generator wins by drawing more."""
    order = np.random.default_rng(run.seed).permutation(run.synthetic.n_obs)[:n_cells]
    return run.synthetic[np.sort(order)].copy()


def compare(run: Run) -> tuple[View, View]:
    """Return as many held-out as synthetic cells, at most `MOST_CELLS`, on components of all held-out and synthetic.

    With the training cells among them, components would follow the noise of the training cells, and copies of these,
    counted twice, would seem further from the held-out cells than new cells are.
    """
    rng, synthetic = np.random.default_rng(run.seed), thin_synthetic(run, run.train.n_obs)
    n = min(run.held.n_obs, synthetic.n_obs, MOST_CELLS)
    held, drawn = make_views(run.held, synthetic)
    return held.thin(n, rng), drawn.thin(n, rng)
