"""Rare cells: the same test for everyone, on cells that nobody saw; what is planted is found, and gaps are told."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from conftest import make_toy
from scipy import sparse
from scipy.stats import t
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import classification_report

from benchmarking.controls import poisson
from benchmarking.experiment import source_of
from benchmarking.matrix import Job, split_of
from biological_analysis import rare_cell_trials, rare_cell_utility
from biological_analysis.rare_cell_gains import as_markdown, summarise_gains
from biological_analysis.rare_cell_trials import LEARNERS, Trial, judge, rare_trials, score, take_away
from biological_analysis.rare_cell_trials import (
    testable_rare_types as rare_types_of,
)
from common.data import select_genes
from common.errors import UserError
from common.metrics.catalogue import ALL, RARE
from config import BASELINES, GarageParams

TYPE_SCORES = ["recall", "precision", "f1"]


@pytest.fixture
def utility(tmp_path, monkeypatch, tiny_preset, few_trees, capsys):
    """Run the script on toy cells, networks hardly trained; return its exit code, what it told, and its folder."""
    few = replace(BASELINES["gan"]["tuned"], budget=3, generator_hidden=(4,), critic_hidden=(4,))
    monkeypatch.setitem(BASELINES["gan"], "tuned", few)
    monkeypatch.setattr("common.generation.RESULTS_DIR", tmp_path)
    monkeypatch.setattr("benchmarking.baseline.MOST_DRAWS", 2)
    monkeypatch.setitem(rare_cell_trials.CLASSIFIERS, "forest", partial(RandomForestClassifier, 15))
    make_toy().write_h5ad(tmp_path / "toy.h5ad")

    def run(*flags, seeds=2):
        argv = ["--datasets", str(tmp_path / "toy.h5ad"), "--seeds", str(seeds), "--jobs", "1", *flags]
        code = 0
        try:
            rare_cell_utility.main([*argv, "--out", str(tmp_path / "rare.csv")])
        except SystemExit as stop:
            code = stop.code
        told = capsys.readouterr()
        return code, " ".join((told.out + told.err).split()), tmp_path

    return run


def toy_job(folder, generator="poisson", seed=0):
    make_toy().write_h5ad(folder / "toy.h5ad")
    return Job(source_of(str(folder / "toy.h5ad"), 10), 0.5, seed, generator, generator)


@pytest.mark.slow
def test_rare_cells_end_to_end(utility):
    flags = ["--methods", "garage", "bootstrap", "poisson_calibrated", "--amounts", "1", "5", "--keep"]
    code, told, folder = utility(*flags)
    assert code == 0 and "8 judged, 0 known, 0 failed" in told
    assert "toy: rare types NK (4 training, 4 held-out cells)" in told and "random oversampling" in told
    table = pd.read_csv(folder / "rare.csv")
    assert set(table["method"]) == {"real_only", "garage", "bootstrap", "poisson_calibrated"}
    of = table.groupby("group")
    assert of["n"].unique().map(list).to_dict() == {"NK": [4], RARE: [4], ALL: [36]}
    assert of["score"].unique().map(list).to_dict() == {"NK": TYPE_SCORES, RARE: TYPE_SCORES, ALL: ["macro_f1"]}
    assert set(table.loc[table["method"] != "real_only", "amount"]) == {1, 5}
    assert (table.groupby(["method", "amount"]).size() == 2 * len(LEARNERS) * 7).all()
    assert not table.duplicated(["method", "seed", "group", "metric"]).any() and table["value"].notna().all()
    nk, rare = (table[table["group"] == group]["value"].to_numpy() for group in ("NK", RARE))
    assert (nk == rare).all()  # the only rare type
    assert (table.loc[table["method"] == "garage", "leakage"] == GarageParams().leakage).all()
    assert (folder / "rare_cell_utility.png").stat().st_size > 0
    assert not (folder / "rare_cell_downsampling.csv").exists()

    # the benchmark's own runs are taken, and nothing is done twice
    run = folder / "synthetic" / "toy" / "garage" / "seed1" / "run.json"
    made = run.stat().st_mtime_ns
    assert json.loads(run.read_text())["holdout"] == 0.5
    before = (folder / "rare.csv").read_bytes()
    code, told, _ = utility(*flags)
    assert code == 0 and "0 judged, 8 known" in told and (folder / "rare.csv").read_bytes() == before
    code, told, _ = utility("--methods", "garage", "--amounts", "2", "--keep")
    again = pd.read_csv(folder / "rare.csv")
    assert "2 judged, 2 known" in told and set(again.loc[again["method"] == "garage", "amount"]) == {1, 2, 5}
    assert run.stat().st_mtime_ns == made
    by = ["method", "seed", "group", "metric"]
    both = again.set_index(by)["value"].reindex(table.set_index(by).index)
    assert (both.to_numpy() == table["value"].to_numpy()).all()
    # the same cells on fewer genes are another split of the table
    code, *_ = utility("--methods", "bootstrap", "--amounts", "1", "--keep", "--n-top-genes", "10", seeds=1)
    splits = pd.read_csv(folder / "rare.csv")["split"]
    assert code == 0 and set(splits) == {"holdout 0.5, 20 genes", "holdout 0.5, 10 genes"}
    assert set(pd.read_csv(folder / "rare_summary.csv")["method"]) == {"real_only", "bootstrap"}


@pytest.mark.slow
def test_down_sampling_end_to_end(utility):
    flags = ["--methods", "garage", "gan", "smote", "--amounts", "--keep", "3", "6", "99"]
    code, told, folder = utility(*flags, seeds=1)
    assert code == 0 and "toy: T loses all but 3, 6 of its 20 training cells" in told
    table = pd.read_csv(folder / "rare_cell_downsampling.csv")
    assert set(table["method"]) == {"real_only", "real_half", "garage", "gan", "smote"}
    assert set(table["keep"]) == {3, 6} and set(table["group"]) == {"T", ALL}
    is_real = table["method"] == "real_only"
    assert (table["added"] == np.where(is_real, 0, 20 - table["keep"])).all()
    assert set(table.loc[table["method"] == "gan", "labels"]) == {"classifier"}
    assert set(table.loc[table["method"] != "gan", "labels"]) == {"given"}
    fidelity = table[table["score"].isin(["coverage_pcs", "rf_auroc_pcs"])]
    assert fidelity["classifier"].isna().all() and not set(fidelity["method"]) & {"real_only"}
    f1 = table[table["score"] == "f1"].groupby("method")["value"].mean()
    assert f1["real_half"] > f1["real_only"]
    coverage = fidelity[fidelity["score"] == "coverage_pcs"].groupby("method")["value"].mean()
    assert coverage["real_half"] > max(0.8, coverage["gan"])
    assert (folder / "rare_cell_downsampling.png").stat().st_size > 0
    assert not (folder / "rare.csv").exists() and not (folder / "synthetic" / "toy" / "smote").exists()
    assert "0 judged, 5 known" in utility(*flags, seeds=1)[1]


@pytest.mark.slow
def test_a_type_that_cannot_be_made_is_a_gap_until_it_can(utility, monkeypatch):
    flags = ["--methods", "poisson", "smote", "--amounts", "1", "4", "--keep"]
    sample = poisson.sample

    def refuse(model, n_cells, *, cell_type, seed):
        if n_cells > 4:
            raise UserError(f"no more than 4 cells of {cell_type}")
        return sample(model, n_cells, cell_type=cell_type, seed=seed)

    with monkeypatch.context() as broken:
        broken.setattr(poisson, "sample", refuse)
        code, told, folder = utility(*flags)
    assert code == 1 and "4 judged, 0 known, 2 failed" in told
    assert "failed: poisson on toy, seed 0: no more than 4 cells of NK" in told
    table = pd.read_csv(folder / "rare.csv")
    missing = table["value"].isna()
    assert (missing == ((table["method"] == "poisson") & (table["amount"] == 4))).all() and missing.any()
    summary = pd.read_csv(folder / "rare_summary.csv")
    assert summary.loc[(summary["method"] == "poisson") & (summary["amount"] == 4), "difference"].isna().all()
    code, told, _ = utility(*flags)
    assert code == 0 and "2 judged, 4 known" in told
    assert pd.read_csv(folder / "rare.csv")["value"].notna().all()


def test_user_errors(utility):
    for flags, expected in (
        (["--down-sample", "TT"], "toy has no type 'TT' to --down-sample; did you mean 'T'?"),
        (["--keep", "20", "40"], "toy has only 20 training cells of T: give a smaller --keep"),
        (["--amounts", "0"], "whole numbers of at least 1"),
        (["--amounts", "--keep"], "one of the two is needed"),
        (["--methods", "smot"], "did you mean 'smote'"),
        (["--jobs", "0"], "give at least 1"),
    ):
        code, told, folder = utility("--methods", "smote", *flags)
        assert code == 2 and expected in told and not (folder / "rare.csv").exists()


def test_the_rarest_type_is_found_where_none_is_rare_and_can_be_tested(tmp_path):
    run = split_of(toy_job(tmp_path))
    assert rare_types_of(run) == ["NK"]
    assert rare_types_of(replace(run, rare_threshold=30)) == ["B", "NK"]
    assert rare_types_of(replace(run, rare_threshold=3)) == ["NK"]
    without = run.held[run.held.obs["cell_type"] != "NK"].copy()
    assert rare_types_of(replace(run, held=without, rare_threshold=8)) == ["B"]


def test_what_is_taken_away_leaves_no_trace(tmp_path):
    """Genes, cells and splits are the same whatever the cells were that are taken away."""
    job = toy_job(tmp_path)
    runs = {keep: take_away(job, "T", keep) for keep in (3, 8)}
    full = split_of(job)
    kept = {keep: set(run.train.obs_names[run.train.obs["cell_type"] == "T"]) for keep, (run, _) in runs.items()}
    assert len(kept[3]) == 3 and kept[3] < kept[8]
    for run, removed in runs.values():
        assert set(run.train.obs_names) | set(removed.obs_names) == set(full.train.obs_names)
        assert not set(run.train.obs_names) & set(removed.obs_names) and set(removed.obs["cell_type"]) == {"T"}
        assert set(run.held.obs_names) == set(full.held.obs_names)
        assert list(run.train.var_names) == list(run.held.var_names) == list(removed.var_names)

    run, removed = runs[3]
    cells = make_toy()
    rows = cells.obs_names.isin(removed.obs_names)
    X = cells.X.toarray()
    X[rows] = np.random.default_rng(1).poisson(3, X[rows].shape)
    X[rows, -1] = 50  # the gene that is silent elsewhere would be the most variable of all
    cells.X = sparse.csr_matrix(X)
    cells.write_h5ad(tmp_path / "other.h5ad")
    other, _ = take_away(replace(job, source=source_of(str(tmp_path / "other.h5ad"), 10)), "T", 3)
    assert list(other.train.var_names) == list(run.train.var_names) and len(run.train.var_names) == 10
    assert (other.train.X != run.train.X).nnz == 0
    before = AnnData(sparse.csr_matrix(X), cells.obs, cells.var, uns=cells.uns)[full.train.obs_names].copy()
    assert "g19" in select_genes(before, 10) and "g19" not in run.train.var_names


def test_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels, predicted = rng.choice(["a", "b", "c"], 60, p=[0.6, 0.3, 0.1]), rng.choice(["a", "b"], 60)
    report = classification_report(labels, predicted, output_dict=True, zero_division=0)
    found = score(predicted, labels, {"c": ["c"], RARE: ["b", "c"]}).set_index(["group", "score"])
    for ours, theirs in (("recall", "recall"), ("precision", "precision"), ("f1", "f1-score")):
        assert found.loc[("c", ours), "value"] == report["c"][theirs] == 0
        assert found.loc[(RARE, ours), "value"] == pytest.approx((report["b"][theirs] + report["c"][theirs]) / 2)
    assert found.loc[(ALL, "macro_f1"), "value"] == pytest.approx(report["macro avg"]["f1-score"])
    assert found.loc[(RARE, "f1"), "n"] == report["b"]["support"] + report["c"]["support"]


def normal_cells(n_a, n_b, shift, seed, n_genes=30):
    """Cells of two types that differ by a shift in every third gene."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_a + n_b, n_genes))
    X[n_a:, ::3] += shift
    obs = pd.DataFrame({"cell_type": np.repeat(["a", "b"], [n_a, n_b])}, index=[f"c{i}" for i in range(len(X))])
    return AnnData(sparse.csr_matrix(X, dtype=np.float32), obs, uns={"scale": "scaled"})


def judged(added, tmp_path, shift, seed=0):
    run = replace(
        split_of(toy_job(tmp_path)), train=normal_cells(60, 4, shift, seed),
        held=normal_cells(150, 50, shift, seed + 1),
        seed=seed,
    )  # fmt: skip
    rows = judge(Trial(run, {"b": ["b"]}, {"amount": 1}, lambda: added))
    return rows.set_index(["score", "classifier", "weights"])["value"]


def test_cells_of_the_true_distribution_help_and_real_cells_alone_decide_on_the_features(tmp_path, monkeypatch):
    fitted = []

    class Spy(rare_cell_trials.PCA):
        def fit(self, X, y=None):
            fitted.append(len(X))
            return super().fit(X, y)

    monkeypatch.setattr(rare_cell_trials, "PCA", Spy)
    alone = judged(None, tmp_path, shift=0.8)
    helped = judged(normal_cells(0, 56, 0.8, seed=7), tmp_path, shift=0.8)
    assert fitted == [64, 64]
    assert (helped["f1"] > alone["f1"]).all() and helped["f1"].mean() > alone["f1"].mean() + 0.2
    assert helped["macro_f1"].mean() > alone["macro_f1"].mean() + 0.1
    pd.testing.assert_series_equal(alone, judged(None, tmp_path, shift=0.8))


def test_where_types_are_alike_only_recall_can_be_had_and_precision_says_so(tmp_path):
    """A planted null: whoever adds cells of a type gets more of it predicted, right or wrong."""
    alone = judged(None, tmp_path, shift=0.0)
    more = judged(normal_cells(0, 56, 0.0, seed=7), tmp_path, shift=0.0)
    assert more["recall"].mean() > alone["recall"].mean() + 0.2
    assert (more["precision"] < 0.25 + 4 * np.sqrt(0.25 * 0.75 / 60)).all()  # a quarter of the held-out cells are b


def test_types_that_look_like_numbers_are_names(tmp_path):
    cells = make_toy()
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.rename_categories({"B": "2338", "NK": "2339"})
    cells.write_h5ad(tmp_path / "toy.h5ad")
    job = Job(source_of(str(tmp_path / "toy.h5ad"), 10), 0.5, 0, "poisson", "poisson")
    (trial,) = rare_trials(job, amounts=(3,))
    found = judge(trial)
    assert set(found["group"]) == {RARE, ALL, "2339"} and found["value"].notna().all()


def test_added_cells_are_what_was_asked_for_with_their_own_labels(tmp_path):
    job = toy_job(tmp_path, "bootstrap")
    trials = rare_trials(job, amounts=(1, 3))
    real = trials[0].run.train
    real = {tuple(row) for row in real[real.obs["cell_type"] == "NK"].X.toarray()}
    for trial, n in zip(trials, (4, 12), strict=True):
        added = trial.draw()
        assert added.n_obs == n and set(added.obs["cell_type"]) == {"NK"} and added.uns["scale"] == "counts"
        assert {tuple(row) for row in added.X.toarray()} <= real
    only = rare_trials(replace(job, generator="real_only", name="real_only"), amounts=(1, 3))
    assert [trial.setting for trial in only] == [{"amount": 0}] and only[0].draw() is None


@pytest.fixture
def planted():
    """A table in which garage gains 0.2 over real cells and 0.1 over smote, give or take what chance does to a seed."""
    rng = np.random.default_rng(0)
    split, noise = rng.normal(0.5, 0.2, 6), 0.01 * rng.normal(size=(2, 6))
    values = {("real_only", 0): split, ("garage", 3): split + 0.2 + noise[0], ("smote", 3): split + 0.1 + noise[1]}
    rows = [
        ("d", "holdout 0.5, 9 genes", seed, method, group, f"{name}_forest_balanced_amount{amount}", n, value, name,
         "forest", "balanced", amount)
        for (method, amount), of in values.items() for seed, value in enumerate(of)
        for group, name, n in ((RARE, "recall", 9), ("x", "recall", 4), ("y", "recall", 5), (ALL, "macro_f1", 50))
    ]  # fmt: skip
    columns = ["dataset", "split", "seed", "method", "group", "metric", "n", "value", "score", "classifier", "weights"]
    return pd.DataFrame(rows, columns=[*columns, "amount"]), values


def test_gains_are_paired_over_splits_and_splits_overlap(planted):
    table, values = planted
    summary = summarise_gains(table, holdout=0.5)
    by = summary[summary["group"] == RARE].set_index(["method", "reference"])
    for method, reference in (("garage", "real_only"), ("smote", "real_only"), ("garage", "smote")):
        gap = values[method, 3] - values[reference, 3 * (reference == "smote")]
        reach = t.ppf(0.975, 5) * gap.std(ddof=1) * np.sqrt(1 / 6 + 1)  # Nadeau & Bengio: n_test / n_train = 1
        row = by.loc[(method, reference)]
        expected = (gap.mean(), gap.mean() - reach, gap.mean() + reach, values[method, 3].mean())
        assert row[["difference", "low", "high", "value"]].tolist() == pytest.approx(expected)
        assert row["low"] > 0 and row["amount"] == 3 and row["seeds"] == 6
    alone = summary[(summary["method"] == "real_only") & (summary["group"] == RARE)]
    assert alone["value"].tolist() == pytest.approx([values["real_only", 0].mean()])
    assert alone["difference"].isna().all() and len(summary) == 4 * 4


def test_the_summary_for_people_has_the_rarest_type_and_the_rivals(planted):
    text = as_markdown(summarise_gains(planted[0], holdout=0.5))
    assert "## d (holdout 0.5, 9 genes), rare cells, 9 held-out cells" in text
    assert "rarest type: x, 4 held-out cells" in text and "rarest type: y" not in text
    assert text.count("GARAGE less its rivals") == 2
    line = next(line for line in text.splitlines() if line.startswith("| forest, balanced | garage | 3 |"))
    mean = planted[1]["garage", 3].mean()
    assert f"| {mean:.2f} (+0.2" in line
    assert any(line.startswith("| forest, balanced | real cells only | 0 |") for line in text.splitlines())


def test_cells_of_several_types_are_added_together(tmp_path, monkeypatch):
    monkeypatch.setattr(rare_cell_trials, "testable_rare_types", lambda run: ["B", "NK"])
    (trial,) = rare_trials(toy_job(tmp_path, "smote"), amounts=(2,))
    added = trial.draw()
    assert added.obs["cell_type"].value_counts().to_dict() == {"B": 24, "NK": 8, "T": 0}
    assert added.obs_names.is_unique and trial.groups == {RARE: ["B", "NK"], "B": ["B"], "NK": ["NK"]}
