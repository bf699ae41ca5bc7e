"""Controls keep the contract of a generator, and are what they say."""

import logging
import os
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from conftest import TOY_SIZES, on_scale
from scipy import sparse
from scipy.stats import kstest, norm
from sklearn.covariance import LedoitWolf

from benchmarking import controls
from benchmarking.controls import (
    CONTROLS,
    DEFAULT_CONTROLS,
    OPTIONAL,
    PEERS,
    all_zeros,
    bootstrap,
    copula,
    gene_wise_normal,
    jitter,
    load_controls,
    poisson,
    real_half,
    scvi,
    smote,
)
from common.errors import UserError
from common.scale import detect_scale

REFUSED = {("poisson", "scaled")}
SCALES = ("counts", "linear", "log", "scaled")


def of_one_type(X: np.ndarray, scale: str) -> AnnData:
    obs = pd.DataFrame({"cell_type": "T"}, index=[f"c{i}" for i in range(len(X))])
    return AnnData(sparse.csr_matrix(X, dtype=np.float32), obs, uns={"scale": scale})


def draw(control: ModuleType, cells: AnnData, n_cells: int, *, seed: int = 1, **options) -> np.ndarray:
    return control.sample(control.fit(cells, seed=0), n_cells, seed=seed, **options).X.toarray()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "scale"), [(n, s) for n in DEFAULT_CONTROLS for s in SCALES if (n, s) not in REFUSED])
def test_control_keeps_the_contract(toy, name, scale):
    cells, control = on_scale(toy, scale), CONTROLS[name]
    model = control.fit(cells, seed=0)
    n_cells, sizes = (72, TOY_SIZES) if name == "real_half" else (7, {"B": 2, "NK": 1, "T": 4})
    drawn = control.sample(model, n_cells, seed=1)
    assert drawn.obs["cell_type"].value_counts().to_dict() == sizes
    assert list(drawn.obs_names) == [f"synthetic_{i}" for i in range(n_cells)]
    assert list(drawn.var_names) == list(cells.var_names)
    assert drawn.uns == {"scale": scale, "dataset": "toy"}
    assert isinstance(drawn.X, sparse.csr_matrix) and drawn.X.dtype == np.float32 and np.isfinite(drawn.X.data).all()
    if scale != "scaled":
        assert (drawn.X.data >= 0).all() and (drawn.X[:, -1].nnz == 0)
    if scale == "counts":
        assert detect_scale(drawn.X) == "counts"
    again, other = (control.sample(control.fit(cells, seed=0), n_cells, seed=seed) for seed in (1, 2))
    assert (again.X != drawn.X).nnz == 0
    assert ((other.X != drawn.X).nnz == 0) == (name in ("real_half", "all_zeros"))

    some = control.sample(model, 8, cell_type="NK", seed=1)
    assert some.n_obs == 8 and set(some.obs["cell_type"]) == {"NK"}
    with pytest.raises(UserError, match="there is no cell type 'NKT', only B, NK, T; did you mean 'NK'"):
        control.sample(model, 8, cell_type="NKT", seed=1)
    with pytest.raises(UserError, match="0 cells cannot be drawn"):
        control.sample(model, 0, seed=1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", DEFAULT_CONTROLS)
def test_a_type_with_one_cell_and_a_single_gene_will_do(toy, name):
    cells = toy[[0, 24, 32, 33]][:, 0].copy()
    drawn = CONTROLS[name].sample(CONTROLS[name].fit(cells, seed=0), 4, seed=1)
    assert drawn.shape == (4, 1) and drawn.obs["cell_type"].value_counts().to_dict() == {"B": 1, "NK": 1, "T": 2}
    if name in ("real_half", "bootstrap", "copula", "smote", "jitter"):
        assert (drawn.X[:2] != cells.X[:2]).nnz == 0


def test_labels_are_read_as_text_and_a_missing_scale_is_detected(toy):
    plain = AnnData(toy.X.toarray(), pd.DataFrame({"cell_type": np.arange(72) % 2}, index=toy.obs_names), toy.var)
    drawn = poisson.sample(poisson.fit(plain, seed=0), 4, cell_type="1", seed=1)
    assert drawn.uns == {"scale": "counts", "dataset": "cells"} and set(drawn.obs["cell_type"]) == {"1"}


def test_the_registry_is_whole(monkeypatch):
    assert set(OPTIONAL) | PEERS < set(CONTROLS) and set(DEFAULT_CONTROLS) == set(CONTROLS) - set(OPTIONAL)
    assert all(module.__name__ == f"benchmarking.controls.{name}" for name, module in CONTROLS.items())
    with pytest.raises(UserError, match=r"no control 'coppola'.*did you mean 'copula'"):
        load_controls(["copula", "coppola"])
    monkeypatch.setattr(controls, "find_spec", lambda name: None)
    assert load_controls(["smote", "copula"]) == {"smote": smote, "copula": copula}
    with pytest.raises(UserError, match=r"pip install -r requirements_optional\.txt"):
        load_controls(["scvi"])


def test_real_half_is_the_training_cells_however_many_are_wanted(toy):
    for n_cells in (3, 7000):
        assert (draw(real_half, toy, n_cells) == toy.X.toarray()).all()


def test_bootstrap_draws_training_cells_of_the_type_alike_often(toy):
    drawn = bootstrap.sample(bootstrap.fit(toy, seed=0), 72_000, seed=1)
    for name in TOY_SIZES:
        mine, real = (c[c.obs["cell_type"] == name].X.toarray() for c in (drawn, toy))
        _, times = np.unique(mine, axis=0, return_counts=True)
        assert {tuple(row) for row in mine} == {tuple(row) for row in real}
        assert np.abs(times - 1000).max() < 5 * np.sqrt(1000)


def test_all_zeros_are_zeros(toy):
    assert not draw(all_zeros, toy, 100).any()


@pytest.mark.parametrize("scale", ["log", "scaled"])
def test_gene_wise_normal_has_the_moments_of_a_normal_cut_off_at_zero(toy, scale):
    cells = on_scale(toy, scale)
    drawn, real = draw(gene_wise_normal, cells, 20_000), cells.X.toarray().astype(float)
    mean, sd = real.mean(0), real.std(0)
    if scale == "log":  # E max(0, x) and E max(0, x)^2 of a normal x
        z = mean[:-1] / sd[:-1]
        first = mean[:-1] * norm.cdf(z) + sd[:-1] * norm.pdf(z)
        second = (mean[:-1] ** 2 + sd[:-1] ** 2) * norm.cdf(z) + mean[:-1] * sd[:-1] * norm.pdf(z)
        mean, sd = np.append(first, 0), np.append(np.sqrt(second - first**2), 0)
    assert np.abs(drawn.mean(0) - mean).max() < 5 * sd.max() / np.sqrt(len(drawn))
    assert drawn.std(0) == pytest.approx(sd, rel=0.04)
    assert np.abs(np.corrcoef(drawn[:, :-1].T) - np.eye(19)).max() < 5 / np.sqrt(len(drawn))


def test_gene_wise_normal_knows_no_types(toy):
    alike = [draw(gene_wise_normal, toy, 50, cell_type=name) for name in TOY_SIZES]
    assert (alike[0] == alike[1]).all() and (alike[0] == alike[2]).all()


def test_poisson_has_the_mean_of_the_type_as_mean_and_variance(toy):
    for name in TOY_SIZES:
        mean = toy[toy.obs["cell_type"] == name].X.toarray().mean(0)
        drawn = draw(poisson, toy, 20_000, cell_type=name)
        assert np.abs(drawn.mean(0) - mean).max() < 5 * np.sqrt(mean.max() / len(drawn))
        assert drawn.var(0) == pytest.approx(mean, rel=0.08, abs=0.02)
        assert np.abs(np.corrcoef(drawn[:, :-1].T) - np.eye(19)).max() < 5 / np.sqrt(len(drawn))


def test_poisson_takes_logarithms_back_and_refuses_scaled_values(toy):
    cells = on_scale(toy, "log")
    cells.X = cells.X.log1p()
    drawn = np.expm1(draw(poisson, cells, 20_000, cell_type="NK").astype(float))
    mean = np.expm1(cells[cells.obs["cell_type"] == "NK"].X.toarray().astype(float)).mean(0)
    assert np.abs(drawn - drawn.round()).max() < 1e-4
    assert np.abs(drawn.mean(0) - mean).max() < 5 * np.sqrt(mean.max() / len(drawn))
    with pytest.raises(UserError, match="leave poisson out"):
        poisson.fit(on_scale(toy, "scaled"), seed=0)


@pytest.mark.parametrize("shape", [(400, 6), (40, 60), (7, 30), (2, 5)])
def test_the_copula_draws_from_the_shrunk_correlation(shape):
    """Against scikit-learn's estimate, which forms the matrix."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=shape) @ rng.normal(size=(shape[1], shape[1]))
    fitted = copula.fit(of_one_type(X, "scaled"), seed=0).types["T"]
    scores = norm.ppf((X.astype(np.float32).argsort(0).argsort(0) + 0.5) / len(X))
    expected = LedoitWolf().fit(scores)
    s = fitted.shrinkage
    ours = (1 - s) * fitted.factor.T @ fitted.factor + s * np.eye(shape[1])
    assert s == pytest.approx(expected.shrinkage_)
    assert ours == pytest.approx(expected.covariance_ / expected.covariance_[0, 0])

    # with ranks to spare, what is drawn turns back into the scores
    ordered = np.repeat(np.linspace(-1, 1, 20_001)[:, None], shape[1], axis=1)
    fine = copula.Copula(
        copula.Frame.of(of_one_type(X, "scaled")), {"T": copula.TypeCopula(ordered, fitted.factor, fitted.shrinkage)}
    )
    drawn = copula.sample(fine, 20_000, seed=1).X.toarray().astype(float)
    drawn_scores = norm.ppf((1 + drawn) / 2 * 0.9999 + 0.00005)
    assert np.abs(np.cov(drawn_scores.T) - ours).max() < 0.06


def test_the_copula_has_the_marginals_of_the_type(toy):
    for name in TOY_SIZES:
        real = toy[toy.obs["cell_type"] == name].X.toarray()
        drawn = draw(copula, toy, 20_000, cell_type=name)
        for gene in range(toy.n_vars):
            values = np.unique(real[:, gene])
            shares = [(X[:, gene, None] == values).mean(0) for X in (drawn, real)]
            assert sum(shares[0]) == pytest.approx(1) and shares[0] == pytest.approx(shares[1], abs=0.02)


def test_smote_draws_between_two_cells_of_a_type(toy):
    cells = on_scale(toy, "log")
    drawn = smote.sample(smote.fit(cells, seed=0), 300, seed=1)
    for name in TOY_SIZES:
        mine, real = (c[c.obs["cell_type"] == name].X.toarray().astype(float) for c in (drawn, cells))
        i, j = np.triu_indices(len(real), 1)
        along = real[j] - real[i]
        at = ((mine[:, None] - real[i]) * along).sum(-1) / (along**2).sum(-1)
        off = np.abs(mine[:, None] - real[i] - at[..., None] * along).max(-1)
        nearest = off.argmin(1)
        places = at[np.arange(len(mine)), nearest]
        assert off.min(1).max() < 1e-5 and places.min() > -1e-5 and places.max() < 1 + 1e-5
        assert kstest(places, "uniform").pvalue > 1e-3
        # one of the two is among the five nearest of the other
        apart = np.linalg.norm(real[:, None] - real, axis=-1).argsort(1).argsort(1)
        assert np.minimum(apart, apart.T)[i[nearest], j[nearest]].max() <= 5


def test_smote_rounds_counts_without_bias_gene_by_gene():
    cells = of_one_type(np.array([[0, 1, 4, 7], [1, 0, 4, 4]]), "counts")
    drawn = draw(smote, cells, 20_000)
    assert drawn.mean(0) == pytest.approx([0.5, 0.5, 4, 5.5], abs=0.05)
    assert (drawn[:, 2] == 4).all() and set(drawn[:, 3]) == {4, 5, 6, 7}
    # rounded to the nearest, each would be a copy of the nearer cell
    share = draw(smote, of_one_type(np.array([[0] * 2000, [1] * 2000]), "counts"), 400).mean(1)
    assert kstest(share, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("scale", ["scaled", "linear"])
def test_jitter_spreads_cells_by_half_of_what_genes_vary_within_the_type(scale):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 4)) @ rng.normal(size=(4, 6))
    real = X.astype(np.float32).astype(float) if scale == "scaled" else np.log1p(np.float32(np.exp(8 + X)))
    drawn = draw(jitter, of_one_type(real if scale == "scaled" else np.expm1(real), scale), 40_000).astype(float)
    if scale == "linear":  # the noise is that of logarithms, here of genes too high to be cut off at zero
        drawn = np.log1p(drawn)
    sd = real.std(0)
    assert np.abs(drawn.mean(0) - real.mean(0)).max() < 5 * 1.12 * sd.max() / np.sqrt(len(drawn))
    expected = np.cov(real.T, ddof=0) + np.diag((jitter.NOISE * sd) ** 2)
    assert np.cov(drawn.T) == pytest.approx(expected, abs=10 * sd.max() ** 2 / np.sqrt(len(drawn)))


def test_jitter_rounds_counts_without_bias_and_leaves_silent_genes_silent():
    cells = of_one_type(np.array([[20, 0, 5], [40, 0, 5]] * 10), "counts")
    drawn = draw(jitter, cells, 20_000)
    logs = np.log1p([20, 40])
    # mean of exp of a normal; rounding up or down at random keeps it
    expected = np.mean(np.exp(logs + (jitter.NOISE * logs.std()) ** 2 / 2)) - 1
    assert drawn[:, 0].mean() == pytest.approx(expected, rel=0.02)
    assert not drawn[:, 1].any() and drawn[:, 2].mean() == pytest.approx(5, abs=0.02)
    assert len(np.unique(drawn[:, 0])) > 20


def test_scvi_refuses_what_are_no_counts_before_it_is_imported(toy):
    with pytest.raises(UserError, match="these values are log"):
        scvi.fit(on_scale(toy, "log"), seed=0)
    with pytest.raises(UserError, match="a single cell"):
        scvi.fit(toy[:1].copy(), seed=0)


@pytest.fixture(scope="module")
def trained():
    """129 cells, one more than a batch, of which one type has one cell, and an empty cell that is left out."""
    pytest.importorskip("scvi")
    rng = np.random.default_rng(0)
    types = np.array(["b"] * 60 + ["a"] * 68 + ["c"] + ["a"])
    mean = np.where(np.arange(30) % 2 == (types == "a")[:, None], 8.0, 1.0) * rng.lognormal(0, 0.5, (len(types), 1))
    X = rng.poisson(mean).astype(np.float32)
    X[:, -1] = X[-1] = 0
    obs = pd.DataFrame({"cell_type": types}, index=[f"c{i}" for i in range(len(types))])
    cells = AnnData(sparse.csr_matrix(X), obs, uns={"scale": "counts", "dataset": "toy"})
    models = {
        sampling: scvi.fit(cells, scvi.ScviParams(sampling=sampling), seed=0) for sampling in ("posterior", "prior")
    }
    return cells[:-1].copy(), models


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["posterior", "prior"])
def test_scvi_keeps_the_contract_and_learns_the_types(trained, sampling):
    cells, models = trained
    model = models[sampling]
    drawn = load_controls(["scvi"])["scvi"].sample(model, cells.n_obs, seed=1)
    assert drawn.obs["cell_type"].value_counts().to_dict() == {"a": 68, "b": 60, "c": 1}
    assert drawn.uns == {"scale": "counts", "dataset": "toy"} and detect_scale(drawn.X) == "counts"
    assert list(drawn.var_names) == list(cells.var_names) and drawn.X.dtype == np.float32
    assert (scvi.sample(model, cells.n_obs, seed=1).X != drawn.X).nnz == 0
    assert (scvi.sample(model, cells.n_obs, seed=2).X != drawn.X).nnz > 0
    totals = [np.asarray(c.X.sum(1)).ravel() for c in (drawn, cells)]
    for name in ("a", "b"):
        mine, real = (c[c.obs["cell_type"] == name].X.toarray().mean(0) for c in (drawn, cells))
        assert np.corrcoef(mine, real)[0, 1] > 0.9
        # library sizes are those of the type's training cells, each once
        mine, real = (np.sort(t[c.obs["cell_type"] == name]) for c, t in zip((drawn, cells), totals, strict=True))
        assert np.corrcoef(mine, real)[0, 1] > 0.9 and mine.mean() == pytest.approx(real.mean(), rel=0.1)
    with pytest.raises(UserError, match="no cell type 'd', only a, b, c"):
        scvi.sample(model, 3, cell_type="d", seed=1)


@pytest.mark.slow
def test_scvi_from_the_posterior_is_the_posterior_predictive_of_scvi_tools(trained):
    """The same draws as scvi-tools' own sampler, cell by cell, for a type in the order of its cells."""
    cells, models = trained
    model = models["posterior"]
    X = model.cells["b"]
    n, code = X.shape[0], torch.full((X.shape[0], 1), 1)
    tensors = {
        "X": torch.from_numpy(X.toarray()), "batch": torch.zeros_like(code), "labels": torch.zeros_like(code),
        "extra_categorical_covs": code,
    }  # fmt: skip
    torch.manual_seed(3)
    theirs = model.module.sample(tensors)
    torch.manual_seed(3)
    ours = scvi._decode(model, "b", X).toarray()
    assert theirs.shape == (n, cells.n_vars) and (theirs.numpy() == ours).all()


@pytest.mark.slow
def test_scvi_is_silent_repeats_itself_and_leaves_things_as_they_were(toy, capfd, monkeypatch):
    pytest.importorskip("scvi")
    said = []  # to loggers, whose handlers hold the stderr of another test
    monkeypatch.setattr(logging.Logger, "callHandlers", lambda logger, record: said.append(record.getMessage()))
    before, level = torch.random.get_rng_state(), logging.root.manager.disable
    environment = dict(os.environ)
    short = scvi.ScviParams(epochs=2)
    first, second, other = (scvi.sample(scvi.fit(toy, short, seed=s), 72, seed=5).X for s in (0, 0, 1))
    assert (first != second).nnz == 0 and (first != other).nnz > 0
    assert capfd.readouterr() == ("", "") and not said
    assert torch.equal(torch.random.get_rng_state(), before) and logging.root.manager.disable == level
    assert torch.get_num_threads() == 1 and dict(os.environ) == environment
