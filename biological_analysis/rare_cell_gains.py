"""What classifiers gain by synthetic cells of rare types: tables and figures of `rare_cell_utility.py`."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from biological_analysis.rare_cell_trials import CEILING, LEARNERS, REAL_ONLY
from common.metrics.catalogue import ALL, RARE
from common.plotting import MARKERS, PALETTE
from common.results import differences
from common.summary import label_of, markdown_table

LABELS = {"recall": "recall", "precision": "precision", "f1": "F1", "macro_f1": "macro-F1, all types"}
WHOLE = "garage"
NAMES = {REAL_ONLY: "real cells only", "bootstrap": "random oversampling", CEILING: "the real cells themselves"}
"""what methods are called here, where it is not what they are called elsewhere"""
SETTING = ["classifier", "weights", "amount"]


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
