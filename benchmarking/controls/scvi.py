"""Peer: scVI (Lopez et al. 2018), the variational autoencoder of scvi-tools, told the cell types.

The network that the field trusts, hence the one to beat. Negative binomial counts; the decoder is given the type
(`categorical_covariate_keys`, the documented way: `labels_key` reaches nothing in SCVI but dispersions), the encoder is
not, so that the latent variables learn what varies within a type. Everything else is as scvi-tools has it by default,
except that it learns from all cells given, none set aside.

Needs requirements_optional.txt; scvi-tools takes long to import and is imported when first used.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData

from benchmarking.controls.contract import Frame, by_type
from common.checks import drop_empty_cells
from common.device import Device, choose_device
from common.errors import UserError
from common.threads import torch_threads_kept

BATCH_SIZE = 128  # of scvi-tools
CELLS_AT_ONCE = 1000  # bounds the memory of sampling


@dataclass(frozen=True)
class ScviParams:
    """How scVI is trained and drawn from."""

    epochs: int = 400
    """passes over the training cells; scvi-tools raises the weight of the prior through the first 400"""
    sampling: Literal["posterior", "prior"] = "posterior"
    """posterior: every new cell is a training cell encoded and decoded again (posterior predictive, closest to the
    data); prior: latent variables from N(0, I), only the library size is a training cell's (what can be shared)"""


@dataclass(frozen=True)
class Scvi:
    """A trained network, and the training cells of each type that sampling starts from."""

    module: Any
    frame: Frame
    cells: dict[str, sp.csr_matrix]
    sampling: Literal["posterior", "prior"]


@contextmanager
def _scvi_seeded(seed: int) -> Iterator[Any]:
    """Yield scvi-tools, seeded and silent; what it changes of the process is undone.

    That is logging, warnings, threads, PyTorch's generator, and environment variables that other programs stumble over.
    """
    disabled, environment = logging.root.manager.disable, dict(os.environ)
    with torch_threads_kept(), torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            import scvi

            scvi.settings.seed = seed
            yield scvi
        finally:
            logging.disable(disabled)
            for name in [name for name in os.environ if name not in environment]:
                del os.environ[name]
            os.environ.update(environment)


def fit(cells: AnnData, params: ScviParams | None = None, *, seed: int, device: Device = "cpu") -> Scvi:
    """Train on counts. Cells without any are left out, as they have no library size.

    Raises
    ------
    UserError
        If the values are not counts, or fewer than two cells have any.
    """
    params, frame = params or ScviParams(), Frame.of(cells)
    if frame.scale != "counts":
        raise UserError(f"scVI learns from counts, and these values are {frame.scale}: leave scvi out, or give counts")
    X = sp.csr_matrix(cells.X, dtype=np.float32, copy=True)
    X.eliminate_zeros()
    cells, _ = drop_empty_cells(AnnData(X, obs=cells.obs[["cell_type"]].astype(str), var=cells.var[[]], uns=cells.uns))
    if cells.n_obs < 2:
        raise UserError("scVI cannot learn from a single cell: leave scvi out, or give more cells")
    accelerator = {"cpu": "cpu", "cuda": "gpu"}[choose_device(device).type]
    with _scvi_seeded(seed) as scvi:
        scvi.model.SCVI.setup_anndata(cells, categorical_covariate_keys=["cell_type"])
        model = scvi.model.SCVI(cells, gene_likelihood="nb")
        model.train(
            max_epochs=params.epochs, accelerator=accelerator, devices=1, train_size=1.0, batch_size=BATCH_SIZE,
            # a batch of one cell has no variance to normalise by
            datasplitter_kwargs={"drop_last": cells.n_obs % BATCH_SIZE == 1},
            enable_progress_bar=False, logger=False,
        )  # fmt: skip
        return Scvi(model.module.cpu().eval(), Frame.of(cells), by_type(cells), params.sampling)


def sample(model: Scvi, n_cells: int, *, cell_type: str | None = None, seed: int) -> AnnData:
    """Draw cells, each with the library size of a training cell of its type; none serves twice before all have once."""
    rng = np.random.default_rng(seed)

    def draw(name: str, n: int) -> sp.csr_matrix:
        rows = np.resize(rng.permutation(model.cells[name].shape[0]), n)
        blocks = np.array_split(rows, range(CELLS_AT_ONCE, n, CELLS_AT_ONCE))
        return sp.vstack([_decode(model, name, model.cells[name][block]) for block in blocks])

    with _scvi_seeded(seed):
        return model.frame.fill(n_cells, cell_type, draw)


@torch.inference_mode()
def _decode(model: Scvi, name: str, X: sp.csr_matrix) -> sp.csr_matrix:
    """Draw a cell for each training cell of a type, with its library size; counts (n_cells, n_genes)."""
    batch = torch.zeros(X.shape[0], 1, dtype=torch.long)
    code = torch.full_like(batch, list(model.cells).index(name))  # scvi-tools sorts categories too
    inferred = model.module.inference(torch.from_numpy(X.toarray()), batch)
    z = inferred["z"] if model.sampling == "posterior" else torch.randn_like(inferred["z"])
    counts = model.module.generative(z, inferred["library"], batch, cat_covs=code)["px"].sample()
    return sp.csr_matrix(counts.numpy())
