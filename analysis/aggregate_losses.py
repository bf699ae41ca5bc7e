"""What the losses of runs did: a summary of each term, and its mean over seeds (paper, "Effect of leakage").

Every logged step counts, the first too. A term that its run logs only in a later phase (the critic's) counts from
there; if it is no number after that, training has failed and its statistics are none either.

Run:    python analysis/aggregate_losses.py --runs results/synthetic/pbmc68k/garage*/seed*
Reads:  losses.csv and run.json of each run
Writes: results/tables/losses.csv: dataset, split, seed, method, leakage, term, mean, sd, min, max, final (mean of the
        last 5 % of its steps), steps (number that are logged)
        results/tables/losses_summary.csv: dataset, split, method, leakage, term, statistic, mean, sd, seeds, missing
        (seeds of the data set's split without it)
"""

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from common.checks import reading
from common.cli import console, parse_flags, run_script
from common.errors import UserError
from common.results import KEYS
from common.run import write_table
from common.runs import identify, read_record
from common.summary import show
from config import RESULTS_DIR

FINAL_SHARE = 0.05
STATISTICS = ["mean", "sd", "min", "max", "final", "steps"]


@dataclass(frozen=True)
class Args:
    """Summarise the losses of runs."""

    runs: tuple[Path, ...]
    """folders of runs that learnt something, held-out cells or not"""
    out: Path = RESULTS_DIR / "tables" / "losses.csv"
    """table to write, of these runs alone; its means go into <name>_summary.csv beside it"""


def read_losses(folder: Path) -> pd.DataFrame:
    """Read the losses of a run: step, and one column a term.

    Raises
    ------
    UserError
        If the run is not there, has no losses, or they are not readable.
    """
    folder = Path(read_record(folder).get("trained_in", folder))
    path = folder / "losses.csv"
    if not path.exists():
        raise UserError(f"{path} is missing: repeat the run with python data_generation/garage.py --out {folder}")
    with reading(path, "table of losses"):
        losses = pd.read_csv(path, dtype=float)
    if "step" not in losses or losses.shape[1] < 2 or losses.empty:
        raise UserError(
            f"{path} has no losses (step and one column a term): the run took no training step; leave it out"
        )
    return losses


def summarise_term(values: pd.Series) -> dict[str, float]:
    """Return the statistics of a term, from its first value on; NaN wherever a later value is NaN.

    Parameters
    ----------
    values
        Of the logged steps in their order, shape (n_steps,).
    """
    start = values.first_valid_index()
    values = values.iloc[:0] if start is None else values.loc[start:]
    final = values.tail(math.ceil(FINAL_SHARE * len(values)))
    found = {name: getattr(values, name)(skipna=False) for name in ("mean", "min", "max")}
    return found | {"sd": values.std(skipna=False), "final": final.mean(skipna=False), "steps": len(values)}


@run_script
def main(argv: list[str]) -> None:
    """Read, write both tables, and show how the terms ended."""
    args: Args = parse_flags(Args, argv, __doc__)
    rows: list[dict[str, object]] = []
    seen: dict[tuple, Path] = {}
    for folder in args.runs:
        losses, run_id = read_losses(folder), identify(folder)
        if run_id in seen:
            raise UserError(f"{seen[run_id]} and {folder} would be one in the table: give one of them another --name")
        seen[run_id] = folder
        leakage = read_record(folder)["params"].get("leakage", math.nan)
        key = dict(zip(KEYS, run_id, strict=True)) | {"leakage": leakage}
        rows += [key | {"term": term} | summarise_term(losses[term]) for term in losses.columns.drop("step")]
    table = pd.DataFrame(rows)[[*KEYS, "leakage", "term", *STATISTICS]].sort_values(KEYS, kind="stable")
    summary = args.out.with_name(f"{args.out.stem}_summary.csv")
    write_table(args.out, table)
    write_table(summary, _over_seeds(table))
    leakage = table["leakage"].map(", leakage {:.0%}".format, na_action="ignore").fillna("")
    shown = table.assign(
        method=table["method"] + leakage,
        group=f"last {FINAL_SHARE:.0%} of steps", metric=table["term"], value=table["final"],
    )  # fmt: skip
    show(shown, controls=())
    console.print(f"wrote {args.out} and {summary.name}", soft_wrap=True, markup=False)


def _over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    by = ["dataset", "split", "method", "leakage", "term", "statistic"]
    long = table.melt([*KEYS, "leakage", "term"], STATISTICS, var_name="statistic")
    found = long.groupby(by, sort=False, dropna=False)["value"].agg(mean="mean", sd="std", seeds="count").reset_index()
    expected = table.groupby(["dataset", "split"])["seed"].nunique()
    found["missing"] = found.set_index(["dataset", "split"]).index.map(expected) - found["seeds"]
    return found


if __name__ == "__main__":
    main()
