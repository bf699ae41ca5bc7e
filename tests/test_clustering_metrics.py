"""Clusters, their resolution, and their agreement with types: against theory, brute force and scikit-learn."""

import warnings
from itertools import permutations

import numpy as np
import pytest
import scanpy as sc
import torch
from sklearn.metrics import adjusted_rand_score, f1_score

from common.clustering import RESOLUTIONS, choose_resolution, cluster_cells
from common.metrics.clustering import ari, macro_f1, nmi


def blobs(n_types: int, n_cells: int = 60, distance: float = 30.0) -> tuple[np.ndarray, np.ndarray]:
    types = np.repeat([f"type {i}" for i in range(n_types)], n_cells)
    pcs = np.random.default_rng(0).standard_normal((len(types), 5))
    pcs[:, 0] += distance * np.repeat(np.arange(n_types), n_cells)
    return pcs, types


def labels(seed: int, k: int, n: int = 200) -> np.ndarray:
    return np.random.default_rng(seed).integers(k, size=n).astype(str)


@pytest.mark.parametrize("metric", [ari, nmi, macro_f1])
def test_names_and_order_do_not_matter(metric):
    types = labels(0, 4)
    renamed = np.array(["d", "a", "c", "b"])[types.astype(int)]
    assert metric(types, types) == metric(types, renamed) == pytest.approx(1)
    clusters, order = labels(1, 5), np.random.default_rng(2).permutation(200)
    names = np.array(list("vwxyz"))[clusters.astype(int)]
    assert metric(types, clusters) == pytest.approx(metric(types, names))
    assert metric(types, clusters) == pytest.approx(metric(types[order], clusters[order]))
    assert np.isnan(metric(types[:0], clusters[:0]))


def test_random_clusters_agree_by_chance_only():
    assert np.mean([ari(labels(i, 4), labels(i + 50, 5)) for i in range(20)]) == pytest.approx(0, abs=0.01)
    assert np.mean([nmi(labels(i, 4, 5000), labels(i + 50, 5, 5000)) for i in range(5)]) < 0.01


@pytest.mark.parametrize(("n_types", "n_clusters"), [(3, 3), (4, 3), (2, 4), (3, 1), (1, 3)])
def test_macro_f1_is_the_best_of_all_matchings(n_types, n_clusters):
    types, random = labels(0, n_types, 60), labels(1, n_clusters, 60)
    clusters = np.where(np.arange(60) % 2, np.char.mod("%d", types.astype(int) % n_clusters), random)
    found = np.unique(clusters)
    names = [*np.unique(types), *(f"surplus {i}" for i in range(len(found)))]
    best = 0.0
    for matching in permutations(names, len(found)):
        called = np.array(matching)[np.searchsorted(found, clusters)]
        best = max(best, f1_score(types, called, labels=np.unique(types), average="macro", zero_division=0))
    assert macro_f1(types, clusters) == pytest.approx(best)


def test_macro_f1_by_hand():
    types = np.repeat(["a", "b"], [6, 2])
    assert macro_f1(types, np.full(8, "0")) == pytest.approx((2 * 6 / 14 + 0) / 2)
    assert macro_f1(types, np.array(list("00011122"))) == pytest.approx((2 * 3 / 9 + 1) / 2)


def test_clusters_are_the_blobs_and_the_resolution_finds_them():
    pcs, types = blobs(3)
    resolution = choose_resolution(pcs, n_neighbors=10, seed=0)
    clusters = cluster_cells(pcs, n_neighbors=10, resolution=resolution, seed=0)
    assert adjusted_rand_score(types, clusters) == 1
    assert len(np.unique(cluster_cells(pcs, n_neighbors=10, resolution=2.0, seed=0))) > 3
    assert resolution == choose_resolution(pcs, n_neighbors=10, seed=0)
    assert (clusters == cluster_cells(pcs, n_neighbors=10, resolution=resolution, seed=0)).all()


def test_no_cluster_is_made_of_cells_that_are_all_the_same():
    pcs = np.zeros((80, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolution = choose_resolution(pcs, n_neighbors=10, seed=0)
        assert resolution == RESOLUTIONS[0]
        assert ari(labels(0, 3, 80), cluster_cells(pcs, n_neighbors=10, resolution=resolution, seed=0)) < 0.1


@pytest.mark.parametrize("n_cells", [0, 1, 2, 3, 5])
def test_few_cells_are_clustered(n_cells):
    pcs = blobs(n_cells, 1)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolution = choose_resolution(pcs, n_neighbors=15, seed=0)
        assert len(cluster_cells(pcs, n_neighbors=15, resolution=resolution, seed=0)) == n_cells


def test_of_many_cells_a_subset_has_its_silhouette_taken(monkeypatch):
    pcs, types = blobs(3)
    monkeypatch.setattr("common.clustering.SILHOUETTE_CELLS", 30)
    resolution = choose_resolution(pcs, n_neighbors=10, seed=0)
    assert adjusted_rand_score(types, cluster_cells(pcs, n_neighbors=10, resolution=resolution, seed=0)) == 1


def test_torch_keeps_its_threads_whatever_scanpy_starts(monkeypatch):
    def leiden(*args, **kwargs):
        torch.set_num_threads(1)  # as numba does
        return plain(*args, **kwargs)

    plain = sc.tl.leiden
    monkeypatch.setattr(sc.tl, "leiden", leiden)
    torch.set_num_threads(2)
    cluster_cells(blobs(2)[0], n_neighbors=5, resolution=1.0, seed=0)
    assert torch.get_num_threads() == 2
