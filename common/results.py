"""The long-form tables of results: one row a value, written whole, brought up to date run by run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock
from scipy.stats import t

from common.checks import reading
from common.errors import UserError
from common.run import write_table

KEYS = ["dataset", "split", "seed", "method"]  # of a run
MADE_OF = "made_of"  # a further column of tables that are gone on with: see `common.runs.Run`
COLUMNS = [*KEYS, "group", "metric", "n", "value"]


def read_results(path: Path, *, made_by: str) -> pd.DataFrame:
    """Read a table of results.

    Parameters
    ----------
    path
        CSV with at least the columns `COLUMNS`.
    made_by
        Command that makes it, for the message.

    Raises
    ------
    UserError
        If it is not there, or has not these columns.
    """
    if not path.exists():
        raise UserError(f"{path} is missing: make it with {made_by}")
    with reading(path, "table of results"):
        texts = dict.fromkeys(("group", "dataset", "method", "split", MADE_OF), str)
        table = pd.read_csv(path, dtype=texts, float_precision="round_trip")  # or rows would change when others come
    if missing := set(COLUMNS) - set(table.columns):
        raise UserError(f"{path} has no column {' and '.join(sorted(missing))}: make it anew with {made_by}")
    return table


def of_one_split(table: pd.DataFrame, split: str | None, path: Path) -> pd.DataFrame:
    """Return the rows of a split, by default of the only one that each data set has.

    Raises
    ------
    UserError
        If a data set was split in several ways and none is named.
    """
    if split is not None:
        return table[table["split"] == split]
    for dataset, splits in table.groupby("dataset")["split"].unique().items():
        if len(splits) > 1:
            named = ", ".join(f"'{name}'" for name in splits)
            raise UserError(f"{path} has {dataset} in several splits: choose one with --split, of {named}")
    return table


def score_rows(groups: Mapping[str, tuple[int, Mapping[str, float]]]) -> pd.DataFrame:
    """Return scores of groups of cells, by name their number and metric -> value, as rows: group, metric, n, value."""
    rows = [(group, metric, n, value) for group, (n, found) in groups.items() for metric, value in found.items()]
    return pd.DataFrame(rows, columns=["group", "metric", "n", "value"])


def keep_other_datasets(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with the rows added that a file of it has of other data sets."""
    if not path.exists():
        return table
    old = pd.read_csv(path, dtype={"dataset": str}, float_precision="round_trip")
    return pd.concat([old[~old["dataset"].isin(table["dataset"])], table], ignore_index=True)


def record(path: Path, rows: pd.DataFrame, *, one_model: bool = True) -> None:
    """Write the rows of some runs into a table; what it held of the same runs and metrics is replaced.

    Parameters
    ----------
    path
        The table, made if it is not there. Several processes may write it: they wait for each other.
    rows
        With the columns `COLUMNS`.
    one_model
        All metrics of a run are of one model: rows of its other metrics go, too, where they are of other data or
        hyperparameters (`MADE_OF`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists():
            old = read_results(path, made_by="the same command")
            same = pd.MultiIndex.from_frame(rows[[*KEYS, "metric"]])
            replaced = pd.MultiIndex.from_frame(old[[*KEYS, "metric"]]).isin(same)
            stale = _of_another_model(old, rows) if one_model else False
            kept = old[~(replaced | stale)]
            rows = pd.concat([kept, rows]) if len(kept) else rows
        others = [column for column in rows if column not in COLUMNS]
        write_table(path, rows.sort_values(KEYS, kind="stable")[[*COLUMNS, *others]])


def _of_another_model(old: pd.DataFrame, rows: pd.DataFrame) -> np.ndarray:
    """Tell which old rows are of the same runs as the new ones, but known to be made of something else."""
    if MADE_OF not in old or MADE_OF not in rows:
        return np.zeros(len(old), bool)
    made_of = rows.drop_duplicates(KEYS).set_index(KEYS)[MADE_OF]
    now = made_of.reindex(pd.MultiIndex.from_frame(old[KEYS])).to_numpy()
    before = old[MADE_OF].to_numpy()
    changed: np.ndarray = pd.notna(now) & pd.notna(before) & (now != before)
    return changed


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds.

    Returns
    -------
    Columns dataset, split, method, group, metric, mean, sd (of a sample; NaN for one seed), seeds (those with a value)
    and missing (seeds that the data set's split has elsewhere in the table, but not here: failed, or not run).
    """
    by = ["dataset", "split", "method", "group", "metric"]
    found = table.groupby(by, sort=False)["value"].agg(mean="mean", sd="std", seeds="count").reset_index()
    expected = table.groupby(["dataset", "split"])["seed"].nunique().rename("expected")
    found = found.join(expected, on=["dataset", "split"])
    found["missing"] = found.pop("expected") - found["seeds"]
    return found


def differences(
    table: pd.DataFrame, reference: str, *, overlap: float, level: float = 0.95, within: Sequence[str] = ()
) -> pd.DataFrame:
    """Compare methods with a reference, seed by seed.

    Parameters
    ----------
    table
        With the columns `COLUMNS`; a seed is a split that all methods share.
    reference
        The method that the others are compared with.
    overlap
        Held-out over training cells of a split, 0 if seeds share nothing. Splits of the same cells overlap, so that
        their differences vary less than those of new cells would: the variance of the mean is
        (1 / seeds + overlap) times that of a seed (Nadeau & Bengio 2003).
    level
        Of the confidence interval (Student's t).
    within
        Further columns that tell rows of one metric apart.

    Returns
    -------
    Columns dataset, split, method, group, metric, those of `within`, mean (the method's value less the reference's),
    low and high (NaN for one seed) and seeds (that have both).
    """
    by = ["dataset", "split", "group", "metric", *within]
    values = table.pivot(index=[*by, "seed"], columns="method", values="value")
    gaps = values.drop(columns=reference).sub(values[reference], axis=0).stack().rename("gap").reset_index()
    found = gaps.groupby([*by, "method"], sort=False)["gap"].agg(mean="mean", sd="std", seeds="count").reset_index()
    n = found["seeds"]
    found = _with_interval(found, 1 / n + overlap, n, level)
    return found[["dataset", "split", "method", "group", "metric", *within, "mean", "low", "high", "seeds"]]


def over_datasets(found: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """Sum `differences` up over data sets, which share no cell and weigh alike.

    Parameters
    ----------
    found
        Of `differences`.
    level
        Of the confidence interval (Student's t over the data sets' means).

    Returns
    -------
    Columns method, group, metric, mean, low and high (NaN for one data set) and datasets (that have a value).
    """
    by = ["method", "group", "metric"]
    means = found.groupby(by, sort=False)["mean"].agg(mean="mean", sd="std", datasets="count").reset_index()
    n = means["datasets"]
    return _with_interval(means, 1 / n, n, level)[[*by, "mean", "low", "high", "datasets"]]


def _with_interval(found: pd.DataFrame, of_mean: pd.Series, n: pd.Series, level: float) -> pd.DataFrame:
    """Replace the column sd, of n values, by low and high; the variance of their mean is `of_mean` times theirs."""
    reach = t.ppf((1 + level) / 2, n - 1) * found["sd"] * np.sqrt(of_mean)
    return found.drop(columns="sd").assign(low=found["mean"] - reach, high=found["mean"] + reach)
