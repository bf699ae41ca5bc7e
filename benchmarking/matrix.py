"""One cell of the benchmark's matrix: a generator learns from one part of a data set and is judged by the other.

Whatever the generator, the steps are the same: cells are split and genes chosen on the training cells, it learns and
draws as many cells as it learnt from, and every metric compares these with the held-out cells. What is in the table
already is left as it is, so that an interrupted matrix goes on; a failure is kept as a gap and tried again next time.
"""

import json
import traceback
import warnings
from collections.abc import Collection, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from joblib import Parallel, cpu_count, delayed

from benchmarking import baseline
from benchmarking.baseline import load_method
from benchmarking.calibrated import calibrate
from benchmarking.controls import CONTROLS
from common.cli import Reporter
from common.data import CellSource
from common.errors import UserError
from common.evaluation import evaluate
from common.generation import folder_of, load_split
from common.judging import record_run
from common.metrics.catalogue import ALL, METRICS, Computed
from common.results import KEYS, read_results
from common.run import Stopwatch
from common.runs import Run, describe_split, load_run, read_record, with_genes_of
from config import GarageParams
from data_generation import garage

CALIBRATED = "_calibrated"  # added to the names of methods
LOG = "log.txt"  # in a run's folder: what the script printed


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


def perform_all(
    jobs: Sequence[Job], *, table: Path, families: Collection[Computed], n_jobs: int, again: bool, report: Reporter
) -> list[Outcome]:
    """Perform jobs in so many processes, which share the processor's cores; outcomes as they come."""
    threads, found, failed = max(1, cpu_count() // n_jobs), [], 0
    report("benchmark", 0, len(jobs))
    tasks = (delayed(perform)(job, table, families, again=again, threads=threads) for job in jobs)
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
        split = _split(job.source, job.holdout, job.split_by)
    except UserError as error:
        return Outcome(job, str(job.source.dataset or job.source.input), "failed", str(error))
    described = describe_split(job.holdout, split.train.n_vars, job.split_seed)
    split = replace(split, method=job.method, seed=job.seed, split=described)
    folder = folder_of(None, split.dataset, job.name, job.seed)
    is_control = job.generator in CONTROLS
    reusable = not again and (is_control or _is_finished(job, folder))
    if not again and (reusable or not folder.exists()) and _is_known(split, families, table):
        return Outcome(job, split.dataset, "known")
    try:
        run, seconds = _draw_control(job, split) if is_control else _run_script(job, folder, again=again)
        if job.calibrated:
            cells = calibrate(run.synthetic, run.train, GarageParams(), seed=job.seed)
            run = replace(run, method=job.method, synthetic=cells)
        rows = evaluate(run, families=families)
    except Exception as error:  # a bug in one generator must not take the others with it, nor go unseen
        reason = " ".join(str(error).split()) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        if not isinstance(error, UserError):
            _log(folder, traceback.format_exc())
        gap = [(ALL, name, 0, np.nan) for name, metric in METRICS.items() if metric.family in {*families, "cost"}]
        record_run(split, pd.DataFrame(gap, columns=_COLUMNS), table)  # in the place of what an earlier run had
        return Outcome(job, split.dataset, "failed", reason)
    cost = [(ALL, f"{stage}_seconds", run.train.n_obs, value) for stage, value in seconds.items()]
    record_run(run, pd.concat([rows, pd.DataFrame(cost, columns=_COLUMNS)]), table)
    return Outcome(job, split.dataset, "judged")


_COLUMNS = ["group", "metric", "n", "value"]


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
    if not table.exists():
        return False
    rows = read_results(table, made_by="the same command")
    mine = rows[(rows[KEYS] == tuple(getattr(run, key) for key in KEYS)).all(axis=1)].dropna(subset="value")
    return set(families) <= {METRICS[metric].family for metric in mine["metric"] if metric in METRICS}


def _is_finished(job: Job, folder: Path) -> bool:
    """Tell whether a folder holds this job's run, made with the hyperparameters that it would have today."""
    if not (folder / "run.json").exists():
        return False
    params = (garage.parse(job.argv) if job.generator == "garage" else baseline.parse(job.generator, job.argv)).params
    wanted = json.loads(json.dumps(asdict(params)))
    record = read_record(folder)
    # what is left open in config.py (a rare threshold), the run filled in
    same = all(record["params"].get(name) == value for name, value in wanted.items() if value is not None)
    return same and record["argv"] == job.argv


def _draw_control(job: Job, split: Run) -> tuple[Run, dict[str, float]]:
    clock, control = Stopwatch(), CONTROLS[job.generator]
    with clock.stage("training"):
        model = control.fit(split.train, None, seed=job.seed, device="cpu")
    with clock.stage("sampling"):
        drawn = control.sample(model, split.train.n_obs, seed=job.seed)
    return replace(split, synthetic=drawn), _seconds(clock.stages)


def _run_script(job: Job, folder: Path, *, again: bool) -> tuple[Run, dict[str, float]]:
    """Run a generator's script, unless its folder is as the script would leave it, and read the folder back."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # the same run may be judged as it is and calibrated, by two processes
        if not _is_finished(job, folder) or (again and not job.calibrated):
            _run_anew(job, folder)
    return load_run(folder), _seconds(read_record(folder)["stages"])


def _run_anew(job: Job, folder: Path) -> None:
    script: Any = garage if job.generator == "garage" else load_method(job.generator)
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


def _log(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("a") as log:
        log.write(text)
