"""One cell of the benchmark's matrix: a generator learns from one part of a data set and is judged by the other.

Whatever the generator, the steps are the same: cells are split and genes chosen on the training cells, it learns and
draws as many cells as it learnt from, and every metric compares these with the held-out cells. What is in the table
already is left as it is, so that an interrupted matrix goes on; a failure is kept as a gap and tried again next time.
"""

import json
import traceback
import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from filelock import FileLock
from joblib import Parallel, cpu_count, delayed

from benchmarking import baseline
from benchmarking.baseline import METHODS, load_method
from benchmarking.calibrated import calibrate
from benchmarking.controls import CONTROLS
from common.cli import Reporter
from common.data import CellSource, types_of
from common.errors import UserError
from common.evaluation import evaluate
from common.generation import folder_of, forget_result, load_split
from common.judging import record_run, rows_of
from common.metrics.catalogue import ALL, METRICS, RARE, Computed
from common.run import Stopwatch
from common.runs import Run, describe_split, load_run, read_record, with_genes_of
from config import BaselineParams, GarageParams, PaperParams, SelectionParams
from data_generation import garage

CALIBRATED = "_calibrated"  # added to the names of methods
LOG = "log.txt"  # in a run's folder: what the script printed
Sampler = Callable[..., AnnData]
"""draws cells, called with their number, seed and, if all are to be of one type, cell_type"""


@dataclass(frozen=True)
class Job:
    """A generator and the split that it learns from."""

    source: CellSource
    holdout: float
    seed: int
    """of everything random in the generator"""
    generator: str
    """garage, a baseline or a control"""
    name: str
    """of its run's folder"""
    flags: tuple[str, ...] = ()
    """for the generator's script: preset and hyperparameters"""
    calibrated: bool = False
    """judge its cells after their marginals were calibrated as GARAGE's are"""
    split_seed: int | None = None
    """of the split, if it is not to be the generator's"""

    @property
    def split_by(self) -> int:
        """Seed of the split."""
        return self.seed if self.split_seed is None else self.split_seed

    @property
    def method(self) -> str:
        """What tables call it."""
        return self.name + CALIBRATED * self.calibrated

    @property
    def argv(self) -> list[str]:
        """The command line of the generator's script."""
        source = ("--dataset", self.source.dataset), ("--input", self.source.input)
        given = (*source, ("--n-top-genes", self.source.n_top_genes), ("--split-seed", self.split_seed))
        words = [word for flag, value in given if value is not None for word in (flag, str(value))]
        return [*words, "--holdout", f"{self.holdout:g}", "--seed", str(self.seed), "--name", self.name, *self.flags]


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    job: Job
    dataset: str
    status: Literal["judged", "known", "failed"]
    reason: str = ""
    """of a failure, one line"""
    split: str = ""
    """as tables call it; nothing if the cells could not be split"""


def perform_all(
    jobs: Sequence[Job], *, table: Path, families: Collection[Computed], n_jobs: int, again: bool, report: Reporter
) -> list[Outcome]:
    """Perform jobs in so many processes (`in_processes`); `again` makes and judges anew what is there."""
    if again:
        forget_runs(jobs)
    work = partial(perform, table=table, families=families, again=again)
    return in_processes(work, jobs, n_jobs=n_jobs, report=report)


def forget_runs(jobs: Sequence[Job]) -> None:
    """Have the runs of jobs made anew, each once, although they are as they would be made today."""
    for job in jobs:
        folder = folder_of(None, job.source.name, job.name, job.seed)
        with suppress(UserError):  # nothing is there, or it is damaged
            if is_trained(job) and read_record(folder)["argv"] == job.argv:
                forget_result(folder)


def in_processes(work: Callable[..., Outcome], jobs: Sequence[Job], *, n_jobs: int, report: Reporter) -> list[Outcome]:
    """Work on jobs in so many processes, which share the processor's cores; outcomes as they come.

    Parameters
    ----------
    work
        Called with a job, and with `threads`, how many of them it may use.
    """
    threads, found, failed = max(1, cpu_count() // n_jobs), [], 0
    report("benchmark", 0, len(jobs))
    tasks = (delayed(work)(job, threads=threads) for job in jobs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A worker stopped")  # it had grown, and joblib replaced it: no job is lost
        for outcome in Parallel(n_jobs, return_as="generator_unordered")(tasks):
            found.append(outcome)
            failed += outcome.status == "failed"
            report("benchmark", len(found), len(jobs), failed=failed)
    return found


def perform(job: Job, table: Path, families: Collection[Computed], *, again: bool, threads: int) -> Outcome:
    """Train, draw, judge, and write the rows of the table; whatever goes wrong becomes a gap in it and an outcome."""
    torch.set_num_threads(threads)  # numba sets it too, so anew for each job
    try:
        split = split_of(job)
    except UserError as error:
        return Outcome(job, job.source.name, "failed", str(error))
    folder = folder_of(None, split.dataset, job.name, job.seed)
    if not again and is_current(job, split) and _is_known(split, families, table):
        return Outcome(job, split.dataset, "known", split=split.split)
    try:
        is_control = job.generator in CONTROLS
        run, seconds = _draw_control(job, split) if is_control else _run_script(job, folder, split.train)
        if job.calibrated:
            cells = calibrate(run.synthetic, run.train, GarageParams(), seed=job.seed)
            run = replace(run, method=job.method, synthetic=cells)
        rows = evaluate(run, families=families)
    except Exception as error:  # a bug in one generator must not take the others with it, nor go unseen
        reason = explain(error, folder)
        groups = [ALL, RARE, *np.unique(types_of(split.held))]  # last among them all
        wanted = [name for name, metric in METRICS.items() if metric.family in {*families, "cost"}]
        gap = [(group, name, 0, np.nan) for group in groups for name in wanted]
        record_run(split, pd.DataFrame(gap, columns=_COLUMNS), table)  # in the place of what an earlier run had
        return Outcome(job, split.dataset, "failed", reason, split.split)
    cost = [(ALL, f"{stage}_seconds", run.train.n_obs, value) for stage, value in seconds.items()]
    record_run(run, pd.concat([rows, pd.DataFrame(cost, columns=_COLUMNS)]), table)
    return Outcome(job, split.dataset, "judged", split=split.split)


_COLUMNS = ["group", "metric", "n", "value"]


def split_of(job: Job) -> Run:
    """Return a job's run before it has drawn anything: its training and its held-out cells.

    Raises
    ------
    UserError
        If the cells cannot be read or split.
    """
    split = _split(job.source, job.holdout, job.split_by)
    described, params = describe_split(job.holdout, split.train.n_vars, job.split_seed), params_of(job, split.train)
    as_dict = asdict(params) if params else {}
    untold = isinstance(params, PaperParams) or (
        isinstance(params, BaselineParams) and load_method(job.generator).LABELS == "classifier"
    )
    return replace(
        split, method=job.method, seed=job.seed, split=described, params=as_dict,
        rare_threshold=as_dict.get("rare_threshold", split.rare_threshold),  # as `load_run` has it
        labels="classifier" if untold else "given",
    )  # fmt: skip


def is_current(job: Job, split: Run) -> bool:
    """Tell whether a job's run is there as it would be made today; a control has none."""
    return not is_trained(job) or _is_finished(job, folder_of(None, split.dataset, job.name, job.seed), split.train)


def is_trained(job: Job) -> bool:
    """Tell whether a job's generator has a run of its own; a control has none."""
    return job.generator == "garage" or job.generator in METHODS


def sampler_of(job: Job, train: AnnData) -> Sampler:
    """Return what draws from a job's generator: from its run, which is made if it is not there; a control learns now.

    Parameters
    ----------
    train
        The training cells of the job's split.
    """
    if not is_trained(job):
        return learn(job, train)
    folder = folder_of(None, train.uns["dataset"], job.name, job.seed)
    _run_script(job, folder, train)
    path = folder / "model.pt"
    model: Any = garage.load(path) if job.generator == "garage" else baseline.load(path)[0]
    return partial(_module_of(job).sample, model)


def learn(job: Job, cells: AnnData) -> Sampler:
    """Let a job's generator learn from any cells, leaving no run; return what draws from it."""
    module = _module_of(job)
    device = "auto" if is_trained(job) else "cpu"
    return partial(module.sample, module.fit(cells, params_of(job, cells), seed=job.seed, device=device))


def _module_of(job: Job) -> Any:
    if job.generator in CONTROLS:
        return CONTROLS[job.generator]
    return garage if job.generator == "garage" else load_method(job.generator)


def params_of(job: Job, cells: AnnData | None = None) -> Any:
    """Return the hyperparameters that a job's generator would have today; None for a control.

    Parameters
    ----------
    cells
        The training cells, to fill in what depends on them.
    """
    if not is_trained(job):
        return None
    args: Any = garage.parse(job.argv) if job.generator == "garage" else baseline.parse(job.generator, job.argv)
    if cells is not None and isinstance(args.params, SelectionParams) and args.params.rare_threshold is None:
        return replace(args.params, rare_threshold=cells.uns.get("rare_threshold"))
    return args.params


@lru_cache(maxsize=1)  # jobs of one split come one after another
def _split(source: CellSource, holdout: float, seed: int) -> Run:
    """Return a run that has drawn nothing yet: its training and its held-out cells."""
    train, held = load_split(source, holdout, seed)
    if held is None:
        raise UserError("--holdout is 0: give a share, so that there are cells to judge by")
    return Run(
        folder=Path(), dataset=train.uns["dataset"], method="", seed=seed, split="", params={},
        rare_threshold=train.uns.get("rare_threshold"), train=train, held=with_genes_of(held, train), synthetic=train,
        seeds=None,
    )  # fmt: skip


def _is_known(run: Run, families: Collection[Computed], table: Path) -> bool:
    """Tell whether a table has values of every family for a run."""
    known = rows_of(run, table).dropna(subset="value")["metric"]
    return set(families) <= {METRICS[metric].family for metric in known if metric in METRICS}


def _is_finished(job: Job, folder: Path, train: AnnData) -> bool:
    """Tell whether a folder holds this job's run, made of the data and with the hyperparameters of today."""
    try:
        record = read_record(folder)
    except UserError:  # there is none, or it is damaged
        return False
    today = job.argv, train.uns["sha256"], json.loads(json.dumps(asdict(params_of(job, train))))
    return (record["argv"], record["sha256"], record["params"]) == today


def _draw_control(job: Job, split: Run) -> tuple[Run, dict[str, float]]:
    clock = Stopwatch()
    with clock.stage("training"):
        draw = learn(job, split.train)
    with clock.stage("sampling"):
        drawn = draw(split.train.n_obs, seed=job.seed)
    return replace(split, synthetic=drawn), _seconds(clock.stages)


def _run_script(job: Job, folder: Path, train: AnnData) -> tuple[Run, dict[str, float]]:
    """Run a generator's script, unless its folder is as the script would leave it, and read the folder back."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # the same run may be judged as it is and calibrated, by two processes
        if not _is_finished(job, folder, train):
            _run_anew(job, folder)
    return load_run(folder), _seconds(read_record(folder)["stages"])


def _run_anew(job: Job, folder: Path) -> None:
    script = _module_of(job)
    try:
        with (folder / LOG).open("w") as log, redirect_stdout(log), redirect_stderr(log):
            script.main(job.argv)
    except SystemExit as stop:  # a user's error, told on stderr
        told = [line for line in (folder / LOG).read_text().splitlines() if line.startswith("error: ")]
        raise UserError(told[-1].removeprefix("error: ") if told else f"exit code {stop.code}") from stop


def _seconds(stages: dict[str, dict[str, float]]) -> dict[str, float]:
    """Sum up the stages of a generator: choosing seeds is part of its training."""
    learning = sum(stages[name]["seconds"] for name in ("selection", "training") if name in stages)
    return {"training": learning, "sampling": stages["sampling"]["seconds"]}


def explain(error: Exception, folder: Path) -> str:
    """Return one line on what went wrong; where that is no user's error, log in a run's folder where it came from."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("a") as log:
        log.write("".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {error}"
