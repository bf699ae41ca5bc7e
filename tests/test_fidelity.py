"""Fidelity metrics against theory."""

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from common.metrics.fidelity import compare_on, coverage, pooled_pcs, rf_auroc


def normal(seed: int, shift: float = 0.0, n: int = 300) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 4)) + shift


def test_two_samples_of_one_distribution_cannot_be_told_apart():
    values = [rf_auroc(normal(seed), normal(seed + 100), seed=0) for seed in range(4)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.06)


def test_a_shift_is_told_and_the_larger_the_easier():
    small, large = (rf_auroc(normal(1), normal(2, shift), seed=0) for shift in (0.5, 5.0))
    assert 0.6 < small < large
    assert large == pytest.approx(1.0)


def test_coverage_of_one_distribution_is_that_of_theory():
    values = [coverage(normal(seed), normal(seed + 100)) for seed in range(8)]
    assert np.mean(values) == pytest.approx(1 - 2**-5, abs=0.02)


def test_coverage_counts_the_part_that_is_reached():
    real = np.concatenate([normal(1), normal(2, 100.0)])
    assert coverage(real, normal(3)) == pytest.approx(0.5 * (1 - 2**-5), abs=0.03)
    assert coverage(real, real) == 1.0
    assert coverage(real, normal(3, 1000.0)) == 0.0


def test_pcs_are_those_of_all_cells_together():
    real, drawn = normal(1), normal(2)
    drawn[:, 3] += 50  # a direction the real cells do not have
    groups = pooled_pcs(real, drawn, n_pcs=1)
    assert abs(groups[1].mean() - groups[0].mean()) == pytest.approx(50, rel=0.02)


def test_counts_are_compared_at_1000_a_cell():
    cells = AnnData(sparse.csr_matrix(np.array([[1.0, 3.0], [20.0, 0.0]], dtype=np.float32)), uns={"scale": "counts"})
    assert np.allclose(compare_on(cells), np.log1p([[250, 750], [1000, 0]]))
