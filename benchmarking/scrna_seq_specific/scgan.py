"""Baseline: cscGAN, the conditional scGAN of Marouf et al. 2020 (Nature Communications 11:166).

Run:    python benchmarking/scrna_seq_specific/scgan.py --dataset pbmc68k --holdout 0.5 --seed 0
Reads:  a data set of config.py, or your own cells (--input, --expression-csv)
Writes: results/synthetic/<dataset>/scgan/seed<k>/: cells.h5ad, cells.csv, losses.csv, heldout.csv, model.pt, run.json

A Wasserstein GAN with gradient penalty whose generator ends in a layer that brings every cell to a given library size.
Types reach the generator by batch normalisation with scale and shift of the type, the critic by projection.
How it differs from the paper: docs/baselines.md.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarking.baseline import script
from benchmarking.controls.contract import Frame
from benchmarking.scrna_seq_specific.conditional import LABELS, Conditional, as_seen, draw_sized, sample
from benchmarking.scrna_seq_specific.scgan_networks import Critic, Generator, gradient_penalty
from benchmarking.training import TrainingCells, fit_by, train
from common.cli import Reporter
from config import ScganParams

__all__ = ["LABELS", "fit", "main", "sample"]  # two of them from conditional.py

BETAS = (0.5, 0.9)  # of Adam, as in the paper


class Sampler(nn.Module):
    """Makes noise, cells from it, and whole counts of these."""

    def __init__(self, frame: Frame, params: ScganParams) -> None:
        super().__init__()
        self.scale, self.latent_dim = frame.scale, params.latent_dim
        self.generator = Generator(len(frame.genes), len(frame.type_sizes), params)

    def draw(self, types: Tensor, size: Tensor, *, whole: bool = True) -> Tensor:
        """Draw counts, linear or scaled values (n_rows, n_genes) of types (n_rows,) and library sizes (n_rows, 1)."""
        z = torch.randn(len(types), self.latent_dim, device=size.device)
        x: Tensor = self.generator(z, types, None if self.scale == "scaled" else size)
        if whole and self.scale == "counts":
            x = x + ((x + torch.rand_like(x)).floor() - x).detach()  # rounding passes the gradient on
        return x


def make(frame: Frame, params: ScganParams) -> Sampler:
    """Return what draws cells, untrained."""
    return Sampler(frame, params)


draw = draw_sized


def learn(data: TrainingCells, params: ScganParams, *, report: Reporter) -> Conditional:
    """Train on prepared cells, by PyTorch's own random numbers."""
    values, on = data.values, data.X.device
    sizes = torch.from_numpy(values.sizes).to(data.X)[:, None]
    sampler = make(values.frame, params).to(on)
    critic = Critic(data.X.shape[1], len(values.frame.type_sizes), params).to(on)
    average = AveragedModel(sampler, multi_avg_fn=get_ema_multi_avg_fn(params.ema_decay), use_buffers=True)
    of_generator, of_critic = (
        torch.optim.Adam(network.parameters(), lr, betas=BETAS, amsgrad=True)
        for network, lr in ((sampler, params.generator_lr), (critic, params.critic_lr))
    )
    drawn_from: Any = average.module
    taken = 0

    def step(batch: Tensor) -> dict[str, Tensor]:
        nonlocal taken
        types, real, size = data.types[batch], data.X[batch], sizes[data.rows[batch.cpu()]]
        with torch.no_grad():
            fake = as_seen(sampler.draw(types, size, whole=params.whole_counts), values)
        distance = critic(real, types).mean() - critic(fake, types).mean()
        penalty = gradient_penalty(critic, real, fake, types)
        of_critic.zero_grad()
        (params.penalty * penalty - distance).backward()
        of_critic.step()
        losses = {"distance": distance, "penalty": penalty}
        taken += 1
        if taken % params.critic_steps == 0:
            critic.requires_grad_(False)
            fake = as_seen(sampler.draw(types, size, whole=params.whole_counts), values)
            losses["generator"] = -critic(fake, types).mean()
            critic.requires_grad_(True)
            of_generator.zero_grad()
            losses["generator"].backward()
            of_generator.step()
            average.update_parameters(sampler)
        return losses

    def draw_like_training(n: int) -> Tensor:
        some = torch.randint(len(data.X), (n,), device=on)
        return as_seen(drawn_from.draw(data.types[some], sizes[data.rows[some.cpu()]]), values)

    networks = {"generator": average, "critic": critic}
    losses = train(step, draw_like_training, networks, data, params, report=report)
    return Conditional(values.memory, drawn_from, draw, losses)


fit = fit_by(learn)
main = script("scgan", __doc__, fit, sample, LABELS)

if __name__ == "__main__":
    main()
