"""The contract of a generator (`data_generation.model`), kept once: a control only says how to draw a type."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from common.data import types_of
from common.errors import UserError
from common.scale import Scale, detect_scale
from data_generation.model import check_proportions, compose


@dataclass(frozen=True)
class Frame:
    """What synthetic cells share with the training cells, whatever generator drew them."""

    type_sizes: dict[str, int]
    """training cells of each type, in alphabetical order"""
    genes: pd.Index
    scale: Scale
    dataset: str

    @classmethod
    def of(cls, cells: AnnData) -> "Frame":
        """Read it off the training cells; the scale is detected if `uns` does not name it."""
        types, sizes = np.unique(cells.obs["cell_type"].astype(str), return_counts=True)
        return cls(
            type_sizes=dict(zip(types.tolist(), sizes.tolist(), strict=True)), genes=cells.var_names,
            scale=cells.uns.get("scale") or detect_scale(cells.X), dataset=str(cells.uns.get("dataset", "cells")),
        )  # fmt: skip

    def fill(
        self, n_cells: int, cell_type: str | None, draw: Callable[[str, int], np.ndarray | sp.spmatrix]
    ) -> AnnData:
        """Draw cells in the composition of the training cells, or of one type.

        Parameters
        ----------
        draw
            Called with the name of a type and a number of cells, returns their expression, (n_cells, n_genes).

        Raises
        ------
        UserError
            If n_cells is not positive, or there is no such type.
        """
        self.check(n_cells, cell_type)
        names = list(self.type_sizes) if cell_type is None else [cell_type]
        quota = compose(np.array([self.type_sizes[name] for name in names]), n_cells)
        # converted one by one, so that one type at most is dense
        parts = [sp.csr_matrix(draw(name, n), dtype=np.float32) for name, n in zip(names, quota.tolist(), strict=True)]
        return self.assemble(parts, np.repeat(names, [part.shape[0] for part in parts]))

    def check(self, n_cells: int, cell_type: str | None) -> None:
        """Refuse a number of cells that is not positive, and a type that is not there."""
        if n_cells < 1:
            raise UserError(f"{n_cells} cells cannot be drawn: give at least 1")
        if cell_type is not None:
            check_proportions({cell_type: 1.0}, list(self.type_sizes))

    def assemble(self, parts: Sequence[sp.csr_matrix], types: np.ndarray) -> AnnData:
        """Return synthetic cells, given their expression in parts and their types, shape (n_cells,)."""
        obs = pd.DataFrame(
            {"cell_type": pd.Categorical(types, categories=list(self.type_sizes))},
            index=[f"synthetic_{i}" for i in range(len(types))],
        )
        uns = {"scale": self.scale, "dataset": self.dataset}
        return AnnData(sp.vstack(parts, format="csr"), obs=obs, var=pd.DataFrame(index=self.genes), uns=uns)


def by_type(cells: AnnData) -> dict[str, sp.csr_matrix]:
    """Return the expression of each type's cells, shape (n_cells, n_genes), in the order of `Frame.type_sizes`."""
    X, types = sp.csr_matrix(cells.X, dtype=np.float32), types_of(cells)
    return {str(name): X[types == name] for name in np.unique(types)}
