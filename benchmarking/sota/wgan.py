"""Baseline: the Wasserstein GAN of Arjovsky et al. 2017 (ICML), its critic held to bounded slopes by weight clipping.

Run:    python benchmarking/sota/wgan.py --dataset pbmc68k --holdout 0.5 --seed 0
Reads:  a data set of config.py, or your own cells (--input, --expression-csv)
Writes: results/synthetic/<dataset>/wgan/seed<k>/: cells.h5ad, cells.csv, losses.csv, heldout.csv, model.pt, run.json

Normal noise in, log-normalised values out.
How it differs from the paper: docs/baselines.md.
"""

from functools import partial

import torch
from torch import Tensor, nn

from benchmarking.adversarial import Duel, FromNoise
from benchmarking.baseline import Unconditional, sample, script
from benchmarking.controls.contract import Frame
from benchmarking.training import TrainingCells, fit_by
from common.cli import Reporter
from common.networks import mlp
from config import WganParams

LABELS = "classifier"


def make_generator(n_genes: int, params: WganParams) -> nn.Sequential:
    """Return the generator. Shapes: (n_rows, latent_dim) -> (n_rows, n_genes)."""
    return mlp(params.latent_dim, params.generator_hidden, n_genes, norm=False, activation=nn.Tanh)


def make(frame: Frame, params: WganParams) -> FromNoise:
    """Return what draws cells, untrained."""
    return FromNoise(make_generator(len(frame.genes), params), params.latent_dim)


def make_critic(n_genes: int, params: WganParams) -> nn.Sequential:
    """Return the critic. Shapes: (n_rows, n_genes) -> (n_rows, 1), high for real cells."""
    return mlp(n_genes, params.critic_hidden, 1, norm=False, activation=nn.Tanh)


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Negative estimate of the Wasserstein distance, up to the critic's steepest slope."""
    return fake.mean() - real.mean()


def generator_loss(fake: Tensor) -> Tensor:
    """What of that estimate depends on the generator."""
    return -fake.mean()


@torch.no_grad()
def clip_weights(critic: nn.Module, limit: float) -> None:
    """Bring every weight and bias into [-limit, limit]."""
    for weights in critic.parameters():
        weights.clamp_(-limit, limit)


def learn(data: TrainingCells, params: WganParams, *, report: Reporter) -> Unconditional:
    """Train on prepared cells, by PyTorch's own random numbers."""
    n_genes, on = data.X.shape[1], data.X.device
    critic = make_critic(n_genes, params).to(on)
    duel = Duel(
        make(data.values.frame, params).to(on), critic, critic_loss, lambda real, fake: generator_loss(fake),
        optimizer=torch.optim.RMSprop,
        after_critic=partial(clip_weights, critic, params.clip),
    )  # fmt: skip
    return duel.fit(data, params, report=report)


fit = fit_by(learn)
main = script("wgan", __doc__, fit, sample, LABELS)

if __name__ == "__main__":
    main()
