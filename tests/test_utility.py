"""Utility metrics against theory, hand-made cases, scipy and scanpy."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy.stats import ranksums

from benchmarking.controls import all_zeros, poisson, real_half
from common.data import CellSource, load_cells, select_genes, split_cells
from common.metrics.fidelity import compare_on, pooled_pcs
from common.metrics.utility import (
    ALL,
    RARE,
    TARGET_SUM,
    augmentation,
    label_agreement,
    lfc_recovery,
    log_fold_changes,
    rank_sum_scores,
    train_on_synthetic,
)
from common.scale import to_log

PBMC = Path(__file__).resolve().parents[2] / "shared" / "data" / "pbmc3k.h5ad"
SIZES = {"A": 40, "B": 20, "C": 6}
NAMES = np.repeat(list(SIZES), list(SIZES.values()))
MEASURES = ("lfc_slope", "lfc_correlation", "marker_overlap")


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    monkeypatch.setattr("common.metrics.utility.N_TREES", 50)


def blobs(seed: int, labels: np.ndarray = NAMES) -> np.ndarray:
    """Draw cells of types that lie far apart."""
    centres = {"A": 0.0, "B": 30.0, "C": 60.0}
    return np.random.default_rng(seed).standard_normal((len(labels), 3)) + np.array([[centres[x]] for x in labels])


def counts(seed: int, labels: np.ndarray = NAMES, n_genes: int = 300) -> np.ndarray:
    """Draw log-normalised negative binomial cells; types raise many genes by different folds."""
    profile = np.random.default_rng(99).lognormal(0, 1, n_genes)
    folds = {x: 2 ** (np.random.default_rng(i).exponential(0.5, n_genes) * (np.arange(n_genes) % 3 == i))
             for i, x in enumerate(SIZES)}  # fmt: skip
    means = np.stack([profile * folds[x] for x in labels])
    rng = np.random.default_rng(seed)
    X = rng.poisson(rng.gamma(2.0, means / 2.0))
    return np.log1p(X * (TARGET_SUM / X.sum(1, keepdims=True)))


def test_new_draws_train_as_well_as_real_cells():
    scores = train_on_synthetic(blobs(0), NAMES, blobs(1), NAMES, rare=["C"], seed=0)
    assert set(scores.values()) == {1.0}
    assert {group for _, group in scores} == {ALL, RARE, "A", "B", "C"}
    assert scores == train_on_synthetic(blobs(0), NAMES, blobs(1), NAMES, rare=["C"], seed=0)


def test_scores_of_wrong_labels_by_hand():
    """Synthetic cells call every B an A and know no C, which lies nearest to B: all cells are called A."""
    known = NAMES != "C"
    scores = train_on_synthetic(blobs(0)[known], np.full(known.sum(), "A"), blobs(1), NAMES, rare=["C"], seed=0)
    assert scores["tstr_f1", "A"] == pytest.approx(2 * 40 / (2 * 40 + 26))
    assert scores["tstr_f1", ALL] == pytest.approx(scores["tstr_f1", "A"] / 3)
    assert scores["tstr_recall", ALL] == pytest.approx(1 / 3)
    assert scores["tstr_f1", RARE] == scores["tstr_recall", RARE] == 0
    assert np.isnan(train_on_synthetic(blobs(0), NAMES, blobs(1), NAMES, rare=["Z"], seed=0)["tstr_recall", RARE])


def test_augmentation_gains_what_training_lacks_and_nothing_from_copies():
    lacking = NAMES != "C"
    scores = augmentation(
        blobs(0)[lacking], NAMES[lacking], blobs(1), NAMES, blobs(2), NAMES, rare=["C"], seed=0
    )  # fmt: skip
    assert scores["augmentation_recall", RARE] == scores["augmentation_f1", "C"] == 1
    assert scores["augmentation_recall", ALL] == pytest.approx(1 / 3)
    copies = augmentation(blobs(0), NAMES, blobs(0), NAMES, blobs(2), NAMES, rare=["C"], seed=0)
    assert set(copies.values()) == {0.0}
    harm = augmentation(blobs(0), NAMES, blobs(1), np.full(len(NAMES), "A"), blobs(2), NAMES, rare=["C"], seed=0)
    assert harm["augmentation_f1", ALL] < 0


def agreement_gap(cells, labels, held, held_labels=NAMES):
    return label_agreement(blobs(0), NAMES, cells, labels, held, held_labels, rare=["C"], seed=0)


def test_labels_are_to_agree_as_often_as_those_of_held_out_cells():
    labels = NAMES.copy()
    labels[:10] = "B"  # ten of forty A: of the thirty cells that say B, twenty are
    scores = agreement_gap(blobs(1), labels, blobs(2))
    assert scores["label_agreement_gap", "B"] == pytest.approx(1 / 3)
    assert scores["label_agreement_gap", ALL] == pytest.approx(1 / 9)
    assert set(agreement_gap(blobs(1), labels, blobs(2), labels).values()) == {0.0}  # where real labels are as wrong
    perfect = agreement_gap(blobs(1), NAMES, blobs(2), labels)
    assert perfect["label_agreement_gap", "B"] == pytest.approx(1 / 3)  # it is too much there
    assert agreement_gap(blobs(1), np.full(len(NAMES), "A"), blobs(2))["label_agreement_gap", RARE] == 1
    few = np.flatnonzero(NAMES == "C")[2:]
    scores = agreement_gap(blobs(1), NAMES, np.delete(blobs(2), few, axis=0), np.delete(NAMES, few))
    assert np.isnan(scores["label_agreement_gap", "C"]) and scores["label_agreement_gap", ALL] == 0


def test_copies_and_caricatures_agree_too_well_where_types_overlap():
    rng = np.random.default_rng(0)
    names = np.repeat(["A", "B"], 100)
    training, new, held = (rng.normal(size=(200, 3)) + 0.7 * (names == "B")[:, None] for _ in range(3))
    gaps = {
        kind: label_agreement(training, names, cells, names, held, names, rare=[], seed=0)["label_agreement_gap", ALL]
        for kind, cells in {"new": new, "copies": training, "caricatures": (names == "B")[:, None] * np.ones(3)}.items()
    }
    assert gaps["new"] < 0.1 < 0.2 < min(gaps["copies"], gaps["caricatures"])


def test_log_fold_changes_by_hand():
    X = np.log1p([[3.0, 0], [5, 0], [1, 2], [0, 4], [2, 0]])
    found = log_fold_changes(X, np.array(["a", "a", "b", "b", "c"]), ["a", "c", "none"])
    assert found[0] == pytest.approx(np.log2([5 / 2, 1 / 3]))
    assert found[1] == pytest.approx(np.log2([3 / 3.25, 1 / 2.5]))
    assert np.isnan(found[2]).all()


def test_rank_sums_are_scipys():
    X = counts(0)
    found = rank_sum_scores(X, NAMES, list(SIZES))
    for row, name in zip(found, SIZES, strict=True):
        assert row == pytest.approx(ranksums(X[name == NAMES], X[name != NAMES]).statistic)
    assert rank_sum_scores(np.expm1(X), NAMES, list(SIZES)) == pytest.approx(found)


@pytest.mark.slow
def test_rank_sums_are_scanpys():
    X = counts(0)
    cells = AnnData(X, obs=pd.DataFrame({"type": pd.Categorical(NAMES)}, index=[str(i) for i in range(len(X))]))
    sc.tl.rank_genes_groups(cells, "type", method="wilcoxon")
    for row, name in zip(rank_sum_scores(X, NAMES, list(SIZES)), SIZES, strict=True):
        ranked = sc.get.rank_genes_groups_df(cells, name)
        assert row[ranked["names"].astype(int)] == pytest.approx(ranked["scores"], abs=1e-5)


def test_halved_log_fold_changes_have_slope_a_half():
    labels, folds = np.repeat(["a", "b"], 10), np.linspace(1, 4, 20)

    def cells(factor: float) -> np.ndarray:
        X = np.zeros((20, 20))
        X[:10, :10], X[10:, 10:] = 2 ** (factor * folds[:10]) - 1, 2 ** (factor * folds[10:]) - 1
        return np.log1p(X)

    for factor in (0.5, 1.0, 1.5):
        scores = lfc_recovery(cells(1), labels, cells(factor), labels, cells(1), labels, rare=["b"])
        assert [scores["lfc_slope", group] for group in (ALL, RARE, "a")] == pytest.approx([factor] * 3)
        assert scores["lfc_correlation", ALL] == pytest.approx(1)
        assert scores["marker_overlap", ALL] == 1


def test_slope_of_the_other_real_half_is_1_despite_noise_and_choice():
    """Least squares on markers of the held-out cells is far below 1 on the same cells."""
    slopes, plain = [], []
    for seed in range(0, 32, 2):
        training, held = counts(seed), counts(seed + 1)
        slopes.append(lfc_recovery(training, NAMES, training, NAMES, held, NAMES, rare=[])["lfc_slope", "A"])
        back = lfc_recovery(held, NAMES, held, NAMES, training, NAMES, rare=[])["lfc_slope", "A"]
        assert slopes[-1] == pytest.approx(1 / back)  # the halves are equals
        top = np.argsort(-rank_sum_scores(held, NAMES, ["A"])[0])[:50]
        x, y = (log_fold_changes(X, NAMES, ["A"])[0][top] for X in (held, training))
        plain.append(x @ y / (x @ x))
    assert np.mean(slopes) == pytest.approx(1, abs=0.06)
    assert np.mean(plain) < 0.85


def test_recovery_of_absent_types_is_0_and_of_tiny_ones_unknown():
    present = NAMES != "B"
    scores = lfc_recovery(counts(0), NAMES, counts(1)[present], NAMES[present], counts(2), NAMES, rare=["B"])
    assert [scores[measure, "B"] for measure in MEASURES] == [0, 0, 0]
    assert scores["lfc_slope", ALL] == pytest.approx(np.mean([scores["lfc_slope", name] for name in SIZES]))
    few = np.r_[0:40, 60:62]
    scores = lfc_recovery(counts(0), NAMES, counts(1), NAMES, counts(2)[few], NAMES[few], rare=["C"])
    assert all(np.isnan(scores[measure, "C"]) for measure in MEASURES)
    assert not np.isnan(scores["lfc_slope", ALL])


def test_cells_that_say_nothing_are_at_the_bottom_without_a_warning():
    nothing, zeros = np.zeros((len(NAMES), 300)), np.zeros((len(NAMES), 3))
    one = np.full(len(NAMES), "A")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = lfc_recovery(counts(0), NAMES, nothing, NAMES, counts(2), NAMES, rare=["C"])
        assert [scores[measure, ALL] for measure in MEASURES] == [0, 0, 0]
        assert train_on_synthetic(zeros, NAMES, blobs(1), NAMES, rare=["C"], seed=0)["tstr_f1", ALL] < 0.3
        assert train_on_synthetic(zeros, one, blobs(1), NAMES, rare=["C"], seed=0)["tstr_recall", ALL] == 1 / 3
        assert lfc_recovery(counts(0), NAMES, counts(1), one, counts(2), NAMES, rare=[])["lfc_slope", ALL] == 0
        silent = lfc_recovery(nothing, NAMES, nothing, NAMES, nothing, NAMES, rare=["C"])
        assert all(np.isnan(value) for value in silent.values())
        for cells, labels in ((blobs(0)[:1], NAMES[:1]), (blobs(0)[:0], NAMES[:0])):
            train_on_synthetic(cells, labels, blobs(1), NAMES, rare=["C"], seed=0)
            train_on_synthetic(blobs(1), NAMES, cells, labels, rare=["C"], seed=0)
            label_agreement(blobs(1), NAMES, cells, labels, blobs(2), NAMES, rare=["C"], seed=0)
            label_agreement(blobs(1), NAMES, blobs(2), NAMES, cells, labels, rare=["C"], seed=0)
            augmentation(blobs(0), NAMES, cells, labels, blobs(1), NAMES, rare=["C"], seed=0)
        for cells, labels in ((counts(0)[:1], NAMES[:1]), (counts(0)[:0], NAMES[:0])):
            lfc_recovery(counts(1), NAMES, cells, labels, counts(2), NAMES, rare=["C"])
            lfc_recovery(counts(1), NAMES, counts(2), NAMES, cells, labels, rare=["C"])


@pytest.mark.slow
def test_controls_on_halves_of_pbmc3k():
    if not PBMC.exists():
        pytest.skip(f"{PBMC.name} is not here")
    training, held = split_cells(load_cells(CellSource(input=PBMC)), 0.5, 0)
    training, held = (cells[:, select_genes(training, 1000)].copy() for cells in (training, held))
    slope, f1 = {}, {}
    for control in (real_half, poisson, all_zeros):
        drawn = control.sample(control.fit(training, seed=0), training.n_obs, seed=0)
        groups = (training, drawn, held)
        a, b, c = (cells.obs["cell_type"].astype(str).to_numpy() for cells in groups)
        x, y, z = (to_log(cells.X, "counts", TARGET_SUM).toarray() for cells in groups)
        slope[control] = lfc_recovery(x, a, y, b, z, c, rare=[])
        x, y, z = pooled_pcs(*map(compare_on, groups))
        f1[control] = train_on_synthetic(y, b, z, c, rare=["DC", "Platelet"], seed=0)
    assert slope[real_half]["lfc_slope", ALL] == pytest.approx(1, abs=0.06)
    assert slope[real_half]["lfc_correlation", ALL] > 0.7
    assert slope[real_half]["marker_overlap", ALL] > slope[poisson]["marker_overlap", ALL] + 0.1
    assert [slope[all_zeros][measure, ALL] for measure in MEASURES] == [0, 0, 0]
    assert f1[real_half]["tstr_f1", ALL] > f1[poisson]["tstr_f1", ALL] > f1[all_zeros]["tstr_f1", ALL]
    assert f1[all_zeros]["tstr_f1", ALL] < 0.1 and f1[all_zeros]["tstr_f1", RARE] < 0.1
