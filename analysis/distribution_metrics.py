"""MMD and sliced Wasserstein distance of any method's cells from held-out ones (paper, "Distribution metrics").

Run:    python analysis/distribution_metrics.py --runs results/synthetic/pbmc68k/*/seed[0-4]
Reads:  cells.h5ad, heldout.csv and run.json of each run, and the real cells from where it had them
Writes: results/tables/distribution_metrics.csv: dataset, split, seed, method, group, metric, n (held-out cells
        compared), value
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarking.controls import CONTROLS, DEFAULT_CONTROLS, load_controls
from common.cli import console, parse_flags, progress_bar, run_script
from common.comparison import compare
from common.evaluation import find_rare
from common.judging import judge_runs
from common.metrics.catalogue import ALL, RARE
from common.metrics.fidelity import median_squared_distance, mmd, sliced_wasserstein
from common.runs import Run
from common.summary import show
from config import RESULTS_DIR


@dataclass(frozen=True)
class Args:
    """MMD and sliced Wasserstein distance of synthetic from held-out cells."""

    runs: tuple[Path, ...]
    """folders of runs that held cells out (garage.py --holdout 0.5)"""
    controls: tuple[str, ...] = DEFAULT_CONTROLS
    """generators to fit to the same training cells, for comparison"""
    again: bool = False
    """judge controls anew that the table holds already"""
    out: Path = RESULTS_DIR / "tables" / "distribution_metrics.csv"
    """table to write; rows of other runs in it are kept"""


def distribution_distances(run: Run) -> pd.DataFrame:
    """Compute squared MMD and sliced Wasserstein distance on principal components, of all and of rare cells.

    As many synthetic as held-out cells are compared, and each group's bandwidths come from its held-out cells alone,
    the same for every method: values are those of `analysis/evaluate.py`. Lower is better.

    Returns
    -------
    One row a metric and group, NaN where a side has fewer than two cells.
    """
    sides, rare, rows = compare(run), find_rare(run), []
    for group in (ALL, RARE):
        real, synthetic = (side.pcs if group == ALL else side.pcs[np.isin(side.labels, rare)] for side in sides)
        values = {"sliced_w1_pcs": np.nan, "mmd_pcs": np.nan}
        if min(len(real), len(synthetic)) >= 2:
            values["sliced_w1_pcs"] = sliced_wasserstein(real, synthetic, seed=run.seed)
            values["mmd_pcs"] = mmd(real, synthetic, unit=median_squared_distance(real))
        rows += [(group, metric, len(real), value) for metric, value in values.items()]
    return pd.DataFrame(rows, columns=["group", "metric", "n", "value"])


@run_script
def main(argv: list[str]) -> None:
    """Judge, write, and show the means."""
    args: Args = parse_flags(Args, argv, __doc__)
    controls = load_controls(args.controls)
    with progress_bar() as report:
        rows = judge_runs(
            args.runs, distribution_distances, controls=controls, path=args.out, again=args.again, report=report
        )
    show(rows, controls=CONTROLS)
    console.print(f"wrote {args.out}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
