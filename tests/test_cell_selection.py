"""Stage 1: the graph, attention that was learnt and depends on nothing else, and a quota of seeds for every type."""

import io
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.spatial.distance import cdist
from scipy.stats import chisquare, spearmanr
from torch_geometric.utils import k_hop_subgraph

from common.cli import silent
from common.data import CellSource, load_cells, rare_types
from common.errors import UserError
from common.run import no_checkpoint
from common.scale import to_log
from config import SelectionParams
from data_generation import attention, cell_selection
from data_generation.attention import (
    AttentionNet,
    ListenerGraph,
    average_attention,
    cell_attention,
    graph_features,
    knn_graph,
    network_seed,
    split_validation,
    train_attention,
)
from data_generation.cell_selection import (
    LEAST_LISTENERS,
    Selection,
    choose_seeds,
    farthest_first,
    farthest_reach_first,
    kin_payments,
    seed_neighborhoods,
    seed_quota,
    seed_scores,
    select,
)
from data_generation.model import fit, sample

CPU = torch.device("cpu")
PARAMS = SelectionParams(rare_threshold=8, graph_pcs=8, gat_epochs=30, gat_heads=2, gat_hidden=4)


def blobs(sizes=(30, 20, 8), n_features=6, seed=0):
    """Log-normalised cells in overlapping clouds, and their types."""
    rng = np.random.default_rng(seed)
    types = np.repeat(np.arange(len(sizes)), sizes)
    centers = rng.normal(size=(len(sizes), n_features)) * 1.5
    return sp.csr_matrix((centers[types] + rng.normal(size=(len(types), n_features))).astype(np.float32)), types


def run(params=PARAMS, *, seed=0, types=None, **options):
    X, own_types = blobs()
    types = own_types if types is None else types
    return select(X, types, params, seed=seed, device=CPU, report=silent, **options)


def attend(params=PARAMS, *, seed=0, train=train_attention, **options):
    """Edges, alpha and accuracy of the attention network."""
    X, types = blobs()
    features = graph_features(X, params, seed=seed)
    edges = knn_graph(features, params.neighbors, symmetric=params.graph_symmetric, seed=seed)
    is_rare = rare_types(types, params.rare_threshold)
    return train(
        features, edges, types, is_rare, params, seed=seed, device=CPU, report=silent, **options
    )  # fmt: skip


def averaged(*cells, seed, state=None, checkpoint=no_checkpoint, **options):
    """`average_attention`, called like `train_attention`."""
    train = partial(train_attention, *cells, **options)
    return average_attention(train, cells[-1].gat_networks, seed=seed, state=state, checkpoint=checkpoint)


def by_edge(edges, alpha):
    """Attention as a matrix, listeners in columns."""
    return sp.csr_matrix((alpha, edges)).toarray()


class Tape:
    """A checkpoint that keeps every state as a file would."""

    def __init__(self):
        self.files = []

    def __call__(self, make_state):
        buffer = io.BytesIO()
        torch.save(make_state(), buffer)
        self.files.append(buffer.getvalue())

    def state(self, epoch):
        return torch.load(io.BytesIO(self.files[epoch - 1]), weights_only=True)


# ---------------------------------------------------------------------------------------------- graph


def edge_set(edges):
    pairs = list(zip(*edges.tolist(), strict=True))
    assert len(pairs) == len(set(pairs))
    return set(pairs)


def brute_force(features, n_neighbors):
    """Neighbour -> cell, by sorting all distances."""
    nearest = cdist(features, features).argsort(1, kind="stable")[:, :n_neighbors]
    return {(int(n), cell) for cell, row in enumerate(nearest) for n in row if n != cell}


@pytest.mark.parametrize("n_neighbors", [1, 2, 5, 40])
def test_graph_is_that_of_brute_force(n_neighbors):
    features = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    edges = knn_graph(features, n_neighbors, symmetric=False, seed=0)
    assert edges.dtype == np.int64 and edges.shape == (2, 40 * (n_neighbors - 1))
    assert edge_set(edges) == brute_force(features, n_neighbors)


def test_edges_run_from_neighbour_to_cell():
    # 0 and 1 are close; 2 is far away and listens to 1, which does not listen back
    edges = knn_graph(np.array([[0.0], [1.0], [5.0]], np.float32), 2, symmetric=False, seed=0)
    assert edge_set(edges) == {(1, 0), (0, 1), (1, 2)}


def test_symmetric_graph_joins_both_ways():
    features = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    one_way = brute_force(features, 4)
    both_ways = edge_set(knn_graph(features, 4, symmetric=True, seed=0))
    assert both_ways == one_way | {(b, a) for a, b in one_way} != one_way


def test_more_neighbours_than_cells_joins_all():
    features = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    edges = edge_set(knn_graph(features, 9, symmetric=False, seed=0))
    assert edges == {(a, b) for a in range(4) for b in range(4) if a != b}


# numba compiles the approximate search for a minute
@pytest.mark.parametrize("exact_up_to", [20_000, pytest.param(10, marks=pytest.mark.slow)])
def test_duplicate_cells_get_no_self_loops(exact_up_to, monkeypatch):
    monkeypatch.setattr(attention, "EXACT_UP_TO", exact_up_to)
    features = np.repeat(np.random.default_rng(0).normal(size=(15, 4)), 4, axis=0).astype(np.float32)
    source, target = knn_graph(features, 3, symmetric=True, seed=0)
    assert (source != target).all() and source.min() >= 0
    assert np.bincount(target, minlength=60).min() >= 1


@pytest.mark.slow
def test_approximate_search_finds_nearly_all(monkeypatch):
    features = np.random.default_rng(0).normal(size=(600, 10)).astype(np.float32)
    exact = edge_set(knn_graph(features, 5, symmetric=False, seed=0))
    monkeypatch.setattr(attention, "EXACT_UP_TO", 100)
    monkeypatch.setattr(attention, "NearestNeighbors", None)  # must not be used
    found = knn_graph(features, 5, symmetric=False, seed=0)
    assert torch.get_num_threads() == 1  # as it was
    assert len(edge_set(found) & exact) >= 0.9 * len(exact)
    assert np.array_equal(found, knn_graph(features, 5, symmetric=False, seed=0))


def test_features_are_scaled_components_or_genes():
    X, _ = blobs()
    pcs = graph_features(X, replace(PARAMS, graph_pcs=3), seed=0)
    assert pcs.shape == (X.shape[0], 3) and pcs.dtype == np.float32
    assert pcs[:, 0].std() == pytest.approx(1, abs=1e-5)
    centred = X.toarray() - X.toarray().mean(0)
    explained = np.linalg.svd(centred, compute_uv=False)[:3] / np.linalg.svd(centred, compute_uv=False)[0]
    np.testing.assert_allclose(pcs.std(0), explained, rtol=1e-4)
    assert np.array_equal(graph_features(X, replace(PARAMS, graph_on="genes"), seed=0), X.toarray())
    assert graph_features(X[:, :1], PARAMS, seed=0).shape == (X.shape[0], 1)


@pytest.mark.parametrize("n_kinds", [1, 2])
@pytest.mark.parametrize("n_cells", [2, 3, 30])
def test_cells_that_are_all_alike_have_features_too(n_cells, n_kinds):
    kinds = np.arange(5 * n_kinds, dtype=np.float32).reshape(n_kinds, 5)
    features = graph_features(sp.csr_matrix(kinds[np.arange(n_cells) % n_kinds]), PARAMS, seed=0)
    assert len(features) == n_cells and np.isfinite(features).all()


# ---------------------------------------------------------------------------------------------- attention


def test_alpha_sums_to_one_over_what_each_cell_listens_to():
    edges, alpha, _ = attend()
    assert alpha.shape == edges.shape[1:] and (alpha >= 0).all()
    np.testing.assert_allclose(np.bincount(edges[1], alpha), 1, atol=1e-5)
    n_cells = edges.max() + 1
    loops = edges[0] == edges[1]
    assert loops.sum() == n_cells and loops[-n_cells:].all()  # appended, so that the given edges' order is not alpha's


def test_attention_by_hand():
    # source -> target; each target's alpha sums to 1 with its self loop
    edges = np.array([[1, 2, 0, 0, 0, 1, 2, 3], [0, 0, 1, 2, 0, 1, 2, 3]])
    alpha = np.array([0.5, 0.3, 0.8, 0.4, 0.2, 0.2, 0.6, 1.0])
    # 0 is listened to by 1 (0.8, in-degree 2) and 2 (0.4, in-degree 2); 1 and 2 by 0 (in-degree 3); 3 by nobody
    np.testing.assert_allclose(cell_attention(edges, alpha, 4), [(0.8 * 2 + 0.4 * 2) / 2, 0.5 * 3, 0.3 * 3, 0.0])


def test_attention_does_not_depend_on_the_order_of_edges():
    edges, alpha, _ = attend()
    order = np.random.default_rng(0).permutation(len(alpha))
    n_cells = edges.max() + 1
    together = cell_attention(edges[:, order], alpha[order], n_cells)
    np.testing.assert_allclose(together, cell_attention(edges, alpha, n_cells), atol=1e-9)
    assert not np.allclose(cell_attention(edges, alpha[order], n_cells), together)  # alpha of other edges


def test_equal_alpha_is_worth_one_whatever_the_degree():
    features = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    edges = knn_graph(features, 4, symmetric=True, seed=0)
    edges = np.concatenate([edges, np.tile(np.arange(50), (2, 1))], axis=1)
    in_degree = np.bincount(edges[1])
    assert len(np.unique(in_degree)) > 2
    np.testing.assert_allclose(cell_attention(edges, 1 / in_degree[edges[1]], 50), 1)


def test_self_loops_pay_nothing():
    edges = np.array([[1, 0, 0, 1], [0, 1, 0, 1]])
    greedy = cell_attention(edges, np.array([0.1, 0.1, 0.9, 0.9]), 2)
    np.testing.assert_allclose(greedy, [0.2, 0.2])


def test_untrained_network_that_cannot_tell_cells_apart_pays_one():
    """The initial logits are constant on equal features: alpha is then uniform and so is attention."""
    features = np.ones((20, 3), np.float32)
    edges = knn_graph(np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32), 4, symmetric=False, seed=0)
    params = replace(PARAMS, gat_epochs=0)
    looped, alpha, _ = train_attention(
        features, edges, np.arange(20) % 2, np.zeros(20, bool), params, seed=0, device=CPU, report=silent
    )
    attention = cell_attention(looped, alpha, 20)
    heard = np.bincount(edges[0], minlength=20) > 0
    np.testing.assert_allclose(attention[heard], 1, rtol=1e-5)
    assert (attention[~heard] == 0).all()


def ranking(selection):
    return np.argsort(-selection.attention, kind="stable")


def test_attention_is_learnt_from_the_labels():
    """Same graph, same first weights: only what was learnt can differ."""
    types = blobs()[1]
    shuffled = np.random.default_rng(0).permutation(types)
    params = replace(PARAMS, gat_validation=0.0, rare_threshold=0)
    a, b = run(params), run(params, types=shuffled)
    assert not np.array_equal(ranking(a), ranking(b))
    assert np.corrcoef(a.attention, b.attention)[0, 1] < 0.99
    untrained = replace(params, gat_epochs=0)
    np.testing.assert_array_equal(run(untrained).attention, run(untrained, types=shuffled).attention)
    assert not np.array_equal(ranking(run(untrained)), ranking(a))


def test_attention_depends_on_the_seed_and_on_nothing_else():
    a, again, b = run(seed=0), run(seed=0), run(seed=1)
    np.testing.assert_array_equal(a.attention, again.attention)
    assert not np.array_equal(ranking(a), ranking(b))
    before = torch.get_rng_state()
    run(seed=5)
    assert torch.equal(before, torch.get_rng_state())


def test_order_of_the_file_does_not_matter(toy, tiny):
    shuffled = toy[np.random.default_rng(1).permutation(toy.n_obs)].copy()
    assert shuffled.obs_names[0] != toy.obs_names[0]
    a, b = (fit(cells, replace(tiny, neighbors=5), seed=1, device="cpu") for cells in (toy, shuffled))
    for model, cells in ((a, toy), (b, shuffled)):
        assert model.seeds["cell"].tolist() == cells.obs_names.tolist()
        assert model.seeds["cell_type"].tolist() == cells.obs["cell_type"].tolist()
    ours, theirs = a.seeds.set_index("cell"), b.seeds.set_index("cell").loc[toy.obs_names]
    assert ours.equals(theirs) and ours["is_seed"].any() and ours["attention"].nunique() > 60
    x, y = (sample(model, 50, seed=2) for model in (a, b))
    assert (x.X != y.X).nnz == 0 and x.obs.equals(y.obs)


def test_network_learns_the_types():
    assert attend(replace(PARAMS, gat_epochs=200))[2] > 0.8
    assert attend(replace(PARAMS, gat_epochs=200, gat_validation=0.0))[2] > 0.9


# ---------------------------------------------------------------------------------------------- training


def test_validation_is_a_share_of_every_type():
    types = np.repeat([0, 1, 2], [40, 21, 6])
    held = split_validation(types, 0.15, torch.Generator().manual_seed(0))
    assert np.bincount(types[held], minlength=3).tolist() == [6, 3, 0]
    other = split_validation(types, 0.15, torch.Generator().manual_seed(1))
    assert not np.array_equal(held, other)
    assert not split_validation(types, 0.0, torch.Generator()).any()


def test_early_stopping_keeps_the_best_epoch():
    tape = Tape()
    # so fast that it must overshoot
    params = replace(PARAMS, gat_epochs=300, gat_patience=15, gat_lr=0.05)
    looped, alpha, _ = attend(params, checkpoint=tape)
    last = tape.state(0)
    assert last["epoch"] == len(tape.files) < 300
    assert last["epoch"] - last["best_epoch"] == 15 and last["best_epoch"] > 0
    # what is returned is the best epoch's: the weights that came in, before its step
    best = tape.state(last["best_epoch"])["net"]
    assert all(torch.equal(best[name], last["best_weights"][name]) for name in best)
    assert any(not torch.equal(last["net"][name], best[name]) for name in best)
    X, types = blobs()
    features = graph_features(X, params, seed=0)
    edges = torch.from_numpy(knn_graph(features, params.neighbors, symmetric=True, seed=0))
    net = AttentionNet(features.shape[1], types.max() + 1, params)
    net.load_state_dict(best)
    _, (its_edges, expected) = net(torch.from_numpy(features), edges, torch.ones(len(types), 1))
    expected = by_edge(its_edges.numpy(), expected.detach().squeeze(1).numpy())
    np.testing.assert_allclose(by_edge(looped, alpha), expected, rtol=1e-5)


def test_best_epoch_is_the_one_of_lowest_validation_loss():
    tape = Tape()
    attend(replace(PARAMS, gat_epochs=60, gat_patience=60), checkpoint=tape)
    bests = [tape.state(epoch)["best"] for epoch in range(1, 61)]
    assert bests == sorted(bests, reverse=True) and bests[-1] < bests[0]
    changes = [0] + [epoch for epoch in range(1, 60) if bests[epoch] < bests[epoch - 1]]
    assert tape.state(60)["best_epoch"] == changes[-1]


def test_without_validation_all_epochs_are_trained():
    tape = Tape()
    params = replace(PARAMS, gat_validation=0.0, gat_epochs=70, gat_patience=3)
    _, alpha, _ = attend(params, checkpoint=tape)
    assert len(tape.files) == 70
    assert not np.array_equal(alpha, attend(replace(params, gat_epochs=69))[1])


@pytest.mark.parametrize("validation", [0.0, 0.15])
def test_interrupted_attention_ends_the_same(validation):
    params = replace(PARAMS, gat_validation=validation, gat_epochs=40, gat_patience=12, gat_lr=0.05)
    tape = Tape()
    whole = attend(params, checkpoint=tape)
    for epoch in (1, len(tape.files) // 2, len(tape.files)):
        resumed = attend(params, state=tape.state(epoch))
        assert all(np.array_equal(a, b) for a, b in zip(whole, resumed, strict=True))


def with_seed(own, *args, **options):
    return train_attention(*args, **{**options, "seed": own})


def test_attention_is_the_mean_over_networks():
    params = replace(PARAMS, gat_networks=3)
    nets = [partial(with_seed, network_seed(0, i)) for i in range(3)]
    (edges, first, accuracy), *others = (attend(train=net) for net in nets)
    looped_edges, alpha, mean_accuracy = attend(params, train=averaged)
    assert np.array_equal(edges, looped_edges)
    assert alpha == pytest.approx(np.mean([first, *(other[1] for other in others)], axis=0))
    assert mean_accuracy == pytest.approx(np.mean([accuracy, *(other[2] for other in others)]))
    assert not any(np.allclose(first, other[1]) for other in others)
    alone = attend(train=averaged)
    assert np.array_equal(alone[1], first) and alone[2] == accuracy
    _, other_run, _ = attend(params, seed=1, train=averaged)
    agree = spearmanr(alpha, other_run).statistic, spearmanr(first, attend(seed=1)[1]).statistic
    assert agree[0] > agree[1]  # chance averages out


def test_interrupted_average_ends_the_same():
    tape, params = Tape(), replace(PARAMS, gat_networks=2, gat_epochs=8)
    whole = attend(params, checkpoint=tape, train=averaged)
    assert len(tape.files) == 16
    for epoch in (3, 8, 9, 14):
        resumed = attend(params, state=tape.state(epoch), train=averaged)
        assert all(np.array_equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_selection_goes_through_a_checkpoint():
    selection = run()
    buffer = io.BytesIO()
    torch.save(selection.state(), buffer)
    buffer.seek(0)
    back = Selection.from_state(torch.load(buffer, weights_only=True))
    for name in ("attention", "is_seed", "is_rare"):
        a, b = getattr(selection, name), getattr(back, name)
        assert a.dtype == b.dtype and np.array_equal(a, b)
    assert back.neighborhood.shape == selection.neighborhood.shape
    assert (back.neighborhood != selection.neighborhood).nnz == 0
    assert back.accuracy == selection.accuracy


CHANGES = [
    {"leakage": 0.4}, {"rare_threshold": 20}, {"neighbors": 8}, {"graph_on": "genes"}, {"graph_pcs": 2},
    {"graph_symmetric": False}, {"gat_networks": 2}, {"gat_heads": 3}, {"gat_hidden": 5}, {"gat_epochs": 29},
    {"gat_lr": 1e-2}, {"gat_validation": 0.3}, {"gat_patience": 2}, {"gat_balanced": False}, {"priority_weight": 5.0},
    {"priority_on": "features"}, {"rare_quota": False}, {"rare_only": True}, {"seeds_by": "random"},
    {"seeds_by": "degree"}, {"seeds_by": "k_centre"}, {"seeds_by": "reach"},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_every_parameter_acts(change):
    # so fast that the validation loss goes up and down, and patience is tried
    params, seed = (replace(PARAMS, gat_lr=0.2), 1) if "gat_patience" in change else (PARAMS, 0)
    a, b = run(params, seed=seed), run(replace(params, **change), seed=seed)
    assert not np.array_equal(a.attention, b.attention) or not np.array_equal(a.is_seed, b.is_seed)


def test_every_parameter_is_tried():
    assert {name for change in CHANGES for name in change} == set(SelectionParams.__dataclass_fields__)


@pytest.mark.parametrize("where", ["loss", "features"])
def test_priority_acts_on_attention_itself(where):
    base = replace(PARAMS, priority_on=where)
    a, b = run(replace(base, priority_weight=0.0)), run(replace(base, priority_weight=4.0))
    assert not np.allclose(a.attention, b.attention, atol=1e-4)
    nobody = replace(base, rare_threshold=0)
    a, b = run(replace(nobody, priority_weight=0.0)), run(replace(nobody, priority_weight=4.0))
    np.testing.assert_array_equal(a.attention, b.attention)


# ---------------------------------------------------------------------------------------------- seeds


def test_quota_by_hand():
    # one each, then the highest of votes / (seeds + 1): 60/2=30, 30/2=15, 60/3=20, 60/4=15 (the tie goes to the first)
    no = np.zeros(3, bool)
    assert seed_quota(np.array([60, 30, 9]), 3, no, 2.0).tolist() == [1, 1, 1]
    assert seed_quota(np.array([60, 30, 9]), 5, no, 2.0).tolist() == [3, 1, 1]
    assert seed_quota(np.array([60, 30, 9]), 6, no, 2.0).tolist() == [4, 1, 1]
    assert seed_quota(np.array([60, 30, 9]), 7, no, 2.0).tolist() == [4, 2, 1]
    # the rare type has 9 x 3 = 27 votes: 30, 20, 15, 15, 27/2 = 13.5
    assert seed_quota(np.array([60, 30, 9]), 8, np.array([0, 0, 1], bool), 2.0).tolist() == [4, 2, 2]
    assert seed_quota(np.array([60, 30, 9]), 8, no, 2.0).tolist() == [5, 2, 1]


def test_quota_keeps_its_promises():
    rng = np.random.default_rng(0)
    for _ in range(100):
        sizes = rng.integers(1, 40, rng.integers(1, 8))
        n_seeds = int(rng.integers(0, sizes.sum() + 5))
        is_rare = sizes <= 8
        quota = seed_quota(sizes, n_seeds, is_rare, 2.0)
        assert quota.sum() == min(max(n_seeds, len(sizes)), sizes.sum())
        assert (quota >= 1).all() and (quota <= sizes).all()
        plain = seed_quota(sizes, n_seeds, is_rare, 0.0)
        assert quota[is_rare].sum() >= plain[is_rare].sum()


def test_rare_types_are_favoured():
    sizes, is_rare = np.array([200, 100, 12]), np.array([False, False, True])
    share = 12 / 312
    quota = seed_quota(sizes, 60, is_rare, 2.0)
    assert quota[2] / 60 > 1.5 * share
    assert quota[0] / quota[1] == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize(("threshold", "expected"), [(None, [2]), (0, []), (12, [2]), (13, [1, 2]), (99, [0, 1, 2])])
def test_which_types_are_rare(threshold, expected):
    types = np.repeat([0, 1, 2], [40, 13, 10])
    assert np.unique(types[rare_types(types, threshold)]).tolist() == expected


def test_rare_by_default_is_five_percent_of_many_cells():
    types = np.repeat([0, 1, 2], [1000 - 50 - 51, 50, 51])
    assert np.unique(types[rare_types(types, None)]).tolist() == [1]


def test_seeds_have_the_highest_attention_of_their_type():
    types = np.repeat([0, 1, 2], [50, 30, 6])
    attention = np.random.default_rng(0).random(86)
    is_seed = choose_seeds(attention, types, types == 2, PARAMS)
    assert is_seed.sum() == np.ceil(0.2 * 86)
    expected = seed_quota(np.array([50, 30, 6]), 18, np.array([False, False, True]), PARAMS.priority_weight)
    for t in range(3):
        assert is_seed[types == t].sum() == expected[t]
        assert attention[is_seed & (types == t)].min() > attention[~is_seed & (types == t)].max()


def test_without_quota_seeds_have_the_highest_attention():
    types = np.repeat([0, 1], [50, 36])
    attention = np.random.default_rng(0).random(86) + types  # all the high ones in type 1
    is_seed = choose_seeds(attention, types, types < 0, replace(PARAMS, rare_quota=False))
    assert set(np.flatnonzero(is_seed)) == set(np.argsort(attention)[-18:])
    assert not is_seed[types == 0].any()


@pytest.mark.parametrize("rare_quota", [True, False])
@pytest.mark.parametrize(
    ("leakage", "n_cells", "n_seeds"),
    [(0.0, 50, 0), (0.2, 299, 60), (0.2, 90, 18), (0.07, 100, 7), (0.01, 101, 2), (1.0, 30, 30)],
)
def test_number_of_seeds(leakage, n_cells, n_seeds, rare_quota):
    types = np.arange(n_cells) % 2
    params = replace(PARAMS, leakage=leakage, rare_quota=rare_quota)
    assert choose_seeds(np.ones(n_cells), types, types < 0, params).sum() == n_seeds


def test_every_type_has_a_seed_even_if_seeds_are_few():
    types = np.arange(50) % 5
    is_seed = choose_seeds(np.ones(50), types, types < 0, replace(PARAMS, leakage=0.01))
    assert sorted(types[is_seed]) == [0, 1, 2, 3, 4]


def test_neighborhood_by_hand(monkeypatch):
    monkeypatch.setattr(cell_selection, "LEAST_LISTENERS", 2)
    types = np.array([0, 0, 0, 0, 1, 1, 1])
    edges = np.array([[0, 0, 0, 1, 1, 4, 0, 1, 2, 4, 5], [1, 2, 3, 2, 3, 0, 0, 1, 2, 4, 4]])
    alpha = np.array([0.6, 0.2, 0.1, 0.6, 0.1, 0.5, 0.4, 0.4, 0.8, 0.3, 0.7])
    paid = kin_payments(edges, alpha, types).toarray()
    # 0 is heard by 1, 2 and 3 of its kin, and itself; 1 by 2 and 3; 4 only by a stranger and itself, 5 by one of kin
    expected = np.zeros((7, 7))
    expected[0, 1:4], expected[1, 2:4] = [0.6, 0.2, 0.1], [0.6, 0.1]
    np.testing.assert_allclose(paid, expected)
    hood = seed_neighborhoods(sp.csr_matrix(paid), np.array([0, 1, 4])).toarray()
    # 1 itself is the seed's; 2 pays one in four to 0 and three to 1; 3 pays both alike; nobody listens to 4
    np.testing.assert_allclose(hood, [[0, 1, 0.25, 0.5, 0, 0, 0], [0, 0, 0.75, 0.5, 0, 0, 0], [0] * 7])


def test_neighborhoods_share_out_those_who_listen_to_seeds():
    types = blobs()[1]
    selection = run()
    edges, alpha, _ = attend()
    hood, seeds = selection.neighborhood.toarray(), np.flatnonzero(selection.is_seed)
    assert hood.shape == (len(seeds), len(types))
    assert not hood[types[seeds][:, None] != types].any()
    listens = hood.any(0)
    np.testing.assert_allclose(hood.sum(0), listens)
    assert listens.mean() > 0.5 and all(hood[i, seed] == 0 for i, seed in enumerate(seeds))
    paid = sp.csr_matrix((alpha, edges), (len(types), len(types))).toarray()
    heard = [(edges[1][(edges[0] == seed) & (types[edges[1]] == types[seed])] != seed).sum() for seed in seeds]
    assert (hood.any(1) == (np.array(heard) >= LEAST_LISTENERS)).all()
    for cell in np.flatnonzero(listens):
        shares = hood[:, cell]
        np.testing.assert_allclose(
            shares, paid[seeds, cell] * (shares > 0) / paid[seeds, cell][shares > 0].sum(), rtol=1e-5
        )


def test_reach_is_that_of_the_best_set_by_hand():
    """0 and 1 are heard by the same cells, 5 by others: the second best single cell is not the second to take."""
    paid = np.zeros((8, 8))
    paid[0, [2, 3, 4]], paid[1, [2, 3, 4]], paid[5, [6, 7]] = 0.9, 0.8, 0.3
    order = farthest_reach_first(sp.csr_matrix(paid)).tolist()
    assert order[:2] == [0, 5] and sorted(order) == list(range(8))
    paid[5, 0] = 0.7
    assert farthest_reach_first(sp.csr_matrix(paid)).tolist()[:2] == [0, 5]


def test_reach_is_as_good_as_the_greedy_rule_written_out():
    rng = np.random.default_rng(0)
    paid = sp.random(40, 40, 0.1, random_state=0, format="csr")
    dense, most, order = paid.toarray(), np.zeros(40), []
    for _ in range(40):
        adds = np.maximum(dense - most, 0).sum(1)
        adds[order] = -1
        order.append(int(adds.argmax()))
        most = np.maximum(most, dense[order[-1]])
    found = farthest_reach_first(paid)
    adds_something = [
        np.maximum(dense[order[k]] - dense[order[:k]].max(0, initial=0), 0).sum() > 1e-12 for k in range(40)
    ]
    n = int(np.argmin(adds_something)) or 40
    assert n > 5 and found[:n].tolist() == order[:n]
    by_chance = [dense[rng.choice(40, 6, replace=False)].max(0).sum() for _ in range(50)]
    assert dense[found[:6]].max(0).sum() > max(by_chance)


def test_seeds_by_reach_leave_no_part_of_a_type_out():
    """A type of two clouds, of which one is small and its cells are paid less: the highest scores are all elsewhere."""
    X = np.concatenate([np.random.default_rng(0).normal(size=(40, 4)), np.random.default_rng(1).normal(8, 1, (8, 4))])
    edges = knn_graph(X.astype(np.float32), 5, symmetric=True, seed=0)
    alpha = np.where(edges[0] < 40, 0.3, 0.1)
    types = np.zeros(48, int)
    chosen = {}
    for by in ("reach", "attention"):
        params = replace(SelectionParams(), seeds_by=by, leakage=0.25)
        attention = cell_attention(edges, alpha, 48)
        scores = seed_scores(attention, edges, X, types, params, seed=0, paid=kin_payments(edges, alpha, types))
        chosen[by] = choose_seeds(scores, types, types > 0, params)
    assert chosen["reach"][40:].any() and not chosen["attention"][40:].any()


def test_no_seeds_no_neighborhoods():
    selection = run(replace(PARAMS, leakage=0.0))
    assert not selection.is_seed.any() and selection.neighborhood.shape == (0, 58)


# ---------------------------------------------------------------------------------------------- real cells


@pytest.fixture(scope="module")
def blood():
    cells = load_cells(CellSource())
    library_size = float(np.median(np.asarray(cells.X.sum(1))))
    types = np.unique(cells.obs["cell_type"].astype(str), return_inverse=True)[1]
    params = SelectionParams(rare_threshold=cells.uns["rare_threshold"])
    log_values = to_log(cells.X, cells.uns["scale"], library_size)
    return select(log_values, types, params, seed=42, device=CPU, report=silent), types


@pytest.mark.slow
def test_blood_every_type_has_seeds_and_rare_ones_more(blood):
    selection, types = blood
    sizes, seeds = np.bincount(types), np.bincount(types[selection.is_seed], minlength=10)
    assert len(sizes) == 10 and sizes.min() == 8
    assert (seeds > 0).all() and seeds.sum() == 140
    assert np.array_equal(selection.is_rare, sizes[types] <= 20) and selection.is_rare.any()
    assert selection.is_rare[selection.is_seed].mean() > 1.5 * selection.is_rare.mean()
    for t in np.flatnonzero(sizes <= 20):
        assert seeds[t] / 140 > sizes[t] / 700


def test_blood_types_are_recognised(blood):
    selection, types = blood
    assert selection.accuracy > np.bincount(types).max() / len(types) + 0.2


def test_blood_attention_says_more_than_degree(blood):
    selection, _ = blood
    assert selection.attention.std() > 0.05
    shared = np.asarray(selection.neighborhood.sum(0)).ravel()
    np.testing.assert_allclose(shared, shared > 0)


# ---------------------------------------------------------------------------------------------- choices of seeds


def score(by, *, edges=((), ()), features=None, types=(0,) * 6, seed=0, **changes):
    """Score cells, whose attention rises with their number."""
    params = replace(SelectionParams(), seeds_by=by, **changes)
    edges, types = np.array(edges, int), np.array(types)
    return seed_scores(np.arange(len(types), dtype=float), edges, features, types, params, seed=seed)


def test_farthest_first_spreads_over_a_line():
    order = farthest_first(np.array([[0.0], [1], [2], [3], [4], [10]]))
    assert order.tolist() == [3, 5, 0, 1, 2, 4]
    assert sorted(farthest_first(np.zeros((5, 2)))) == [0, 1, 2, 3, 4]


def test_k_centres_cover_better_than_any_chance_choice():
    features = np.random.default_rng(0).normal(size=(60, 2))
    types = np.zeros(60, int)

    def radius(chosen):
        return min(np.linalg.norm(features - features[i], axis=1).max() for i in chosen) if len(chosen) == 1 else max(
            np.linalg.norm(features[chosen] - cell, axis=1).min() for cell in features
        )  # fmt: skip

    chosen = {
        by: np.flatnonzero(choose_seeds(
            score(by, features=features, types=types), types, types > 0, replace(SelectionParams(), leakage=0.1)
        ))
        for by in ("k_centre", "random")
    }  # fmt: skip
    assert len(chosen["k_centre"]) == len(chosen["random"]) == 6
    assert radius(chosen["k_centre"]) < radius(chosen["random"])


def test_k_centres_are_sought_in_each_type_only_if_there_is_a_quota():
    features, types = np.array([[0.0], [1], [2], [100], [101], [102]]), np.repeat([0, 1], 3)
    assert score("k_centre", features=features, types=types).tolist() == [-1, 0, -2, -1, 0, -2]
    assert len(set(score("k_centre", features=features, types=types, rare_quota=False))) == 6


def test_degree_counts_listeners_and_breaks_ties_by_chance():
    edges = np.array([[0, 0, 0, 1, 1, 2, 5], [1, 2, 3, 0, 2, 4, 5]])  # the last is a self loop
    found = score("degree", edges=edges)
    assert np.floor(found).tolist() == [3, 2, 1, 0, 0, 0]
    assert len(set(found)) == 6


def test_random_scores_are_new_for_each_seed():
    a, b, c = (score("random", seed=seed) for seed in (0, 0, 1))
    assert (a == b).all() and (a != c).all()
    assert len(np.unique(a)) == 6
    assert score("attention").tolist() == [0, 1, 2, 3, 4, 5]


def test_rare_only_needs_a_rare_type():
    types = np.array([0, 0, 0, 0, 1, 1])
    params = replace(SelectionParams(), rare_only=True, leakage=0.5)
    assert np.flatnonzero(choose_seeds(np.arange(6), types, types == 1, params)).tolist() == [4, 5]
    with pytest.raises(UserError, match="no type is rare"):
        choose_seeds(np.arange(6), types, types > 1, params)


def test_part_of_the_graph_is_that_of_pyg():
    edges = knn_graph(np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32), 6, symmetric=True, seed=0)
    cells, rng = np.array([7, 150, 3]), np.random.default_rng(0)
    nodes, local = ListenerGraph(edges, 200).around(cells, hops=2, fan_out=None, rng=rng)
    expected, _, _, mask = k_hop_subgraph(torch.from_numpy(cells), 2, torch.from_numpy(edges))
    assert nodes[:3].tolist() == cells.tolist() and sorted(nodes) == expected.tolist()
    # PyG keeps every edge among these cells, here are those into cells that listen within two hops
    found = set(zip(*nodes[local].tolist(), strict=True))
    assert len(found) == local.shape[1]
    assert found <= set(zip(*edges[:, mask.numpy()].tolist(), strict=True))
    one_hop = set(edges[0][np.isin(edges[1], cells)]) | set(cells)
    assert found == {(s, t) for s, t in edges.T.tolist() if t in one_hop}


def test_fan_out_bounds_what_a_cell_listens_to():
    edges = np.stack([np.arange(1, 101), np.zeros(100, dtype=np.int64)])
    graph = ListenerGraph(edges, 101)
    draws = [graph.around(np.array([0]), hops=2, fan_out=5, rng=np.random.default_rng(i)) for i in range(300)]
    assert all(len(set(nodes)) == 6 and local.shape == (2, 5) for nodes, local in draws)
    counts = np.bincount(np.concatenate([nodes[1:] for nodes, _ in draws]), minlength=101)[1:]
    assert chisquare(counts).pvalue > 1e-3  # each neighbour equally often


def test_many_cells_are_attended_to_block_by_block(monkeypatch):
    arguments = (*two_layers(PARAMS), blobs()[1], np.zeros(len(blobs()[1]), bool), replace(PARAMS, gat_epochs=0))
    train = partial(train_attention, *arguments, seed=0, device=CPU, report=silent)
    whole_edges, whole, accuracy = train()
    monkeypatch.setattr(attention, "EXACT_UP_TO", 25)
    monkeypatch.setattr(attention, "READ_AT_ONCE", 25)
    looped, alpha, blockwise = train()
    np.testing.assert_allclose(by_edge(looped, alpha), by_edge(whole_edges, whole), rtol=1e-4)
    assert blockwise == accuracy


def test_batches_learn_what_all_cells_together_do(monkeypatch):
    _, types = blobs()
    _, _, together = attend()
    features, edges = two_layers(PARAMS)
    monkeypatch.setattr(attention, "EXACT_UP_TO", 25)
    monkeypatch.setattr(attention, "BATCH_CELLS", 16)
    arguments = (features, edges, types, np.zeros(len(types), bool), PARAMS)
    tape = Tape()
    first = train_attention(*arguments, seed=0, device=CPU, report=silent, checkpoint=tape)
    assert first[2] >= together - 0.05
    resumed = train_attention(*arguments, seed=0, device=CPU, report=silent, state=tape.state(3))
    assert all(np.array_equal(a, b) for a, b in zip(first, resumed, strict=True))


def two_layers(params):
    features = graph_features(blobs()[0], params, seed=0)
    return features, knn_graph(features, params.neighbors, symmetric=params.graph_symmetric, seed=0)


def test_components_of_many_cells_are_those_of_a_sample(monkeypatch):
    X, _ = blobs()
    exact = graph_features(X, PARAMS, seed=0)
    monkeypatch.setattr(attention, "EXACT_UP_TO", len(exact) - 5)
    sampled = graph_features(X, PARAMS, seed=0)
    assert sampled.shape == exact.shape and not np.array_equal(sampled, exact)
    assert abs(np.corrcoef(sampled[:, 0], exact[:, 0])[0, 1]) > 0.99
