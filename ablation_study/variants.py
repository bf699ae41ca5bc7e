"""What the ablations share: runs of GARAGE with other flags, judged as the benchmark judges, beside the whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarking.controls import PURE_CONTROLS
from benchmarking.experiment import MatrixArgs, run_jobs, sources_of, tell_if_all_failed
from benchmarking.matrix import Job, Outcome
from common.metrics.catalogue import ALL, FAMILIES, RARE
from common.results import differences
from common.summary import show
from config import RESULTS_DIR, GarageParams

WHOLE = "garage"  # the default preset, with nothing taken away
CONTROLS = ("real_half", "copula")
SHOWN = (
    "rf_auroc_genes", "rf_auroc_pcs", "coverage_pcs", "tstr_f1", "augmentation_recall", "nearer_to_training",
    "calibrated_auc",
)  # fmt: skip
"""two of each kind of metric and one more: what figures and the terminal show; the table has all"""


@dataclass(frozen=True)
class VariantArgs(MatrixArgs):
    """GARAGE and its variants on data sets and splits."""

    out: Path = RESULTS_DIR / "tables" / "ablation.csv"
    """table to write; what it holds of other variants, data sets and splits is kept"""


def with_leakage(leakage: float) -> tuple[str, tuple[str, ...]]:
    """Return what a run with so much leakage is called, and its flags: the whole and none, if that is the default."""
    if leakage == GarageParams().leakage:
        return WHOLE, ()
    return f"{WHOLE}_leakage{leakage:g}", ("--leakage", f"{leakage:g}")


def plan(variants: Mapping[str, Sequence[str]], args: MatrixArgs, *, split_seed: int | None = None) -> list[Job]:
    """Return the jobs of variants and controls on every data set and split.

    Parameters
    ----------
    variants
        Name of each, and its flags for `data_generation/garage.py`.
    split_seed
        Of one split for all seeds; by default each seed has its own.
    """
    sources = sources_of(args.datasets, args.n_top_genes)
    generators = {name: (WHOLE, tuple(flags)) for name, flags in variants.items()}
    generators |= {name: (name, ()) for name in CONTROLS}
    return [
        Job(source, args.holdout, seed, generator, name, flags, split_seed=split_seed)
        for seed in range(args.seeds)
        for source in sources
        for name, (generator, flags) in generators.items()
    ]


def run_variants(
    variants: Mapping[str, Sequence[str]], args: VariantArgs, *, split_seed: int | None = None
) -> tuple[list[Outcome], pd.DataFrame]:
    """Train and judge variants and controls on every data set and split (`plan`), and show their means.

    Returns
    -------
    What became of each job, and the rows of the table that are theirs.

    Raises
    ------
    SystemExit
        With code 1 if all of them failed.
    """
    outcomes, rows = run_jobs(plan(variants, args, split_seed=split_seed), args, args.out, FAMILIES)
    tell_if_all_failed(outcomes)
    show(rows[rows["metric"].isin(SHOWN) & (rows["group"] == ALL)], controls=PURE_CONTROLS)
    return outcomes, rows


def compare_with_whole(rows: pd.DataFrame, holdout: float) -> pd.DataFrame:
    """Compare variants and controls with the whole of GARAGE on all and on rare cells, paired over splits.

    Returns
    -------
    As of `common.results.differences`.
    """
    return differences(rows[rows["group"].isin([ALL, RARE])], WHOLE, overlap=holdout / (1 - holdout))
