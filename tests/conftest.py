"""What several tests share: one thread, toy cells, and parameters small enough for seconds."""

from dataclasses import make_dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse

from config import GarageParams
from workflow import smoke

TOY_SIZES = {"B": 24, "NK": 8, "T": 40}
TOY_GENES = 20


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Matrices this small gain nothing from threads, and wait long for them on a busy machine.

    Set anew before each test and its fixtures: numba, which scanpy and pynndescent start, sets a number of its own.
    """
    torch.set_num_threads(1)


def make_toy() -> AnnData:
    """72 cells of three types, counts: each type raises a third of the genes; the last gene is silent."""
    rng = np.random.default_rng(0)
    types = np.repeat(np.arange(len(TOY_SIZES)), list(TOY_SIZES.values()))
    mean = np.where(np.arange(TOY_GENES) % 3 == types[:, None], 6.0, 0.7)
    depth = rng.lognormal(0, 0.2, size=(len(types), 1))
    X = rng.poisson(rng.gamma(2.0, mean * depth / 2.0)).astype(np.float32)
    X[:, -1] = 0
    return AnnData(
        sparse.csr_matrix(X),
        obs=pd.DataFrame(
            {"cell_type": pd.Categorical(np.array(list(TOY_SIZES))[types])}, index=[f"c{i}" for i in range(len(types))]
        ),
        var=pd.DataFrame(index=[f"g{i}" for i in range(TOY_GENES)]),
        uns={"scale": "counts", "dataset": "toy"},
    )  # fmt: skip


def on_scale(cells: AnnData, scale: str) -> AnnData:
    """Counts brought to another scale."""
    X = cells.X.toarray()
    if scale == "linear":
        X = X * 10.37
    elif scale == "log":
        X = np.log1p(X / X.sum(1, keepdims=True) * 100)
    elif scale == "scaled":
        X = (X - X.mean(0)) / (X.std(0) + 1)
    return AnnData(sparse.csr_matrix(X, dtype=np.float32), cells.obs, cells.var, {**cells.uns, "scale": scale})


@pytest.fixture
def toy() -> AnnData:
    """Cells of `make_toy`, for the test alone."""
    return make_toy()


@pytest.fixture
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let judging take a second, where its values are not what is tested: most of it is trees of random forests."""
    for module in smoke.JUDGES:
        monkeypatch.setattr(f"common.metrics.{module}.N_TREES", smoke.FEW_TREES)


@pytest.fixture
def tiny() -> GarageParams:
    """Preset garage in a fraction of a second."""
    return replace(
        GarageParams(), rare_threshold=8, graph_pcs=8, gat_epochs=12, gat_heads=2, gat_hidden=4, latent_dim=3,
        hidden_dim=12, critic_hidden=12, batch_size=32, anchor_epochs=1, warmup_epochs=1, critic_steps=1,
        calibration_cells=60, seed_share=0.2,
    )  # fmt: skip


@pytest.fixture
def tiny_preset(tiny: GarageParams, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the script of GARAGE have the parameters of `tiny` by default."""
    from data_generation import garage

    fields = [(name, field.type, getattr(tiny, name)) for name, field in GarageParams.__dataclass_fields__.items()]
    monkeypatch.setattr(garage, "GarageParams", make_dataclass("Tiny", fields, bases=(GarageParams,), frozen=True))


@pytest.fixture(scope="session")
def toy_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with finished runs seed0 and seed1 on halves of the toy cells, which lie in toy.h5ad. Tests read it only.

    The rare type, NK, has four cells on either side.
    """
    from data_generation import garage  # seconds: only who needs runs pays

    folder = tmp_path_factory.mktemp("toy_runs")
    make_toy().write_h5ad(folder / "toy.h5ad")
    for seed in ("0", "1"):
        garage.main([
            "--input", str(folder / "toy.h5ad"), "--holdout", "0.5", "--name", "garage", "--seed", seed,
            "--out", str(folder / f"seed{seed}"), "--rare-threshold", "8", "--graph-pcs", "8", "--gat-epochs", "12",
            "--anchor-epochs", "10", "--critic-steps", "20", "--calibration-cells", "60", "--device", "cpu",
        ])  # fmt: skip
    return folder
