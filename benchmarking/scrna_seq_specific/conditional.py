"""Generators that are told which type to make: the model that their scripts share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from torch import Tensor, nn

from benchmarking.training import CELLS_AT_ONCE, LogValues, Memory, reproducible
from data_generation.calibration import log_normalise

LABELS = "given"


Draw = Callable[[Any, Tensor, Memory, np.random.Generator], np.ndarray | sp.csr_matrix]
"""draws by a sampler a cell for each code of a type (n_cells,), on the input's scale, (n_cells, n_genes)"""


@dataclass(frozen=True)
class Conditional:
    """A trained generator, what it knows of the training cells, and its losses."""

    memory: Memory
    sampler: nn.Module
    draw: Draw
    losses: pd.DataFrame


def as_seen(x: Tensor, values: Memory) -> Tensor:
    """Bring cells on the scale on which a method makes them (counts, linear or scaled) to that of `LogValues.X`."""
    if values.frame.scale == "counts":
        return log_normalise(x, float(np.median(values.sizes)))
    return x if values.frame.scale == "scaled" else x.log1p()


def as_counts(values: LogValues) -> np.ndarray:
    """Return whole counts: those that log values were made of, or the nearest to linear values."""
    factor = values.sizes[:, None] / np.median(values.sizes) if values.frame.scale == "counts" else 1.0
    return np.rint(np.expm1(values.X) * factor).astype(np.float32)


def draw_sized(sampler: Any, codes: Tensor, memory: Memory, rng: np.random.Generator) -> np.ndarray:
    """Draw cells of the library sizes of training cells, by a sampler that makes counts, linear or scaled values."""
    on = next(sampler.parameters()).device
    size = torch.from_numpy(memory.sizes[memory.like(codes, rng)]).float().to(on)[:, None]
    made: np.ndarray = sampler.draw(codes.to(on), size).cpu().numpy()
    return np.log1p(made) if memory.frame.scale == "log" else made


@torch.no_grad()
def sample(model: Conditional, n_cells: int, *, cell_type: str | None = None, seed: int) -> AnnData:
    """Draw cells in the composition of the training cells, or of one type; the contract of `data_generation.model`."""
    frame, rng = model.memory.frame, np.random.default_rng(seed)

    def draw(name: str, n: int) -> sp.csr_matrix:
        codes = torch.full((n,), list(frame.type_sizes).index(name))
        parts = (model.draw(model.sampler, part, model.memory, rng) for part in codes.split(CELLS_AT_ONCE))
        return sp.vstack([sp.csr_matrix(part) for part in parts])

    with reproducible(seed):
        return frame.fill(n_cells, cell_type, draw)
