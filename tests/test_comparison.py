"""As many synthetic as held-out cells are compared, the same as in the full evaluation."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import cdist

import common.comparison
from analysis.distribution_metrics import distribution_distances
from common.comparison import compare
from common.evaluation import evaluate
from common.metrics import fidelity
from common.runs import load_run
from data_generation.wasserstein_distance import transport_distances


@pytest.fixture
def run(toy_runs):
    return load_run(toy_runs / "seed0")


def test_as_many_of_either_kind(run):
    fewer = replace(run, synthetic=run.synthetic[::2].copy())
    held, drawn = compare(fewer)
    assert len(held) == len(drawn) == fewer.synthetic.n_obs < run.held.n_obs
    assert set(transport_distances(fewer)["n"]) == {len(held)}


def test_no_more_than_the_most_by_the_seed(run, monkeypatch):
    monkeypatch.setattr(common.comparison, "MOST_CELLS", 10)
    (held, drawn), (again, _), (other, _) = compare(run), compare(run), compare(replace(run, seed=5))
    assert held.X.shape == drawn.X.shape == (10, run.held.n_vars)
    assert (held.X != again.X).nnz == 0 and (held.X != other.X).nnz > 0


def test_every_form_stays_with_its_cell(run, monkeypatch):
    """Distances on all components are those on all genes: 20 genes fit into 30 components."""
    monkeypatch.setattr(common.comparison, "MOST_CELLS", 10)
    held, drawn = compare(run)
    np.testing.assert_allclose(cdist(held.pcs, drawn.pcs), cdist(held.genes, drawn.genes), rtol=1e-3)
    np.testing.assert_allclose(held.sizes, held.X.sum(1).A1)
    np.testing.assert_allclose(np.expm1(held.per_10k), 10 * np.expm1(held.genes), rtol=1e-4)
    types = {tuple(row): name for row, name in zip(run.held.X.toarray(), run.held.obs["cell_type"], strict=True)}
    assert [types[tuple(row)] for row in held.X.toarray()] == held.labels.tolist()


def test_values_are_those_of_the_full_evaluation(run, monkeypatch):
    """More synthetic than training cells, and fewer than held-out ones are left: both are thinned."""
    run = replace(run, train=run.train[::2].copy())
    monkeypatch.setattr(fidelity, "N_TREES", 5)  # whose values are not compared
    full = evaluate(run, families=["fidelity"]).set_index(["metric", "group"])["value"]
    own = distribution_distances(run).set_index(["metric", "group"])["value"]
    assert {group for _, group in own.index} == {"all cells", "rare cells"}
    np.testing.assert_allclose(own, full[own.index], rtol=1e-9)
    w1 = transport_distances(run).set_index("metric")["value"]["w1_pcs"]
    assert w1 == pytest.approx(full["w1_pcs", "all cells"], rel=1e-9)
