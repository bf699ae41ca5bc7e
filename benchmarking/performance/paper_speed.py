"""Speed of preset `paper` against the published loop: the same arithmetic, side by side in one process.

The two take turns, so that whatever else the machine does slows both; only the ratio within a pair is to be believed.

Run:    python benchmarking/performance/paper_speed.py
Reads:  the 700 cells embedded in scanpy (pbmc68k_reduced, log-normalised, 765 genes)
Writes: results/tables/performance_paper.csv
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
import torch

from benchmarking.performance.published_loop import PublishedLoop
from common.cli import console, parse_flags, run_script
from config import RESULTS_DIR, SEED, PaperParams
from data_generation import paper_gan


@dataclass(frozen=True)
class Options:
    """How long to measure, and where to write."""

    pairs: int = 9
    """turns of each loop"""
    iterations: int = 5
    """iterations a turn"""
    threads: int | None = None
    """threads of PyTorch; its own choice by default. One is steadier on a busy machine"""
    onednn: bool = True
    """let ours multiply by oneDNN; otherwise both use PyTorch's default library, and the ratio is the loop's alone"""
    out: Path = RESULTS_DIR / "tables" / "performance_paper.csv"
    """table to write"""


def iterations_per_second(iterate: Callable[[], object], iterations: int) -> float:
    """Return the speed of a loop."""
    start = time.perf_counter()
    for _ in range(iterations):
        iterate()
    return iterations / (time.perf_counter() - start)


@run_script
def main(argv: list[str]) -> None:
    """Measure, print and write the table."""
    options = parse_flags(Options, argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    if not options.onednn:
        paper_gan.ONEDNN_LINEAR = None
    params = PaperParams()
    X = sc.datasets.pbmc68k_reduced().raw.X.toarray().astype(np.float32)
    n_cells, n_genes = X.shape
    seeds = X[np.random.default_rng(SEED).permutation(n_cells)[: round(params.leakage * n_cells)]]

    rng = torch.Generator()
    torch.manual_seed(SEED)
    published = PublishedLoop(X, seeds, params, rng, torch.float32)
    ours = paper_gan.Training(torch.from_numpy(X), torch.from_numpy(seeds), params, rng)
    for loop in (published, ours):
        loop.iterate()  # memory and kernels are set up on first use
    rows = []
    for pair in range(options.pairs):
        slow = iterations_per_second(published.iterate, options.iterations)
        fast = iterations_per_second(ours.iterate, options.iterations)
        rows.append(("pbmc68k", n_cells, n_genes, pair, slow, fast, fast / slow))
        console.print(f"pair {pair}: published {slow:.2f} it/s, ours {fast:.2f} it/s, ratio {fast / slow:.2f}")

    columns = ["dataset", "cells", "genes", "pair", "published_it_per_s", "ours_it_per_s", "ratio"]
    table = pd.DataFrame(rows, columns=columns)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out, index=False)
    r = table["ratio"]
    console.print(f"ratio: median {r.median():.2f}, range {r.min():.2f}-{r.max():.2f} over {len(r)} pairs")


if __name__ == "__main__":
    main()
