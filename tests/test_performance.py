"""The scripts that measure speed: what they measure is what they say, on toy cells; how fast is no test's concern."""

import numpy as np
import pandas as pd
import pytest
from conftest import make_toy
from matplotlib import pyplot

from benchmarking.performance import quality_against_time, scale
from benchmarking.performance.quality_against_time import judge, time_ratio
from benchmarking.performance.scale import resample
from common.data import CellSource
from common.generation import load_split


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


def test_judge_knows_good_cells_from_bad_ones(h5ad):
    train, held = load_split(CellSource(input=h5ad), 0.5, 0)
    noise = train.copy()
    noise.X = noise.X[:, np.random.default_rng(0).permutation(train.n_vars)]
    good, bad = judge(train, held, 0), judge(noise, held, 0)
    assert good["mmd_pcs"] < bad["mmd_pcs"] and good["coverage_pcs"] > bad["coverage_pcs"]
    assert good["rf_auroc_pcs"] < bad["rf_auroc_pcs"]


def test_ratio_is_of_the_first_time_that_is_as_good_in_both():
    points = {
        "slow": [(10, 0.5, 0.1), (20, 0.2, 0.3), (30, 0.3, 0.4)],
        "fast": [(1, 0.2, 0.1), (2, 0.1, 0.4), (4, 0.1, 0.9)],
    }
    table = pd.DataFrame(
        [
            {"method": method, "seconds": seconds, "metric": metric, "value": value}
            for method, rows in points.items()
            for seconds, mmd, coverage in rows
            for metric, value in (("mmd_pcs", mmd), ("coverage_pcs", coverage))
        ]
    )
    assert time_ratio(table, "slow", "fast") == 15  # 30 s for the best of both, 2 s to be as good
    assert np.isnan(time_ratio(table, "fast", "slow"))


@pytest.mark.slow
def test_curves_are_measured(h5ad, tmp_path, monkeypatch):
    monkeypatch.setattr(quality_against_time, "RESULTS_DIR", tmp_path)
    quality_against_time.main(
        ["--input", str(h5ad), "--methods", "garage", "published", "--garage-epochs", "1", "2", "--iterations", "3",
         "--every", "2"]
    )  # fmt: skip
    table = pd.read_csv(tmp_path / "tables/performance_quality_toy.csv")
    assert table.groupby("method")["steps"].unique().map(list).to_dict() == {"garage": [1, 2], "published": [2, 3]}
    assert (table["seconds"] > 0).all() and set(table["metric"]) == set(quality_against_time.METRICS)
    assert pyplot.imread(tmp_path / "figures/performance_quality_toy.png").size


@pytest.mark.slow
def test_cost_is_measured(h5ad, tmp_path):
    out = tmp_path / "scale.csv"
    scale.main(["--input", str(h5ad), "--cells", "60", "--genes", "15", "--sample", "70", "--out", str(out)])
    table = pd.read_csv(out)
    assert table["drawn"].tolist() == [60, 70] and (table["genes"] == 15).all()
    assert (table[["wall_s", "cpu_s", "peak_mb", "peak_own_mb", "sampling_s"]] > 0).all(axis=None)
    assert (table["peak_own_mb"] <= table["peak_mb"]).all() and table["training_s"].notna().tolist() == [True, False]
