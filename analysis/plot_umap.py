"""Picture of a run: its real and synthetic cells on one UMAP, by cell type and by origin.

Run:    python analysis/plot_umap.py --run results/synthetic/pbmc68k/garage/seed42
Reads:  cells.h5ad and run.json of the run, and the real cells from where the run had them
Writes: results/figures/umap_<dataset>_<method>_seed<k>.png
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import console, parse_flags, run_script
from common.data import load_cells
from common.plotting import joint_umap
from common.runs import read_source, read_synthetic, with_genes_of
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
def main(argv: list[str]) -> None:
    """Reload the real cells, draw both kinds, and say what was written."""
    args = parse_flags(Args, argv, __doc__)
    run = args.run.resolve()
    source = read_source(run)
    synthetic = read_synthetic(run)
    real = with_genes_of(load_cells(source), synthetic)
    out = args.out or RESULTS_DIR / "figures" / f"umap_{'_'.join(run.parts[1:][-3:])}.png"
    joint_umap(real, synthetic, out, seed=args.seed)
    console.print(f"wrote {out}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
