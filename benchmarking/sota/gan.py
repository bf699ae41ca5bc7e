"""Baseline: the generative adversarial network of Goodfellow et al. 2014 (NeurIPS) on expression values.

Run:    python benchmarking/sota/gan.py --dataset pbmc68k --holdout 0.5 --seed 0
Reads:  a data set of config.py, or your own cells (--input, --expression-csv)
Writes: results/synthetic/<dataset>/gan/seed<k>/: cells.h5ad, cells.csv, losses.csv, heldout.csv, model.pt, run.json

Normal noise in, log-normalised values out; cross-entropy with hard labels, and the generator wants its cells called
real (the non-saturating loss).
How it differs from the paper: docs/baselines.md.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarking.adversarial import Duel, FromNoise
from benchmarking.baseline import Unconditional, sample, script
from benchmarking.controls.contract import Frame
from benchmarking.training import TrainingCells, fit_by
from common.cli import Reporter
from common.networks import mlp
from config import GanParams

LABELS = "classifier"
SLOPE = 0.2  # of the critic's leaky rectifiers


def make_generator(n_genes: int, params: GanParams) -> nn.Sequential:
    """Return the generator. Shapes: (n_rows, latent_dim) -> (n_rows, n_genes)."""
    return mlp(params.latent_dim, params.generator_hidden, n_genes, norm=False, activation=nn.Tanh)


def make(frame: Frame, params: GanParams) -> FromNoise:
    """Return what draws cells, untrained."""
    return FromNoise(make_generator(len(frame.genes), params), params.latent_dim)


def make_critic(n_genes: int, params: GanParams) -> nn.Sequential:
    """Return the critic. Shapes: (n_rows, n_genes) -> logits (n_rows, 1), high for real cells."""
    return mlp(n_genes, params.critic_hidden, 1, norm=False, activation=partial(nn.LeakyReLU, SLOPE))


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Cross-entropy of logits of real and of generated cells, the sum of two means; 2 ln 2 where none can be told."""
    return F.binary_cross_entropy_with_logits(real, torch.ones_like(real)) + F.binary_cross_entropy_with_logits(
        fake, torch.zeros_like(fake)
    )


def generator_loss(fake: Tensor) -> Tensor:
    """Cross-entropy of generated cells' logits when they are said to be real."""
    return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))


def learn(data: TrainingCells, params: GanParams, *, report: Reporter) -> Unconditional:
    """Train on prepared cells, by PyTorch's own random numbers."""
    n_genes, on = data.X.shape[1], data.X.device
    duel = Duel(
        make(data.values.frame, params).to(on), make_critic(n_genes, params).to(on), critic_loss,
        lambda real, fake: generator_loss(fake),
        optimizer=partial(torch.optim.Adam, betas=(params.beta1, 0.999)),
    )  # fmt: skip
    return duel.fit(data, params, report=report)


fit = fit_by(learn)
main = script("gan", __doc__, fit, sample, LABELS)

if __name__ == "__main__":
    main()
