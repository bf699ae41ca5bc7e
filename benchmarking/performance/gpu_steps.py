"""Time of a training step on a GPU: as it is written, replayed as a CUDA graph, and with bfloat16 products.

Cells are resampled and thinned as in `scale.py`; all of them are on the device. Each row is the median over rounds of
`--steps` steps, the host waiting for the device at the end of each; setting up (the first steps, and capturing the
graph) is told apart. The loss after the last step shows whether bfloat16 learns the same. The row of the CPU is of one
thread.

Run:    python benchmarking/performance/gpu_steps.py --input pbmc3k.h5ad
Reads:  an h5ad file of counts with cell types in obs
Writes: results/tables/performance_gpu.csv: device, cells, genes, phase, how, ms (a step), lowest, highest, setup_s, nll
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from benchmarking.performance.scale import resample
from common.cli import console, parse_flags, run_script
from common.data import CellSource, load_cells
from common.device import deterministic
from common.errors import UserError
from common.graphs import WARM_UP
from common.run import write_table
from config import RESULTS_DIR, GarageParams
from data_generation.cell_selection import Selection
from data_generation.seeded_gan import Training, TrainingCells

NEIGHBORS = 10  # of a seed
SETUP_STEPS = (WARM_UP + 1) * GarageParams().r1_every  # until steps with a penalty have their graph, too


@dataclass(frozen=True)
class Options:
    """Time of a training step on a GPU."""

    input: Path
    """an h5ad file of counts"""
    label_key: str = "cell_type"
    """column with the cell types in the file's obs"""
    cells: tuple[int, ...] = (2000, 20_000)
    """numbers of cells"""
    genes: tuple[int, ...] = (1000, 2000)
    """numbers of genes, one for each number of cells"""
    steps: int = 100
    """steps of a round"""
    rounds: int = 5
    """rounds"""
    out: Path = RESULTS_DIR / "tables" / "performance_gpu.csv"
    """table to write"""


def bfloat16() -> AbstractContextManager:
    """Multiply matrices in bfloat16; the weights' copies are not cached, as a graph would keep those of its capture."""
    return torch.autocast("cuda", torch.bfloat16, cache_enabled=False)


HOW: dict[str, tuple[str, bool, Callable[[], AbstractContextManager]]] = {
    "CPU": ("cpu", False, nullcontext), "as written": ("cuda", False, nullcontext),
    "replayed": ("cuda", True, nullcontext), "as written, bfloat16": ("cuda", False, bfloat16),
    "replayed, bfloat16": ("cuda", True, bfloat16),
}  # fmt: skip


def prepare(cells: anndata.AnnData, device: str, *, replay: bool) -> Training:
    """Return a training whose seeds and neighbourhoods are chance: time does not depend on which they are."""
    rng, n = np.random.default_rng(0), cells.n_obs
    types = np.unique(cells.obs["cell_type"], return_inverse=True)[1]
    is_seed = rng.random(n) < 0.2
    n_seeds = int(is_seed.sum())
    neighbors, ends = rng.integers(0, n, NEIGHBORS * n_seeds), NEIGHBORS * np.arange(n_seeds + 1)
    hood = sp.csr_matrix((np.full(len(neighbors), 1 / NEIGHBORS), neighbors, ends), shape=(n_seeds, n))
    selection = Selection(rng.random(n), is_seed, np.zeros(n, bool), hood, accuracy=1.0)
    on_device = TrainingCells.on(torch.device(device), cells.X, types, "counts")
    return Training(on_device, selection, int(types.max()) + 1, GarageParams(), seed=0, replay=replay)


def rounds_of(step: Callable[[], Any], options: Options) -> tuple[float, list[float]]:
    """Return the seconds that set-up takes, and the milliseconds a step of each round."""

    def seconds(n_steps: int) -> float:
        start = time.perf_counter()
        for _ in range(n_steps):
            step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return seconds(SETUP_STEPS), [1000 * seconds(options.steps) / options.steps for _ in range(options.rounds)]


@run_script
@deterministic()  # as fit is
def main(argv: list[str]) -> None:
    """Time each phase in each way."""
    options = parse_flags(Options, argv, __doc__)
    if not torch.cuda.is_available():
        raise UserError("PyTorch sees no CUDA device: there is nothing to compare")
    torch.set_num_threads(1)
    real = load_cells(CellSource(input=options.input, label_key=options.label_key))
    rows = []
    for n_cells, n_genes in zip(options.cells, options.genes, strict=True):
        cells = anndata.concat(list(resample(real, n_cells, n_genes, seed=0)))
        for how, (device, replay, precision) in HOW.items():
            training = prepare(cells, device, replay=replay)
            for phase, take in (("anchor", training.anchor_step), ("critic", training.critic_step)):

                def step(take: Callable = take, training: Training = training, precision: Callable = precision) -> Any:
                    with precision():
                        terms = take()
                    training.step += 1  # penalties take turns by it
                    return terms

                setup, times = rounds_of(step, options)
                row = {
                    "device": "CPU, one thread" if device == "cpu" else torch.cuda.get_device_name(),
                    "cells": n_cells, "genes": n_genes, "phase": phase, "how": how, "ms": float(np.median(times)),
                    "lowest": min(times), "highest": max(times), "setup_s": setup, "nll": float(step()["nll"]),
                }  # fmt: skip
                console.print("  ".join(f"{x:.3g}" if isinstance(x, float) else str(x) for x in row.values()))
                rows.append(row)
    write_table(options.out, pd.DataFrame(rows))
    console.print(f"wrote {options.out}", soft_wrap=True)


if __name__ == "__main__":
    main()
