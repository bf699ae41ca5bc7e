"""Fidelity metrics against theory and independent implementations."""

import numpy as np
import ot
import pytest
from anndata import AnnData
from prdc import compute_prdc
from scipy import sparse
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance
from sklearn.metrics.pairwise import rbf_kernel

from common.metrics import fidelity
from common.metrics.catalogue import METRICS


def normal(seed: int, shift: float = 0.0, n: int = 300) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 4)) + shift


@pytest.fixture
def small_forests(monkeypatch):
    monkeypatch.setattr(fidelity, "N_TREES", 60)


def forest(real, synthetic):
    return fidelity.auroc(*fidelity.forest_scores(real, synthetic, seed=0))


@pytest.mark.slow
def test_two_samples_of_one_distribution_cannot_be_told_apart(small_forests):
    values = [forest(normal(seed), normal(seed + 100)) for seed in range(4)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.06)


def test_a_shift_is_told_and_the_larger_the_easier(small_forests):
    small, large = (forest(normal(1), normal(2, shift)) for shift in (0.5, 5.0))
    assert 0.6 < small < large
    assert large == pytest.approx(1.0)


def test_auroc_counts_ties_half():
    assert fidelity.auroc(np.zeros(3), np.zeros(5)) == 0.5
    assert fidelity.auroc(np.zeros(3), np.ones(5)) == 1.0
    assert np.isnan(fidelity.auroc(np.zeros(3), np.zeros(0)))


@pytest.mark.parametrize("p", [1, 2])
def test_wasserstein_of_a_shift_is_its_length(p):
    X, step = normal(1), np.array([3.0, 0, 4.0, 0])
    assert fidelity.wasserstein(X, X, p=p) == pytest.approx(0, abs=1e-6)
    assert fidelity.wasserstein(X, X + step, p=p) == pytest.approx(5)


def test_wasserstein_agrees_with_scipy_and_with_assignment():
    a, b = normal(1, n=60)[:, :1], normal(2, 0.5, n=60)[:, :1] ** 3
    assert fidelity.wasserstein(a, b, p=1) == pytest.approx(wasserstein_distance(a.ravel(), b.ravel()))
    in_order = np.sqrt(((np.sort(a, 0) - np.sort(b, 0)) ** 2).mean())  # optimal in one dimension
    assert fidelity.wasserstein(a, b, p=2) == pytest.approx(in_order)
    assert fidelity.wasserstein(a[:20], b, p=2) == pytest.approx(
        np.sqrt(ot.emd2_1d(a[:20].ravel(), b.ravel(), metric="sqeuclidean"))
    )


def test_sliced_wasserstein_of_a_shift_is_its_mean_projection():
    X = normal(1)
    assert fidelity.sliced_wasserstein(X, X, seed=0) == 0
    # a unit vector's component in 4 dimensions: E|u| = Gamma(2) / (sqrt(pi) Gamma(5/2))
    expected = 5.0 / (np.sqrt(np.pi) * 1.3293403881791370)
    assert fidelity.sliced_wasserstein(X, X + np.array([3.0, 0, 4.0, 0]), seed=0) == pytest.approx(expected, rel=0.1)


def test_mmd_agrees_with_the_kernels_of_sklearn():
    real, drawn = normal(1, n=50), normal(2, 0.7, n=40)
    unit = fidelity.median_squared_distance(real)
    assert unit == pytest.approx(np.median(cdist(real, real, "sqeuclidean")[np.triu_indices(50, 1)]))
    values = []
    for s in fidelity.BANDWIDTHS:
        xx, yy, xy = (rbf_kernel(a, b, 1 / (s * unit)) for a, b in ((real, real), (drawn, drawn), (real, drawn)))
        n, m = xy.shape
        values.append((xx.sum() - n) / (n * (n - 1)) + (yy.sum() - m) / (m * (m - 1)) - 2 * xy.mean())
    assert fidelity.mmd(real, drawn, unit=unit) == pytest.approx(np.mean(values))
    assert np.isnan(fidelity.mmd(real, drawn, unit=0.0))


def test_mmd_is_unbiased_and_grows_with_the_shift():
    unit = 8.0
    null = [fidelity.mmd(normal(s, n=100), normal(s + 100, n=100), unit=unit) for s in range(40)]
    assert abs(np.mean(null)) < 3 * np.std(null) / np.sqrt(len(null))
    assert min(null) < 0  # unbiased: not clamped
    shifted = [fidelity.mmd(normal(1), normal(2, shift), unit=unit) for shift in (0.3, 1.0, 3.0)]
    assert shifted == sorted(shifted) and shifted[0] > max(null)


def test_lisi_mixed_apart_and_as_brute_force_has_it():
    real, drawn = normal(1), normal(2)
    X = np.concatenate([real, drawn])
    order = np.argsort(cdist(X, X), axis=1)[:, 1 : fidelity.LISI_NEIGHBORS + 1]
    share = (order >= 300).mean(1)
    brute = (1 / (share**2 + (1 - share) ** 2)).mean()
    assert fidelity.lisi(real, drawn, seed=0) == pytest.approx(brute, abs=1e-6)
    assert brute == pytest.approx(1.94, abs=0.03)
    assert fidelity.lisi(real, normal(2, 50.0), seed=0) == 1.0
    # a minority is not taken for separation
    assert fidelity.lisi(real, normal(2, n=60), seed=0) == pytest.approx(1.94, abs=0.06)


@pytest.mark.slow
def test_lisi_agrees_with_scib_metrics():
    """Whose neighbours weigh less the further they are; with a wide enough perplexity they hardly do."""
    scib_metrics = pytest.importorskip("scib_metrics", reason="pip install -r requirements_optional.txt")
    from scib_metrics.nearest_neighbors import pynndescent

    real, drawn = normal(1), normal(2, 0.8)
    neighbors = pynndescent(np.concatenate([real, drawn]), n_neighbors=31, random_state=0)
    theirs = scib_metrics.lisi_knn(neighbors, np.repeat([0, 1], 300), perplexity=29)
    assert fidelity.lisi(real, drawn, seed=0) == pytest.approx(float(np.median(theirs)), abs=0.12)


def test_density_and_coverage_agree_with_the_authors_code():
    real, drawn = normal(1), normal(2, 0.5, n=200)
    theirs = compute_prdc(real, drawn, nearest_k=fidelity.COVERAGE_NEIGHBORS)
    assert fidelity.density_coverage(real, drawn) == pytest.approx((theirs["density"], theirs["coverage"]))


def test_coverage_of_one_distribution_is_that_of_theory():
    values = [fidelity.density_coverage(normal(seed), normal(seed + 100)) for seed in range(8)]
    assert np.mean(values, axis=0) == pytest.approx((1, 1 - 2**-5), abs=0.02)


def test_coverage_counts_the_part_that_is_reached():
    real = np.concatenate([normal(1), normal(2, 100.0)])
    assert fidelity.density_coverage(real, normal(3))[1] == pytest.approx(0.5 * (1 - 2**-5), abs=0.03)
    assert fidelity.density_coverage(real, real)[1] == 1.0
    assert fidelity.density_coverage(real, normal(3, 1000.0)) == (0.0, 0.0)
    assert np.isnan(fidelity.density_coverage(real[:5], real)).all()


def test_concordance():
    a = np.random.default_rng(0).standard_normal(1000)
    assert fidelity.concordance(a, a) == pytest.approx(1)
    assert fidelity.concordance(a, -a) == pytest.approx(-1, abs=0.01)
    # for a shift c of a unit-variance vector: 2 / (2 + c²)
    assert fidelity.concordance(a / a.std(), a / a.std() + 2) == pytest.approx(1 / 3)
    assert fidelity.concordance(a, np.zeros(1000)) == 0
    assert fidelity.concordance(np.ones(3), np.ones(3)) == 1


def test_gene_agreement_is_hurt_by_what_it_names():
    rng = np.random.default_rng(0)
    real = rng.normal(3, 1, (2000, 50)) * rng.uniform(0.5, 2, 50) * (rng.random((2000, 50)) < rng.uniform(0.2, 1, 50))
    assert fidelity.gene_agreement(real[::2], real[1::2]) == pytest.approx(
        {"gene_mean": 1, "gene_variance": 1, "gene_zeros": 1}, abs=0.05
    )
    shrunk = fidelity.gene_agreement(real, real.mean(0) + 0.1 * (real - real.mean(0)))
    assert shrunk["gene_mean"] == pytest.approx(1) and shrunk["gene_variance"] < 0.1 and shrunk["gene_zeros"] < 0.1
    assert fidelity.gene_agreement(real, np.zeros_like(real))["gene_mean"] == 0


def test_correlation_agreement_needs_the_dependence():
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((5, 40))
    a, b = (rng.standard_normal((1500, 5)) @ mixing + rng.standard_normal((1500, 40)) for _ in range(2))
    assert fidelity.correlation_agreement(a, b) > 0.98
    assert fidelity.correlation_agreement(a, rng.permuted(b, axis=0)) == pytest.approx(0, abs=0.05)
    assert fidelity.correlation_agreement(a, np.zeros_like(a)) == pytest.approx(0, abs=0.1)
    assert np.isnan(fidelity.correlation_agreement(a[:9], b))


def test_pcs_are_those_of_all_cells_together():
    real, drawn = normal(1), normal(2)
    drawn[:, 3] += 50  # a direction the real cells do not have
    groups = fidelity.pooled_pcs(real, drawn, n_pcs=1)
    assert abs(groups[1].mean() - groups[0].mean()) == pytest.approx(50, rel=0.02)


def cells(X: list, scale: str) -> AnnData:
    return AnnData(sparse.csr_matrix(np.array(X, dtype=np.float32)), uns={"scale": scale})


def test_counts_are_compared_at_1000_a_cell():
    counts = cells([[1.0, 3.0], [20.0, 0.0]], "counts")
    assert np.allclose(fidelity.compare_on(counts), np.log1p([[250, 750], [1000, 0]]))


def test_library_sizes_of_each_scale():
    assert fidelity.library_sizes(cells([[1.0, 3.0]], "counts")) == [4]
    assert fidelity.library_sizes(cells([[1.5, 3.0]], "linear")) == [4.5]
    assert fidelity.library_sizes(cells([[np.log(2), np.log(4)]], "log")) == pytest.approx([4])
    assert np.isnan(fidelity.library_sizes(cells([[-1.0, 3.0]], "scaled"))).all()


def test_ks_distance_of_a_shifted_uniform():
    a = np.linspace(0, 1, 1001)
    assert fidelity.ks_distance(a, a) == 0
    assert fidelity.ks_distance(a, a + 0.25) == pytest.approx(0.25, abs=0.002)
    assert np.isnan(fidelity.ks_distance(a * np.nan, a))


def test_shortfall_of_each_direction():
    lower, higher, near = (METRICS[name] for name in ("rf_auroc_pcs", "lisi_pcs", "density_pcs"))
    assert lower.shortfall(0.75) == 0.25 and lower.shortfall(0.45) == 0
    assert higher.shortfall(1.5) == 0.5
    assert near.shortfall(1.25) == near.shortfall(0.75) == 0.25
    assert np.isnan(near.shortfall(float("nan")))


def test_of_fewer_cells_than_folds_a_forest_says_nothing(small_forests):
    rng = np.random.default_rng(0)
    few, many = rng.normal(size=(4, 3)), rng.normal(size=(20, 3))
    assert np.isnan(forest(few, many)) and np.isnan(forest(many, few)) and not np.isnan(forest(many, many))
