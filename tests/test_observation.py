"""Observation models: their likelihoods are scipy's, their draws have the moments of theory, gradients pass through."""

import numpy as np
import pytest
import torch
from scipy import stats

from data_generation.observation import Gaussian, HurdleGamma, NegativeBinomial

N_GENES, N_TYPES = 4, 2


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def make(kind):
    """A model whose parameters all differ between genes and types."""
    table = torch.randn(N_TYPES, N_GENES, generator=random(1))
    if kind is NegativeBinomial:
        model = NegativeBinomial(table)
        model.log_dispersion.data = torch.tensor([-1.0, 0.0, 1.0, 3.0])
    elif kind is HurdleGamma:
        model = HurdleGamma(table, torch.randn(N_TYPES, N_GENES, generator=random(2)) / 2)
        model.raw_shape.data = torch.tensor([0.0, 1.0, 2.0, 4.0])
    else:
        model = Gaussian(table)
        model.log_sd.data = torch.tensor([-1.0, 0.0, 0.5, 1.0])
    return model


@pytest.mark.parametrize("kind", [NegativeBinomial, HurdleGamma, Gaussian])
def test_parameters_lie_where_the_cells_do(kind):
    """On a GPU, too: `meta` is a device that every machine has."""
    table = torch.randn(N_TYPES, N_GENES, device="meta")
    model = HurdleGamma(table, table) if kind is HurdleGamma else kind(table)
    assert {x.device.type for x in model.state_dict().values()} == {"meta"}


def conditions(model, n_rows, size=4.0):
    """Decoder output, types and log library sizes, different in each row."""
    decoded = torch.randn(n_rows, model.outputs * N_GENES, generator=random(3)) / 2
    types = torch.arange(n_rows) % N_TYPES
    sizes = size + torch.randn(n_rows, 1, generator=random(4)) / 4
    return decoded, types, sizes


def theory(model, decoded, types, size):
    """Mean and variance of each value, in double precision."""
    decoded, size = decoded.double(), size.double()
    if isinstance(model, NegativeBinomial):
        mean = torch.softmax(decoded + model.log_profile[types].double(), 1) * size.exp()
        return mean, mean + mean.square() / model.dispersion.double()
    if isinstance(model, HurdleGamma):
        detection, level = decoded.chunk(2, 1)
        p = (detection + model.detection_logit[types].double()).sigmoid()
        level = (level + model.log_level[types].double()).exp()
        return p * level, p * level.square() * (1 + 1 / model.shape.double()) - (p * level).square()
    mean = decoded + model.mean[types].double()
    return mean, (2 * model.log_sd.double()).exp().expand_as(mean)


KINDS = [NegativeBinomial, HurdleGamma, Gaussian]


# ---------------------------------------------------------------------------------------------- likelihood


def test_negative_binomial_is_scipys():
    model = make(NegativeBinomial)
    decoded, types, size = conditions(model, 30)
    x = torch.poisson(torch.full((30, N_GENES), 3.0), generator=random())
    x[0], x[1] = 0, 2000
    mean, _ = theory(model, decoded, types, size)
    theta = model.dispersion.detach().double()
    expected = stats.nbinom.logpmf(x, theta, theta / (theta + mean.detach())).sum(1)
    ours = model.log_likelihood(x, decoded, types, size) - torch.lgamma(x + 1).sum(1)
    np.testing.assert_allclose(ours.detach(), expected, rtol=2e-5, atol=1e-3)


def test_hurdle_gamma_is_scipys():
    model = make(HurdleGamma)
    decoded, types, size = conditions(model, 30)
    x = torch.rand(30, N_GENES, generator=random()) * 5 * (torch.rand(30, N_GENES, generator=random(1)) < 0.6)
    x[0] = 0
    detection, level = decoded.double().chunk(2, 1)
    p = (detection + model.detection_logit[types]).sigmoid()
    level, k = (level + model.log_level[types]).exp(), model.shape.detach().double()
    amount = stats.gamma.logpdf(x.numpy(), k.numpy(), scale=(level / k).numpy())
    expected = torch.where(x > 0, p.log() + torch.from_numpy(amount), (1 - p).log()).sum(1)
    np.testing.assert_allclose(model.log_likelihood(x, decoded, types, size).detach(), expected, rtol=2e-5, atol=1e-4)


def test_gaussian_is_scipys():
    model = make(Gaussian)
    decoded, types, size = conditions(model, 30)
    x = 3 * torch.randn(30, N_GENES, generator=random())
    mean, variance = theory(model, decoded, types, size)
    expected = stats.norm.logpdf(x, mean, variance.detach().sqrt()).sum(1) + N_GENES * np.log(2 * np.pi) / 2
    np.testing.assert_allclose(model.log_likelihood(x, decoded, types, size).detach(), expected, rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_likelihood_has_finite_gradients(kind):
    model = make(kind)
    decoded, types, size = conditions(model, 6)
    decoded.requires_grad_()
    x = torch.zeros(6, N_GENES)
    x[3:] = torch.tensor([1.0, 2.0, 3.0, 50.0])
    model.log_likelihood(x, decoded, types, size).sum().backward()
    for tensor in (decoded, *model.parameters()):
        assert tensor.grad.isfinite().all() and tensor.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_likelihood_finds_the_true_dispersion(kind):
    """The parameter that draws were made with is the most likely one."""
    model = make(kind)
    (parameter,) = model.parameters()
    n_rows = 20_000
    decoded, types, size = (part[:1].expand(n_rows, *part.shape[1:]) for part in conditions(model, 2))
    x = model.draw(decoded, types, size, random()).detach()
    truth = parameter.detach().clone()

    def likelihood(shift):
        parameter.data = truth + shift
        return float(model.log_likelihood(x, decoded, types, size).detach().double().mean())

    assert likelihood(0.0) > max(likelihood(-0.3), likelihood(0.3))


# ---------------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize("genes", [slice(None), torch.tensor([2, 0])], ids=["all", "some"])
@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_the_mean_and_variance_of_theory(kind, genes):
    model = make(kind)
    decoded, types, size = conditions(model, 2)
    n_draws = 40_000
    each = torch.arange(2).repeat_interleave(n_draws)
    drawn = model.draw(decoded[each], types[each], size[each], random(), genes).detach().double().view(2, n_draws, -1)
    mean, variance = (part.detach()[:, genes] for part in theory(model, decoded, types, size))
    standard_error = (variance / n_draws).sqrt()
    assert ((drawn.mean(1) - mean).abs() < 4 * standard_error).all()
    # the standard error of the variance, from the draws' own fourth moment
    centred = drawn - mean[:, None]
    standard_error = ((centred.pow(4).mean(1) - variance.square()).clamp_min(0) / n_draws).sqrt()
    assert ((centred.square().mean(1) - variance).abs() < 5 * standard_error).all()
    assert (standard_error < 0.2 * variance).all()  # otherwise the line above says nothing


@pytest.mark.parametrize("size", [1.0, 6.0, 11.0])
def test_counts_are_whole(size):
    model = make(NegativeBinomial)
    decoded, types, size = conditions(model, 2000, size)
    x = model.draw(decoded, types, size, random())
    assert torch.equal(x, x.round()) and (x >= 0).all() and x.max() > 0
    mean, _ = theory(model, decoded, types, size)
    theta = model.dispersion.double()
    p_zero = (theta / (theta + mean)).pow(theta)
    tolerance = 4 * (p_zero * (1 - p_zero)).sum(0).sqrt()
    assert (((x == 0).sum(0) - p_zero.sum(0)).abs() <= tolerance + 1).all()


def test_amounts_are_not_negative_and_zeros_are_exact():
    model = make(HurdleGamma)
    decoded, types, size = conditions(model, 20_000)
    x = model.draw(decoded, types, size, random())
    detection = (decoded.chunk(2, 1)[0] + model.detection_logit[types]).sigmoid()
    assert (x >= 0).all() and x.isfinite().all()
    tolerance = 4 * (detection * (1 - detection)).sum(0).sqrt()
    # a large shape: nothing that was detected can vanish in rounding
    assert ((x > 0).sum(0) - detection.sum(0))[1:].abs().lt(tolerance[1:]).all()


def test_scaled_values_have_both_signs():
    model = make(Gaussian)
    x = model.draw(*conditions(model, 200), random())
    assert (x < 0).any() and (x > 0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_a_draw_is_the_means(kind):
    model = make(kind)
    decoded, types, size = conditions(model, 5)
    weight = torch.randn(5, N_GENES, generator=random(9))
    decoded.requires_grad_()
    drawn = (model.draw(decoded, types, size, random()) * weight).sum()
    (through_draw,) = torch.autograd.grad(drawn, decoded)
    (through_mean,) = torch.autograd.grad((theory(model, decoded, types, size)[0] * weight).sum(), decoded)
    torch.testing.assert_close(through_draw, through_mean, rtol=1e-4, atol=1e-5)
    assert through_draw.abs().sum() > 0
    for parameter in model.parameters():  # dispersions are learnt from the likelihood alone
        drawn = model.draw(decoded, types, size, random()).sum()
        (gradient,) = torch.autograd.grad(drawn, parameter, allow_unused=True)
        assert gradient is None or not gradient.any()


@pytest.mark.parametrize("kind", KINDS)
def test_draws_depend_on_rng_alone(kind):
    model = make(kind)
    parts = conditions(model, 20)
    before = torch.get_rng_state()
    a = model.draw(*parts, random(5))
    torch.manual_seed(1)
    assert torch.equal(a, model.draw(*parts, random(5)))
    assert not torch.equal(a, model.draw(*parts, random(6)))
    torch.set_rng_state(before)
    model.draw(*parts, random(5))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kind", KINDS)
def test_types_differ(kind):
    model = make(kind)
    decoded, types, size = conditions(model, 8)
    x = torch.ones(8, N_GENES)
    here, there = (model.log_likelihood(x, decoded, t, size) for t in (types, 1 - types))
    assert not torch.isclose(here, there).any()


def test_library_size_scales_counts_only():
    for kind in KINDS:
        model = make(kind)
        decoded, types, size = conditions(model, 8)
        small, large = (model.log_likelihood(torch.ones(8, N_GENES), decoded, types, s) for s in (size, size + 1))
        assert torch.equal(small, large) == (kind is not NegativeBinomial)
