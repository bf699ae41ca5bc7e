"""Baseline: scDiffusion of Luo et al. 2024 (Bioinformatics 40:btae518), diffusion in a latent space guided by type.

Run:    python benchmarking/scrna_seq_specific/scdiffusion.py --dataset pbmc68k --holdout 0.5 --seed 0
Reads:  a data set of config.py, or your own cells (--input, --expression-csv)
Writes: results/synthetic/<dataset>/scdiffusion/seed<k>/: cells.h5ad, cells.csv, losses.csv, heldout.csv, model.pt,
        run.json

An autoencoder brings log-normalised cells to a latent space; there a residual perceptron learns to take noise away (Ho
et al. 2020), and a classifier of noisy latent cells guides it to the type that is asked for (Dhariwal & Nichol 2021).
How it differs from the paper: docs/baselines.md.
"""

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarking.baseline import script
from benchmarking.controls.contract import Frame
from benchmarking.scrna_seq_specific.conditional import LABELS, Conditional, sample
from benchmarking.scrna_seq_specific.diffusion import Diffusion
from benchmarking.training import Memory, TrainingCells, fit_by, train
from common.cli import Reporter
from common.networks import mlp
from config import ScdiffusionParams

__all__ = ["LABELS", "fit", "main", "sample"]  # two of them from conditional.py

MIN_DEVIATION = 1e-3  # of a latent variable that hardly varies


class Latent(nn.Module):
    """Diffusion in the latent space of an autoencoder, whose variables are standardised by centre and deviation."""

    def __init__(self, frame: Frame, params: ScdiffusionParams) -> None:
        super().__init__()
        n_genes, hidden = len(frame.genes), params.autoencoder_hidden
        self.encoder = mlp(n_genes, hidden, params.latent_dim, activation=nn.ReLU)
        self.decoder = mlp(params.latent_dim, hidden[::-1], n_genes, activation=nn.ReLU)
        self.centre: Tensor
        self.deviation: Tensor
        self.register_buffer("centre", torch.zeros(params.latent_dim))
        self.register_buffer("deviation", torch.ones(params.latent_dim))
        self.diffusion: Any = Diffusion(len(frame.type_sizes), params)

    @torch.no_grad()
    def standardise(self, x: Tensor) -> Tensor:
        """Set centre and deviation by cells (n_rows, n_genes); return these, (n_rows, latent_dim)."""
        z = self.encoder(x)
        self.centre, self.deviation = z.mean(0), z.std(0, correction=0).clamp_min(MIN_DEVIATION)
        return (z - self.centre) / self.deviation

    @torch.no_grad()
    def draw(self, types: Tensor) -> Tensor:
        """Draw log values of types (n_rows,), shape (n_rows, n_genes)."""
        x: Tensor = self.decoder(self.diffusion(types) * self.deviation + self.centre)
        return x


def make(frame: Frame, params: ScdiffusionParams) -> Latent:
    """Return what draws cells, untrained."""
    return Latent(frame, params)


def draw(sampler: Latent, codes: Tensor, memory: Memory, rng: np.random.Generator) -> sp.csr_matrix:
    """Draw cells on the input's scale (n_cells, n_genes), given codes of types (n_cells,)."""
    names = np.array(list(memory.frame.type_sizes))[codes.numpy()]
    return memory.back(sampler.draw(codes.to(sampler.centre.device)).cpu().numpy(), names, rng)


def learn(data: TrainingCells, params: ScdiffusionParams, *, report: Reporter) -> Conditional:
    """Train on prepared cells, by PyTorch's own random numbers."""
    values, on = data.values, data.X.device
    latent = make(values.frame, params).to(on)
    _learn_autoencoder(latent, data, params, report)
    z, diffusion = latent.standardise(data.X), latent.diffusion
    average = AveragedModel(diffusion, multi_avg_fn=get_ema_multi_avg_fn(params.ema_decay))
    optimizer = torch.optim.AdamW(diffusion.parameters(), params.lr)
    latent.diffusion = average.module

    def step(batch: Tensor) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = diffusion.losses(z[batch], data.types[batch])
        optimizer.zero_grad()
        (losses["denoiser"] + losses["classifier"]).backward()
        optimizer.step()
        average.update_parameters(diffusion)
        return losses

    def draw_like_training(n: int) -> Tensor:
        return values.whole(latent.draw(data.types[torch.randint(len(data.X), (n,), device=on)]))

    losses = train(step, draw_like_training, {"diffusion": average}, data, params, report=report)
    return Conditional(values.memory, latent, draw, losses)


def _learn_autoencoder(latent: Latent, data: TrainingCells, params: ScdiffusionParams, report: Reporter) -> None:
    optimizer = torch.optim.AdamW([*latent.encoder.parameters(), *latent.decoder.parameters()], params.lr)
    for step in range(params.autoencoder_steps):
        x = data.X[torch.randint(len(data.X), (params.batch_size,), device=data.X.device)]
        loss = F.mse_loss(latent.decoder(latent.encoder(x)), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report("autoencoder", step + 1, params.autoencoder_steps)


fit = fit_by(learn)
main = script("scdiffusion", __doc__, fit, sample, LABELS)

if __name__ == "__main__":
    main()
