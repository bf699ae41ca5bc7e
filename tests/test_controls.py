"""Controls keep the contract of a generator, and are what they say."""

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from benchmarking.controls import copula, poisson, real_half

SIZES = {"B": 2400, "NK": 800, "T": 4000}


@pytest.mark.parametrize("control", [copula, poisson])
def test_draws_types_in_proportion_and_whole_counts(toy, control):
    drawn = control.sample(control.fit(toy, seed=0), 7200, seed=1)
    assert drawn.obs["cell_type"].value_counts().to_dict() == SIZES
    assert list(drawn.var_names) == list(toy.var_names) and drawn.uns["scale"] == "counts"
    X = drawn.X.toarray()
    assert (X >= 0).all() and (X.round() == X).all() and (X[:, -1] == 0).all()
    for name in SIZES:
        mine, real = (c[c.obs["cell_type"] == name].X.toarray().mean(0) for c in (drawn, toy))
        assert mine == pytest.approx(real, abs=0.12 * float(real.max()))
    assert (control.sample(control.fit(toy, seed=0), 7200, seed=1).X != drawn.X).nnz == 0
    assert set(control.sample(control.fit(toy, seed=0), 5, cell_type="NK", seed=1).obs["cell_type"]) == {"NK"}


def test_the_copula_has_correlations_and_poisson_has_none():
    rng = np.random.default_rng(0)
    X = rng.poisson(20, (400, 3)).astype(np.float32)
    X[:, 1] = X[:, 0] + rng.poisson(1, len(X))
    cells = AnnData(sparse.csr_matrix(X), obs={"cell_type": ["T"] * len(X)}, uns={"scale": "counts"})
    tied, free = (m.sample(m.fit(cells, seed=0), 2000, seed=1).X.toarray()[:, :2].T for m in (copula, poisson))
    assert np.corrcoef(tied)[0, 1] > 0.9
    assert abs(np.corrcoef(free)[0, 1]) < 0.1


def test_real_half_is_the_training_cells(toy):
    assert real_half.sample(real_half.fit(toy, seed=0), 3, seed=0) is toy
