"""Layers and the penalty of the conditional scGAN (Marouf et al. 2020; Gulrajani et al. 2017)."""

import torch
from torch import Tensor, nn

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


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, types: Tensor) -> Tensor:
    """Return the mean squared deviation from 1 of the critic's slope, at random points between real and fake cells."""
    x = real.lerp(fake, torch.rand(len(real), 1, device=real.device)).requires_grad_(True)
    (slope,) = torch.autograd.grad(critic(x, types).sum(), x, create_graph=True)
    return (slope.norm(dim=1) - 1).square().mean()
