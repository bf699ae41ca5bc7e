"""On a GPU: the same losses as on the CPU, and steps that never make the host wait. Skipped where there is none."""

from dataclasses import replace

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from conftest import make_toy

from common.cli import silent
from common.scale import to_log
from config import GarageParams
from data_generation import garage
from data_generation.cell_selection import select
from data_generation.seeded_gan import Training, TrainingCells

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

TINY = GarageParams(
    rare_threshold=8, graph_pcs=8, gat_heads=2, gat_hidden=4, gat_epochs=20, hidden_dim=16, batch_size=32,
    anchor_epochs=40, warmup_epochs=5, critic_steps=20, critic_hidden=16, calibration_cells=60,
)  # fmt: skip


def training(X: sp.csr_matrix, types: np.ndarray, params: GarageParams, device: str) -> Training:
    # stage 1 on the CPU: what is compared is stage 2
    log_values = to_log(X, "counts", float(np.median(np.asarray(X.sum(1)))))
    selection = select(log_values, types, params, seed=0, device=torch.device("cpu"), report=silent)
    cells = TrainingCells.on(torch.device(device), X, types, "counts")
    return Training(cells, selection, int(types.max()) + 1, params, seed=0)


@pytest.fixture
def toy():
    cells = make_toy()
    return sp.csr_matrix(cells.X), cells.obs["cell_type"].astype("category").cat.codes.to_numpy()


def test_losses_are_those_of_the_cpu(toy):
    """Up to the random numbers, which differ by device: the means of the last steps agree."""
    ends = {}
    for device in ("cpu", "cuda"):
        run = training(*toy, replace(TINY, critic_steps=0), device)
        run.run(silent)
        ends[device] = np.mean([row["nll"] for row in run.losses[-5:]])
    assert ends["cuda"] == pytest.approx(ends["cpu"], rel=0.1)


def test_steps_do_not_make_the_host_wait(toy):
    run = training(*toy, TINY, "cuda")
    run.anchor_step(), run.critic_step()  # memory and kernels are set up on first use
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            run.anchor_step(), run.critic_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_script_runs_on_the_gpu_and_draws_on_the_cpu(tmp_path):
    make_toy().write_h5ad(tmp_path / "toy.h5ad")
    flags = ["--gat-epochs", "10", "--anchor-epochs", "5", "--critic-steps", "5", "--critic-hidden", "8"]
    garage.main(["--input", str(tmp_path / "toy.h5ad"), "--out", str(tmp_path / "run"), "--device", "cuda", *flags])
    garage.main(
        ["--from", str(tmp_path / "run"), "--device", "cpu", "--n-cells", "30", "--out", str(tmp_path / "more")]
    )
    for name, n_cells in (("run", 72), ("more", 30)):
        cells = anndata.read_h5ad(tmp_path / name / "cells.h5ad")
        assert cells.n_obs == n_cells and np.isfinite(cells.X.data).all() and (cells.X.data >= 0).all()
