"""Baseline: the variational autoencoder of Kingma & Welling 2014 (ICLR) on expression values.

Run:    python benchmarking/sota/vae.py --dataset pbmc68k --holdout 0.5 --seed 0
Reads:  a data set of config.py, or your own cells (--input, --expression-csv)
Writes: results/synthetic/<dataset>/vae/seed<k>/: cells.h5ad, cells.csv, losses.csv, heldout.csv, model.pt, run.json

Log-normalised values are normal given the latent variables, with a variance of each gene.
How it differs from the paper: docs/baselines.md.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarking.baseline import Unconditional, sample, script
from benchmarking.controls.contract import Frame
from benchmarking.training import TrainingCells, fit_by, train
from common.cli import Reporter
from common.networks import mlp
from config import VaeParams

LABELS = "classifier"
LEAST_NOISE = -8.0  # log variance; log values are known to about 2 %


class Output(NamedTuple):
    """What the network says of cells: parameters of their posteriors, and their reconstruction."""

    mean: Tensor
    """shape (n_rows, latent_dim), as the next"""
    log_variance: Tensor
    reconstruction: Tensor
    """shape (n_rows, n_genes)"""


class Vae(nn.Module):
    """Encoder, heads of the posterior, decoder, and the log variance of each gene."""

    def __init__(self, n_genes: int, params: VaeParams) -> None:
        super().__init__()
        *hidden, last = params.encoder_hidden
        self.encoder = nn.Sequential(*mlp(n_genes, hidden, last, norm=False, activation=nn.Tanh), nn.Tanh())
        self.mean = nn.Linear(last, params.latent_dim)
        self.log_variance = nn.Linear(last, params.latent_dim)
        self.decoder = mlp(params.latent_dim, params.decoder_hidden, n_genes, norm=False, activation=nn.Tanh)
        self.log_noise = nn.Parameter(torch.zeros(n_genes))
        self.noisy = params.likelihood == "normal"

    @property
    def noise(self) -> Tensor:
        """Log variance of each gene, shape (n_genes,), kept from falling without end where a gene does not vary."""
        return self.log_noise.clamp_min(LEAST_NOISE)

    def forward(self, x: Tensor, eps: Tensor) -> Output:
        """Encode cells (n_rows, n_genes), decode draws of their posteriors made of normal eps (n_rows, latent_dim)."""
        h = self.encoder(x)
        mean, log_variance = self.mean(h), self.log_variance(h)
        return Output(mean, log_variance, self.decoder(mean + torch.exp(0.5 * log_variance) * eps))

    def draw(self, n: int) -> Tensor:
        """Draw log values (n, n_genes): the decoder's means, with the genes' noise where it is learnt."""
        x: Tensor = self.decoder(torch.randn(n, self.mean.out_features, device=self.log_noise.device))
        return x + torch.exp(0.5 * self.noise) * torch.randn_like(x) if self.noisy else x


def make(frame: Frame, params: VaeParams) -> Vae:
    """Return what draws cells, untrained."""
    return Vae(len(frame.genes), params)


def error(x: Tensor, reconstruction: Tensor, noise: Tensor | None) -> Tensor:
    """Negative log likelihood less a constant, given log variances; without, squared error. Shape (n_rows, n_genes)."""
    squared = (x - reconstruction).square()
    return squared if noise is None else 0.5 * (squared * torch.exp(-noise) + noise)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the posteriors from the prior, N(0, 1), in each dimension (n_rows, latent_dim)."""
    return 0.5 * (mean.square() + torch.exp(log_variance) - 1 - log_variance)


def learn(data: TrainingCells, params: VaeParams, *, report: Reporter) -> Unconditional:
    """Train on prepared cells, by PyTorch's own random numbers."""
    vae = make(data.values.frame, params).to(data.X.device)
    vae.log_noise.data = data.X.var(0, correction=0).log().clamp_min(LEAST_NOISE)
    optimizer = torch.optim.Adam(vae.parameters(), lr=params.lr)
    reduce = {"sum": torch.sum, "mean": torch.mean}[params.reduce]
    taken = 0

    def step(rows: Tensor) -> dict[str, Tensor]:
        nonlocal taken
        taken += 1
        x = data.X[rows]
        out = vae(x, torch.randn(len(rows), params.latent_dim, device=x.device))
        losses = {
            "error": reduce(error(x, out.reconstruction, vae.noise if vae.noisy else None), 1).mean(),
            "kl": reduce(divergence(out.mean, out.log_variance), 1).mean(),
        }
        optimizer.zero_grad()
        (losses["error"] + min(1.0, taken / max(1, params.warmup)) * losses["kl"]).backward()
        optimizer.step()
        return losses

    losses = train(step, lambda n: data.values.whole(vae.draw(n)), {"vae": vae}, data, params, report=report)
    return Unconditional.of(data, vae, losses)


fit = fit_by(learn)
main = script("vae", __doc__, fit, sample, LABELS)

if __name__ == "__main__":
    main()
