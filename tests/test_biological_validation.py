"""Tests of attention: as in scipy, a planted effect is found and a planted null is not, words follow the numbers."""

from dataclasses import make_dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_toy, on_scale
from scipy.stats import fisher_exact, norm, spearmanr, t
from sklearn.metrics import roc_auc_score

from biological_analysis import biological_validation as script
from biological_analysis import marker_expression
from biological_analysis.biological_validation import (
    ALL,
    ATTENTION,
    CONTROLS,
    ODDS,
    OVERALL,
    RARE,
    WITHIN,
    auroc_interval,
    compare_with_controls,
    correct,
    effects,
    find_high,
    fisher_tests,
    rank_sum,
    rank_sum_tests,
    score_cells,
    tell,
)
from biological_analysis.markers import MarkerSource, choose_markers
from common.cli import silent
from common.data import select_genes, split_cells
from common.metrics.fidelity import compare_on
from common.results import KEYS
from common.runs import load_run
from common.scale import to_log
from config import GarageParams
from data_generation.attention import graph_features, knn_graph
from data_generation.cell_selection import select

# ---------------------------------------------------------------------------------------------- scores


@pytest.fixture(scope="module")
def sorted_toy():
    cells = make_toy()
    return cells[np.argsort(cells.obs_names)].copy()


def test_scores(sorted_toy, tiny):
    scores = score_cells(sorted_toy, tiny, seed=3)
    assert list(scores) == [ATTENTION, *CONTROLS]
    log = to_log(sorted_toy.X, "counts", float(np.median(sorted_toy.X.toarray().sum(1))))
    types = sorted_toy.obs["cell_type"].cat.codes.to_numpy()
    chosen = select(log, types, tiny, seed=3, device=torch.device("cpu"), report=silent)
    np.testing.assert_array_equal(scores[ATTENTION], chosen.attention)
    learnt = [scores[name] for name in (ATTENTION, *CONTROLS[:3])]
    assert len({tuple(score) for score in learnt}) == 4  # no two networks are the same
    edges = knn_graph(graph_features(log, tiny, seed=3), tiny.neighbors, symmetric=tiny.graph_symmetric, seed=3)
    np.testing.assert_array_equal(np.floor(scores["degree"]), np.bincount(edges[0], minlength=72))
    assert abs(spearmanr(scores["random"], scores[ATTENTION]).statistic) < 0.5


def test_without_priority_nobody_knows_which_type_is_rare(sorted_toy, tiny):
    scores, others = (score_cells(sorted_toy, replace(tiny, rare_threshold=threshold), seed=0) for threshold in (8, 30))
    assert (scores[ATTENTION] != others[ATTENTION]).any()
    np.testing.assert_array_equal(scores["attention without priority"], others["attention without priority"])


def test_high_is_a_fifth():
    score = np.arange(11.0)
    assert find_high(score).nonzero()[0].tolist() == [8, 9, 10]


# ---------------------------------------------------------------------------------------------- tests of types


def test_types_by_hand():
    labels = np.repeat(["A", "B", "C"], [10, 30, 60])
    high = np.zeros(100, bool)
    high[[*range(8), *range(10, 22)]] = True
    found = fisher_tests(labels, high, ["A"]).set_index("group")
    a = found.loc["A"]
    assert (a["n"], a["n_cells"], a["n_high"], a["n_both"], a["is_rare"]) == (10, 100, 20, 8, True)
    assert a["enrichment"] == pytest.approx((8 / 20) / (10 / 100))
    assert a["p"] == pytest.approx(fisher_exact([[8, 2], [12, 78]]).pvalue)
    assert a["value"] == pytest.approx(np.log2(8.5 * 78.5 / (2.5 * 12.5)))
    assert a["low"] < a["odds_ratio"] < 8 * 78 / (2 * 12) < a["high"]  # the conditional estimate is the smaller
    p = found.loc[["A", "B", "C"], "p"].to_numpy()
    order = np.argsort(p)
    expected = np.minimum.accumulate((p[order] * 3 / np.arange(1, 4))[::-1])[::-1]
    np.testing.assert_allclose(found.loc[["A", "B", "C"], "q"].to_numpy()[order], np.minimum(expected, 1))
    assert found.loc[RARE, ["p", "n_both"]].tolist() == a[["p", "n_both"]].tolist()
    assert found.loc[RARE, "q"] == found.loc[RARE, "p"]
    assert found.loc["C", "n_both"] == 0 and np.isfinite(found.loc["C", "value"]) and found.loc["C", "odds_ratio"] == 0


@pytest.mark.slow
def test_a_random_fifth_is_seldom_enriched():
    rng, labels = np.random.default_rng(0), np.repeat(["A", "B", "C"], [15, 45, 90])
    found = pd.concat([fisher_tests(labels, find_high(rng.random(150)), ["A"]) for _ in range(60)])
    rejected = (found["p"] < 0.05).groupby(found["group"]).mean()
    assert (rejected < 0.1).all() and rejected.max() > 0
    assert abs(found.loc[found["group"] == RARE, "value"].mean()) < 0.3


def test_unknown_p_values_are_not_counted():
    q = correct(pd.Series([0.01, np.nan, 0.04]))
    assert q[[0, 2]] == pytest.approx([0.02, 0.04]) and np.isnan(q[1])


# ---------------------------------------------------------------------------------------------- tests of markers


def test_auroc_as_in_sklearn():
    rng = np.random.default_rng(1)
    high, rest = rng.poisson(2, (7, 5)).astype(float), rng.poisson(1, (20, 5)).astype(float)
    found = rank_sum(high, rest)
    labels = np.repeat([1, 0], [7, 20])
    expected = [roc_auc_score(labels, np.concatenate([high[:, j], rest[:, j]])) for j in range(5)]
    np.testing.assert_allclose(found["value"], expected)
    assert ((found["low"] < found["value"]) & (found["value"] < found["high"])).all()
    silent_gene = rank_sum(np.zeros((3, 1)), np.zeros((9, 1)))
    assert silent_gene["value"] == 0.5 and silent_gene["p"] == 1
    assert np.isnan(list(rank_sum(high[:0], rest).values())).all()


@pytest.mark.parametrize(("m", "n", "shift"), [(6, 40, 1.0), (30, 70, 0.0), (4, 8, 2.0)])
def test_intervals_cover_the_truth(m, n, shift):
    """Of normal values the truth is Phi(shift / sqrt 2)."""
    rng = np.random.default_rng(0)
    found = rank_sum(rng.normal(shift, 1, (m, 2000)), rng.normal(0, 1, (n, 2000)))
    truth = norm.cdf(shift / np.sqrt(2))
    covered = ((found["low"] <= truth) & (truth <= found["high"])).mean()
    assert 0.93 < covered < 0.985


def test_intervals_of_few_cells_are_wide():
    low, high = auroc_interval(np.array([1.0, 0.0, 0.7]), 3, 5)
    assert low[0] < 0.8 and high[0] == 1
    turned_low, turned_high = auroc_interval(np.array([0.0, 1.0, 0.3]), 5, 3)
    np.testing.assert_allclose([low, high], [1 - turned_high, 1 - turned_low], atol=1e-12)


@pytest.fixture(scope="module")
def tested(sorted_toy):
    """Function of a choice of HIGH cells: means of marker AUROCs, and the share of q below 0.05, by metric and type."""
    labels, markers = sorted_toy.obs["cell_type"].astype(str).to_numpy(), choose_markers(sorted_toy, 5)

    def run(high):
        tests = rank_sum_tests(sorted_toy, markers, labels, high, ["NK"])
        assert len(tests) == 2 * 3 * 5
        return tests.assign(found=tests["q"] < 0.05).groupby(["metric", "group"])[["value", "found"]].mean()

    return labels, compare_on(sorted_toy), markers, run


def test_composition_alone_is_seen_over_all_cells_only(tested):
    labels, _, _, run = tested
    high = (labels == "B") & (np.random.default_rng(0).random(72) < 0.5)
    found = run(high)
    assert found.loc[OVERALL, "B"]["value"] > 0.8 and found.loc[OVERALL, "B"]["found"] == 1
    assert abs(found.loc[WITHIN, "B"]["value"] - 0.5) < 0.12 and found.loc[WITHIN, "B"]["found"] == 0
    assert np.isnan(found.loc[WITHIN, "T"]["value"])  # none of them is HIGH


def test_a_marker_is_found_within_its_type(tested, sorted_toy):
    labels, X, markers, _ = tested
    planted, *others = markers["T"]
    level = X[:, sorted_toy.var_names.get_loc(planted)]
    high = (labels == "T") & (level > np.median(level[labels == "T"]))
    tests = rank_sum_tests(sorted_toy, {"T": markers["T"]}, labels, high, ["NK"])
    tests = tests[tests["metric"] == WITHIN].set_index("gene")
    assert tests.loc[planted, "value"] == 1 and tests.loc[planted, "q"] < 1e-5
    assert (tests.loc[others, "q"] > 0.05).all()
    assert (tests["n"] == 40).all() and (tests["n_high"] == 20).all()


# ---------------------------------------------------------------------------------------------- comparison, words


def table_of(values, metric=ODDS, group=RARE):
    """Values by method, one a seed."""
    rows = [
        ("toy", "split", seed, method, group, metric, value)
        for method, of in values.items()
        for seed, value in enumerate(of)
    ]
    return pd.DataFrame(rows, columns=[*KEYS, "group", "metric", "value"])


def test_attention_less_each_control_by_hand():
    values = {ATTENTION: [3.0, 3.2, 2.9], "random": [0.1, 0.0, 0.2], "degree": [5.0, 5.3, 5.1]}
    found = compare_with_controls(table_of(values), holdout=0.5).set_index("control")
    gap = np.subtract(values[ATTENTION], values["random"])
    reach = t.ppf(0.975, 2) * gap.std(ddof=1) * np.sqrt(1 / 3 + 1)
    row = found.loc["random"]
    assert row[["mean", "low", "high"]].tolist() == pytest.approx([gap.mean(), gap.mean() - reach, gap.mean() + reach])
    assert found.loc["degree", "mean"] == pytest.approx(np.mean(np.subtract(values[ATTENTION], values["degree"])))
    few = compare_with_controls(table_of(values), holdout=0.25).set_index("control").loc["random"]
    assert few["high"] - few["low"] > row["high"] - row["low"]  # training cells that overlap more tell less


def test_values_weigh_as_many_pairs_as_they_compare():
    markers = pd.DataFrame({
        "dataset": "toy", "split": "s", "seed": 0, "method": ATTENTION, "metric": WITHIN, "group": ["A", "A", "B", "C"],
        "is_rare": [True, True, False, True], "value": [0.6, 0.8, 0.2, np.nan], "n": [10, 10, 50, 3],
        "n_high": [2, 2, 10, 0],
    })  # fmt: skip
    types = table_of({ATTENTION: [1.0]})
    found = effects(types, markers).set_index(["metric", "group"])["value"]
    assert found[WITHIN, "A"] == found[WITHIN, RARE] == pytest.approx(0.7)
    assert found[WITHIN, ALL] == pytest.approx((16 * 0.6 + 16 * 0.8 + 400 * 0.2) / 432)
    assert found[ODDS, RARE] == 1 and (WITHIN, "C") not in found


def words_of(attention, control):
    types = table_of({ATTENTION: attention}).assign(
        n=5, n_cells=50, odds_ratio=np.exp2(attention), p=np.where(np.abs(attention) > 1, 0.01, 0.5)
    )
    compared = compare_with_controls(table_of({ATTENTION: attention, "random": control}), holdout=0.5)
    return tell(types, compared)


@pytest.mark.parametrize(
    ("attention", "control", "expected", "seeds"),
    [
        ([3.0, 3.1, 2.9], [0.0, 0.1, 0.0], "is above random (+2.97 [", "in 3 of 3 seeds, fewer in 0"),
        ([-3.0, -3.1, -2.9], [0.0, 0.1, 0.0], "is below random (-3.03 [", "in 0 of 3 seeds, fewer in 3"),
        ([0.5, -0.7, 0.1], [0.0, 0.3, -0.6], "is not told apart from random", "in 0 of 3 seeds, fewer in 0"),
        ([3.0], [0.0], "is not told apart from random", "in 1 of 1 seeds, fewer in 0"),
    ],
)
def test_words_follow_the_numbers(attention, control, expected, seeds):
    first, second = words_of(attention, control)
    assert "5 of 50 cells are rare" in first and seeds in first
    assert second.startswith(f"toy, {RARE}, share in HIGH: attention {expected}")


def test_data_without_rare_types_are_told():
    types = table_of({ATTENTION: [1.0]}, group="A").assign(p=0.5)
    assert tell(types, compare_with_controls(table_of({ATTENTION: [1.0]}, group="A"), 0.5)) == ["toy: no type is rare"]


# ---------------------------------------------------------------------------------------------- synthetic cells


@pytest.fixture
def run(toy_runs):
    return load_run(toy_runs / "seed0")


def judged(run, **changes):
    return marker_expression.make_judge(MarkerSource(n_markers=4))(replace(run, **changes))


def sums(rows):
    return rows[rows["gene"].isna()].set_index(["metric", "group"])["value"]


def test_markers_by_hand(run):
    rows = judged(run)
    name, gene = rows.loc[rows["group"] == "NK", ["group", "gene"]].iloc[0]
    assert gene in choose_markers(run.train, 4)["NK"]
    row = rows[(rows["group"] == name) & (rows["gene"] == gene)].set_index("metric")
    j = run.held.var_names.get_loc(gene)
    for column, cells in {"real": run.held, "value": run.synthetic}.items():
        of_gene = compare_on(cells)[(cells.obs["cell_type"] == name).to_numpy(), j]
        assert row.loc["detection_rate", column] == pytest.approx((of_gene > 0).mean())
        assert row.loc["level", column] == pytest.approx(of_gene.mean())
    assert (row["n"] == 4).all() and (row["n_synthetic"] == 4).all()
    levels = rows[(rows["metric"] == "level") & rows["gene"].notna()]
    of_type = levels[levels["group"] == "NK"]
    found = sums(rows)
    assert found["level_gap", "NK"] == pytest.approx((of_type["value"] - of_type["real"]).abs().mean())
    assert found["level_correlation", "NK"] == pytest.approx(np.corrcoef(of_type["value"], of_type["real"])[0, 1])
    assert found["level_gap", RARE] == found["level_gap", "NK"]
    assert found["level_gap", ALL] == pytest.approx(found["level_gap"][["B", "NK", "T"]].mean())


def test_held_out_cells_express_what_they_express(run):
    found = sums(judged(run, synthetic=run.held))
    assert found["detection_rate_gap", ALL] == found["level_gap", ALL] == 0
    assert found["level_correlation", ALL] == pytest.approx(1)


def test_other_types_in_the_place_of_rare_cells_are_seen(run):
    labels = run.held.obs["cell_type"].astype(str).to_numpy()
    swapped = run.held.copy()
    swapped.obs["cell_type"] = np.where(labels == "NK", "T", np.where(labels == "T", "NK", labels))
    found = sums(judged(run, synthetic=swapped))
    assert found["level_gap", "NK"] > 1 and found["detection_rate_gap", "NK"] > 0.2 and found["level_gap", "B"] == 0


def test_a_type_that_is_not_drawn_expresses_nothing(run):
    rows = judged(run, synthetic=run.synthetic[run.synthetic.obs["cell_type"] != "NK"].copy())
    of_type = rows[(rows["group"] == "NK") & rows["gene"].notna()]
    assert (of_type["value"] == 0).all() and (of_type["n_synthetic"] == 0).all()
    rates = of_type.loc[of_type["metric"] == "detection_rate", "real"]
    assert sums(rows)["detection_rate_gap", "NK"] == pytest.approx(rates.mean()) and rates.mean() > 0.5


def test_scaled_values_have_no_detection(run):
    cells = {side: on_scale(getattr(run, side), "scaled") for side in ("train", "held", "synthetic")}
    found = sums(judged(run, **cells))
    assert found["detection_rate_gap"].isna().all() and found["level_gap"].notna().all()


# ---------------------------------------------------------------------------------------------- the script


@pytest.fixture
def study(tmp_path, monkeypatch, tiny, capsys):
    """Run the script on toy cells with small networks; return what it told."""
    fields = [(name, kind.type, getattr(tiny, name)) for name, kind in GarageParams.__dataclass_fields__.items()]
    short = make_dataclass("Short", fields, bases=(GarageParams,), frozen=True)
    monkeypatch.setattr(script, "GarageParams", short)
    make_toy().write_h5ad(tmp_path / "toy.h5ad")

    def run(*flags):
        code = 0
        try:
            script.main([*map(str, flags), "--out", str(tmp_path / "validation.csv")])
        except SystemExit as stop:
            code = stop.code
        told = capsys.readouterr()
        return code, told.out + told.err

    return run


@pytest.mark.slow
def test_script_on_real_cells(study, tmp_path):
    flags = ("--datasets", tmp_path / "toy.h5ad", "--seeds", "2", "--n-top-genes", "12", "--n-markers", "3")
    code, told = study(*flags)
    assert code == 0 and "wrote" in told and "in HIGH than elsewhere in" in told and "attention is" in told
    types, markers, less = (
        pd.read_csv(tmp_path / f"validation{part}.csv") for part in ("", "_markers", "_differences")
    )
    assert set(types["method"]) == set(markers["method"]) == {ATTENTION, *CONTROLS} == {ATTENTION, *less["control"]}
    assert set(types["group"]) == {"B", "NK", "T", RARE} and set(types["split"]) == {"holdout 0.5, 12 genes"}
    assert (types["n_high"] == 8).all() and (types["n_cells"] == 36).all() and (types["n_both"] <= types["n"]).all()
    of_types = types[types["group"] != RARE]
    assert (of_types.groupby(["seed", "method"])["n_both"].sum() == 8).all()
    assert len(types) == 2 * 6 * 4 and len(markers) == 2 * 6 * 3 * 3 * 2
    for seed in (0, 1):  # chosen on the training half
        train, _ = split_cells(make_toy(), 0.5, seed)
        genes = markers.loc[markers["seed"] == seed, "gene"].unique()
        chosen = choose_markers(train[:, select_genes(train, 12)].copy(), 3)
        assert set(genes) == {gene for of in chosen.values() for gene in of}
    assert (tmp_path / "biological_validation.png").stat().st_size > 10_000
    study(*flags)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "validation.csv"), types)


def test_script_on_scaled_cells(study, tmp_path):
    on_scale(make_toy(), "scaled").write_h5ad(tmp_path / "scaled.h5ad")
    flags = ("--datasets", tmp_path / "scaled.h5ad", "--seeds", "1")
    code, told = study(*flags)
    assert code == 2 and "leave out --n-top-genes, or give --n-top-genes None" in told
    code, _ = study(*flags, "--n-top-genes", "None")
    assert code == 0 and len(pd.read_csv(tmp_path / "validation.csv")) == 6 * 4


def test_script_on_synthetic_cells(study, toy_runs, tmp_path):
    flags = ("--datasets", "--runs", toy_runs / "seed0", toy_runs / "seed1", "--controls", "real_half", "all_zeros")
    code, told = study(*flags, "--n-markers", "4")
    assert code == 0 and "detection_rate_gap" in told and not (tmp_path / "validation.csv").exists()
    table = pd.read_csv(tmp_path / "marker_expression.csv")
    assert set(table["method"]) == {"garage", "real_half", "all_zeros"} and set(table["markers"]) == {"4 chosen"}
    mean = table[table["gene"].isna()].groupby(["metric", "group", "method"])["value"].mean()
    for group in (ALL, RARE):
        assert mean["level_gap", group, "real_half"] < mean["level_gap", group, "all_zeros"]
    code, told = study(*flags, "--n-markers", "5")
    assert code == 2 and "made with other markers (4 chosen)" in told


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--datasets",), "nothing is to be tested"),
        (("--seeds", "0"), "--seeds is 0"),
        (("--datasets", "pbmc68"), "did you mean 'pbmc68k'"),
        (("--n-markers", "0"), "--n-markers is 0"),
        (("--holdout", "0"), "--holdout is 0"),
    ],
)
def test_errors_help(study, flags, message):
    code, told = study(*flags)
    assert code == 2 and message in " ".join(told.split())
