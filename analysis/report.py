"""One page about a run, or several side by side: its cells, what they are worth and what they give away.

The page is a single file that needs no network. It shows real cells: treat it as you treat them.

Run:    python analysis/report.py --run results/synthetic/pbmc68k/garage/seed0
        python analysis/report.py --run DIR --compare DIR DIR --table results/tables/evaluation.csv
Reads:  cells.h5ad, run.json and, where a run has them, heldout.csv, seeds.csv and losses.csv of each run, and the real
        cells from where it had them
Writes: report.html in the first run's folder, or --out; without --table, the metrics as a table beside it (.csv)
"""

import math
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from analysis import report_figures
from analysis.aggregate_losses import read_losses, summarise_term
from analysis.build_summary_tables import fill_gaps, find_best, head_of
from analysis.privacy_verdict import describe_shortage, judge_privacy
from analysis.report_figures import COLORS, GLYPHS, MOST_CELLS, SYNTHETIC, TRAINING
from benchmarking.baseline import METHODS
from benchmarking.controls import CONTROLS, DEFAULT_CONTROLS, PURE_CONTROLS, load_controls
from common.cli import console, parse_flags, progress_bar, run_script
from common.errors import UserError
from common.evaluation import evaluate, find_rare
from common.judging import judge_runs
from common.metrics.catalogue import ALL, FAMILIES, HELD, METRICS, OTHERS, RARE, SEEDS, Family
from common.results import KEYS, read_results
from common.run import atomic, check_writable
from common.runs import Run, load_run, read_record
from common.summary import NOTHING, UNTOLD_NOTE, decimals_of, mark_untold, order_methods, order_metrics, text_of

TEMPLATES = Path(__file__).parent / "templates"
GLANCE = ("rf_auroc_genes", "rf_auroc_pcs", "coverage_pcs", "tstr_f1", "lfc_correlation", "calibrated_auc")
GLANCE_CONTROLS = ("real_half", "copula", "all_zeros")  # the best there can be, a rival, the worst
Table = dict[str, Any]
"""caption, head and body of a table; the first column names its rows"""


@dataclass(frozen=True)
class Args:
    """Write a page about runs."""

    run: Path
    """folder of the run"""
    compare: tuple[Path, ...] = ()
    """folders of runs to set beside it"""
    table: Path | None = None
    """table of analysis/evaluate.py or run_benchmark.py with these runs' metrics; by default they are computed"""
    out: Path | None = None
    """page to write; by default report.html in the run's folder"""


@run_script
def main(argv: list[str]) -> None:
    """Read, judge, draw, write, and say what was written."""
    args = parse_flags(Args, argv, __doc__)
    out = args.out or args.run / "report.html"
    runs = [load_run(folder, needs_held=False) for folder in (args.run, *args.compare)]
    check_writable(out.parent)
    judged = [run for run in runs if run.held.n_obs]
    rows = _find_rows(args.table, judged) if args.table else _judge(judged, out.with_suffix(".csv"))
    comparisons = [
        _compare(
            rows[(rows["dataset"] == dataset) & (rows["split"] == split)],
            [run for run in judged if (run.dataset, run.split) == (dataset, split)],
        )
        for dataset, split in dict.fromkeys((run.dataset, run.split) for run in judged)
    ]
    with atomic(out) as part:
        part.write_text(_render(runs, comparisons), encoding="utf-8")
    verdicts = [f"{verdict.method}: {verdict.headline}" for one in comparisons for verdict in one["verdicts"]]
    for text in (*verdicts, f"wrote {out}: open it in a browser"):
        console.print(text, soft_wrap=True, markup=False)


def _judge(runs: Sequence[Run], path: Path) -> pd.DataFrame:
    """Compute every metric of the runs and of the controls, which a table made earlier may hold already."""
    if not runs:
        return pd.DataFrame(columns=KEYS)
    with progress_bar() as report:
        return judge_runs(
            [run.folder for run in runs], lambda run: evaluate(run, families=FAMILIES),
            controls=load_controls(DEFAULT_CONTROLS), path=path, again=False, report=report,
        )  # fmt: skip


def _find_rows(path: Path, runs: Sequence[Run]) -> pd.DataFrame:
    """Take the rows of the runs and of the controls of their splits from a table.

    Raises
    ------
    UserError
        If the table is not there or lacks one of the runs, or two runs would be one in it.
    """
    table = read_results(path, made_by="python analysis/evaluate.py --runs DIR...")
    table = table[table["metric"].isin(METRICS)]
    ids = [(run.dataset, run.split, run.seed, run.method) for run in runs]
    found = pd.MultiIndex.from_frame(table[KEYS])
    known = set(found)
    for run, run_id in zip(runs, ids, strict=True):
        if run_id not in known:
            raise UserError(f"{path} has no metric of {run.folder}: leave out --table, and they will be computed")
        if ids.count(run_id) > 1:
            raise UserError(f"{path} cannot tell {run.folder} from another of the runs: leave one of them out")
    splits = {run_id[:3] for run_id in ids}
    controls = [(*split, name) for split in splits for name in CONTROLS]
    return table[found.isin([*ids, *controls])]


def _compare(rows: pd.DataFrame, runs: Sequence[Run]) -> dict[str, Any]:
    """Return what the page says of the runs of one data set and split: metrics, rare types, privacy."""
    own, rare = list(dict.fromkeys(run.method for run in runs)), find_rare(runs[0])
    sizes = {run.seed: (run.train.n_obs, run.held.n_obs) for run in runs}
    metrics = rows["metric"].unique()
    too_few = {run.method: shortage for run in runs if (shortage := describe_shortage(run))}

    def table_of(caption: str, group: str, chosen: Collection[str], methods: Collection[str] = ()) -> Table | None:
        known = rows.loc[(rows["group"] == group) & rows["value"].notna(), "metric"]
        shown = order_metrics(known[known.isin(chosen)])
        kept = rows[rows["method"].isin(methods)] if methods else rows
        return _metric_table(caption, kept, own, group, shown) if shown else None

    def of_family(*names: Family) -> list[str]:
        return [metric for metric in metrics if METRICS[metric].family in names]

    families = {name: table_of(f"{name}, all cells", ALL, of_family(name)) for name in get_args(Family)}
    rare_tables = [table_of(group, group, of_family("fidelity", "utility")) for group in (RARE, *rare)]
    exposed = [table_of(group, group, of_family("privacy")) for group in (SEEDS, OTHERS, HELD)]
    return {
        "title": f"{runs[0].dataset}, {runs[0].split}",
        "seeds": list(sizes),
        "untold": UNTOLD_NOTE if "labels" in rows and (rows["labels"] == "classifier").any() else "",
        "glance": table_of("At a glance", ALL, GLANCE, [*own, *GLANCE_CONTROLS]),
        "families": {name: table for name, table in families.items() if table},
        "rare": rare,
        "rare_tables": list(filter(None, rare_tables)),
        "exposed": list(filter(None, exposed)),
        "verdicts": [judge_privacy(rows, method, sizes, too_few=too_few.get(method, "")) for method in own],
    }


def _metric_table(caption: str, rows: pd.DataFrame, own: Sequence[str], group: str, metrics: Sequence[str]) -> Table:
    """Return metrics as rows and methods as columns, those of the runs first, with what each metric means."""
    summary = fill_gaps(rows, group, metrics)
    names, others = mark_untold(rows), set(rows["method"]) - set(own)
    methods = [*own, *order_methods(others, PURE_CONTROLS)]
    rivals = [name for name in methods if name not in PURE_CONTROLS]
    body = []
    for metric in metrics:
        column = summary[summary["metric"] == metric].set_index("method")
        decimals = decimals_of(*(column.loc[rivals, part] for part in ("mean", "sd")))  # the worst controls need none
        best = find_best(column.loc[rivals, "mean"], metric, decimals)
        cells = [(text_of(column.loc[name], decimals), name in best, name in own) for name in methods]
        body.append((head_of(metric), METRICS[metric].meaning, cells))
    return {"caption": caption, "head": [(names[name], name in own) for name in methods], "body": body}


def _describe(i: int, run: Run) -> dict[str, Any]:
    """Return what the page says of a run by itself: what was run, its cells, seeds and losses."""
    record = read_record(run.folder)
    groups = {TRAINING: run.train, HELD: run.held, SYNTHETIC: run.synthetic}
    counts = pd.DataFrame({
        kind: cells.obs["cell_type"].astype(str).value_counts() for kind, cells in groups.items() if cells.n_obs
    }).fillna(0).astype(int)  # fmt: skip
    types = list(counts.drop(columns=SYNTHETIC).sum(axis=1).sort_values(ascending=False, kind="stable").index)
    counts, rare = counts.loc[types], find_rare(run)
    cell_map, drawn, agrees = report_figures.cell_map(run, types, rare)
    agrees = agrees.reindex(types).map("{:.0%}".format, na_action="ignore").fillna("—")  # none were drawn
    shares = counts.div(counts.sum()).map("{:.1%}".format).add_suffix(", share")
    about = {
        "id": f"run-{i}",
        "title": f"{run.method}, {run.dataset}, seed {run.seed}",
        "command": shlex.join(["python", _script_of(record), *record["argv"]]),
        "notes": record.get("notes", []),
        "records": [_plain(name, "", values) for name, values in _facts(record, run).items()],
        "held": run.held.n_obs,
        "rare": rare,
        "types": report_figures.style_of(types),
        "drawn": drawn,
        "figures": {"map": cell_map, "composition": report_figures.composition(counts)},
        "cells": _plain("Cells by type", "cell type", counts.join(shares)),
        "agrees": _plain("Synthetic cells on the map", "cell type", agrees),
    }
    if run.seeds is not None:
        about["figures"]["attention"] = report_figures.attention(run.seeds, types)
        about["seeds"] = _plain("Seed cells by type", "cell type", _seeds_by_type(run.seeds).reindex(types))
    try:
        losses = read_losses(run.folder)
    except UserError as error:
        return about | {"no_losses": str(error)}
    about["figures"]["losses"] = report_figures.losses(losses)
    terms = {term: summarise_term(losses[term]) for term in losses.columns.drop("step")}
    return about | {"losses": _plain("Terms of the loss", "term", pd.DataFrame(terms).T)}


def _facts(record: dict[str, Any], run: Run) -> dict[str, pd.Series]:
    """Return the record of a run as small tables."""
    stages = pd.DataFrame(record["stages"]).T
    return {
        "Run": pd.Series({
            "method": run.method, "preset": record.get("preset", NOTHING), "data set": run.dataset,
            "cell types from": record.get("labels_from", NOTHING), "scale": run.train.uns["scale"],
            "split": run.split, "seed": run.seed, "genes": run.train.n_vars, TRAINING: run.train.n_obs,
            HELD: run.held.n_obs, SYNTHETIC: run.synthetic.n_obs, "device": record["device"],
            "code": record.get("git_commit") or NOTHING,
        }),
        "Seconds": stages["seconds"],
        "SHA-256 of the data": pd.Series(record["sha256"]),
        "Versions": pd.Series(record["versions"]),
        "Parameters": pd.Series(record["params"], dtype=object),
    }  # fmt: skip


def _script_of(record: dict[str, Any]) -> str:
    module = METHODS[record["baseline"]] if "baseline" in record else "data_generation.garage"
    return module.replace(".", "/") + ".py"


def _seeds_by_type(seeds: pd.DataFrame) -> pd.DataFrame:
    by_type = seeds.assign(cell_type=seeds["cell_type"].astype(str)).groupby("cell_type")
    chosen = seeds[seeds["is_seed"]].groupby("cell_type")["attention"].median()
    n = by_type["is_seed"].sum()
    return pd.DataFrame({
        TRAINING: by_type.size(), "of them seeds": n, "share": (n / by_type.size()).map("{:.0%}".format),
        "median attention": by_type["attention"].median(), "of the seeds": chosen,
    })  # fmt: skip


def _plain(caption: str, first: str, values: pd.DataFrame | pd.Series) -> Table:
    """Return a table of numbers and names as text, its index in the first column."""
    frame = values.to_frame("") if isinstance(values, pd.Series) else values
    body = [
        (str(name), [_text(value) for value in row])
        for name, row in zip(frame.index, frame.itertuples(index=False), strict=True)
    ]
    return {"caption": caption, "head": [first, *frame.columns], "body": body}


def _text(value: Any) -> str:
    if isinstance(value, float):
        return NOTHING if math.isnan(value) else f"{value:,.4g}"
    return NOTHING if value is None else str(value)


def _render(runs: Sequence[Run], comparisons: Sequence[dict[str, Any]]) -> str:
    """Fill in the page. Whatever comes from data is escaped: names of cell types may be anything."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    about = [_describe(i, run) for i, run in enumerate(runs, start=1)]
    figures = {f"{run['id']}-{name}": spec for run in about for name, spec in run["figures"].items()}
    return environment.get_template("report.html").render(
        runs=about, comparisons=comparisons, figures=figures, plotly=get_plotlyjs(), colors=COLORS, glyphs=GLYPHS,
        most_cells=MOST_CELLS,
    )  # fmt: skip


if __name__ == "__main__":
    main()
