"""The script, run as a user runs it: what it writes, what each flag does, kills, full disks and bad input."""

import gzip
import io
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict, fields
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
import torch
import tyro
from anndata import AnnData
from scipy import sparse

import common.run
from common import generation
from common.data import CellSource
from config import GarageParams, PaperParams
from data_generation import garage

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
SIZES = {"A": 36, "B": 18, "R": 6}
TYPES = [name for name, size in SIZES.items() for _ in range(size)]
N_CELLS, N_GENES = len(TYPES), 30
CELLS = [f"c{i}" for i in range(N_CELLS)]
GENES = [f"G{i}" for i in range(N_GENES)]
TINY = [
    "--anchor-epochs", "2", "--critic-steps", "6", "--gat-epochs", "5", "--calibration-cells", "50", "--seed", "1",
]  # fmt: skip
TINY_PAPER = [
    "--preset", "paper", "--iterations", "3", "--gat-epochs", "3", "--generator-hidden", "16", "14",
    "--critic-hidden", "10", "8", "--seed", "1",
]  # fmt: skip
CONTRACT = {"cells.h5ad", "cells.csv", "seeds.csv", "losses.csv", "model.pt", "run.json"}


def make_counts():
    rng = np.random.default_rng(0)
    level = {name: rng.gamma(1.0, 3.0, N_GENES) for name in SIZES}
    depth = rng.lognormal(0.0, 0.3, N_CELLS)
    return rng.poisson([level[name] * d for name, d in zip(TYPES, depth, strict=True)]).astype(np.float32)


X = make_counts()


def toy(matrix=X, types=TYPES, cells=CELLS, genes=GENES):
    obs, var = pd.DataFrame({"cell_type": list(types)}, index=list(cells)), pd.DataFrame(index=list(genes))
    return AnnData(sparse.csr_matrix(matrix), obs=obs, var=var)


def save(cells, path):
    cells.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def h5ad(tmp_path_factory):
    return save(toy(), tmp_path_factory.mktemp("input") / "toy.h5ad")


@pytest.fixture(scope="module")
def finished(h5ad, tmp_path_factory):
    """A run that nothing disturbed. Tests read it only."""
    return run(tmp_path_factory.mktemp("finished") / "run", h5ad)


@pytest.fixture(scope="module")
def finished_paper(h5ad, tmp_path_factory):
    return run(tmp_path_factory.mktemp("finished") / "paper", h5ad, *TINY_PAPER, tiny=[])


def run(out, source, *flags, tiny=TINY):
    """Run the script on an h5ad file into a folder, which is returned."""
    garage.main([*tiny, "--input", str(source), "--out", str(out), *map(str, flags)])
    return out


def refused(capsys, *flags):
    """Run the script, which must leave with one line about the error; return that line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        garage.main(list(map(str, flags)))
    lines = capsys.readouterr().err.splitlines()
    assert left.value.code == 2
    assert [line for line in lines if line.startswith("error:")] == lines[-1:], lines
    return lines[-1]


def read(folder, name="cells"):
    return anndata.read_h5ad(folder / f"{name}.h5ad")


def values(folder, name="cells"):
    return read(folder, name).X.toarray()


def table(folder, name):
    return pd.read_csv(folder / name, index_col=0, keep_default_na=False)


def names(folder):
    return {path.name for path in folder.iterdir()}


def contents(folder):
    """Every file, but for the lock that a killed run leaves behind."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".running"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def record(folder):
    return json.loads((folder / "run.json").read_text())


def result(folder):
    """Everything of a run that must not depend on how it came about."""
    weights = torch.load(folder / "model.pt", weights_only=True)["gan"]
    tensors = {name: w.numpy().tobytes() for name, w in weights.get("weights", weights.get("generator")).items()}
    tables = {name: (folder / name).read_bytes() for name in ("cells.csv", "seeds.csv", "losses.csv")}
    return {"X": values(folder).tobytes(), **tables, **tensors}


# ---------------------------------------------------------------------------------------------- the contract


def test_writes_the_contract_and_no_more(finished):
    assert names(finished) == CONTRACT


def test_cells(finished):
    cells, csv = read(finished), table(finished, "cells.csv")
    assert list(cells.var_names) == GENES
    assert set(cells.obs) == {"cell_type", "origin"}
    assert set(cells.obs["origin"]) <= {"noise", "seed"}
    assert cells.obs["cell_type"].value_counts().to_dict() == SIZES
    assert csv.index.name == "cell"
    assert list(csv) == ["cell_type", *GENES]
    assert list(csv.index) == list(cells.obs_names)
    assert list(csv["cell_type"]) == list(cells.obs["cell_type"])
    np.testing.assert_array_equal(csv[GENES].to_numpy(), cells.X.toarray())
    assert all(csv[GENES].dtypes == "int64")
    assert cells.X.min() >= 0 and cells.X.max() > 5
    assert cells.uns["scale"] == "counts"


def test_seeds(finished):
    seeds = table(finished, "seeds.csv")
    assert seeds.index.name == "cell"
    assert list(seeds) == ["cell_type", "attention", "rank", "is_seed", "is_rare"]
    assert list(seeds.index) == CELLS
    assert list(seeds["cell_type"]) == TYPES
    assert sorted(seeds["rank"]) == list(range(1, N_CELLS + 1))
    assert seeds.sort_values("rank")["attention"].is_monotonic_decreasing
    assert seeds["is_seed"].sum() == 0.2 * N_CELLS
    assert set(seeds["cell_type"][seeds["is_seed"]]) == set(SIZES)
    assert set(seeds["cell_type"][seeds["is_rare"]]) == {"R"}


def test_losses(finished):
    losses = pd.read_csv(finished / "losses.csv")
    assert list(losses) == ["step", "nll", "kl", "adversarial", "critic"]
    assert losses["step"].is_monotonic_increasing
    assert np.isfinite(losses.iloc[-1]).all()


def test_run_json(finished, h5ad):
    found = record(finished)
    assert found["argv"] == [*TINY, "--input", str(h5ad), "--out", str(finished)]
    assert found["sha256"] == {"toy.h5ad": common.run.digest(h5ad.read_bytes())}
    assert found["seed"] == 1
    assert found["params"] == {
        **{field.name: getattr(GarageParams(), field.name) for field in fields(GarageParams)},
        "anchor_epochs": 2, "critic_steps": 6, "gat_epochs": 5, "calibration_cells": 50,
    }  # fmt: skip
    assert (found["dataset"], found["method"], found["scale"]) == ("toy", "garage", "counts")
    assert (found["cells"], found["genes"], found["notes"]) == (N_CELLS, N_GENES, [])
    assert found["labels_from"] == "obs['cell_type']"
    assert found["source"]["input"] == str(h5ad)
    assert torch.__version__.startswith(found["versions"]["torch"])  # the index leaves out the build
    assert found["device"] in ("cpu", "cuda")
    assert found["git_commit"] is None or re.fullmatch(r"[0-9a-f]{40}\+?", found["git_commit"])
    assert list(found["stages"]) == ["loading", "selection", "training", "sampling"]
    for stage in found["stages"].values():
        assert stage["seconds"] >= 0 and stage["peak_memory_mb"] > 0


def test_run_json_comes_last_and_goes_first(h5ad, tmp_path, monkeypatch):
    order = []
    replace, unlink = Path.replace, Path.unlink

    def noting_replace(self, target):
        order.append(("write", target.name, "run.json" in names(tmp_path)))
        return replace(self, target)

    def noting_unlink(self, missing_ok=False):
        order.extend([("remove", self.name, None)] if self.exists() and self.name != ".running" else [])
        return unlink(self, missing_ok)

    (tmp_path / "run.json").write_text("{}")
    monkeypatch.setattr(Path, "replace", noting_replace)
    monkeypatch.setattr(Path, "unlink", noting_unlink)
    run(tmp_path, h5ad)
    steps = [(what, name) for what, name, _ in order if name != "checkpoint.pt"]
    assert steps[0] == ("remove", "run.json")
    assert steps[-1] == ("write", "run.json")
    assert {name for what, name in steps if what == "write"} == CONTRACT
    assert not any(had_one for what, name, had_one in order if what == "write" and name in CONTRACT)
    assert order[-1][:2] == ("remove", "checkpoint.pt")


def test_model_can_be_loaded_without_running_code(finished):
    content = torch.load(finished / "model.pt", weights_only=True)
    assert content["types"] == list(SIZES)
    assert content["type_counts"] == list(SIZES.values())
    real = {row.tobytes() for row in X}
    tensors = [t for of_type in content["gan"]["types"] for t in of_type.values() if torch.is_tensor(t)]
    assert not any(row.numpy().tobytes() in real for t in tensors if t.shape[-1:] == (N_GENES,) for row in t)


def test_reading_does_not_change_the_number_of_threads(h5ad, tmp_path, monkeypatch):
    """Numba, which scanpy calls to choose genes, sets its own; the last bits of a model would depend on it."""
    choose = scanpy.pp.highly_variable_genes
    monkeypatch.setattr(
        scanpy.pp, "highly_variable_genes", lambda *a, **k: (torch.set_num_threads(3), choose(*a, **k))[1]
    )
    run(tmp_path, h5ad, "--n-top-genes", 20)
    assert record(tmp_path)["threads"] == torch.get_num_threads() == 1


def test_default_folder(h5ad, tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "RESULTS_DIR", tmp_path)
    garage.main([*TINY, "--input", str(h5ad)])
    assert names(tmp_path / "synthetic" / "toy" / "garage" / "seed1") == CONTRACT


def test_seed_decides_everything(finished, h5ad, tmp_path):
    assert result(run(tmp_path / "same", h5ad)) == result(finished)
    other = run(tmp_path / "other", h5ad, "--seed", 2)
    assert (values(other) != values(finished)).mean() > 0.2
    assert (other / "seeds.csv").read_bytes() != (finished / "seeds.csv").read_bytes()


def test_a_rerun_leaves_nothing_of_the_run_before(finished, h5ad, tmp_path):
    run(tmp_path, h5ad, "--holdout", 0.5, "--fractions")
    (tmp_path / "cells_of_mine.csv").write_text("mine")
    run(tmp_path, h5ad)
    assert names(tmp_path) == CONTRACT | {"cells_of_mine.csv"}
    assert result(tmp_path) == result(finished)


def test_order_of_the_file_does_not_matter(finished, tmp_path):
    shuffled = np.random.default_rng(3).permutation(N_CELLS)
    folder = run(tmp_path / "run", save(toy()[shuffled].copy(), tmp_path / "toy.h5ad"))
    np.testing.assert_array_equal(values(folder), values(finished))
    pd.testing.assert_frame_equal(table(folder, "seeds.csv").loc[CELLS], table(finished, "seeds.csv"))


def test_preset_paper(finished_paper, h5ad, tmp_path, monkeypatch):
    assert names(finished_paper) == CONTRACT
    cells = read(finished_paper)
    assert cells.shape == (N_CELLS, N_GENES)
    assert cells.X.min() >= 0
    np.testing.assert_array_equal(cells.X.toarray(), np.rint(cells.X.toarray()))
    assert pd.read_csv(finished_paper / "losses.csv")["step"].tolist() == [3]
    assert record(finished_paper)["method"] == "paper"
    assert record(finished_paper)["params"]["generator_hidden"] == [16, 14]
    again = run(tmp_path / "again", h5ad, *TINY_PAPER, tiny=[])
    assert result(again) == result(finished_paper)
    monkeypatch.setattr(generation, "RESULTS_DIR", tmp_path)
    garage.main([*TINY_PAPER, "--input", str(h5ad)])
    assert names(tmp_path / "synthetic" / "toy" / "paper" / "seed1") == CONTRACT


# ---------------------------------------------------------------------------------------------- every flag

SELECTION = {
    "leakage": 0.3, "rare_threshold": 5, "neighbors": 4, "graph_on": "genes", "graph_pcs": 7, "graph_symmetric": False,
    "gat_networks": 2, "gat_heads": 2, "gat_hidden": 5, "gat_epochs": 6, "gat_lr": 0.01, "gat_validation": 0.3,
    "gat_patience": 1, "gat_balanced": False, "priority_weight": 30.0, "priority_on": "features", "rare_quota": False,
    "rare_only": True, "seeds_by": "random",
}  # fmt: skip
CHANGED = {
    "garage": {
        **SELECTION, "latent_dim": 3, "hidden_dim": 9, "batch_size": 16, "anchor_epochs": 3, "warmup_epochs": 1,
        "anchor_steps": 5, "anchor_lr": 0.002, "critic_steps": 5, "critic_hidden": 8, "generator_lr": 0.001,
        "critic_lr": 0.1, "adversarial_weight": 500.0, "r1_weight": 100.0, "r1_every": 2, "ema_decay": 0.5,
        "calibrate": False, "calibrate_on": "normalised", "calibration_prior": 50.0, "calibration_cells": 40,
        "latent_spread": 2.0, "critic_genes": 11, "calibrate_detection": False, "seed_share": 0.9,
    },
    "paper": {
        **SELECTION, "graph_on": "pcs", "graph_symmetric": True, "gat_balanced": True, "priority_on": "loss",
        "iterations": 4, "generator_hidden": (9, 8, 7), "critic_hidden": (6,), "generator_steps": 1, "critic_steps": 3,
        "generator_lr": 0.001, "critic_lr": 0.001, "real_target": 0.8, "fake_target": 0.2, "clip_norm": 0.5,
    },
}  # fmt: skip
KINDS = {"garage": GarageParams, "paper": PaperParams}
SOURCE = {
    "dataset": "yan", "input": Path("x.h5ad"), "label_key": "kind", "expression_csv": Path("x.csv"),
    "labels_csv": Path("l.csv"), "transpose": True, "layer": "raw", "n_top_genes": 7, "cluster": True, "scale": "log",
    "on_disk": True,
}  # fmt: skip
ARGS = {
    "preset": "paper", "seed": 7, "device": "cpu", "name": "variant", "out": Path("folder"), "n_cells": 9,
    "cell_type": "R", "proportions": "uniform", "fractions": True, "holdout": 0.25, "split_seed": 3,
    "csv": False, "resume": True, "from_": Path("there"), "dry_run": True, "json": True,
}  # fmt: skip


def flag(name, value):
    word = name.rstrip("_").replace("_", "-")
    if isinstance(value, bool):
        return [f"--{word}" if value else f"--no-{word}"]
    return [f"--{word}", *map(str, value if isinstance(value, tuple) else [value])]


def test_every_field_is_tried():
    assert {f.name for f in fields(CellSource)} == set(SOURCE)
    assert {f.name for f in fields(garage.Args)} == {*ARGS, "source", "params"}
    for preset, kind in KINDS.items():
        assert {f.name for f in fields(kind)} == set(CHANGED[preset])


@pytest.mark.parametrize(("preset", "name"), [(p, name) for p in CHANGED for name in CHANGED[p]])
def test_a_flag_for_every_hyperparameter(preset, name):
    value = CHANGED[preset][name]
    assert getattr(KINDS[preset](), name) != value
    params = garage.parse(["--preset", preset, *flag(name, value)]).params
    assert params == KINDS[preset](**{name: value})


@pytest.mark.parametrize("name", SOURCE)
def test_a_flag_for_every_source(name):
    assert garage.parse([]).source == CellSource()
    assert garage.parse(flag(name, SOURCE[name])).source == CellSource(**{name: SOURCE[name]})


@pytest.mark.parametrize("name", ARGS)
def test_a_flag_for_every_argument(name):
    plain, args = garage.parse([]), garage.parse(flag(name, ARGS[name]))
    differing = {f.name for f in fields(garage.Args) if getattr(plain, f.name) != getattr(args, f.name)}
    assert differing == {name} | ({"params"} if name == "preset" else set())
    assert getattr(args, name) == ARGS[name]


@pytest.mark.parametrize("preset", CHANGED)
def test_flags_reach_run_json(h5ad, tmp_path, preset):
    flags = [word for name, value in CHANGED[preset].items() for word in flag(name, value)]
    others = ["--seed", "7", "--holdout", "0.25", "--device", "cpu"]
    run(tmp_path, h5ad, "--preset", preset, *flags, *others, tiny=[])
    found = record(tmp_path)
    assert found["params"] == json.loads(json.dumps(CHANGED[preset]))
    assert (found["seed"], found["holdout"], found["device"], found["method"]) == (7, 0.25, "cpu", preset)
    assert found["argv"] == ["--input", str(h5ad), "--out", str(tmp_path), "--preset", preset, *flags, *others]


@pytest.mark.parametrize("name", CHANGED["garage"])
def test_every_hyperparameter_acts(finished, h5ad, tmp_path, name):
    others = {
        "calibrate_detection": ["--calibrate-on", "normalised"],  # which UMI counts do without
        "warmup_epochs": ["--anchor-epochs", "20"], "anchor_steps": ["--anchor-epochs", "20"],
    }.get(name, [])  # fmt: skip
    without = run(tmp_path / "without", h5ad, *others) if others else finished
    run(tmp_path / "with", h5ad, *others, *flag(name, CHANGED["garage"][name]))
    assert result(tmp_path / "with") != result(without)


def test_rare_threshold_of_a_data_set_is_the_default(tmp_path, monkeypatch):
    def toy_as_data_set(source):
        cells = toy()
        cells.obs["cell_type"] = cells.obs["cell_type"].astype("category")
        cells.uns.update(scale="counts", dataset="toy", labels_from="authors", sha256={}, notes=[], rare_threshold=18)
        return cells

    monkeypatch.setattr(generation, "load_cells", toy_as_data_set)
    garage.main([*TINY, "--out", str(tmp_path / "a")])
    assert record(tmp_path / "a")["params"]["rare_threshold"] == 18
    seeds = table(tmp_path / "a", "seeds.csv")
    assert set(seeds["cell_type"][seeds["is_rare"]]) == {"B", "R"}
    garage.main([*TINY, "--out", str(tmp_path / "b"), "--rare-threshold", "6"])
    assert record(tmp_path / "b")["params"]["rare_threshold"] == 6


@pytest.mark.parametrize(
    "flags",
    [
        ["--preset", "paper", "--latent-dim", "5"],
        ["--preset=paper", "--anchor-epochs", "5"],
        ["--iterations", "5"],
        ["--preset", "garage", "--clip-norm", "5"],
        ["--preset", "papper"],
        ["--preset"],
        ["--nonsense"],
        ["--seed", "x"],
        ["--device", "tpu"],
    ],
    ids=" ".join,
)
def test_flags_that_do_not_exist_are_refused(capsys, flags):
    with pytest.raises(SystemExit) as left:
        garage.main(flags)
    assert left.value.code == 2
    assert capsys.readouterr().err


@pytest.mark.slow
def test_help_from_anywhere(tmp_path):
    script = [sys.executable, str(ROOT / "data_generation" / "garage.py"), "--help"]
    module = [sys.executable, "-m", "data_generation.garage", "--help"]
    running = [
        subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for words in (script, module)
    ]
    shown = set()
    for process in running:
        out, err = process.communicate()
        assert process.returncode == 0, err
        shown.add(out)
    assert len(shown) == 1
    assert {"--leakage", "--from", "--dry-run", "--version"} <= set(re.findall(r"--[a-z-]+", out))
    assert "\x1b" not in out  # colours are for terminals


def test_the_installed_command_is_the_script():
    (command,) = entry_points(group="console_scripts", name="garage")
    assert command.load() is garage.main


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_in_a_shell(tmp_path):
    with pytest.raises(SystemExit):
        garage.main(["--tyro-write-completion", "bash", str(tmp_path / "garage.bash")])
    typed = "source garage.bash; COMP_WORDS=(garage --dry); COMP_CWORD=1; _tyro_garage; echo ${COMPREPLY[@]}"
    done = subprocess.run(["bash", "-c", typed], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "--dry-run\n", done.stderr


# ---------------------------------------------------------------------------------------------- how it talks


def test_quiet(capsys, h5ad, finished, tmp_path):
    run(tmp_path / "run", h5ad, "--quiet")
    garage.main(["--from", str(finished), "--out", str(tmp_path / "more"), "--quiet"])
    assert capsys.readouterr() == ("", "")
    assert "--n-cells" in refused(capsys, "--from", finished, "--out", tmp_path / "no", "--quiet", "--n-cells", "0")


def test_json(capsys, h5ad, tmp_path):
    told = json_of(capsys, lambda: run(tmp_path / "run", h5ad, "--json", "--cell-type", "B", "--n-cells", "5"))
    assert told == {"folder": str(tmp_path / "run"), "drawn": {"A": 0, "B": 5, "R": 0}, **record(tmp_path / "run")}
    more = ["--from", str(tmp_path / "run"), "--out", str(tmp_path / "more"), "--json", "--n-cells", "9"]
    told = json_of(capsys, lambda: garage.main(more))
    assert told == {"folder": str(tmp_path / "more"), "drawn": told["drawn"], **record(tmp_path / "more")}
    assert told["drawn"] == counted(tmp_path / "more")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        garage.main([*more, "--latent-dim", "3"])
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ")


def json_of(capsys, act):
    """What an act prints to stdout, which must be JSON; words and bars are told elsewhere."""
    capsys.readouterr()
    act()
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and err
    return json.loads(out)


@pytest.mark.parametrize("holdout", ["0", "0.5"])
def test_next_commands_can_be_given(capsys, h5ad, tmp_path, holdout):
    folder = run(tmp_path / "a run", h5ad, "--holdout", holdout)
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    given = [line.partition("python -m ")[2] for line in out.splitlines() if "python -m " in line]
    commands = {module: flags for module, *flags in map(shlex.split, given)}
    assert list(commands) == ["analysis.evaluate", "analysis.report", "data_generation.garage"][holdout == "0" :]
    for module in list(commands)[:-1]:
        assert folder in chain_of(tyro.cli(import_module(module).Args, args=commands[module], config=FLAT))
    garage.main([*commands["data_generation.garage"], "--n-cells", "3"])
    assert read(folder / "drawn_seed42").n_obs == 3
    assert "analysis.evaluate" in capsys.readouterr().out or holdout == "0"


FLAT = (tyro.conf.OmitArgPrefixes,)


def chain_of(args):
    """Values of a script's arguments, those in tuples too."""
    return [v for value in vars(args).values() for v in (value if isinstance(value, tuple) else (value,))]


@pytest.mark.parametrize("preset", CHANGED)
def test_dry_run(capsys, h5ad, tmp_path, monkeypatch, preset):
    tried, fit = [], garage.fit

    def noting(cells, params, **given):
        tried.append(params)
        return fit(cells, params, **given)

    monkeypatch.setattr(garage, "fit", noting)
    out, before = tmp_path / "run", contents(tmp_path)
    flags = ["--input", str(h5ad), "--out", str(out), "--preset", preset, "--holdout", "0.5", "--dry-run"]
    if preset == "paper":
        flags += ["--generator-hidden", "16", "--critic-hidden", "8"]
    told = json_of(capsys, lambda: garage.main([*flags, "--leakage", "0.3", "--json"]))
    full = garage.parse([*flags, "--leakage", "0.3"]).params
    assert told["params"] == json.loads(json.dumps(asdict(full)))
    assert (told["cells"], told["n_cells"], told["folder"]) == (30, 30, str(out))
    assert set(told["estimate"]) == {"seconds", "peak_memory_mb"} and min(told["estimate"].values()) > 0
    (trial,) = tried
    shortened = {f.name for f in fields(full) if getattr(full, f.name) != getattr(trial, f.name)}
    steps = {"gat_epochs", *(["iterations"] if preset == "paper" else ["anchor_steps", "critic_steps"])}
    assert shortened == steps and {getattr(trial, name) for name in steps} == {garage.TRIAL_STEPS}
    garage.main(flags)
    words = capsys.readouterr().out
    assert re.search(r"leakage +0\.2\b", words) and "estimate: " in words and "MB" in words
    assert contents(tmp_path) == before and not out.exists()


def test_dry_run_of_a_stage_whose_last_step_is_told_twice(capsys, h5ad, tmp_path):
    flags = ["--input", str(h5ad), "--out", str(tmp_path / "run"), "--gat-networks", "3", "--gat-epochs", "10"]
    told = json_of(capsys, lambda: garage.main([*TINY, *flags, "--dry-run", "--json"]))
    assert told["estimate"]["seconds"] > 0


def test_a_run_on_other_data_of_the_same_name_is_not_replaced(capsys, h5ad, tmp_path, monkeypatch):
    """Both would be results/synthetic/toy/garage/seed1."""
    monkeypatch.setattr(generation, "RESULTS_DIR", tmp_path)
    (tmp_path / "other").mkdir()
    other = toy()[:50].copy()
    other.write_h5ad(tmp_path / "other" / "toy.h5ad")
    garage.main([*TINY, "--input", str(h5ad)])
    folder = tmp_path / "synthetic" / "toy" / "garage" / "seed1"
    before = contents(folder)
    error = refused(capsys, *TINY, "--input", tmp_path / "other" / "toy.h5ad")
    assert f"holds a run on other data, {h5ad}: give --name or --out" in error and contents(folder) == before
    garage.main([*TINY, "--input", str(tmp_path / "other" / "toy.h5ad"), "--name", "mine"])
    other[:40].copy().write_h5ad(tmp_path / "other" / "toy.h5ad")  # the same file, mended
    garage.main([*TINY, "--input", str(tmp_path / "other" / "toy.h5ad"), "--name", "mine"])
    assert record(folder.parents[1] / "mine" / "seed1")["cells"] == 40


def test_what_cannot_be_rehearsed(capsys, finished, h5ad, tmp_path):
    assert "--from trains nothing" in refused(capsys, "--from", finished, "--dry-run")
    (tmp_path / "file").touch()
    error = refused(capsys, *TINY, "--input", h5ad, "--dry-run", "--out", tmp_path / "file" / "run")
    assert "cannot write" in error
    assert "no cell type 'Q'" in refused(capsys, *TINY, "--input", h5ad, "--dry-run", "--cell-type", "Q")


def test_time_is_extrapolated_by_stage(monkeypatch):
    """A step of `long` takes 2 s, one of `short` 1 s, by a clock that only they move."""
    now = [0.0]
    monkeypatch.setattr(generation, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    taken = []

    def learn(report):
        for stage, pace, of_trial in (("long", 2, 20), ("short", 1, 30)):
            for step in range(10, of_trial + 1, 10):
                now[0] += 10 * pace
                taken.append((stage, step))
                report(stage, step, of_trial)

    def seconds(steps, until=""):
        return generation.estimate(learn, steps, until)["seconds"]

    own = pytest.approx(0, abs=5)  # of the trial itself, which takes no time at all
    assert seconds({}) == own
    assert seconds({"long": 120}) - 200 == own
    assert seconds({"long": 120, "short": 1030}) - 1200 == own
    taken.clear()
    assert seconds({"short": 100}, "short") - 80 == own
    assert taken[-1] == ("short", 20)  # the trial ends at its second report


def test_a_whole_run_keeps_to_its_steps(h5ad, tmp_path):
    """The numbers of steps that --dry-run reckons with are those that a run takes."""
    params = garage.parse([*TINY, "--anchor-epochs", "7"]).params
    _, steps = garage._shorten(params, N_CELLS)
    run(tmp_path, h5ad, "--anchor-epochs", "7")
    assert pd.read_csv(tmp_path / "losses.csv")["step"].iloc[-1] == steps["anchor"] + steps["critic"]


# ---------------------------------------------------------------------------------------------- what is drawn


def counted(folder, name="cells"):
    return read(folder, name).obs["cell_type"].astype(str).value_counts().to_dict()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--n-cells", 7], {"A": 4, "B": 2, "R": 1}),
        (["--n-cells", 1], {"A": 1}),
        (["--cell-type", "R"], {"R": N_CELLS}),
        (["--cell-type", "R", "--n-cells", 5], {"R": 5}),
        (["--proportions", "uniform"], {"A": 20, "B": 20, "R": 20}),
        (["--proportions", "uniform", "--n-cells", 9], {"A": 3, "B": 3, "R": 3}),
        (["--proportions", "CSV", "--n-cells", 40], {"B": 10, "R": 30}),
    ],
)
def test_composition(finished, tmp_path, flags, expected):
    pd.DataFrame({"cell_type": ["B", "R"], "proportion": [0.5, 1.5]}).to_csv(tmp_path / "p.csv", index=False)
    flags = [str(tmp_path / "p.csv") if word == "CSV" else str(word) for word in flags]
    garage.main(["--from", str(finished), "--out", str(tmp_path / "more"), *flags])
    assert counted(tmp_path / "more") == expected


def test_composition_of_a_run_that_trains(h5ad, tmp_path):
    run(tmp_path, h5ad, "--proportions", "uniform", "--n-cells", 9)
    assert counted(tmp_path) == {"A": 3, "B": 3, "R": 3}
    assert len(table(tmp_path, "cells.csv")) == 9


BAD_COMPOSITIONS = [
    (["--n-cells", 0], ["--n-cells is 0"]),
    (["--cell-type", "Q"], ["no cell type 'Q'", "A, B, R"]),
    (["--cell-type", "A", "--proportions", "uniform"], ["two compositions"]),
    (["--proportions", "unifrom"], ["unifrom", "uniform"]),
    (["--proportions", "cell_type,share\nA,1\n"], ["columns cell_type and proportion"]),
    (["--proportions", "cell_type,proportion\nA,much\n"], ["columns cell_type and proportion"]),
    (["--proportions", "cell_type,proportion\nA,-1\n"], ["-1", "not negative"]),
    (["--proportions", "cell_type,proportion\nA,\n"], ["nan", "not negative"]),
    (["--proportions", "cell_type,proportion\nA,inf\n"], ["inf", "not negative"]),
    (["--proportions", "cell_type,proportion\nA,0\nB,0\n"], ["all proportions are zero"]),
    (["--proportions", "cell_type,proportion\nAA,1\n"], ["no cell type 'AA'"]),
    (["--proportions", "\0\1\2"], ["columns cell_type and proportion"]),
    (["--proportions", "cell_type,proportion\nA,1\nA,2\n"], ["names A more than once"]),
    (["--proportions", "\n"], ["columns cell_type and proportion"]),
]


@pytest.mark.parametrize(("flags", "words"), BAD_COMPOSITIONS)
def test_bad_compositions_are_told_before_training(capsys, finished, h5ad, tmp_path, flags, words):
    csv = tmp_path / "p.csv"
    if "\n" in str(flags[-1]) or "\0" in str(flags[-1]):
        csv.write_text(flags[-1])
        flags = [*flags[:-1], csv]
    error = refused(capsys, *TINY, "--input", h5ad, "--out", tmp_path / "run", *flags)
    assert [word for word in words if word not in error] == [], error
    assert error == refused(capsys, "--from", finished, "--out", tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()


def test_fractions(finished, h5ad, tmp_path):
    run(tmp_path, h5ad, "--fractions")
    sizes = {"0.25": 15, "0.5": 30, "0.75": 45, "1": 60, "1.25": 75, "1.5": 90}
    extra = {f"cells_{size}n.{kind}" for size in sizes for kind in ("h5ad", "csv")}
    assert names(tmp_path) == CONTRACT | extra
    for size, n_cells in sizes.items():
        cells = read(tmp_path, f"cells_{size}n")
        assert cells.n_obs == n_cells == len(table(tmp_path, f"cells_{size}n.csv"))
        assert set(cells.obs["cell_type"]) == set(SIZES)
        assert set(cells.obs["fraction"]) == {float(size)}
    assert result(tmp_path) == result(finished)


def test_holdout(h5ad, tmp_path):
    run(tmp_path / "a", h5ad, "--holdout", 0.5)
    assert names(tmp_path / "a") == CONTRACT | {"heldout.csv"}
    held, seeds = table(tmp_path / "a", "heldout.csv"), table(tmp_path / "a", "seeds.csv")
    assert list(held) == ["cell_type"] and held.index.name == "cell"
    assert set(held.index) & set(seeds.index) == set()
    assert set(held.index) | set(seeds.index) == set(CELLS)
    for side in (held, seeds):
        assert side["cell_type"].value_counts().to_dict() == {"A": 18, "B": 9, "R": 3}
        assert side["cell_type"].to_dict().items() <= dict(zip(CELLS, TYPES, strict=True)).items()
    assert read(tmp_path / "a").n_obs == len(seeds)
    assert record(tmp_path / "a")["holdout"] == 0.5
    run(tmp_path / "b", h5ad, "--holdout", 0.5, "--seed", 2)
    assert set(table(tmp_path / "b", "heldout.csv").index) != set(held.index)


def test_held_out_cells_leave_no_trace(h5ad, tmp_path):
    """Held-out cells can change at will: whatever is learnt, the choice of genes included, is the same."""
    flags = ["--holdout", 0.5, "--n-top-genes", 12]
    run(tmp_path / "a", h5ad, *flags)
    held = np.isin(CELLS, table(tmp_path / "a", "heldout.csv").index)
    matrix = X.copy()
    matrix[held] = np.random.default_rng(5).poisson(1.0, (held.sum(), N_GENES)) * np.arange(N_GENES)[::-1]
    matrix[held, 0] += 1
    run(tmp_path / "b", save(toy(matrix), tmp_path / "toy.h5ad"), *flags)
    assert result(tmp_path / "a") == result(tmp_path / "b")
    assert read(tmp_path / "a").n_vars == 12
    whole = run(tmp_path / "c", tmp_path / "toy.h5ad", "--n-top-genes", 12)
    assert list(read(whole).var_names) != list(read(tmp_path / "a").var_names)


def test_types_of_one_cell_stay_in_training(tmp_path):
    types = ["lone", *TYPES[1:]]
    run(tmp_path / "run", save(toy(types=types), tmp_path / "toy.h5ad"), "--holdout", 0.5)
    assert "lone" not in set(table(tmp_path / "run", "heldout.csv")["cell_type"])
    assert counted(tmp_path / "run")["lone"] == 1


# ---------------------------------------------------------------------------------------------- --from


@pytest.mark.parametrize("which", ["finished", "finished_paper"])
def test_drawing_again_gives_the_same_cells(request, tmp_path, which):
    folder = request.getfixturevalue(which)
    before = contents(folder)
    garage.main(["--from", str(folder), "--out", str(tmp_path / "again"), "--seed", "1"])
    assert names(tmp_path / "again") == {"cells.h5ad", "cells.csv", "run.json"}
    assert (tmp_path / "again" / "cells.csv").read_bytes() == (folder / "cells.csv").read_bytes()
    np.testing.assert_array_equal(values(tmp_path / "again"), values(folder))
    garage.main(["--from", str(folder), "--out", str(tmp_path / "other"), "--seed", "2"])
    assert (values(tmp_path / "other") != values(folder)).any()
    assert contents(folder) == before
    found = record(tmp_path / "again")
    assert found["drawn_from"] == str(folder)
    assert found["sha256"] == {"model.pt": common.run.digest((folder / "model.pt").read_bytes())}
    assert found["argv"] == ["--from", str(folder), "--out", str(tmp_path / "again"), "--seed", "1"]
    assert found["params"] == record(folder)["params"]
    assert (found["dataset"], found["method"], found["seed"]) == ("toy", record(folder)["method"], 1)
    assert list(found["stages"]) == ["sampling"]


def test_drawing_does_not_train(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(garage, "fit", None)
    monkeypatch.setattr(generation, "load_cells", None)
    moved = shutil.copytree(finished, tmp_path / "moved")
    garage.main(["--from", str(moved), "--n-cells", "5", "--fractions"])
    drawn = moved / "drawn_seed42"
    assert read(drawn).n_obs == 5
    assert read(drawn, "cells_1.5n").n_obs == 90
    assert names(moved) == CONTRACT | {"drawn_seed42"}
    assert {name: data for name, data in contents(moved).items() if "/" not in name} == contents(finished)


def test_what_cannot_be_drawn_from(capsys, finished, h5ad, tmp_path):
    before = contents(finished)
    out = ["--out", tmp_path / "run"]
    assert "give another folder" in refused(capsys, "--from", finished, "--out", finished)
    assert "give another folder" in refused(capsys, "--from", finished, "--out", finished / ".." / finished.name)
    (tmp_path / "empty").mkdir()
    assert "model.pt is missing" in refused(capsys, "--from", tmp_path / "empty", *out)
    assert "model.pt is missing" in refused(capsys, "--from", tmp_path / "nowhere", *out)
    (tmp_path / "empty" / "model.pt").write_bytes(before["model.pt"][:-1000])
    assert "damaged" in refused(capsys, "--from", tmp_path / "empty", *out)
    common.run.write_tensors(tmp_path / "empty" / "model.pt", {"format": "garage-checkpoint-1"})
    assert "garage-checkpoint-1" in refused(capsys, "--from", tmp_path / "empty", *out)
    for flags, word in (
        (["--input", h5ad], "source"), (["--latent-dim", 3], "params"), (["--holdout", 0.5], "holdout"),
        (["--preset", "paper"], "preset"), (["--resume"], "resume"),
    ):  # fmt: skip
        assert word in refused(capsys, "--from", finished, *out, *flags)
    assert contents(finished) == before
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------- inputs and scales


LINEAR = X * np.linspace(0.7, 5.3, N_GENES, dtype=np.float32)


@pytest.mark.parametrize(
    ("scale", "matrix"),
    [
        ("linear", LINEAR),
        ("log", np.log1p(LINEAR)),
        ("scaled", (X - X.mean(0)) / X.std(0)),
    ],
)
@pytest.mark.parametrize("preset", ["garage", "paper"])
def test_output_is_on_the_scale_of_the_input(tmp_path, scale, matrix, preset):
    tiny = TINY if preset == "garage" else TINY_PAPER
    folder = run(tmp_path / "run", save(toy(matrix), tmp_path / "toy.h5ad"), tiny=tiny)
    cells, csv = read(folder), table(folder, "cells.csv")
    assert record(folder)["scale"] == cells.uns["scale"] == scale
    drawn = cells.X.toarray()
    assert np.isfinite(drawn).all()
    assert (drawn < 0).any() == (scale == "scaled")
    np.testing.assert_array_equal(csv[GENES].to_numpy(np.float32), drawn)
    if preset == "garage":
        log = np.log1p if scale == "linear" else np.asarray
        assert log(drawn).mean() == pytest.approx(log(matrix).mean(), rel=0.1, abs=0.1)
        assert (drawn == 0).mean() == pytest.approx((matrix == 0).mean(), abs=0.05)


def test_scale_can_be_forced(h5ad, finished, tmp_path):
    run(tmp_path, h5ad, "--scale", "linear")
    assert record(tmp_path)["scale"] == "linear"
    assert (values(tmp_path) != np.rint(values(tmp_path))).any()
    assert (values(tmp_path) >= 0).all()


def test_clusters_instead_of_labels(h5ad, tmp_path):
    run(tmp_path, h5ad, "--cluster", "--holdout", "0.5")
    assert record(tmp_path)["labels_from"] == "leiden"
    assert all(name.startswith("cluster ") for name in counted(tmp_path))
    notes = " ".join(record(tmp_path)["notes"])
    assert "Leiden" in notes and "the held-out ones among them" in notes


def test_text_tables(finished, tmp_path):
    pd.DataFrame(X.T, GENES, CELLS).to_csv(tmp_path / "x.csv.gz")
    pd.Series(TYPES, CELLS).to_csv(tmp_path / "l.csv", header=False)
    garage.main([
        *TINY, "--expression-csv", str(tmp_path / "x.csv.gz"), "--labels-csv", str(tmp_path / "l.csv"), "--transpose",
        "--out", str(tmp_path / "run"),
    ])  # fmt: skip
    assert result(tmp_path / "run") == result(finished)
    assert set(record(tmp_path / "run")["sha256"]) == {"x.csv.gz", "l.csv"}


def test_other_layer_labels_and_orientation(finished, tmp_path):
    cells = toy(np.sqrt(X))
    cells.layers["counts"] = X
    cells.obs = cells.obs.rename(columns={"cell_type": "kind"})
    path = save(cells.T, tmp_path / "toy.h5ad")
    folder = run(tmp_path / "run", path, "--layer", "counts", "--label-key", "kind", "--transpose")
    assert result(folder) == result(finished)


def notes_of(capsys, folder, cells, *flags):
    capsys.readouterr()
    path = save(cells, folder / "toy.h5ad")
    run(folder / "run", path, *flags)
    lines = capsys.readouterr().err.splitlines()
    told = [line.removeprefix("note: ") for line in lines if line.startswith("note: ")]
    assert told == record(folder / "run")["notes"]
    return told


def test_oddities_are_noted_and_handled(capsys, tmp_path):
    matrix = X.copy()
    matrix[[4, 9]], matrix[:, [2, 5, 7]] = 0, 0
    types = ["lone", "pair", "pair", *TYPES[3:]]
    assert notes_of(capsys, tmp_path, toy(matrix, types)) == [
        "2 cells without counts were dropped",
        "3 genes are zero in every cell; they are kept and stay zero",
        "2 types have only one or two cells: lone, pair",
    ]
    assert list(table(tmp_path / "run", "seeds.csv").index) == [c for c in CELLS if c not in ("c4", "c9")]
    assert read(tmp_path / "run").shape == (N_CELLS - 2, N_GENES)
    assert (values(tmp_path / "run")[:, [2, 5, 7]] == 0).all()
    assert counted(tmp_path / "run") == {"A": 31, "B": 18, "R": 6, "lone": 1, "pair": 2}


@pytest.mark.parametrize(
    "matrix",
    [
        X,
        LINEAR,
        np.log1p(LINEAR),
        (X - X.mean(0)) / X.std(0),
    ],
    ids=["counts", "linear", "log", "scaled"],
)
def test_genes_that_are_zero_stay_zero(capsys, tmp_path, matrix):
    matrix = matrix.copy()
    matrix[:, [2, 5]] = 0.0
    assert "2 genes are zero in every cell; they are kept and stay zero" in notes_of(capsys, tmp_path, toy(matrix))
    assert (values(tmp_path / "run")[:, [2, 5]] == 0).all()


def test_one_type(capsys, tmp_path):
    assert notes_of(capsys, tmp_path, toy(types=["T"] * N_CELLS)) == ["all cells are of one type, 'T'"]
    assert counted(tmp_path / "run") == {"T": N_CELLS}


@pytest.mark.parametrize("n_cells", [2, 3])
def test_fewer_cells_than_neighbors(capsys, tmp_path, n_cells):
    notes = notes_of(capsys, tmp_path, toy()[-20 : -20 + n_cells].copy())
    assert f"{n_cells} cells are fewer than 5 neighbours: the graph joins them all" in notes
    assert read(tmp_path / "run").n_obs == n_cells


def test_cells_that_lose_all_counts_to_the_choice_of_genes(capsys, tmp_path):
    genes = np.flatnonzero(np.isin(GENES, read(run(tmp_path / "a", save(toy(), tmp_path / "toy.h5ad"),
                                                    "--n-top-genes", 5)).var_names))  # fmt: skip
    matrix = X.copy()
    matrix[3, genes] = 0
    notes = notes_of(capsys, tmp_path, toy(matrix), "--n-top-genes", 5)
    assert notes == ["1 cells without counts were dropped"]


def test_strange_names_are_shown_as_they_are(capsys, tmp_path):
    types = [f"[bold]{name}[/] :apple:" for name in TYPES]
    path = save(toy(types=types), tmp_path / "toy [red].h5ad")
    run(tmp_path / "[red]", path)
    out = capsys.readouterr().out
    assert "toy [red]: 60 cells" in out
    assert "[bold]A[/] :apple:" in out
    assert f"to {tmp_path / '[red]'} in" in out
    assert set(counted(tmp_path / "[red]")) == set(types)


# ---------------------------------------------------------------------------------------------- kills and full disks

# One process imports what is needed, runs once to be warm, and forks a process that is killed for each case.
KILLER = """
import json, os, signal, sys
from pathlib import Path
import torch
import common.run
from data_generation import garage

cases, warm = json.loads(sys.argv[1])
torch.set_num_threads(1)
garage.main(warm)
common.run.CHECKPOINT_SECONDS = 0
replace = Path.replace


def replace_or_die(self, target):
    global left
    left -= target.name == victim
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)


for victim, left, argv in cases:
    child = os.fork()
    if child == 0:
        Path.replace = replace_or_die
        garage.main(argv)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, victim
"""
# Checkpoints, each followed by a rename: 5 epochs of attention, the selection, 4 steps of the anchor, 6 of the critic,
# the end of training.
KILLS = {
    "attention": ("checkpoint.pt", 4, "attention"),
    "selection": ("checkpoint.pt", 6, "attention"),
    "anchor": ("checkpoint.pt", 9, "training"),
    "critic": ("checkpoint.pt", 13, "training"),
    "trained": ("checkpoint.pt", 17, "training"),
    "before cells": ("cells.h5ad", 1, "training"),
    "between cells": ("cells.csv", 1, "training"),
    "before the model": ("model.pt", 1, "training"),
    "before run.json": ("run.json", 1, "training"),
    "paper": ("checkpoint.pt", 6, "training"),  # 3 epochs, the selection, 10 and 20 of 25 iterations
}
LONGER_PAPER = [*TINY_PAPER, "--iterations", "25"]


@pytest.fixture(scope="module")
def killed(h5ad, tmp_path_factory):
    """A folder a case, in which a run was killed."""
    root = tmp_path_factory.mktemp("killed")
    cases = []
    for name, (victim, count, _) in KILLS.items():
        flags = LONGER_PAPER if name == "paper" else TINY
        cases.append((victim, count, [*flags, "--input", str(h5ad), "--out", str(root / name)]))
    job = json.dumps([cases, [*TINY, "--input", str(h5ad), "--out", str(root / "warm")]])
    # a fork inherits no threads, so there must be none to wait for
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILLER, job], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("name", KILLS)
@pytest.mark.slow
def test_a_killed_run_goes_on(killed, finished, h5ad, tmp_path, monkeypatch, name):
    folder = shutil.copytree(killed / name, tmp_path / "run")
    victim, _, stage = KILLS[name]
    assert {"checkpoint.pt", f".{victim}.part"} <= names(folder)
    assert "run.json" not in names(folder)
    assert not names(folder) & {victim} - {"checkpoint.pt"}
    gone_on = []
    state = common.run.ResumableRun.state

    def noting(self, stage):
        found = state(self, stage)
        gone_on.extend([stage] if found is not None else [])
        return found

    monkeypatch.setattr(common.run.ResumableRun, "state", noting)
    tiny = LONGER_PAPER if name == "paper" else TINY
    run(folder, h5ad, "--resume", tiny=tiny)
    assert gone_on[-1] == stage
    assert names(folder) == CONTRACT
    whole = finished if name != "paper" else run(tmp_path / "whole", h5ad, tiny=tiny)
    assert result(folder) == result(whole)


def test_without_resume_a_killed_run_starts_anew(killed, finished, h5ad, tmp_path):
    folder = shutil.copytree(killed / "critic", tmp_path / "run")
    run(folder, h5ad)
    assert names(folder) == CONTRACT
    assert result(folder) == result(finished)


def test_resume_without_a_checkpoint_simply_runs(finished, h5ad, tmp_path):
    run(tmp_path / "new", h5ad, "--resume")
    folder = shutil.copytree(finished, tmp_path / "done")
    run(folder, h5ad, "--resume")
    for path in (tmp_path / "new", folder):
        assert names(path) == CONTRACT
        assert result(path) == result(finished)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--seed", 2], "other seed:"),
        (["--latent-dim", 9], "other parameters:"),
        (["--leakage", 0.1, "--seed", 2], "other seed and parameters:"),
        (["--n-top-genes", 9], "other data:"),
        (["--holdout", 0.5], "other data:"),
        (["--cluster"], "other data:"),
        (["--scale", "linear"], "other scale:"),
        (["--input", "other.h5ad"], "other data:"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(capsys, killed, h5ad, tmp_path, flags, words):
    folder = killed / "critic"
    before = contents(folder)
    matrix = X.copy()
    matrix[0, 0] += 1
    save(toy(matrix), tmp_path / "other.h5ad")
    flags = [tmp_path / word if word == "other.h5ad" else word for word in flags]
    error = refused(capsys, *TINY, "--input", h5ad, "--out", folder, "--resume", *flags)
    assert words in error
    assert "--resume" in error
    assert contents(folder) == before


def test_resume_takes_another_request_for_cells(killed, h5ad, tmp_path):
    folder = shutil.copytree(killed / "trained", tmp_path / "run")
    run(folder, h5ad, "--resume", "--n-cells", 7)
    assert read(folder).n_obs == 7


class Trap:
    """Unpickled without care it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["cut", "empty", "trap", "model"])
def test_a_checkpoint_that_is_none(capsys, killed, finished, h5ad, tmp_path, kind):
    (tmp_path / "run").mkdir()
    checkpoint, sprung = tmp_path / "run" / "checkpoint.pt", tmp_path / "sprung"
    if kind == "trap":
        torch.save(Trap(sprung), checkpoint)
    else:
        good = (killed / "critic" / "checkpoint.pt").read_bytes()
        model = (finished / "model.pt").read_bytes()
        checkpoint.write_bytes({"cut": good[: len(good) // 2], "empty": b"", "model": model}[kind])
    before = contents(tmp_path)
    error = refused(capsys, *TINY, "--input", h5ad, "--out", tmp_path / "run", "--resume")
    assert ("belongs to a run with other" if kind == "model" else "damaged") in error
    assert "checkpoint.pt" in error
    assert contents(tmp_path) == before
    assert not sprung.exists()


@contextmanager
def files_of_at_most(n_bytes):
    """The system refuses to let files grow beyond a size, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("victim", "flags"),
    [
        *((name, []) for name in ("checkpoint.pt", *sorted(CONTRACT))),
        ("heldout.csv", ["--holdout", "0.5"]),
        ("cells_0.5n.csv", ["--fractions"]),
    ],
)
def test_full_disk(capsys, monkeypatch, finished, h5ad, tmp_path, victim, flags):
    atomic = common.run.atomic

    @contextmanager
    def full_for_the_victim(path):
        with atomic(path) as part:
            if path.name != victim:
                yield part
            else:
                with files_of_at_most(50):
                    yield part

    flags = [*TINY, "--input", str(h5ad), "--out", str(tmp_path / "run"), *flags]
    with monkeypatch.context() as patch:
        patch.setattr(common.run, "atomic", full_for_the_victim)
        error = refused(capsys, *flags)
    assert f"no room left to write {tmp_path / 'run' / victim}" in error
    left = names(tmp_path / "run") if (tmp_path / "run").exists() else set()
    assert not left & {"run.json", victim}
    assert not any(name.endswith(".part") for name in left)
    assert ("checkpoint.pt" in left) == (victim != "checkpoint.pt")  # no work is lost
    garage.main([*flags, "--resume"])
    assert names(tmp_path / "run") >= CONTRACT | {victim} - {"checkpoint.pt"}
    assert "checkpoint.pt" not in names(tmp_path / "run")
    if "--holdout" not in flags:
        assert result(tmp_path / "run") == result(finished)


# ---------------------------------------------------------------------------------------------- bad input


def changed(row, column, value):
    matrix = X.copy()
    matrix[row, column] = value
    return toy(matrix)


def labels(text):
    return lambda folder, h5ad: ["--input", h5ad, "--labels-csv", write(folder / "labels.csv", text)]


def text_table(text, name="x.csv"):
    return lambda folder, h5ad: ["--expression-csv", write(folder / name, text), "--cluster"]


def matrix(cells, *flags):
    return lambda folder, h5ad: ["--input", save(cells() if callable(cells) else cells, folder / "bad.h5ad"), *flags]


def cut(folder, h5ad):
    return ["--input", write(folder / "cut.h5ad", h5ad.read_bytes()[:5000])]


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def gzipped():
    text = io.StringIO()
    pd.DataFrame(X, CELLS, GENES).to_csv(text)
    return gzip.compress(text.getvalue().encode())


BAD_INPUT = {
    "NaN": (matrix(changed(3, 2, np.nan)), ["missing or infinite", "'c3'", "'G2'"]),
    "Inf": (matrix(changed(3, 2, np.inf)), ["missing or infinite", "'c3'", "'G2'"]),
    "negative counts": (matrix(changed(3, 2, -1), "--scale", "counts"), ["negative", "--scale scaled"]),
    "fractional counts": (matrix(changed(3, 2, 0.5), "--scale", "counts"), ["0.5 is no integer"]),
    "text in the matrix": (text_table(",G1,G2\nc1,1,2\nc2,3,oops\n"), ["'oops'", "line 3, column 3"]),
    "labels missing": (labels("\n".join(["", *TYPES[1:]])), ["1 labels are missing", "'c0'"]),
    "labels too few": (labels("\n".join(TYPES[1:])), ["59 labels for 60 cells"]),
    "labels in another order": (
        labels("\n".join(f"{cell},B" for cell in ["c1", "c0", *CELLS[2:]])), ["another order", "row 1"]
    ),
    "cell names twice": (matrix(lambda: toy(cells=["c1", "c1", *CELLS[2:]])), ["1 cell names occur more", "'c1'"]),
    "gene names twice": (matrix(lambda: toy(genes=["G1", "G1", *GENES[2:]])), ["1 gene names occur more", "'G1'"]),
    "no cells": (matrix(toy()[:0].copy()), ["empty", "0 cells"]),
    "no genes": (matrix(toy()[:, :0].copy()), ["empty", "0 genes"]),
    "only zeros": (matrix(toy(0 * X)), ["every value of the matrix is zero"]),
    "one cell": (matrix(toy()[:1].copy()), ["1 cells are too few"]),
    "transposed": (matrix(toy().T), ["--transpose"]),
    "wrongly transposed": (matrix(toy(), "--transpose"), ["--transpose"]),
    "unknown data set": (lambda *_: ["--dataset", "polen"], ["'polen'", "did you mean 'pollen'"]),
    "unknown label": (lambda _, h5ad: ["--input", h5ad, "--label-key", "cell_typ"], ["did you mean 'cell_type'"]),
    "unknown layer": (lambda _, h5ad: ["--input", h5ad, "--layer", "raw"], ["no layer 'raw', nor any other"]),
    "no such file": (lambda folder, _: ["--input", folder / "x.h5ad"], ["x.h5ad does not exist"]),
    "truncated h5ad": (cut, ["cut.h5ad", "damaged"]),
    "truncated csv.gz": (text_table(gzipped()[:-40], "x.csv.gz"), ["x.csv.gz", "damaged"]),
    "two sources": (lambda _, h5ad: ["--input", h5ad, "--dataset", "yan"], ["give one"]),
    "holdout of all": (lambda _, h5ad: ["--input", h5ad, "--holdout", "1"], ["--holdout is 1"]),
    "negative holdout": (lambda _, h5ad: ["--input", h5ad, "--holdout", "-0.1"], ["--holdout is -0.1"]),
    "holdout nan": (lambda _, h5ad: ["--input", h5ad, "--holdout", "nan"], ["--holdout is nan"]),
    "too small a holdout": (lambda _, h5ad: ["--input", h5ad, "--holdout", "0.01"], ["without one of the types"]),
    "no genes to choose": (lambda _, h5ad: ["--input", h5ad, "--n-top-genes", "0"], ["--n-top-genes is 0"]),
    "genes of scaled data": (matrix(changed(3, 2, -0.5), "--n-top-genes", "5"), ["--n-top-genes"]),
    "no CUDA": (lambda _, h5ad: ["--input", h5ad, "--device", "cuda"], ["--device cuda", "--device cpu"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_INPUT)
@pytest.mark.filterwarnings("ignore:.*names are not unique")
def test_bad_input(capsys, finished, h5ad, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    make, words = BAD_INPUT[kind]
    flags = [*TINY, *make(tmp_path, h5ad)]
    before = contents(tmp_path)
    error = refused(capsys, *flags, "--out", tmp_path / "new" / "run")
    assert [word for word in words if word not in error] == [], error
    assert contents(tmp_path) == before
    assert not (tmp_path / "new").exists()
    # and an earlier run stays what it is, its run.json included
    old = shutil.copytree(finished, tmp_path / "old")
    assert refused(capsys, *flags, "--out", old) == error
    assert contents(old) == contents(finished)


def test_folders_that_cannot_be_written(capsys, h5ad, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(garage, "fit", None)  # it is told before training
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "below", tmp_path / "file", tmp_path / ("long" * 100)):
        for flags in ([*TINY, "--input", h5ad], ["--from", finished]):
            error = refused(capsys, *flags, "--out", folder)
            assert "cannot write" in error and "--out" in error
    assert names(tmp_path) == {"file"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_folder_without_permission(capsys, h5ad, tmp_path):
    tmp_path.chmod(0o500)
    assert "(Permission denied)" in refused(capsys, *TINY, "--input", h5ad, "--out", tmp_path / "run")


# ---------------------------------------------------------------------------------------------- real cells


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yan", "pollen", "pbmc3k", "baron_mouse", "pbmc68k"])
@pytest.mark.parametrize("preset", ["garage", "paper"])
def test_real_cells(tmp_path, name, preset):
    flags = ["--out", str(tmp_path), "--n-top-genes", "300", "--preset", preset, "--gat-epochs", "20"]
    flags += ["--anchor-epochs", "5", "--critic-steps", "20"] if preset == "garage" else ["--iterations", "5"]
    if name != "pbmc68k":
        path = SHARED / f"{name}.h5ad"
        if not path.exists():
            pytest.skip(f"{path.name} is not here")
        flags += ["--input", str(path)]
    garage.main(flags)
    cells, seeds, found = read(tmp_path), table(tmp_path, "seeds.csv"), record(tmp_path)
    drawn = cells.X.toarray()
    assert found["scale"] == ("linear" if name == "yan" else "counts")
    assert np.isfinite(drawn).all()
    assert drawn.min() >= 0 and drawn.max() > 0
    assert (drawn == np.rint(drawn)).all() == (name != "yan")
    assert cells.shape == (len(seeds), 300)
    assert set(seeds["cell_type"][seeds["is_seed"]]) == set(seeds["cell_type"])
    if preset == "garage":
        assert counted(tmp_path) == seeds["cell_type"].value_counts().to_dict()
