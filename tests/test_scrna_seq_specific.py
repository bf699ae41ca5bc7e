"""Baselines made for scRNA-seq: their layers, likelihoods and schedules, and cells of the type that is asked for."""

import importlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TOY_SIZES, on_scale
from scipy import sparse
from scipy.stats import nbinom, norm
from sklearn.linear_model import LogisticRegression
from torch import nn

from benchmarking.baseline import Unconditional
from benchmarking.scrna_seq_specific import conditional, oversampling, scgan, scgan_networks, scvae
from benchmarking.scrna_seq_specific.diffusion import Diffusion, NoisyNet, noise_schedule
from benchmarking.scrna_seq_specific.likelihoods import nb_log_likelihood, normal_kl, zinb_log_likelihood
from benchmarking.training import LogValues, prepare
from common.errors import UserError
from common.scale import detect_scale
from config import BASELINES, ScdiffusionParams, ScganParams, ScvaeParams

SMALL = {
    "scgan": {"generator_hidden": (32,), "critic_hidden": (32,), "latent_dim": 8, "critic_steps": 2},
    "scvae": {"hidden": (32,), "latent_dim": 4, "warmup": 10},
    "scdiffusion": {
        "autoencoder_hidden": (32,), "latent_dim": 4, "denoiser_hidden": (32, 16), "classifier_hidden": (16,),
        "diffusion_steps": 20, "autoencoder_steps": 20,
    },
}  # fmt: skip


def module(name):
    return importlib.import_module(f"benchmarking.scrna_seq_specific.{name}")


def small(name, **others):
    common = {"budget": 8, "check_every": 4, "batch_size": 32}
    return replace(BASELINES[name]["tuned"], **(common | SMALL[name] | others))


# ---- the contract of those that are told the type


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("scale", ["counts", "linear", "log", "scaled"])
def test_conditional_baselines_keep_the_contract_on_every_scale(toy, name, scale):
    cells, method = on_scale(toy, scale), module(name)
    model = method.fit(cells, small(name), seed=0, device="cpu")
    drawn = method.sample(model, 18, seed=1)
    assert drawn.obs["cell_type"].value_counts().to_dict() == {"B": 6, "NK": 2, "T": 10}
    assert list(drawn.var_names) == list(cells.var_names) and drawn.uns == {"scale": scale, "dataset": "toy"}
    assert sparse.issparse(drawn.X) and drawn.X.dtype == np.float32 and np.isfinite(drawn.X.data).all()
    if scale != "scaled":
        assert (drawn.X.data >= 0).all()
    if scale == "counts":
        assert detect_scale(drawn.X) == "counts" and 0.5 < drawn.X.sum(1).mean() / cells.X.sum(1).mean() < 2
    assert method.LABELS == "given" and list(model.losses["step"]) == [4, 8] and model.losses["mmd"].notna().all()

    again = method.sample(method.fit(cells, small(name), seed=0, device="cpu"), 18, seed=1)
    assert (again.X != drawn.X).nnz == 0 and (method.sample(model, 18, seed=2).X != drawn.X).nnz > 0
    assert set(method.sample(model, 5, cell_type="NK", seed=1).obs["cell_type"]) == {"NK"}
    with pytest.raises(UserError, match="there is no cell type 'NKT'"):
        method.sample(model, 5, cell_type="NKT", seed=1)


@pytest.mark.parametrize("name", SMALL)
def test_a_type_with_one_cell_will_do(toy, name):
    cells, method = toy[[0, 1, 2, 24, *range(32, 42)]].copy(), module(name)
    for seed in range(3):  # so that it is a validation cell once
        model = method.fit(cells, small(name, budget=1, validation=0.5), seed=seed, device="cpu")
        assert method.sample(model, 3, cell_type="NK", seed=1).n_obs == 3


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("scgan", {"budget": 5000, "generator_lr": 2e-3, "critic_lr": 2e-3}),
        ("scvae", {"budget": 400, "lr": 3e-3}),
        ("scvae", {"budget": 400, "lr": 3e-3, "likelihood": "zinb"}),
        ("scdiffusion", {"budget": 800, "lr": 3e-3, "autoencoder_steps": 300, "diffusion_steps": 50, "guidance": 2.0}),
    ],
)
@pytest.mark.slow
def test_the_asked_type_is_what_a_classifier_recognises(toy, name, others):
    method = module(name)
    model = method.fit(toy, small(name, check_every=100, validation=0.0, **others), seed=0, device="cpu")
    recognise = LogisticRegression(max_iter=1000).fit(np.log1p(toy.X.toarray()), toy.obs["cell_type"])
    for wanted in TOY_SIZES:
        drawn = method.sample(model, 100, cell_type=wanted, seed=1).X.toarray()
        assert (recognise.predict(np.log1p(drawn)) == wanted).mean() > 0.7
        real = toy[toy.obs["cell_type"] == wanted].X.toarray().mean(0)
        assert np.corrcoef(drawn.mean(0), real)[0, 1] > 0.9


def test_values_come_back_from_the_scale_on_which_methods_see_them(toy):
    for scale in ("counts", "linear", "log", "scaled"):
        cells = on_scale(toy, scale)
        values = LogValues.of(cells)
        made = torch.from_numpy(np.expm1(cells.X.toarray()) if scale == "log" else cells.X.toarray())
        assert conditional.as_seen(made, values).numpy() == pytest.approx(values.X, rel=1e-4, abs=1e-5)
        sampler = nn.Linear(1, 1)  # a module that makes the same cells whatever it is told
        sampler.draw = lambda types, size, made=made: made
        drawn = conditional.draw_sized(sampler, torch.zeros(72, dtype=int), values, np.random.default_rng(0))
        assert drawn == pytest.approx(cells.X.toarray(), rel=1e-4, abs=1e-5)


def test_like_gives_cells_of_the_types_asked_for(toy):
    values, codes = LogValues.of(toy), torch.tensor([2, 0, 1, 1, 2])
    rows = values.like(codes, np.random.default_rng(0))
    assert list(values.types[rows]) == ["T", "B", "NK", "NK", "T"]


# ---- scgan


def test_the_library_size_layer_brings_cells_to_the_drawn_size():
    torch.manual_seed(0)
    size = torch.tensor([[1.0], [250.0], [31_000.0]])
    assert scgan_networks.to_library_size(torch.rand(3, 7), size).sum(1).numpy() == pytest.approx([1, 250, 31_000])
    assert not scgan_networks.to_library_size(torch.zeros(3, 7), size).any()
    generator = scgan_networks.Generator(7, 2, ScganParams(latent_dim=5, generator_hidden=(9, 8)))
    made = generator(torch.randn(3, 5), torch.tensor([0, 1, 1]), size)
    assert made.sum(1).detach().numpy() == pytest.approx([1, 250, 31_000], rel=1e-4) and (made >= 0).all()


def test_cells_have_the_library_sizes_of_their_type_up_to_rounding(toy):
    depth = np.where(toy.obs["cell_type"] == "NK", 100, 1)
    toy.X = sparse.csr_matrix(toy.X.multiply(depth[:, None]), dtype=np.float32)
    model = scgan.fit(toy, small("scgan"), seed=0, device="cpu")
    for name in TOY_SIZES:
        drawn = np.asarray(scgan.sample(model, 60, cell_type=name, seed=1).X.sum(1)).ravel()
        real = np.unique(np.asarray(toy[toy.obs["cell_type"] == name].X.sum(1)).ravel())
        assert np.abs(drawn[:, None] - real).min(1).max() < 12  # of 20 genes rounded


def test_the_gradient_penalty_is_that_of_hand_computation():
    torch.manual_seed(0)
    real, fake, types = torch.randn(64, 4), torch.randn(64, 4), torch.zeros(64, dtype=torch.long)
    w = torch.tensor([3.0, 0.0, 4.0, 0.0])
    assert float(scgan_networks.gradient_penalty(lambda x, t: x @ w, real, fake, types)) == pytest.approx(16)
    # slope of |x|^2 / 2 is x, here a point between 0 and a unit vector's triple: E (3u - 1)^2 of u uniform is 1
    seen = []

    def critic(x, t):
        seen.append(x)
        return 0.5 * x.square().sum(1)

    n = 20_000
    unit = torch.tensor([[3.0, 0.0]]).repeat(n, 1)
    penalty = scgan_networks.gradient_penalty(critic, torch.zeros(n, 2), unit, types)
    assert float(penalty) == pytest.approx(1, abs=0.04)
    assert 0 <= float(seen[0][:, 0].min()) < 0.01 and 2.99 < float(seen[0][:, 0].max()) <= 3


def test_types_normalise_and_project_each_in_their_own_way():
    torch.manual_seed(0)
    layer = scgan_networks.TypeBatchNorm(3, 2)
    layer.scale.weight.data[1], layer.shift.weight.data[1] = 5.0, -2.0
    h, types = torch.randn(50, 3) * 4 + 7, torch.arange(50) % 2
    plain = nn.BatchNorm1d(3, affine=False)(h)
    assert torch.allclose(layer(h, types), torch.where((types == 1)[:, None], 5 * plain - 2, plain))
    critic = scgan_networks.Critic(3, 2, ScganParams(critic_hidden=(6, 4)))
    assert torch.equal(critic(h, types), critic(h, 1 - types))  # types start without a say
    critic.types.weight.data.normal_()
    projection = (critic.body(h) * critic.types(types)).sum(1)
    assert torch.allclose(critic(h, types), critic.verdict(critic.body(h)).squeeze(1) + projection)


# ---- scvae


def test_log_likelihoods_of_counts_are_those_of_scipy():
    mean, theta, dropout = np.array([0.02, 1.0, 37.0]), np.array([0.3, 2.0, 500.0]), np.array([-3.0, 0.4, 2.0])
    x = np.arange(0, 60)[:, None]
    expected = nbinom.logpmf(x, theta, theta / (theta + mean))
    as_tensors = [torch.from_numpy(a) for a in (x.astype(float), np.log(mean), np.log(theta))]
    assert nb_log_likelihood(*as_tensors).numpy() == pytest.approx(expected)
    share = 1 / (1 + np.exp(-dropout))
    inflated = np.log(share * (x == 0) + (1 - share) * np.exp(expected))
    found = zinb_log_likelihood(*as_tensors, torch.from_numpy(dropout))
    assert found.numpy() == pytest.approx(inflated)


def test_the_divergence_is_that_of_pytorch():
    torch.manual_seed(0)
    m, v, m0, v0 = torch.randn(4, 6, 3)
    p, q = (torch.distributions.Normal(mean, (0.5 * log).exp()) for mean, log in ((m, v), (m0, v0)))
    assert torch.allclose(normal_kl(m, v, m0, v0), torch.distributions.kl_divergence(p, q).sum(1))


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "normal"])
def test_cells_are_drawn_from_the_distribution_that_is_learnt(likelihood):
    torch.manual_seed(0)
    vae = scvae.Scvae(torch.tensor([-1.0, -2.0, 0.0]), 2, likelihood, ScvaeParams(latent_dim=2, hidden=(4,)))
    vae.decoder[-1].weight.data.normal_(), vae.decoder[-1].bias.data.normal_()
    vae.prior.weight.data[:, 2:] = -30.0  # one latent vector a type
    n, size = 40_000, torch.tensor([[9.0]])
    with torch.no_grad():
        first, spread, *dropout = (p[0].double().numpy() for p in vae._decode(vae.prior.weight[1:2, :2], size))
        drawn = vae.draw(torch.ones(n, dtype=torch.long), size.expand(n, 1)).numpy()
    if likelihood == "normal":
        assert (np.abs(drawn.mean(0) - first) < 4.5 * np.exp(spread) / np.sqrt(n)).all()
        assert drawn.std(0) == pytest.approx(np.exp(spread), rel=0.03)
        return
    assert np.exp(first).sum() == pytest.approx(9)
    lost = 1 / (1 + np.exp(-dropout[0])) if dropout else np.zeros(3)
    theta = np.exp(spread)
    for value in range(6):
        expected = (1 - lost) * nbinom.pmf(value, theta, theta / (theta + np.exp(first))) + lost * (value == 0)
        assert (drawn == value).mean(0) == pytest.approx(expected, abs=4.5 * 0.5 / np.sqrt(n))


def test_counts_are_found_again_and_other_values_rounded(toy):
    assert (scvae.as_counts(LogValues.of(toy)) == toy.X.toarray()).all()
    linear = on_scale(toy, "linear")
    assert (scvae.as_counts(LogValues.of(linear)) == np.rint(linear.X.toarray())).all()


# ---- scdiffusion


@pytest.mark.parametrize(
    "n_steps", sorted({100, 1000} | {p.diffusion_steps for p in BASELINES["scdiffusion"].values()})
)
def test_the_end_of_the_diffusion_is_noise(n_steps):
    kept = (1 - noise_schedule(n_steps)).cumprod(0)
    assert len(kept) == n_steps and kept[-1] < 1e-3 and kept[0] > 0.95 and (kept.diff() < 0).all()


def test_a_thousand_steps_are_those_of_ho_and_a_hundred_as_published_left_signal():
    assert torch.allclose(noise_schedule(1000), torch.linspace(1e-4, 0.02, 1000))
    assert (1 - torch.linspace(1e-4, 0.02, 100)).prod() == pytest.approx(0.36, abs=0.01)


class Exact(nn.Module):
    """The best prediction of noise, or of the component, for a mixture of two Gaussians at -2 and 2."""

    def __init__(self, kept, *, what):
        super().__init__()
        self.kept, self.what = kept, what

    def forward(self, x, t):
        kept = self.kept[t, None]
        variance = kept * 0.25 + 1 - kept
        with torch.enable_grad():
            x = x if x.requires_grad else x.clone().requires_grad_(True)
            logits = torch.cat([-(x - mean * kept.sqrt()).square() / (2 * variance) for mean in (-2.0, 2.0)], dim=1)
            if self.what == "types":
                return logits
            (score,) = torch.autograd.grad(logits.logsumexp(1).sum(), x)
        return -(1 - kept).sqrt() * score


def test_exact_networks_draw_the_component_that_is_asked_for():
    torch.manual_seed(0)
    diffusion = Diffusion(2, ScdiffusionParams(latent_dim=1, diffusion_steps=200, guidance=1.0))
    diffusion.denoiser, diffusion.classifier = Exact(diffusion.kept, what="noise"), Exact(diffusion.kept, what="types")
    for code, mean in ((0, -2), (1, 2)):
        drawn = diffusion(torch.full((4000,), code)).numpy().ravel()
        assert drawn.mean() == pytest.approx(mean, abs=0.05) and drawn.std() == pytest.approx(0.5, rel=0.08)
    diffusion.guidance = 0.0
    drawn = diffusion(torch.zeros(4000, dtype=torch.long)).numpy().ravel()
    assert (drawn > 0).mean() == pytest.approx(0.5, abs=0.04)
    mixture = np.mean([norm.cdf(np.linspace(-4, 4, 9), mean, 0.5) for mean in (-2, 2)], axis=0)
    assert (drawn[:, None] < np.linspace(-4, 4, 9)).mean(0) == pytest.approx(mixture, abs=0.04)


def test_the_denoiser_goes_down_and_up_again():
    net = NoisyNet(5, (16, 8, 4), 5, residual=True)
    assert [layer.out_features for layer in net.layers] == [16, 8, 4, 8, 16]
    x, t = torch.randn(6, 5), torch.arange(6)
    assert net(x, t).shape == (6, 5) and not torch.allclose(net(x, t), net(x, t + 50))
    assert NoisyNet(5, (16, 8), 3, residual=False)(x, t).shape == (6, 3)


# ---- oversampling


def test_oversampling_balances_the_types_and_keeps_validation_apart(toy):
    data = prepare(toy, replace(BASELINES["gan"]["tuned"], validation=0.25), seed=0, device="cpu")
    balanced = oversampling.oversample(data, seed=0)
    types = pd.Series(data.values.types)
    assert set(types[balanced.rows].value_counts()) == {types[data.rows].value_counts().max()}
    assert set(balanced.rows) == set(data.rows)
    assert (balanced.X.numpy() == data.values.X[balanced.rows]).all()
    assert list(np.array(list(TOY_SIZES))[balanced.types]) == list(types[balanced.rows])
    others = types.drop(data.rows)
    assert len(balanced.validation) == 3 * others.value_counts().max()
    validation = {row.tobytes() for row in balanced.validation.numpy()}
    assert validation == {row.tobytes() for row in data.values.X[others.index]}
    assert (oversampling.oversample(data, seed=0).rows == balanced.rows).all()
    rows = np.arange(5)
    assert (oversampling.balance(rows, np.repeat("T", 5), 0) == rows).all()


class First:
    """Says the type by the first gene."""

    def label(self, X):
        return np.array(list(TOY_SIZES))[X[:, 0].astype(int)]


@pytest.mark.parametrize("made", [(0, 1, 2), (0, 2)])
def test_drawing_undoes_the_balance(toy, made):
    values = LogValues.of(on_scale(toy, "scaled"))

    def draw(n):
        return torch.cat([torch.tensor(made)[torch.randint(len(made), (n, 1))], torch.rand(n, 19)], dim=1)

    model = Unconditional(values.memory, SimpleNamespace(draw=draw), pd.DataFrame(), First())
    drawn = oversampling.sample(model, 72, seed=0)
    sizes = drawn.obs["cell_type"].value_counts().to_dict()
    assert drawn.n_obs == 72 and len(np.unique(drawn.X.toarray(), axis=0)) == 72
    if len(made) == 3:
        assert sizes == TOY_SIZES
        assert set(oversampling.sample(model, 9, cell_type="NK", seed=0).obs["cell_type"]) == {"NK"}
    else:  # cells as they come take the place of a type that is never made
        assert sizes["NK"] == 0 and sizes["B"] >= 24 and sizes["T"] >= 40
        with pytest.raises(UserError, match="made 0 of 9 cells of type NK"):
            oversampling.sample(model, 9, cell_type="NK", seed=0)
