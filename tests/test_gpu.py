"""On a GPU: what the CPU computes, steps that never make the host wait, and graphs of them. Skipped without one."""

from dataclasses import replace

import anndata
import numpy as np
import pytest
import torch
from conftest import make_toy, on_scale

from common.cli import silent
from common.device import deterministic
from common.disk import to_disk
from common.graphs import WARM_UP
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


def training(X, types, scale, params, device, *, replay=True, seed=0):
    # stage 1 on the CPU: what is compared is stage 2
    log_values = to_log(X, scale, float(np.median(np.asarray(X.sum(1)))))
    selection = select(log_values, types, params, seed=0, device=torch.device("cpu"), report=silent)
    cells = TrainingCells.on(torch.device(device), X, types, scale)
    return Training(cells, selection, int(types.max()) + 1, params, seed=seed, replay=replay)


@pytest.fixture
def toy(scale):
    cells = make_toy()
    return on_scale(cells, scale).X, cells.obs["cell_type"].cat.codes.to_numpy(), scale


@pytest.fixture
def scale():
    return "counts"


@pytest.fixture(autouse=True)
def _deterministic():
    with deterministic():  # as fit does
        yield


def test_likelihood_and_its_gradient_are_those_of_the_cpu(toy):
    """The device adds up gamma functions over all genes, the CPU where there are counts."""
    run = training(*toy, TINY, "cpu")
    every = torch.arange(run.cells.n_cells)
    found = []
    for device in ("cpu", "cuda"):
        observation = run.generator.observation.to(device)
        X, types, size = (x.to(device) for x in (run.cells.dense, run.cells.types, run.cells.size))
        decoded = torch.sin(every[:, None] + torch.arange(X.shape[1])).to(device).requires_grad_()
        likelihood = observation.log_likelihood(X, decoded, types, size)
        gradients = torch.autograd.grad(likelihood.sum(), [decoded, observation.log_dispersion])
        found.append([x.detach().cpu() for x in (likelihood, *gradients)])
    for of_cpu, of_gpu in zip(*found, strict=True):
        torch.testing.assert_close(of_gpu, of_cpu, rtol=1e-3, atol=1e-3)


def test_training_learns_as_much_as_on_the_cpu(toy):
    """Random numbers differ by device: the GPU's loss lies where those of other seeds of the CPU do."""

    def end(device, seed):
        run = training(*toy, replace(TINY, critic_steps=0, anchor_epochs=100), device, seed=seed)
        run.run(silent)
        return np.mean([row["nll"] for row in run.losses[-20:]])

    of_cpu = [end("cpu", seed) for seed in range(6)]
    assert abs(end("cuda", 0) - np.mean(of_cpu)) < 4 * np.std(of_cpu, ddof=1)


@pytest.mark.parametrize("scale", ["counts", "log", "scaled"])
def test_replayed_steps_are_those_that_are_written(toy):
    """To the last bit: the weight of the KL term, the penalty and the random numbers of each step among them."""
    params = replace(TINY, critic_steps=50)  # a penalty every eighth
    written, replayed = (training(*toy, params, "cuda", replay=replay) for replay in (False, True))
    graphs = replayed.replayed
    for run in (written, replayed):
        steps = [run.anchor_step] * 20 + [run.critic_step] * 50
        for run.step, take in enumerate(steps):
            run.losses.append(run.team.add(take()))
    assert len(graphs) == 3 and all(step.graph is not None for step in graphs.values())
    assert written.losses == replayed.losses
    for name, weight in written.generator.state_dict().items():
        assert torch.equal(weight, replayed.generator.state_dict()[name]), name


@pytest.mark.parametrize("replay", [False, True])
def test_steps_do_not_make_the_host_wait(toy, replay):
    run = training(*toy, TINY, "cuda", replay=replay)

    def steps():
        run.anchor_step()
        for run.step in (0, 1):  # the critic's with and without penalty
            run.critic_step()

    for _ in range(WARM_UP + 1):  # memory and kernels are set up, graphs captured
        steps()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            steps()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_run_that_is_gone_on_from_ends_the_same(toy):
    whole, half = training(*toy, TINY, "cuda"), training(*toy, TINY, "cuda")
    whole.run(silent)

    def stop(state):
        if half.step == half.anchor_steps + 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half.run(silent, stop)
    rest = training(*toy, TINY, "cuda")
    rest.load(half.state())
    rest.run(silent)
    assert whole.losses == rest.losses


def test_cells_on_disk_lie_on_the_device(toy, tmp_path):
    """And are the same there."""
    X, types, _ = toy
    device = torch.device("cuda")
    mapped = TrainingCells.on(device, to_disk(iter([X])), types, "counts")
    assert mapped.dense is not None and torch.equal(mapped.dense, TrainingCells.on(device, X, types, "counts").dense)


def test_the_same_seed_gives_the_same_cells(tmp_path):
    """From the attention network to the drawn cells."""
    make_toy().write_h5ad(tmp_path / "toy.h5ad")
    flags = ["--gat-epochs", "10", "--anchor-epochs", "5", "--critic-steps", "20", "--critic-hidden", "8"]
    for name in "ab":
        garage.main(["--input", str(tmp_path / "toy.h5ad"), "--out", str(tmp_path / name), "--device", "cuda", *flags])
    a, b = (anndata.read_h5ad(tmp_path / name / "cells.h5ad") for name in "ab")
    assert (a.X != b.X).nnz == 0


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
