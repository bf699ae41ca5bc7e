"""The matrix: all alike judged, resumed, failures told; the search; the ranks."""

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_toy, on_scale

from analysis import rank_methods
from benchmarking import run_benchmark, search
from benchmarking.controls import DEFAULT_CONTROLS, load_controls
from benchmarking.matrix import _split
from benchmarking.sota import gan
from common.errors import UserError
from common.evaluation import evaluate
from common.judging import judge_runs
from common.results import COLUMNS
from config import BASELINES

FAST = ["--families", "privacy", "--jobs", "1"]


@pytest.fixture
def matrix(tmp_path, monkeypatch, capsys):
    """Run the benchmark on toy cells with short trainings; return its exit code, what it told, and its table."""
    monkeypatch.setattr("common.generation.RESULTS_DIR", tmp_path)
    for name in ("gan", "wgan"):
        for preset, params in BASELINES[name].items():
            short = {"budget": 3, "budget_in": "steps", "generator_hidden": (4,), "critic_hidden": (4,)}
            monkeypatch.setitem(BASELINES[name], preset, replace(params, **short))
    make_toy().write_h5ad(tmp_path / "toy.h5ad")

    def run(*methods, flags=(), seeds=1):
        argv = ["--datasets", str(tmp_path / "toy.h5ad"), "--methods", *methods, "--seeds", str(seeds)]
        code = 0
        try:
            run_benchmark.main([*argv, *FAST, "--out", str(tmp_path / "benchmark.csv"), *flags])
        except SystemExit as stop:
            code = stop.code
        told = capsys.readouterr()
        return code, told.out + told.err, pd.read_csv(tmp_path / "benchmark.csv")

    return run


def values_of(table, method):
    return table[(table["method"] == method) & (table["group"] == "all cells")].set_index(["seed", "metric"])["value"]


def test_calibrated_cells_are_those_of_the_same_run(matrix, tmp_path):
    code, _, table = matrix("gan", "gan_calibrated", "poisson_calibrated")
    assert code == 0 and set(table["method"]) == {"gan", "gan_calibrated", "poisson_calibrated"}
    assert sorted(path.name for path in (tmp_path / "synthetic" / "toy").iterdir()) == ["gan"]
    metric = (0, "dcr_ratio")
    assert values_of(table, "gan")[metric] != values_of(table, "gan_calibrated")[metric]
    code, told, _ = matrix("gan_calibrated")
    assert code == 0 and "0 judged, 1 known" in told
    made = (tmp_path / "synthetic/toy/gan/seed0/model.pt").stat().st_mtime_ns
    assert "1 judged" in matrix("gan_calibrated", flags=["--again"])[1]
    assert (tmp_path / "synthetic/toy/gan/seed0/model.pt").stat().st_mtime_ns > made


@pytest.mark.slow
def test_every_method_is_judged_on_every_seed_and_not_twice(matrix, tmp_path):
    code, told, table = matrix("gan", "gan_paper", "poisson", "real_half", seeds=2)
    assert code == 0 and "8 judged, 0 known, 0 failed" in told
    assert set(zip(table["method"], table["seed"], strict=True)) == {
        (method, seed) for method in ("gan", "gan_paper", "poisson", "real_half") for seed in (0, 1)
    }  # fmt: skip
    assert set(table["split"]) == {"holdout 0.5, 20 genes"} and set(table["dataset"]) == {"toy"}
    assert values_of(table, "real_half")[0, "nearer_to_training"] == 1
    assert (values_of(table, "gan").xs("training_seconds", level="metric") > 0).all()
    record = json.loads((tmp_path / "synthetic" / "toy" / "gan_paper" / "seed1" / "run.json").read_text())
    assert (record["preset"], record["seed"], record["method"]) == ("paper", 1, "gan_paper")
    assert "wrote cells" in (tmp_path / "synthetic" / "toy" / "gan" / "seed0" / "log.txt").read_text()

    before = (tmp_path / "benchmark.csv").read_bytes()
    code, told, _ = matrix("gan", "gan_paper", "poisson", "real_half", seeds=2)
    assert code == 0 and "0 judged, 8 known, 0 failed" in told
    assert (tmp_path / "benchmark.csv").read_bytes() == before
    _, told, table = matrix("gan", "poisson", "wgan")
    assert "1 judged, 2 known" in told and set(table["method"]) == {"gan", "gan_paper", "poisson", "real_half", "wgan"}


def test_a_run_is_taken_up_if_it_is_what_would_be_made(matrix, tmp_path, monkeypatch):
    _, _, first = matrix("gan")
    folder = tmp_path / "synthetic" / "toy" / "gan" / "seed0"
    made = (folder / "run.json").stat().st_mtime_ns
    (tmp_path / "benchmark.csv").unlink()
    _, told, again = matrix("gan")
    assert "1 judged" in told and (folder / "run.json").stat().st_mtime_ns == made
    pd.testing.assert_frame_equal(first, again)

    monkeypatch.setitem(BASELINES["gan"], "tuned", replace(BASELINES["gan"]["tuned"], budget=5))
    assert "1 judged" in matrix("gan")[1]
    assert json.loads((folder / "run.json").read_text())["steps"] == 5
    assert "1 judged" in matrix("gan", flags=["--again"])[1]


def test_a_failure_is_told_and_is_a_gap_until_it_is_mended(matrix, tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(gan, "make_generator", lambda *_: 1 / 0)
        code, told, table = matrix("gan", "poisson")
    assert code == 1 and "1 judged, 0 known, 1 failed" in told
    log = tmp_path / "synthetic" / "toy" / "gan" / "seed0" / "log.txt"
    assert f"failed: gan on toy, seed 0: ZeroDivisionError: division by zero (see {log})" in told
    assert "make_generator" in log.read_text()
    assert values_of(table, "gan").isna().all() and (0, "copies") in values_of(table, "gan")
    assert values_of(table, "poisson").notna().any()
    of_gan = table[table["method"] == "gan"]
    assert set(of_gan["group"]) == {"all cells", "rare cells", "B", "NK", "T"}  # last among them, too
    code, told, table = matrix("gan", "poisson")
    assert code == 0 and "1 judged, 1 known, 0 failed" in told
    assert values_of(table, "gan")[0, "nearer_to_training"] > 0
    with monkeypatch.context() as broken:  # what it was worth before says nothing of today's
        broken.setattr(gan, "make_generator", lambda *_: 1 / 0)
        _, _, table = matrix("gan", flags=["--again"])
    assert values_of(table, "gan").isna().all()


def test_what_was_made_of_other_cells_or_is_gone_is_made_anew(matrix, tmp_path):
    _, told, first = matrix("gan", "real_half")
    assert "2 judged" in told and "0 judged, 2 known" in matrix("gan", "real_half")[1]
    shutil.rmtree(tmp_path / "synthetic")  # as in a fresh clone, where tables are and runs are not
    _, told, again = matrix("gan", "real_half")
    assert "1 judged, 1 known" in told
    timed = first["metric"].str.endswith("_seconds")
    pd.testing.assert_frame_equal(first[~timed], again[~timed])
    fewer = make_toy()[::2]
    fewer.write_h5ad(tmp_path / "toy.h5ad")  # other cells under the same name
    _split.cache_clear()  # as for a command of its own
    _, told, table = matrix("gan", "real_half")
    assert "2 judged, 0 known" in told and (table["n"].max() < first["n"].max())


def test_cells_of_one_name_are_not_taken_for_each_other(matrix, tmp_path, capsys):
    (tmp_path / "more").mkdir()
    path = tmp_path / "more" / "toy.h5ad"
    make_toy()[::2].write_h5ad(path)
    flags = ["--methods", "gan", *FAST, "--out", str(tmp_path / "other.csv"), "--seeds", "1"]
    with pytest.raises(SystemExit, match="2"):
        run_benchmark.main(["--datasets", str(tmp_path / "toy.h5ad"), str(path), *flags])
    assert "would both be called toy: rename the file" in capsys.readouterr().err.replace("\n", " ")
    matrix("gan")
    record = (tmp_path / "synthetic/toy/gan/seed0/run.json").read_bytes()
    _split.cache_clear()
    with pytest.raises(SystemExit, match="1"):
        run_benchmark.main(["--datasets", str(path), *flags])
    assert "holds a run on other data" in capsys.readouterr().err.replace("\n", " ")
    assert (tmp_path / "synthetic/toy/gan/seed0/run.json").read_bytes() == record


def test_scaled_cells_keep_all_genes_on_request(matrix, tmp_path):
    on_scale(make_toy(), "scaled").write_h5ad(tmp_path / "toy.h5ad")
    code, _, table = matrix("real_half", flags=["--n-top-genes", "None"])
    assert code == 0 and set(table["split"]) == {"holdout 0.5, 20 genes"}


def test_rows_of_other_splits_are_not_shown(matrix, tmp_path):
    matrix("real_half", "poisson")
    _, told, table = matrix("real_half", flags=["--holdout", "0.25"])
    assert set(table["split"]) == {"holdout 0.5, 20 genes", "holdout 0.25, 20 genes"}
    assert "holdout 0.25" in told and "holdout 0.5" not in told


def test_a_script_s_own_error_is_the_reason(matrix, monkeypatch):
    monkeypatch.setattr("benchmarking.matrix.Job.argv", property(lambda job: ["--holdout", "0.5", "--seed", "-1"]))
    code, told, _ = matrix("gan")
    assert code == 1 and "failed: gan on toy, seed 0: --seed is -1: give a number" in told


@pytest.mark.slow
def test_controls_are_as_evaluate_has_them(matrix, toy_runs, tmp_path, few_trees):
    """Whoever judges: the same split, the same cells, the same numbers."""
    _, _, table = matrix("poisson", flags=["--families", "privacy", "fidelity"])
    rows = judge_runs(
        [toy_runs / "seed0"], lambda run: evaluate(run, families=["privacy", "fidelity"]),
        controls=load_controls(["poisson"]), path=tmp_path / "other.csv", again=False, report=lambda *_, **__: None,
    )  # fmt: skip
    found, expected = values_of(table, "poisson")[0], values_of(rows, "poisson")[0]
    pd.testing.assert_series_equal(found[expected.index], expected)


@pytest.mark.slow
def test_processes_change_nothing(matrix, tmp_path):
    _, _, alone = matrix("poisson", "real_half", seeds=2)
    (tmp_path / "benchmark.csv").rename(tmp_path / "alone.csv")
    code, told, together = matrix("poisson", "real_half", seeds=2, flags=["--jobs", "2"])
    assert code == 0 and "4 judged" in told
    timed = alone["metric"].str.endswith("_seconds")
    pd.testing.assert_frame_equal(together[~timed], alone[~timed])


def test_groups_and_names(tmp_path, capsys):
    methods = run_benchmark.choose_methods(["all"])
    assert methods == ["garage", *BASELINES, *DEFAULT_CONTROLS]
    assert run_benchmark.choose_methods(["paper", "garage_paper", "gan"]) == [
        *(f"{name}_paper" for name in BASELINES), "garage_paper", "gan",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"no method 'wgam'.*did you mean 'wgan'"):
        run_benchmark.choose_methods(["wgam"])
    for flags, told in (
        (["--datasets", "pbmc86k"], "did you mean 'pbmc68k'"),
        (["--datasets", str(tmp_path / "nothing.h5ad")], "does not exist"),
        (["--seeds", "0"], "give at least 1"),
    ):
        with pytest.raises(SystemExit) as stop:
            run_benchmark.main(flags)
        assert stop.value.code == 2 and told in capsys.readouterr().err.replace("\n", " ")


# ---------------------------------------------------------------------------------------------- search


@pytest.mark.parametrize("method", search.SPACES)
def test_trials_are_the_same_each_time_and_lie_in_their_space(method):
    tuned, first = BASELINES[method]["tuned"], search.propose(method, 0)
    assert replace(tuned, **first) == tuned and set(first) == set(search.SPACES[method])
    trials = [search.propose(method, trial) for trial in range(1, 20)]
    assert trials == [search.propose(method, trial) for trial in range(1, 20)]
    space = search.SPACES[method]
    assert all(trial[name] in space[name] for trial in trials for name in space)
    assert len({json.dumps(trial) for trial in trials}) > 10
    assert set(space) <= {field.name for field in fields(tuned)}


def test_trials_that_fail_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("common.generation.RESULTS_DIR", tmp_path)
    (tmp_path / "toy.h5ad").write_bytes(b"no cells")
    flags = ["--methods", "gan", "--datasets", str(tmp_path / "toy.h5ad"), "--trials", "2", "--jobs", "1"]
    with pytest.raises(SystemExit) as stop:
        search.main([*flags, "--out", str(tmp_path / "search.csv")])
    assert stop.value.code == 1 and "2 failed; nothing was judged" in capsys.readouterr().out


def long_table(values, metric="rf_auroc_pcs", dataset="d", seed=0):
    rows = [(dataset, "s", seed, method, "all cells", metric, 9, value) for method, value in values.items()]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_trials_are_ranked_within_their_method():
    values = {"gan_trial0": 0.9, "gan_trial1": 0.7, "gan_trial2": np.nan, "vae_trial0": 0.95, "vae_trial1": 0.99}
    rows = pd.concat([
        long_table(values),
        long_table({**values, "gan_trial1": 0.8}, dataset="e"),
        long_table({name: 1 - value for name, value in values.items()}, metric="coverage_pcs"),
        long_table(values, metric="mmd_pcs"),
        long_table(values, metric="rf_auroc_genes"),
    ])  # fmt: skip
    found = search.rank_trials(rows)
    assert list(zip(found["method"], found["trial"], strict=True)) == [
        ("gan", 1), ("gan", 0), ("gan", 2), ("vae", 0), ("vae", 1),
    ]  # fmt: skip
    assert found["rank"].tolist() == [1, 2, 3, 1, 2]
    assert found["rf_auroc_pcs"].iloc[0] == 0.75


@pytest.mark.slow
def test_search_writes_its_trials(tmp_path, monkeypatch, few_trees):
    monkeypatch.setattr("common.generation.RESULTS_DIR", tmp_path)
    monkeypatch.setattr(search, "propose", lambda method, trial: {"budget": 2 + trial, "critic_hidden": (3, 3)})
    make_toy().write_h5ad(tmp_path / "toy.h5ad")
    flags = ["--methods", "gan", "--datasets", str(tmp_path / "toy.h5ad"), "--trials", "2", "--jobs", "1"]
    search.main([*flags, "--out", str(tmp_path / "search.csv")])
    found = pd.read_csv(tmp_path / "search.csv").sort_values("trial")
    assert found["flags"].tolist() == ["--budget 2 --critic-hidden 3 3", "--budget 3 --critic-hidden 3 3"]
    params = json.loads((tmp_path / "synthetic" / "toy" / "gan_trial1" / "seed1000" / "run.json").read_text())["params"]
    assert params["budget"] == 3 and params["critic_hidden"] == [3, 3]


# ---------------------------------------------------------------------------------------------- ranks


def test_ranks_share_ties_put_failures_last_and_let_controls_stand_aside():
    values = {"a": 0.5, "b": 0.7, "c": 0.4, "d": np.nan, "real_half": 0.6}
    ranks = rank_methods.rank(long_table(values), ["fidelity"])
    found = ranks[ranks["family"] == "fidelity"].set_index("method")["rank"]
    # an AUROC below its ideal of 0.5 gains nothing; real cells would come after these two
    assert found.to_dict() == {"a": 1.5, "b": 3, "c": 1.5, "d": 4, "real_half": 3}


def test_families_weigh_alike_and_a_method_without_a_metric_has_failed_it():
    table = pd.concat([
        long_table({"a": 0.6, "b": 0.7}),
        long_table({"a": 0.6, "b": 0.7}, metric="rf_auroc_genes"),
        long_table({"a": 0.6, "b": 0.5}, metric="attack_auc"),
        long_table({"b": 0.5}, metric="copies"),
        long_table({"a": np.nan, "b": np.nan}, metric="near_copies"),
        long_table({"a": 1, "b": 2}, metric="ari"),  # nobody knows which is better
    ])  # fmt: skip
    ranks = rank_methods.rank(table, ["fidelity", "privacy", "clustering"]).set_index(["method", "family"])["rank"]
    assert ranks["a", "fidelity"] == 1 and ranks["a", "privacy"] == 2 and ranks["a", "all"] == 1.5
    assert ranks["b", "all"] == 1.5 and "clustering" not in ranks.index.get_level_values("family")


def test_ranks_as_tables(tmp_path):
    table = pd.concat([
        long_table({"a": 0.6, "b": 0.7, "real_half": 0.5}, dataset=dataset, seed=seed)
        for dataset in ("d", "e") for seed in (0, 1)
    ] + [long_table({"a": 0.6, "b": 0.5, "real_half": 0.5}, dataset="e", metric="mmd_pcs")])  # fmt: skip
    table.to_csv(tmp_path / "long.csv", index=False)
    rank_methods.main(["--table", str(tmp_path / "long.csv"), "--out", str(tmp_path)])
    found = pd.read_csv(tmp_path / "ranks.csv").set_index(["dataset", "method", "family"])
    assert found.loc[("d", "a", "all"), "mean"] == 1 and found.loc[("e", "a", "all"), "mean"] == 1.25
    assert found.loc[("all", "a", "all"), "mean"] == pytest.approx(1.125)
    assert found.loc[("all", "a", "all"), "seeds"] == 2
    text = (tmp_path / "ranks.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == "| method | all | behind | fidelity | d | e |"
    # b is 1 behind on d; on e's first seed it is first in one of two metrics: .5 behind on average
    assert lines[2].startswith("| a | 1.1 ± 0.2 |  |") and lines[3].startswith("| b | 1.9 ± 0.2 | 0.8 [-2.4, 3.9] |")
    gaps = found.loc[("all", "b", "all"), ["behind", "low", "high"]]
    assert gaps.tolist() == pytest.approx([0.75, 0.75 - 12.706 * 0.25, 0.75 + 12.706 * 0.25], abs=1e-3)
    assert lines[4].startswith("| *controls* |") and lines[5].startswith("| real_half |")
    with pytest.raises(SystemExit):
        rank_methods.main(["--table", str(tmp_path / "long.csv"), "--group", "nobody", "--out", str(tmp_path)])


def test_data_sets_weigh_alike_however_many_seeds_they_have():
    seeds = [long_table({"a": 0.6, "b": 0.7}, seed=seed) for seed in range(3)]
    ranks = rank_methods.rank(pd.concat([*seeds, long_table({"a": 0.7, "b": 0.6}, dataset="e")]), ["fidelity"])
    found = rank_methods.summarise_ranks(ranks).set_index(["dataset", "method", "family"])
    assert found.loc[("all", "a", "all"), "mean"] == 1.5 and found.loc[("d", "a", "all"), "mean"] == 1
    assert found["seeds"].to_dict()["all", "a", "all"] == 1 and np.isnan(found.loc[("all", "a", "all"), "sd"])


def test_ranks_are_of_one_split(tmp_path, capsys):
    split = [long_table({"a": 0.6, "b": 0.7}).assign(split=name) for name in ("500 genes", "1000 genes")]
    pd.concat(split).to_csv(tmp_path / "long.csv", index=False)
    flags = ["--table", str(tmp_path / "long.csv"), "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        rank_methods.main(flags)
    assert "choose one with --split" in capsys.readouterr().err
    rank_methods.main([*flags, "--split", "500 genes"])
    assert set(pd.read_csv(tmp_path / "ranks.csv")["split"].dropna()) == {"500 genes"}


def test_ranks_are_among_all_methods_or_none(tmp_path, capsys):
    """On a seed that few were judged on every place is a good one."""
    alone = long_table({"a": 0.9}, seed=1)
    table = rank_methods.comparable(pd.concat([long_table({"a": 0.9, "b": 0.6}), alone]))
    assert set(table["seed"]) == {0} and "d, seed 1, has 1 of 2 methods: left out" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"d, seed 0, lacks b"):
        rank_methods.comparable(pd.concat([long_table({"a": 0.9}), long_table({"b": 0.6}, seed=1)]))


def test_the_docs_list_every_baseline():
    text = (Path(__file__).parents[1] / "docs" / "baselines.md").read_text()
    assert all(f"## {name}" in text for name in BASELINES)


def test_ranks_among_some_methods(tmp_path, capsys):
    """What one method cannot learn from, the others can still be compared on."""
    both = [long_table({"a": 0.6, "b": 0.7, "c": 0.5}), long_table({"a": 0.6, "b": 0.7}, dataset="e")]
    pd.concat(both).to_csv(tmp_path / "long.csv", index=False)
    flags = ["--table", str(tmp_path / "long.csv"), "--out", str(tmp_path)]
    rank_methods.main([*flags, "--methods", "a", "b"])
    found = pd.read_csv(tmp_path / "ranks.csv").query("family == 'all' and dataset != 'all'")
    assert found.set_index(["dataset", "method"])["mean"].to_dict() == {
        ("d", "a"): 1, ("d", "b"): 2, ("e", "a"): 1, ("e", "b"): 2,
    }  # fmt: skip
    with pytest.raises(SystemExit):
        rank_methods.main([*flags, "--methods", "a", "bb"])
    assert "has no method 'bb', only a, b, c; did you mean 'b'?" in " ".join(capsys.readouterr().err.split())
