"""Everyone is judged alike, and every metric puts controls where theory has them."""

import json
import shutil
from dataclasses import replace
from functools import partial

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from analysis import evaluate as evaluate_script
from benchmarking.controls import load_controls
from common.cli import silent
from common.data import CellSource, load_cells, split_cells
from common.errors import UserError
from common.evaluation import evaluate, find_rare
from common.judging import judge_runs
from common.metrics import privacy, utility
from common.metrics.catalogue import ALL, FAMILIES, METRICS, OTHERS, SEEDS
from common.results import read_results
from common.runs import Run, load_run


def values(run: Run, families=FAMILIES) -> pd.Series:
    return evaluate(run, families=families).set_index(["metric", "group"])["value"]


def test_every_metric_of_the_catalogue_and_no_other(toy_runs, few_trees):
    run = load_run(toy_runs / "seed0")
    found = evaluate(run, families=FAMILIES)
    assert set(found["metric"]) == {name for name, metric in METRICS.items() if metric.family in FAMILIES}
    for family in FAMILIES:
        mine = {name for name, metric in METRICS.items() if metric.family == family}
        assert set(evaluate(run, families=[family])["metric"]) == mine
    assert not found.duplicated(["metric", "group"]).any()
    known = found.dropna(subset="value")
    for name in found["metric"].unique():
        metric = METRICS[name]
        assert known.loc[known["metric"] == name, "value"].between(metric.low - 1e-9, metric.high + 1e-9).all(), name
    sizes = run.held.obs["cell_type"].value_counts()
    per_type = found[found["group"].isin(sizes.index)]
    assert (per_type["n"] == per_type["group"].map(sizes).astype(int)).all()
    assert (found.loc[found["group"] == ALL, "n"] == run.held.n_obs).all()


def test_the_same_run_has_the_same_values(toy_runs, few_trees):
    run = load_run(toy_runs / "seed0")
    assert values(run).equals(values(run))


def test_what_real_cells_alone_teach_does_not_depend_on_the_synthetic_ones(toy_runs, few_trees, monkeypatch):
    run, seen = load_run(toy_runs / "seed0"), []
    augmentation = utility.augmentation
    monkeypatch.setattr(utility, "augmentation", lambda *a, **k: seen.append((a[0], a[4])) or augmentation(*a, **k))
    noise = run.synthetic.copy()
    noise.X = noise.X[np.random.default_rng(0).permutation(noise.n_obs)] * 50
    for synthetic in (run.synthetic, noise):
        evaluate(replace(run, synthetic=synthetic), families=["utility"])
    for a, b in zip(*seen, strict=True):
        np.testing.assert_array_equal(a, b)


def test_privacy_is_measured_on_types_that_were_held_out(toy_runs, monkeypatch):
    """The cells of a type of one cell would all lie nearer to a training than to a held-out cell."""
    run, seen = load_run(toy_runs / "seed0"), []
    nearness = privacy.nearness
    monkeypatch.setattr(privacy, "nearness", lambda *a, **k: seen.append([len(x) for x in a]) or nearness(*a, **k))
    held = run.held[run.held.obs["cell_type"] != "NK"].copy()
    found = evaluate(replace(run, held=held), families=["privacy"]).set_index(["metric", "group"])["n"]
    others = [int((cells.obs["cell_type"] != "NK").sum()) for cells in (run.train, run.held, run.synthetic)]
    assert seen == [others]
    assert found["attack_auc", SEEDS] + found["attack_auc", OTHERS] == others[0]


def test_drawing_more_cells_wins_nothing(toy_runs, few_trees):
    run = load_run(toy_runs / "seed0")
    n = run.train.n_obs
    rng = np.random.default_rng(run.seed)
    many = run.synthetic[rng.integers(0, run.synthetic.n_obs, 5 * n)].copy()
    many.obs_names_make_unique()
    kept = np.sort(np.random.default_rng(run.seed).permutation(5 * n)[:n])
    assert values(replace(run, synthetic=many)).equals(values(replace(run, synthetic=many[kept].copy())))


def test_rare_types_are_counted_over_all_real_cells(toy_runs):
    run = replace(load_run(toy_runs / "seed0"), rare_threshold=8)
    assert find_rare(run) == ["NK"]  # 8 cells, 4 on either side
    assert find_rare(replace(run, rare_threshold=7)) == []
    assert find_rare(replace(run, rare_threshold=24)) == ["B", "NK"]


def with_cells(run: Run, name: str) -> Run:
    control = load_controls([name])[name]
    model = control.fit(run.train, None, seed=run.seed, device="cpu")
    return replace(run, method=name, synthetic=control.sample(model, run.train.n_obs, seed=run.seed))


@pytest.mark.slow
def test_controls_stand_where_theory_has_them():
    """Blood cells: real half near its theoretical values, a bootstrap copy caught, all-zeros at the bottom."""
    train, held = split_cells(load_cells(CellSource()), 0.5, seed=0)
    assert held is not None
    run = Run(None, "pbmc68k", "", 0, "", {}, 20, train, held, train, None)  # type: ignore[arg-type]
    names = ("real_half", "bootstrap", "gene_wise_normal", "all_zeros", "poisson")
    table = pd.DataFrame({name: values(with_cells(run, name)).xs(ALL, level="group") for name in names})
    half = table["real_half"]
    # exchangeable with the held-out half
    assert half["rf_auroc_genes"] == pytest.approx(0.5, abs=0.07)
    assert half["rf_auroc_pcs"] == pytest.approx(0.5, abs=0.07)
    assert half["coverage_pcs"] == pytest.approx(1 - 2**-5, abs=0.03)
    assert half["density_pcs"] == pytest.approx(1, abs=0.15)
    assert half["lisi_pcs"] == pytest.approx(1.94, abs=0.03)
    assert half["mmd_pcs"] == pytest.approx(0, abs=0.002)
    assert half[["gene_mean", "gene_variance", "gene_zeros"]].min() > 0.97
    assert half["lfc_slope"] == pytest.approx(1, abs=0.1)
    assert half["types_present"] == 1
    # copies of the training cells, and known for it
    for name in ("real_half", "bootstrap"):
        assert table.loc["copies", name] == 1
        assert table.loc["nearer_to_training", name] > 0.99
        assert table.loc["near_copies", name] == 1
        assert table.loc["attack_auc", name] > 0.75
        assert table.loc["calibrated_auc", name] > 0.75
    # nothing is worse than nothing; genes drawn alike for all types know no types either, and scatter around its zero
    bottom = [
        "rf_auroc_genes", "rf_auroc_pcs", "w1_pcs", "sliced_w1_pcs", "mmd_pcs", "lisi_pcs", "density_pcs",
        "coverage_pcs", "gene_mean", "gene_variance", "gene_zeros", "gene_correlation", "library_size",
    ]  # fmt: skip
    of_types = ["tstr_f1", "lfc_slope", "lfc_correlation", "marker_overlap", "ari_gap"]
    shortfalls = pd.DataFrame(
        {name: {m: METRICS[m].shortfall(value) for m, value in column.items()} for name, column in table.items()}
    )
    assert (shortfalls.loc[bottom, "all_zeros"] >= shortfalls.loc[bottom].max(axis=1) - 1e-3).all()
    known = shortfalls.loc[of_types].drop(columns="gene_wise_normal")
    assert (known["all_zeros"] == known.max(axis=1)).all()


@pytest.mark.parametrize(
    ("holdout", "told"), [(0.9, "no training cell of type R"), (0.1, "no held-out cell of type R")]
)
def test_no_side_of_a_split_loses_a_type_unseen(holdout, told):
    types = ["A"] * 100 + ["B"] * 100 + ["R"] * 2 + ["alone"]
    cells = AnnData(
        np.ones((203, 2), np.float32), obs=pd.DataFrame({"cell_type": types}, [f"c{i}" for i in range(203)])
    )
    with pytest.raises(UserError, match=told):
        split_cells(cells, holdout, 0)
    assert sorted(set(split_cells(cells, 0.5, 0)[1].obs["cell_type"])) == ["A", "B", "R"]


def count_cells(run: Run) -> pd.DataFrame:
    return pd.DataFrame(
        [(ALL, "cells", run.held.n_obs, float(run.synthetic.n_obs))], columns=["group", "metric", "n", "value"]
    )


def judge(folders, path, *, controls=("real_half", "poisson"), judge=count_cells, again=False):
    return judge_runs(folders, judge, controls=load_controls(controls), path=path, again=again, report=silent)


def test_controls_stand_beside_every_run(toy_runs, tmp_path):
    rows = judge([toy_runs / "seed0", toy_runs / "seed1"], tmp_path / "t.csv")
    assert set(rows[["seed", "method"]].itertuples(index=False, name=None)) == {
        (seed, method) for seed in (0, 1) for method in ("garage", "real_half", "poisson")
    }
    assert read_results(tmp_path / "t.csv", made_by="x").equals(rows.reset_index(drop=True))


def test_controls_are_judged_once_unless_asked_again(toy_runs, tmp_path):
    judged = []

    def remember(run: Run) -> pd.DataFrame:
        judged.append(run.method)
        return count_cells(run)

    for again in (False, False, True):
        judge([toy_runs / "seed0"], tmp_path / "t.csv", judge=remember, again=again)
    assert judged == ["garage", "real_half", "poisson", "garage", "garage", "real_half", "poisson"]


def test_controls_of_other_cells_are_judged_again(toy_runs, tmp_path):
    """Also those of a table that does not say what its rows were made of."""
    expected = judge([toy_runs / "seed0"], tmp_path / "t.csv")
    for stale in (expected.assign(made_of="0123456789ab"), expected.drop(columns="made_of")):
        stale.assign(value=-1.0).to_csv(tmp_path / "t.csv", index=False)
        rows = judge([toy_runs / "seed0"], tmp_path / "t.csv")
        pd.testing.assert_frame_equal(rows.reset_index(drop=True), expected.reset_index(drop=True))


def test_controls_of_other_labels_on_the_same_file_are_judged_again(toy_runs, tmp_path):
    """The table has them under the same data set, split, seed and method."""
    run = load_run(toy_runs / "seed0")
    labels = run.train.obs["cell_type"].astype(str).replace({"NK": "T"})
    train = AnnData(run.train.X, obs=labels.to_frame("cell_type"), var=run.train.var, uns=run.train.uns)
    others = replace(run, train=train)
    assert run.made_of == load_run(toy_runs / "seed0").made_of != others.made_of
    assert replace(run, rare_threshold=9).made_of != run.made_of != replace(run, params={}).made_of


def test_controls_are_judged_again_for_metrics_that_the_table_lacks(toy_runs, tmp_path, few_trees):
    for families in (["clustering"], ["clustering", "privacy"]):
        rows = judge([toy_runs / "seed0"], tmp_path / "t.csv", judge=partial(evaluate, families=families))
    assert rows.loc[rows["metric"] == "copies", "method"].tolist() == ["garage", "poisson", "real_half"]


def copy_of(folder, out, **changed):
    """Copy a run as another generator could have written it: without checksums, and with other entries of run.json."""
    shutil.copytree(folder, out)
    record = json.loads((out / "run.json").read_text()) | changed
    del record["checksum"], record["files"]
    (out / "run.json").write_text(json.dumps(record))
    return out


def test_runs_judged_by_other_metrics_before_stand_in_one_table(toy_runs, tmp_path, few_trees, capsys):
    mine = copy_of(toy_runs / "seed0", tmp_path / "mine", method="mine")
    for folder, family in ((toy_runs / "seed0", "clustering"), (mine, "privacy")):
        argv = ["--runs", str(folder), "--families", family, "--controls", "poisson", "--out", str(tmp_path / "t.csv")]
        evaluate_script.main(argv)
    told = capsys.readouterr().out
    assert "mine" in told and "poisson" in told and "—" in told


def test_cells_of_another_generator_may_be_dense_but_have_a_scale(toy_runs, tmp_path):
    path = copy_of(toy_runs / "seed0", tmp_path / "other") / "cells.h5ad"
    cells = anndata.read_h5ad(path)
    expected, cells.X = cells.X.copy(), cells.X.toarray()
    cells.write_h5ad(path)
    found = load_run(path.parent).synthetic.X
    assert sparse.issparse(found) and (found != expected).nnz == 0
    del cells.uns["scale"]
    cells.write_h5ad(path)
    with pytest.raises(UserError, match=r"does not say on which scale its values are: write it into uns\['scale'\]"):
        load_run(path.parent)


def test_controls_learn_from_the_runs_training_cells_only(toy_runs, tmp_path):
    seen = {}

    def remember(run: Run) -> pd.DataFrame:
        seen[run.method] = run
        return count_cells(run)

    judge([toy_runs / "seed0"], tmp_path / "t.csv", judge=remember)
    run = seen["garage"]
    assert sorted(map(tuple, seen["real_half"].synthetic.X.toarray())) == sorted(map(tuple, run.train.X.toarray()))
    assert seen["poisson"].seeds is None and run.seeds is not None


def test_a_control_that_cannot_be_fitted_is_a_visible_gap(toy_runs, tmp_path, monkeypatch):
    class Broken:
        @staticmethod
        def fit(cells: AnnData, params, *, seed, device):
            raise UserError("not on this scale")

    rows = judge_runs(
        [toy_runs / "seed0"], partial(evaluate, families=["clustering"]), controls={"broken": Broken},
        path=tmp_path / "t.csv", again=False, report=silent,
    )  # fmt: skip
    broken = rows[rows["method"] == "broken"]
    assert set(broken["metric"]) == {"ari", "ari_gap", "nmi", "macro_f1"} and broken["value"].isna().all()


def test_two_runs_that_would_be_one_in_the_table(toy_runs, tmp_path):
    shutil.copytree(toy_runs / "seed0", tmp_path / "copy")
    with pytest.raises(UserError, match="give one of them another --name"):
        judge([toy_runs / "seed0", tmp_path / "copy"], tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()
