"""Is attention enriched in rare types and their markers, and do synthetic cells express them (paper, "Validation")?

Real cells. Attention is learnt from the types that it is then tested on, and rare types weigh more in learning. To
separate that effect, the same tests are run on control scores of the same cells: attention without the priority of rare
types; without weighing the types alike either; learnt from shuffled types; how many cells listen to a cell; chance. The
fifth of the training cells with the highest score is HIGH, and for each score it is asked

- of each type, whether HIGH has more of its cells than the rest (Fisher's exact test, two-sided);
- of each marker, whether HIGH expresses it more than the rest (Wilcoxon's rank sum, two-sided): over all cells, where
  the types that HIGH is made of decide, and within the marker's own type, where they cannot.

q is p corrected for the types, or the markers, of one score and seed (Benjamini & Hochberg 1995). Each seed splits the
cells and trains the networks anew, and scores are compared seed by seed. Whatever HIGH has of the rare types, GARAGE
takes its seeds from every type by a quota.

Synthetic cells. Of runs of any generator it is asked whether cells of each type express their markers as often, and as
strongly, as held-out real ones; controls stand beside. Markers chosen on the training cells are exaggerated in these,
so that `real_half` is a floor for listed markers only.

Run:    python biological_analysis/biological_validation.py --datasets pbmc68k my_cells.h5ad --runs DIR...
Reads:  data sets of config.py, or h5ad files with cell types in obs; cells.h5ad, heldout.csv and run.json of each run
Writes: results/tables/biological_validation.csv: dataset, split, seed, method (the score), group (a type, or rare
        cells: the rare types together), metric, n (cells of the group), value (log2 odds ratio, 1/2 added to each
        count), is_rare, n_cells, n_high, n_both (cells of the group in HIGH), enrichment (share in HIGH over share),
        odds_ratio (conditional maximum likelihood), low, high (its exact 95 % confidence interval), p, q, markers;
        results/tables/biological_validation_markers.csv: likewise, a row a marker (gene) and metric: marker_auroc or
        marker_auroc_in_type; n and n_high are cells compared, value is the chance that a HIGH cell expresses more than
        another (AUROC), low and high are its 95 % confidence interval;
        results/tables/biological_validation_differences.csv: dataset, split, group, metric, control, mean (value of
        attention less the control's; of markers, means over those of the group, see effects), low, high, seeds;
        results/tables/marker_expression.csv: see marker_expression.py;
        results/figures/biological_validation.png
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from matplotlib.figure import Figure
from rich.markup import escape
from scipy.stats import false_discovery_control, fisher_exact, mannwhitneyu, norm
from scipy.stats.contingency import odds_ratio

from benchmarking.controls import DEFAULT_CONTROLS, PURE_CONTROLS, load_controls
from benchmarking.experiment import sources_of
from benchmarking.matrix import Job, split_of
from biological_analysis import marker_expression
from biological_analysis.markers import Markers, MarkerSource, check_same_markers, find_markers
from common.cli import console, parse_flags, progress_bar, run_script, silent
from common.data import CellSource, select_genes, types_of
from common.errors import UserError
from common.evaluation import find_rare
from common.generation import print_notes
from common.judging import judge_runs
from common.metrics.catalogue import ALL, RARE
from common.metrics.fidelity import compare_on
from common.plotting import MARKERS, PALETTE, figures_of, save
from common.results import KEYS, differences, keep_other_datasets, record
from common.run import check_writable, write_table
from common.runs import describe_split, identify
from common.scale import to_log
from common.summary import show
from config import RESULTS_DIR, GarageParams
from data_generation.attention import graph_features, knn_graph
from data_generation.cell_selection import seed_scores, select

ATTENTION = "attention"
CONTROLS = (
    "attention without priority", "attention without weights", "attention on shuffled types", "degree", "random",
)  # fmt: skip
HIGH_SHARE = 0.2  # as published
ALPHA = 0.05
ODDS, OVERALL, WITHIN = "log2_odds_ratio", "marker_auroc", "marker_auroc_in_type"
WORDS = {ODDS: "share in HIGH", OVERALL: "their markers", WITHIN: "their markers within a type"}


@dataclass(frozen=True)
class Args:
    """Test attention on real cells, and marker genes on synthetic ones."""

    genes: MarkerSource
    datasets: tuple[str, ...] = ("pbmc68k",)
    """names of config.py, or paths of h5ad files with obs['cell_type']; none leaves out the tests of attention"""
    runs: tuple[Path, ...] = ()
    """folders of runs that held cells out (garage.py --holdout 0.5); none leaves out the synthetic cells"""
    seeds: int = 5
    """seeds 0, 1, ...: each splits the cells and trains the attention networks anew"""
    holdout: float = 0.5
    """share of each type's cells that attention does not see, as in the benchmark"""
    n_top_genes: int | None = 1000
    """variable genes, chosen on the training cells, for the graph; None takes all, as scaled values need it"""
    controls: tuple[str, ...] = DEFAULT_CONTROLS
    """generators to fit to the training cells of the runs, for comparison"""
    again: bool = False
    """judge controls anew that the table holds already"""
    out: Path = RESULTS_DIR / "tables" / "biological_validation.csv"
    """table to write; the others lie beside it, and rows of other data sets and runs in them are kept"""


def score_cells(cells: AnnData, params: GarageParams, *, seed: int) -> dict[str, np.ndarray]:
    """Score cells by attention and by its controls.

    Parameters
    ----------
    cells
        Training cells, in an order that does not depend on their types.
    params
        Of which stage 1 takes its own.

    Returns
    -------
    Scores of shape (n_cells,), higher is higher; `ATTENTION` first.
    """
    scale = cells.uns["scale"]
    library_size = float(np.median(np.asarray(cells.X.sum(1)))) if scale == "counts" else 1.0
    log_values, types = to_log(cells.X, scale, library_size), np.unique(types_of(cells), return_inverse=True)[1]

    def learn(labels: np.ndarray, params: GarageParams) -> np.ndarray:
        on = torch.device("cpu")
        return select(log_values, labels, params, seed=seed, device=on, report=silent).attention

    attention = learn(types, params)
    plain = replace(params, priority_weight=0.0)
    learnt = (
        learn(types, plain),
        learn(types, replace(plain, gat_balanced=False)),
        learn(np.random.default_rng(seed).permutation(types), params),
    )
    features = graph_features(log_values, params, seed=seed)
    edges = knn_graph(features, params.neighbors, symmetric=params.graph_symmetric, seed=seed)
    given = (
        seed_scores(attention, edges, features, types, replace(params, seeds_by="degree"), seed=seed),
        seed_scores(attention, edges, features, types, replace(params, seeds_by="random"), seed=seed),
    )
    return {ATTENTION: attention, **dict(zip(CONTROLS, (*learnt, *given), strict=True))}


def find_high(score: np.ndarray) -> np.ndarray:
    """Return a mask of the fifth of the cells, rounded up, with the highest score."""
    high = np.zeros(len(score), bool)
    high[np.argsort(-score, kind="stable")[: int(np.ceil(HIGH_SHARE * len(score)))]] = True
    return high


def fisher_tests(labels: np.ndarray, high: np.ndarray, rare: list[str]) -> pd.DataFrame:
    """Test whether the cells of each type, and those of all rare types together, are more frequent in HIGH.

    Parameters
    ----------
    labels
        Cell types, shape (n_cells,).
    high
        Mask of shape (n_cells,).

    Returns
    -------
    A row a group; columns as of biological_validation.csv, without those of the run. The rare types together are a test
    of their own, whose q is p.
    """
    groups = {str(name): labels == name for name in np.unique(labels)}
    types = pd.DataFrame([{"group": name, "is_rare": name in rare, **_fisher(of, high)} for name, of in groups.items()])
    types["q"] = correct(types["p"])
    if not rare:
        return types
    together = pd.DataFrame([{"group": RARE, "is_rare": True, **_fisher(np.isin(labels, rare), high)}])
    return pd.concat([types, together.assign(q=together["p"])], ignore_index=True)


def _fisher(of_type: np.ndarray, high: np.ndarray) -> dict[str, float]:
    both, n, n_high, n_cells = (int(mask.sum()) for mask in (of_type & high, of_type, high, np.ones_like(high)))
    table = np.array([[both, n - both], [n_high - both, n_cells - n - n_high + both]])
    found = odds_ratio(table)
    interval = found.confidence_interval(1 - ALPHA)
    log_odds = np.log2(table + 0.5)
    return {
        "metric": ODDS, "n": n, "value": log_odds[0, 0] + log_odds[1, 1] - log_odds[0, 1] - log_odds[1, 0],
        "n_cells": n_cells, "n_high": n_high, "n_both": both, "enrichment": both / n_high / (n / n_cells),
        "odds_ratio": found.statistic, "low": interval.low, "high": interval.high, "p": fisher_exact(table).pvalue,
    }  # fmt: skip


def rank_sum_tests(
    cells: AnnData, markers: Markers, labels: np.ndarray, high: np.ndarray, rare: list[str]
) -> pd.DataFrame:
    """Test whether HIGH cells express each marker more than other cells do, over all cells and within its type.

    Returns
    -------
    Two rows a marker of a type; columns as of biological_validation_markers.csv, without those of the run. NaN where
    all cells of a type are HIGH, or none.
    """
    X = compare_on(cells)
    everyone = np.ones(len(high), bool)
    rows = []
    for metric in (OVERALL, WITHIN):
        parts = []
        for name, genes in markers.items():
            of = everyone if metric == OVERALL else labels == name
            values = X[of][:, cells.var_names.get_indexer(genes)]
            sizes = {"group": name, "is_rare": name in rare, "gene": genes, "n": of.sum(), "n_high": high[of].sum()}
            found = pd.DataFrame({**sizes, "metric": metric, **rank_sum(values[high[of]], values[~high[of]])})
            parts += found.to_dict("records")
        tests = pd.DataFrame(parts)
        rows.append(tests.assign(q=correct(tests["p"])))
    return pd.concat(rows, ignore_index=True)


def rank_sum(high: np.ndarray, rest: np.ndarray) -> dict[str, np.ndarray]:
    """Compare two groups of cells gene by gene.

    Parameters
    ----------
    high, rest
        Shape (n_cells, n_genes).

    Returns
    -------
    value (AUROC: the chance that a cell of `high` has more, ties counting half), its confidence interval low and high,
    and p (Wilcoxon's rank sum, two-sided, corrected for ties), each of shape (n_genes,); NaN without cells.
    """
    if not len(high) or not len(rest):
        return dict.fromkeys(("value", "low", "high", "p"), np.full(high.shape[1], np.nan))
    found = mannwhitneyu(np.float64(high), np.float64(rest), axis=0)
    auroc = found.statistic / (len(high) * len(rest))
    low, up = auroc_interval(auroc, len(high), len(rest))
    return {"value": auroc, "low": low, "high": up, "p": found.pvalue}


def auroc_interval(auroc: np.ndarray, m: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % confidence interval of an AUROC of m against n cells (Newcombe 2006, method 5).

    All values from which the one found is at most 1.96 standard deviations away, by the variance of Hanley & McNeil
    (1982) at each of them: of few cells it is wide even where one group lies above the other altogether.
    """
    z, mean_size = norm.ppf(1 - ALPHA / 2), (m + n) / 2 - 1

    def is_far(theta: np.ndarray) -> np.ndarray:
        spread = 1 + mean_size * (1 - theta) / (2 - theta) + mean_size * theta / (1 + theta)
        return np.square(auroc - theta) > z**2 * theta * (1 - theta) * spread / (m * n)

    bounds = []
    for end in (0.0, 1.0):
        near, far = auroc, np.full_like(auroc, end)
        for _ in range(50):  # bisection
            middle = (near + far) / 2
            near, far = np.where(is_far(middle), near, middle), np.where(is_far(middle), middle, far)
        bounds.append(far)
    return bounds[0], bounds[1]


def correct(p: pd.Series) -> np.ndarray:
    """Correct p-values for their number (Benjamini & Hochberg 1995); unknown ones are not counted and stay NaN."""
    q, known = np.full(len(p), np.nan), p.notna().to_numpy()
    q[known] = false_discovery_control(p[known])
    return q


def tests_of_split(source: CellSource, args: Args, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Split a data set by a seed, score its training cells and make every test.

    Returns
    -------
    Rows of biological_validation.csv, of biological_validation_markers.csv, and notes for the user.
    """
    run = split_of(Job(replace(source, n_top_genes=None), args.holdout, seed, ATTENTION, ATTENTION))
    train, rare = run.train[np.argsort(run.train.obs_names)].copy(), find_rare(run)  # whatever the file's order
    genes = train.var_names if args.n_top_genes is None else select_genes(train, args.n_top_genes)
    markers, notes = find_markers(train, args.genes, choose_from=genes)
    params = GarageParams(rare_threshold=run.rare_threshold)
    labels = types_of(train)
    types, tests = [], []
    for name, score in score_cells(train[:, genes].copy(), params, seed=seed).items():
        high = find_high(score)
        types.append(fisher_tests(labels, high, rare).assign(method=name))
        tests.append(rank_sum_tests(train, markers, labels, high, rare).assign(method=name))
    whose = {
        "dataset": run.dataset, "split": describe_split(args.holdout, len(genes), None), "seed": seed,
        "markers": args.genes.describe(run.dataset),
    }  # fmt: skip
    return pd.concat(types).assign(**whose), pd.concat(tests).assign(**whose), notes


def effects(types: pd.DataFrame, markers: pd.DataFrame) -> pd.DataFrame:
    """Return one value a score, seed, metric and group, for types, the rare ones together and all of them.

    AUROCs are means over the markers of the group, each weighing as many pairs of HIGH and other cells as it compares:
    a type with one HIGH cell says little.
    """
    rare = markers[markers["is_rare"]].assign(group=RARE)
    tests = pd.concat([markers, rare, markers.assign(group=ALL)]).dropna(subset="value")
    pairs, by = tests["n_high"] * (tests["n"] - tests["n_high"]), [*KEYS, "group", "metric"]
    sums = tests.assign(value=tests["value"] * pairs, pairs=pairs).groupby(by, sort=False)[["value", "pairs"]].sum()
    means = (sums["value"] / sums["pairs"]).rename("value").reset_index()
    return pd.concat([types[[*by, "value"]], means], ignore_index=True)


def compare_with_controls(found: pd.DataFrame, holdout: float) -> pd.DataFrame:
    """Compare attention with its controls, paired over seeds (`common.results.differences`).

    Parameters
    ----------
    found
        Of `effects`.
    holdout
        Two seeds share 1 - holdout of their training cells, which is how far their values are correlated. That makes
        the variance of a mean (1 / seeds + (1 - holdout) / holdout) times that of a seed.

    Returns
    -------
    Columns as of biological_validation_differences.csv.
    """
    less = differences(found, ATTENTION, overlap=(1 - holdout) / holdout)
    turned = {"mean": -less["mean"], "low": -less["high"], "high": -less["low"]}
    return less.assign(**turned).rename(columns={"method": "control"})


def tell(types: pd.DataFrame, compared: pd.DataFrame) -> list[str]:
    """Say in words, by the numbers alone, what was found of the rare types together, and of all types' markers.

    Parameters
    ----------
    types, compared
        Of `fisher_tests` and `compare_with_controls`.

    Returns
    -------
    For each data set a sentence on Fisher's tests of attention, and one a group and metric on how attention compares
    with its controls.
    """
    told = []
    for dataset, mine in types.groupby("dataset", sort=False):
        rare = mine[(mine["group"] == RARE) & (mine["method"] == ATTENTION)]
        sure = rare.loc[rare["p"] < ALPHA, "value"]
        told.append(f"{dataset}: no type is rare" if rare.empty else (
            f"{dataset}: {rare['n'].mean():.0f} of {rare['n_cells'].mean():.0f} cells are rare; there are more of them "
            f"in HIGH than elsewhere in {(sure > 0).sum()} of {len(rare)} seeds, fewer in {(sure < 0).sum()} (Fisher, "
            f"p < {ALPHA}); odds ratios {rare['odds_ratio'].min():.2g} to {rare['odds_ratio'].max():.2g}"
        ))  # fmt: skip
        shown = compared[(compared["dataset"] == dataset) & compared["group"].isin([ALL, RARE])]
        for (group, metric), rows in shown.groupby(["group", "metric"], sort=False):
            told.append(f"{dataset}, {group}, {WORDS[str(metric)]}: attention {_verdict(rows)}")
    return told


def _verdict(rows: pd.DataFrame) -> str:
    """Say which controls attention is above, below, or not told apart from."""
    parts: dict[str, list[str]] = {"is above": [], "is below": [], "is not told apart from": []}
    for _, row in rows.iterrows():
        name, interval = row["control"], f" ({row['mean']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}])"
        if row["low"] > 0:
            parts["is above"].append(name + interval)
        elif row["high"] < 0:
            parts["is below"].append(name + interval)
        else:
            parts["is not told apart from"].append(name)
    return "; ".join(f"{word} {', '.join(names)}" for word, names in parts.items() if names)


def plot_enrichment(types: pd.DataFrame) -> Figure:
    """Draw how enriched rare types are among HIGH cells: a panel a data set, a colour a score, a point a seed.

    Parameters
    ----------
    types
        Rows of biological_validation.csv; of a data set without rare types all types are drawn.
    """
    panels = []
    for dataset, rows in types.groupby("dataset", sort=False):
        panels.append((dataset, rows[rows["is_rare"]] if rows["is_rare"].any() else rows))
    scores, tallest = types["method"].unique(), max(rows["group"].nunique() for _, rows in panels)
    figure = Figure(figsize=(4.2 * len(panels) + 2.5, 0.55 * tallest + 1.4), layout="constrained")
    for axes, (dataset, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        groups = sorted(rows["group"].unique(), key=lambda name: (name == RARE, name))
        for i, score in enumerate(scores):
            mine = rows[rows["method"] == score]
            y = mine["group"].map(groups.index) + 0.13 * ((len(scores) - 1) / 2 - i)
            axes.scatter(mine["value"], y, s=8, color=PALETTE[i], alpha=0.4, linewidths=0)
            means = mine["value"].groupby(y).mean()
            axes.plot(
                means, means.index, linestyle="", marker=MARKERS[i % 4], color=PALETTE[i], markersize=5, label=score
            )
        sizes = rows.groupby("group")["n"].mean()
        axes.set_yticks(range(len(groups)), [f"{name} ({sizes[name]:.0f})" for name in groups])
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(title=f"{dataset}, {rows['seed'].nunique()} splits", xlabel="log2 odds ratio of being HIGH")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, title="HIGH by")
    return figure


def validate_attention(args: Args) -> None:
    """Make the tests on real cells; write, draw and tell."""
    paths = [args.out.with_name(f"{args.out.stem}{part}.csv") for part in ("", "_markers", "_differences")]
    sources = sources_of(args.datasets, args.n_top_genes)
    splits = [(source, seed) for source in sources for seed in range(args.seeds)]
    of_types, of_markers, notes = [], [], dict[str, None]()
    with progress_bar() as report:
        for step, (source, seed) in enumerate(splits):
            report("testing", step, len(splits))
            types, markers, noted = tests_of_split(source, args, seed)
            record(paths[0], types)
            record(paths[1], markers)
            of_types.append(types)
            of_markers.append(markers)
            notes |= dict.fromkeys(noted)
        report("testing", len(splits), len(splits))
    print_notes(list(notes))
    types, markers = pd.concat(of_types, ignore_index=True), pd.concat(of_markers, ignore_index=True)
    found = effects(types, markers)
    compared = compare_with_controls(found, args.holdout)
    write_table(paths[-1], keep_other_datasets(paths[-1], compared))
    figure = figures_of(args.out) / "biological_validation.png"
    save(plot_enrichment(types), figure)
    show(found[found["group"].isin([ALL, RARE])], controls=CONTROLS)
    for sentence in tell(types, compared):
        console.print(escape(sentence), soft_wrap=True)
    console.print(escape(f"wrote {', '.join(map(str, paths))} and {figure}"), soft_wrap=True)


def validate_runs(args: Args) -> None:
    """Judge synthetic cells by their markers; write and show the means."""
    path = args.out.with_name("marker_expression.csv")
    check_same_markers(path, {identify(folder)[0] for folder in args.runs}, args.genes)
    with progress_bar() as report:
        rows = judge_runs(
            args.runs, marker_expression.make_judge(args.genes), controls=load_controls(args.controls), path=path,
            again=args.again, report=report,
        )  # fmt: skip
    show(rows[rows["gene"].isna() & rows["group"].isin([ALL, RARE])], controls=PURE_CONTROLS)
    console.print(f"wrote {path}", soft_wrap=True, markup=False)


@run_script
def main(argv: list[str]) -> None:
    """Test attention, then synthetic cells."""
    args: Args = parse_flags(Args, argv, __doc__)
    if not args.datasets and not args.runs:
        raise UserError("nothing is to be tested: give --datasets, or --runs")
    if args.seeds < 1:
        raise UserError(f"--seeds is {args.seeds}: give at least 1")
    check_writable(args.out.parent)
    if args.datasets:
        validate_attention(args)
    if args.runs:
        validate_runs(args)


if __name__ == "__main__":
    main()
