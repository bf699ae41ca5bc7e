"""Picture of a run: its real and synthetic cells on one UMAP, by cell type and by origin.

Run:    python analysis/plot_umap.py --run results/synthetic/pbmc68k/garage/seed42
Reads:  cells.h5ad and run.json of the run, and the real cells from where the run had them
Writes: results/figures/umap_<dataset>_<method>_seed<k>.png
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata
import tyro

from common.checks import existing, reading
from common.cli import console, run_script
from common.data import CellSource, load_cells
from common.errors import UserError
from common.plotting import joint_umap
from config import RESULTS_DIR, SEED


@dataclass(frozen=True)
class Args:
    """Draw the cells of a run."""

    run: Path
    """folder of the run"""
    out: Path | None = None
    """picture to write (png, pdf or svg); by default in results/figures, named by the last three folders of the run"""
    seed: int = SEED
    """seed of UMAP"""


@run_script
def main(argv: Sequence[str] | None = None) -> None:
    """Reload the real cells, draw both kinds, and say what was written."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    run = args.run.resolve()
    real = load_cells(read_source(run))
    with reading(existing(run / "cells.h5ad"), "h5ad file"):
        synthetic = anndata.read_h5ad(run / "cells.h5ad")
    missing = synthetic.var_names.difference(real.var_names)
    if len(missing):
        raise UserError(f"the real cells have no gene '{missing[0]}' any more: repeat the run with the data of today")
    out = args.out or RESULTS_DIR / "figures" / f"umap_{'_'.join(run.parts[1:][-3:])}.png"
    joint_umap(real[:, synthetic.var_names].copy(), synthetic, out, seed=args.seed)
    console.print(f"wrote {out}", soft_wrap=True, markup=False)


def read_source(run: Path) -> CellSource:
    """Read where a run had its real cells.

    Parameters
    ----------
    run
        Folder of the run.

    Returns
    -------
    The "source" in its run.json, or in that of the run it was drawn from. Variable genes were chosen on the training
    cells alone and cannot be chosen again: take those of the synthetic cells.

    Raises
    ------
    UserError
        If the run is not there, not finished or not readable.
    """
    record = run / "run.json"
    if not record.exists():  # a run writes it last
        raise UserError(
            f"{run} holds no finished run: make it with python data_generation/garage.py --out {run}, and the flags "
            "that name your data"
        )
    with reading(record, "record of a run"):
        content = json.loads(record.read_text())
        if "drawn_from" in content:
            return read_source(Path(content["drawn_from"]))
        given = content["source"]
        paths = {name: Path(given[name]) for name in ("input", "expression_csv", "labels_csv") if given[name]}
        return CellSource(**given | paths | {"n_top_genes": None})


if __name__ == "__main__":
    main()
