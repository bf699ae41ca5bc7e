"""Speed and memory of preset `garage`, whole runs, against the published training on the same cells.

Each run of the script `data_generation/garage.py` is a process of its own; between the runs the published loop takes a
few of its iterations on the same cells, so that the ratio holds whatever else the machine does. Its whole training
(20,001 iterations) is extrapolated from these.

Run:    python benchmarking/performance/default_speed.py --runs 3
        python benchmarking/performance/default_speed.py --runs 3 --input pbmc3k.h5ad --n-top-genes 1000
Reads:  cells, as garage.py does
Writes: results/tables/performance_default_<dataset>.csv
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarking.performance.published_loop import PublishedLoop
from benchmarking.search import as_flags
from common.cli import console, parse_flags, run_script
from common.data import CellSource, load_cells
from common.errors import UserError
from common.run import write_table
from common.scale import to_log
from config import RESULTS_DIR, ROOT, SEED, PaperParams


@dataclass(frozen=True)
class Options:
    """Speed and memory of preset garage."""

    source: CellSource
    runs: int = 3
    """whole runs to measure"""
    iterations: int = 5
    """iterations of the published loop beside each"""


def flags_of(source: CellSource) -> list[str]:
    """Return the flags that name these cells to `data_generation/garage.py`."""
    given = {f.name: getattr(source, f.name) for f in fields(source) if getattr(source, f.name) != f.default}
    return list(as_flags(given))


def run_garage(flags: Sequence[str], out: Path) -> tuple[float, float]:
    """Run the script; return its seconds, start-up included, and its peak memory in MB."""
    start = time.perf_counter()
    script = ROOT / "data_generation" / "garage.py"
    done = subprocess.run([sys.executable, script, *flags, "--out", out], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise UserError(f"garage.py failed: {done.stderr.strip().splitlines()[-1]}")
    stages = json.loads((out / "run.json").read_text())["stages"].values()
    return seconds, max(stage["peak_memory_mb"] for stage in stages)


@run_script
def main(argv: list[str]) -> None:
    """Measure, print and write the table."""
    options = parse_flags(Options, argv)
    cells, params, rows = load_cells(options.source), PaperParams(), []
    X = to_log(cells.X, cells.uns["scale"], 1e4).toarray()
    n_seeds = int(np.ceil(params.leakage * cells.n_obs))
    torch.manual_seed(SEED)
    published = PublishedLoop(X, X[:n_seeds], params, torch.Generator(), torch.float32)
    published.iterate()  # memory and kernels are set up on first use
    path = RESULTS_DIR / "tables" / f"performance_default_{cells.uns['dataset']}.csv"
    for run in range(options.runs):
        with tempfile.TemporaryDirectory() as folder:
            seconds, peak = run_garage(flags_of(options.source), Path(folder))
        start = time.perf_counter()
        for _ in range(options.iterations):
            published.iterate()
        iteration = (time.perf_counter() - start) / options.iterations
        whole = iteration * params.iterations
        rows.append((cells.uns["dataset"], *cells.shape, run, seconds, peak, iteration, whole, whole / seconds))
        console.print(
            f"run {run}: garage {seconds:.0f} s, {peak:.0f} MB; published {iteration:.2f} s an iteration, "
            f"{whole:.0f} s in all, ratio {whole / seconds:.0f}"
        )
    columns = ["dataset", "cells", "genes", "run", "seconds", "peak_memory_mb", "published_s_per_iteration"]
    table = pd.DataFrame(rows, columns=[*columns, "published_s", "ratio"])
    write_table(path, table)
    m = table.median(numeric_only=True)
    console.print(f"median: {m['seconds']:.0f} s, {m['peak_memory_mb']:.0f} MB, ratio {m['ratio']:.0f}; wrote {path}")


if __name__ == "__main__":
    main()
