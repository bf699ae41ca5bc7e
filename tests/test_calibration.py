"""Calibration: marginals become those of the cells, ranks stay, and types with few cells lean on the network."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from data_generation.calibration import (
    Calibration,
    interpolate,
    match_detection,
    normal_score,
    quantile_levels,
    weighted_quantiles,
)

OPEN = torch.tensor([torch.inf])  # no ceiling


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def hurdle(n_cells, detected, level, spread=0.5, *, seed, floor=0.0):
    """One gene with an atom at the floor and log-normal values above."""
    rng = np.random.default_rng(seed)
    values = floor + rng.lognormal(level, spread, n_cells)
    return torch.tensor(np.where(rng.random(n_cells) < detected, values, floor), dtype=torch.float32)[:, None]


def ks(a, b):
    return ks_2samp(np.asarray(a).ravel(), np.asarray(b).ravel(), method="asymp").statistic


# ---------------------------------------------------------------------------------------------- quantiles


def test_interpolation_is_numpys():
    rng = np.random.default_rng(0)
    x, y = np.sort(rng.normal(size=(5, 9)), axis=1), rng.normal(size=(5, 9))
    at = np.concatenate([rng.normal(size=(5, 40)) * 2, x, [[-99.0, 99.0]] * 5], axis=1)
    expected = [np.interp(*row) for row in zip(at, x, y, strict=True)]
    ours = interpolate(*(torch.tensor(part) for part in (at, x, y)))
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)


def test_interpolation_stands_equal_knots():
    x = torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0, 2.0]])
    y = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]])
    at = torch.tensor([[-1.0, 0.0, 0.5, 1.0, 1.5, 3.0]])
    np.testing.assert_allclose(interpolate(at, x, y), [[0, 0, 1.5, 2, 4.5, 5]])


def test_levels_rise_from_0_to_1_and_are_denser_in_the_tails():
    levels = quantile_levels()
    steps = levels.diff()
    assert levels[0] == 0 and levels[-1] == 1 and (steps > 0).all()
    assert steps[0] < steps[1] < steps[len(steps) // 2] > steps[-2] > steps[-1]
    torch.testing.assert_close(levels + levels.flip(0), torch.ones(len(levels)))


@pytest.mark.parametrize("n_values", [2, 3, 50])
def test_equal_weights_are_numpys_hazen_quantiles(n_values):
    values = torch.tensor(np.random.default_rng(0).normal(size=(4, n_values)))
    levels = quantile_levels().double()
    expected = np.quantile(values, levels, axis=1, method="hazen").T
    ours = weighted_quantiles(values, torch.ones_like(values) * 0.3, levels)
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_a_weight_counts_as_repetition():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=60), rng.integers(0, 6, 60)
    repeated = np.repeat(values, weights)
    levels = torch.linspace(0, 1, 101, dtype=torch.float64)
    ours = weighted_quantiles(torch.tensor(values)[None], torch.tensor(weights)[None].double(), levels)[0].numpy()
    # both put each value at the middle of its mass; between values they differ by less than the next ones
    ordered = np.argsort(values[weights > 0])
    ordered, mass = values[weights > 0][ordered], weights[weights > 0][ordered]
    middle = (mass.cumsum() - mass / 2) / mass.sum()
    np.testing.assert_allclose(ours, np.interp(levels, middle, ordered))
    lower, upper = (np.quantile(repeated, (levels + s).clip(0, 1), method="hazen") for s in (-0.04, 0.04))
    inside = (levels > 0.04) & (levels < 0.96)
    assert ((lower <= ours) & (ours <= upper))[inside].all()


def test_weights_of_zero_do_not_count():
    values = torch.tensor([[5.0, 1.0, 2.0, 2.2, 3.0, -9.0]])
    weights = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0, 0.0]])
    levels = quantile_levels()
    expected = np.quantile([1, 2, 3], levels.clamp(0, 1), method="hazen")
    np.testing.assert_allclose(weighted_quantiles(values, weights, levels)[0], expected, rtol=1e-5)


# ---------------------------------------------------------------------------------------------- marginals


@pytest.mark.parametrize("floor", [0.0, -1.5])
@pytest.mark.parametrize(("detected", "level"), [(0.3, 1.0), (0.9, 1.0), (0.6, -0.5), (0.05, 0.0)])
def test_a_wrong_generator_gets_the_cells_marginal(detected, level, floor):
    real = hurdle(4000, detected, level, 0.4, seed=1, floor=floor)
    wrong = hurdle(4000, 0.6, 0.0, 0.8, seed=2, floor=floor)
    calibration = Calibration.fit(real, wrong, torch.tensor([floor]), OPEN, prior=5.0)
    fresh = hurdle(20_000, 0.6, 0.0, 0.8, seed=3, floor=floor)
    calibrated = calibration.apply(fresh, random())
    assert ks(fresh, real) > 0.2
    assert ks(calibrated, real) < 0.03
    atom = (real == floor).float().mean()
    assert (calibrated == floor).float().mean() == pytest.approx(float(atom), abs=0.02)
    assert (calibrated >= floor).all()


def test_scaled_values_without_an_atom():
    rng = np.random.default_rng(0)
    real = torch.tensor(rng.normal(0.5, 2.0, (3000, 1)), dtype=torch.float32)
    wrong = torch.tensor(rng.normal(0.0, 1.0, (9000, 1)), dtype=torch.float32)
    floor = real.min(0).values.clamp_max(0)
    calibration = Calibration.fit(real, wrong[:4000], floor, OPEN, prior=5.0)
    calibrated = calibration.apply(wrong[4000:], random())
    assert ks(calibrated, real) < 0.04
    assert calibrated.min() < -2 and (calibrated >= floor).all()


def test_ranks_stay():
    real, wrong = hurdle(500, 0.5, 1.0, seed=1), hurdle(500, 0.8, 0.0, seed=2)
    calibration = Calibration.fit(real, wrong, torch.zeros(1), OPEN, prior=5.0)
    values = torch.linspace(0.0, float(wrong.max()), 400)[:, None]
    calibrated = calibration.apply(values, random())
    assert (calibrated.diff(dim=0)[1:] >= 0).all()  # within the atom ranks are random
    assert (calibrated > 0).sum() > 100 and (calibrated[1:] == 0).sum() > 0


def test_a_perfect_generator_is_left_as_it_is():
    sample = hurdle(2000, 0.6, 0.5, seed=1)
    calibration = Calibration.fit(sample, sample.clone(), torch.zeros(1), OPEN, prior=5.0)
    again = calibration.apply(sample, random())
    flipped = (again == 0) != (sample == 0)  # at the edge of the atom
    assert flipped.sum() <= 4
    moved = (again - sample)[~flipped].abs()  # most in the tails, where values are far apart
    assert moved.mean() < 0.01 and moved.max() < 0.1 * sample.max()


def test_one_cell_at_a_time_has_the_same_distribution_as_many():
    real, wrong = hurdle(800, 0.4, 1.0, seed=1), hurdle(20_000, 0.7, 0.0, seed=2)
    calibration = Calibration.fit(real, wrong, torch.zeros(1), OPEN, prior=5.0)
    fresh = hurdle(3000, 0.7, 0.0, seed=3)
    rng = random()
    together = calibration.apply(fresh, random(1))
    alone = torch.cat([calibration.apply(cell[None], rng) for cell in fresh])
    assert ks(alone, together) < 0.03
    above = (fresh > 0).squeeze(1)  # there nothing is random but how evenly the cells of a batch are spread
    assert (alone[above] - together[above]).abs().mean() < 0.05 * together[above].std()
    again = torch.cat([calibration.apply(cell[None], random(9)) for cell in fresh[above][:50]])
    assert torch.equal(again, alone[above][:50])


def test_with_all_trust_in_the_network_its_marginals_stay():
    real, generated = hurdle(300, 0.2, 2.0, seed=1), hurdle(3000, 0.7, 0.0, seed=2)
    calibration = Calibration.fit(real, generated, torch.zeros(1), OPEN, prior=1e9)
    fresh = hurdle(5000, 0.7, 0.0, seed=3)
    calibrated = calibration.apply(fresh, random())
    assert ks(calibrated, generated) < 0.01 and ks(calibrated, real) > 0.3
    moved = (calibrated - fresh).abs().mean()  # by as much as two samples of the network differ
    assert moved < 0.05 * fresh.std()


def test_prior_moves_from_the_cells_to_the_network():
    real, generated = hurdle(20, 0.9, 2.0, seed=1), hurdle(2000, 0.3, 0.0, seed=2)
    fresh = hurdle(5000, 0.3, 0.0, seed=3)
    means, atoms = [], []
    for prior in (0.0, 5.0, 20.0, 100.0):
        calibrated = Calibration.fit(real, generated, torch.zeros(1), OPEN, prior=prior).apply(fresh, random())
        means.append(float(calibrated.mean()))
        atoms.append(float((calibrated == 0).float().mean()))
    assert means == sorted(means, reverse=True) and means[0] > 2 * means[-1]
    # the posterior mean of the atom: cells count one each, the network as many as the prior
    real_atom, network_atom = ((part == 0).float().mean().item() for part in (real, generated))
    expected = [(20 * real_atom + prior * network_atom) / (20 + prior) for prior in (0.0, 5.0, 20.0, 100.0)]
    np.testing.assert_allclose(atoms, expected, atol=0.03)


@pytest.mark.parametrize("n_cells", [1, 2, 3])
def test_few_cells_lie_between_the_two_sources(n_cells):
    real, generated = hurdle(n_cells, 1.0, 2.0, seed=1), hurdle(2000, 0.5, 0.0, seed=2)
    fresh = hurdle(5000, 0.5, 0.0, seed=3)
    calibrated = Calibration.fit(real, generated, torch.zeros(1), OPEN, prior=5.0).apply(fresh, random())
    assert calibrated.isfinite().all() and (calibrated >= 0).all()
    assert calibrated.max() <= max(real.max(), generated.max())
    assert fresh.mean() < calibrated.mean() < real.mean()
    expected = 0.5 * 5 / (5 + n_cells)
    assert (calibrated == 0).float().mean() == pytest.approx(expected, abs=0.03)
    # nothing lies between the atom and the lowest value of either, nor is a cell's value handed on to many
    assert calibrated[calibrated > 0].min() >= min(real.min(), generated[generated > 0].min())
    assert all((calibrated == value).sum() < 0.1 * len(calibrated) for value in real)


@pytest.mark.parametrize("prior", [0.0, 5.0])
def test_genes_that_are_zero_stay_zero(prior):
    real, generated = torch.zeros(50, 3), torch.zeros(200, 3)
    real[:, 1], generated[:, 1] = 1.0, 2.0  # never zero
    calibration = Calibration.fit(real, generated, torch.zeros(3), OPEN.expand(3), prior=prior)
    calibrated = calibration.apply(generated, random())
    assert not calibrated[:, [0, 2]].any()
    assert calibrated.isfinite().all() and (calibrated[:, 1] > 0).all()


def test_cells_drawn_together_are_spread_evenly_over_the_target():
    """Of n cells one has its rank in each n-th: the gap to the target is 1 / n, however odd the batch."""
    real, generated = hurdle(4000, 0.9, 1.0, seed=1), hurdle(4000, 0.5, 0.0, seed=2)
    calibration = Calibration.fit(real, generated, torch.zeros(1), OPEN, prior=0.0)
    odd = hurdle(200, 1.0, 1.0, seed=3)  # all of them above what the network usually makes
    calibrated = calibration.apply(odd, random())
    assert ks(calibrated, real) < 0.02
    assert (calibrated[odd.flatten().argsort()].diff(dim=0) >= 0).float().mean() > 0.95
    one = calibration.apply(odd[:1], random())
    assert torch.equal(one, calibration.apply(odd[:1], random(4)))


def test_without_a_prior_a_gene_the_cells_lack_vanishes():
    real, generated = torch.zeros(50, 1), hurdle(500, 0.5, 0.0, seed=1)
    calibration = Calibration.fit(real, generated, torch.zeros(1), OPEN, prior=0.0)
    assert not calibration.apply(hurdle(500, 0.5, 1.0, seed=2), random()).any()


def test_a_gene_the_network_lacks_appears():
    real, generated = hurdle(500, 0.5, 1.0, seed=1), torch.zeros(500, 1)
    calibration = Calibration.fit(real, generated, torch.zeros(1), OPEN, prior=5.0)
    calibrated = calibration.apply(torch.zeros(5000, 1), random())
    assert ks(calibrated, real) < 0.05


def test_genes_are_calibrated_each_for_itself(monkeypatch):
    real = torch.cat([hurdle(300, 0.1 * g, 0.2 * g, seed=g) for g in range(1, 8)], 1)
    wrong = torch.cat([hurdle(300, 0.5, 0.0, seed=g + 50) for g in range(1, 8)], 1)
    whole = Calibration.fit(real, wrong, torch.zeros(7), OPEN.expand(7), prior=5.0)
    alone = Calibration.fit(real[:, 4:5], wrong[:, 4:5], torch.zeros(1), OPEN, prior=5.0)
    for name in ("atom_from", "atom_to", "quantiles_from", "quantiles_to"):
        torch.testing.assert_close(getattr(whole, name)[4:5], getattr(alone, name))
    monkeypatch.setattr("data_generation.calibration.SORTED_AT_ONCE", 3)  # memory is bounded, results are the same
    parts = Calibration.fit(real, wrong, torch.zeros(7), OPEN.expand(7), prior=5.0)
    for name in vars(whole):
        torch.testing.assert_close(getattr(whole, name), getattr(parts, name))
    calibrated = whole.apply(wrong, random())
    assert calibrated.shape == wrong.shape
    assert max(ks(calibrated[:, g], real[:, g]) for g in range(7)) < 0.12


def test_nothing_beyond_the_largest_cell_of_any_type():
    """A type of three cells leans on the network, whose tail must not come along."""
    real = torch.tensor([[1.0], [2.0], [3.0]])
    generated = torch.empty(2000, 1).log_normal_(0.0, 3.0, generator=random())
    ceiling = torch.tensor([10.0])
    assert (generated > ceiling).any()
    drawn = Calibration.fit(real, generated, torch.zeros(1), ceiling, prior=5.0).apply(generated, random())
    assert 3.0 < drawn.max() <= 10.0


# ---------------------------------------------------------------------------------------------- genes in common


def of_atoms(atoms):
    """A calibration to detection in so many cells, (n_genes,) from 0 to 1."""
    quantiles = quantile_levels().expand(len(atoms), -1)
    return Calibration(torch.zeros_like(atoms), atoms, atoms, quantiles, quantiles, torch.tensor(0.0))


@pytest.mark.parametrize("amount", [0.0, 0.2, 0.6])
def test_what_genes_have_in_common_is_found(amount):
    rng, n_genes, n_cells = random(3), 300, 1500
    atoms = torch.linspace(0.2, 0.9, n_genes)
    own, common = torch.randn(n_genes, n_cells, generator=rng), torch.randn(n_cells, generator=rng)
    bound = normal_score(atoms)[:, None]
    detected = (own + amount * common >= bound * (1 + amount**2) ** 0.5).sum(0).double()
    ranks = torch.rand(n_genes, n_cells, generator=rng)
    # the second type has one real cell, the third one generated cell: neither scatters
    maps = [of_atoms(atoms)] * 3
    found = match_detection(maps, [ranks, ranks, ranks[:, :1]], [detected, detected[:1], detected[:40]], rng)
    assert [float(map_.in_common) for map_ in found] == [pytest.approx(amount, abs=0.06)] * 3


def test_one_cell_a_type_says_nothing_of_what_genes_have_in_common():
    ranks, number = torch.rand(5, 10, generator=random()), torch.ones(1).double()
    found = match_detection([of_atoms(torch.full((5,), 0.5))] * 2, [ranks] * 2, [number] * 2, random())
    assert [map_.in_common for map_ in found] == [0.0, 0.0]


def test_marginals_stay_whatever_genes_have_in_common():
    real, generated = torch.rand(50, 40, generator=random(1)) * 3, torch.rand(2000, 40, generator=random(2)) * 3
    real, generated = (torch.where(x > 1, x, 0.0) for x in (real, generated))
    floor, ceiling = torch.zeros(40), real.amax(0)
    alone = Calibration.fit(real, generated, floor, ceiling, prior=1.0)
    shared = replace(alone, in_common=torch.tensor(1.0))
    a, b = (map_.apply(generated, random(4)) for map_ in (alone, shared))
    torch.testing.assert_close((a > 0).float().mean(0), (b > 0).float().mean(0), atol=0.002, rtol=0)
    torch.testing.assert_close(a.mean(0), b.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(a.std(0), b.std(0), atol=0.02, rtol=0)
    assert (b > 0).sum(1).float().std() > 3 * (a > 0).sum(1).float().std()
