"""Judge runs by their held-out cells: every metric, with control rows beside it (paper, "Evaluation").

Run:    python analysis/evaluate.py --runs results/synthetic/pbmc68k/garage/seed0 results/synthetic/pbmc68k/garage/seed1
Reads:  cells.h5ad, heldout.csv, seeds.csv and run.json of each run, and the real cells from where it had them
Writes: results/tables/evaluation.csv: dataset, split, seed, method, group, metric, n, value
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from rich.markup import escape
from rich.table import Table

from benchmarking.controls import CONTROLS, DEFAULT_CONTROLS, load_controls
from common.cli import console, parse_flags, progress_bar, run_script
from common.evaluation import evaluate
from common.judging import judge_runs
from common.metrics.catalogue import ALL, FAMILIES, Computed
from common.results import summarise
from common.summary import decimals_of, label_of, order_methods, order_metrics, text_of
from config import RESULTS_DIR


@dataclass(frozen=True)
class Args:
    """Judge runs by their held-out cells."""

    runs: tuple[Path, ...]
    """folders of runs that held cells out (garage.py --holdout 0.5)"""
    families: tuple[Computed, ...] = FAMILIES
    """kinds of metrics"""
    controls: tuple[str, ...] = DEFAULT_CONTROLS
    """generators to fit to the same training cells, for comparison"""
    again: bool = False
    """judge controls anew that the table holds already"""
    out: Path = RESULTS_DIR / "tables" / "evaluation.csv"
    """table to write; rows of other runs in it are kept"""


@run_script
def main(argv: list[str]) -> None:
    """Judge, write, and show the means."""
    args = parse_flags(Args, argv, __doc__)
    controls = load_controls(args.controls)
    with progress_bar() as report:
        rows = judge_runs(
            args.runs, partial(evaluate, families=args.families), controls=controls, path=args.out,
            again=args.again, report=report,
        )  # fmt: skip
    summary = summarise(rows[rows["group"] == ALL])
    for (dataset, split), table in summary.groupby(["dataset", "split"], sort=False):
        _print(f"{dataset}, {split}", table)
    console.print(f"wrote {args.out}: make tables of it with python analysis/build_summary_tables.py", soft_wrap=True)


def _print(title: str, summary: pd.DataFrame) -> None:
    """Show metrics as rows and methods as columns: there are more metrics than a terminal is wide."""
    methods = order_methods(summary["method"], CONTROLS)
    table = Table("", *map(escape, methods), title=escape(title))
    for metric in order_metrics(summary["metric"]):
        rows = summary[summary["metric"] == metric].set_index("method")
        decimals = decimals_of(rows["mean"], rows["sd"])
        by_method = dict(rows.iterrows())  # without those that were judged by other metrics
        table.add_row(label_of(metric), *(text_of(by_method.get(method), decimals) for method in methods))
    console.print(table)


if __name__ == "__main__":
    main()
