"""Baseline: the f-GAN of Nowozin et al. 2016 (NeurIPS), which minimises a variational bound of an f-divergence.

Run:    python benchmarking/sota/fgan.py --dataset pbmc68k --holdout 0.5 --seed 0 --divergence kl
Reads:  a data set of config.py, or your own cells (--input, --expression-csv)
Writes: results/synthetic/<dataset>/fgan/seed<k>/: cells.h5ad, cells.csv, losses.csv, heldout.csv, model.pt, run.json

For a convex f with conjugate f* and an activation g onto the domain of f*, every critic V bounds the divergence of the
real distribution P from the generated Q:

    D_f(P || Q) >= E_P[g(V)] - E_Q[f*(g(V))].

The critic raises the bound; the generator raises E_Q[g(V)] (their section 3.2).
How it differs from the paper: docs/baselines.md.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarking.adversarial import Duel, FromNoise
from benchmarking.baseline import Unconditional, sample, script
from benchmarking.controls.contract import Frame
from benchmarking.training import TrainingCells, fit_by
from common.cli import Reporter
from common.networks import mlp
from config import FganParams

LABELS = "classifier"
SLOPE = 0.01  # of the leaky rectifiers
FISHER_PENALTY = 10.0


class Divergence(NamedTuple):
    """An f-divergence by two functions of the critic's raw verdict (Nowozin et al., tables 2 and 6)."""

    activation: Callable[[Tensor], Tensor]
    """g"""
    conjugate: Callable[[Tensor], Tensor]
    """f* after g"""


DIVERGENCES = {
    "kl": Divergence(lambda v: v, lambda v: torch.exp(v - 1)),
    "reverse_kl": Divergence(lambda v: -torch.exp(-v), lambda v: v - 1),
    "pearson": Divergence(lambda v: v, lambda v: v**2 / 4 + v),
    # twice that of other authors; both terms without the logarithm of 0
    "jensen_shannon": Divergence(lambda v: math.log(2) - F.softplus(-v), lambda v: F.softplus(v) - math.log(2)),
}


def make_generator(n_genes: int, params: FganParams) -> nn.Sequential:
    """Return the generator. Shapes: (n_rows, latent_dim) -> (n_rows, n_genes)."""
    return mlp(params.latent_dim, params.generator_hidden, n_genes, norm=False, activation=partial(nn.LeakyReLU, SLOPE))


def make(frame: Frame, params: FganParams) -> FromNoise:
    """Return what draws cells, untrained."""
    return FromNoise(make_generator(len(frame.genes), params), params.latent_dim)


def make_critic(n_genes: int, params: FganParams) -> nn.Sequential:
    """Return the critic. Shapes: (n_rows, n_genes) -> raw verdicts V (n_rows, 1), high for real cells."""
    return mlp(n_genes, params.critic_hidden, 1, norm=False, activation=partial(nn.LeakyReLU, SLOPE))


def bound(real: Tensor, fake: Tensor, divergence: str) -> Tensor:
    """Lower bound of an f-divergence, given raw verdicts on real and on generated cells."""
    f = DIVERGENCES[divergence]
    return f.activation(real).mean() - f.conjugate(fake).mean()


def fisher_ratio(real: Tensor, fake: Tensor) -> Tensor:
    """Difference of the mean verdicts in units of their spread."""
    spread = real.var(correction=0) + fake.var(correction=0)
    return (real.mean() - fake.mean()) / torch.sqrt(spread + 1e-8)


def critic_loss(real: Tensor, fake: Tensor, divergence: str) -> Tensor:
    """Negative bound; for the Fisher ratio, its negative and a penalty on verdicts of great size."""
    if divergence == "fisher_ratio":
        excess = F.relu(real.square().mean() + fake.square().mean() - 1)
        return FISHER_PENALTY * excess**2 - fisher_ratio(real, fake)
    return -bound(real, fake, divergence)


def generator_loss(real: Tensor, fake: Tensor, divergence: str) -> Tensor:
    """What the generator lowers: the ratio itself, or the negative mean of g(V)."""
    if divergence == "fisher_ratio":
        return fisher_ratio(real, fake)
    return -DIVERGENCES[divergence].activation(fake).mean()


def learn(data: TrainingCells, params: FganParams, *, report: Reporter) -> Unconditional:
    """Train on prepared cells, by PyTorch's own random numbers."""
    n_genes, on = data.X.shape[1], data.X.device
    duel = Duel(
        make(data.values.frame, params).to(on), make_critic(n_genes, params).to(on),
        partial(critic_loss, divergence=params.divergence), partial(generator_loss, divergence=params.divergence),

        optimizer=partial(torch.optim.Adam, betas=(params.beta1, 0.999)),
    )  # fmt: skip
    return duel.fit(data, params, report=report)


fit = fit_by(learn)
main = script("fgan", __doc__, fit, sample, LABELS)

if __name__ == "__main__":
    main()
