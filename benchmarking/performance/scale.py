"""Cost by number of cells and genes: whole runs of GARAGE, each a process of its own, from an h5ad file on disk.

The cells are real counts, resampled with replacement and thinned (each molecule is kept with a probability of .8), so
that no two are alike; more cells say nothing new of biology, and quality is not judged. Genes beyond those of the input
are further thinned copies of its genes. Peak memory is told twice: all that is resident, and of it what is the
process's own; the rest are pages of mapped files, which the system takes back when others need room.

Run:    python benchmarking/performance/scale.py --input pbmc3k.h5ad
        python benchmarking/performance/scale.py --input pbmc3k.h5ad --no-on-disk \\
            --cells 1000 3000 10000 30000
        python benchmarking/performance/scale.py --input pbmc3k.h5ad --cells 3000 \\
            --genes 1000 5000 20000
        python benchmarking/performance/scale.py --input pbmc3k.h5ad --cells 3000 --sample 1000000
        with OMP_NUM_THREADS=1 for figures that can be compared
Reads:  an h5ad file of counts with cell types in obs
Writes: results/tables/performance_scale.csv, as it goes; runs that it holds already are not measured again. A row a
        run: cells, genes, on_disk, drawn, wall_s, cpu_s, peak_mb, peak_own_mb, and seconds of the processor that each
        stage took
"""

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from common.cli import console, parse_flags, run_script
from common.data import CellSource, load_cells, select_genes, types_of
from common.errors import UserError
from common.run import write_cells, write_table
from config import RESULTS_DIR, ROOT

KEPT = 0.8  # of a cell's molecules
CELLS_AT_ONCE = 10_000
POLL_SECONDS = 0.2
KB = 1024 / 1e6  # as the system counts memory, in MB


@dataclass(frozen=True)
class Options:
    """Cost by number of cells and genes."""

    input: Path
    """an h5ad file of counts"""
    label_key: str = "cell_type"
    """column with the cell types in the file's obs"""
    cells: tuple[int, ...] = (1000, 3000, 10_000, 30_000, 100_000)
    """numbers of cells"""
    genes: tuple[int, ...] = (2000,)
    """numbers of genes, the most variable ones"""
    sample: int | None = None
    """cells to draw from each model; by default as many as it learnt from"""
    on_disk: bool = True
    """leave the cells on disk"""
    out: Path = RESULTS_DIR / "tables" / "performance_scale.csv"
    """table to write"""


def resample(real: AnnData, n_cells: int, n_genes: int, seed: int) -> Iterator[AnnData]:
    """Yield blocks of resampled, thinned cells.

    Parameters
    ----------
    real
        Counts of shape (n_real, n_real_genes), CSR, with `obs["cell_type"]`.
    """
    rng = np.random.default_rng(seed)
    chosen = real.var_names.isin(select_genes(real, min(n_genes, real.n_vars)))
    X, copies = real.X[:, np.flatnonzero(chosen)], -(-n_genes // int(chosen.sum()))
    var = pd.DataFrame(index=[f"gene_{i}" for i in range(n_genes)])
    types = types_of(real)
    for start in range(0, n_cells, CELLS_AT_ONCE):
        rows = rng.integers(0, real.n_obs, min(CELLS_AT_ONCE, n_cells - start))
        parts = [X[rows].copy() for _ in range(copies)]
        for part in parts:
            part.data = rng.binomial(part.data.astype(np.int64), KEPT).astype(np.float32)
        block = sp.hstack(parts, format="csr")[:, :n_genes]
        block.eliminate_zeros()
        names = [f"cell_{start + i}" for i in range(len(rows))]
        obs = pd.DataFrame({"cell_type": types[rows]}, index=names)
        yield AnnData(block, obs=obs, var=var, uns={"scale": "counts"})


def measure(flags: Sequence[str]) -> dict[str, float]:
    """Run `data_generation/garage.py` in a process of its own; return its seconds and peak memory in MB.

    Raises
    ------
    UserError
        If it fails.
    """
    script, start, own = ROOT / "data_generation" / "garage.py", time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen([sys.executable, script, *flags], stdout=subprocess.DEVNULL, stderr=complaints)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
            own = max(own, int(found[1]) if found else 0)
            time.sleep(POLL_SECONDS)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            complaints.seek(0)
            raise UserError(f"garage.py failed: {complaints.read().strip().splitlines()[-1]}")
    return {
        "wall_s": time.perf_counter() - start, "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss * KB, "peak_own_mb": own * KB,
    }  # fmt: skip


def is_there(path: Path, at: dict[str, int | bool]) -> bool:
    """Tell whether the table has a run."""
    return path.exists() and bool((pd.read_csv(path)[list(at)] == pd.Series(at)).all(axis=1).any())


def add_row(path: Path, row: dict[str, float]) -> None:
    """Write a row into the table, in the place of an older one of the same run."""
    older = [pd.read_csv(path)] if path.exists() else []
    table = pd.concat([*older, pd.DataFrame([row])])
    keys = ["on_disk", "genes", "cells", "drawn"]
    write_table(path, table.drop_duplicates(keys, keep="last").sort_values(keys, ascending=[False, True, True, True]))


def run(at: dict[str, int | bool], flags: Sequence[str], out: Path) -> dict[str, float]:
    """Run GARAGE on the CPU, and return the row of the table."""
    measured = measure(["--no-csv", "--device", "cpu", "--out", str(out), *flags])
    stages = json.loads((out / "run.json").read_text())["stages"]
    console.print(
        f"{at['cells']:,} cells x {at['genes']:,} genes, {at['drawn']:,} drawn: {measured['cpu_s']:.0f} s of the "
        f"processor, {measured['peak_mb']:.0f} MB, {measured['peak_own_mb']:.0f} of it its own"
    )
    return {**at, **measured, **{f"{name}_cpu_s": stage["cpu_seconds"] for name, stage in stages.items()}}


@run_script
def main(argv: list[str]) -> None:
    """Make the cells, run, and write each row as it comes."""
    options = parse_flags(Options, argv, __doc__)
    real = load_cells(CellSource(input=options.input, label_key=options.label_key))
    if real.uns["scale"] != "counts":
        raise UserError(f"{options.input} holds {real.uns['scale']} values, which cannot be thinned: give counts")
    for n_genes, n_cells in itertools.product(options.genes, options.cells):
        at = {"cells": n_cells, "genes": n_genes, "on_disk": options.on_disk, "drawn": n_cells}
        more = {**at, "drawn": options.sample or n_cells}
        if is_there(options.out, more):
            continue
        with tempfile.TemporaryDirectory(prefix="garage-") as scratch:
            folder = Path(scratch)
            write_cells(folder, resample(real, n_cells, n_genes, seed=0), text=False)
            on_disk = ["--on-disk"] if options.on_disk else []
            add_row(options.out, run(at, ["--input", str(folder / "cells.h5ad"), *on_disk], folder / "run"))
            if more != at:
                flags = ["--from", str(folder / "run"), "--n-cells", str(options.sample)]
                add_row(options.out, run(more, flags, folder / "drawn"))
    console.print(f"wrote {options.out}", soft_wrap=True)


if __name__ == "__main__":
    main()
