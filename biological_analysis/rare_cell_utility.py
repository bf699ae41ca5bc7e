"""Whether synthetic cells of rare types help to find these types in new cells (paper, "Rare cells").

Real cells are cut in halves, type by type, for each seed anew. Classifiers learn the types from the training half
alone, and from it with synthetic cells of its rare types added, in several amounts; they are tested on the held-out
half. All rows have the same classifiers (random forest and logistic regression, each with and without class weights) on
the same features: principal components of log-normalised values, fitted on the real training cells alone. A synthetic
cell has the type that its generator was asked for, or that a classifier gave it (column labels); no label is ever
changed. Beside the networks stand rivals that cost nothing: random oversampling (`bootstrap`), SMOTE, jitter, the
copula, Poisson.

Rare types have few cells to be tested on. So a type with many cells, the largest if none is named, loses all but a few
of its training cells; generators learn from what is left and put back as many as were taken, and its whole held-out
half tests how well. Genes are chosen afterwards: nothing knows the cells that were taken, but `real_half`, which puts
these back and is the ceiling.

Run:    python biological_analysis/rare_cell_utility.py --datasets pbmc68k pbmc3k.h5ad --seeds 10 --jobs 2
Reads:  data sets of config.py, or h5ad files with cell types in obs; finished runs of the benchmark, made if not there
Writes: results/tables/rare_cell_utility.csv as it goes: dataset, split, seed, method, group (rare cells: mean over the
        rare types; each of them; all cells), metric, n (held-out cells of the group), value, leakage, labels, score,
        classifier, weights, amount (synthetic cells of each rare type, in multiples of its training cells);
        results/tables/rare_cell_downsampling.csv likewise, with keep (training cells left) and added (cells put back);
        results/tables/rare_cell_utility_summary.csv and .md: means, what each method gains over real cells only, and
        GARAGE over each rival, paired over splits, with 95 % confidence intervals (`common.results.differences`);
        results/figures/rare_cell_utility.png, rare_cell_downsampling.png
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from itertools import groupby, product
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
import tyro
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.markup import escape
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_fscore_support

from benchmarking import run_benchmark
from benchmarking.calibrated import calibrate
from benchmarking.experiment import MatrixArgs, check_matrix_args, tell
from benchmarking.matrix import Job, Outcome, explain, in_processes, is_current, learn, sampler_of, split_of
from common.checks import nearest
from common.cli import console, progress_bar, run_script
from common.comparison import compare
from common.data import CellSource, select_genes, types_of
from common.errors import UserError
from common.evaluation import find_rare
from common.generation import folder_of
from common.judging import record_run, rows_of
from common.metrics.catalogue import ALL, RARE
from common.metrics.fidelity import N_FOLDS, auroc, compare_on, density_coverage, forest_scores
from common.plotting import MARKERS, PALETTE, save
from common.results import differences, read_results
from common.run import atomic, check_writable, write_table
from common.runs import Run, describe_split
from common.summary import label_of, markdown_table, show
from config import RESULTS_DIR, GarageParams

N_PCS = 50
N_TREES = 100  # as published
CLASSIFIERS: dict[str, Callable[..., Any]] = {
    "forest": partial(RandomForestClassifier, N_TREES),
    "logistic": partial(LogisticRegression, max_iter=2000),
}
WEIGHTS = {"unweighted": None, "balanced": "balanced"}
LEARNERS = tuple(product(CLASSIFIERS, WEIGHTS))
SCORES = ("recall", "precision", "f1")
LABELS = {"recall": "recall", "precision": "precision", "f1": "F1", "macro_f1": "macro-F1, all types"}
WHOLE, REAL_ONLY, CEILING = "garage", "real_only", "real_half"
NAMES = {REAL_ONLY: "real cells only", "bootstrap": "random oversampling", CEILING: "the real cells themselves"}
"""what methods are called here, where it is not what they are called elsewhere"""
SETTING = ["classifier", "weights", "amount"]


@dataclass(frozen=True)
class Args(MatrixArgs):
    """Classifiers of cell types with and without synthetic cells of rare types."""

    methods: tuple[str, ...] = (WHOLE, "bootstrap", "smote", "copula", "jitter", "poisson")
    """generators, by the names that the benchmark has for them"""
    seeds: int = 10
    """seeds 0, 1, ...: each splits the cells anew, as in the benchmark"""
    amounts: tuple[int, ...] = (1, 3, 10)
    """synthetic cells of each rare type, in multiples of its training cells; none leaves this part out"""
    keep: tuple[int, ...] = (3, 5, 10, 20)
    """training cells that are left of the type that loses cells; none leaves this part out"""
    down_sample: str | None = None
    """the type that loses cells; by default the largest"""
    out: Path = RESULTS_DIR / "tables" / "rare_cell_utility.csv"
    """table to write; the others lie beside it"""


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


MakeTrials = Callable[[Job, Args], list[Trial]]


def testable_rare_types(run: Run) -> list[str]:
    """Return the rare types (`common.evaluation.find_rare`) that have held-out cells; of none, the rarest that has."""
    held, sizes = set(types_of(run.held)), _sizes(run.train) + _sizes(run.held)
    rare = [name for name in find_rare(run) if name in held]
    return rare or [str(sizes.dropna().idxmin())]


def _sizes(cells: AnnData) -> pd.Series:
    """Return the number of cells of each type, by name."""
    return pd.Series(types_of(cells)).value_counts().sort_index()


def rare_trials(job: Job, args: Args) -> list[Trial]:
    """Return the trials of a method on a split: an amount of its cells added of each rare type."""
    run = split_of(job)
    rare, sizes = testable_rare_types(run), _sizes(run.train)
    groups = {RARE: rare, **{name: [name] for name in rare}}
    sampler = cache(lambda: sampler_of(job, run.train, again=args.again))

    def draw(amount: int) -> AnnData | None:
        if job.generator == REAL_ONLY:
            return None
        parts = [sampler()(amount * int(sizes[name]), cell_type=name, seed=job.seed) for name in rare]
        return _calibrated(job, run, anndata.concat(parts, index_unique=" ", uns_merge="first"))

    amounts = (0,) if job.generator == REAL_ONLY else args.amounts
    return [Trial(run, groups, {"amount": amount}, partial(draw, amount)) for amount in amounts]


def _calibrated(job: Job, run: Run, drawn: AnnData) -> AnnData:
    return calibrate(drawn, run.train, GarageParams(), seed=job.seed) if job.calibrated else drawn


def down_sampling_trials(job: Job, args: Args) -> list[Trial]:
    """Return the trials of a method on a split: all but a few cells of a type taken away, and as many put back."""
    name = type_to_lose(_with_all_genes(job), args.down_sample)

    def trial(keep: int) -> Trial:
        run, removed = take_away(job, name, keep, args.n_top_genes)

        def draw() -> AnnData | None:
            if job.generator in (REAL_ONLY, CEILING):
                return removed if job.generator == CEILING else None
            return _calibrated(job, run, learn(job, run.train)(removed.n_obs, cell_type=name, seed=job.seed))

        setting = {"keep": keep, "added": removed.n_obs * (job.generator != REAL_ONLY)}
        return Trial(run, {name: [name]}, setting, draw, restores=True)

    return [trial(keep) for keep in _keepable(_with_all_genes(job), name, args.keep)]


def _with_all_genes(job: Job) -> Run:
    return split_of(replace(job, source=replace(job.source, n_top_genes=None)))


def type_to_lose(run: Run, wanted: str | None) -> str:
    """Return the type that loses cells: the one wanted, or the one with most cells, the same in every split.

    Raises
    ------
    UserError
        If there is no such type.
    """
    sizes = _sizes(run.train).add(_sizes(run.held), fill_value=0)
    if wanted is not None and wanted not in sizes:
        raise UserError(f"{run.dataset} has no type '{wanted}' to --down-sample{nearest(wanted, sizes.index)}")
    return wanted or str(sizes.idxmax())


def _keepable(run: Run, name: str, keep: Sequence[int]) -> list[int]:
    """Return the numbers of cells to keep that leave some to take away."""
    return [k for k in keep if k < _sizes(run.train)[name]]


def take_away(job: Job, name: str, keep: int, n_top_genes: int | None) -> tuple[Run, AnnData]:
    """Take training cells of a type away, then choose genes.

    Parameters
    ----------
    job
        Its seed says which cells are kept; of fewer, all are among those of more.
    keep
        Training cells of the type that stay.
    n_top_genes
        To choose on what is left.

    Returns
    -------
    The run, and the cells that were taken away, with the same genes.
    """
    run, removed = _take_away(job.source, job.holdout, job.split_by, name, keep, n_top_genes)
    cells = {part: getattr(run, part) for part in ("train", "held", "synthetic", "split")}
    return replace(_with_all_genes(job), **cells), removed


@lru_cache(maxsize=8)  # methods on one split come one after another
def _take_away(
    source: CellSource, holdout: float, seed: int, name: str, keep: int, n_top_genes: int | None
) -> tuple[Run, AnnData]:
    run = split_of(Job(replace(source, n_top_genes=None), holdout, seed, REAL_ONLY, REAL_ONLY))
    train = run.train[np.argsort(run.train.obs_names)]
    members = np.random.default_rng(seed).permutation(np.flatnonzero(types_of(train) == name))
    is_removed = np.isin(np.arange(train.n_obs), members[keep:])
    reduced, removed = train[~is_removed].copy(), train[is_removed]
    genes = reduced.var_names if n_top_genes is None else select_genes(reduced, n_top_genes)
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


def perform(job: Job, make_trials: MakeTrials, args: Args, table: Path, *, threads: int) -> Outcome:
    """Judge those trials of a method on a split that the table has not; what fails becomes a gap in it."""
    torch.set_num_threads(threads)
    try:
        trials = make_trials(job, args)
    except UserError as error:
        return Outcome(job, str(job.source.dataset or job.source.input), "failed", str(error))
    if not trials:  # other splits may have a training cell more
        reason = "no --keep is below the type's training cells in this split"
        return Outcome(job, str(job.source.dataset or job.source.input), "failed", reason)
    run = trials[0].run
    stale = make_trials is rare_trials and not is_current(job, run)
    todo = [trial for trial in trials if args.again or stale or not _is_known(trial, table)]
    reasons = []
    for trial in todo:
        try:
            rows = judge(trial)
        except Exception as error:  # one generator must not take the others with it, nor fail unseen
            reasons.append(explain(error, folder_of(None, run.dataset, job.name, job.seed)))
            rows = gap(trial)
        record_run(trial.run, rows, table)
    if reasons:
        return Outcome(job, run.dataset, "failed", "; ".join(dict.fromkeys(reasons)))
    return Outcome(job, run.dataset, "judged" if todo else "known")


def _is_known(trial: Trial, table: Path) -> bool:
    """Tell whether a table has values of a trial."""
    rows = rows_of(trial.run, table).dropna(subset="value")
    if rows.empty:
        return False
    mine = (rows[list(trial.setting)] == list(trial.setting.values())).all(axis=1)
    return set(trial.groups) <= set(rows.loc[mine, "group"])


def plan(args: Args, references: Sequence[str]) -> list[Job]:
    """Return the jobs of the benchmark, with references before the methods of each split."""
    given = {name: getattr(args, name) for name in ("datasets", "methods", "seeds", "holdout", "n_top_genes")}
    jobs = []
    for (source, seed), of_split in groupby(run_benchmark.plan(run_benchmark.Args(**given)), _split_of):
        jobs += [Job(source, args.holdout, seed, name, name) for name in references]
        jobs += [job for job in of_split if job.method not in references]
    return jobs


def _split_of(job: Job) -> tuple[CellSource, int]:
    return job.source, job.seed


def summarise_gains(table: pd.DataFrame, *, holdout: float) -> pd.DataFrame:
    """Return means, and differences paired over splits: of each method from real cells only, of GARAGE from each rival.

    Parameters
    ----------
    table
        Of rare_cell_utility.csv.
    holdout
        Share of the cells that was held out, which says how far splits overlap.

    Returns
    -------
    Columns dataset, split, group, score, classifier, weights, amount, method, value (its mean), n (held-out cells, mean
    over splits), reference, difference (the method's less the reference's), low, high (95 % confidence interval) and
    seeds (that have both).
    """
    rows = table.assign(metric=table["score"])
    added, overlap = rows[rows["method"] != REAL_ONLY], holdout / (1 - holdout)
    gains = differences(at_every_amount(rows), REAL_ONLY, overlap=overlap, within=SETTING)
    found = [gains.assign(reference=REAL_ONLY)]
    if WHOLE in set(added["method"]) and added["method"].nunique() > 1:
        less = differences(added, WHOLE, overlap=overlap, within=SETTING)  # of the rivals, so turned round
        turned = {"mean": -less["mean"], "low": -less["high"], "high": -less["low"]}
        found.append(less.assign(method=WHOLE, reference=less["method"], **turned))
    by = ["dataset", "split", "group", "metric", *SETTING, "method"]
    means = rows.groupby(by, sort=False).agg(value=("value", "mean"), n=("n", "mean")).reset_index()
    both = means.merge(pd.concat(found).rename(columns={"mean": "difference"}), how="left", on=by)
    return both.rename(columns={"metric": "score"}).sort_values(
        ["dataset", "split", "group", "score", *SETTING, "method", "reference"], ignore_index=True
    )


def at_every_amount(rows: pd.DataFrame) -> pd.DataFrame:
    """Repeat what real cells reach on their own beside every amount that is added to them."""
    is_real = rows["method"] == REAL_ONLY
    amounts = np.unique(rows.loc[~is_real, "amount"])
    return pd.concat([rows[~is_real], *(rows[is_real].assign(amount=amount) for amount in amounts)])


def as_markdown(summary: pd.DataFrame) -> str:
    """Return the table of `summarise_gains` for people: rare types together, then the rarest alone."""
    parts = [
        "Classifiers trained on real cells with synthetic cells of rare types added (amount: synthetic cells of a "
        "rare type for each of its training cells), tested on held-out real ones. Means over splits; in brackets the "
        "difference from real cells only, or of GARAGE from a rival, paired over splits, and its 95 % confidence "
        "interval.\n"
    ]
    for (dataset, split), rows in summary.groupby(["dataset", "split"], sort=False):
        for group in (RARE, rarest_of(rows)):
            of_group = rows[(rows["group"] == group) | (rows["score"] == "macro_f1")]
            n = of_group.loc[of_group["group"] == group, "n"].mean()
            title = f"{dataset} ({split}), {'' if group == RARE else 'rarest type: '}{group}, {n:.0f} held-out cells"
            gains = of_group[of_group["reference"].isna() | (of_group["reference"] == REAL_ONLY)]
            parts.append(f"## {title}\n\n{_grid(gains, 'method')}")
            rivals = of_group[of_group["reference"].notna() & (of_group["reference"] != REAL_ONLY)]
            if len(rivals):
                parts.append(f"GARAGE less its rivals\n\n{_grid(rivals, 'reference')}")
    return "\n".join(parts)


def rarest_of(rows: pd.DataFrame) -> str:
    """Return the type with the fewest held-out cells."""
    sizes = rows[~rows["group"].isin([ALL, RARE])].groupby("group")["n"].mean()
    return str(sizes.idxmin())


def _grid(rows: pd.DataFrame, who: str) -> str:
    """Return one Markdown line a classifier, method and amount, one column a score."""
    scores = list(LABELS)
    body = []
    for (classifier, weights, name, amount), of in rows.groupby(["classifier", "weights", who, "amount"], sort=False):
        by_score = of.drop_duplicates("score").set_index("score")
        cells = [_cell(by_score.loc[name], mean=who == "method") if name in by_score.index else "" for name in scores]
        body.append([f"{classifier}, {weights}", NAMES.get(str(name), str(name)), f"{amount:g}", *cells])
    return markdown_table(
        ["classifier", "cells added" if who == "method" else "rival", "amount", *LABELS.values()], body
    )


def _cell(row: pd.Series, *, mean: bool) -> str:
    gain = "" if pd.isna(row["difference"]) else f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
    if not mean:
        return gain
    return f"{row['value']:.2f}" + (f" ({gain})" if gain else "")


def plot_gains(summary: pd.DataFrame) -> Figure:
    """Draw what each method gains in recall of rare types: a row a data set, a column a classifier, a colour an amount.

    Parameters
    ----------
    summary
        Of `summarise_gains`.
    """
    rows = summary[(summary["group"] == RARE) & (summary["score"] == "recall") & (summary["reference"] == REAL_ONLY)]
    methods, amounts = rows["method"].unique()[::-1], np.unique(rows["amount"])
    figure, panels = _panels(rows["dataset"].unique(), LEARNERS, height=0.5 * len(methods) + 1.0)
    for (dataset, classifier, weights), axes in panels.items():
        mine = rows[(rows[["dataset", "classifier", "weights"]] == [dataset, classifier, weights]).all(axis=1)]
        for i, amount in enumerate(amounts):
            found = mine[mine["amount"] == amount].set_index("method").reindex(methods)
            reach = np.nan_to_num([found["difference"] - found["low"], found["high"] - found["difference"]])
            axes.errorbar(
                found["difference"], np.arange(len(methods)) + 0.2 * ((len(amounts) - 1) / 2 - i), xerr=reach,
                linestyle="", marker=MARKERS[i % len(MARKERS)], markersize=4, linewidth=1,
                color=PALETTE[i % len(PALETTE)], label=f"{amount:g} x its training cells",
            )  # fmt: skip
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(xlabel="recall of rare types, gain", yticks=range(len(methods)))
        axes.set_yticklabels([NAMES.get(name, name) for name in methods])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def plot_down_sampling(table: pd.DataFrame) -> Figure:
    """Draw the F1 of the type that lost cells, and how its held-out cells are covered, against what was left of it.

    Parameters
    ----------
    table
        Of rare_cell_downsampling.csv.
    """
    columns = [("f1", *learner) for learner in LEARNERS] + [("coverage_pcs", "", "")]
    rows = table[table["group"] != ALL].fillna({"classifier": "", "weights": ""})
    methods = rows["method"].unique()
    figure, panels = _panels(rows["dataset"].unique(), columns, height=3.0)
    plain = {REAL_ONLY: ("black", "--"), CEILING: ("grey", ":")}
    colors = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(name for name in methods if name not in plain)}
    for (dataset, kind, classifier, weights), axes in panels.items():
        panel = [dataset, kind, classifier, weights]
        mine = rows[(rows[["dataset", "score", "classifier", "weights"]] == panel).all(axis=1)]
        for name in methods:
            means = mine[mine["method"] == name].groupby("keep")["value"].mean()
            color, style = plain.get(name, (colors.get(name), "-"))
            axes.plot(means.index, means, style, color=color, marker=".", linewidth=1.2, label=NAMES.get(name, name))
        axes.set(xscale="log", xlabel=f"training cells left of {mine['group'].iloc[0]}", ylim=(-0.02, 1.02))
        axes.set_xticks(keeps := np.unique(mine["keep"]), labels=[f"{keep:g}" for keep in keeps])
        axes.minorticks_off()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def _panels(
    datasets: Sequence[str], columns: Sequence[tuple[str, ...]], *, height: float
) -> tuple[Figure, dict[tuple[str, ...], Axes]]:
    """Return a figure with a row a data set, and its panels by data set and column."""
    figure = Figure(figsize=(3 * len(columns) + 2, height * len(datasets)), layout="constrained")
    grid = figure.subplots(len(datasets), len(columns), sharey=True, squeeze=False)
    panels = {(name, *column): grid[i][j] for i, name in enumerate(datasets) for j, column in enumerate(columns)}
    for (name, *column), axes in panels.items():
        axes.set_title(
            ", ".join([name, *(LABELS.get(part, label_of(part)) for part in column if part)]), fontsize="small"
        )
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def tell_types(args: Args, run: Run) -> None:
    """Say which types of a data set are rare, which cannot be tested, and which loses cells.

    Raises
    ------
    UserError
        If that one does not have so many.
    """
    train, held = _sizes(run.train), _sizes(run.held)
    told, untested = [], sorted(set(train.index) - set(held.index))
    if args.amounts:
        rare = [f"{name} ({train[name]} training, {held[name]} held-out cells)" for name in testable_rare_types(run)]
        told.append(f"rare types {', '.join(rare)}")
        told += [f"no cell of {', '.join(untested)} is held out to be tested on"] if untested else []
    if args.keep:
        name = type_to_lose(run, args.down_sample)
        kept = _keepable(run, name, args.keep)
        if not kept:
            raise UserError(f"{run.dataset} has only {train[name]} training cells of {name}: give a smaller --keep")
        told.append(f"{name} loses all but {', '.join(map(str, kept))} of its {train[name]} training cells")
    console.print(escape(f"{run.dataset}: {'; '.join(told)}"), soft_wrap=True)


@run_script
def main(argv: Sequence[str] | None = None) -> None:
    """Judge, compare, draw, and show the means.

    Raises
    ------
    SystemExit
        With code 1 if a generator failed.
    """
    args: Args = tyro.cli(Args, args=argv, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    check_matrix_args(args)
    if min((1, *args.amounts, *args.keep)) < 1 or not (args.amounts or args.keep):
        raise UserError("--amounts and --keep take whole numbers of at least 1, and one of the two is needed")
    check_writable(args.out.parent)
    for job in {job.source: job for job in reversed(plan(args, ()))}.values():
        tell_types(args, split_of(job))
    figures, outcomes, written = RESULTS_DIR / "figures", [], []
    if args.amounts:
        outcomes += _perform_all(rare_trials, (REAL_ONLY,), args, args.out)
        table = _read(args.out, args)
        summary = summarise_gains(table, holdout=args.holdout)
        write_table(args.out.with_name(f"{args.out.stem}_summary.csv"), summary)
        with atomic(args.out.with_name(f"{args.out.stem}_summary.md")) as part:
            part.write_text(as_markdown(summary))
        save(plot_gains(summary), figures / "rare_cell_utility.png")
        _show(at_every_amount(table[table["group"] == RARE]), "recall", "amount", "{:3g} x its cells added")
        written += [f"{args.out} with its _summary.csv and .md", str(figures / "rare_cell_utility.png")]
    if args.keep:
        path, figure = args.out.with_name("rare_cell_downsampling.csv"), figures / "rare_cell_downsampling.png"
        outcomes += _perform_all(down_sampling_trials, (REAL_ONLY, CEILING), args, path)
        table = _read(path, args)
        save(plot_down_sampling(table), figure)
        _show(table[table["group"] != ALL], "f1", "keep", "{:3g} cells left")
        written += [str(path), str(figure)]
    tell(outcomes, f"wrote {', '.join(written)}")


def _perform_all(make_trials: MakeTrials, references: Sequence[str], args: Args, table: Path) -> list[Outcome]:
    work = partial(perform, make_trials=make_trials, args=args, table=table)
    with progress_bar() as report:
        return in_processes(work, plan(args, references), n_jobs=args.jobs, report=report)


def _read(path: Path, args: Args) -> pd.DataFrame:
    """Read what a table has of these shares of training and held-out cells."""
    table = read_results(path, made_by="the same command")
    return table[table["split"].str.startswith(f"holdout {args.holdout:g},")]


def _show(rows: pd.DataFrame, kind: str, by: str, text: str) -> None:
    """Print the means of a score by an unweighted and a balanced classifier."""
    for classifier, weights in (LEARNERS[0], LEARNERS[-1]):
        wanted = [kind, classifier, weights]
        mine = rows[(rows[["score", "classifier", "weights"]] == wanted).all(axis=1)]
        named = mine.assign(
            group=f"{LABELS[kind]} of " + mine["group"] + f", {classifier}, {weights}",
            method=mine["method"].replace(NAMES), metric=mine[by].map(text.format),
        )  # fmt: skip
        show(named, controls=(NAMES[REAL_ONLY], NAMES[CEILING]))


if __name__ == "__main__":
    from biological_analysis import rare_cell_utility  # as processes know it: what is cached has no name in a script

    rare_cell_utility.main()
