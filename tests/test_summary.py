"""Means over seeds are shown with the digits they deserve, in the order of a table, and gaps stay visible."""

import numpy as np
import pandas as pd
import pytest

from common.results import COLUMNS
from common.summary import cell_parts, decimals_of, order_methods, order_metrics, show


@pytest.mark.parametrize("means, sds, decimals", [
    ([0.553, 0.9], [0.012, 0.02], 3),  # three digits of the largest mean
    ([5.64, 5.67], [0.03, 0.04], 2),
    ([0.2, 0.0004], [0.0002, 0.0003], 4),  # down to the standard deviation
    ([1234.5], [20.0], 0),
    ([0.0, np.nan], [np.nan, np.nan], 0),
    ([1e-9], [1e-9], 5),
    ([np.inf, 0.5], [np.nan, 0.01], 2),
])  # fmt: skip
def test_decimals(means, sds, decimals):
    assert decimals_of(pd.Series(means), pd.Series(sds)) == decimals


@pytest.mark.parametrize("row, parts", [
    ((0.5512, 0.0123, 5, 0), ("0.55", "0.01", "")),
    ((0.5512, 0.0123, 4, 1), ("0.55", "0.01", "4 of 5")),
    ((0.5512, np.nan, 1, 4), ("0.55", "", "1 of 5")),
    ((-0.004, 0.0, 5, 0), ("0.00", "0.00", "")),
    ((np.nan, np.nan, 0, 5), ("—", "", "")),
])  # fmt: skip
def test_cells(row, parts):
    assert cell_parts(pd.Series(row, index=["mean", "sd", "seeds", "missing"]), 2) == parts


def test_order():
    assert order_methods(["real_half", "b", "copula", "a", "b"], ["real_half", "copula"]) == [
        "a",
        "b",
        "real_half",
        "copula",
    ]
    assert order_metrics(["zebra", "mmd_pcs", "apple", "w1_pcs"]) == ["w1_pcs", "mmd_pcs", "apple", "zebra"]


def test_show(capsys):
    rows = [("d", "half", seed, "mine", "all cells", "w1_pcs", 9, value) for seed, value in enumerate((1.0, 2.0, 6.0))]
    rows += [
        ("d", "half", 0, "real_half", "all cells", "w1_pcs", 9, 0.5),
        ("d", "half", 0, "z", "all cells", "mmd_pcs", 9, 0.1),
    ]
    show(pd.DataFrame(rows, columns=COLUMNS), controls=["real_half"])
    lines = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [[field.strip() for field in line] for line in lines] == [
        ["mine", "3.00 ± 2.65", "—"],
        ["z", "—", "0.100 (1 of 3)"],
        ["real_half (floor)", "0.50 (1 of 3)", "—"],
    ]
