"""Exact Wasserstein distances of synthetic from held-out cells, with floor and ceiling (paper, "Wasserstein distance").

Run:    python data_generation/wasserstein_distance.py --runs results/synthetic/pbmc68k/garage/seed[0-4]
Reads:  cells.h5ad, heldout.csv and run.json of each run, and the real cells from where it had them
Writes: results/tables/wasserstein.csv: dataset, split, seed, method, group, metric, n (cells compared, of either kind),
        value, leakage (empty for controls)

Floor is what real cells score that are not the held-out ones. To lie below it is no merit: cells that vary too little
(poisson) can come nearer to held-out cells than real ones do. The published figures are not to be compared with these:
they are distances from the training cells, on values that were divided by numbers of cells.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarking.controls import CONTROLS, load_controls
from common.cli import console, parse_flags, progress_bar, run_script
from common.comparison import compare
from common.judging import judge_runs
from common.metrics.catalogue import ALL
from common.metrics.fidelity import wasserstein
from common.runs import Run
from common.summary import show
from config import RESULTS_DIR


@dataclass(frozen=True)
class Args:
    """Exact Wasserstein distances of synthetic from held-out cells."""

    runs: tuple[Path, ...]
    """folders of runs that held cells out (garage.py --holdout 0.5)"""
    controls: tuple[str, ...] = ("real_half", "all_zeros", "gene_wise_normal", "poisson", "copula")
    """generators to fit to the same training cells; real_half is the floor of a distance, the next two its ceilings"""
    again: bool = False
    """judge controls anew that the table holds already"""
    out: Path = RESULTS_DIR / "tables" / "wasserstein.csv"
    """table to write; rows of other runs in it are kept"""


def transport_distances(run: Run) -> pd.DataFrame:
    """Compute the distances of order 1 between as many synthetic as held-out cells; all at least 0, lower is better.

    Returns
    -------
    One row a metric:

    - `w1_genes`: on all genes of the run, on the scale of the input.
    - `w1_genes_divided`: the published formula, in which the values of each group are first divided by its number of
      cells. That makes the distance a matter of size: with n cells on either side it is w1_genes / n, so that twice the
      cells halve it at the same quality. It cannot be compared between data sets, or between numbers of cells.
    - `w1_pcs`: on principal components of log-normalised cells, as in `analysis/evaluate.py`.
    """
    held, drawn = compare(run)
    n = len(held)
    w1_genes = wasserstein(held.X.toarray(), drawn.X.toarray(), p=1)
    values = {
        "w1_genes": w1_genes,
        "w1_genes_divided": w1_genes / n,  # distances scale with the values
        "w1_pcs": wasserstein(held.pcs, drawn.pcs, p=1),
    }
    return pd.DataFrame({"group": ALL, "metric": list(values), "n": n, "value": list(values.values())})


@run_script
def main(argv: list[str]) -> None:
    """Judge, write, and show the means."""
    args: Args = parse_flags(Args, argv, __doc__)
    controls = load_controls(args.controls)
    with progress_bar() as report:
        rows = judge_runs(
            args.runs, transport_distances, controls=controls, path=args.out, again=args.again, report=report
        )
    show(rows, controls=CONTROLS)
    console.print(f"wrote {args.out}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
