"""Every selection, on every kind of cells, for every method: rows that cannot be mixed up, and controls that fit."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis import clustering_evaluation
from analysis.clustering_evaluation import SELECTIONS, make_judge
from benchmarking.controls import all_zeros, real_half
from common.metrics.fidelity import compare_on
from common.runs import load_run
from data_validation.data_validation import HELD, SCORES, SYNTHETIC, cluster_and_score, random_genes, types_of
from data_validation.feature_selection import select_features, values_for


@pytest.fixture
def run(toy_runs):
    return load_run(toy_runs / "seed0")


@pytest.fixture
def judge():
    return make_judge(n_genes=6, draws=2)


def scores(judged, selection, chosen_on, clustered):
    """Scores of one of the choices, by name."""
    rows = judged.query("selection == @selection and chosen_on == @chosen_on and clustered == @clustered")
    return {metric.removeprefix(f"{selection}_"): value for metric, value in rows[["metric", "value"]].to_numpy()}


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("clustered", [SYNTHETIC, HELD])
def test_genes_of_synthetic_and_of_real_cells(run, judge, selection, clustered):
    """Written out once more, step by step."""
    judged = judge(run)
    cells = {SYNTHETIC: run.synthetic, HELD: run.held}[clustered]
    for chosen_on, chooser in {"synthetic": run.synthetic, "real": run.train}.items():
        genes = select_features(values_for(selection, chooser), selection, 6)
        expected = cluster_and_score(compare_on(cells)[:, genes], types_of(cells), seed=run.seed)
        assert scores(judged, selection, chosen_on, clustered) == pytest.approx(expected)


def test_random_genes_are_averaged_and_the_same_for_every_selection(run, judge):
    judged = judge(run)
    sets = random_genes(run, 6, 2)
    assert len(sets) == 2 and not np.array_equal(*sets)
    assert run.train.n_vars - 1 not in np.concatenate(sets)  # nothing expresses the last gene
    X, types = compare_on(run.held), types_of(run.held)
    expected = np.mean([cluster_and_score(X[:, genes], types, seed=run.seed)["ari"] for genes in sets])
    for selection in SELECTIONS:
        assert scores(judged, selection, "random", HELD)["ari"] == pytest.approx(expected)


def test_real_half_chooses_what_the_training_cells_choose(run, judge):
    cells = real_half.sample(real_half.fit(run.train, seed=0), 1, seed=0)
    judged = judge(replace(run, synthetic=cells))
    for selection in SELECTIONS:
        found, expected = (scores(judged, selection, chosen_on, HELD) for chosen_on in ("synthetic", "real"))
        assert found == pytest.approx(expected)


def test_all_zeros_choose_nothing(run, judge):
    cells = all_zeros.sample(all_zeros.fit(run.train, seed=0), run.train.n_obs, seed=0)
    judged = judge(replace(run, synthetic=cells))
    for selection in SELECTIONS:
        assert np.isnan(list(scores(judged, selection, "synthetic", HELD).values())).all()
        assert scores(judged, selection, "real", SYNTHETIC)["ari"] == 0
        assert scores(judged, selection, "real", HELD)["ari"] != 0


@pytest.mark.slow
def test_script(toy_runs, tmp_path, capsys):
    runs, out = [str(toy_runs / "seed0"), str(toy_runs / "seed1")], tmp_path / "table.csv"
    flags = ["--controls", "real_half", "poisson", "--n-genes", "6", "--draws", "1", "--out", str(out)]
    clustering_evaluation.main(["--runs", runs[0], *flags])
    first = pd.read_csv(out)
    clustering_evaluation.main(["--runs", *runs, *flags])
    table = pd.read_csv(out)
    assert set(table["method"]) == {"garage", "real_half", "poisson"}
    assert len(table) == 2 * len(first) == 2 * 3 * len(SELECTIONS) * 3 * 2 * len(SCORES)
    assert not table.duplicated(["dataset", "split", "seed", "method", "group", "metric"]).any()
    again = table[table["seed"] == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(again.sort_values(list(again)), first.sort_values(list(again)), check_like=True)
    shown = capsys.readouterr().out
    assert "±" in shown and "cv2, ARI" in shown and f"wrote {out}" in shown.replace("\n", "")
    with pytest.raises(SystemExit):
        clustering_evaluation.main(["--runs", *runs, *flags, "--draws", "3"])
    assert "made with another --draws" in capsys.readouterr().err
