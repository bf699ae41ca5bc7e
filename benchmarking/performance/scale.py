"""Cost by number of cells and genes: whole runs of GARAGE on cells that stay on disk, each a process of its own.

The cells are real counts, resampled with replacement and thinned (each molecule is kept with a probability of .8), so
that no two are alike; more cells say nothing new of biology, and quality is not judged. Genes beyond those of the input
are further thinned copies of its genes.

Run:    python benchmarking/performance/scale.py --input pbmc3k.h5ad --cells 1000 3000 10000 30000 100000 300000
        python benchmarking/performance/scale.py --input pbmc3k.h5ad --cells 3000 --genes 1000 5000 20000
        python benchmarking/performance/scale.py --input pbmc3k.h5ad --cells 3000 --sample 1000000
Reads:  an h5ad file of counts with cell types in obs
Writes: results/tables/performance_scale.csv, as it goes; a row a run: cells, genes, drawn, on_disk, wall_s, cpu_s,
        peak_mb (resident), peak_own_mb (of it not the pages of mapped files), and seconds of each stage
"""

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

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import tyro
from anndata import AnnData

from common.cli import console, run_script
from common.data import CellSource, load_cells, select_genes
from common.errors import UserError
from common.run import write_cells, write_table
from config import RESULTS_DIR, ROOT

KEPT = 0.8  # of a cell's molecules
CELLS_AT_ONCE = 10_000
POLL_SECONDS = 0.2


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
    """table to write; rows that are there are kept"""


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
    for start in range(0, n_cells, CELLS_AT_ONCE):
        rows = rng.integers(0, real.n_obs, min(CELLS_AT_ONCE, n_cells - start))
        parts = [X[rows].copy() for _ in range(copies)]
        for part in parts:
            part.data = rng.binomial(part.data.astype(np.int64), KEPT).astype(np.float32)
        block = sp.hstack(parts, format="csr")[:, :n_genes]
        block.eliminate_zeros()
        names = [f"cell_{start + i}" for i in range(len(rows))]
        obs = pd.DataFrame({"cell_type": real.obs["cell_type"].astype(str).to_numpy()[rows]}, index=names)
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
        "peak_mb": usage.ru_maxrss / 1e3, "peak_own_mb": own / 1e3,
    }  # fmt: skip


def stages_of(folder: Path) -> dict[str, float]:
    """Return the seconds of each stage of a run, by the clock."""
    stages = json.loads((folder / "run.json").read_text())["stages"]
    return {f"{name}_s": stage["seconds"] for name, stage in stages.items()}


@run_script
def main(argv: Sequence[str] | None = None) -> None:
    """Make the cells, run, and write each row as it comes."""
    options = tyro.cli(Options, args=argv, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    real = load_cells(CellSource(input=options.input, label_key=options.label_key))
    if real.uns["scale"] != "counts":
        raise UserError(f"{options.input} holds {real.uns['scale']} values, which cannot be thinned: give counts")
    rows = pd.read_csv(options.out).to_dict("records") if options.out.exists() else []
    for n_genes in options.genes:
        for n_cells in options.cells:
            with tempfile.TemporaryDirectory(prefix="garage-") as scratch:
                folder = Path(scratch)
                write_cells(folder, resample(real, n_cells, n_genes, seed=0), text=False)
                flags = ["--no-csv", "--device", "cpu", "--out", str(folder / "run")]
                more = ["--on-disk"] if options.on_disk else []
                at = {"cells": n_cells, "genes": n_genes, "on_disk": options.on_disk}
                run = measure(["--input", str(folder / "cells.h5ad"), *more, *flags])
                rows.append({**at, "drawn": n_cells, **run, **stages_of(folder / "run")})
                if options.sample is not None:
                    flags[-1] = str(folder / "drawn")
                    drawing = ["--from", str(folder / "run"), "--n-cells", str(options.sample)]
                    run = measure([*drawing, *flags])
                    assert anndata.read_h5ad(folder / "drawn" / "cells.h5ad", backed="r").n_obs == options.sample
                    rows.append({**at, "drawn": options.sample, **run, **stages_of(folder / "drawn")})
            write_table(options.out, pd.DataFrame(rows))
            console.print(
                f"{n_cells} cells x {n_genes} genes, {rows[-1]['drawn']} drawn: {run['wall_s']:.0f} s, "
                f"{run['cpu_s']:.0f} s of the processor, {run['peak_mb']:.0f} MB ({run['peak_own_mb']:.0f} its own)"
            )
    console.print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
