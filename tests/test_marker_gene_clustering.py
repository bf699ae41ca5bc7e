"""Clusters on marker genes: types that are left out cost, wrong types are seen, everyone is clustered alike."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from biological_analysis import marker_gene_clustering
from biological_analysis.marker_gene_clustering import ALL_TYPES_F1, AMONG, make_judge, score_alone, score_among
from biological_analysis.markers import MarkerSource, choose_markers
from common.clustering import cluster_and_score
from common.data import types_of
from common.metrics.catalogue import HELD, SYNTHETIC
from common.metrics.fidelity import compare_on
from common.runs import load_run


def blobs(types, seed):
    """Cells of types that lie far apart."""
    centres = {name: 8 * np.eye(3)[i] for i, name in enumerate("ABC")}
    return np.array([centres[name] for name in types]) + np.random.default_rng(seed).normal(size=(len(types), 3))


@pytest.fixture
def run(toy_runs):
    return load_run(toy_runs / "seed0")


def test_types_that_are_left_out_cost():
    all_types, whole, part = np.array(list("ABC")), np.repeat(list("ABC"), 40), np.repeat(list("AB"), 60)
    found = score_alone(blobs(whole, 0), whole, all_types, seed=0)
    assert found[ALL_TYPES_F1] == found["ari"] == 1 and found["n_types"] == 3
    found = score_alone(blobs(part, 0), part, all_types, seed=0)
    assert found["ari"] == 1 and found[ALL_TYPES_F1] == pytest.approx(2 / 3) and found["n_types"] == 2
    assert "macro_f1" not in found


def test_synthetic_among_real_cells():
    all_types, real = np.array(list("ABC")), np.repeat(list("ABC"), 40)

    def f1(drawn, labels):
        return score_among(blobs(real, 0), real, drawn, labels, all_types, seed=0)[ALL_TYPES_F1]

    assert f1(blobs(real, 1), real) == 1
    part = np.repeat(list("AB"), 60)
    assert f1(blobs(part, 1), part) == pytest.approx(2 / 3)  # the real cells of C do not help it
    assert f1(blobs(np.repeat(list("BCA"), 40), 1), real) == 0  # cells of one type under the name of another
    assert f1(blobs(real, 1) + 30, real) == 0  # tight clusters, but beside the real ones
    half = real.copy()
    half[:20] = "B"
    expected = np.mean([2 * 20 / (20 + 40), 2 * 40 / (60 + 40), 1])
    assert f1(blobs(real, 1), half) == pytest.approx(expected)


def test_scores_by_hand(run):
    judged = make_judge(MarkerSource(n_markers=4))(run).set_index(["group", "metric"])["value"]
    chosen = choose_markers(run.train, 4)
    genes = run.train.var_names.isin([gene for of in chosen.values() for gene in of])
    for group, cells in {SYNTHETIC: run.synthetic, HELD: run.held}.items():
        expected = cluster_and_score(compare_on(cells)[:, genes], types_of(cells), seed=run.seed)
        assert judged[group, ALL_TYPES_F1] == pytest.approx(expected["macro_f1"])  # all three types are there
        assert judged[group, "ari"] == pytest.approx(expected["ari"])
    assert judged[AMONG, "n_types"] == 3


def test_a_type_that_is_not_drawn_has_no_f1(run):
    part = run.held[(run.held.obs["cell_type"] != "NK").to_numpy()].copy()
    judged = make_judge(MarkerSource(n_markers=4))(replace(run, synthetic=part)).set_index(["group", "metric"])["value"]
    assert judged[SYNTHETIC, "n_types"] == judged[AMONG, "n_types"] == 2 and judged[HELD, "n_types"] == 3
    assert judged[SYNTHETIC, "ari"] > 0.6 and 0.5 < judged[SYNTHETIC, ALL_TYPES_F1] <= 2 / 3
    assert judged[AMONG, ALL_TYPES_F1] <= 2 / 3


def test_script(toy_runs, tmp_path, capsys):
    runs, out = [str(toy_runs / "seed0"), str(toy_runs / "seed1")], tmp_path / "table.csv"
    flags = ["--controls", "real_half", "all_zeros", "--out", str(out)]
    marker_gene_clustering.main(["--runs", *runs, *flags, "--n-markers", "4"])
    table = pd.read_csv(out)
    assert set(table["method"]) == {"garage", "real_half", "all_zeros"} and set(table["seed"]) == {0, 1}
    assert set(table["group"]) == {SYNTHETIC, HELD, AMONG} and table["value"].notna().sum() > 80
    assert not table.duplicated(["dataset", "split", "seed", "method", "group", "metric"]).any()
    f1 = table[table["metric"] == ALL_TYPES_F1].groupby(["group", "method"])["value"].mean()
    for group in (SYNTHETIC, AMONG):
        assert f1[group, "all_zeros"] < 0.4 < f1[group, "real_half"]
    assert "F1, all types" in (told := capsys.readouterr().out) and f"wrote {out}" in told.replace("\n", "")
    with pytest.raises(SystemExit) as left:
        marker_gene_clustering.main(["--runs", *runs, *flags])
    assert left.value.code == 2 and "made with other markers (4 chosen)" in " ".join(capsys.readouterr().err.split())


def test_markers_of_a_file(toy_runs, tmp_path, capsys):
    path = tmp_path / "markers.json"
    path.write_text('{"B": ["g0", "CD19"], "NK": ["g1", "g4"]}')
    flags = ["--runs", str(toy_runs / "seed0"), str(toy_runs / "seed1"), "--controls", "real_half"]
    marker_gene_clustering.main([*flags, "--markers", str(path), "--out", str(tmp_path / "table.csv")])
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("lacks 1 of 4 marker genes: CD19") == 1 and "no marker genes for T of toy" in told
