"""The benchmark: every generator on every data set and split, evenly measured (paper, "Comparison").

Each data set is split anew for each seed; a generator learns from one part and is judged by the other. A method is
garage, a baseline by its name (preset `tuned`), either with `_paper` added for the published settings, or a control;
`all` stands for garage, the ten baselines and the controls, `paper` for the published settings of the baselines. With
`_calibrated` added, the marginals of a rival's cells are calibrated as GARAGE's are; `calibrated` stands for the tuned
baselines, Poisson, copula and SMOTE so treated.
A matrix that was interrupted goes on where it stopped: give the same command again.

Run:    python benchmarking/run_benchmark.py --datasets pbmc68k my_cells.h5ad --methods all --seeds 5
Reads:  data sets of config.py, or h5ad files with cell types in obs
Writes: results/tables/benchmark.csv as it goes, results/synthetic/<dataset>/<method>/seed<k>/ with log.txt in each
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.markup import escape

from benchmarking.baseline import METHODS
from benchmarking.controls import CONTROLS, DEFAULT_CONTROLS, PEERS, PURE_CONTROLS, load_controls
from benchmarking.matrix import CALIBRATED, LOG, Job, perform_all
from common.checks import existing, nearest
from common.cli import console, errors, progress_bar, run_script
from common.data import CellSource
from common.errors import UserError
from common.generation import folder_of
from common.metrics.catalogue import ALL, FAMILIES, Computed
from common.results import read_results
from common.run import check_writable
from common.summary import show
from config import DATASETS, RESULTS_DIR

GENERATORS = ("garage", *METHODS)
PAPER = tuple(f"{name}_paper" for name in METHODS)
RIVALS = (*METHODS, *PAPER, "poisson", *sorted(PEERS))  # whose marginals could be better
GROUPS = {
    "all": (*GENERATORS, *DEFAULT_CONTROLS), "paper": PAPER, "controls": DEFAULT_CONTROLS,
    "calibrated": tuple(name + CALIBRATED for name in (*METHODS, "poisson", "copula", "smote")),
}  # fmt: skip
SHOWN = (
    "rf_auroc_genes", "rf_auroc_pcs", "mmd_pcs", "coverage_pcs", "tstr_f1", "lfc_correlation", "nearer_to_training",
    "calibrated_auc", "training_seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Args:
    """Every generator on every data set and split."""

    datasets: tuple[str, ...] = ("pbmc68k",)
    """names of config.py, or paths of h5ad files with obs['cell_type']"""
    methods: tuple[str, ...] = ("all",)
    """names of generators, or of groups of them: all, paper, controls, calibrated"""
    seeds: int = 5
    """seeds 0, 1, ...: each splits the cells anew"""
    holdout: float = 0.5
    """share of each type's cells that generators do not see and are judged by"""
    n_top_genes: int = 1000
    """variable genes, chosen on the training cells"""
    families: tuple[Computed, ...] = FAMILIES
    """kinds of metrics"""
    jobs: int = 2
    """processes at a time; the processor's cores are shared out among them"""
    again: bool = False
    """train and judge anew what is there already"""
    out: Path = RESULTS_DIR / "tables" / "benchmark.csv"
    """table to write; what it holds of other methods, data sets and splits is kept"""


def choose_methods(names: Sequence[str]) -> list[str]:
    """Return methods by name, groups resolved, each once.

    Raises
    ------
    UserError
        If there is none of a name, or a control needs a package that is not installed.
    """
    known = (*GENERATORS, "garage_paper", *PAPER, *CONTROLS, *(name + CALIBRATED for name in RIVALS))
    chosen = list(dict.fromkeys(method for name in names for method in GROUPS.get(name, (name,))))
    for name in chosen:
        if name not in known:
            choices = (*GROUPS, *known)
            raise UserError(f"there is no method '{name}', only {', '.join(choices)}{nearest(name, choices)}")
    load_controls([name for name in (name.removesuffix(CALIBRATED) for name in chosen) if name in CONTROLS])
    return chosen


def source_of(dataset: str, n_top_genes: int) -> CellSource:
    """Return where a data set's cells are, by its name or path; a relative path is made absolute.

    Raises
    ------
    UserError
        If it is neither a data set of config.py nor a file.
    """
    if dataset in DATASETS:
        return CellSource(dataset=dataset, n_top_genes=n_top_genes)
    if "/" not in dataset and not Path(dataset).suffix:
        raise UserError(f"there is no data set '{dataset}', only {', '.join(DATASETS)}{nearest(dataset, DATASETS)}")
    return CellSource(input=existing(Path(dataset)).resolve(), n_top_genes=n_top_genes)


def plan(args: Args) -> list[Job]:
    """Return the matrix, seed by seed, so that whatever is done when it is interrupted is whole; errors as above."""
    methods, sources = choose_methods(args.methods), [source_of(name, args.n_top_genes) for name in args.datasets]

    def job(source: CellSource, seed: int, method: str) -> Job:
        name = method.removesuffix(CALIBRATED)
        generator = name.removesuffix("_paper")
        flags = () if generator == name else ("--preset", "paper")
        return Job(source, args.holdout, seed, generator, name, flags, calibrated=name != method)

    return [job(source, seed, method) for seed in range(args.seeds) for source in sources for method in methods]


@run_script
def main(argv: Sequence[str] | None = None) -> None:
    """Run the matrix, say what failed, and show the means.

    Raises
    ------
    SystemExit
        With code 1 if a generator failed.
    """
    args: Args = tyro.cli(Args, args=argv, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    if args.seeds < 1 or args.jobs < 1:
        raise UserError(f"--seeds is {args.seeds} and --jobs {args.jobs}: give at least 1")
    jobs = plan(args)
    check_writable(args.out.parent)
    with progress_bar() as report:
        outcomes = perform_all(
            jobs, table=args.out, families=args.families, n_jobs=args.jobs, again=args.again, report=report
        )
    if args.out.exists():
        rows = read_results(args.out, made_by="the same command")
        mine = rows["dataset"].isin({outcome.dataset for outcome in outcomes}) & rows["seed"].lt(args.seeds)
        methods = {job.method for job in jobs}
        shown = rows[mine & rows["method"].isin(methods) & rows["metric"].isin(SHOWN) & (rows["group"] == ALL)]
        show(shown, controls=PURE_CONTROLS)
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    for outcome in failed:
        folder = folder_of(None, outcome.dataset, outcome.job.name, outcome.job.seed)
        more = f" (see {folder / LOG})" if (folder / LOG).exists() else ""
        who = f"{outcome.job.method} on {outcome.dataset}, seed {outcome.job.seed}"
        errors.print(f"[red]failed:[/] {escape(f'{who}: {outcome.reason}{more}')}", soft_wrap=True)
    counts = {status: sum(o.status == status for o in outcomes) for status in ("judged", "known", "failed")}
    told = ", ".join(f"{n} {status}" for status, n in counts.items())
    console.print(
        f"{told}; {args.out}: python analysis/build_summary_tables.py --table {args.out} makes tables of it, "
        f"python analysis/rank_methods.py --table {args.out} ranks",
        soft_wrap=True, highlight=False,
    )  # fmt: skip
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
