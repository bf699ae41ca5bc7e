"""What a second of training buys: GARAGE beside the published loop and scVI, judged by the same held-out cells.

GARAGE and scVI are trained anew for each number of epochs, from the cells to the drawn ones, stage 1 included. The
published loop is one run that is stopped to be judged; its seeds are chosen beforehand, which its seconds leave out.
Judging is never counted. Seconds are of the processor, which other programs disturb less than the clock's.

Run:    python benchmarking/performance/quality_against_time.py --input pbmc3k.h5ad --methods garage scvi
        python benchmarking/performance/quality_against_time.py --methods garage published --iterations 1000
Reads:  cells, as garage.py does
Writes: results/tables/performance_quality_<dataset>.csv, as it goes: dataset, method, seed, steps (epochs, those of
        GARAGE's anchor, or iterations), seconds, metric, value; results/figures/performance_quality_<dataset>.png
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
import tyro
from anndata import AnnData
from matplotlib.figure import Figure

from benchmarking.controls import scvi
from benchmarking.performance.published_loop import PublishedLoop
from common.cli import console, run_script
from common.data import CellSource
from common.generation import load_split
from common.metrics import fidelity
from common.plotting import save
from common.run import write_table
from config import RESULTS_DIR, GarageParams, PaperParams
from data_generation.model import fit, sample

METRICS = {"mmd_pcs": "MMD", "coverage_pcs": "coverage", "rf_auroc_pcs": "forest, PCs"}
Drawn = Iterator[tuple[int, float, AnnData]]
"""steps, seconds they took, and the cells that were drawn after them"""


@dataclass(frozen=True)
class Options:
    """Quality against seconds of training."""

    source: CellSource
    methods: tuple[Literal["garage", "scvi", "published"], ...] = ("garage", "scvi", "published")
    """which to train"""
    seeds: int = 1
    """seeds 0, 1, ...: each splits the cells anew"""
    holdout: float = 0.5
    """share of each type's cells that judge"""
    garage_epochs: tuple[int, ...] = (3, 10, 30, 100, 300)
    """epochs of GARAGE's anchor; the critic's steps follow the last only"""
    scvi_epochs: tuple[int, ...] = (10, 30, 100, 400)
    """epochs of scVI"""
    iterations: int = 5000
    """iterations of the published loop"""
    every: int = 250
    """iterations between two judgements of it"""


def draw_garage(train: AnnData, options: Options, seed: int) -> Drawn:
    """Train GARAGE for each number of epochs."""
    for epochs in options.garage_epochs:
        start = time.process_time()
        whole = GarageParams(anchor_epochs=epochs, rare_threshold=train.uns.get("rare_threshold"))
        params = whole if epochs == max(options.garage_epochs) else replace(whole, critic_steps=0)
        drawn = sample(fit(train, params, seed=seed, device="cpu"), train.n_obs, seed=seed)
        yield epochs, time.process_time() - start, drawn


def draw_scvi(train: AnnData, options: Options, seed: int) -> Drawn:
    """Train scVI for each number of epochs."""
    for epochs in options.scvi_epochs:
        start = time.process_time()
        model = scvi.fit(train, scvi.ScviParams(epochs=epochs), seed=seed)
        drawn = scvi.sample(model, train.n_obs, seed=seed)
        yield epochs, time.process_time() - start, drawn


def draw_published(train: AnnData, options: Options, seed: int) -> Drawn:
    """Take iterations of the published loop, its seeds drawn at random."""
    params, X = PaperParams(), fidelity.compare_on(train)
    n_seeds = int(np.ceil(params.leakage * train.n_obs))
    seeds = X[np.random.default_rng(seed).choice(len(X), n_seeds, replace=False)]
    torch.manual_seed(seed)
    loop = PublishedLoop(X, seeds, params, torch.Generator().manual_seed(seed), torch.float32)
    seconds = 0.0
    for iteration in range(1, options.iterations + 1):
        start = time.process_time()
        loop.iterate()
        seconds += time.process_time() - start
        if iteration % options.every == 0 or iteration == options.iterations:
            with torch.no_grad():
                cells = loop.generator(loop._input()).numpy()
            yield iteration, seconds, AnnData(sp.csr_matrix(cells), uns={"scale": "log"})


DRAW = {"garage": draw_garage, "scvi": draw_scvi, "published": draw_published}


def judge(drawn: AnnData, held: AnnData, seed: int) -> dict[str, float]:
    """Compare drawn with held-out cells by the metrics that the benchmark has under these names."""
    real, made = (fidelity.compare_on(cells) for cells in (held, drawn))
    made = made[np.random.default_rng(seed).permutation(len(made))[: len(real)]]
    real_pcs, made_pcs = fidelity.pooled_pcs(real, made)
    return {
        "mmd_pcs": fidelity.mmd(real_pcs, made_pcs, unit=fidelity.median_squared_distance(real_pcs)),
        "coverage_pcs": fidelity.density_coverage(real_pcs, made_pcs)[1],
        "rf_auroc_pcs": fidelity.auroc(*fidelity.forest_scores(real_pcs, made_pcs, seed=seed)),
    }


def time_ratio(table: pd.DataFrame, slow: str, fast: str) -> float:
    """Return how many times less the fast method takes to reach the best MMD and coverage that the slow one has.

    Parameters
    ----------
    table
        Of one data set and seed, with columns method, seconds, metric and value.

    Returns
    -------
    Seconds until the slow method has had both its best values, over those of the fast one's first point at which it is
    as good in both; nan if there is none.
    """
    wide = table.pivot_table(index=["method", "seconds"], columns="metric", values="value")
    others, own = wide.loc[slow], wide.loc[fast]
    mmd, coverage = others["mmd_pcs"], others["coverage_pcs"]
    reached = own.index[(own["mmd_pcs"] <= mmd.min()) & (own["coverage_pcs"] >= coverage.max())]
    return max(mmd.idxmin(), coverage.idxmax()) / reached.min() if len(reached) else np.nan


def plot(table: pd.DataFrame) -> Figure:
    """Draw each metric against seconds, a line a method and seed."""
    figure = Figure(figsize=(4 * len(METRICS), 3.2), layout="constrained")
    for axes, (metric, label) in zip(figure.subplots(1, len(METRICS)), METRICS.items(), strict=True):
        for i, (method, rows) in enumerate(table[table["metric"] == metric].groupby("method")):
            for seed, line in rows.sort_values("seconds").groupby("seed"):
                axes.plot(line["seconds"], line["value"], "o-", color=f"C{i}", ms=3, label=method if not seed else None)
        axes.set(xlabel="processor seconds", ylabel=label, xscale="log")
    figure.axes[0].legend()
    return figure


@run_script
def main(argv: Sequence[str] | None = None) -> None:
    """Train, judge, write each row as it comes, and tell the ratios."""
    options = tyro.cli(Options, args=argv, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    rows: list[dict[str, object]] = []
    for seed in range(options.seeds):
        train, held = load_split(options.source, options.holdout, seed)
        assert held is not None
        held = held[:, train.var_names].copy()
        dataset = train.uns["dataset"]
        path = RESULTS_DIR / "tables" / f"performance_quality_{dataset}.csv"
        for method in options.methods:
            for steps, seconds, drawn in DRAW[method](train, options, seed):
                found = judge(drawn, held, seed)
                at = {"dataset": dataset, "method": method, "seed": seed, "steps": steps, "seconds": round(seconds, 2)}
                rows += [{**at, "metric": metric, "value": value} for metric, value in found.items()]
                write_table(path, pd.DataFrame(rows))
                shown = ", ".join(f"{METRICS[metric]} {value:.3f}" for metric, value in found.items())
                console.print(f"{method}, seed {seed}, {steps} steps, {seconds:.1f} s: {shown}")
    table = pd.DataFrame(rows)
    figure = RESULTS_DIR / "figures" / f"performance_quality_{dataset}.png"
    save(plot(table), figure)
    for other in options.methods:
        if other != "garage" and "garage" in options.methods:
            ratios = [time_ratio(part, other, "garage") for _, part in table.groupby("seed")]
            shown = ", ".join(f"{ratio:.1f}" for ratio in ratios)
            console.print(f"times less than {other} needs for its best MMD and coverage: {shown}")
    console.print(f"wrote {path} and {figure}")


if __name__ == "__main__":
    main()
