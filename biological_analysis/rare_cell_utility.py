"""Whether synthetic cells of rare types help to find these types in new cells (paper, "Rare cells").

Real cells are cut in halves, type by type, for each seed anew. Classifiers learn the types from the training half
alone, and from it with synthetic cells of its rare types added, in several amounts; they are tested on the held-out
half. All rows have the same classifiers (random forest and logistic regression, each with and without class weights) on
the same features: principal components of log-normalised values, fitted on the real training cells alone. A synthetic
cell has the type that its generator was asked for, or that a classifier gave it (column labels); no label is ever
changed. Beside the networks stand rivals that cost nothing: random oversampling (`bootstrap`), SMOTE, jitter, the
copula, Poisson.

Rare types have few cells to be tested on. So a type with many cells, the largest if none is named, loses all but a few
of its training cells; generators learn from what is left and put back as many as were taken, and its whole held-out
half tests how well. Genes are chosen afterwards: nothing knows the cells that were taken, but `real_half`, which puts
these back and is the ceiling.

Run:    python biological_analysis/rare_cell_utility.py --datasets pbmc68k pbmc3k.h5ad --seeds 10 --jobs 2
Reads:  data sets of config.py, or h5ad files with cell types in obs; finished runs of the benchmark, made if not there
Writes: results/tables/rare_cell_utility.csv as it goes: dataset, split, seed, method, group (rare cells: mean over the
        rare types; each of them; all cells), metric, n (held-out cells of the group), value, leakage, labels, score,
        classifier, weights, amount (synthetic cells of each rare type, in multiples of its training cells);
        results/tables/rare_cell_downsampling.csv likewise, with keep (training cells left) and added (cells put back);
        results/tables/rare_cell_utility_summary.csv and .md: means, what each method gains over real cells only, and
        GARAGE over each rival, paired over splits, with 95 % confidence intervals (`common.results.differences`);
        results/figures/rare_cell_utility.png, rare_cell_downsampling.png
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import pandas as pd
from rich.markup import escape

from benchmarking import run_benchmark
from benchmarking.experiment import MatrixArgs, check_matrix_args, tell
from benchmarking.matrix import Job, Outcome, forget_runs, in_processes, split_of
from biological_analysis.rare_cell_gains import (
    LABELS,
    NAMES,
    WHOLE,
    as_markdown,
    at_every_amount,
    plot_down_sampling,
    plot_gains,
    summarise_gains,
)
from biological_analysis.rare_cell_trials import (
    CEILING,
    LEARNERS,
    REAL_ONLY,
    Trial,
    down_sampling_trials,
    keepable,
    perform,
    rare_trials,
    testable_rare_types,
    type_sizes,
    type_to_lose,
)
from common.cli import console, parse_flags, progress_bar, run_script
from common.data import CellSource
from common.errors import UserError
from common.metrics.catalogue import ALL, RARE
from common.plotting import figures_of, save
from common.results import read_results
from common.run import atomic, check_writable, write_table
from common.runs import Run
from common.summary import show
from config import RESULTS_DIR


@dataclass(frozen=True)
class Args(MatrixArgs):
    """Classifiers of cell types with and without synthetic cells of rare types."""

    methods: tuple[str, ...] = (WHOLE, "bootstrap", "smote", "copula", "jitter", "poisson")
    """generators, by the names that the benchmark has for them"""
    seeds: int = 10
    """seeds 0, 1, ...: each splits the cells anew, as in the benchmark"""
    amounts: tuple[int, ...] = (1, 3, 10)
    """synthetic cells of each rare type, in multiples of its training cells; none leaves this part out"""
    keep: tuple[int, ...] = (3, 5, 10, 20)
    """training cells that are left of the type that loses cells; none leaves this part out"""
    down_sample: str | None = None
    """the type that loses cells; by default the largest"""
    out: Path = RESULTS_DIR / "tables" / "rare_cell_utility.csv"
    """table to write; the others lie beside it"""


def plan(args: Args, references: Sequence[str]) -> list[Job]:
    """Return the jobs of the benchmark, with references before the methods of each split."""
    given = {name: getattr(args, name) for name in ("datasets", "methods", "seeds", "holdout", "n_top_genes")}
    jobs = []
    for (source, seed), of_split in groupby(run_benchmark.plan(run_benchmark.Args(**given)), _split_of):
        jobs += [Job(source, args.holdout, seed, name, name) for name in references]
        jobs += [job for job in of_split if job.method not in references]
    return jobs


def _split_of(job: Job) -> tuple[CellSource, int]:
    return job.source, job.seed


def tell_types(args: Args, run: Run) -> None:
    """Say which types of a data set are rare, which cannot be tested, and which loses cells.

    Raises
    ------
    UserError
        If that one does not have so many.
    """
    train, held = type_sizes(run.train), type_sizes(run.held)
    told, untested = [], sorted(set(train.index) - set(held.index))
    if args.amounts:
        rare = [f"{name} ({train[name]} training, {held[name]} held-out cells)" for name in testable_rare_types(run)]
        told.append(f"rare types {', '.join(rare)}")
        told += [f"no cell of {', '.join(untested)} is held out to be tested on"] if untested else []
    if args.keep:
        name = type_to_lose(run, args.down_sample)
        kept = keepable(run, name, args.keep)
        if not kept:
            raise UserError(f"{run.dataset} has only {train[name]} training cells of {name}: give a smaller --keep")
        told.append(f"{name} loses all but {', '.join(map(str, kept))} of its {train[name]} training cells")
    console.print(escape(f"{run.dataset}: {'; '.join(told)}"), soft_wrap=True)


@run_script
def main(argv: list[str]) -> None:
    """Judge, compare, draw, and show the means.

    Raises
    ------
    SystemExit
        With code 1 if a generator failed.
    """
    args: Args = parse_flags(Args, argv, __doc__)
    check_matrix_args(args)
    if min((1, *args.amounts, *args.keep)) < 1 or not (args.amounts or args.keep):
        raise UserError("--amounts and --keep take whole numbers of at least 1, and one of the two is needed")
    check_writable(args.out.parent)
    for job in {job.source: job for job in reversed(plan(args, ()))}.values():
        tell_types(args, split_of(job))
    figures, outcomes, written = figures_of(args.out), [], []
    if args.amounts:
        make_trials = partial(rare_trials, amounts=args.amounts)
        if args.again:
            forget_runs(plan(args, ()))
        outcomes += _perform_all(make_trials, (REAL_ONLY,), args, args.out)
        table = _read(args.out, args, outcomes)
        summary = summarise_gains(table, holdout=args.holdout)
        write_table(args.out.with_name(f"{args.out.stem}_summary.csv"), summary)
        with atomic(args.out.with_name(f"{args.out.stem}_summary.md")) as part:
            part.write_text(as_markdown(summary))
        save(plot_gains(summary), figures / "rare_cell_utility.png")
        _show(at_every_amount(table[table["group"] == RARE]), "recall", "amount", "{:3g} x its cells added")
        written += [f"{args.out} with its _summary.csv and .md", str(figures / "rare_cell_utility.png")]
    if args.keep:
        path, figure = args.out.with_name("rare_cell_downsampling.csv"), figures / "rare_cell_downsampling.png"
        make_trials = partial(down_sampling_trials, wanted=args.down_sample, keep=args.keep)
        outcomes += _perform_all(make_trials, (REAL_ONLY, CEILING), args, path)
        table = _read(path, args, outcomes)
        save(plot_down_sampling(table), figure)
        _show(table[table["group"] != ALL], "f1", "keep", "{:3g} cells left")
        written += [str(path), str(figure)]
    tell(outcomes, f"wrote {', '.join(written)}")


def _perform_all(
    make_trials: Callable[[Job], list[Trial]], references: Sequence[str], args: Args, table: Path
) -> list[Outcome]:
    work = partial(perform, make_trials=make_trials, table=table, again=args.again)
    with progress_bar() as report:
        return in_processes(work, plan(args, references), n_jobs=args.jobs, report=report)


def _read(path: Path, args: Args, outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Read what a table has of these shares of training and held-out cells; of these data sets, of these genes."""
    table = read_results(path, made_by="the same command")
    table = table[table["split"].str.startswith(f"holdout {args.holdout:g},")]
    splits = {outcome.dataset: outcome.split for outcome in outcomes if outcome.split}
    return table[table["split"] == table["dataset"].map(splits).fillna(table["split"])]


def _show(rows: pd.DataFrame, kind: str, by: str, text: str) -> None:
    """Print the means of a score by an unweighted and a balanced classifier."""
    for classifier, weights in (LEARNERS[0], LEARNERS[-1]):
        wanted = [kind, classifier, weights]
        mine = rows[(rows[["score", "classifier", "weights"]] == wanted).all(axis=1)]
        named = mine.assign(
            group=f"{LABELS[kind]} of " + mine["group"] + f", {classifier}, {weights}",
            method=mine["method"].replace(NAMES), metric=mine[by].map(text.format),
        )  # fmt: skip
        show(named, controls=(NAMES[REAL_ONLY], NAMES[CEILING]))


if __name__ == "__main__":
    main()
