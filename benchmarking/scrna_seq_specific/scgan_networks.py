"""Networks of the conditional scGAN (Marouf et al. 2020), and its gradient penalty (Gulrajani et al. 2017)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.networks import mlp
from config import ScganParams

MIN_TOTAL = 1e-8  # below which a cell is one of zeros


class TypeBatchNorm(nn.Module):
    """Batch normalisation with scale and shift of the cell's type. Shapes: (n_rows, width), codes (n_rows,)."""

    def __init__(self, width: int, n_types: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.scale = nn.Embedding.from_pretrained(torch.ones(n_types, width), freeze=False)
        self.shift = nn.Embedding.from_pretrained(torch.zeros(n_types, width), freeze=False)

    def forward(self, h: Tensor, types: Tensor) -> Tensor:
        """Normalise over the batch."""
        return self.norm(h) * self.scale(types) + self.shift(types)


def to_library_size(x: Tensor, size: Tensor) -> Tensor:
    """Scale non-negative cells (n_rows, n_genes) to library sizes (n_rows, 1); a cell of zeros stays one."""
    return x * (size / x.sum(1, keepdim=True).clamp_min(MIN_TOTAL))


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


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, types: Tensor) -> Tensor:
    """Return the mean squared deviation from 1 of the critic's slope, at random points between real and fake cells."""
    x = real.lerp(fake, torch.rand(len(real), 1, device=real.device)).requires_grad_(True)
    (slope,) = torch.autograd.grad(critic(x, types).sum(), x, create_graph=True)
    return (slope.norm(dim=1) - 1).square().mean()
