"""Baseline: LSH-GAN (Lall et al. 2022, Communications Biology), a GAN whose noise has real cells among it.

Run:    python benchmarking/sota/lsh_gan.py --dataset pbmc68k --holdout 0.5 --seed 0
Reads:  a data set of config.py, or your own cells (--input, --expression-csv)
Writes: results/synthetic/<dataset>/lsh_gan/seed<k>/: cells.h5ad, cells.csv, losses.csv, heldout.csv, model.pt, run.json

Locality-sensitive hashing thins the training cells: a cell that still stands is kept and strikes out its neighbours.
The generator's input is uniform noise as wide as a cell, with the kept cells among it in the proportion that they have
among the cells.
How it differs from the paper: docs/baselines.md.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from benchmarking.adversarial import Duel
from benchmarking.baseline import Unconditional, sample, script
from benchmarking.sota.gan import critic_loss, generator_loss
from benchmarking.sota.hashing import hash_neighbors, subsample
from benchmarking.training import TrainingCells, fit_by
from common.cli import Reporter
from common.networks import mlp
from config import LshGanParams

LABELS = "classifier"
SLOPE = 0.2  # of the leaky rectifiers

__all__ = ["critic_loss", "fit", "generator_loss", "main", "sample"]  # the losses are those of gan.py


def make_generator(n_genes: int, params: LshGanParams) -> nn.Sequential:
    """Return the generator. Shapes: (n_rows, n_genes) -> (n_rows, n_genes)."""
    return mlp(n_genes, params.generator_hidden, n_genes, norm=False, activation=partial(nn.LeakyReLU, SLOPE))


def make_critic(n_genes: int, params: LshGanParams) -> nn.Sequential:
    """Return the critic, with a linear layer as wide as a cell before the logit, as published.

    Shapes: (n_rows, n_genes) -> logits (n_rows, 1), high for real cells.
    """
    wide = mlp(n_genes, params.critic_hidden, n_genes, norm=False, activation=partial(nn.LeakyReLU, SLOPE))
    return nn.Sequential(*wide, nn.Linear(n_genes, 1))


def uniform(n_rows: int, n_genes: int, device: torch.device) -> Tensor:
    """Draw noise between -1 and 1."""
    return torch.rand(n_rows, n_genes, device=device) * 2 - 1


def learn(data: TrainingCells, params: LshGanParams, *, report: Reporter) -> Unconditional:
    """Train on prepared cells, by PyTorch's own random numbers."""
    on, seed = data.X.device, int(torch.randint(2**31, ()))
    X = data.X.cpu().numpy()
    neighbors = hash_neighbors(X, params.neighbors, tables=params.hash_tables, bits=params.hash_bits, seed=seed)
    kept = torch.from_numpy(np.flatnonzero(subsample(neighbors, np.random.default_rng(seed)))).to(on)
    n_cells, n_genes = data.X.shape

    def mixed(n: int) -> Tensor:
        z = uniform(n, n_genes, on)
        real = torch.rand(n, device=on) < len(kept) / n_cells
        z[real] = data.X[kept[torch.randint(len(kept), (int(real.sum()),), device=on)]]
        return z

    def pure(n: int) -> Tensor:
        return uniform(n, n_genes, on)

    duel = Duel(
        make_generator(n_genes, params).to(on), make_critic(n_genes, params).to(on), critic_loss,
        lambda real, fake: generator_loss(fake), noise=mixed if params.generate_from == "mixed" else pure,
        training_noise=mixed, optimizer=torch.optim.RMSprop,
    )  # fmt: skip
    return duel.fit(data, params, report=report)


fit = fit_by(learn)
main = script("lsh_gan", __doc__, fit, sample, LABELS)

if __name__ == "__main__":
    main()
