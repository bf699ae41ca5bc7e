"""Rivals' cells with their marginals calibrated: marginals of the training cells, ranks of the drawn ones."""

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from conftest import make_toy
from scipy.stats import spearmanr

from benchmarking.calibrated import calibrate
from config import GarageParams


def cells_of(X, labels, scale):
    cells = anndata.AnnData(sp.csr_matrix(X, dtype=np.float32), uns={"scale": scale, "dataset": "toy"})
    cells.obs["cell_type"] = labels
    return cells


def lognormal(rng, shift, n=200, genes=6):
    """Values around a level, genes 0 and 1 going together."""
    z = rng.normal(size=(n, genes))
    z[:, 1] = 0.9 * z[:, 0] + 0.4 * z[:, 1]
    return np.exp(0.5 * z + shift)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_marginals_are_the_training_cells_and_ranks_the_drawn_ones(scale):
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b"], 100)
    real, drawn = lognormal(rng, 1.0), lognormal(rng, 0.0)
    real[labels == "b"] *= 3
    found = calibrate(cells_of(drawn, labels, scale), cells_of(real, labels, scale), GarageParams(), seed=0)
    X = found.X.toarray()
    for name in ("a", "b"):
        rows = labels == name
        assert X[rows].mean(0) == pytest.approx(real[rows].mean(0), rel=0.08)
        assert X[rows].std(0) == pytest.approx(real[rows].std(0), rel=0.25)
        for gene in range(6):
            assert spearmanr(X[rows, gene], drawn[rows, gene]).statistic > 0.999
    assert list(found.obs["cell_type"]) == list(labels)


@pytest.mark.parametrize("factor", [1, 100], ids=["molecules", "reads"])
def test_counts_stay_counts(factor):
    train, drawn = make_toy(), make_toy()
    for cells in (train, drawn):
        cells.uns |= {"scale": "counts", "dataset": "toy"}
        cells.X = sp.csr_matrix(cells.X) * factor
    drawn.X = sp.csr_matrix(drawn.X.multiply(2))  # twice the molecules
    found = calibrate(drawn, train, GarageParams(), seed=0)
    X, real = found.X.toarray(), train.X.toarray()
    assert np.array_equal(X, np.rint(X)) and (X >= 0).all()
    assert X.sum() == pytest.approx(real.sum(), rel=0.1)
    assert np.abs((X > 0).mean(0) - (real > 0).mean(0)).max() < 0.12
    again = calibrate(drawn, train, GarageParams(), seed=0)
    assert np.array_equal(X, again.X.toarray())


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_detected_genes_scatter_as_in_the_training_cells(scale):
    """As GARAGE's own cells."""
    rng, shape = np.random.default_rng(0), (400, 80)
    caught = 0.8 * rng.normal(size=(400, 1))
    real, drawn = (np.where(rng.normal(size=shape) + c > 0.3, np.exp(rng.normal(size=shape)), 0) for c in (caught, 0))
    labels = np.repeat(["a", "b"], 200)
    spread = {}
    for matched in (True, False):
        params = GarageParams(calibrate_detection=matched)
        found = calibrate(cells_of(drawn, labels, scale), cells_of(real, labels, scale), params, seed=0)
        spread[matched] = (found.X.toarray() > 0).sum(1).std()
    wanted = (real > 0).sum(1).std()
    assert spread[True] == pytest.approx(wanted, rel=0.15) and spread[False] < 0.5 * wanted


def test_types_that_the_training_cells_lack_stay_as_they_are():
    rng = np.random.default_rng(0)
    drawn, real = lognormal(rng, 0.0, n=20), lognormal(rng, 2.0, n=20)
    labels = np.array(["a"] * 10 + ["new"] * 10)
    found = calibrate(cells_of(drawn, labels, "log"), cells_of(real, ["a"] * 20, "log"), GarageParams(), seed=0)
    X = found.X.toarray()
    assert np.allclose(X[10:], drawn[10:]) and not np.allclose(X[:10], drawn[:10])


def test_a_type_drawn_once_gets_a_training_value():
    rng = np.random.default_rng(0)
    real = lognormal(rng, 2.0, n=20)
    found = calibrate(
        cells_of(lognormal(rng, 0.0, n=1), ["a"], "log"), cells_of(real, ["a"] * 20, "log"), GarageParams(), seed=0
    )
    X = found.X.toarray()
    assert ((X >= 0) & (real.max(0) >= X)).all() and X.sum() > 0


def test_a_training_cell_without_counts_harms_nobody():
    """As the choice of genes may leave one; its library size has no logarithm."""
    train, drawn = make_toy(), make_toy()
    for cells in (train, drawn):
        cells.uns |= {"scale": "counts", "dataset": "toy"}
        cells.X = sp.csr_matrix(cells.X) * 100  # reads
    expected = calibrate(drawn, train[1:].copy(), GarageParams(), seed=0)
    train.X = sp.csr_matrix(train.X.multiply(np.arange(train.n_obs)[:, None] > 0))
    train.X.eliminate_zeros()
    found = calibrate(drawn, train, GarageParams(), seed=0)
    assert np.array_equal(found.X.toarray(), expected.X.toarray())
