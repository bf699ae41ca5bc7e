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

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarking.baseline import METHODS
from benchmarking.controls import CONTROLS, DEFAULT_CONTROLS, PEERS, PURE_CONTROLS, load_controls
from benchmarking.experiment import MatrixArgs, run_jobs, sources_of, tell
from benchmarking.matrix import CALIBRATED, Job
from common.checks import check_known
from common.cli import parse_flags, run_script
from common.data import CellSource
from common.metrics.catalogue import ALL, FAMILIES, Computed
from common.summary import show
from config import RESULTS_DIR

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
class Args(MatrixArgs):
    """Every generator on every data set and split."""

    methods: tuple[str, ...] = ("all",)
    """names of generators, or of groups of them: all, paper, controls, calibrated"""
    seed: int | None = None
    """this seed alone, whatever --seeds says"""
    families: tuple[Computed, ...] = FAMILIES
    """kinds of metrics"""
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
        check_known(name, (*GROUPS, *known), "there is no method")
    load_controls([name for name in (name.removesuffix(CALIBRATED) for name in chosen) if name in CONTROLS])
    return chosen


def plan(args: Args) -> list[Job]:
    """Return the matrix, seed by seed, so that whatever is done when it is interrupted is whole; errors as above."""
    methods, sources = choose_methods(args.methods), sources_of(args.datasets, args.n_top_genes)

    def job(source: CellSource, seed: int, method: str) -> Job:
        name = method.removesuffix(CALIBRATED)
        generator = name.removesuffix("_paper")
        flags = () if generator == name else ("--preset", "paper")
        return Job(source, args.holdout, seed, generator, name, flags, calibrated=name != method)

    seeds = range(args.seeds) if args.seed is None else (args.seed,)
    return [job(source, seed, method) for seed in seeds for source in sources for method in methods]


@run_script
def main(argv: list[str]) -> None:
    """Run the matrix, say what failed, and show the means.

    Raises
    ------
    SystemExit
        With code 1 if a generator failed.
    """
    args: Args = parse_flags(Args, argv, __doc__)
    outcomes, rows = run_jobs(plan(args), args, args.out, args.families)
    if len(rows):
        show(rows[rows["metric"].isin(SHOWN) & (rows["group"] == ALL)], controls=PURE_CONTROLS)
    tell(
        outcomes,
        f"{args.out}: python analysis/build_summary_tables.py --table {args.out} makes tables of it, "
        f"python analysis/rank_methods.py --table {args.out} ranks",
    )


if __name__ == "__main__":
    main()
