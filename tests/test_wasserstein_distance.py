"""Distances agree with optimal transport solved directly, and stand beside their controls."""

from dataclasses import replace

import anndata
import numpy as np
import ot
import pandas as pd
import pytest
from scipy.spatial.distance import cdist

from benchmarking.controls import all_zeros, real_half
from common.results import COLUMNS
from common.runs import load_run
from data_generation import wasserstein_distance
from data_generation.wasserstein_distance import transport_distances

METRICS = ["w1_genes", "w1_genes_divided", "w1_pcs"]


@pytest.fixture
def run(toy_runs):
    return load_run(toy_runs / "seed0")


def values(run):
    return transport_distances(run).set_index("metric")["value"]


def emd(a, b):
    return ot.emd2([], [], cdist(a, b))


def test_on_genes_it_is_the_transport_of_all_cells_on_the_scale_of_the_input(run):
    real, made = run.held.X.toarray(), run.synthetic.X.toarray()
    assert len(real) == len(made)  # so that nothing is left out
    assert values(run)["w1_genes"] == pytest.approx(emd(real, made))


def test_the_published_formula(run):
    real, made = run.held.X.toarray(), run.synthetic.X.toarray()
    assert values(run)["w1_genes_divided"] == pytest.approx(emd(real / len(real), made / len(made)))


def test_the_published_formula_falls_with_the_number_of_cells(run):
    doubled = {  # training cells too, or the synthetic ones would be thinned
        name: anndata.concat({"a": cells, "b": cells}, index_unique="_", uns_merge="same")
        for name, cells in {"train": run.train, "held": run.held, "synthetic": run.synthetic}.items()
    }
    twice = replace(run, **doubled)
    assert values(twice)["w1_genes"] == pytest.approx(values(run)["w1_genes"])
    assert values(twice)["w1_genes_divided"] == pytest.approx(values(run)["w1_genes_divided"] / 2)


def test_copies_of_the_held_out_cells_are_at_no_distance(run):
    np.testing.assert_allclose(values(replace(run, synthetic=run.held.copy())), 0, atol=1e-6)


def test_floor_and_ceiling(run):
    def of(control):
        fitted = control.fit(run.train, seed=0)
        return values(replace(run, synthetic=control.sample(fitted, run.train.n_obs, seed=0)))

    norms = np.linalg.norm(run.held.X.toarray(), axis=1)
    assert of(all_zeros)["w1_genes"] == pytest.approx(norms.mean())
    assert (of(real_half) < of(all_zeros)).all()


@pytest.fixture(scope="module")
def table(toy_runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("wasserstein") / "tables" / "wasserstein.csv"
    wasserstein_distance.main(["--runs", str(toy_runs / "seed0"), str(toy_runs / "seed1"), "--out", str(path)])
    return pd.read_csv(path)


def test_script(table, run):
    controls = {"real_half", "all_zeros", "gene_wise_normal", "poisson", "copula"}
    assert set(table) == {*COLUMNS, "leakage", "labels", "made_of"}
    assert len(table) == 2 * 6 * 3
    assert set(table["method"]) == controls | {"garage"}
    assert table["value"].notna().all() and (table["value"] >= 0).all()
    is_control = table["method"].isin(controls)
    assert table.loc[is_control, "leakage"].isna().all()
    assert set(table.loc[~is_control, "leakage"]) == {0.2}
    mine = table[(table["method"] == "garage") & (table["seed"] == 0)].set_index("metric")["value"]
    np.testing.assert_allclose(mine[METRICS], values(run)[METRICS])


def test_script_names_floor_and_ceilings(toy_runs, tmp_path, capsys):
    wasserstein_distance.main([
        "--runs", str(toy_runs / "seed0"), "--out", str(tmp_path / "w.csv"), "--controls", "real_half", "all_zeros",
    ])  # fmt: skip
    said = capsys.readouterr().out
    assert "real_half (floor)" in said and "all_zeros (ceiling)" in said
    assert f"wrote {tmp_path / 'w.csv'}" in said


@pytest.mark.parametrize("flags, complaint", [
    (["--runs", "nowhere"], "make it with python data_generation/garage.py --holdout 0.5"),
    (["--runs", "RUN", "RUN"], "another --name"),
    (["--runs", "RUN", "--controls", "real_hafl"], "did you mean 'real_half'?"),
])  # fmt: skip
def test_complaints(flags, complaint, toy_runs, tmp_path, capsys):
    flags = [str(toy_runs / "seed0") if flag == "RUN" else flag for flag in flags]
    with pytest.raises(SystemExit) as left:
        wasserstein_distance.main([*flags, "--out", str(tmp_path / "w.csv")])
    assert left.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "w.csv").exists()
