"""Judge runs, with controls beside them that learnt from the same cells, and keep the tables of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData
from rich.markup import escape

from common.cli import Reporter, errors
from common.errors import UserError
from common.results import COLUMNS, KEYS, MADE_OF, read_results, record
from common.runs import Run, identify, load_run


class Generator(Protocol):
    """The contract of a generator, which modules keep (`data_generation.model`)."""

    def fit(self, cells: AnnData, params: Any, *, seed: int, device: str) -> Any:
        """Learn from real cells."""

    def sample(self, model: Any, n_cells: int, *, seed: int) -> AnnData:
        """Draw cells on the scale of the training cells."""


T = TypeVar("T")
Judge = Callable[[Run], pd.DataFrame]
"""Computes the rows of a run: columns group, metric, n and value, and others that the table is to have"""


def judge_runs(
    folders: Sequence[Path], judge: Judge, *, controls: Mapping[str, Generator], path: Path, again: bool,
    report: Reporter,
) -> pd.DataFrame:  # fmt: skip
    """Judge runs, and controls fitted to the same training cells; write the table as it grows.

    Parameters
    ----------
    folders
        Of runs that held cells out.
    judge
        What to compute.
    controls
        By name, as `benchmarking.controls.load_controls` gives them. Their rows are taken from the table if it has
        them, unless `again`.
    path
        The table; rows of other runs stay in it.
    again
        Judge the controls anew too.

    Returns
    -------
    The rows of these runs and their controls, with columns leakage (NaN for whatever has none) and labels
    (`Run.labels`). A control that cannot be fitted to the data has every value NaN.

    Raises
    ------
    UserError
        If a run cannot be judged, or two of them would be one in the table.
    """
    seen: dict[tuple, Path] = {}
    for folder in folders:  # all of them, before the first is computed
        run_id = identify(folder)
        if run_id in seen:
            raise UserError(
                f"{seen[run_id]} and {folder} would be one in the table ({', '.join(map(str, run_id))}): give one of "
                "them another --name when you make it"
            )
        seen[run_id] = folder
    ids: set[tuple] = set()
    for i, folder in enumerate(folders):
        run = load_run(folder)
        step, total = i * (1 + len(controls)), len(folders) * (1 + len(controls))
        report("judging", step, total)
        rows = judge(run)
        ids.add(record_run(run, rows, path))
        for j, (name, generator) in enumerate(controls.items(), start=1):
            report("judging", step + j, total)
            control = replace(run, method=name, seeds=None, params={}, labels="given")
            if _key(control) in ids or (not again and set(rows["metric"]) <= set(rows_of(control, path)["metric"])):
                ids.add(_key(control))
                continue
            try:
                model = generator.fit(run.train, None, seed=run.seed, device="cpu")
                drawn = generator.sample(model, run.train.n_obs, seed=run.seed)
            except UserError as error:
                errors.print(f"[yellow]note:[/] {name} is a gap in the table: {escape(str(error))}", soft_wrap=True)
                ids.add(record_run(control, rows.assign(value=np.nan), path))
            else:
                ids.add(record_run(control, judge(replace(control, synthetic=drawn)), path))
        report("judging", total if i + 1 == len(folders) else step + len(controls), total)
    table = read_results(path, made_by="the same command")
    return table[pd.MultiIndex.from_frame(table[KEYS]).isin(ids)]


def once_per_split(compute: Callable[[Run], T]) -> Callable[[Run], T]:
    """Keep the last result: a run and its controls, judged one after another, have the same real cells."""
    kept: list[tuple[AnnData, T]] = []

    def computed(run: Run) -> T:
        if not kept or kept[0][0] is not run.held:
            kept[:] = [(run.held, compute(run))]
        return kept[0][1]

    return computed


def _key(run: Run) -> tuple:
    return tuple(getattr(run, column) for column in KEYS)


def record_run(run: Run, rows: pd.DataFrame, path: Path, *, one_model: bool = True) -> tuple:
    """Write the rows of a run, columns group, metric, n and value, into a table; return what identifies them there.

    `one_model`: as for `common.results.record`.
    """
    given = {"leakage": run.params.get("leakage", np.nan), "labels": run.labels, MADE_OF: run.made_of}
    record(path, rows.assign(**dict(zip(KEYS, _key(run), strict=True)), **given), one_model=one_model)
    return _key(run)


def rows_of(run: Run, path: Path) -> pd.DataFrame:
    """Return what a table, if it is there, has of a run on the same data with the same hyperparameters."""
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS)
    table = read_results(path, made_by="the same command")
    if MADE_OF not in table:
        return table[:0]
    return table[(table[KEYS] == _key(run)).all(axis=1) & (table[MADE_OF] == run.made_of)]
