"""What every baseline has beside its networks and losses: training values, the loop, labels, the script.

All baselines are trained alike. Preset `paper` runs the published number of epochs on all training cells. Preset
`tuned` stops by one rule, the same for every method: a tenth of each type's training cells takes no part in training;
every `check_every` mini-batches cells are generated and compared with it (`Criterion`); training ends when `patience`
checks in a row were no better than the best, or with the budget, and the best weights are kept.

Networks see log-normalised values (`LogValues`). Those that are not told cell types are `Unconditional`.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
import tyro
from anndata import AnnData
from rich.markup import escape
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from torch import Tensor, nn

from benchmarking.controls.contract import Frame
from common.checks import drop_empty_cells, nearest
from common.cli import Reporter, console, progress_bar, run_script
from common.data import CellSource
from common.errors import UserError
from common.generation import (
    check_seed,
    folder_of,
    load_split,
    preset_of,
    print_notes,
    record_of,
    report_cells,
    write_held,
)
from common.metrics.fidelity import median_squared_distance, mmd
from common.run import Stopwatch, check_writable, write_cells, write_json, write_table, write_tensors
from common.scale import detect_scale, to_log
from config import BASELINES, SEED, BaselineParams
from data_generation.model import Device, choose_device

METHODS = {
    "gan": "benchmarking.sota.gan", "wgan": "benchmarking.sota.wgan", "fgan": "benchmarking.sota.fgan",
    "vae": "benchmarking.sota.vae", "lsh_gan": "benchmarking.sota.lsh_gan",
    "scgan": "benchmarking.scrna_seq_specific.scgan", "scvae": "benchmarking.scrna_seq_specific.scvae",
    "scdiffusion": "benchmarking.scrna_seq_specific.scdiffusion",
    "gan_ros": "benchmarking.scrna_seq_specific.gan_ros", "vae_ros": "benchmarking.scrna_seq_specific.vae_ros",
}  # fmt: skip
"""the module of each baseline, in the order of a table; imported by `load_method`"""

FORMAT = "baseline-model-1"
CHECK_CELLS = 500  # generated at each check, the same noise every time
CHECK_PCS = 30
CHECK_SEED = 0
LABEL_PCS = 30  # principal components on which generated cells are labelled
CELLS_AT_ONCE = 1000  # bounds the memory of sampling
MOST_LOG = 15.0  # e^15 counts, more than any gene has in a cell: a network that diverges gives no infinite ones
MOST_DRAWS = 50  # times the cells asked for: how long to wait for a type that the generator hardly makes

Draw = Callable[[int], Tensor]
"""draws cells on the scale of training, shape (n_cells, n_genes), by PyTorch's own random numbers"""


def load_method(name: str) -> ModuleType:
    """Import a baseline.

    Raises
    ------
    UserError
        If there is none of that name.
    """
    if name not in METHODS:
        raise UserError(f"there is no baseline '{name}', only {', '.join(METHODS)}{nearest(name, METHODS)}")
    return import_module(METHODS[name])


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed PyTorch's own random numbers within a block; outside, they go on as if nothing had been."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


# -------------------------------------------------------------------------------------------- values


@dataclass(frozen=True)
class LogValues:
    """The training cells on the scale on which networks learn, and the way back to the input's."""

    frame: Frame
    X: np.ndarray
    """log1p of counts scaled to the median library size, log1p of linear values, others as they came;
    (n_cells, n_genes)"""
    types: np.ndarray
    """name of each cell's type, shape (n_cells,)"""
    sizes: np.ndarray
    """library size of each cell, shape (n_cells,); of counts only"""
    notes: list[str]

    @classmethod
    def of(cls, cells: AnnData) -> "LogValues":
        """Prepare training cells; those without counts are left out.

        Raises
        ------
        UserError
            If there are no types, or fewer than two cells.
        """
        if "cell_type" not in cells.obs:
            raise UserError("cells have no obs['cell_type']: put the cell types there")
        X = sp.csr_matrix(cells.X, dtype=np.float32, copy=True)
        X.sum_duplicates()
        X.eliminate_zeros()
        uns = {**cells.uns, "scale": cells.uns.get("scale") or detect_scale(X)}
        cells, notes = drop_empty_cells(AnnData(X, obs=cells.obs[["cell_type"]], var=cells.var[[]], uns=uns))
        if cells.n_obs < 2:
            raise UserError(f"{cells.n_obs} cells are too few to learn from: give at least two")
        sizes = np.asarray(cells.X.sum(1, dtype=np.float64)).ravel()
        log = to_log(cells.X, uns["scale"], float(np.median(sizes)))
        return cls(Frame.of(cells), log.toarray(), cells.obs["cell_type"].astype(str).to_numpy(), sizes, notes)

    def whole(self, x: Tensor) -> Tensor:
        """Bring generated log values (n_cells, n_genes) near to what `back` makes of them, for a network to judge.

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
            X = np.expm1(X.astype(np.float64))
        if self.frame.scale == "counts":
            size = np.empty(len(X))
            for name in np.unique(types):
                size[types == name] = rng.choice(self.sizes[self.types == name], (types == name).sum())
            total = X.sum(1)
            X *= (size / np.where(total > 0, total, 1))[:, None]
            X = np.floor(X + rng.random(X.shape))
        return sp.csr_matrix(X, dtype=np.float32)


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
        """Part the cells; every type gives its share to the validation, up to rounding."""
        n_cells = len(values.X)
        order = np.lexsort((rng.random(n_cells), values.types))
        chosen = np.empty(n_cells, dtype=bool)
        chosen[order] = np.diff(np.floor(np.arange(n_cells + 1) * share + rng.random())) > 0
        return cls(values, torch.empty(0), torch.empty(0), np.empty(0), torch.tensor(values.X[chosen]).to(device)).take(
            np.flatnonzero(~chosen)
        )

    def take(self, rows: np.ndarray) -> "TrainingCells":
        """Return the same with other cells to train on, given by their rows in `LogValues`; they may repeat."""
        codes = np.searchsorted(list(self.values.frame.type_sizes), self.values.types[rows])
        X, types = torch.from_numpy(self.values.X[rows]), torch.from_numpy(codes)
        on = self.validation.device
        return TrainingCells(self.values, X.to(on), types.to(on), rows, self.validation)


def prepare(cells: AnnData, params: BaselineParams, *, seed: int, device: Device) -> TrainingCells:
    """Bring cells into the form that `train` takes; errors as of `LogValues.of`."""
    return TrainingCells.of(LogValues.of(cells), params.validation, choose_device(device), np.random.default_rng(seed))


# -------------------------------------------------------------------------------------------- training


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


# -------------------------------------------------------------------------------------------- models


class Model(Protocol):
    """What the script asks of a fitted baseline."""

    @property
    def values(self) -> LogValues:
        """What it learnt from."""

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """What model.pt keeps the weights of."""

    @property
    def losses(self) -> pd.DataFrame:
        """The table of losses.csv."""


@dataclass(frozen=True)
class Unconditional:
    """A generator that is not told what type to make; a classifier trained on the training cells labels its cells.

    The classifier is a logistic regression on 30 principal components of the log values.
    """

    values: LogValues
    draw: Draw
    networks: Mapping[str, nn.Module]
    losses: pd.DataFrame
    labeller: Pipeline | None = field(repr=False)
    """None if there is one type"""

    @classmethod
    def of(
        cls, data: TrainingCells, draw: Draw, networks: Mapping[str, nn.Module], losses: pd.DataFrame
    ) -> "Unconditional":
        """Add the classifier to a trained generator."""
        values, labeller = data.values, None
        if len(values.frame.type_sizes) > 1:
            n_pcs = max(1, min(LABEL_PCS, *(size - 1 for size in values.X.shape)))
            labeller = make_pipeline(PCA(n_pcs, random_state=0), LogisticRegression(max_iter=1000))
            labeller.fit(values.X, values.types)
        return cls(values, draw, networks, losses, labeller)

    def label(self, X: np.ndarray) -> np.ndarray:
        """Return the name of each cell's type, given log values (n_cells, n_genes)."""
        if self.labeller is None:
            return np.repeat(list(self.values.frame.type_sizes), len(X))
        found: np.ndarray = self.labeller.predict(X)
        return found


@torch.no_grad()
def sample(model: Unconditional, n_cells: int, *, cell_type: str | None = None, seed: int) -> AnnData:
    """Draw cells of whatever types come, or draw until there are enough of one type.

    Parameters
    ----------
    cell_type
        Keep cells that the classifier takes for this type only.
    seed
        The same seed gives the same cells on the same machine.

    Returns
    -------
    Cells on the scale of the input, with obs cell_type.

    Raises
    ------
    UserError
        If the number is not positive, there is no such type, or it does not turn up often enough.
    """
    frame, rng = model.values.frame, np.random.default_rng(seed)
    frame.check(n_cells, cell_type)
    parts: list[sp.csr_matrix] = []
    types: list[np.ndarray] = []
    found = 0
    n_draws = MOST_DRAWS * -(-n_cells // CELLS_AT_ONCE)
    with reproducible(seed):
        for _ in range(n_draws):
            X = model.draw(CELLS_AT_ONCE).cpu().numpy()
            labels = model.label(X)
            kept = np.flatnonzero((labels == cell_type) | (cell_type is None))[: n_cells - found]
            parts.append(model.values.back(X[kept], labels[kept], rng))
            types.append(labels[kept])
            found += len(kept)
            if found == n_cells:
                return frame.assemble(parts, np.concatenate(types))
    raise UserError(
        f"the generator made {found} of {n_cells} cells of type {cell_type} in {n_draws * CELLS_AT_ONCE} draws: draw "
        "freely (leave out --cell-type), train it longer, or take a method that is told the type"
    )


# -------------------------------------------------------------------------------------------- the script

P = TypeVar("P", bound=BaselineParams)


@dataclass(frozen=True)
class Args(Generic[P]):
    """Real cells in, synthetic cells out."""

    source: CellSource
    params: P
    preset: Literal["tuned", "paper"] = "tuned"
    """tuned: trained until it stops improving; paper: the published settings. Each has its own defaults"""
    seed: int = SEED
    """seed of everything random"""
    device: Device = "auto"
    """where to compute"""
    name: str | None = None
    """what tables and folders call this run's method; by default its name, with _paper added for preset paper"""
    out: Path | None = None
    """folder of the run; by default results/synthetic/<dataset>/<name>/seed<seed>"""
    n_cells: int | None = None
    """cells to draw; by default as many as there were to learn from"""
    cell_type: str | None = None
    """draw this type only"""
    holdout: float = 0.0
    """share of each type's cells kept away from everything, to judge the result by; listed in heldout.csv"""


def parse(method: str, argv: Sequence[str], doc: str | None = None) -> Args:
    """Read the command line of a baseline; the preset decides the defaults of its hyperparameters."""
    presets = BASELINES[method]
    params = presets.get(preset_of(argv, "tuned"), presets["tuned"])
    kind: Any = Args[type(params)]  # type: ignore[misc]
    args: Args = tyro.cli(
        kind, default=kind(CellSource(), params), args=list(argv), prog=f"{method}.py", description=doc,
        config=(tyro.conf.OmitArgPrefixes,),
    )  # fmt: skip
    return args


def script(
    method: str, doc: str | None, fit: Callable[..., Model], sample: Callable[..., AnnData], labels: str
) -> Callable[..., None]:
    """Make `main(argv)` of a baseline.

    Parameters
    ----------
    method
        Its name in `METHODS` and `config.BASELINES`.
    doc
        The text of --help.
    fit, sample
        The contract of a generator (`data_generation.model`).
    labels
        Where the cells' types come from: "given" to the generator, or from a "classifier".
    """

    @run_script
    def main(argv: Sequence[str] | None = None) -> None:
        """Learn from the cells, draw, and write the run's folder."""
        argv = list(sys.argv[1:] if argv is None else argv)
        args = parse(method, argv, doc)
        check_seed(args.seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        clock = Stopwatch()
        with clock.stage("loading"):
            cells, held = load_split(args.source, args.holdout, args.seed)
        name = args.name or (method if args.preset == "tuned" else f"{method}_{args.preset}")
        folder = folder_of(args.out, cells.uns["dataset"], name, args.seed)
        n_cells, device = cells.n_obs if args.n_cells is None else args.n_cells, choose_device(args.device)
        Frame.of(cells).check(n_cells, args.cell_type)
        check_writable(folder)
        report_cells(cells, held)
        with clock.stage("training"), progress_bar() as report:
            model = fit(cells, args.params, seed=args.seed, device=args.device, report=report)
        with clock.stage("sampling"):
            drawn = sample(model, n_cells, cell_type=args.cell_type, seed=args.seed)
        print_notes(model.values.notes)
        for old in ("run.json", "heldout.csv"):  # of an earlier run; until this one is whole there is no run.json
            (folder / old).unlink(missing_ok=True)
        write_cells(folder, drawn)
        write_table(folder / "losses.csv", model.losses)
        write_held(folder, held)
        weights = {part: network.state_dict() for part, network in model.networks.items()}
        write_tensors(folder / "model.pt", {"format": FORMAT, "method": method, **weights})
        write_json(folder / "run.json", record_of(
            cells, args.source, argv=argv, method=name, preset=args.preset, seed=args.seed, holdout=args.holdout,
            params=asdict(args.params), notes=model.values.notes, device=device, clock=clock, baseline=method,
            labels=labels, steps=_last(model.losses),
        ))  # fmt: skip
        seconds = sum(stage["seconds"] for stage in clock.stages.values())
        console.print(escape(f"wrote cells, losses, model and run.json to {folder} in {seconds:.0f} s"), soft_wrap=True)

    return main


def _last(losses: pd.DataFrame) -> int:
    return int(losses["step"].iloc[-1]) if len(losses) else 0
