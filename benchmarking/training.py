"""How every baseline is trained: the values that networks see, and one rule for when to stop.

Preset `paper` runs the published number of epochs or steps on all training cells. Preset `tuned` stops by one rule, the
same for every method: a tenth of each type's training cells takes no part in training; every `check_every` mini-batches
cells are generated and compared with it (`Criterion`); training ends when `patience` checks in a row were no better
than the best, or with the budget, and the best weights are kept.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from sklearn.decomposition import PCA
from torch import Tensor, nn

from benchmarking.controls.contract import Frame
from common.checks import make_learnable
from common.cli import Reporter, silent
from common.data import types_of
from common.device import Device, choose_device, deterministic
from common.metrics.fidelity import median_squared_distance, mmd
from common.scale import to_log
from config import BaselineParams

CELLS_AT_ONCE = 1000  # bounds the memory of sampling
CHECK_CELLS = 500  # generated at each check, the same noise every time
CHECK_PCS = 30
CHECK_SEED = 0
MOST_LOG = 15.0  # e^15 counts, more than any gene has in a cell: a network that diverges gives no infinite ones
LARGEST_LOG = 88.0  # of other values: e^89 is more than float32 holds

Draw = Callable[[int], Tensor]
"""draws cells on the scale of training, shape (n_cells, n_genes), by PyTorch's own random numbers"""


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed PyTorch's own random numbers within a block; outside, they go on as if nothing had been."""
    with deterministic(), torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True)
class Memory:
    """What drawing cells needs to know of the training cells, beside weights: nothing of a cell but its size."""

    frame: Frame
    types: np.ndarray
    """name of each cell's type, shape (n_cells,)"""
    sizes: np.ndarray
    """library size of each cell, shape (n_cells,); of linear and log values the sum of the linear ones"""
    notes: list[str]
    """what a user should know of them"""

    def content(self) -> dict[str, Any]:
        """Return everything as tensors, strings, lists and dicts."""
        frame = {**vars(self.frame), "genes": list(self.frame.genes)}
        return {"frame": frame, "types": self.types.tolist(), "sizes": torch.from_numpy(self.sizes)}

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> "Memory":
        """Read what `content` returned."""
        frame = Frame(**{**content["frame"], "genes": pd.Index(content["frame"]["genes"])})
        return cls(frame, np.array(content["types"]), content["sizes"].numpy(), notes=[])

    def like(self, codes: Tensor, rng: np.random.Generator) -> np.ndarray:
        """Return a training cell of each one's type, at random: its row, given codes of types, both (n_cells,)."""
        names = np.array(list(self.frame.type_sizes))[codes.cpu().numpy()]
        rows = np.empty(len(names), dtype=int)
        for name in np.unique(names):
            rows[names == name] = rng.choice(np.flatnonzero(self.types == name), (names == name).sum())
        return rows

    def whole(self, x: Tensor) -> Tensor:
        """Approximate `back` differentiably for generated log values (n_cells, n_genes): what a critic is to judge.

        Negative values become 0. Counts, at the median library size, become whole numbers, up or down at random; the
        rounding passes the gradient on as if it had not been.
        """
        if self.frame.scale == "scaled":
            return x
        x = x.clamp_min(0)
        if self.frame.scale != "counts":
            return x
        counts = x.detach().clamp_max(MOST_LOG).expm1()
        return x + ((counts + torch.rand_like(counts)).floor().log1p() - x).detach()

    def back(self, X: np.ndarray, types: np.ndarray, rng: np.random.Generator) -> sp.csr_matrix:
        """Bring generated values to the input's scale, the same way for every method that makes such values.

        Negative values become 0 and logarithms are undone. For counts, a cell is then scaled to the library size of a
        training cell of its type, drawn at random, and its values are rounded at random so that they stay right in
        expectation. No Poisson noise is added: values learnt from noisy cells have theirs.

        Parameters
        ----------
        X
            Generated values on the scale of training, shape (n_cells, n_genes).
        types
            Name of each cell's type, shape (n_cells,).
        """
        if self.frame.scale == "scaled":
            return sp.csr_matrix(X)
        X = np.maximum(X, 0)
        if self.frame.scale in ("counts", "linear"):
            X = np.expm1(np.minimum(X, MOST_LOG if self.frame.scale == "counts" else LARGEST_LOG, dtype=np.float64))
        if self.frame.scale == "counts":
            size = np.empty(len(X))
            for name in np.unique(types):
                size[types == name] = rng.choice(self.sizes[self.types == name], (types == name).sum())
            total = X.sum(1)
            X *= (size / np.where(total > 0, total, 1))[:, None]
            X = np.floor(X + rng.random(X.shape))
        return sp.csr_matrix(X, dtype=np.float32)


@dataclass(frozen=True)
class LogValues(Memory):
    """The training cells on the scale on which networks learn."""

    X: np.ndarray
    """log1p of counts scaled to the median library size, log1p of linear values, others as they came;
    (n_cells, n_genes)"""

    @classmethod
    def of(cls, cells: AnnData) -> "LogValues":
        """Prepare training cells; those without counts are left out. Errors as of `common.checks.make_learnable`."""
        cells, notes = make_learnable(cells)
        scale, sizes = cells.uns["scale"], np.asarray(cells.X.sum(1, dtype=np.float64)).ravel()
        X = to_log(cells.X, scale, float(np.median(sizes))).toarray()
        if scale in ("linear", "log"):
            sizes = np.expm1(X).sum(1).astype(np.float64)
        return cls(Frame.of(cells), types_of(cells), sizes, notes, X)

    @property
    def memory(self) -> Memory:
        """What is kept when training is over."""
        return Memory(self.frame, self.types, self.sizes, self.notes)


@dataclass(frozen=True)
class TrainingCells:
    """Log values on a device, parted into those that train and those that decide when to stop."""

    values: LogValues
    X: Tensor
    """cells that train, shape (n_train, n_genes)"""
    types: Tensor
    """code of each one's type in the order of `Frame.type_sizes`, shape (n_train,)"""
    rows: np.ndarray
    """their rows in `LogValues`, and with that in the cells that `fit` was given, but for empty ones"""
    validation: Tensor
    """the other cells, shape (n_validation, n_genes)"""

    @classmethod
    def of(cls, values: LogValues, share: float, device: torch.device, rng: np.random.Generator) -> "TrainingCells":
        """Part the cells; every type gives its share to the validation, up to rounding.

        Types too small to owe a whole cell give none: all their cells train.
        """
        _, types, sizes = np.unique(values.types, return_inverse=True, return_counts=True)
        giving = np.flatnonzero(sizes[types] * share >= 1)
        order = giving[np.lexsort((rng.random(len(giving)), types[giving]))]
        chosen = np.zeros(len(types), dtype=bool)
        chosen[order] = np.diff(np.floor(np.arange(len(order) + 1) * share + rng.random())) > 0
        return cls(values, torch.empty(0), torch.empty(0), np.empty(0), torch.tensor(values.X[chosen]).to(device)).take(
            np.flatnonzero(~chosen)
        )

    def take(self, rows: np.ndarray) -> "TrainingCells":
        """Return the same with other cells to train on, given by their rows in `LogValues`; they may repeat."""
        codes = np.searchsorted(list(self.values.frame.type_sizes), self.values.types[rows])
        X, types = torch.from_numpy(self.values.X[rows]), torch.from_numpy(codes)
        on = self.validation.device
        return TrainingCells(self.values, X.to(on), types.to(on), rows, self.validation)


P = TypeVar("P", bound=BaselineParams, contravariant=True)
M = TypeVar("M", covariant=True)


class Learn(Protocol[P, M]):
    """Trains networks on prepared cells, by PyTorch's own random numbers: what a baseline's script defines."""

    def __call__(self, data: "TrainingCells", params: P, *, report: Reporter) -> M:
        """Return a model to draw from."""


class Fit(Protocol[P, M]):
    """The contract of `data_generation.model.fit`."""

    def __call__(
        self, cells: AnnData, params: P, *, seed: int, device: Device = "auto", report: Reporter = silent
    ) -> M:
        """Learn from real cells; errors as of `LogValues.of`."""


def fit_by(learn: Learn[P, M], arrange: Callable[["TrainingCells", int], "TrainingCells"] | None = None) -> Fit[P, M]:
    """Make a baseline's `fit` of its `learn`.

    Parameters
    ----------
    arrange
        Changes which cells train, given the prepared ones and the seed.
    """

    def fit(cells: AnnData, params: P, *, seed: int, device: Device = "auto", report: Reporter = silent) -> M:
        with reproducible(seed):
            data = prepare(cells, params, seed=seed, device=device)
            return learn(arrange(data, seed) if arrange else data, params, report=report)

    return fit


def prepare(cells: AnnData, params: BaselineParams, *, seed: int, device: Device) -> TrainingCells:
    """Bring cells into the form that `train` takes; errors as of `LogValues.of`."""
    return TrainingCells.of(LogValues.of(cells), params.validation, choose_device(device), np.random.default_rng(seed))


class Criterion:
    """How far generated cells are from validation cells: the MMD of `common.metrics.fidelity`.

    Cells are compared on principal components of cells that train and of as many generated ones, other than those that
    are compared: components of real cells alone would hide what a generator does outside their span. About 0 at best;
    NaN where there are too few cells.

    Parameters
    ----------
    data
        With two validation cells at least.
    """

    def __init__(self, data: TrainingCells) -> None:
        self.real = data.validation.cpu().numpy()
        self.reference = data.X[:: -(-len(data.X) // CHECK_CELLS)].cpu().numpy()

    @torch.no_grad()
    def __call__(self, draw: Draw) -> float:
        """Return the distance of new cells, made of the same random numbers at every call."""
        n = len(self.reference)
        with reproducible(CHECK_SEED):
            drawn = draw(n + CHECK_CELLS).cpu().numpy()
        if not np.isfinite(drawn).all():
            return np.inf
        pooled = np.concatenate([self.reference, drawn[:n]])
        pca = PCA(min(CHECK_PCS, *pooled.shape), svd_solver="randomized", random_state=0).fit(pooled)
        real, synthetic = (pca.transform(X).astype(np.float64) for X in (self.real, drawn[n:]))
        return mmd(real, synthetic, unit=median_squared_distance(real))


def _mini_batches(n_cells: int, size: int, device: torch.device) -> Iterator[Tensor]:
    """Yield the rows of mini-batches without end, every cell once an epoch; a last batch of one cell is left out."""
    while True:
        for rows in torch.randperm(n_cells, device=device).split(size):
            if len(rows) > 1 or n_cells == 1:
                yield rows


def train(
    step: Callable[[Tensor], Mapping[str, Tensor]], draw: Draw, networks: Mapping[str, nn.Module],
    data: TrainingCells, params: BaselineParams, *, report: Reporter,
) -> pd.DataFrame:  # fmt: skip
    """Take steps until the rule of this module's docstring says stop; `networks` end up with the best weights.

    Parameters
    ----------
    step
        Takes one optimiser step, given the rows of `data.X` in the mini-batch; returns its losses by name.
    draw
        Draws cells from the networks in their present state as they would be handed out, but on the scale of training,
        shape (n_cells, n_genes).
    networks
        All that is trained or averaged and that `draw` depends on.

    Returns
    -------
    One row for every `check_every` steps: step, the mean of each loss since the row before, and mmd, the criterion
    (NaN without validation cells).
    """
    size = min(params.batch_size, len(data.X))
    per_epoch = (len(data.X) - 1) // size + (len(data.X) % size != 1)
    total = params.budget * (per_epoch if params.budget_in == "epochs" else 1)
    criterion = Criterion(data) if len(data.validation) > 1 else None
    best, best_step, weights = np.inf, 0, None
    rows: list[dict[str, float]] = []
    seen: dict[str, list[Tensor]] = {}
    for number, batch in zip(range(1, total + 1), _mini_batches(len(data.X), size, data.X.device), strict=False):
        for name, loss in step(batch).items():
            seen.setdefault(name, []).append(loss.detach())
        if number % params.check_every and number != total:
            continue
        _switch(networks, training=False)
        means = {name: float(torch.stack(losses).mean()) for name, losses in seen.items()}
        rows.append({"step": number, **means, "mmd": criterion(draw) if criterion else np.nan})
        _switch(networks, training=True)
        seen.clear()
        report("training", number, total, **means)
        if rows[-1]["mmd"] < best:
            best, best_step = rows[-1]["mmd"], number
            weights = deepcopy({name: network.state_dict() for name, network in networks.items()})
        elif number - best_step >= params.patience * params.check_every and weights is not None:
            report("training", total, total, **means)
            break
    for name, network in networks.items():
        if weights is not None:
            network.load_state_dict(weights[name])
    _switch(networks, training=False)
    return pd.DataFrame(rows)


def _switch(networks: Mapping[str, nn.Module], *, training: bool) -> None:
    for network in networks.values():
        network.train(training)
