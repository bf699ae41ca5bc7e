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
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarking.adversarial import Duel, FromNoise
from benchmarking.baseline import Unconditional, sample, script
from benchmarking.controls.contract import Frame
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


class FromCells(FromNoise):
    """A generator that is fed uniform noise as wide as a cell, with kept cells among it.

    `kept` has the cells' log values, shape (n_kept, n_genes), `share` is their share of the input's rows when cells are
    drawn; in training it is that which they have among the cells.
    """

    def __init__(self, network: nn.Module, kept: Tensor, share: float) -> None:
        super().__init__(network, kept.shape[1])
        self.kept: Tensor
        self.share: Tensor
        self.register_buffer("kept", kept)
        self.register_buffer("share", torch.tensor(share, dtype=torch.float64))

    def mix(self, n: int, share: float) -> Tensor:
        """Make input with so large a share of kept cells."""
        z = torch.rand(n, self.width, device=self.kept.device) * 2 - 1
        if share:
            real = torch.rand(n, device=z.device) < share
            z[real] = self.kept[torch.randint(len(self.kept), (int(real.sum()),), device=z.device)]
        return z

    def noise(self, n: int) -> Tensor:
        """Make the input from which cells are drawn."""
        return self.mix(n, float(self.share))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        self.kept = state_dict[f"{prefix}kept"].to(self.kept)  # of whatever number
        super()._load_from_state_dict(state_dict, prefix, *rest)


def make(frame: Frame, params: LshGanParams) -> FromCells:
    """Return what draws cells, untrained and without cells."""
    n_genes = len(frame.genes)
    return FromCells(make_generator(n_genes, params), torch.empty(0, n_genes), 0.0)


def learn(data: TrainingCells, params: LshGanParams, *, report: Reporter) -> Unconditional:
    """Train on prepared cells, by PyTorch's own random numbers."""
    on, seed = data.X.device, int(torch.randint(2**31, ()))
    X = data.X.cpu().numpy()
    neighbors = hash_neighbors(X, params.neighbors, tables=params.hash_tables, bits=params.hash_bits, seed=seed)
    kept = torch.from_numpy(np.flatnonzero(subsample(neighbors, np.random.default_rng(seed)))).to(on)
    n_cells, n_genes = data.X.shape
    share = len(kept) / n_cells
    network, critic = make_generator(n_genes, params).to(on), make_critic(n_genes, params).to(on)
    generator = FromCells(network, data.X[kept], share if params.generate_from == "mixed" else 0.0).to(on)
    duel = Duel(
        generator, critic, critic_loss, lambda real, fake: generator_loss(fake), optimizer=torch.optim.RMSprop,
        training_noise=lambda n: generator.mix(n, share),
    )  # fmt: skip
    return duel.fit(data, params, report=report)


fit = fit_by(learn)
main = script("lsh_gan", __doc__, fit, sample, LABELS)

if __name__ == "__main__":
    main()
