"""The ablations: variants differ in what they say, comparisons are paired, seeds are compared."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from conftest import make_toy

from ablation_study import hidden_types, leakage_ablation, multi_seed_synthesis, seed_selection_ablation, variants
from common.data import split_cells
from common.runs import Run


@pytest.fixture
def study(tmp_path, monkeypatch, tiny_preset, few_trees, capsys):
    """Run an ablation on toy cells with the tiny preset; return its exit code, what it told, and its folder."""
    monkeypatch.setattr(variants, "FAMILIES", ("privacy",))
    monkeypatch.setattr("common.generation.RESULTS_DIR", tmp_path)
    monkeypatch.setattr(hidden_types, "RESULTS_DIR", tmp_path)
    monkeypatch.setattr(hidden_types, "N_TREES", 20)
    make_toy().write_h5ad(tmp_path / "toy.h5ad")

    def run(script, *flags):
        argv = ["--datasets", str(tmp_path / "toy.h5ad"), "--seeds", "2", "--jobs", "1", *flags]
        code = 0
        try:
            script.main([*argv, "--out", str(tmp_path / "ablation.csv")])
        except SystemExit as stop:
            code = stop.code
        told = capsys.readouterr()
        return code, told.out + told.err, tmp_path

    return run


@pytest.mark.parametrize("script", [seed_selection_ablation, leakage_ablation])
def test_where_all_fails_the_reason_is_told(study, script, tmp_path):
    (tmp_path / "toy.h5ad").write_bytes(b"no cells")
    code, told, _ = study(script)
    assert code == 1 and "failed:" in told and "nothing was judged" in told


def seeds_of(folder, method, seed):
    return pd.read_csv(folder / "synthetic" / "toy" / method / f"seed{seed}" / "seeds.csv")


@pytest.mark.slow
def test_every_part_is_taken_away_by_itself(study):
    code, told, folder = study(seed_selection_ablation)
    assert code == 0 and "26 judged, 0 known, 0 failed" in told
    table = pd.read_csv(folder / "ablation.csv")
    assert set(table["method"]) == {*seed_selection_ablation.VARIANTS, *variants.CONTROLS}
    found = pd.read_csv(folder / "seed_selection_differences.csv")
    assert set(found["method"]) == {*table["method"]} - {"garage"} and (found["seeds"].dropna() <= 2).all()
    metric = ("all cells", "dcr_ratio")
    values = table.set_index(["method", "group", "metric", "seed"])["value"]
    gap = [values["garage_random", *metric, seed] - values["garage", *metric, seed] for seed in (0, 1)]
    row = found.set_index(["method", "group", "metric"]).loc[("garage_random", *metric)]
    assert row["mean"] == pytest.approx(np.mean(gap)) and row["low"] < row["mean"] < row["high"]
    over = pd.read_csv(folder / "seed_selection_over_datasets.csv")
    assert len(over) == len(found) and (over["datasets"].dropna() <= 1).all() and over["low"].isna().all()
    assert (folder / "seed_selection.png").stat().st_size > 0

    n_seeds = {name: seeds_of(folder, name, 0)["is_seed"].sum() for name in seed_selection_ablation.VARIANTS}
    assert n_seeds.pop("garage_leakage0") == 0 and n_seeds.pop("garage_rare_only") == 4  # NK: four of them
    assert set(n_seeds.values()) == {8}  # a fifth of 36
    rare = seeds_of(folder, "garage_rare_only", 0).query("is_seed")["cell_type"]
    assert set(rare) == {"NK"}
    code, told, _ = study(seed_selection_ablation)
    assert code == 0 and "0 judged, 26 known" in told


@pytest.mark.slow
def test_leakages_have_really_different_seeds(study):
    code, told, folder = study(leakage_ablation, "--leakages", "0", "0.1", "0.3")
    assert code == 0 and "10 judged" in told and "toy: seed cells of 36: 0 at 0%, 4 at 10%, 11 at 30%" in told
    counts = pd.read_csv(folder / "leakage_seeds.csv")
    assert counts["seed_cells"].tolist() == [0, 4, 11, 0, 4, 11]
    assert counts["shared_with_less"].dropna().tolist() == [1, 1]
    losses = pd.read_csv(folder / "leakage_losses.csv")
    assert set(losses["leakage"]) == {0, 0.1, 0.3} and {"nll", "critic"} <= set(losses["term"])
    assert (folder / "leakage_losses_summary.csv").exists() and (folder / "leakage.png").exists()


def test_a_leakage_out_of_range_is_refused(study):
    code, told, folder = study(leakage_ablation, "--leakages", "0.1", "1.5")
    assert code == 2 and "--leakages" in told and not (folder / "synthetic").exists()


@pytest.mark.slow
def test_seeds_share_a_split(study):
    code, told, folder = study(multi_seed_synthesis, "--split-seed", "3")
    assert code == 0 and "6 judged" in told
    runs = [folder / "synthetic" / "toy" / "garage_split3" / f"seed{seed}" for seed in (0, 1)]
    held = split_cells(make_toy(), 0.5, 3)[1].obs_names
    for run in runs:
        assert set(pd.read_csv(run / "heldout.csv")["cell"]) == set(held)
    assert (runs[0] / "cells.csv").read_bytes() != (runs[1] / "cells.csv").read_bytes()
    assert set(pd.read_csv(folder / "ablation.csv")["split"]) == {"holdout 0.5 by seed 3, 20 genes"}
    stability = pd.read_csv(folder / "seed_stability.csv").set_index("group")
    assert list(stability.index) == ["all cells", "rare cells", "B", "NK", "T"]
    assert stability.loc["all cells", "cells"] == 36 and stability.loc["all cells", "seed_cells"] == 8
    spread = pd.read_csv(folder / "metric_stability.csv").set_index("metric")
    assert spread.loc["dcr_ratio", "seeds"] == 2 and np.isnan(spread.loc["dcr_ratio", "sd_over_splits"])

    _, told, _ = study(seed_selection_ablation)  # seeds with splits of their own
    assert "toy, holdout 0.5, 20 genes" in told and "by seed 3" not in told
    code, _, _ = study(multi_seed_synthesis, "--split-seed", "3")
    spread = pd.read_csv(folder / "metric_stability.csv").set_index("metric")
    assert code == 0 and spread.loc["dcr_ratio", "splits"] == 2 and spread.loc["dcr_ratio", "sd_over_splits"] > 0


@pytest.mark.slow
def test_hidden_types_are_looked_for(study):
    code, told, folder = study(hidden_types, "--share", "0.15")
    assert code == 0 and "14 judged, 0 known, 0 failed" in told
    cells = anndata.read_h5ad(folder / "hidden_types" / "toy_hidden.h5ad")
    assert set(cells.obs["true_type"]) == {"B", "NK", "T"} and set(cells.obs["cell_type"]) == {"B", "T"}
    types = cells.obs.astype(str)
    assert (types["cell_type"] == types["true_type"])[types["true_type"] != "NK"].all()
    table = pd.read_csv(folder / "ablation.csv")
    found = table[table["group"] == hidden_types.HIDDEN].set_index(["method", "metric", "seed"])["value"].sort_index()
    assert len(found) == 7 * 3 * 2
    for metric in ("hidden_frequency", "hidden_found"):  # training cells themselves are what others are compared with
        assert (found["real_half", metric].fillna(1) == 1).all()
    differences = pd.read_csv(folder / "hidden_types_differences.csv").set_index(["method", "metric"])
    gaps = [found["garage_leakage0", "hidden_coverage", s] - found["garage", "hidden_coverage", s] for s in (0, 1)]
    row = differences.loc[("garage_leakage0", "hidden_coverage")]
    assert row["mean"] == pytest.approx(np.nanmean(gaps))  # in one split all hidden cells may be training cells
    code, told, _ = study(hidden_types, "--share", "0.15")
    assert code == 0 and "0 judged, 14 known" in told


def test_where_nothing_is_rare_nothing_is_hidden(study):
    code, told, folder = study(hidden_types, "--share", "0.01")
    assert code == 2 and "note: 0 of the 3 types of toy are rare: left out" in told and "change --share" in told
    assert not (folder / "synthetic").exists()


def test_hidden_types_are_found_where_they_are():
    """Cells of the hidden type in the right number are found; none are, where a generator makes the others only."""
    rng = np.random.default_rng(0)
    types = np.repeat(["A", "B", "C"], [60, 60, 12])
    level = np.stack([np.repeat(np.roll([8.0, 1, 1], i), 10) for i in range(3)])[
        np.unique(types, return_inverse=True)[1]
    ]

    def cells(keep=slice(None)):
        made = AnnData(sp.csr_matrix(rng.poisson(level).astype(np.float32)), uns={"scale": "counts", "dataset": "made"})
        made.obs["true_type"], made.obs["cell_type"] = types, np.where(types == "C", "A", types)
        return made[keep].copy()

    train, held = cells(), cells()
    run = Run(
        folder=Path(), dataset="made", method="", seed=0, split="", params={}, rare_threshold=None, train=train,
        held=held, synthetic=cells(), seeds=None,
    )  # fmt: skip
    right = hidden_types.find_hidden(run)
    assert right["hidden_found"] == 1 and right["hidden_frequency"] == 1 and right["hidden_coverage"] > 0.7
    without = hidden_types.find_hidden(replace(run, synthetic=cells(types != "C")))
    assert without == {"hidden_coverage": 0, "hidden_found": 0, "hidden_frequency": 0}
    train.obs["cell_type"] = train.obs["true_type"]
    assert set(hidden_types.hide_rare_types(train, 0.1)) == {"A", "B"}
    with pytest.raises(hidden_types.NothingToHide, match="0 of the 3 types"):
        hidden_types.hide_rare_types(train, 0.01)


def test_one_seed_cannot_be_compared(study):
    code, told, _ = study(multi_seed_synthesis, "--seeds", "1")
    assert code == 2 and "--seeds 2" in told


def make_seeds(types, chosen, attention=None):
    attention = np.arange(len(types)) if attention is None else attention
    return pd.DataFrame({"cell_type": types, "is_seed": chosen, "is_rare": types == "b", "attention": attention})


@pytest.mark.slow
def test_overlap_of_seeds_by_hand_and_by_chance():
    rng = np.random.default_rng(0)
    types = np.repeat(["a", "b"], [40, 10])

    def draw():
        chosen = np.zeros(50, bool)
        chosen[rng.choice(40, 12, replace=False)] = chosen[40 + rng.choice(10, 5, replace=False)] = True
        return chosen

    runs = [make_seeds(types, draw(), rng.random(50)) for _ in range(60)]
    found = multi_seed_synthesis.compare_seeds(runs).set_index("group")
    assert found.loc["all cells", "jaccard"] == pytest.approx(found.loc["all cells", "jaccard_by_chance"], abs=0.02)
    assert found.loc["rare cells", "jaccard"] == pytest.approx(found.loc["rare cells", "jaccard_by_chance"], abs=0.04)
    assert abs(found.loc["all cells", "attention_correlation"]) < 0.05
    a, b = (run["is_seed"].to_numpy() for run in runs[:2])
    pair = multi_seed_synthesis.compare_seeds(runs[:2]).set_index("group")
    assert pair.loc["all cells", "jaccard"] == (a & b).sum() / (a | b).sum()
    same = multi_seed_synthesis.compare_seeds([runs[0], runs[0]]).set_index("group")
    assert (same["jaccard"] == 1).all() and same["attention_correlation"].to_numpy() == pytest.approx(1)
    none = multi_seed_synthesis.compare_seeds([make_seeds(types, np.zeros(50, bool))] * 2)
    assert none["jaccard"].isna().all()


def test_variants_have_names_and_flags_of_their_own():
    flags = list(seed_selection_ablation.VARIANTS.values())
    assert all(a != b for a, b in combinations(flags, 2))
    assert variants.with_leakage(0.2) == ("garage", seed_selection_ablation.VARIANTS["garage"])
    name, flags = variants.with_leakage(0.0)
    assert name == "garage_leakage0" and flags == seed_selection_ablation.VARIANTS[name] == ("--leakage", "0")
