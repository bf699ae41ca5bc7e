"""What every baseline has beside its networks, losses and training: labels for its cells, and its script.

Generators that are not told cell types are `Unconditional`; a classifier labels what they make.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any, Literal, Protocol, TypeVar

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
from torch import nn

from benchmarking.controls.contract import Frame
from benchmarking.training import Draw, LogValues, TrainingCells, reproducible
from common.checks import nearest
from common.cli import console, progress_bar, run_script
from common.data import CellSource
from common.device import choose_device
from common.errors import UserError
from common.generation import (
    GeneratorArgs,
    check_seed,
    folder_of,
    load_split,
    preset_of,
    print_notes,
    record_of,
    report_cells,
    write_held,
)
from common.run import Stopwatch, check_writable, write_cells, write_json, write_table, write_tensors
from config import BASELINES, BaselineParams

METHODS = {
    "gan": "benchmarking.sota.gan", "wgan": "benchmarking.sota.wgan", "fgan": "benchmarking.sota.fgan",
    "vae": "benchmarking.sota.vae", "lsh_gan": "benchmarking.sota.lsh_gan",
    "scgan": "benchmarking.scrna_seq_specific.scgan", "scvae": "benchmarking.scrna_seq_specific.scvae",
    "scdiffusion": "benchmarking.scrna_seq_specific.scdiffusion",
    "gan_ros": "benchmarking.scrna_seq_specific.gan_ros", "vae_ros": "benchmarking.scrna_seq_specific.vae_ros",
}  # fmt: skip
"""the module of each baseline, in the order of a table; imported by `load_method`"""

FORMAT = "baseline-model-1"
LABEL_PCS = 30  # principal components on which generated cells are labelled
CELLS_AT_ONCE = 1000  # bounds the memory of sampling
MOST_DRAWS = 50  # times the cells asked for: how long to wait for a type that the generator hardly makes


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


P = TypeVar("P", bound=BaselineParams)


@dataclass(frozen=True)
class Args(GeneratorArgs[P]):
    """Real cells in, synthetic cells out."""

    preset: Literal["tuned", "paper"] = "tuned"
    """tuned: trained until it stops improving; paper: the published settings. Each has its own defaults"""


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
