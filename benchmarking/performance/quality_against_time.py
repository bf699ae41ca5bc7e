"""What a second of training buys: GARAGE beside the published loop and scVI, judged by the same held-out cells.

GARAGE and scVI are trained anew for each number of epochs, from the cells to the drawn ones, stage 1 included. The
published loop is one run that is stopped to be judged; its seeds are chosen beforehand, which its seconds leave out.
All take turns in one process. Judging is never counted, nor is the loading of libraries. Seconds are of the processor,
which other programs disturb less than those of the clock; with one thread the two are the same on a quiet machine.

Run:    python benchmarking/performance/quality_against_time.py --methods garage published
        python benchmarking/performance/quality_against_time.py --methods garage scvi --input \
            pbmc3k.h5ad --n-top-genes 1000
        with OMP_NUM_THREADS=1 for figures that can be compared
Reads:  cells, as garage.py does
Writes: results/tables/performance_quality.csv, as it goes: dataset, split, seed, method, group, metric, n, value, steps
        (epochs, of GARAGE those of its anchor; or iterations) and seconds; what it held of the same runs is replaced.
        results/figures/performance_quality_<dataset>.png
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from matplotlib.figure import Figure

from benchmarking.controls import CONTROLS, load_controls, scvi
from benchmarking.performance.published_loop import PublishedLoop
from common.cli import console, parse_flags, run_script
from common.data import CellSource
from common.errors import UserError
from common.generation import load_split
from common.metrics import fidelity
from common.metrics.catalogue import ALL, METRICS
from common.plotting import figures_of, save
from common.results import KEYS, read_results, record
from common.runs import describe_split
from config import RESULTS_DIR, GarageParams, PaperParams
from data_generation.model import fit, sample

COMPARED = ("mmd_pcs", "coverage_pcs", "rf_auroc_pcs")
BOTH = COMPARED[:2]  # what has to be as good
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
    scvi_epochs: tuple[int, ...] = (20, 50, 100, 200, 400)
    """epochs of scVI"""
    iterations: int = 5000
    """iterations of the published loop"""
    every: int = 250
    """iterations between two judgements of it"""
    out: Path = RESULTS_DIR / "tables" / "performance_quality.csv"
    """table to write; rows of other runs in it are kept"""


def timed(train_and_draw: Callable[[int], AnnData], epochs: Sequence[int]) -> Drawn:
    """Train for each number of epochs."""
    train_and_draw(epochs[0])  # libraries are loaded on first use
    for n in epochs:
        start = time.process_time()
        drawn = train_and_draw(n)
        yield n, time.process_time() - start, drawn


def draw_garage(train: AnnData, options: Options, seed: int) -> Drawn:
    """Train GARAGE for each number of epochs."""
    whole = GarageParams(rare_threshold=train.uns.get("rare_threshold"))

    def train_and_draw(epochs: int) -> AnnData:
        critic_steps = whole.critic_steps if epochs == max(options.garage_epochs) else 0
        params = replace(whole, anchor_epochs=epochs, critic_steps=critic_steps)
        return sample(fit(train, params, seed=seed, device="cpu"), train.n_obs, seed=seed)

    return timed(train_and_draw, options.garage_epochs)


def draw_scvi(train: AnnData, options: Options, seed: int) -> Drawn:
    """Train scVI for each number of epochs."""

    def train_and_draw(epochs: int) -> AnnData:
        return scvi.sample(scvi.fit(train, scvi.ScviParams(epochs), seed=seed), train.n_obs, seed=seed)

    return timed(train_and_draw, options.scvi_epochs)


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
            yield iteration, seconds, AnnData(sp.csr_matrix(loop.draw()), uns={"scale": "log"})


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


def time_ratio(table: pd.DataFrame, slow: str, fast: str, metrics: Sequence[str]) -> float:
    """Return how many times less the fast method takes to be as good as the slow one at its best.

    Parameters
    ----------
    table
        Of one data set and seed, with columns method, seconds, metric and value.
    metrics
        In which it has to be as good, the best of each counting by itself.

    Returns
    -------
    Seconds until the slow method has had its best value of every metric, over those of the fast one's first point at
    which it is as good in all of them; nan if there is none.
    """
    short = table.assign(value=[METRICS[m].shortfall(v) for m, v in zip(table["metric"], table["value"], strict=True)])
    wide = short.pivot_table(index=["method", "seconds"], columns="metric", values="value")[list(metrics)]
    others, own = wide.loc[slow], wide.loc[fast]
    reached = own.index[(own <= others.min()).all(axis=1)]
    return max(others.idxmin()) / reached.min() if len(reached) else np.nan


def plot(table: pd.DataFrame) -> Figure:
    """Draw each metric against seconds, a line a method and seed."""
    figure = Figure(figsize=(4 * len(COMPARED), 3.2), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(COMPARED)), COMPARED, strict=True):
        for i, (method, rows) in enumerate(table[table["metric"] == metric].groupby("method")):
            for seed, line in rows.sort_values("seconds").groupby("seed"):
                axes.plot(line["seconds"], line["value"], "o-", color=f"C{i}", ms=3, label=method if not seed else None)
        better = METRICS[metric].better
        axes.set(xlabel="processor seconds", ylabel=f"{METRICS[metric].label} ({better} is better)", xscale="log")
    figure.axes[0].legend()
    return figure


@run_script
def main(argv: list[str]) -> None:
    """Train and judge in turns, write rows as they come, and tell the ratios."""
    options = parse_flags(Options, argv, __doc__)
    if not 0 < options.holdout < 1:
        raise UserError(f"--holdout is {options.holdout}: give a share above 0 and below 1, for held-out cells judge")
    load_controls([method for method in options.methods if method in CONTROLS])  # tells what is not installed
    for seed in range(options.seeds):
        train, held = load_split(options.source, options.holdout, seed)
        assert held is not None
        held = held[:, train.var_names].copy()
        dataset, rows = train.uns["dataset"], []
        keys = (dataset, describe_split(options.holdout, train.n_vars, None), seed)
        turns = itertools.zip_longest(*(DRAW[method](train, options, seed) for method in options.methods))
        for method, point in itertools.chain.from_iterable(zip(options.methods, turn, strict=True) for turn in turns):
            if point is None:  # it is at its end, others are not
                continue
            steps, seconds, drawn = point
            found = judge(drawn, held, seed)
            for metric, value in found.items():
                rows.append((*keys, method, ALL, metric, held.n_obs, value, steps, round(seconds, 2)))
            columns = [*KEYS, "group", "metric", "n", "value", "steps", "seconds"]
            record(options.out, pd.DataFrame(rows, columns=columns))
            shown = ", ".join(f"{METRICS[metric].label} {value:.3f}" for metric, value in found.items())
            console.print(f"{method}, seed {seed}, {steps} steps, {seconds:.1f} s: {shown}")
    table = read_results(options.out, made_by="this command")
    table = table[(table["dataset"] == dataset) & (table["split"] == keys[1])]
    figure = figures_of(options.out) / f"performance_quality_{dataset}.png"
    save(plot(table), figure)
    if "garage" in set(table["method"]):
        for other in sorted(set(table["method"]) - {"garage"}):
            for metrics in (BOTH, *((metric,) for metric in COMPARED)):
                ratios = [
                    time_ratio(part, other, "garage", metrics)
                    for _, part in table.groupby("seed")
                    if {other, "garage"} <= set(part["method"])
                ]
                shown = ", ".join(f"{ratio:.1f}" for ratio in ratios)
                named = " and ".join(METRICS[metric].label for metric in metrics)
                console.print(f"times less than {other} needs for its best {named}: {shown}")
    console.print(f"wrote {options.out} and {figure}", soft_wrap=True)


if __name__ == "__main__":
    main()
