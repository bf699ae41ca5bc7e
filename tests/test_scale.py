"""Scales are recognised, contradictions refused, and counts survive the way to the log scale and back."""

import numpy as np
import pytest
import scanpy as sc
from scipy import sparse

from common.errors import UserError
from common.scale import check_scale, detect_scale, recover_counts, to_log

COUNTS = np.random.default_rng(0).negative_binomial(1, 0.4, size=(60, 40)).astype(np.float32)
EXAMPLES = {
    "counts": COUNTS,
    "linear": COUNTS * 37.3 + 0.25,
    "log": np.log1p(COUNTS * 3.7),
    "scaled": (COUNTS - COUNTS.mean(axis=0)) / COUNTS.std(axis=0),
}


@pytest.mark.parametrize("scale", EXAMPLES)
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_scale_is_detected_and_accepted(scale, form):
    assert detect_scale(form(EXAMPLES[scale])) == scale
    check_scale(form(EXAMPLES[scale]), scale)


def test_zeros_and_negative_integers():
    assert detect_scale(sparse.csr_matrix((3, 4))) == "counts"
    assert detect_scale(np.array([[-1.0, 2.0]])) == "scaled"


@pytest.mark.parametrize(
    ("values", "forced", "words"),
    [
        ("scaled", "counts", "negative"),
        ("scaled", "linear", "negative"),
        ("scaled", "log", "negative"),
        ("log", "counts", "is no integer"),
        ("linear", "log", "beyond any logarithm"),
        ("counts", "cpm", "no scale 'cpm'"),
    ],
)
def test_contradicted_scale_is_refused(values, forced, words):
    with pytest.raises(UserError, match=words):
        check_scale(EXAMPLES[values], forced)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_counts_reach_one_library_size(form):
    counts = COUNTS.copy()
    counts[3] = 0
    log = to_log(form(counts), "counts", 1000.0)
    assert sparse.issparse(log) == (form is sparse.csr_matrix)
    assert log.dtype == np.float32
    dense = log.toarray() if sparse.issparse(log) else log
    expected = np.full(len(counts), 1000.0)
    expected[3] = 0
    np.testing.assert_allclose(np.expm1(dense).sum(axis=1), expected, rtol=1e-4)
    np.testing.assert_array_equal(counts[:3], COUNTS[:3])  # the input is left alone


def test_other_scales_to_log():
    np.testing.assert_allclose(to_log(EXAMPLES["linear"], "linear", 1000.0), np.log1p(EXAMPLES["linear"]), rtol=1e-6)
    for scale in ("log", "scaled"):
        np.testing.assert_array_equal(to_log(EXAMPLES[scale], scale, 1000.0), EXAMPLES[scale].astype(np.float32))


@pytest.mark.parametrize("decimals", [3, 7])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_counts_are_recovered(decimals, form):
    counts = COUNTS.copy()
    counts[0] = 0
    log = np.round(to_log(counts, "counts", 1e4), decimals)
    recovered = recover_counts(form(log))
    assert recovered.dtype == np.float32
    np.testing.assert_array_equal(recovered.toarray(), counts)


def test_counts_without_a_one_are_refused():
    counts = COUNTS.copy()
    counts[5] = np.where(counts[5] == 1, 2, counts[5])
    counts[5, :2] = 2, 3
    with pytest.raises(UserError, match="no integer counts"):
        recover_counts(to_log(counts, "counts", 1e4))


@pytest.mark.parametrize("scale", ["linear", "scaled"])
def test_no_counts_in_other_scales(scale):
    with pytest.raises(UserError, match="no integer counts"), np.errstate(over="ignore", invalid="ignore"):
        recover_counts(EXAMPLES[scale])


@pytest.mark.filterwarnings("ignore")
def test_counts_of_the_embedded_set():
    cells = sc.datasets.pbmc68k_reduced()
    counts = recover_counts(cells.raw.X)
    library_size = cells.obs["n_counts"].to_numpy()
    # the values were normalised to 10,000 over all genes, and the counts of all genes are on record
    expected = np.expm1(cells.raw.X.toarray().astype(float)) * library_size[:, None] / 1e4
    assert np.abs(counts - expected).max() < 0.25
    assert (counts.max(axis=1).toarray() > 1).all()
    assert (np.asarray(counts.sum(axis=1)).ravel() < library_size).all()
