"""Privacy metrics against theory, brute force and scikit-learn: copies are caught, new draws are not."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score

from benchmarking.controls import bootstrap, copula, real_half
from common.data import CellSource, load_cells, select_genes, split_cells
from common.metrics.fidelity import compare_on, pooled_pcs
from common.metrics.privacy import copies, exposure, nearness

PBMC = Path(__file__).resolve().parents[2] / "shared" / "data" / "pbmc3k.h5ad"
ALL, SEEDS, OTHERS, HELD = "all cells", "seed cells", "other training cells", "held-out cells"


def draw(seed: int, n: int = 1000, n_pcs: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, n_pcs))


def is_central(cells: np.ndarray, share: float = 0.1) -> np.ndarray:
    radius = np.linalg.norm(cells, axis=1)
    return radius < np.quantile(radius, share)


def test_everything_is_what_brute_force_says():
    training, held, synthetic = draw(0, 90), draw(1, 90), draw(2, 70)
    is_seed = is_central(training, 0.3)
    found = nearness(training, held, synthetic, seed=0) | exposure(training, held, synthetic, is_seed=is_seed, seed=0)

    to_training, to_held = cdist(synthetic, training).min(1), cdist(synthetic, held).min(1)
    near = np.quantile(cdist(held, training).min(1), 0.01)
    assert found["nearer_to_training", ALL] == pytest.approx((to_training < to_held).mean())
    assert found["dcr_ratio", ALL] == pytest.approx(np.median(to_training) / np.median(to_held))
    assert found["near_copies", ALL] == pytest.approx((to_training < near).mean())

    real = np.concatenate([training, held])
    among = cdist(real, real)
    np.fill_diagonal(among, np.inf)
    to_real = among.min(1)
    unused, unused_relative = cdist(held, synthetic).min(1), cdist(held, synthetic).min(1) / to_real[90:]
    for group, rows in {ALL: slice(None), SEEDS: is_seed, OTHERS: ~is_seed}.items():
        mine = cdist(training[rows], synthetic).min(1)
        relative = mine / to_real[:90][rows]
        truth = np.repeat([1, 0], [len(mine), len(held)])
        assert found["record_distance", group] == pytest.approx(np.median(mine))
        assert found["record_ratio", group] == pytest.approx(np.median(mine) / np.median(unused))
        assert found["record_near_copies", group] == pytest.approx((mine < near).mean())
        assert found["attack_auc", group] == pytest.approx(roc_auc_score(truth, -np.r_[mine, unused]))
        assert found["calibrated_auc", group] == pytest.approx(roc_auc_score(truth, -np.r_[relative, unused_relative]))
    assert found["record_distance", HELD] == pytest.approx(np.median(unused))
    assert found["record_ratio", HELD] == 1
    assert {group for _, group in exposure(training, held, synthetic, is_seed=None, seed=0)} == {ALL, HELD}


def test_new_draws_give_nothing_away():
    found = [
        nearness(a, b, c, seed=0) | exposure(a, b, c, is_seed=None, seed=0)
        for a, b, c in ([draw(10 * i + j) for j in range(3)] for i in range(16))
    ]
    mean = {key: np.mean([scores[key] for scores in found]) for key in found[0]}
    assert mean["nearer_to_training", ALL] == pytest.approx(0.5, abs=0.02)
    assert mean["dcr_ratio", ALL] == pytest.approx(1, abs=0.03)
    assert mean["record_ratio", ALL] == pytest.approx(1, abs=0.03)
    assert mean["near_copies", ALL] == pytest.approx(0.01, abs=0.005)
    for group in (ALL, HELD):
        assert mean["record_near_copies", group] == pytest.approx(0.01, abs=0.005)
        assert mean["attack_auc", group] == pytest.approx(0.5, abs=0.02)
        assert mean["calibrated_auc", group] == pytest.approx(0.5, abs=0.02)


def test_small_types_make_no_attack_look_worse_than_chance():
    """A held-out cell has one other held-out cell of its type less than a training cell has."""
    types = np.repeat(np.arange(6), [1, 2, 3, 3, 4, 6])
    rng, found = np.random.default_rng(0), []
    for _ in range(150):
        centres = 6 * rng.standard_normal((6, 5))
        a, b, c = (centres[types] + rng.standard_normal((len(types), 5)) for _ in range(3))
        found.append(exposure(a, b, c, is_seed=None, seed=0)["calibrated_auc", ALL])
    assert np.mean(found) == pytest.approx(0.5, abs=0.02)


def test_a_bootstrap_is_caught_by_every_measure():
    """It shows 1 - 1/e of the records; an attack finds these for sure and guesses the others."""
    training, held = draw(0), draw(1)
    synthetic = training[np.random.default_rng(2).integers(1000, size=1000)]
    found = nearness(training, held, synthetic, seed=0) | exposure(training, held, synthetic, is_seed=None, seed=0)
    shown = 1 - np.exp(-1)
    assert found["nearer_to_training", ALL] == found["near_copies", ALL] == 1
    assert found["dcr_ratio", ALL] == pytest.approx(0, abs=1e-5)
    assert found["record_ratio", ALL] == pytest.approx(0, abs=1e-5)
    assert found["record_near_copies", ALL] == pytest.approx(shown, abs=0.04)
    for attack in ("attack_auc", "calibrated_auc"):
        assert found[attack, ALL] == pytest.approx(shown + (1 - shown) / 2, abs=0.03)
        assert found[attack, HELD] == pytest.approx(0.5, abs=0.05)
    assert found["record_near_copies", HELD] < 0.03
    assert copies(training, synthetic) == 1 and copies(held, synthetic) == 0


def test_sides_of_different_size_are_made_equal():
    for sizes in ((3000, 600), (600, 3000)):
        training, held, synthetic = (draw(i, n) for i, n in enumerate((*sizes, 1000)))
        found = nearness(training, held, synthetic, seed=0)
        assert found["nearer_to_training", ALL] == pytest.approx(0.5, abs=0.05)
        assert found["dcr_ratio", ALL] == pytest.approx(1, abs=0.05)
        assert abs((cdist(synthetic, training).min(1) < cdist(synthetic, held).min(1)).mean() - 0.5) > 0.2
        assert found == nearness(training, held, synthetic, seed=0)


def test_ties_count_half():
    grid = np.arange(20.0)[:, None]
    found = nearness(grid, grid, grid + 0.25, seed=0)
    assert found["nearer_to_training", ALL] == 0.5
    assert found["dcr_ratio", ALL] == 1
    assert np.isnan(nearness(grid, grid, grid, seed=0)["dcr_ratio", ALL])


def test_only_the_calibrated_attack_is_fair_to_central_seeds():
    plain, calibrated = [], []
    for i in range(6):
        training, held, synthetic = (draw(3 * i + j, n_pcs=10) for j in range(3))
        found = exposure(training, held, synthetic, is_seed=is_central(training), seed=0)
        plain.append(found["attack_auc", SEEDS])
        calibrated.append(found["calibrated_auc", SEEDS])
    assert np.mean(plain) > 0.8
    assert np.mean(calibrated) == pytest.approx(0.5, abs=0.05)


def test_both_attacks_catch_copied_seeds():
    training, held, synthetic = (draw(j, n_pcs=10) for j in range(3))
    is_seed = is_central(training)
    synthetic[: is_seed.sum()] = training[is_seed] + 0.1 * draw(3, is_seed.sum(), 10)
    found = exposure(training, held, synthetic, is_seed=is_seed, seed=0)
    assert found["attack_auc", SEEDS] > 0.98 and found["calibrated_auc", SEEDS] > 0.98
    assert found["record_near_copies", SEEDS] > 0.98 and found["record_ratio", SEEDS] < 0.3
    assert found["calibrated_auc", OTHERS] == pytest.approx(0.5, abs=0.05)
    assert nearness(training, held, synthetic, seed=0)["near_copies", ALL] == pytest.approx(0.11, abs=0.02)


def test_copies_are_exact_ones_in_any_form():
    rng = np.random.default_rng(0)
    training = rng.poisson(0.7, (60, 30)).astype(np.float32)
    synthetic = np.concatenate([training[:15], training[:15] + np.eye(30)[:15], rng.poisson(0.7, (30, 30))])
    known = {row.tobytes() for row in training.astype(int)}
    expected = np.mean([row.tobytes() in known for row in synthetic.astype(int)])
    assert 0.25 <= expected < 1
    for form in (np.asarray, sparse.csr_matrix, sparse.csc_matrix):
        assert copies(form(training), form(synthetic)) == expected
    assert copies(np.log1p(training), np.log1p(synthetic.astype(np.float64)) * (1 + 1e-7)) == expected
    assert copies(training, training[::-1] * 1.01) == 0
    dense = rng.standard_normal((40, 20))
    assert copies(dense, np.concatenate([dense[5:15], dense[5:15] + 1e-3])) == 0.5


def test_stored_zeros_and_order_do_not_hide_a_copy():
    stored = sparse.csr_matrix((np.array([2.0, 0.0, 1.0]), np.array([2, 1, 0]), np.array([0, 3])), shape=(1, 3))
    assert copies(np.array([[1.0, 0.0, 2.0]]), stored) == 1
    assert copies(np.array([[1.0, 0.0, 2.0]]), np.zeros((2, 3))) == 0
    assert copies(np.zeros((1, 3)), np.zeros((2, 3))) == 1
    assert np.isnan(copies(np.ones((2, 3)), np.zeros((0, 3))))
    assert copies(np.zeros((0, 3)), np.ones((2, 3))) == 0


def test_few_or_equal_cells_give_nan_or_numbers_but_no_error():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sizes in ((0, 3, 3), (3, 0, 3), (3, 3, 0), (1, 1, 1), (2, 1, 3), (0, 0, 0)):
            training, held, synthetic = (draw(i, n) for i, n in enumerate(sizes))
            for is_seed in (None, np.zeros(len(training), bool), np.ones(len(training), bool)):
                found = nearness(training, held, synthetic, seed=0)
                found |= exposure(training, held, synthetic, is_seed=is_seed, seed=0)
                assert np.isnan(found["dcr_ratio", ALL]) == (0 in sizes)
                assert np.isnan(found["attack_auc", ALL]) == (0 in sizes)
        pair = exposure(draw(0, 3), draw(1, 2), draw(2, 3), is_seed=None, seed=0)
        assert pair["attack_auc", HELD] in (0, 1)  # one cell against the other
        nothing = np.zeros((50, 5))
        found = exposure(draw(0, 60), draw(1, 60), nothing, is_seed=None, seed=0)
        assert not any(np.isnan(value) for value in found.values())
        assert exposure(nothing, nothing, nothing, is_seed=None, seed=0)["calibrated_auc", ALL] == 0.5


@pytest.mark.slow
def test_controls_on_halves_of_pbmc3k():
    if not PBMC.exists():
        pytest.skip(f"{PBMC.name} is not here")
    training, held = split_cells(load_cells(CellSource(input=PBMC)), 0.5, 0)
    training, held = (cells[:, select_genes(training, 1000)].copy() for cells in (training, held))
    found = {}
    for control in (real_half, bootstrap, copula):
        drawn = control.sample(control.fit(training, seed=0), training.n_obs, seed=0)
        pcs = pooled_pcs(*map(compare_on, (training, held, drawn)))
        found[control] = nearness(*pcs, seed=0) | exposure(*pcs, is_seed=None, seed=0)
        found[control]["copies", ALL] = copies(training.X, drawn.X)
    for control in (real_half, bootstrap):
        scores = found[control]
        assert scores["copies", ALL] == scores["nearer_to_training", ALL] == scores["near_copies", ALL] == 1
        assert scores["dcr_ratio", ALL] < 0.01 and scores["record_ratio", ALL] < 0.01
        assert min(scores[key, ALL] for key in ("attack_auc", "calibrated_auc")) > 0.75
        assert scores["record_near_copies", ALL] > 0.6 > 0.03 > scores["record_near_copies", HELD]
    assert found[copula]["copies", ALL] == 0
    assert found[copula]["nearer_to_training", ALL] < 0.65
    assert found[copula]["calibrated_auc", ALL] == pytest.approx(0.5, abs=0.05)
