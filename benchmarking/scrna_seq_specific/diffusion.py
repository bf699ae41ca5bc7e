"""Diffusion of latent cells, from noise and guided by a classifier (Ho et al. 2020; Dhariwal & Nichol 2021)."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import ScdiffusionParams

BETAS = (1e-4, 0.02)  # variance of the first and of the last step's noise, for 1,000 steps
TIME_WIDTH = 64  # of the sinusoidal embedding of time


def noise_schedule(n_steps: int) -> Tensor:
    """Return the variances beta of the steps' noise, shape (n_steps,): linear, scaled so that the end is noise."""
    first, last = (min(beta * 1000 / n_steps, 0.999) for beta in BETAS)
    return torch.linspace(first, last, n_steps)


def embed_time(t: Tensor) -> Tensor:
    """Return sines and cosines of steps t (n_rows,), shape (n_rows, TIME_WIDTH)."""
    frequencies = torch.exp(-math.log(1e4) * torch.arange(TIME_WIDTH // 2, device=t.device) / (TIME_WIDTH // 2))
    angles = t[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class NoisyNet(nn.Module):
    """A perceptron told the time: noisy latent cells (n_rows, latent_dim) and steps t (n_rows,) to (n_rows, n_out).

    Widths go down and, if `residual`, up again, every layer on the way up receiving its mirror image's output too.
    """

    def __init__(self, n_in: int, hidden: tuple[int, ...], n_out: int, *, residual: bool) -> None:
        super().__init__()
        self.n_down = len(hidden)
        widths = (n_in, *hidden, *hidden[-2::-1]) if residual else (n_in, *hidden)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.times = nn.ModuleList(nn.Linear(hidden[0], width) for width in widths[1:])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths[1:])
        self.time = nn.Sequential(
            nn.Linear(TIME_WIDTH, hidden[0]), nn.SiLU(), nn.Linear(hidden[0], hidden[0]), nn.SiLU()
        )
        self.out = nn.Linear(widths[-1], n_out)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict the noise, or logits of types."""
        time, passed = self.time(embed_time(t)), []
        for i, (layer, told, norm) in enumerate(zip(self.layers, self.times, self.norms, strict=True)):
            x = F.silu(norm(layer(x) + told(time)))
            if i < self.n_down - 1:
                passed.append(x)
            elif i >= self.n_down:
                x = x + passed.pop()
        return self.out(x)


class Diffusion(nn.Module):
    """Denoiser and guiding classifier of latent cells z (n_rows, latent_dim) of types (n_rows,)."""

    def __init__(self, n_types: int, params: ScdiffusionParams) -> None:
        super().__init__()
        self.guidance, self.latent_dim = params.guidance, params.latent_dim
        self.denoiser = NoisyNet(params.latent_dim, params.denoiser_hidden, params.latent_dim, residual=True)
        self.classifier = NoisyNet(params.latent_dim, params.classifier_hidden, n_types, residual=False)
        self.beta: Tensor
        self.kept: Tensor
        self.register_buffer("beta", noise_schedule(params.diffusion_steps))
        self.register_buffer("kept", (1 - self.beta).cumprod(0))  # alpha bar: share of the signal's variance left

    def losses(self, z: Tensor, types: Tensor) -> dict[str, Tensor]:
        """Return the denoiser's squared error and the classifier's cross-entropy at random steps."""
        t, noise = torch.randint(len(self.beta), (len(z),), device=z.device), torch.randn_like(z)
        kept = self.kept[t, None]
        noisy = kept.sqrt() * z + (1 - kept).sqrt() * noise
        return {
            "denoiser": F.mse_loss(self.denoiser(noisy, t), noise),
            "classifier": F.cross_entropy(self.classifier(noisy, t), types),
        }

    @torch.no_grad()
    def forward(self, types: Tensor) -> Tensor:
        """Turn noise into latent cells of given types, step by step."""
        z = torch.randn(len(types), self.latent_dim, device=types.device)
        for step in reversed(range(len(self.beta))):
            t, beta, kept = torch.full_like(types, step), self.beta[step], self.kept[step]
            kept_before = self.kept[step - 1] if step else torch.ones_like(kept)
            variance = beta * (1 - kept_before) / (1 - kept)
            mean = (z - beta / (1 - kept).sqrt() * self.denoiser(z, t)) / (1 - beta).sqrt()
            z = mean + self.guidance * variance * self._slope(z, t, types) + variance.sqrt() * torch.randn_like(z)
        return z

    @torch.enable_grad()
    def _slope(self, z: Tensor, t: Tensor, types: Tensor) -> Tensor:
        """Return the gradient of the types' log-probability."""
        z = z.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(-F.cross_entropy(self.classifier(z, t), types, reduction="sum"), z)
        return slope
