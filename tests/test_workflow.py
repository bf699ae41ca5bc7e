"""The workflow: what is to be done is what config.yaml says, what is done is not done again, failures stay alone."""

import re
import subprocess
import sys

import anndata
import pandas as pd
import pytest
import yaml

pytest.importorskip("snakemake", reason="pip install -r requirements_workflow.txt")

from benchmarking import run_benchmark
from workflow import smoke

TOY, RUN = "data/toy.h5ad", "results/synthetic/toy/garage/seed0/run.json"


@pytest.fixture
def tree(tmp_path):
    """Copy of the project with toy cells."""
    smoke.copy_tree(tmp_path / "tree")
    return tmp_path / "tree"


@pytest.fixture
def snakemake(tree):
    """Run Snakemake on the copy with some configuration; return its exit code and what it told."""

    def run(*flags, **config):
        given = {
            "datasets": [TOY],
            "seeds": 1,
            "n_top_genes": 50,
            "comparisons": [],
            "targets": ["parts", "benchmark"],
            **config,
        }
        (tree / "config.yaml").write_text(yaml.safe_dump(given))
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *flags, "--configfile", "config.yaml"]
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    return run


def jobs_of(told):
    """Jobs of a dry run by rule, those that only gather left out."""
    stats = told.rpartition("Job stats:")[2].partition("total")[0]
    counts = {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", stats, re.MULTILINE)}
    counts.pop("all", None)
    return counts


def test_the_copy_has_toy_cells_and_no_results(tree):
    toy = anndata.read_h5ad(tree / TOY)
    assert toy.obs["cell_type"].value_counts().to_dict() == smoke.TOY_TYPES
    assert (tree / "workflow" / "Snakefile").exists() and not (tree / "results").exists()
    assert not list(tree.glob(".*"))


def test_a_folder_that_is_there_is_left_alone(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        smoke.main(["--out", str(tmp_path)])
    assert "is there already: remove it" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_dry_run_lists_the_matrix(snakemake):
    matrix = {"datasets": [TOY, "pbmc68k", "yan", "data/absent.h5ad"], "methods": ["garage", "gan", "copula"]}
    code, told = snakemake("all", "--dry-run", **matrix, seeds=2)
    assert code == 0 and told.count("note: data/absent.h5ad is not there: left out") == 1
    assert jobs_of(told) == {
        "download_yan": 1, "train": 2 * 3 * 2, "evaluate": 3 * 3 * 2, "merge": 1, "benchmark": 1,
    }  # fmt: skip
    variants = {"targets": ["leakage", "seed_stability", "hidden_types"], "leakages": [0, 0.2]}
    _, told = snakemake("all", "--dry-run", methods=["copula"], seeds=2, **variants)
    assert jobs_of(told) == {
        "train": 12 * 2,  # eleven variants, and one on a single split
        "leakage": 1, "seed_selection": 1, "seed_stability": 1, "hidden_types": 1,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"targets": ["figure"]}, "there is no target 'figure', only runs"),
        ({"methods": ["wgann"]}, "there is no method 'wgann'"),
        ({"datasets": ["data/absent.h5ad"]}, "no data set is there"),
    ],
)
def test_what_the_configuration_has_wrong_is_told(snakemake, config, message):
    code, told = snakemake("all", "--dry-run", **config)
    assert code != 0 and message in told and "Traceback" not in told


@pytest.mark.slow
def test_only_what_is_missing_is_made(snakemake, tree, tmp_path, few_trees):
    matrix = {"methods": ["real_half", "copula"], "seeds": 2}
    code, told = snakemake("all", **matrix)
    assert code == 0, told
    assert jobs_of(told) == {"evaluate": 4, "merge": 1, "benchmark": 1}
    run_benchmark.main([
        "--datasets", str(tree / TOY), "--methods", *matrix["methods"], "--seeds", "2", "--n-top-genes", "50",
        "--jobs", "1", "--out", str(tmp_path / "benchmark.csv"),
    ])  # fmt: skip
    merged, together = (
        pd.read_csv(path).query("~metric.str.endswith('_seconds')").reset_index(drop=True)
        for path in (tree / "results/tables/benchmark.csv", tmp_path / "benchmark.csv")
    )
    pd.testing.assert_frame_equal(merged, together)

    assert "Nothing to be done" in snakemake("all", **matrix)[1]
    (tree / "results/parts/benchmark/toy/copula/seed1.csv").unlink()
    assert jobs_of(snakemake("all", "--dry-run", **matrix)[1]) == {"evaluate": 1, "merge": 1, "benchmark": 1}


@pytest.mark.slow
def test_a_failure_is_told_and_stays_alone(snakemake, tree):
    (tree / "data" / "bad.h5ad").write_text("no cells")
    matrix = {"datasets": ["data/bad.h5ad", TOY], "methods": ["real_half"]}
    code, told = snakemake("all", "--keep-going", **matrix)
    assert code != 0 and "Error in rule evaluate" in told and "bad.h5ad is no readable .h5ad file" in told
    parts = tree / "results" / "parts" / "benchmark"
    assert [path.parts[-3] for path in parts.glob("*/*/*.csv")] == ["toy"]  # no half output of the other
    assert not (tree / "results" / "tables" / "benchmark.csv").exists()
    assert jobs_of(snakemake("all", "--dry-run", **matrix)[1]) == {"evaluate": 1, "merge": 1, "benchmark": 1}


@pytest.mark.slow
def test_a_run_is_judged_as_it_is_until_its_hyperparameters_change(snakemake, tree):
    code, told = snakemake(RUN, methods=["garage"])
    assert code == 0, told
    made = (tree / RUN).stat().st_mtime_ns
    assert snakemake("results/tables/benchmark.csv", methods=["garage"])[0] == 0
    assert (tree / RUN).stat().st_mtime_ns == made
    source = (tree / "config.py").read_text()
    changed = re.sub(r"(    critic_steps: .* = )\d+", r"\g<1>7", source, count=1)
    assert changed != source
    (tree / "config.py").write_text(changed)
    _, told = snakemake("results/tables/benchmark.csv", "--dry-run", methods=["garage"])
    assert jobs_of(told) == {"train": 1, "evaluate": 1, "merge": 1}


@pytest.mark.slow
def test_the_cluster_profile_is_one_that_snakemake_reads(snakemake):
    pytest.importorskip("snakemake_executor_plugin_slurm")
    code, told = snakemake("all", "--dry-run", "--profile", "workflow/profiles/slurm", methods=["gan"])
    assert code == 0 and "slurm_partition=my_partition, runtime=720" in told


@pytest.mark.slow
def test_rare_cells_are_judged_in_several_processes(tree):
    done = subprocess.run([
        sys.executable, "-m", "biological_analysis.rare_cell_utility", "--datasets", TOY, "--n-top-genes", "50",
        "--seeds", "1", "--jobs", "2", "--methods", "bootstrap", "--amounts", "--keep", "3", "--out", "rare.csv",
    ], cwd=tree, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0 and "3 judged, 0 known, 0 failed" in done.stdout
    assert set(pd.read_csv(tree / "rare_cell_downsampling.csv")["method"]) == {"real_only", "real_half", "bootstrap"}
