"""Several processes that train one model: the losses of one process, and a clear end when one of them is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_toy

from common.processes import ALONE, Team, joined
from data_generation import garage

ROOT = Path(__file__).resolve().parents[1]
FLAGS = [
    "--gat-epochs", "10", "--graph-pcs", "8", "--anchor-epochs", "8", "--warmup-epochs", "2", "--critic-steps", "20",
    "--critic-hidden", "16", "--batch-size", "40", "--calibration-cells", "60", "--device", "cpu", "--seed", "3",
]  # fmt: skip


@pytest.fixture
def h5ad(tmp_path):
    make_toy().write_h5ad(tmp_path / "toy.h5ad")
    return tmp_path / "toy.h5ad"


def start(h5ad, out, *flags, processes=2):
    """Start processes as torchrun does, all told to use a port that is free."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    script = [str(ROOT / "data_generation/garage.py"), "--input", str(h5ad), "--out", str(out), *flags]
    return subprocess.Popen(
        [sys.executable, *command, *script], env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def test_rows_are_shared_out_once():
    rows = torch.arange(11)
    shares = [Team(rank, 3).share(rows) for rank in range(3)]
    assert sorted(torch.cat(shares).tolist()) == rows.tolist()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_nothing_is_added():
    weight = torch.nn.Parameter(torch.ones(3))
    (2 * weight).sum().backward()
    with joined("cpu") as team:
        assert team is ALONE and team.leads
        team.add_gradients([weight])
        team.wait()
    assert weight.grad.tolist() == [2, 2, 2]
    assert ALONE.add({"loss": torch.tensor(0.5)}) == {"loss": 0.5}


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(h5ad, tmp_path):
    garage.main(["--input", str(h5ad), "--out", str(tmp_path / "one"), *FLAGS])
    process = start(h5ad, tmp_path / "two", *FLAGS)
    told, complaints = process.communicate(timeout=300)
    assert process.returncode == 0, complaints
    assert told.count("wrote cells") == 1  # only the first process talks
    one, two = (pd.read_csv(tmp_path / name / "losses.csv") for name in ("one", "two"))
    assert one["step"].equals(two["step"])
    anchor = one["critic"].isna()
    assert anchor.any() and (~anchor).any()
    for column in ("nll", "kl"):
        np.testing.assert_allclose(two[column][anchor], one[column][anchor], rtol=1e-3)
    # against the critic each process draws counts of its own
    for column in ("nll", "kl", "adversarial", "critic"):
        np.testing.assert_allclose(two[column][~anchor], one[column][~anchor], rtol=0.05)
    seeds = [(tmp_path / name / "seeds.csv").read_text() for name in ("one", "two")]
    assert seeds[0] == seeds[1]


def workers(process):
    """Process numbers of those that do the work, in the order in which they were started."""
    listed = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True).stdout
    return sorted(map(int, listed.split()))


LONG = [*FLAGS, "--anchor-epochs", "300"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    make_toy().write_h5ad(folder / "toy.h5ad")
    process = start(folder / "toy.h5ad", folder / "run", *LONG)
    assert process.wait(300) == 0, process.communicate()[1]
    return anndata.read_h5ad(folder / "run/cells.h5ad")


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_leaves_a_run_that_goes_on(h5ad, tmp_path, undisturbed, lost):
    process = start(h5ad, tmp_path / "run", *LONG)
    while not (tmp_path / "run/checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    os.kill(workers(process)[lost], signal.SIGKILL)
    _, complaints = process.communicate(timeout=120)
    assert process.returncode != 0 and not (tmp_path / "run/run.json").exists()
    if lost:  # the one that talks is left
        assert "another process of this run was lost" in complaints and "--resume" in complaints
    again = start(h5ad, tmp_path / "run", *LONG, "--resume")
    assert again.wait(300) == 0, again.communicate()[1]
    assert np.array_equal(anndata.read_h5ad(tmp_path / "run/cells.h5ad").X.toarray(), undisturbed.X.toarray())


@pytest.mark.slow
def test_preset_paper_is_refused(h5ad, tmp_path):
    process = start(h5ad, tmp_path / "run", "--preset", "paper", "--device", "cpu")
    assert "in one process" in process.communicate(timeout=120)[1]
    assert process.returncode != 0 and not (tmp_path / "run/run.json").exists()
