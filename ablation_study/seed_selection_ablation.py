"""Which parts of GARAGE earn their place: the choice of seeds, their quota, the critic, the anchor (paper, "Ablation").

Seeds chosen by attention, by chance, by degree, as k-centres, from rare types only, without a quota for each type, or
none at all; then the default seeds without the critic, and without the anchor, the epochs of likelihood alone before
the critic (likelihood in the critic's own steps stays). All else is as it is by default, so that every row differs from
`garage` in one thing. Differences are paired over splits.

Run:    python ablation_study/seed_selection_ablation.py --datasets pbmc68k pbmc3k.h5ad --seeds 5
Reads:  data sets of config.py, or h5ad files with cell types in obs
Writes: results/tables/ablation.csv as it goes, results/synthetic/<dataset>/<variant>/seed<k>/;
        results/tables/seed_selection_differences.csv: dataset, split, method, group, metric, mean (the variant's value
        less that of `garage`), low, high (95 % confidence interval), seeds;
        results/tables/seed_selection_over_datasets.csv: method, group, metric, mean, low, high, datasets: the same over
        the means of the data sets, which weigh alike;
        results/figures/seed_selection.png
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ablation_study.variants import CONTROLS, SHOWN, WHOLE, VariantArgs, compare_with_whole, run_variants, with_leakage
from benchmarking.experiment import tell
from common.cli import parse_flags, run_script
from common.metrics.catalogue import ALL
from common.plotting import MARKERS, PALETTE, figures_of, save
from common.results import keep_other_datasets, over_datasets
from common.run import write_table
from common.summary import label_of

VARIANTS = {
    **dict([(WHOLE, ()), with_leakage(0)]),
    "garage_highest": ("--seeds-by", "attention"),
    "garage_random": ("--seeds-by", "random"),
    "garage_degree": ("--seeds-by", "degree"),
    "garage_k_centre": ("--seeds-by", "k_centre"),
    "garage_rare_only": ("--rare-only",),
    "garage_no_quota": ("--no-rare-quota",),
    "garage_fixed_share": ("--seed-share", "0.2"),
    "garage_no_critic": ("--critic-steps", "0"),
    "garage_no_anchor": ("--anchor-epochs", "0"),
}
DIFFERENCES, OVER_DATASETS = "seed_selection_differences.csv", "seed_selection_over_datasets.csv"


def plot_differences(table: pd.DataFrame) -> Figure:
    """Draw each method's difference from the whole, with its interval: a panel a metric, a colour a data set.

    Parameters
    ----------
    table
        Of `compare_with_whole`, one group of cells.
    """
    methods, datasets = table["method"].unique()[::-1], table["dataset"].unique()
    figure = Figure(figsize=(3 * len(SHOWN), 0.5 * len(methods) + 1.2), layout="constrained")
    panels = figure.subplots(1, len(SHOWN), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, SHOWN, strict=True):
        for i, dataset in enumerate(datasets):
            rows = table[(table["dataset"] == dataset) & (table["metric"] == metric)].set_index("method")
            rows = rows.reindex(methods)
            y = np.arange(len(methods)) + 0.6 * (i / max(1, len(datasets) - 1) - 0.5)
            reach = np.nan_to_num([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])
            axes.errorbar(
                rows["mean"], y, xerr=reach, linestyle="", color=PALETTE[i % len(PALETTE)],
                marker=MARKERS[i % len(MARKERS)], markersize=4, linewidth=1, label=dataset,
            )  # fmt: skip
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(title=label_of(metric), xlabel=f"less {WHOLE}", yticks=range(len(methods)), yticklabels=methods)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


@run_script
def main(argv: list[str]) -> None:
    """Run the variants, compare, draw."""
    args: VariantArgs = parse_flags(VariantArgs, argv, __doc__)
    outcomes, rows = run_variants(VARIANTS, args)
    path = args.out.with_name(DIFFERENCES)
    found = keep_other_datasets(path, compare_with_whole(rows, args.holdout))
    write_table(path, found)
    write_table(args.out.with_name(OVER_DATASETS), over_datasets(found))
    figure = figures_of(args.out) / "seed_selection.png"
    shown = (found["group"] == ALL) & ~found["method"].isin(CONTROLS)  # so far off that the variants would be one
    save(plot_differences(found[shown]), figure)
    tell(outcomes, f"wrote {args.out}, {DIFFERENCES} and {OVER_DATASETS} beside it and {figure}")


if __name__ == "__main__":
    main()
