"""Whether GARAGE makes cells of rare types that the labels do not name, and what seeds have to do with it.

Types of a few cells are often not known to those who label cells. So the types with at most `--share` of a data set's
cells are hidden: their cells get the label of the common type whose mean profile is most like theirs. GARAGE learns
from these labels, and its cells are asked for the hidden types, of which it was told nothing.

Run:    python ablation_study/hidden_types.py --datasets baron_mouse.h5ad pbmc3k.h5ad --seeds 5
Reads:  data sets of config.py, or h5ad files with cell types in obs
Writes: results/hidden_types/<dataset>_hidden.h5ad: the cells with such labels, obs true_type;
        results/synthetic/<dataset>_hidden/<variant>/seed<k>/;
        results/tables/hidden_types.csv as it goes: fidelity and privacy as of the benchmark, and for the group hidden
        types hidden_coverage, hidden_found and hidden_frequency (`find_hidden`);
        results/tables/hidden_types_differences.csv: each variant less the default, paired over splits
        (`common.results.differences`)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from rich.markup import escape
from scipy.spatial.distance import cdist
from sklearn.ensemble import RandomForestClassifier
from sklearn.neighbors import NearestNeighbors

from ablation_study.variants import WHOLE, VariantArgs, plan, with_leakage
from benchmarking.controls import PURE_CONTROLS
from benchmarking.experiment import rows_of_outcomes, run_jobs, sources_of, tell, tell_if_all_failed
from benchmarking.matrix import Job, is_trained, learn, split_of
from common.cli import errors, parse_flags, run_script
from common.data import TARGET_SUM, load_cells, types_of
from common.errors import UserError
from common.generation import folder_of
from common.judging import record_run
from common.metrics.catalogue import ALL
from common.metrics.fidelity import COVERAGE_NEIGHBORS, compare_on, pooled_pcs, project
from common.results import KEYS, differences, score_rows
from common.run import atomic, write_table
from common.runs import Run, load_run
from common.scale import to_log
from common.summary import show
from config import RESULTS_DIR

VARIANTS = {
    **dict([(WHOLE, ()), with_leakage(0)]),
    "garage_highest": ("--seeds-by", "attention"),
    "garage_random": ("--seeds-by", "random"),
    "garage_k_centre": ("--seeds-by", "k_centre"),
}
HIDDEN = "hidden types"
SHOWN = ("rf_auroc_pcs", "coverage_pcs", "calibrated_auc")
N_TREES = 300


@dataclass(frozen=True)
class Args(VariantArgs):
    """GARAGE and its variants where labels do not name rare types."""

    share: float = 0.05
    """types with at most this share of the cells are hidden"""
    out: Path = RESULTS_DIR / "tables" / "hidden_types.csv"
    """table to write; what it holds of other data sets and splits is kept"""


class NothingToHide(Exception):
    """A data set has no rare types, or no common ones."""


def hide_rare_types(cells: AnnData, share: float) -> np.ndarray:
    """Give rare cells the label of the common type whose mean log-normalised profile correlates most with theirs.

    Returns
    -------
    Labels of shape (n_cells,).

    Raises
    ------
    NothingToHide
        If no type, or every type, has at most this share of the cells.
    """
    labels, values = types_of(cells), to_log(cells.X, cells.uns["scale"], TARGET_SUM)
    names, sizes = np.unique(labels, return_counts=True)
    rare = sizes <= share * len(labels)
    if rare.all() or not rare.any():
        raise NothingToHide(f"{rare.sum()} of the {len(names)} types of {cells.uns['dataset']} are rare")
    likeness = np.corrcoef([np.asarray(values[labels == name].mean(0)).ravel() for name in names])
    nearest = np.where(rare, names[~rare][likeness[:, ~rare].argmax(1)], names)
    return nearest[np.searchsorted(names, labels)]


def write_hidden(cells: AnnData, share: float, path: Path) -> None:
    """Write cells with rare types hidden, and obs true_type."""
    hidden = AnnData(cells.X, obs=pd.DataFrame(index=cells.obs_names), var=pd.DataFrame(index=cells.var_names))
    hidden.obs["cell_type"] = pd.Categorical(hide_rare_types(cells, share))
    hidden.obs["true_type"] = pd.Categorical(types_of(cells))
    with atomic(path) as part:
        hidden.write_h5ad(part)


def find_hidden(run: Run) -> dict[str, float]:
    """Look for hidden types among synthetic cells.

    Returns
    -------
    hidden_coverage: share of held-out cells of hidden types with a synthetic cell nearer than their fifth neighbour of
    the same true type (the last, if there are fewer), on components of held-out and synthetic cells; at best about 1.
    hidden_found: share of the hidden types that a forest, which learnt true types on held-out cells, finds among the
    synthetic cells, of those that it finds among the training cells. hidden_frequency: how many of the synthetic cells
    it takes for one of them, over how many of the training cells; 1 is right. NaN where there is none.
    """
    true, given = run.held.obs["true_type"].astype(str).to_numpy(), types_of(run.held)
    names, sizes = np.unique(true[true != given], return_counts=True)
    train, held, drawn = (compare_on(cells) for cells in (run.train, run.held, run.synthetic))
    held_pcs, drawn_pcs = pooled_pcs(held, drawn)
    is_covered = []
    for name in names[sizes > 1]:
        own = held_pcs[true == name]
        k = min(COVERAGE_NEIGHBORS, len(own) - 1)
        radius = NearestNeighbors(n_neighbors=k).fit(own).kneighbors()[0][:, -1]
        is_covered.append((cdist(own, drawn_pcs) < radius[:, None]).any(1))
    on_held, on_train, on_drawn = project(held, held, train, drawn)
    forest = RandomForestClassifier(N_TREES, class_weight="balanced_subsample", random_state=run.seed)
    forest.fit(on_held, true)
    taken_for = (forest.predict(pcs) for pcs in (on_train, on_drawn))
    in_train, in_drawn = (np.array([(types == name).mean() for name in names]) for types in taken_for)
    known = in_train > 0
    return {
        "hidden_coverage": float(np.concatenate(is_covered).mean()) if is_covered else np.nan,
        "hidden_found": float((in_drawn[known] > 0).mean()) if known.any() else np.nan,
        "hidden_frequency": float(in_drawn.sum() / in_train.sum()) if known.any() else np.nan,
    }


def cells_of(job: Job) -> Run:
    """Return what a finished job has drawn; a control draws again."""
    split = split_of(job)
    if is_trained(job):
        return load_run(folder_of(None, split.dataset, job.name, job.seed))
    return replace(split, synthetic=learn(job, split.train)(split.train.n_obs, seed=job.seed))


def hidden_files(args: Args) -> Sequence[str]:
    """Write the data sets with their rare types hidden; return where they are.

    Raises
    ------
    UserError
        If there is nothing to hide in any of them.
    """
    paths = []
    for source in sources_of(args.datasets, None):
        path = RESULTS_DIR / "hidden_types" / f"{source.name}_hidden.h5ad"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_hidden(load_cells(source), args.share, path)
        except NothingToHide as none:
            errors.print(f"[yellow]note:[/] {escape(str(none))}: left out", soft_wrap=True)
        else:
            paths.append(str(path))
    if not paths:
        raise UserError("no data set has both rare and common types: change --share")
    return paths


@run_script
def main(argv: list[str]) -> None:
    """Hide types, run the variants, look for what was hidden, compare."""
    args: Args = parse_flags(Args, argv, __doc__)
    args = replace(args, datasets=tuple(hidden_files(args)))
    outcomes, rows = run_jobs(plan(VARIANTS, args), args, args.out, ("fidelity", "privacy"))
    tell_if_all_failed(outcomes)
    searched = set(rows.loc[rows["group"] == HIDDEN, KEYS].itertuples(index=False, name=None))
    for outcome in outcomes:
        key = outcome.dataset, outcome.split, outcome.job.seed, outcome.job.method
        if outcome.status == "judged" or (outcome.status == "known" and key not in searched):
            run = cells_of(outcome.job)
            given, true = types_of(run.held), run.held.obs["true_type"].astype(str).to_numpy()
            record_run(run, score_rows({HIDDEN: (int((given != true).sum()), find_hidden(run))}), args.out)
    rows = rows_of_outcomes(outcomes, args.out)
    path = args.out.with_name("hidden_types_differences.csv")
    of_groups = rows[rows["group"].isin([ALL, HIDDEN])]
    write_table(path, differences(of_groups, WHOLE, overlap=args.holdout / (1 - args.holdout)))
    show(rows[(rows["group"] == HIDDEN) | rows["metric"].isin(SHOWN) & (rows["group"] == ALL)], controls=PURE_CONTROLS)
    tell(outcomes, f"wrote {args.out} and {path.name} beside it")


if __name__ == "__main__":
    main()
