"""Baseline: cscGAN, the conditional scGAN of Marouf et al. 2020 (Nature Communications 11:166).

Run:    python benchmarking/scrna_seq_specific/scgan.py --dataset pbmc68k --holdout 0.5 --seed 0
Reads:  a data set of config.py, or your own cells (--input, --expression-csv)
Writes: results/synthetic/<dataset>/scgan/seed<k>/: cells.h5ad, cells.csv, losses.csv, heldout.csv, model.pt, run.json

A Wasserstein GAN with gradient penalty whose generator ends in a layer that brings every cell to a given library size.
Types reach the generator by batch normalisation with scale and shift of the type, the critic by projection.
How it differs from the paper: docs/baselines.md.
"""

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarking.baseline import script
from benchmarking.scrna_seq_specific.conditional import LABELS, Conditional, as_given, as_seen, like, sample
from benchmarking.scrna_seq_specific.layers import TypeBatchNorm, gradient_penalty, to_library_size
from benchmarking.training import TrainingCells, fit_by, train
from common.cli import Reporter
from common.networks import mlp
from config import ScganParams

__all__ = ["LABELS", "fit", "main", "sample"]  # two of them from conditional.py

BETAS = (0.5, 0.9)  # of Adam, as in the paper


class Generator(nn.Module):
    """Noise (n_rows, latent_dim), types (n_rows,) and library sizes (n_rows, 1), if any, to cells (n_rows, n_genes)."""

    def __init__(self, n_genes: int, n_types: int, params: ScganParams) -> None:
        super().__init__()
        widths = (params.latent_dim, *params.generator_hidden)
        self.hidden = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(TypeBatchNorm(width, n_types) for width in widths[1:])
        self.out = nn.Linear(widths[-1], n_genes)

    def forward(self, z: Tensor, types: Tensor, size: Tensor | None) -> Tensor:
        """Generate cells."""
        for linear, norm in zip(self.hidden, self.norms, strict=True):
            z = F.relu(norm(linear(z), types))
        return self.out(z) if size is None else to_library_size(F.relu(self.out(z)), size)


class Critic(nn.Module):
    """Cells (n_rows, n_genes) on the log scale and types (n_rows,) to verdicts (n_rows,), high for real cells."""

    def __init__(self, n_genes: int, n_types: int, params: ScganParams) -> None:
        super().__init__()
        *hidden, last = params.critic_hidden
        self.body = nn.Sequential(mlp(n_genes, hidden, last, norm=False, activation=nn.ReLU), nn.ReLU())
        self.verdict = nn.Linear(last, 1)
        self.types = nn.Embedding.from_pretrained(torch.zeros(n_types, last), freeze=False)

    def forward(self, x: Tensor, types: Tensor) -> Tensor:
        """Judge cells."""
        h = self.body(x)
        return self.verdict(h).squeeze(1) + (h * self.types(types)).sum(1)


def learn(data: TrainingCells, params: ScganParams, *, report: Reporter) -> Conditional:
    """Train on prepared cells, by PyTorch's own random numbers."""
    values, scale, on = data.values, data.values.frame.scale, data.X.device
    sizes = torch.from_numpy(values.sizes if scale == "counts" else np.expm1(values.X).sum(1)).to(data.X)[:, None]
    n_genes, n_types = data.X.shape[1], len(values.frame.type_sizes)
    generator, critic = Generator(n_genes, n_types, params).to(on), Critic(n_genes, n_types, params).to(on)
    average = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(params.ema_decay), use_buffers=True)
    of_generator, of_critic = (
        torch.optim.Adam(network.parameters(), lr, betas=BETAS, amsgrad=True)
        for network, lr in ((generator, params.generator_lr), (critic, params.critic_lr))
    )
    taken = 0

    def generate(network: nn.Module, types: Tensor, rows: np.ndarray, *, whole: bool) -> Tensor:
        z = torch.randn(len(rows), params.latent_dim, device=on)
        x: Tensor = network(z, types, None if scale == "scaled" else sizes[rows])
        if whole and scale == "counts":
            x = x + ((x + torch.rand_like(x)).floor() - x).detach()  # rounding passes the gradient on
        return x

    def step(batch: Tensor) -> dict[str, Tensor]:
        nonlocal taken
        types, real, rows = data.types[batch], data.X[batch], data.rows[batch.cpu()]
        with torch.no_grad():
            fake = as_seen(generate(generator, types, rows, whole=params.whole_counts), values)
        distance = critic(real, types).mean() - critic(fake, types).mean()
        penalty = gradient_penalty(critic, real, fake, types)
        of_critic.zero_grad()
        (params.penalty * penalty - distance).backward()
        of_critic.step()
        losses = {"distance": distance, "penalty": penalty}
        taken += 1
        if taken % params.critic_steps == 0:
            critic.requires_grad_(False)
            fake = as_seen(generate(generator, types, rows, whole=params.whole_counts), values)
            losses["generator"] = -critic(fake, types).mean()
            critic.requires_grad_(True)
            of_generator.zero_grad()
            losses["generator"].backward()
            of_generator.step()
            average.update_parameters(generator)
        return losses

    def draw_like_training(n: int) -> Tensor:
        some = torch.randint(len(data.X), (n,), device=on)
        return as_seen(generate(average, data.types[some], data.rows[some.cpu()], whole=True), values)

    def draw(codes: Tensor, rng: np.random.Generator) -> np.ndarray:
        return as_given(generate(average, codes.to(on), like(values, codes, rng), whole=True), values)

    networks = {"generator": average, "critic": critic}
    losses = train(step, draw_like_training, networks, data, params, report=report)
    return Conditional(values, draw, networks, losses)


fit = fit_by(learn)
main = script("scgan", __doc__, fit, sample, LABELS)

if __name__ == "__main__":
    main()
