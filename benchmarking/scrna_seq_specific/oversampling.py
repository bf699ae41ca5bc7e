"""Random oversampling before a plain generator, and its undoing when cells are drawn: what both baselines share."""

from dataclasses import replace

import numpy as np
import torch
from anndata import AnnData
from imblearn.over_sampling import RandomOverSampler

from benchmarking import baseline
from benchmarking.baseline import Unconditional
from benchmarking.training import TrainingCells
from common.errors import UserError
from data_generation.model import compose


def balance(rows: np.ndarray, types: np.ndarray, seed: int) -> np.ndarray:
    """Repeat rows at random until every type has as many as the largest; `types` are those of the rows."""
    if len(np.unique(types)) < 2:
        return rows
    repeated, _ = RandomOverSampler(random_state=seed).fit_resample(rows[:, None], types)
    balanced: np.ndarray = repeated[:, 0]
    return balanced


def oversample(data: TrainingCells, seed: int) -> TrainingCells:
    """Balance the types of the cells that train, and of those that decide when to stop."""
    values = data.values
    others = np.setdiff1d(np.arange(len(values.X)), data.rows)
    train, validation = (balance(rows, values.types[rows], seed) for rows in (data.rows, others))
    return replace(data.take(train), validation=torch.from_numpy(values.X[validation]).to(data.X))


def sample(model: Unconditional, n_cells: int, *, cell_type: str | None = None, seed: int) -> AnnData:
    """Draw cells in the composition of the training cells, by their labels, or of one type.

    The generator makes types about equally often, so as many of each as are wanted are taken. Missing cells of a type
    are replaced by cells of any type. Errors as of `benchmarking.baseline.sample`.
    """
    if cell_type is not None:
        return baseline.sample(model, n_cells, cell_type=cell_type, seed=seed)
    frame = model.memory.frame
    frame.check(n_cells, cell_type)
    parts, missing = [], 0
    for name, n in zip(frame.type_sizes, compose(np.array(list(frame.type_sizes.values())), n_cells), strict=True):
        try:
            parts += [baseline.sample(model, int(n), cell_type=name, seed=seed)] if n else []
        except UserError:
            missing += int(n)
    if missing:
        parts.append(baseline.sample(model, missing, seed=seed + 1))  # not the same cells again
    return frame.assemble([part.X for part in parts], np.concatenate([part.obs["cell_type"] for part in parts]))
