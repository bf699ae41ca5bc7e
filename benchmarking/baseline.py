"""What every baseline has beside its networks, losses and training: labels for its cells, and its script.

Generators that are not told cell types are `Unconditional`; a classifier labels what they make.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from rich.markup import escape
from torch import nn

from benchmarking.controls.contract import Frame
from benchmarking.scrna_seq_specific.conditional import Conditional
from benchmarking.training import CELLS_AT_ONCE, Memory, TrainingCells, reproducible
from common.checks import check_known
from common.cli import console, parse_flags, progress_bar, run_script, speaking
from common.data import CellSource
from common.device import Device, choose_device
from common.errors import UserError
from common.generation import (
    GeneratorArgs,
    check_replaceable,
    check_seed,
    draw_from,
    finish,
    folder_of,
    forget_result,
    load_split,
    preset_of,
    print_notes,
    record_of,
    rehearse,
    report_cells,
    write_held,
)
from common.run import Stopwatch, claimed, read_tensors, write_cells, write_record, write_table, write_tensors
from config import BASELINES, BaselineParams
from data_generation.labeller import MOST_DRAWS, Labeller

METHODS = {
    "gan": "benchmarking.sota.gan", "wgan": "benchmarking.sota.wgan", "fgan": "benchmarking.sota.fgan",
    "vae": "benchmarking.sota.vae", "lsh_gan": "benchmarking.sota.lsh_gan",
    "scgan": "benchmarking.scrna_seq_specific.scgan", "scvae": "benchmarking.scrna_seq_specific.scvae",
    "scdiffusion": "benchmarking.scrna_seq_specific.scdiffusion",
    "gan_ros": "benchmarking.scrna_seq_specific.gan_ros", "vae_ros": "benchmarking.scrna_seq_specific.vae_ros",
}  # fmt: skip
"""the module of each baseline, in the order of a table; imported by `load_method`"""

FORMAT = "baseline-model-1"


def load_method(name: str) -> ModuleType:
    """Import a baseline.

    Raises
    ------
    UserError
        If there is none of that name.
    """
    check_known(name, METHODS, "there is no baseline")
    return import_module(METHODS[name])


class Model(Protocol):
    """What the script asks of a fitted baseline."""

    @property
    def memory(self) -> Memory:
        """What it knows of the training cells beside its weights."""

    @property
    def sampler(self) -> nn.Module:
        """The module that draws cells; model.pt keeps its weights."""

    @property
    def losses(self) -> pd.DataFrame:
        """The table of losses.csv; empty if the model was read from a file."""


@dataclass(frozen=True)
class Unconditional:
    """A generator that is not told what type to make; a classifier trained on the training cells labels its cells."""

    memory: Memory
    sampler: Any
    """a module; `draw(n)` makes log values (n, n_genes)"""
    losses: pd.DataFrame
    labeller: Labeller

    @classmethod
    def of(cls, data: TrainingCells, sampler: nn.Module, losses: pd.DataFrame) -> "Unconditional":
        """Add the classifier to a trained generator."""
        return cls(data.values.memory, sampler, losses, Labeller.of(data.values.X, data.values.types))


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
    frame, rng = model.memory.frame, np.random.default_rng(seed)
    frame.check(n_cells, cell_type)
    parts: list[sp.csr_matrix] = []
    types: list[np.ndarray] = []
    found = 0
    n_draws = MOST_DRAWS * -(-n_cells // CELLS_AT_ONCE)
    with reproducible(seed):
        for _ in range(n_draws):
            X = model.sampler.draw(CELLS_AT_ONCE).cpu().numpy()
            labels = model.labeller.label(X)
            kept = np.flatnonzero((labels == cell_type) | (cell_type is None))[: n_cells - found]
            parts.append(model.memory.back(X[kept], labels[kept], rng))
            types.append(labels[kept])
            found += len(kept)
            if found == n_cells:
                return frame.assemble(parts, np.concatenate(types))
    raise UserError(
        f"the generator made {found} of {n_cells} cells of type {cell_type} in {n_draws * CELLS_AT_ONCE} draws: draw "
        "freely (leave out --cell-type), train it longer, or take a method that is told the type"
    )


def content_of(model: Model, method: str, params: BaselineParams) -> dict[str, Any]:
    """Return what model.pt holds: tensors, numbers, strings, lists and dicts only."""
    content = {
        "format": FORMAT, "method": method, "params": asdict(params), "memory": model.memory.content(),
        "weights": model.sampler.state_dict(),
    }  # fmt: skip
    return content | ({"labeller": model.labeller.content()} if isinstance(model, Unconditional) else {})


def load(path: Path, *, device: Device = "auto") -> tuple[Model, str, BaselineParams]:
    """Read a model from model.pt.

    Returns
    -------
    The model, to be given to its method's `sample`, the method's name, and its hyperparameters.

    Raises
    ------
    UserError
        If the file is missing, damaged, or not a baseline's model.
    """
    content = read_tensors(path)
    if content["format"] != FORMAT:
        raise UserError(f"{path} is a {content['format']}, and no {FORMAT}: give the model.pt of a baseline's run")
    try:
        name = content["method"]
        method: Any = load_method(name)
        params = type(BASELINES[name]["tuned"])(**content["params"])
        memory = Memory.from_content(content["memory"])
        sampler = method.make(memory.frame, params)
        sampler.load_state_dict(content["weights"])
        sampler.to(choose_device(device)).eval().requires_grad_(False)
        if method.LABELS == "given":
            return Conditional(memory, sampler, method.draw, pd.DataFrame()), name, params
        labeller = Labeller.from_content(content["labeller"])
        return Unconditional(memory, sampler, pd.DataFrame(), labeller), name, params
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} lacks parts of a model ({error}): give the model.pt of a finished run") from error


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
    args: Args = parse_flags(kind, argv, doc, default=kind(CellSource(), params), prog=f"{method}.py")
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
    def main(argv: list[str]) -> None:
        """Learn from the cells, draw, and write the run's folder."""
        args = parse(method, argv, doc)
        check_seed(args)
        if args.source.on_disk:
            raise UserError("a baseline learns from all cells in memory: leave out --on-disk")
        with speaking(json=args.json):
            if args.from_ is not None:
                draw_more(args, argv)
            else:
                train_and_draw(args, argv)

    def draw_more(args: Args, argv: list[str]) -> None:
        _, drawn, folder = draw_from(
            args, Args(CellSource(), BASELINES[method]["tuned"]), argv, load=load, draw=partial(_draw, method),
            describe=lambda m: {"dataset": m[0].memory.frame.dataset, "method": m[1], "params": asdict(m[2])},
        )  # fmt: skip
        finish(args, folder, drawn.obs["cell_type"], METHODS[method])

    def train_and_draw(args: Args, argv: list[str]) -> None:
        clock = Stopwatch()
        with clock.stage("loading"):
            cells, held = load_split(args.source, args.holdout, args.split_by)
        name = args.name or (method if args.preset == "tuned" else f"{method}_{args.preset}")
        folder = folder_of(args.out, cells.uns["dataset"], name, args.seed)
        check_replaceable(args, folder, cells)
        n_cells, device = cells.n_obs if args.n_cells is None else args.n_cells, choose_device(args.device)
        Frame.of(cells).check(n_cells, args.cell_type)
        learn = partial(fit, cells, args.params, seed=args.seed, device=args.device)
        report_cells(cells, held)
        if args.dry_run:
            rehearse(
                args, cells, lambda report: learn(report=report), method=name, params=asdict(args.params),
                folder=folder, n_cells=n_cells, device=device, until="training",
            )  # fmt: skip
            return
        with claimed(folder):
            with clock.stage("training"), progress_bar() as report:
                model = learn(report=report)
            with clock.stage("sampling"):
                drawn = sample(model, n_cells, cell_type=args.cell_type, seed=args.seed)
            print_notes(model.memory.notes)
            forget_result(folder)
            write_cells(folder, [drawn])
            write_table(folder / "losses.csv", model.losses)
            write_held(folder, held)
            write_tensors(folder / "model.pt", content_of(model, method, args.params))
            write_record(folder, record_of(
                cells, args, argv=argv, method=name, params=asdict(args.params), notes=model.memory.notes,
                device=device, clock=clock, baseline=method, labels=labels, steps=_last(model.losses),
            ))  # fmt: skip
        seconds = sum(stage["seconds"] for stage in clock.stages.values())
        console.print(escape(f"wrote cells, losses, model and run.json to {folder} in {seconds:.0f} s"), soft_wrap=True)
        finish(args, folder, drawn.obs["cell_type"], METHODS[method])

    return main


def _draw(method: str, args: Args, loaded: tuple[Model, str, BaselineParams], folder: Path) -> AnnData:
    """Draw from a model that was read, and write the cells."""
    model, trained, _ = loaded
    if trained != method:
        raise UserError(f"{args.from_} is a run of {trained}: draw from it with its own script")
    n_cells = len(model.memory.types) if args.n_cells is None else args.n_cells
    drawn: AnnData = load_method(method).sample(model, n_cells, cell_type=args.cell_type, seed=args.seed)
    forget_result(folder)
    write_cells(folder, [drawn])
    return drawn


def _last(losses: pd.DataFrame) -> int:
    return int(losses["step"].iloc[-1]) if len(losses) else 0
