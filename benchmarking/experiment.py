"""What scripts that run a matrix share: their flags, where the cells are, the run itself, and what became of it."""

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.markup import escape

from benchmarking.matrix import LOG, Job, Outcome, perform_all
from common.checks import check_known, existing
from common.cli import complain, console, progress_bar
from common.data import CellSource
from common.errors import UserError
from common.generation import folder_of
from common.metrics.catalogue import Computed
from common.results import KEYS, read_results
from common.run import check_writable
from config import DATASETS


@dataclass(frozen=True)
class MatrixArgs:
    """Generators on data sets and splits."""

    datasets: tuple[str, ...] = ("pbmc68k",)
    """names of config.py, or paths of h5ad files with obs['cell_type']"""
    seeds: int = 5
    """seeds 0, 1, ...: each splits the cells anew"""
    holdout: float = 0.5
    """share of each type's cells that generators do not see and are judged by"""
    n_top_genes: int | None = 1000
    """variable genes, chosen on the training cells; None, as scaled values need it, keeps all"""
    jobs: int = 2
    """processes at a time; the processor's cores are shared out among them"""
    again: bool = False
    """train and judge anew what is there already"""


def source_of(dataset: str, n_top_genes: int | None) -> CellSource:
    """Return where a data set's cells are, by its name or path; a relative path is made absolute.

    Raises
    ------
    UserError
        If it is neither a data set of config.py nor a file.
    """
    if dataset in DATASETS:
        return CellSource(dataset=dataset, n_top_genes=n_top_genes)
    if "/" not in dataset and not Path(dataset).suffix:
        check_known(dataset, DATASETS, "there is no data set")
    return CellSource(input=existing(Path(dataset)).resolve(), n_top_genes=n_top_genes)


def sources_of(datasets: Sequence[str], n_top_genes: int | None) -> list[CellSource]:
    """Return where data sets' cells are (`source_of`).

    Raises
    ------
    UserError
        If two of them would be one in folders and tables.
    """
    sources = [source_of(name, n_top_genes) for name in datasets]
    given: dict[str, CellSource] = {}
    for source in sources:
        other = given.setdefault(source.name, source)
        if other != source:
            paths = f"{other.input or 'the data set'} and {source.input or 'the data set'}"
            raise UserError(f"{paths} would both be called {source.name}: rename the file")
    return list(given.values())


def check_matrix_args(args: MatrixArgs) -> None:
    """Refuse numbers with which nothing would run.

    Raises
    ------
    UserError
        If there would be no seed or no process.
    """
    if args.seeds < 1 or args.jobs < 1:
        raise UserError(f"--seeds is {args.seeds} and --jobs {args.jobs}: give at least 1")


def run_jobs(
    jobs: Sequence[Job], args: MatrixArgs, table: Path, families: Collection[Computed]
) -> tuple[list[Outcome], pd.DataFrame]:
    """Perform jobs under a progress bar; return what became of them, and their rows of the table."""
    check_matrix_args(args)
    check_writable(table.parent)
    with progress_bar() as report:
        outcomes = perform_all(jobs, table=table, families=families, n_jobs=args.jobs, again=args.again, report=report)
    return outcomes, rows_of_outcomes(outcomes, table) if table.exists() else pd.DataFrame()


def rows_of_outcomes(outcomes: Sequence[Outcome], table: Path) -> pd.DataFrame:
    """Return the rows that a table has of these jobs."""
    rows = read_results(table, made_by="the same command")
    mine = {(outcome.dataset, outcome.split, outcome.job.seed, outcome.job.method) for outcome in outcomes}
    return rows[pd.MultiIndex.from_frame(rows[KEYS]).isin(mine)]


def tell_if_all_failed(outcomes: Sequence[Outcome]) -> None:
    """Stop, as `tell` does, where there is nothing to go on with."""
    if all(outcome.status == "failed" for outcome in outcomes):
        tell(outcomes, "nothing was judged")


def tell(outcomes: Sequence[Outcome], then: str) -> None:
    """Say what failed and how much was done, and `then` what to do with it.

    Raises
    ------
    SystemExit
        With code 1 if a generator failed.
    """
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    for outcome in failed:
        folder = folder_of(None, outcome.dataset, outcome.job.name, outcome.job.seed)
        more = f" (see {folder / LOG})" if (folder / LOG).exists() else ""
        who = f"{outcome.job.method} on {outcome.dataset}, seed {outcome.job.seed}"
        complain("failed", f"{who}: {outcome.reason}{more}")
    counts = {status: sum(o.status == status for o in outcomes) for status in ("judged", "known", "failed")}
    told = ", ".join(f"{n} {status}" for status, n in counts.items())
    console.print(escape(f"{told}; {then}"), soft_wrap=True, highlight=False)
    if failed:
        sys.exit(1)
