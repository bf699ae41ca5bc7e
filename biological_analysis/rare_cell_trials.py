"""Training sets for classifiers of cell types, with synthetic cells of rare types added, and how well they teach.

The two experiments of `rare_cell_utility.py`: rare types as they are, and a type that loses all but a few of its cells.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_fscore_support

from benchmarking.calibrated import calibrate
from benchmarking.matrix import Job, Outcome, explain, is_current, learn, sampler_of, split_of
from common.checks import nearest
from common.comparison import compare
from common.data import CellSource, select_genes, types_of
from common.errors import UserError
from common.evaluation import find_rare
from common.generation import folder_of
from common.judging import record_run, rows_of
from common.metrics.catalogue import ALL, RARE
from common.metrics.fidelity import N_FOLDS, auroc, compare_on, density_coverage, forest_scores
from common.runs import Run, describe_split
from config import GarageParams

N_PCS = 50
N_TREES = 100  # as published
CLASSIFIERS: dict[str, Callable[..., Any]] = {
    "forest": partial(RandomForestClassifier, N_TREES),
    "logistic": partial(LogisticRegression, max_iter=2000),
}
WEIGHTS = {"unweighted": None, "balanced": "balanced"}
LEARNERS = tuple(product(CLASSIFIERS, WEIGHTS))
SCORES = ("recall", "precision", "f1")
REAL_ONLY, CEILING = "real_only", "real_half"


@dataclass(frozen=True)
class Trial:
    """One training set for the classifiers."""

    run: Run
    """whose training cells are learnt from, and whose held-out cells are to be told"""
    groups: Mapping[str, Sequence[str]]
    """types over which scores are averaged, by the name of the group"""
    setting: Mapping[str, int]
    """columns of the table that tell this trial from others of its run"""
    draw: Callable[[], AnnData | None]
    """makes the cells that are added"""
    restores: bool = False
    """judge also how like the held-out cells the added ones are"""


def testable_rare_types(run: Run) -> list[str]:
    """Return the rare types (`common.evaluation.find_rare`) that have held-out cells; of none, the rarest that has."""
    held, sizes = set(types_of(run.held)), type_sizes(run.train) + type_sizes(run.held)
    rare = [name for name in find_rare(run) if name in held]
    return rare or [str(sizes.dropna().idxmin())]


def type_sizes(cells: AnnData) -> pd.Series:
    """Return the number of cells of each type, by name."""
    return pd.Series(types_of(cells)).value_counts().sort_index()


def rare_trials(job: Job, *, amounts: Sequence[int]) -> list[Trial]:
    """Return the trials of a method on a split: an amount of its cells added of each rare type.

    Parameters
    ----------
    amounts
        Synthetic cells of each rare type, in multiples of its training cells.
    """
    run = split_of(job)
    rare, sizes = testable_rare_types(run), type_sizes(run.train)
    groups = {RARE: rare, **{name: [name] for name in rare}}
    sampler = cache(lambda: sampler_of(job, run.train))

    def draw(amount: int) -> AnnData | None:
        if job.generator == REAL_ONLY:
            return None
        parts = [sampler()(amount * int(sizes[name]), cell_type=name, seed=job.seed) for name in rare]
        return _calibrated(job, run, anndata.concat(parts, index_unique=" ", uns_merge="first"))

    added = (0,) if job.generator == REAL_ONLY else amounts
    return [Trial(run, groups, {"amount": amount}, partial(draw, amount)) for amount in added]


def _calibrated(job: Job, run: Run, drawn: AnnData) -> AnnData:
    return calibrate(drawn, run.train, GarageParams(), seed=job.seed) if job.calibrated else drawn


def down_sampling_trials(job: Job, *, wanted: str | None, keep: Sequence[int]) -> list[Trial]:
    """Return the trials of a method on a split: all but a few cells of a type taken away, and as many put back.

    Parameters
    ----------
    wanted
        The type, as of `type_to_lose`.
    keep
        Training cells of it that stay.
    """
    name = type_to_lose(_with_all_genes(job), wanted)

    def trial(left: int) -> Trial:
        run, removed = take_away(job, name, left)

        def draw() -> AnnData | None:
            if job.generator in (REAL_ONLY, CEILING):
                return removed if job.generator == CEILING else None
            return _calibrated(job, run, learn(job, run.train)(removed.n_obs, cell_type=name, seed=job.seed))

        setting = {"keep": left, "added": removed.n_obs * (job.generator != REAL_ONLY)}
        return Trial(run, {name: [name]}, setting, draw, restores=True)

    return [trial(left) for left in keepable(_with_all_genes(job), name, keep)]


def _with_all_genes(job: Job) -> Run:
    return split_of(replace(job, source=replace(job.source, n_top_genes=None)))


def type_to_lose(run: Run, wanted: str | None) -> str:
    """Return the type that loses cells: the one wanted, or the one with most cells, the same in every split.

    Raises
    ------
    UserError
        If there is no such type.
    """
    sizes = type_sizes(run.train).add(type_sizes(run.held), fill_value=0)
    if wanted is not None and wanted not in sizes:
        raise UserError(f"{run.dataset} has no type '{wanted}' to --down-sample{nearest(wanted, sizes.index)}")
    return wanted or str(sizes.idxmax())


def keepable(run: Run, name: str, keep: Sequence[int]) -> list[int]:
    """Return the numbers of cells to keep that leave some to take away."""
    return [k for k in keep if k < type_sizes(run.train)[name]]


def take_away(job: Job, name: str, keep: int) -> tuple[Run, AnnData]:
    """Take training cells of a type away, then choose genes.

    Parameters
    ----------
    job
        Its seed says which cells are kept; of fewer, all are among those of more. Its source says how many genes to
        choose.
    keep
        Training cells of the type that stay.

    Returns
    -------
    The run, and the cells that were taken away, with the same genes.
    """
    run, removed = _take_away(job.source, job.holdout, job.split_by, name, keep)
    cells = {part: getattr(run, part) for part in ("train", "held", "synthetic", "split")}
    return replace(_with_all_genes(job), **cells), removed


@lru_cache(maxsize=8)  # methods on one split come one after another
def _take_away(source: CellSource, holdout: float, seed: int, name: str, keep: int) -> tuple[Run, AnnData]:
    run = split_of(Job(replace(source, n_top_genes=None), holdout, seed, REAL_ONLY, REAL_ONLY))
    train = run.train[np.argsort(run.train.obs_names)]
    members = np.random.default_rng(seed).permutation(np.flatnonzero(types_of(train) == name))
    is_removed = np.isin(np.arange(train.n_obs), members[keep:])
    reduced, removed = train[~is_removed].copy(), train[is_removed]
    genes = reduced.var_names if source.n_top_genes is None else select_genes(reduced, source.n_top_genes)
    reduced, removed, held = (cells[:, genes].copy() for cells in (reduced, removed, run.held))
    split = describe_split(holdout, len(genes), None)
    return replace(run, train=reduced, held=held, synthetic=reduced, split=split), removed


def judge(trial: Trial) -> pd.DataFrame:
    """Add cells, train the classifiers, and test them on the held-out cells.

    Returns
    -------
    Columns group, metric, n, value, score, classifier and weights, whose rows the metric tells apart.
    """
    run, added = trial.run, trial.draw()
    cells = [run.train] if added is None else [run.train, added]
    values = [compare_on(part) for part in cells]
    # numbered, as scikit-learn takes the name of a type that looks like a number for one
    names, labels = np.unique(np.concatenate([types_of(part) for part in cells]), return_inverse=True)
    n_pcs = min(N_PCS, *(size - 1 for size in values[0].shape))
    pca = PCA(n_pcs, whiten=True, random_state=0).fit(values[0])  # the real training cells have unit variance
    X, unseen = pca.transform(np.concatenate(values)), pca.transform(compare_on(run.held))
    found = []
    for classifier, weights in LEARNERS:
        learner = CLASSIFIERS[classifier](class_weight=WEIGHTS[weights], random_state=run.seed)
        predicted = names[learner.fit(X, labels).predict(unseen)]
        found.append(score(predicted, types_of(run.held), trial.groups).assign(classifier=classifier, weights=weights))
    if trial.restores and added is not None:
        (name,) = trial.groups
        rows = [(name, metric, added.n_obs, value) for metric, value in restoration(run, name, added).items()]
        found.append(pd.DataFrame(rows, columns=["group", "score", "n", "value"]))
    return _named(pd.concat(found), trial)


def gap(trial: Trial) -> pd.DataFrame:
    """Return the rows of a trial that failed."""
    labels = types_of(trial.run.held)
    nothing = score(np.full(len(labels), ""), labels, trial.groups).assign(value=np.nan)
    rows = [nothing.assign(classifier=classifier, weights=weights) for classifier, weights in LEARNERS]
    return _named(pd.concat(rows), trial)


def _named(rows: pd.DataFrame, trial: Trial) -> pd.DataFrame:
    """Add the setting, and metrics by which the rows of a run can be told apart."""
    (kind, of), *_ = trial.setting.items()
    parts = rows[["score", "classifier", "weights"]].agg(lambda row: "_".join(row.dropna()), axis=1)
    return rows.assign(metric=parts + f"_{kind}{of}", **trial.setting)


def score(predicted: np.ndarray, labels: np.ndarray, groups: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Return recall, precision and F1 of groups of types, each type weighing the same, and macro-F1 over all types.

    Parameters
    ----------
    predicted, labels
        Types of the held-out cells, shape (n_cells,).
    groups
        Types over which to average, by the group's name.

    Returns
    -------
    Columns group, score, n (held-out cells) and value, from 0 to 1, higher is better. What is never predicted has
    precision 0.
    """
    types = np.unique(labels)
    found = precision_recall_fscore_support(labels, predicted, labels=types, average=None, zero_division=0)
    by_type = pd.DataFrame(dict(zip(("precision", "recall", "f1", "n"), found, strict=True)), index=types)
    rows = [
        (group, name, int(by_type.loc[members, "n"].sum()), by_type.loc[members, name].mean())
        for group, members in groups.items()
        for name in SCORES
    ]
    rows.append((ALL, "macro_f1", len(labels), by_type["f1"].mean()))
    return pd.DataFrame(rows, columns=["group", "score", "n", "value"])


def restoration(run: Run, name: str, added: AnnData) -> dict[str, float]:
    """Compare the cells that were put back of a type with its held-out ones, in equal numbers.

    Returns
    -------
    coverage_pcs and rf_auroc_pcs (`common.metrics.fidelity`); NaN where there are too few cells.
    """
    held = run.held[types_of(run.held) == name].copy()
    if min(held.n_obs, added.n_obs) < N_FOLDS:
        return {"coverage_pcs": np.nan, "rf_auroc_pcs": np.nan}
    real, drawn = compare(replace(run, held=held, synthetic=added))
    told = forest_scores(real.pcs, drawn.pcs, seed=run.seed)
    return {"coverage_pcs": density_coverage(real.pcs, drawn.pcs)[1], "rf_auroc_pcs": auroc(*told)}


def perform(
    job: Job, make_trials: Callable[[Job], list[Trial]], table: Path, *, again: bool, threads: int
) -> Outcome:  # fmt: skip
    """Judge those trials of a method on a split that the table has not; what fails becomes a gap in it."""
    torch.set_num_threads(threads)
    try:
        trials = make_trials(job)
    except UserError as error:
        return Outcome(job, job.source.name, "failed", str(error))
    if not trials:  # other splits may have a training cell more
        reason = "no --keep is below the type's training cells in this split"
        return Outcome(job, job.source.name, "failed", reason)
    run = trials[0].run
    stale = not trials[0].restores and not is_current(job, run)  # those that restore a type leave no run
    todo = [trial for trial in trials if again or stale or not _is_known(trial, table)]
    reasons = []
    for trial in todo:
        try:
            rows = judge(trial)
        except Exception as error:  # one generator must not take the others with it, nor fail unseen
            reasons.append(explain(error, folder_of(None, run.dataset, job.name, job.seed)))
            rows = gap(trial)
        record_run(trial.run, rows, table, one_model=False)  # each trial learns from other cells
    if reasons:
        return Outcome(job, run.dataset, "failed", "; ".join(dict.fromkeys(reasons)), run.split)
    return Outcome(job, run.dataset, "judged" if todo else "known", split=run.split)


def _is_known(trial: Trial, table: Path) -> bool:
    """Tell whether a table has values of a trial."""
    rows = rows_of(trial.run, table).dropna(subset="value")
    if rows.empty:
        return False
    mine = (rows[list(trial.setting)] == list(trial.setting.values())).all(axis=1)
    return set(trial.groups) <= set(rows.loc[mine, "group"])
