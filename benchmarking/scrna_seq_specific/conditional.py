"""Generators that are told which type to make: the model that their scripts share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from torch import Tensor, nn

from benchmarking.baseline import CELLS_AT_ONCE
from benchmarking.training import LogValues, reproducible
from data_generation.seeded_gan import log_normalise

LABELS = "given"


@dataclass(frozen=True)
class Conditional:
    """A trained generator, its training values and its losses."""

    values: LogValues
    draw: Callable[[Tensor, np.random.Generator], np.ndarray | sp.csr_matrix]
    """draws a cell for each code of a type (n_cells,), on the input's scale, (n_cells, n_genes)"""
    networks: Mapping[str, nn.Module]
    losses: pd.DataFrame


def like(values: LogValues, codes: Tensor, rng: np.random.Generator) -> np.ndarray:
    """Return a random training cell of each one's type: rows of `values`, given codes of types, both (n_cells,)."""
    names = np.array(list(values.frame.type_sizes))[codes.cpu()]
    rows = np.empty(len(names), dtype=int)
    for name in np.unique(names):
        rows[names == name] = rng.choice(np.flatnonzero(values.types == name), (names == name).sum())
    return rows


def as_seen(x: Tensor, values: LogValues) -> Tensor:
    """Bring cells on the scale on which a method makes them (counts, linear or scaled) to that of `LogValues.X`."""
    if values.frame.scale == "counts":
        return log_normalise(x, float(np.median(values.sizes)))
    return x if values.frame.scale == "scaled" else x.log1p()


def as_counts(values: LogValues) -> np.ndarray:
    """Return whole counts: those that log values were made of, or the nearest to linear values."""
    factor = values.sizes[:, None] / np.median(values.sizes) if values.frame.scale == "counts" else 1.0
    return np.rint(np.expm1(values.X) * factor).astype(np.float32)


def as_given(x: Tensor, values: LogValues) -> np.ndarray:
    """Bring cells on the scale on which a method makes them to the input's."""
    made: np.ndarray = x.cpu().numpy()
    return np.log1p(made) if values.frame.scale == "log" else made


@torch.no_grad()
def sample(model: Conditional, n_cells: int, *, cell_type: str | None = None, seed: int) -> AnnData:
    """Draw cells in the composition of the training cells, or of one type; the contract of `data_generation.model`."""
    frame, rng = model.values.frame, np.random.default_rng(seed)

    def draw(name: str, n: int) -> sp.csr_matrix:
        codes = torch.full((n,), list(frame.type_sizes).index(name))
        return sp.vstack([sp.csr_matrix(model.draw(part, rng)) for part in codes.split(CELLS_AT_ONCE)])

    with reproducible(seed):
        return frame.fill(n_cells, cell_type, draw)
