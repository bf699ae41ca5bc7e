"""Tables of results are brought up to date run by run, and nothing missing is hidden."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from common.errors import UserError
from common.results import (
    COLUMNS,
    differences,
    keep_other_datasets,
    of_one_split,
    over_datasets,
    read_results,
    record,
    summarise,
)


def rows(method="a", seed=0, value=1.0, metric="m", group="all cells"):
    return pd.DataFrame([("d", "half", seed, method, group, metric, 5, value)], columns=COLUMNS)


def test_rows_of_a_run_are_replaced_and_others_kept(tmp_path):
    path = tmp_path / "tables" / "t.csv"
    record(path, pd.concat([rows("a", 0), rows("a", 0, group="gone later"), rows("a", 1), rows("b", 0, metric="k")]))
    record(path, pd.concat([rows("a", 0, 7.0), rows("c", 0)]))
    table = read_results(path, made_by="x").set_index(["method", "seed"])["value"]
    assert table.to_dict() == {("a", 0): 7.0, ("a", 1): 1.0, ("b", 0): 1.0, ("c", 0): 1.0}
    assert len(table) == 4


def test_a_table_is_packed_where_its_name_says_so(tmp_path):
    packed, plain = tmp_path / "t.csv.gz", tmp_path / "t.csv"
    for path in (packed, plain):
        record(path, rows("a"))
        record(path, rows("b"))
    assert packed.read_bytes()[:2] == b"\x1f\x8b"
    assert read_results(packed, made_by="x").equals(read_results(plain, made_by="x"))
    once = packed.read_bytes()
    record(packed, rows("b"))
    assert packed.read_bytes() == once
    packed.write_bytes(once[:40])
    with pytest.raises(UserError, match=r"t\.csv\.gz"):
        read_results(packed, made_by="x")


def test_values_stay_what_they_are_when_others_come(tmp_path):
    values = np.random.default_rng(0).random(500) * 1e-3
    record(tmp_path / "t.csv", pd.concat([rows(f"m{i}", value=value) for i, value in enumerate(values)]))
    record(tmp_path / "t.csv", rows("other"))
    table = read_results(tmp_path / "t.csv", made_by="x").set_index("method")["value"]
    assert table[[f"m{i}" for i in range(500)]].tolist() == values.tolist()


def test_columns_stand_in_one_order(tmp_path):
    record(tmp_path / "t.csv", rows().assign(leakage=0.1)[["value", "leakage", *COLUMNS[:-1]]])
    assert list(read_results(tmp_path / "t.csv", made_by="x")) == [*COLUMNS, "leakage"]


def test_other_metrics_of_the_run_are_kept(tmp_path):
    record(tmp_path / "t.csv", rows(metric="m"))
    record(tmp_path / "t.csv", rows(metric="k"))
    assert len(read_results(tmp_path / "t.csv", made_by="x")) == 2


def test_a_method_is_one_model(tmp_path):
    """What another model, or one of other cells, was worth on other metrics is not left beside today's."""
    path = tmp_path / "t.csv"
    for metric in ("m", "k"):
        record(path, pd.concat([rows(metric=metric), rows("b", metric=metric)]).assign(made_of="1"))
    record(path, rows(value=2.0).assign(made_of="2"))
    table = read_results(path, made_by="x")
    assert sorted(zip(table["method"], table["metric"], table["made_of"], strict=True)) == [
        ("a", "m", "2"), ("b", "k", "1"), ("b", "m", "1"),
    ]  # fmt: skip
    record(path, rows(metric="k").assign(made_of="3"), one_model=False)  # as in trials of rare cells
    assert len(read_results(path, made_by="x")) == 4


def test_one_split_of_several_is_chosen(tmp_path):
    both = pd.concat([rows(), rows().assign(split="third")])
    assert of_one_split(both, "third", tmp_path)["split"].tolist() == ["third"]
    assert len(of_one_split(pd.concat([rows(), rows("b")]), None, tmp_path)) == 2
    with pytest.raises(UserError, match="has d in several splits: choose one with --split, of 'half', 'third'"):
        of_one_split(both, None, tmp_path)


def test_data_sets_that_a_command_was_not_given_stay_in_its_table(tmp_path):
    path = tmp_path / "t.csv"
    assert keep_other_datasets(path, rows()).equals(rows())
    pd.concat([rows(value=1.0), rows().assign(dataset="e")]).to_csv(path, index=False)
    found = keep_other_datasets(path, rows(value=2.0))
    assert found.set_index("dataset")["value"].to_dict() == {"d": 2.0, "e": 1.0} and len(found) == 2
    rows().assign(dataset="4000").to_csv(path, index=False)
    assert len(keep_other_datasets(path, rows().assign(dataset="4000"))) == 1


def test_summary_is_mean_and_sample_sd_and_counts_gaps():
    table = pd.concat([rows(seed=0, value=1.0), rows(seed=1, value=3.0), rows(seed=2, value=np.nan), rows("b", 0, 5.0)])
    summary = summarise(table).set_index("method")
    assert summary.loc["a", ["mean", "sd", "seeds", "missing"]].tolist() == [2.0, pytest.approx(2**0.5), 2, 1]
    assert summary.loc["b", ["mean", "seeds", "missing"]].tolist() == [5.0, 1, 2]
    assert np.isnan(summary.loc["b", "sd"])


def test_complaints(tmp_path):
    with pytest.raises(UserError, match=r"t\.csv is missing: make it with python x\.py"):
        read_results(tmp_path / "t.csv", made_by="python x.py")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="has no column dataset and"):
        read_results(tmp_path / "t.csv", made_by="python x.py")


def of_seeds(values):
    return pd.concat([rows(method, seed, value) for method, of in values.items() for seed, value in enumerate(of)])


def test_differences_are_those_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    split = rng.normal(size=6)
    table = of_seeds({"garage": split, "variant": split + 0.3 + 0.1 * rng.normal(size=6)})
    row = differences(table, "garage", overlap=0).iloc[0]
    gap = table.query("method == 'variant'")["value"].to_numpy() - split
    low, high = ttest_1samp(gap, 0).confidence_interval()
    assert (row["mean"], row["low"], row["high"], row["seeds"]) == pytest.approx((gap.mean(), low, high, 6))
    corrected = differences(table, "garage", overlap=1).iloc[0]
    assert corrected["high"] - corrected["low"] == pytest.approx((high - low) * np.sqrt(7))


def test_data_sets_weigh_alike_whatever_their_seeds():
    parts = [of_seeds({"a": [0.0] * n, "b": [gap] * n}).assign(dataset=f"d{n}") for n, gap in ((2, 0.1), (9, 0.4))]
    row = over_datasets(differences(pd.concat(parts), "a", overlap=1)).iloc[0]
    low, high = ttest_1samp([0.1, 0.4], 0).confidence_interval()
    assert (row["mean"], row["low"], row["high"], row["datasets"]) == pytest.approx((0.25, low, high, 2))


def test_a_seed_that_one_lacks_is_left_out_of_its_difference():
    row = differences(of_seeds({"garage": [1, 2, 3], "variant": [2, np.nan, 6]}), "garage", overlap=1).iloc[0]
    assert row["mean"] == 2 and row["seeds"] == 2
    alone = differences(of_seeds({"garage": [1], "variant": [2]}), "garage", overlap=1).iloc[0]
    assert alone["mean"] == 1 and np.isnan(alone["low"])
