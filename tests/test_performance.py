"""The scripts that measure speed: what they measure is what they say, on toy cells; how fast is no test's concern."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_toy, on_scale
from matplotlib import pyplot

from benchmarking.performance import quality_against_time, scale
from benchmarking.performance.default_speed import flags_of
from benchmarking.performance.quality_against_time import judge, time_ratio
from benchmarking.performance.scale import resample
from common.data import CellSource
from common.errors import UserError
from common.generation import load_split
from config import ROOT


@pytest.fixture
def h5ad(tmp_path):
    make_toy().write_h5ad(tmp_path / "toy.h5ad")
    return tmp_path / "toy.h5ad"


def test_resampled_cells_are_thinned_real_ones(monkeypatch):
    monkeypatch.setattr(scale, "CELLS_AT_ONCE", 400)
    real = make_toy()
    blocks = list(resample(real, 1000, real.n_vars, seed=0))
    assert [block.n_obs for block in blocks] == [400, 400, 200]
    X = np.concatenate([block.X.toarray() for block in blocks])
    assert (np.rint(X) == X).all() and X.sum() / 1000 == pytest.approx(0.8 * real.X.sum() / real.n_obs, rel=0.05)
    # no cell has more of a gene than some real cell has
    of_real = real.X.toarray()
    assert all((of_real >= cell).all(1).any() for cell in X[:50])
    shares = pd.concat([block.obs for block in blocks])["cell_type"].value_counts(normalize=True)
    expected = real.obs["cell_type"].astype(str).value_counts(normalize=True)
    assert (shares - expected).abs().max() < 0.06


def test_genes_are_repeated_or_left_out():
    real = make_toy()
    (more,), (fewer,) = (list(resample(real, 30, n, seed=0)) for n in (2 * real.n_vars + 3, 7))
    assert more.n_vars == 2 * real.n_vars + 3 and fewer.n_vars == 7
    assert more.var_names.is_unique and not np.array_equal(more.X[:, :20].toarray(), more.X[:, 20:40].toarray())


def test_every_flag_of_the_cells_is_handed_on():
    source = CellSource(input=Path("x.csv"), label_key="type", transpose=True, n_top_genes=7)
    assert flags_of(source) == ["--input", "x.csv", "--label-key", "type", "--transpose", "--n-top-genes", "7"]
    assert flags_of(CellSource()) == []


@pytest.mark.slow
def test_judge_knows_good_cells_from_bad_ones(h5ad):
    train, held = load_split(CellSource(input=h5ad), 0.5, 0)
    noise = train.copy()
    noise.X = noise.X[:, np.random.default_rng(0).permutation(train.n_vars)]
    good, bad = judge(train, held, 0), judge(noise, held, 0)
    assert good["mmd_pcs"] < bad["mmd_pcs"] and good["coverage_pcs"] > bad["coverage_pcs"]
    assert good["rf_auroc_pcs"] < bad["rf_auroc_pcs"]


def curve(points):
    """Long table of (method, seconds, MMD, coverage)."""
    return pd.DataFrame(
        [
            {"method": method, "seconds": seconds, "metric": metric, "value": value}
            for method, seconds, *values in points
            for metric, value in zip(("mmd_pcs", "coverage_pcs"), values, strict=True)
        ]
    )


def test_ratio_is_of_the_first_time_that_is_as_good_as_the_best():
    slow = [("slow", 10, 0.5, 0.1), ("slow", 20, 0.2, 0.3), ("slow", 30, 0.3, 0.4)]
    table = curve([*slow, ("fast", 1, 0.2, 0.1), ("fast", 2, 0.1, 0.4), ("fast", 4, 0.1, 0.9)])
    assert time_ratio(table, "slow", "fast", ["mmd_pcs"]) == 20
    assert time_ratio(table, "slow", "fast", ["mmd_pcs", "coverage_pcs"]) == 15  # 30 s for both, 2 s to be as good
    assert np.isnan(time_ratio(table, "fast", "slow", ["mmd_pcs"]))


def test_below_zero_is_no_better_than_zero():
    table = curve([("slow", 10, 0.0, 0.5), ("slow", 20, -0.1, 0.5), ("fast", 5, -0.05, 0.5)])
    assert time_ratio(table, "slow", "fast", ["mmd_pcs"]) == 2


@pytest.mark.slow
def test_curves_are_measured(h5ad, tmp_path, capsys, few_trees):
    out = tmp_path / "quality.csv"
    flags = ["--input", str(h5ad), "--every", "2", "--out", str(out)]
    quality_against_time.main(
        [*flags, "--methods", "garage", "published", "--garage-epochs", "1", "2", "--iterations", "3"]
    )
    table = pd.read_csv(out)
    assert table.groupby("method")["steps"].unique().map(list).to_dict() == {"garage": [1, 2], "published": [2, 3]}
    assert (table["seconds"] > 0).all() and set(table["metric"]) == set(quality_against_time.COMPARED)
    assert table.groupby("method")["seconds"].apply(lambda seconds: seconds.is_monotonic_increasing)["published"]
    assert "times less than published needs for its best" in capsys.readouterr().out
    assert pyplot.imread(tmp_path / "performance_quality_toy.png").size

    garage = table[table["method"] == "garage"]
    quality_against_time.main([*flags, "--methods", "published", "--iterations", "2"])
    again = pd.read_csv(out)
    assert again.loc[again["method"] == "published", "steps"].unique().tolist() == [2]
    kept = again[again["method"] == "garage"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, garage.reset_index(drop=True))


def test_held_out_cells_must_judge(h5ad, capsys):
    with pytest.raises(SystemExit) as stopped:
        quality_against_time.main(["--input", str(h5ad), "--holdout", "0"])
    assert stopped.value.code == 2 and "--holdout is 0.0: give a share" in capsys.readouterr().err


def test_only_counts_are_thinned(tmp_path, capsys):
    on_scale(make_toy(), "log").write_h5ad(tmp_path / "log.h5ad")
    with pytest.raises(SystemExit) as stopped:
        scale.main(["--input", str(tmp_path / "log.h5ad")])
    assert stopped.value.code == 2 and "holds log values, which cannot be thinned" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_fails_says_why(tmp_path):
    with pytest.raises(UserError, match=r"garage\.py failed: .*nowhere\.h5ad"):
        scale.measure(["--input", str(tmp_path / "nowhere.h5ad")])


@pytest.mark.slow
def test_cost_is_measured_once(h5ad, tmp_path, monkeypatch):
    out = tmp_path / "scale.csv"
    flags = ["--input", str(h5ad), "--cells", "60", "--genes", "15", "--sample", "70", "--out", str(out)]
    scale.main(flags)
    table = pd.read_csv(out)
    assert table["drawn"].tolist() == [60, 70] and (table["genes"] == 15).all() and table["on_disk"].all()
    assert (table[["wall_s", "cpu_s", "peak_mb", "peak_own_mb", "sampling_cpu_s"]] > 0).all(axis=None)
    assert (table["peak_own_mb"] <= table["peak_mb"]).all() and table["training_cpu_s"].notna().tolist() == [
        True,
        False,
    ]
    monkeypatch.setattr(scale, "measure", None)  # not called
    scale.main(flags)


@pytest.mark.slow
def test_start_up_waits_for_no_library_that_only_learning_or_judging_needs():
    heavy = ("ot", "jax", "torch_geometric", "umap", "plotly", "snakemake")
    code = f"import sys, data_generation.garage; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "[]\n"
