"""What the script of every generator does beside its method: real cells in and split, its folder, its record."""

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Generic, TypeVar

import pandas as pd
import torch
import tyro
from anndata import AnnData
from rich.markup import escape
from rich.table import Table

from common.cli import Reporter, console, errors, progress_bar
from common.data import CellSource, load_cells, select_genes, split_cells
from common.device import Device, choose_device
from common.disk import subset
from common.errors import UserError
from common.run import (
    Stopwatch,
    check_writable,
    claimed,
    environment,
    file_digest,
    load_record,
    write_record,
    write_table,
)
from config import RESULTS_DIR, SEED

P = TypeVar("P")


@dataclass(frozen=True)
class GeneratorArgs(Generic[P]):
    """Real cells in, synthetic cells out: the flags that every generator's script has."""

    source: CellSource
    params: P
    seed: int = SEED
    """seed of everything random"""
    device: Device = "auto"
    """where to compute"""
    name: str | None = None
    """what tables and folders call this run's method; by default that of the method and its preset"""
    out: Path | None = None
    """folder of the run; by default results/synthetic/<dataset>/<name>/seed<seed>"""
    n_cells: int | None = None
    """cells to draw; by default as many as there were to learn from"""
    cell_type: str | None = None
    """draw this type only"""
    holdout: float = 0.0
    """share of each type's cells kept away from everything, to judge the result by; listed in heldout.csv"""
    split_seed: int | None = None
    """seed of what is held out; by default that of everything else"""
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """draw from the finished run in this folder, without training"""
    dry_run: bool = False
    """tell the parameters of the run and estimate its time and memory by a short trial; write nothing"""
    json: bool = False
    """print one JSON object about the run on stdout, and words on stderr only"""

    @property
    def split_by(self) -> int:
        """Seed of what is held out."""
        return self.seed if self.split_seed is None else self.split_seed


def preset_of(argv: Sequence[str], default: str) -> str:
    """Find the preset in a command line, before it is parsed: the preset decides what hyperparameters there are."""
    preset = default
    for i, word in enumerate(argv):
        if word.startswith("--preset"):
            preset = word.partition("=")[2] or (argv[i + 1] if i + 1 < len(argv) else "")
    return preset


def check_seed(args: GeneratorArgs) -> None:
    """Refuse a seed that a random number generator would."""
    for flag, seed in (("--seed", args.seed), ("--split-seed", args.split_seed)):
        if seed is not None and not 0 <= seed < 2**32:
            raise UserError(f"{flag} is {seed}: give a number from 0 to {2**32 - 1}")


def load_split(source: CellSource, holdout: float, seed: int) -> tuple[AnnData, AnnData | None]:
    """Load the cells and split them by a seed; genes are chosen on the training cells only, clusters on all.

    Returns
    -------
    Training cells, and held-out cells with all genes (None if the share is 0).
    """
    cells = load_cells(replace(source, n_top_genes=None))
    if source.cluster and holdout > 0:
        cells.uns["notes"].append(
            "clusters are those of all cells, the held-out ones among them: types are known, not learnt"
        )
    cells, held = split_cells(cells, holdout, seed)
    if source.n_top_genes is not None:
        cells = subset(cells, genes=cells.var_names.isin(select_genes(cells, source.n_top_genes)))
    return cells, held


def report_cells(cells: AnnData, held: AnnData | None) -> None:
    """Say what was loaded, and what is odd about it."""
    types = cells.obs["cell_type"].nunique()
    from_whom = {"authors": "the authors' labels", "leiden": "Leiden clusters"}.get(
        cells.uns["labels_from"], cells.uns["labels_from"]
    )
    kept_away = "" if held is None else f"; {held.n_obs} cells held out"
    console.print(
        f"{escape(cells.uns['dataset'])}: {cells.n_obs} cells x {cells.n_vars} genes on the scale "
        f"[bold]{cells.uns['scale']}[/], {types} types ({escape(from_whom)}){kept_away}",
        soft_wrap=True,
    )
    print_notes(cells.uns["notes"])


def print_notes(notes: Sequence[str]) -> None:
    """Show sentences that a user should know of."""
    for note in notes:
        errors.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)


def folder_of(out: Path | None, dataset: str, name: str, seed: int) -> Path:
    """Return the folder of a run: what --out says, otherwise the method's own."""
    return out or RESULTS_DIR / "synthetic" / dataset / name / f"seed{seed}"


def write_held(folder: Path, held: AnnData | None) -> None:
    """Write the names of held-out cells, if there are any, to heldout.csv."""
    if held is not None:
        write_table(folder / "heldout.csv", held.obs[["cell_type"]].rename_axis("cell").reset_index())


def forget_result(folder: Path) -> None:
    """Remove what an earlier run left: until a new one is whole there is no run.json."""
    for old in ("run.json", "heldout.csv", "seeds.csv"):
        (folder / old).unlink(missing_ok=True)


def check_replaceable(args: GeneratorArgs, folder: Path, cells: AnnData) -> None:
    """Make sure that a run without --out does not take the place of one on other data that happen to be called alike.

    Raises
    ------
    UserError
        If it does.
    """
    path = folder / "run.json"
    if args.out is not None or not path.exists():
        return
    try:
        record, source = load_record(path), _absolute(asdict(args.source))
    except UserError:  # it is damaged: nothing is lost
        return
    here, there = (given.get("input") or given.get("expression_csv") for given in (source, record.get("source", {})))
    if here != there and record.get("sha256") != cells.uns["sha256"]:
        raise UserError(f"{folder} holds a run on other data, {there}: give --name or --out, or remove it")


A = TypeVar("A", bound=GeneratorArgs)
M = TypeVar("M")
D = TypeVar("D")


def draw_from(
    args: A, plain: A, argv: list[str], *, load: Callable[..., M], draw: Callable[[A, M, Path], D],
    describe: Callable[[M], dict[str, Any]],
) -> tuple[M, D, Path]:  # fmt: skip
    """Draw cells from the finished run that --from names, which has its data and parameters already.

    Parameters
    ----------
    plain
        Flags as they are when none is given.
    load
        Reads model.pt, given its path and device.
    draw
        Draws the cells, writes them into a folder, and returns what there is to say of them.
    describe
        Returns what run.json says of the model: dataset, method, params.

    Returns
    -------
    The model, what there is to say of the cells, and their folder.

    Raises
    ------
    UserError
        If a flag is given that the run has settled, there is no model, or the folder belongs to another run.
    """
    assert args.from_ is not None
    if args.dry_run:
        raise UserError("--dry-run is about training, and --from trains nothing: leave one of them out")
    settled = ("source", "params", "preset", "name", "holdout", "split_seed", "resume")
    given = [name for name in settled if getattr(args, name, None) != getattr(plain, name, None)]
    if given:
        raise UserError(
            f"--from draws from a finished run, which settles its {' and '.join(given)}: leave those flags out"
        )
    folder, path = args.out or args.from_ / f"drawn_seed{args.seed}", args.from_ / "model.pt"
    if folder.resolve() == args.from_.resolve():
        raise UserError(f"{folder} is the run that is drawn from: give another folder with --out")
    model = load(path, device=args.device)
    with claimed(folder):
        if (folder / "model.pt").exists():
            raise UserError(f"{folder} holds a run with a model of its own: give another folder with --out")
        clock = Stopwatch()
        with clock.stage("sampling"):
            drawn = draw(args, model, folder)
        write_record(folder, {
            "argv": argv, "drawn_from": str(args.from_.resolve()), **describe(model),
            "sha256": {"model.pt": file_digest(path)}, "seed": args.seed,
            **environment(choose_device(args.device)), "stages": clock.stages,
        })  # fmt: skip
    console.print(f"wrote the cells and run.json to {escape(str(folder))}", soft_wrap=True)
    return model, drawn, folder


def record_of(
    cells: AnnData, args: Any, *, argv: list[str], method: str, params: dict[str, Any], notes: Sequence[str],
    device: torch.device, clock: Stopwatch, **facts: Any,
) -> dict[str, Any]:  # fmt: skip
    """Return what run.json holds, by which the run can be judged and repeated; `facts` are the method's own."""
    return {
        "argv": argv, "source": _absolute(asdict(args.source)),
        "dataset": cells.uns["dataset"], "method": method, "preset": args.preset, "scale": cells.uns["scale"],
        "labels_from": cells.uns["labels_from"], "rare_threshold": cells.uns.get("rare_threshold"),
        "sha256": cells.uns["sha256"], "seed": args.seed, "holdout": args.holdout, "split_seed": args.split_seed,
        "params": params, "cells": cells.n_obs, "genes": cells.n_vars, **facts,
        "notes": [*cells.uns["notes"], *notes], **environment(device), "stages": clock.stages,
    }  # fmt: skip


def finish(args: GeneratorArgs, folder: Path, types: pd.Series, module: str) -> None:
    """Show what to run next, and with --json print what run.json says.

    Parameters
    ----------
    types
        Cell types of the cells that were drawn.
    module
        The script, to draw more by.
    """
    if args.json:
        record = json.loads((folder / "run.json").read_text())
        print(json.dumps({"folder": str(folder.resolve()), "drawn": types.value_counts().to_dict(), **record}))
    run, model = shlex.quote(str(folder)), shlex.quote(str(args.from_ or folder))
    next_ = {"a page about it": f"analysis.report --run {run}", "more cells": f"{module} --from {model} --n-cells 5000"}
    if ((args.from_ or folder) / "heldout.csv").exists():
        next_ = {"to judge it": f"analysis.evaluate --runs {run}", **next_}
    for purpose, command in next_.items():
        console.print(f"{purpose + ':':<17}python -m {command}", soft_wrap=True, markup=False)


class _Enough(Exception):
    """A trial has shown how long a step takes."""


def estimate(learn: Callable[[Reporter], object], steps: Mapping[str, int], until: str) -> dict[str, float]:
    """Estimate seconds of learning and the peak of memory by a trial, as if no rule stopped it early.

    Parameters as of `rehearse`.
    """
    seen: dict[str, list[tuple[int, int, float]]] = {}
    clock = Stopwatch()
    with clock.stage("trial"), progress_bar() as bar, suppress(_Enough):

        def report(stage: str, step: int, total: int, **values: float) -> None:
            bar(f"trial of {stage}", step, total, **values)
            seen.setdefault(stage, []).append((step, total, time.perf_counter()))
            if stage == until and len(seen[stage]) == 2:
                raise _Enough

        learn(report)
    seconds = clock.stages["trial"]["seconds"]
    for stage, reports in seen.items():
        last, total, _ = reports[-1]
        left = steps.get(stage, total) - last
        first, _, start = reports[0]
        later = next(((step, end) for step, _, end in reports if step > first), None)  # the last step may come twice
        if left > 0 and later:
            seconds += left * (later[1] - start) / (later[0] - first)
    return {"seconds": round(seconds, 1), "peak_memory_mb": clock.stages["trial"]["peak_memory_mb"]}


def rehearse(
    args: Any, cells: AnnData, learn: Callable[[Reporter], object], *, method: str, params: dict[str, Any],
    folder: Path, n_cells: int, device: torch.device, steps: Mapping[str, int] = MappingProxyType({}), until: str = "",
) -> None:  # fmt: skip
    """Answer --dry-run: tell the parameters of a run, and what it takes by a trial whose result is thrown away.

    Parameters
    ----------
    learn
        Begins to train on the cells, given a reporter.
    steps
        How many steps a stage has in the run, where `learn` takes fewer.
    until
        The stage at whose second report the trial ends; by default `learn` ends by itself.
    """
    check_writable(folder)
    cost = estimate(learn, steps, until)
    plan = {
        "dataset": cells.uns["dataset"], "cells": cells.n_obs, "genes": cells.n_vars, "scale": str(cells.uns["scale"]),
        "method": method, "preset": args.preset, "holdout": args.holdout, "split_seed": args.split_by,
        "seed": args.seed, "device": str(device), "folder": str(folder.resolve()), "n_cells": n_cells,
    }  # fmt: skip
    table = Table("parameter", "value", box=None)
    for name, value in (plan | params).items():
        table.add_row(name, escape(str(value)))
    console.print(table)
    console.print(
        f"estimate: learning takes one process {_duration(cost['seconds'])}, less if it stops early, and "
        f"{cost['peak_memory_mb']:.0f} MB of memory; timed by some steps of each phase on these cells, with the "
        "machine as busy as it is now. Drawing and writing come on top. Nothing was written.",
        soft_wrap=True,
    )
    if args.json:
        print(json.dumps({**plan, "params": params, "estimate": cost}))


def _duration(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            number = seconds / size
            return f"about {number:.{int(number < 10)}f} {unit}"
    return f"about {seconds:.0f} s"


def _absolute(source: dict[str, Any]) -> dict[str, Any]:
    """Make paths absolute, so that the cells are found again from any folder."""
    return {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in source.items()}
