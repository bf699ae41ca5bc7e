"""Clusters see no labels, every method gets the same steps, and the controls score what they must."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from anndata import concat
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.neighbors import kneighbors_graph

from benchmarking.controls import all_zeros, real_half
from common import clustering
from common.clustering import RESOLUTIONS, cluster_and_score, cluster_blindly
from common.comparison import thin_synthetic
from common.data import types_of
from common.errors import UserError
from common.metrics.catalogue import HELD, SYNTHETIC
from common.metrics.fidelity import compare_on
from common.results import COLUMNS
from common.runs import load_run
from common.summary import show_beside
from data_validation import data_validation
from data_validation.data_validation import (
    SCORES,
    choose_genes,
    make_judge,
    make_published_judge,
    published_grid,
    published_scores,
)


@pytest.fixture
def run(toy_runs):
    return load_run(toy_runs / "seed0")


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(data_validation, "RESULTS_DIR", tmp_path / "results")
    return tmp_path / "results"


def blobs(seed, n_cells=200):
    """Cells of four types that nothing could confuse."""
    X, types = make_blobs([n_cells // 4] * 4, 12, center_box=(-50, 50), random_state=seed)
    return X.astype(np.float32), types.astype(str)


def values(judged, group):
    return judged[judged["group"] == group].set_index("metric")["value"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_blobs_are_found_whatever_the_order_of_the_file(seed):
    X, types = blobs(seed)
    clusters, _ = cluster_blindly(X, seed=seed)
    assert adjusted_rand_score(types, clusters) == 1
    order = np.random.default_rng(seed).permutation(len(X))
    scores = cluster_and_score(X[order], types[order], seed=seed)
    assert {name: scores[name] for name in ("ari", "nmi", "macro_f1", "n_clusters")} == pytest.approx(
        {"ari": 1, "nmi": 1, "macro_f1": 1, "n_clusters": 4}
    )


def test_scores_are_those_of_sklearn(run):
    X, types = compare_on(run.held), types_of(run.held)
    clusters, resolution = cluster_blindly(X, seed=3)
    scores = cluster_and_score(X, types, seed=3)
    assert list(scores) == SCORES
    assert scores["ari"] == pytest.approx(adjusted_rand_score(types, clusters))
    assert scores["nmi"] == pytest.approx(normalized_mutual_info_score(types, clusters))
    assert scores["n_clusters"] == len(set(clusters)) and scores["resolution"] == resolution


def test_labels_choose_no_resolution():
    X, types = blobs(0)
    X += 20 * np.random.default_rng(0).standard_normal(X.shape)  # so that resolutions differ
    shuffled = np.random.default_rng(1).permutation(types)
    true, false = (cluster_and_score(X, labels, seed=0) for labels in (types, shuffled))
    assert true["resolution"] == false["resolution"] and true["n_clusters"] == false["n_clusters"]
    assert true["ari"] > false["ari"] + 0.3
    true, false = (published_scores(X, labels, published_grid(0.1)) for labels in (types, shuffled))
    assert true["published_unsupervised_resolution"] == false["published_unsupervised_resolution"]
    assert true["published_best_ari"] > false["published_best_ari"] + 0.3


def test_equal_cells_are_not_told_apart_by_the_order_of_the_file(monkeypatch):
    """Half of the cells are empty and stand sorted by type; so many clusters that the empty ones are cut up as well."""
    monkeypatch.setattr(clustering, "RESOLUTIONS", (2.0,))
    types = np.repeat(list("abcd"), 50)
    agreed = []
    for seed in range(4):
        X = np.random.default_rng(seed).poisson(1.0, size=(200, 8)).astype(np.float32)
        X[::2] = 0
        clusters, _ = cluster_blindly(X, seed=0)
        assert len(set(clusters[::2])) > 1
        agreed.append(adjusted_rand_score(types[::2], clusters[::2]))
    assert np.mean(agreed) == pytest.approx(0, abs=0.03)


def test_all_zeros_score_nothing(run):
    cells = all_zeros.sample(all_zeros.fit(run.train, seed=0), run.train.n_obs, seed=0)
    found = values(make_judge()(replace(run, synthetic=cells)), SYNTHETIC)
    assert found["ari"] == 0 and found["nmi"] == 0 and found["n_clusters"] == 1
    judged = make_published_judge(5, 0.5, 1)(replace(run, synthetic=cells))
    assert values(judged, "genes of synthetic cells").isna().all()  # no gene can be chosen
    assert values(judged, "genes of training cells").notna().all()


def test_real_half_is_the_training_cells(run):
    cells = real_half.sample(real_half.fit(run.train, seed=0), 1, seed=0)
    judged = make_judge()(replace(run, synthetic=cells))
    train = run.train[run.train.obs["cell_type"].astype(str).argsort(kind="stable")]
    expected = cluster_and_score(compare_on(train), types_of(train), seed=run.seed)
    assert values(judged, SYNTHETIC).to_dict() == pytest.approx(expected)
    held = cluster_and_score(compare_on(run.held), types_of(run.held), seed=run.seed)
    assert values(judged, HELD).to_dict() == pytest.approx(held)
    published = make_published_judge(6, 0.5, 2)(replace(run, synthetic=cells))
    chosen, expected = (values(published, f"genes of {group} cells") for group in ("synthetic", "training"))
    assert chosen.to_dict() == pytest.approx(expected.to_dict())


def test_no_more_synthetic_than_held_out_cells(run):
    more = replace(run, synthetic=concat([run.synthetic] * 3, index_unique="-", uns_merge="first"))
    thinned = thin_synthetic(more, run.held.n_obs)
    assert thinned.n_obs == run.held.n_obs and thinned.uns["scale"] == "counts"
    assert len(set(types_of(thinned))) == 3  # at random, not the first ones


@pytest.mark.parametrize("seed", [0, 1])
def test_published_neighbours_are_those_by_cosine(seed, monkeypatch):
    X = np.random.default_rng(seed).gamma(1.0, size=(90, 40)).astype(np.float32)
    seen = []
    monkeypatch.setattr(data_validation, "choose_resolution", lambda pcs, **_: seen.append(pcs) or RESOLUTIONS[0])
    published_scores(X, np.repeat(["a", "b", "c"], 30), [RESOLUTIONS[0]])
    centred = (X - X.mean(0))[np.random.default_rng(data_validation.PUBLISHED_SEED).permutation(90)]
    U, S, _ = np.linalg.svd(centred, full_matrices=False)
    expected = kneighbors_graph((U * S)[:, :20], 30, metric="cosine")
    found = kneighbors_graph(seen[0], 30)
    assert (found != expected).nnz == 0


def test_published_sweep(run):
    assert set(RESOLUTIONS) <= set(published_grid(0.1)) and len(published_grid(0.1)) == 30
    assert len(published_grid(0.01)) == 291 and (published_grid(0.01)[0], published_grid(0.01)[-1]) == (0.1, 3.0)
    judged = make_published_judge(8, 0.25, 2)(run)
    assert set(judged["metric"]) == {
        f"published_{kind}_{metric}"
        for kind in ("best", "unsupervised")
        for metric in ("ari", "nmi", "macro_f1", "resolution")
    }
    for group in judged["group"].unique():
        found = values(judged, group)
        assert found["published_best_ari"] >= found["published_unsupervised_ari"]


def test_every_method_gets_the_same_grid(run, monkeypatch):
    grids = []

    def spy(X, labels, resolutions):
        grids.append(tuple(resolutions))
        return published_scores(X, labels, resolutions)

    monkeypatch.setattr(data_validation, "published_scores", spy)
    judge = make_published_judge(8, 0.5, 3)
    judge(run)
    judge(replace(run, method="other", synthetic=run.train))
    assert len(grids) == 1 + 1 + 3 + 1  # the real cells' genes and random ones once for both methods
    assert len(set(grids)) == 1


def test_genes_are_chosen_on_the_synthetic_cells(run):
    genes = choose_genes(run.synthetic, "fano", 7, published=False)
    assert len(genes) == len(set(genes)) == 7
    assert sorted(genes) != sorted(choose_genes(run.train, "fano", 7, published=False))
    assert choose_genes(run.synthetic, "fano", 20, published=False) is None  # the last gene is silent


def test_script(toy_runs, results, capsys, monkeypatch):
    pictures = {}  # drawn for good in test_plotting.py, in a tenth of a minute
    monkeypatch.setattr(data_validation, "joint_umap", lambda real, drawn, path, seed: pictures.update({path: real}))
    runs = [str(toy_runs / "seed0"), str(toy_runs / "seed1")]
    data_validation.main(["--runs", *runs, "--controls", "real_half", "all_zeros"])
    table = pd.read_csv(results / "tables" / "data_validation.csv")
    assert set(COLUMNS) <= set(table.columns)
    assert set(table["method"]) == {"garage", "real_half", "all_zeros"} and set(table["seed"]) == {0, 1}
    assert set(table["group"]) == {SYNTHETIC, HELD} and set(table["metric"]) == set(SCORES)
    assert not table.duplicated(["dataset", "split", "seed", "method", "group", "metric"]).any()
    held = table[(table["group"] == HELD) & (table["metric"] == "ari")].groupby("seed")["value"]
    assert (held.nunique() == 1).all()  # the reference is the same beside every method
    for seed in (0, 1):
        run = load_run(toy_runs / f"seed{seed}")
        expected = cluster_and_score(compare_on(run.held), types_of(run.held), seed=seed)
        assert held.first()[seed] == pytest.approx(expected["ari"])
        drawn = pictures.pop(results / "figures" / f"validation_toy_garage_seed{seed}.png")
        assert set(drawn.obs_names) == set(run.held.obs_names)
    assert not pictures
    shown = capsys.readouterr().out
    assert "held-out cells" in shown and "wrote" in shown


def test_script_published(toy_runs, results, capsys):
    flags = ["--runs", str(toy_runs / "seed0"), "--no-umap", "--published", "--step", "1", "--controls", "real_half"]
    data_validation.main([*flags, "--n-genes", "8", "--draws", "2"])
    table = pd.read_csv(results / "tables" / "data_validation_published.csv")
    assert (table["n_genes"] == 8).all() and (table["step"] == 1).all() and (table["draws"] == 2).all()
    assert set(table["group"]) == {"genes of synthetic cells", "genes of training cells", "random genes"}
    assert [path.name for path in results.iterdir()] == ["tables"]
    with pytest.raises(SystemExit):
        data_validation.main([*flags, "--n-genes", "9", "--draws", "2"])
    assert "made with another --n-genes" in capsys.readouterr().err


def test_a_control_that_failed_leaves_the_reference_whole(run, capsys):
    rows = make_judge()(run).assign(dataset="toy", split="halves", seed=0)
    rows = pd.concat([rows.assign(method="broken", value=np.nan), rows.assign(method="garage")])
    show_beside(rows, SYNTHETIC, [HELD], {"ARI": "ari"}, controls=(), title="synthetic")
    shown = capsys.readouterr().out
    held = values(rows[rows["method"] == "garage"], HELD)["ari"]
    assert any(HELD in line and str(held)[:4] in line for line in shown.splitlines())
    assert any("broken" in line and "—" in line for line in shown.splitlines())


@pytest.mark.parametrize("flags, complaint", [
    (["--published", "--n-genes", "20"], "give 1 to 19"),
    (["--published", "--step", "0"], "give 0.001 to 1"),
    (["--n-genes", "5"], "add --published"),
    (["--controls", "nothing"], "there is no control 'nothing'"),
])  # fmt: skip
def test_complaints(flags, complaint, toy_runs, results, capsys):
    with pytest.raises(SystemExit) as exit_:
        data_validation.main(["--runs", str(toy_runs / "seed0"), "--no-umap", *flags])
    assert exit_.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not (results / "tables").exists()


def test_n_genes_beyond_the_expressed_ones_is_refused(run):
    with pytest.raises(UserError, match="express 19"):
        make_published_judge(20, 0.5, 1)(run)
