"""GARAGE against controls on held-out halves: a first look at fidelity (DESIGN of the full evaluation to follow).

For each seed the cells are cut in halves (stratified) before anything else sees them; genes are chosen on the training
half, generators see the training half, and what they draw is compared with the other half.

Run:    python analysis/halves.py --input pbmc3k.h5ad --n-top-genes 1000 --seeds 0 1 2 3 4
Reads:  cells, as garage.py does
Writes: results/tables/halves_<dataset>.csv: dataset, method, seed, split, metric, value
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import tyro
from rich.table import Table

from benchmarking.controls import copula, poisson, real_half
from common.cli import console, progress_bar, run_script
from common.data import CellSource, load_cells, select_genes, split_cells
from common.metrics.fidelity import compare_on, coverage, pooled_pcs, rf_auroc
from common.run import write_table
from config import RESULTS_DIR, GarageParams
from data_generation import model as garage

METHODS: dict[str, Any] = {"garage": garage, "copula": copula, "poisson": poisson, "real_half": real_half}


@dataclass(frozen=True)
class Args:
    """GARAGE against controls on held-out halves."""

    source: CellSource
    params: GarageParams
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """one split and one fit each"""


@run_script
def main(argv: Sequence[str] | None = None) -> None:
    """Run the script."""
    args: Args = tyro.cli(Args, args=argv, config=(tyro.conf.OmitArgPrefixes,))
    cells = load_cells(replace(args.source, n_top_genes=None))
    params = args.params
    if params.rare_threshold is None:
        params = replace(params, rare_threshold=cells.uns.get("rare_threshold"))
    dataset, rows = cells.uns["dataset"], []
    path = RESULTS_DIR / "tables" / f"halves_{dataset}.csv"
    with progress_bar() as report:
        for i, seed in enumerate(args.seeds):
            train, held = split_cells(cells, 0.5, seed)
            assert held is not None
            if args.source.n_top_genes is not None:
                genes = select_genes(train, args.source.n_top_genes)
                train, held = train[:, genes].copy(), held[:, genes].copy()
            for j, (name, method) in enumerate(METHODS.items()):
                report("halves", i * len(METHODS) + j, len(args.seeds) * len(METHODS))
                fitted = method.fit(train, params if name == "garage" else None, seed=seed, device="cpu")
                drawn = method.sample(fitted, train.n_obs, seed=seed)
                real, synthetic = compare_on(held), compare_on(drawn)
                _, real_pcs, synthetic_pcs = pooled_pcs(compare_on(train), real, synthetic)
                for metric, value in {
                    "rf_auroc_genes": rf_auroc(real, synthetic, seed=seed),
                    "rf_auroc_pcs": rf_auroc(real_pcs, synthetic_pcs, seed=seed),
                    "coverage": coverage(real_pcs, synthetic_pcs),
                }.items():
                    rows.append((dataset, name, seed, "halves", metric, value))
                write_table(path, pd.DataFrame(rows, columns=["dataset", "method", "seed", "split", "metric", "value"]))
        report("halves", len(args.seeds) * len(METHODS), len(args.seeds) * len(METHODS))
    summary = pd.read_csv(path).groupby(["method", "metric"], sort=False)["value"].agg(["mean", "std"]).unstack()
    table = Table("method", *summary["mean"].columns, title=f"{dataset}, {len(args.seeds)} seeds, mean ± sd")
    for name, row in summary.iterrows():
        table.add_row(str(name), *(f"{row['mean', m]:.3f} ± {row['std', m]:.3f}" for m in summary["mean"].columns))
    console.print(table)
    console.print(f"wrote {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
