"""GARAGE: real cells in, synthetic cells out (paper, "GARAGE").

Run:    python data_generation/garage.py --dataset pbmc68k --preset garage --leakage 0.2 --seed 42
Reads:  a data set of config.py, or your own cells (--input, --expression-csv)
Writes: results/synthetic/<dataset>/<name>/seed<k>/: cells.h5ad, cells.csv, seeds.csv, losses.csv, model.pt, run.json

Several processes:  torchrun --nproc-per-node 2 data_generation/garage.py, and the same flags

The work is done by `fit()` and `sample()` of `model.py`, which importers find here too.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

import pandas as pd
import torch
from anndata import AnnData
from rich.markup import escape
from rich.table import Table

from common.cli import Reporter, console, parse_flags, progress_bar, run_script, silent, speaking
from common.data import CellSource
from common.device import choose_device
from common.disk import is_on_disk
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
from common.processes import Team, joined
from common.run import (
    ResumableRun,
    Stopwatch,
    claimed,
    digest,
    write_cells,
    write_record,
    write_table,
    write_tensors,
)
from config import GarageParams, PaperParams
from data_generation import paper_gan, seeded_gan
from data_generation.model import Garage, check_proportions, fit, load, sample, sample_blocks

__all__ = ["fit", "load", "main", "sample"]

SCRIPT = "data_generation.garage"
TRIAL_STEPS = 20  # of each phase, by which --dry-run estimates
FRACTIONS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # the paper's output sizes, in training cells
P = TypeVar("P", GarageParams, PaperParams)


@dataclass(frozen=True)
class Args(GeneratorArgs[P]):
    """Real cells in, synthetic cells out."""

    preset: Literal["garage", "paper"] = "garage"
    """garage: the method as it should be; paper: the published model and loop. Each has its own hyperparameters"""
    proportions: str = "real"
    """composition to draw: real, uniform, or a csv file with columns cell_type and proportion"""
    fractions: bool = False
    """also draw the paper's six sizes, 0.25 to 1.5 times the training cells, as cells_<fraction>n"""
    csv: bool = True
    """write cells.csv beside cells.h5ad: text takes a while and much room for many cells"""
    resume: bool = False
    """go on with the folder's interrupted run"""


def parse(argv: Sequence[str]) -> Args[GarageParams] | Args[PaperParams]:
    """Read the command line; the preset decides which hyperparameters there are."""
    kind = Args[PaperParams] if preset_of(argv, "garage") == "paper" else Args[GarageParams]
    args: Any = parse_flags(kind, argv, prog="garage")
    return args


def _composition(args: Args, types: list[str]) -> dict[str, float] | None:
    """Read which types are to be drawn, None for the training cells' composition; called before training too."""
    given, proportions = args.proportions, None
    if args.cell_type is not None:
        if given != "real":
            raise UserError("--cell-type and --proportions are two compositions: give one of them")
        proportions = {args.cell_type: 1.0}
    elif given == "uniform":
        proportions = dict.fromkeys(types, 1.0)
    elif given != "real":
        try:
            table = pd.read_csv(given)
            names = table["cell_type"].astype(str).str.strip()
            proportions = dict(zip(names, table["proportion"].astype(float), strict=True))
        except (OSError, KeyError, ValueError) as error:
            raise UserError(
                f"--proportions {given} is neither real, uniform, nor a csv file with columns cell_type and proportion"
            ) from error
        if repeated := names[names.duplicated()].tolist():
            raise UserError(f"--proportions {given} names {repeated[0]} more than once: give each type one line")
    if proportions is not None:
        check_proportions(proportions, types)
    if args.n_cells is not None and args.n_cells < 1:
        raise UserError(f"--n-cells is {args.n_cells}: give at least 1")
    return proportions


def _identity(
    cells: AnnData, args: Args, params: GarageParams | PaperParams, device: torch.device
) -> dict[str, Any]:  # fmt: skip
    X = cells.X.tocsr()
    names = "\n".join([*cells.obs_names, *cells.var_names, *cells.obs["cell_type"].astype(str)])
    data = digest(X.indptr.data, X.indices.data, X.data.data, names.encode())
    return {
        "data": data, "scale": cells.uns["scale"], "seed": args.seed, "preset": args.preset, "parameters": repr(params),
        "device": device.type,
    }  # fmt: skip


def _summary(model: Garage, drawn: pd.DataFrame) -> Table:
    table = Table("type", "real cells", "synthetic cells", "seeds", box=None)
    synthetic = drawn["cell_type"].value_counts()
    seeds = {} if model.seeds is None else model.seeds.groupby("cell_type")["is_seed"].sum()
    for name, n in zip(model.types, model.type_counts, strict=True):
        table.add_row(escape(name), str(n), str(synthetic.get(name, 0)), str(seeds[name]) if len(seeds) else "")
    return table


def _draw(args: Args, model: Garage, folder: Path) -> pd.DataFrame:
    """Draw what was asked for, write it as it comes, and return obs."""
    proportions = _composition(args, model.types)
    n_cells = sum(model.type_counts) if args.n_cells is None else args.n_cells

    def draw(n: int, report: Reporter = silent, **columns: float) -> Iterator[AnnData]:
        done = 0
        for block in sample_blocks(model, n, proportions=proportions, seed=args.seed):
            block.obs = block.obs.assign(**columns)
            yield block
            done += block.n_obs
            report("sampling", done, n)

    with progress_bar() as report:
        blocks = draw(n_cells, report)
        first = next(blocks)  # what cannot be drawn is found out before anything is removed
        sizes = [f"cells_{fraction:g}n" for fraction in FRACTIONS]
        forget_result(folder)
        for old in (f"{name}.{kind}" for name in ("cells", *sizes) for kind in ("h5ad", "csv")):
            (folder / old).unlink(missing_ok=True)
        drawn = write_cells(folder, chain([first], blocks), text=args.csv)
    for fraction, size in zip(FRACTIONS, sizes, strict=True) if args.fractions else ():
        n_of_size = max(1, int(fraction * sum(model.type_counts)))
        write_cells(folder, draw(n_of_size, fraction=fraction), size, text=args.csv)
    return drawn


def _draw_more(args: Args, argv: list[str]) -> None:
    """Draw from a finished run."""
    model, drawn, folder = draw_from(
        args, type(args)(source=CellSource(), params=type(args.params)()), argv, load=load, draw=_draw,
        describe=lambda model: {"dataset": model.dataset, "method": model.preset, "params": asdict(model.params)},
    )  # fmt: skip
    console.print(_summary(model, drawn))
    finish(args, folder, drawn["cell_type"], SCRIPT)


def _warn_of_hours(cells: AnnData, params: PaperParams) -> None:
    """Tell how long the published loop will take on this CPU, by one iteration on cells of the same number and size."""
    trial = paper_gan.Training(torch.zeros(cells.shape), torch.zeros(0, cells.n_vars), params, torch.Generator())
    trial.iterate()  # memory and kernels are set up on first use
    start = time.perf_counter()
    trial.iterate()
    hours = (time.perf_counter() - start) * params.iterations / 3600
    print_notes([f"preset paper on a CPU: its {params.iterations} iterations will take about {hours:.1f} hours"])


def _shorten(params: Any, n_cells: int) -> tuple[Any, dict[str, int]]:
    """Return parameters for a trial of `TRIAL_STEPS` of each phase, and how many steps these have in full."""
    stages = {"attention": params.gat_networks * params.gat_epochs}
    if isinstance(params, PaperParams):
        shortened: tuple[str, ...] = ("gat_epochs", "iterations")
        stages["GAN"] = params.iterations
    else:
        shortened = ("gat_epochs", "anchor_steps", "critic_steps")
        stages |= {"anchor": seeded_gan.count_anchor_steps(n_cells, params), "critic": params.critic_steps}
    few = {name: min(getattr(params, name), TRIAL_STEPS) for name in shortened}
    return replace(params, gat_networks=1, **few), stages


def _train_and_draw(args: Args, argv: list[str], team: Team) -> None:
    """Learn from the cells; then the process that leads draws, and writes the run's folder."""
    clock = Stopwatch()
    with clock.stage("loading"):
        cells, held = load_split(args.source, args.holdout, args.split_by)
    params = args.params
    if params.rare_threshold is None:
        params = replace(params, rare_threshold=cells.uns.get("rare_threshold"))
    device = choose_device(args.device)  # tells before training
    name = args.name or args.preset
    folder = folder_of(args.out, cells.uns["dataset"], name, args.seed)
    check_replaceable(args, folder, cells)
    _composition(args, sorted(cells.obs["cell_type"].astype(str).unique()))
    report_cells(cells, held)
    if args.dry_run:
        if team.leads:
            trial, steps = _shorten(params, cells.n_obs)
            rehearse(
                args, cells, lambda report: fit(cells, trial, seed=args.seed, device=args.device, report=report),
                method=name, params=asdict(params), folder=folder, device=device, steps=steps,
                n_cells=cells.n_obs if args.n_cells is None else args.n_cells,
            )  # fmt: skip
        return
    with claimed(folder) if team.leads else nullcontext():
        identity = _identity(cells, args, params, device)
        run = ResumableRun(folder, identity, resume=args.resume and team.leads, writes=team.leads)
        if isinstance(params, PaperParams) and device.type == "cpu" and not is_on_disk(cells.X):  # which `fit` refuses
            _warn_of_hours(cells, params)
        with progress_bar() as report, run.stoppable():
            model = fit(
                cells, params, seed=args.seed, device=args.device, report=report, run=run, clock=clock, team=team
            )
        if not team.leads:
            return
        print_notes(model.notes)
        with clock.stage("sampling"):
            drawn = _draw(args, model, folder)
        assert model.seeds is not None and model.losses is not None
        write_table(folder / "seeds.csv", model.seeds)
        write_table(folder / "losses.csv", model.losses)
        write_held(folder, held)
        write_tensors(folder / "model.pt", model.content())
        write_record(folder, record_of(
            cells, args, argv=argv, method=name, params=asdict(params), notes=model.notes, device=model.device,
            clock=clock, attention_accuracy=model.accuracy,
            labels="classifier" if isinstance(params, PaperParams) else "given",
        ))  # fmt: skip
        run.forget()
    console.print(_summary(model, drawn))
    sizes = cells.obs["cell_type"].value_counts()
    judged = "held-back" if (params.gat_validation * sizes >= 1).any() else "training"
    console.print(f"the attention network knows the type of {model.accuracy:.0%} of its {judged} cells")
    seconds = sum(stage["seconds"] for stage in clock.stages.values())
    written = f"wrote cells, seeds, losses, model and run.json to {folder} in {seconds:.0f} s"
    console.print(escape(written), soft_wrap=True)
    finish(args, folder, drawn["cell_type"], SCRIPT)


@run_script
def main(argv: list[str]) -> None:
    """Run the script."""
    args = parse(argv)
    check_seed(args)
    with joined(args.device) as team, speaking(quiet=not team.leads, json=args.json):
        if args.from_ is None:
            _train_and_draw(args, argv, team)
        elif team.leads:  # drawing takes one process
            _draw_more(args, argv)


if __name__ == "__main__":
    main()
