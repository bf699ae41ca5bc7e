"""The whole reproduction in small: a copy of this tree, toy cells, and every stage of the workflow on them.

The copy keeps the real `results/` out of it. The toy cells are real ones, of four types of pbmc68k, one of them rare;
hyperparameters are those of `config.py`, but random forests that judge have few trees, which would take most of the
time. What comes out shows that everything runs, and says nothing about methods.

Run:    python workflow/smoke.py
Reads:  workflow/smoke.yaml, and the data set that comes with scanpy
Writes: results/smoke/: the copy, with results/ as the Snakefile describes it
"""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from anndata import AnnData

from common.cli import console, parse_flags, run_script
from common.data import CellSource, load_cells
from common.errors import UserError
from config import RESULTS_DIR, ROOT

TOY_TYPES = {"CD19+ B": 30, "CD14+ Monocyte": 40, "Dendritic": 30, "CD34+": 12}
FEW_TREES = 20
JUDGES = ("fidelity", "utility")  # of common.metrics
NOT_COPIED = (".*", "__pycache__", "results", "expression_matrix", "cell_types", "*.egg-info", "*.h5ad")


@dataclass(frozen=True)
class Args:
    """Reproduce everything on toy cells."""

    out: Path = RESULTS_DIR / "smoke"
    """folder to make"""
    cores: int = 2
    """jobs at a time"""


def toy_cells() -> AnnData:
    """Return the first cells of each type of `TOY_TYPES`, with all genes."""
    cells = load_cells(CellSource())
    types = cells.obs["cell_type"].astype(str)
    rows = np.concatenate([np.flatnonzero(types == name)[:n] for name, n in TOY_TYPES.items()])
    toy = cells[rows]
    return AnnData(toy.X, obs=toy.obs[["cell_type"]], var=toy.var[[]])


def copy_tree(out: Path) -> None:
    """Copy this tree, without its results and data, put toy cells where data lie, and let judges be quick.

    Raises
    ------
    UserError
        If there is something already.
    """
    if out.exists():
        raise UserError(f"{out} is there already: remove it, or give another folder with --out")
    shutil.copytree(ROOT, out, ignore=shutil.ignore_patterns(*NOT_COPIED))
    toy_cells().write_h5ad(out / "data" / "toy.h5ad")
    for name in JUDGES:
        path = out / "common" / "metrics" / f"{name}.py"
        few, n = re.subn(r"^N_TREES = \d+$", f"N_TREES = {FEW_TREES}", path.read_text(), flags=re.MULTILINE)
        assert n == 1, path
        path.write_text(few)


@run_script
def main(argv: list[str]) -> None:
    """Copy, then let Snakemake make everything there.

    Raises
    ------
    SystemExit
        With Snakemake's code, if it is not 0.
    """
    args = parse_flags(Args, argv, __doc__)
    copy_tree(args.out)
    threads = "--set-threads leakage=1 rare_cells=1"  # or one of them would wait for both cores
    flags = f"--cores {args.cores} {threads} --configfile workflow/smoke.yaml -- all".split()
    done = subprocess.run([sys.executable, "-m", "snakemake", *flags], cwd=args.out, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    console.print(f"wrote {args.out / 'results'}: everything runs", soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
