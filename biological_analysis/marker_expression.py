"""Whether synthetic cells express the markers of their type at the rates and levels of held-out real cells."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from biological_analysis.markers import Markers, MarkerSource, find_markers
from common.comparison import thin_synthetic
from common.data import types_of
from common.evaluation import find_rare
from common.generation import print_notes
from common.judging import once_per_split
from common.metrics.catalogue import ALL, RARE
from common.metrics.fidelity import compare_on
from common.runs import Run

FEWEST_GENES = 3  # fewer have no correlation worth the name
RATE, LEVEL = "detection_rate", "level"
GAPS = {f"{RATE}_gap": RATE, f"{LEVEL}_gap": LEVEL}
CORRELATION = f"{LEVEL}_correlation"


def make_judge(source: MarkerSource) -> Callable[[Run], pd.DataFrame]:
    """Return what judges runs, as `common.judging.judge_runs` takes it.

    Rows of a marker have its column gene, the value of the synthetic cells and in column real that of the held-out
    ones. Rows of a type sum its markers up, those of `ALL` and `RARE` are means over types, each weighing the same:

    detection_rate_gap
        Mean absolute difference of the share of cells in which a marker is seen; from 0 to 1, lower is better. NaN for
        scaled values, which have no zero.
    level_gap
        The same of the mean log-normalised level; at least 0, lower is better.
    level_correlation
        Of the mean levels over the markers of a type (Pearson), at most 1, higher is better.

    A type that is not drawn expresses nothing. n is the number of held-out cells: of few, rates and levels are
    imprecise, as the control `real_half`, the training cells themselves, shows. Markers that were chosen on these cells
    are a little stronger there than in other cells, so a generator that learnt less of the chance in them can come
    nearer.
    """
    told: set[str] = set()

    @once_per_split
    def markers_of(run: Run) -> Markers:
        markers, notes = find_markers(run.train, source)
        print_notes([note for note in notes if note not in told])
        told.update(notes)
        return markers

    def judge(run: Run) -> pd.DataFrame:
        rows = compare_markers(run, markers_of(run))
        return pd.concat([rows, sum_up(rows, find_rare(run))]).assign(markers=source.describe(run.dataset))

    return judge


def compare_markers(run: Run, markers: Markers) -> pd.DataFrame:
    """Measure each marker in the synthetic and in the held-out cells of its type.

    Returns
    -------
    Columns group (the type), gene, metric, n (held-out cells), n_synthetic, value and real. Types without held-out
    cells have no rows.
    """
    synthetic, rows = thin_synthetic(run, run.train.n_obs), []
    X = {"real": compare_on(run.held), "value": compare_on(synthetic)}
    labels = {"real": types_of(run.held), "value": types_of(synthetic)}
    scaled = run.held.uns["scale"] == "scaled"
    for name, genes in markers.items():
        columns = run.train.var_names.get_indexer(genes)
        of = {side: X[side][labels[side] == name][:, columns] for side in X}
        if not len(of["real"]):
            continue
        found = {side: _measure(values, scaled) for side, values in of.items()}
        sizes = {"group": name, "gene": genes, "n": len(of["real"]), "n_synthetic": len(of["value"])}
        for metric in (RATE, LEVEL):
            sides = {side: found[side][metric] for side in found}
            rows += pd.DataFrame({**sizes, "metric": metric, **sides}).to_dict("records")
    return pd.DataFrame(rows)


def _measure(values: np.ndarray, scaled: bool) -> dict[str, np.ndarray]:
    """Return detection rate and mean level of each gene; zeros without cells."""
    if not len(values):
        values = np.zeros((1, values.shape[1]))
    rate = np.full(values.shape[1], np.nan) if scaled else (values > 0).mean(0)
    return {RATE: rate, LEVEL: values.mean(0)}


def sum_up(rows: pd.DataFrame, rare: list[str]) -> pd.DataFrame:
    """Sum the markers of each type up, then the types (`make_judge`); columns group, metric, n, n_synthetic, value."""
    gaps = rows.assign(gap=(rows["value"] - rows["real"]).abs()).pivot(index=["group", "gene"], columns="metric")["gap"]
    by_type = pd.DataFrame({gap: gaps[metric].groupby("group").mean() for gap, metric in GAPS.items()})
    by_type[CORRELATION] = rows[rows["metric"] == LEVEL].groupby("group")[["value", "real"]].apply(_correlation)
    sizes = rows.groupby("group")[["n", "n_synthetic"]].first()
    found = [(name, list(by_type.index[by_type.index == name])) for name in by_type.index]
    found += [(ALL, list(by_type.index)), (RARE, [name for name in by_type.index if name in rare])]
    return pd.DataFrame([
        {"group": group, "metric": metric, **sizes.loc[members].sum(), "value": by_type.loc[members, metric].mean()}
        for group, members in found
        for metric in by_type
    ])  # fmt: skip


def _correlation(levels: pd.DataFrame) -> float:
    if len(levels) < FEWEST_GENES or np.ptp(levels["real"]) == 0:
        return np.nan
    return float(levels["value"].corr(levels["real"])) if np.ptp(levels["value"]) > 0 else 0.0
