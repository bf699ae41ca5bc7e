"""The folder of a run: files appear whole or not at all, never run code, and say what is wrong in one line."""

import errno
import hashlib
import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from conftest import make_toy
from scipy import sparse

import common.run
from common.errors import UserError
from common.run import (
    ResumableRun,
    Stopwatch,
    atomic,
    check_writable,
    digest,
    environment,
    read_tensors,
    write_cells,
    write_json,
    write_table,
    write_tensors,
)

STATE = {"step": 3, "weights": torch.arange(6.0), "losses": [{"step": 1, "nll": 0.5}]}


class Trap:
    """Unpickled without care it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------------------------------- writing


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with atomic(path) as part:
        part.write_text("new")
        assert part.parent == path.parent  # a rename across disks would be a copy
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)), atomic(path) as part:
        part.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ["no room left", "--out"]),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), ["no room left"]),
        (OSError(errno.EFBIG, "File too large"), ["no room left"]),
        (OSError("Can't write data (file write failed: errno = 28, error message = ...)\nmore"), ["no room left"]),
        (PermissionError(errno.EACCES, "Permission denied"), ["cannot write", "(Permission denied)", "--out"]),
        (OSError("something of HDF5\nin two lines"), ["cannot write", "(something of HDF5)"]),
    ],
)
def test_a_disk_that_fails_is_told_in_one_line(tmp_path, error, words):
    path = tmp_path / "a.txt"
    with pytest.raises(UserError) as told, atomic(path) as part:
        part.write_text("half")
        raise error
    message = str(told.value)
    assert str(path) in message
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message
    assert names(tmp_path) == []


def test_torch_tells_a_full_disk_as_a_runtime_error(tmp_path, monkeypatch):
    def full(content, path):
        raise RuntimeError("[enforce fail at inline_container.cc:783] PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="no room left"):
        write_tensors(tmp_path / "a.pt", {"format": "x"})
    assert names(tmp_path) == []


def test_json_and_tables(tmp_path):
    write_json(tmp_path / "a.json", {"path": Path("x/y"), "n": 3, "none": None})
    assert json.loads((tmp_path / "a.json").read_text()) == {"path": "x/y", "n": 3, "none": None}
    table = pd.DataFrame({"cell": ["a,b", 'c"d'], "rank": [2, 1]})
    write_table(tmp_path / "a.csv", table)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a.csv"), table)
    assert names(tmp_path) == ["a.csv", "a.json"]


@pytest.mark.parametrize("scale", ["counts", "log"])
def test_cells_are_the_same_in_both_files(tmp_path, monkeypatch, scale):
    rng = np.random.default_rng(0)
    X = rng.poisson(1.0, (23, 4)).astype(np.float32)
    X = X if scale == "counts" else X * rng.random(X.shape, dtype=np.float32)
    genes = ["G1", "cell_type", "gene, with a comma", "cell"]
    obs = pd.DataFrame({"cell_type": pd.Categorical(["T"] * 20 + ["B"] * 3)}, index=[f"c{i}" for i in range(23)])
    cells = AnnData(sparse.csr_matrix(X), obs=obs, var=pd.DataFrame(index=genes), uns={"scale": scale})
    write_cells(tmp_path / "one", cells)
    monkeypatch.setattr(common.run, "CSV_ROWS", 5)
    write_cells(tmp_path / "two", cells, "few")
    assert names(tmp_path / "two") == ["few.csv", "few.h5ad"]
    text = (tmp_path / "one" / "cells.csv").read_bytes()
    assert text == (tmp_path / "two" / "few.csv").read_bytes()
    assert text.startswith(b'cell,cell_type,G1,cell_type,"gene, with a comma",cell\nc0,T,')
    values = pd.read_csv(tmp_path / "one" / "cells.csv", header=0, index_col=0).iloc[:, 1:]
    np.testing.assert_array_equal(values.to_numpy(np.float32), X)
    assert (values.dtypes == "int64").all() == (scale == "counts")
    assert (anndata.read_h5ad(tmp_path / "one" / "cells.h5ad").X != X).sum() == 0


def test_check_writable(tmp_path):
    check_writable(tmp_path / "a" / "b")
    check_writable(tmp_path)
    assert names(tmp_path) == []
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("long" * 100)):
        with pytest.raises(UserError, match=r"cannot write .*--out"):
            check_writable(folder)


# ---------------------------------------------------------------------------------------------- reading


def test_tensors_come_back(tmp_path):
    write_tensors(tmp_path / "a.pt", {"format": "x", **STATE})
    found = read_tensors(tmp_path / "a.pt")
    assert torch.equal(found.pop("weights"), STATE["weights"])
    assert found == {"format": "x", "step": 3, "losses": STATE["losses"]}


def test_files_that_are_not_ours(tmp_path):
    with pytest.raises(UserError, match=r"a\.pt is missing"):
        read_tensors(tmp_path / "a.pt")
    write_tensors(tmp_path / "a.pt", {"format": "x", "weights": torch.zeros(1000)})
    (tmp_path / "cut.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:-500])
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("no tensors")
    torch.save(Trap(tmp_path / "sprung"), tmp_path / "trap.pt")
    torch.save({"format": "garage-checkpoint-1", "stages": Trap(tmp_path / "sprung")}, tmp_path / "mimicry.pt")
    for name in ("cut", "empty", "text", "trap", "mimicry"):
        with pytest.raises(UserError, match=f"{name}.pt is damaged or was not written by GARAGE"):
            read_tensors(tmp_path / f"{name}.pt")
    assert not (tmp_path / "sprung").exists()
    torch.load(tmp_path / "trap.pt", weights_only=False)
    assert (tmp_path / "sprung").exists()  # the trap does work
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="was not written by GARAGE"):
        read_tensors(tmp_path / "list.pt")


# ---------------------------------------------------------------------------------------------- checkpoints


def test_a_run_goes_on_only_when_asked(tmp_path):
    first = ResumableRun(tmp_path, {"data": "d", "seed": 1}, resume=True)  # nothing there: starts anew
    assert first.state("training") is None
    first.save("selection", {"done": True})
    first.save("training", STATE)
    again = ResumableRun(tmp_path, {"data": "d", "seed": 1}, resume=True)
    assert again.state("selection") == {"done": True}
    assert again.state("training")["step"] == 3
    assert again.state("other") is None
    assert ResumableRun(tmp_path, {"data": "e", "seed": 2}, resume=False).state("training") is None
    again.forget()
    again.forget()
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        ({"data": "e", "seed": 1}, "other data:"),
        ({"data": "d", "seed": 2}, "other seed:"),
        ({"data": "e", "seed": 2}, "other data and seed:"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path, identity, words):
    ResumableRun(tmp_path, {"data": "d", "seed": 1}, resume=False).save("training", STATE)
    with pytest.raises(UserError, match=words):
        ResumableRun(tmp_path, identity, resume=True)


def test_checkpoints_are_not_more_frequent_than_needed(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(common.run.time, "monotonic", lambda: clock[0])
    run = ResumableRun(tmp_path, {}, resume=False)
    offer = run.checkpoint("training")
    made = []
    for clock[0] in (1.0, 19.9, 20.0, 39.0, 41.0):
        offer(lambda: made.append(clock[0]) or {"step": len(made)})
    assert made == [20.0, 41.0]  # and no state is put together in between
    assert read_tensors(run.path)["stages"] == {"training": {"step": 2}}


# ---------------------------------------------------------------------------------------------- run.json


def test_stopwatch(monkeypatch):
    times = iter([10.0, 12.5])
    monkeypatch.setattr(common.run.time, "monotonic", lambda: next(times))
    clock = Stopwatch()
    with clock.stage("selection"):
        pass
    assert clock.stages["selection"]["seconds"] == 2.5
    assert 20 < clock.stages["selection"]["peak_memory_mb"] < 1e5


def test_digest():
    assert digest(b"abc") == hashlib.sha256(b"abc").hexdigest()
    assert digest(b"ab", b"c") != digest(b"a", b"bc")


def test_environment(tmp_path, monkeypatch):
    known = environment(torch.device("cpu"))
    assert set(known) == {"versions", "device", "threads", "machine", "git_commit"}
    assert known["device"] == "cpu"
    assert torch.__version__.startswith(known["versions"]["torch"])  # the index leaves out the build
    monkeypatch.setattr(common.run, "PACKAGES", ("no-such-package-at-all",))
    monkeypatch.setattr(common.run, "__file__", str(tmp_path / "run.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    bare = environment(torch.device("cpu"))
    assert bare["git_commit"] is None
    assert list(bare["versions"]) == ["python"]
    monkeypatch.setenv("PATH", "")
    assert environment(torch.device("cpu"))["git_commit"] is None  # no git at all


def test_cells_of_several_blocks_can_be_sliced_when_read_back(tmp_path):
    blocks = [make_toy()[:30].copy(), make_toy()[30:].copy()]
    obs = write_cells(tmp_path, blocks)
    cells = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert cells.X.indices.dtype == cells.X.indptr.dtype  # or scipy refuses the next line
    assert np.array_equal(cells[::-1].X.toarray(), make_toy().X.toarray()[::-1])
    assert list(obs.index) == list(cells.obs_names)
