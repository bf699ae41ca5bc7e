"""Whatever befalls a run, nothing is lost, nothing is half-written, and what happened is told in one line."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from conftest import make_toy

import common.run
from analysis import evaluate
from benchmarking.sota import gan
from common.run import claimed, read_tensors
from data_generation import garage

ROOT = Path(__file__).resolve().parents[1]
N_KILLS = 20
TINY = [
    "--gat-epochs", "30", "--anchor-epochs", "10", "--critic-steps", "40", "--calibration-cells", "50", "--seed", "1",
    "--device", "cpu",
]  # fmt: skip
PAPER = [
    "--preset", "paper", "--iterations", "30", "--gat-epochs", "10", "--generator-hidden", "16", "14",
    "--critic-hidden", "10", "8", "--seed", "1", "--device", "cpu",
]  # fmt: skip
CONTRACT = {"cells.h5ad", "cells.csv", "seeds.csv", "losses.csv", "model.pt", "run.json"}


@pytest.fixture(scope="module")
def h5ad(tmp_path_factory):
    path = tmp_path_factory.mktemp("input") / "toy.h5ad"
    make_toy().write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def undisturbed(h5ad, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    garage.main(flags(h5ad, folder))
    return folder


def flags(h5ad, out, *more, tiny=TINY):
    return [*tiny, "--input", str(h5ad), "--out", str(out), *map(str, more)]


def ends(capsys, code, main, argv):
    """Run a script, which must leave with this exit code; return its last line, which is the only one of its kind."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(list(map(str, argv)))
    lines = capsys.readouterr().err.splitlines()
    assert left.value.code == code, lines
    assert len([line for line in lines if line.startswith(("error:", "stopped"))]) == 1, lines
    return lines[-1]


def names(folder):
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def assert_whole(folder, like):
    """Every file that stands in a folder is one of the undisturbed run's, whole and the same."""
    for name in names(folder) & CONTRACT - {"run.json"}:
        if name.endswith(".csv"):
            assert (folder / name).read_bytes() == (like / name).read_bytes()
        elif name.endswith(".h5ad"):
            a, b = anndata.read_h5ad(folder / name), anndata.read_h5ad(like / name)
            assert np.array_equal(a.X.toarray(), b.X.toarray())
            assert a.obs.equals(b.obs)
        else:
            assert same(read_tensors(folder / name), read_tensors(like / name))


def same(a, b):
    """Compare what `read_tensors` returns."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a.numpy().tobytes() == b.numpy().tobytes() if isinstance(a, torch.Tensor) else a == b


def assert_finished(folder, like):
    assert names(folder) == CONTRACT
    assert_whole(folder, like)


# ---------------------------------------------------------------------------------------------- kill -9, want of memory


@pytest.fixture(scope="module")
def forked(h5ad, tmp_path_factory):
    """Run GARAGE's script in a process of its own: returns exit code and stderr."""
    # a fork inherits no threads, so there must be none to wait for
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    warm = json.dumps(flags(h5ad, tmp_path_factory.mktemp("warm")))
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("forked_runs.py")), warm], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as server:  # fmt: skip
        assert server.stdout.readline() == "warm\n"

        def run(argv, fault="none", value=0):
            server.stdin.write(json.dumps({"argv": argv, "fault": fault, "value": value}) + "\n")
            server.stdin.flush()
            done = json.loads(server.stdout.readline())
            return done["code"], done["told"]

        yield run
        server.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize(("tiny", "n_kills"), [(TINY, N_KILLS), (PAPER, 8)], ids=["garage", "paper"])
def test_killed_at_random_moments_a_run_goes_on_to_the_same_cells(forked, h5ad, tmp_path, tiny, n_kills):
    whole = tmp_path / "whole"
    code, told = forked(flags(h5ad, whole, tiny=tiny), "events")
    assert code == 0, told
    n_events = int(told.splitlines()[-1])
    held = set()
    for i, moment in enumerate(np.random.default_rng(0).uniform(0, 1, n_kills)):
        folder = tmp_path / str(i)
        code, told = forked(flags(h5ad, folder, tiny=tiny), "events", int(moment * n_events) + 1)
        assert code == -signal.SIGKILL, told
        assert "run.json" not in names(folder) or names(folder) >= CONTRACT  # it is written last
        assert_whole(folder, whole)
        held |= names(folder)
        code, told = forked(flags(h5ad, folder, "--resume", tiny=tiny))
        assert code == 0, told
        assert_finished(folder, whole)
    assert {"checkpoint.pt", ".running"} <= held and held & CONTRACT  # in training, and when files were written
    assert any(name.endswith(".part") for name in held)  # and in the midst of it


@pytest.mark.slow
def test_killed_again_and_again_a_run_gets_done(forked, h5ad, undisturbed, tmp_path):
    """Each time soon after the first new checkpoint."""
    for _ in range(100):
        code, told = forked(flags(h5ad, tmp_path, "--resume"), "checkpoints", 2)
        if code == 0:
            break
        assert code == -signal.SIGKILL, told
    assert_finished(tmp_path, undisturbed)


@pytest.mark.slow
def test_memory_that_runs_out(forked, h5ad, tmp_path):
    code, told = forked(flags(h5ad, tmp_path, "--hidden-dim", 20_000), "memory", 300_000_000)
    *_, line = told.splitlines()
    assert code == 2
    assert line.startswith("error: memory ran out (") and "can't allocate memory" in line and "--n-top-genes" in line
    assert "Traceback" not in told
    assert names(tmp_path) == {"checkpoint.pt"}  # stage 1 is not lost


# ---------------------------------------------------------------------------------------------- Ctrl-C


@pytest.fixture
def pressed(monkeypatch):
    """Press Ctrl-C so many times when a stage reports a step; then as before."""

    def press(stage, step, times):
        @contextmanager
        def bar():
            def report(at, done, *_, **__):
                if (at, done) == (stage, step):
                    for _ in range(times):
                        signal.raise_signal(signal.SIGINT)

            yield report

        monkeypatch.setattr(garage, "progress_bar", bar)

    return press


@pytest.mark.parametrize(
    ("stage", "step", "state"),
    [
        ("attention", 20, lambda stages: stages["attention"]["state"]["epoch"] == 20),
        ("anchor", 20, lambda stages: stages["training"]["step"] == 20),
        ("critic", 30, lambda stages: stages["training"]["step"] > 30),
    ],
)
def test_ctrl_c_saves_the_step(capsys, monkeypatch, pressed, h5ad, undisturbed, tmp_path, stage, step, state):
    pressed(stage, step, times=1)
    line = ends(capsys, 130, garage.main, flags(h5ad, tmp_path))
    assert line == "stopped: --resume goes on from here"
    assert names(tmp_path) == {"checkpoint.pt"}
    assert state(read_tensors(tmp_path / "checkpoint.pt")["stages"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.undo()
    garage.main(flags(h5ad, tmp_path, "--resume"))
    assert_finished(tmp_path, undisturbed)


def test_ctrl_c_twice_stops_at_once(capsys, pressed, h5ad, tmp_path):
    pressed("anchor", 20, times=2)
    assert ends(capsys, 130, garage.main, flags(h5ad, tmp_path)) == "stopped"
    assert list(read_tensors(tmp_path / "checkpoint.pt")["stages"]) == ["selection"]  # the last one in time


def test_ctrl_c_while_files_are_written(capsys, monkeypatch, h5ad, undisturbed, tmp_path):
    written = common.run.atomic

    @contextmanager
    def atomic(path):
        with written(path) as part:
            yield part
            if path.name == "losses.csv":
                signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(common.run, "atomic", atomic)
        ends(capsys, 130, garage.main, flags(h5ad, tmp_path))
    assert names(tmp_path) == {"checkpoint.pt", "cells.h5ad", "cells.csv", "seeds.csv"}
    garage.main(flags(h5ad, tmp_path, "--resume"))
    assert_finished(tmp_path, undisturbed)


def test_ctrl_c_that_is_ignored_stays_ignored(pressed, h5ad, undisturbed, tmp_path):
    """As for a run that a shell has started in the background."""
    pressed("anchor", 20, times=1)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        garage.main(flags(h5ad, tmp_path))
    finally:
        signal.signal(signal.SIGINT, before)
    assert_finished(tmp_path, undisturbed)


# ---------------------------------------------------------------------------------------------- one folder, two runs


HOLDER = """
import sys, time, filelock
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print(flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("way", ["garage", "baseline", "--from"])
def test_a_second_run_in_the_same_folder_is_refused(capsys, h5ad, undisturbed, tmp_path, way):
    argv = {
        "garage": flags(h5ad, tmp_path), "baseline": ["--input", h5ad, "--out", tmp_path],
        "--from": ["--from", undisturbed, "--out", tmp_path],
    }[way]  # fmt: skip
    main = gan.main if way == "baseline" else garage.main
    with claimed(tmp_path):
        assert f"another run is at work in {tmp_path}" in ends(capsys, 2, main, argv)
        assert names(tmp_path) == {".running"}
    assert names(tmp_path) == set()


def test_what_a_killed_run_had_claimed_is_free(capsys, h5ad, undisturbed, tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / ".running"], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        try:
            ends(capsys, 2, garage.main, flags(h5ad, tmp_path))
        finally:
            other.kill()
    assert names(tmp_path) == {".running"}
    garage.main(flags(h5ad, tmp_path))
    assert_finished(tmp_path, undisturbed)


def test_a_folder_that_stays_empty_is_not_left_behind(tmp_path):
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "a" / "b"):
        assert names(tmp_path / "a" / "b") == {".running"}
        raise ZeroDivisionError
    assert names(tmp_path) == set()
    (tmp_path / "a").mkdir()
    with claimed(tmp_path / "a"), claimed(tmp_path / "b"):
        (tmp_path / "b" / "file").touch()
    assert names(tmp_path) == {"a", "b"}


# ---------------------------------------------------------------------------------------------- disks and clocks


@pytest.fixture
def disk(tmp_path):
    """Mount a disk of its own, for those who may: returns its folder."""
    mounted = []

    def mount(options):
        (tmp_path / "disk").mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "none", tmp_path / "disk"]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no disk can be mounted here")
        mounted.append(tmp_path / "disk")
        return tmp_path / "disk"

    yield mount
    for folder in mounted:  # torch closes no file that it failed to write
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("victim", ["checkpoint.pt", "cells.h5ad", "seeds.csv", "model.pt", "run.json"])
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_fills_up(capsys, monkeypatch, disk, h5ad, undisturbed, victim):
    folder = disk("size=30m") / "run"
    filler, writing = folder.with_name("filler"), common.run.atomic

    @contextmanager
    def atomic(path):
        if path.name == victim:
            with filler.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(1024))
        with writing(path) as part:
            yield part

    with monkeypatch.context() as patch:
        patch.setattr(common.run, "atomic", atomic)
        line = ends(capsys, 2, garage.main, flags(h5ad, folder))
    assert "no room left to write" in line and victim.split(".")[0] in line
    assert not names(folder) & {victim, f".{victim}.part", "run.json"}
    assert ("checkpoint.pt" in names(folder)) == (victim != "checkpoint.pt")  # no work is lost
    assert_whole(folder, undisturbed)
    filler.unlink()
    garage.main(flags(h5ad, folder, "--resume"))
    assert_finished(folder, undisturbed)


def test_a_disk_that_cannot_be_written(capsys, monkeypatch, disk, h5ad):
    monkeypatch.setattr(garage, "fit", None)  # it is told before training
    assert "(Read-only file system)" in ends(capsys, 2, garage.main, flags(h5ad, disk("ro") / "run"))


def test_clocks_may_be_set(monkeypatch, h5ad, undisturbed, tmp_path):
    rng = np.random.default_rng(0)
    monkeypatch.setattr("time.time", lambda: float(rng.choice([0.0, 1e8, 2e9, 4e9])))
    garage.main(flags(h5ad, tmp_path))
    assert_finished(tmp_path, undisturbed)
    stages = json.loads((tmp_path / "run.json").read_text())["stages"]
    assert all(0 <= stage["seconds"] < 600 for stage in stages.values())


# ---------------------------------------------------------------------------------------------- damaged files


def flip(content, position):
    changed = bytearray(content)
    changed[position] ^= 1 << position % 8
    return bytes(changed)


def test_a_checkpoint_is_whole_or_refused(capsys, pressed, h5ad, tmp_path):
    """Whatever bit of it has changed, a run goes on to the same cells or says that it is damaged."""
    pressed("anchor", 20, times=1)
    ends(capsys, 130, garage.main, flags(h5ad, tmp_path))
    path = tmp_path / "checkpoint.pt"
    content, whole = path.read_bytes(), read_tensors(path)
    refused = 0
    rng = np.random.default_rng(0)
    for position in rng.choice(len(content), 300, replace=False):
        path.write_bytes(flip(content, int(position)))
        try:
            assert same(read_tensors(path), whole)
        except common.run.UserError as error:
            assert "is damaged" in str(error)
            refused += 1
    assert refused > 200
    path.write_bytes(flip(content, len(content) // 2))
    line = ends(capsys, 2, garage.main, flags(h5ad, tmp_path, "--resume"))
    assert "checkpoint.pt is damaged" in line
    assert names(tmp_path) == {"checkpoint.pt"}


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_model_is_not_drawn_from(capsys, undisturbed, tmp_path, damage):
    content = (undisturbed / "model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(content[:-100] if damage == "cut" else flip(content, len(content) // 2))
    argv = ["--from", tmp_path, "--out", tmp_path / "more"]
    assert "model.pt is damaged" in ends(capsys, 2, garage.main, argv)
    assert names(tmp_path) == {"model.pt"}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, damage) for name in common.run.CHECKED for damage in ("cut", "empty", "flipped", "gone")),
        *(("run.json", damage) for damage in ("cut", "empty", "flipped", "gone")),
    ],
)
def test_a_damaged_run_is_not_judged(capsys, toy_runs, tmp_path, name, damage):
    for path in (toy_runs / "seed0").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = (tmp_path / name).read_bytes()
    damaged = {"cut": content[:-7], "empty": b"", "flipped": flip(content, len(content) // 3), "gone": b""}[damage]
    (tmp_path / name).write_bytes(damaged)
    if damage == "gone":
        (tmp_path / name).unlink()
    argv = ["--runs", tmp_path, "--families", "utility", "--controls", "real_half", "--out", tmp_path / "table.csv"]
    assert str(tmp_path) in ends(capsys, 2, evaluate.main, argv)
    assert "table.csv" not in names(tmp_path)


# ---------------------------------------------------------------------------------------------- files that run code


def unsafe_calls(source):
    """Names of what in a Python source could run code from a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            yield from (m for m in modules if m.split(".")[0] in {"pickle", "cPickle", "dill", "cloudpickle", "shelve"})
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name == "torch.load" and given.get("weights_only") != "True":
                yield name
            if given.get("allow_pickle", "False") != "False":
                yield name
            if re.search(r"pickle$|^joblib\.(dump|load)$", name):
                yield name


@pytest.mark.parametrize(
    ("source", "unsafe"),
    [
        ("import pickle", True), ("from pickle import loads", True), ("import pickle as p", True),
        ("torch.load(f)", True), ("torch.load(f, weights_only=False)", True),
        ("torch.load(f, weights_only=True)", False), ("np.load(f, allow_pickle=True)", True), ("np.load(f)", False),
        ("pd.read_pickle(f)", True), ("table.to_pickle(f)", True), ("joblib.load(f)", True),
        ("joblib.Parallel(2)", False),
    ],
)  # fmt: skip
def test_what_is_unsafe_is_found(source, unsafe):
    assert bool(list(unsafe_calls(source))) == unsafe


def test_no_file_that_is_read_can_run_code():
    sources = [path for path in ROOT.rglob("*.py") if not {".venv", ".venv-tf1", "tests"} & set(path.parts)]
    assert len(sources) > 50
    found = {str(path.relative_to(ROOT)): list(unsafe_calls(path.read_text())) for path in sources}
    assert {path: calls for path, calls in found.items() if calls} == {}
