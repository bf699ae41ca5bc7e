"""Stage 2 of preset `paper`: the published GAN and its loop (paper, "GAN with attention-guided leakage"), full batch.

The arithmetic is the published one; what an iteration repeats for nothing is left out. The generator does not move
during the critic steps, so its cells are computed once and their graph serves the first generator step too; real and
generated cells pass the critic together; the critic's weights get no gradient in generator steps; its last two layers,
both linear, are evaluated as one vector; matrix products take the faster of PyTorch's two CPU libraries.
`benchmarking/performance` holds the loop written out as published and measures the difference.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.cli import Reporter
from config import PaperParams

SLOPE = 0.2  # LeakyReLU, as published
LOG_EVERY = 100  # iterations between two rows of the loss table
CHECKPOINT_EVERY = 100  # iterations between two checkpoints

State = dict[str, Any]
FAST_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a @ b.T + bias, by oneDNN where it can: MKL, PyTorch's default, is half as fast on AMD processors."""
    if FAST_LINEAR is not None and a.device.type == "cpu" and a.dtype == torch.float32:
        return FAST_LINEAR(a, b, bias, "none", [], "")
    return F.linear(a, b, bias)


class _Linear(torch.autograd.Function):
    """`F.linear` whose three products go through `_product`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.T) if for_x else None,
            _product(grad.T, x.T) if for_weight else None,
            grad.sum(0) if for_bias else None,
        )


def _linears(*sizes: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in pairwise(sizes))


def _linear(x: Tensor, layer: nn.Module) -> Tensor:
    return _Linear.apply(x, layer.weight, layer.bias)


class Generator(nn.Module):
    """The published generator, a perceptron with linear output. Shapes: (n_rows, n_genes) -> (n_rows, n_genes)."""

    def __init__(self, n_genes: int, params: PaperParams) -> None:
        super().__init__()
        self.layers = _linears(n_genes, *params.generator_hidden, n_genes)

    def forward(self, z: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            z = F.leaky_relu(_linear(z, layer), SLOPE, inplace=True)
        return _linear(z, self.layers[-1])


class Critic(nn.Module):
    """The published critic. Shapes: (n_rows, n_genes) -> logits (n_rows,).

    A gene-wide linear layer and the logit's follow each other with nothing between: w (W h + b) + c = (w W) h + w b + c.
    """

    def __init__(self, n_genes: int, params: PaperParams) -> None:
        super().__init__()
        self.layers = _linears(n_genes, *params.critic_hidden, n_genes, 1)

    def forward(self, x: Tensor) -> Tensor:
        *hidden, wide, logit = self.layers
        for layer in hidden:
            x = F.leaky_relu(_linear(x, layer), SLOPE, inplace=True)
        return F.linear(x, logit.weight @ wide.weight, logit(wide.bias)).squeeze(1)


class Training:
    """The state of a run, and the iteration that moves it on."""

    def __init__(self, X: Tensor, seeds: Tensor, params: PaperParams, rng: torch.Generator) -> None:
        self.params, self.rng = params, rng
        n_cells, n_genes = X.shape
        first_weights = int(torch.randint(2**62, (), generator=rng, device=rng.device))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(first_weights)
            self.generator = Generator(n_genes, params).to(X)
            self.critic = Critic(n_genes, params).to(X)
        self.generator_optimizer = torch.optim.RMSprop(self.generator.parameters(), lr=params.generator_lr, foreach=True)
        self.critic_optimizer = torch.optim.RMSprop(self.critic.parameters(), lr=params.critic_lr, foreach=True)
        self.step = 0
        self.losses: list[dict[str, float]] = []
        self.batch = torch.cat([X, X])  # real cells, then generated ones
        self.fake_rows = self.batch[n_cells:]
        self.z = torch.cat([X[len(seeds) :], seeds])  # noise rows, then the seed rows
        self.noise_rows = self.z[: n_cells - len(seeds)]
        self.targets = torch.cat([X.new_full((n_cells,), v) for v in (params.real_target, params.fake_target)])
        self.fooled = X.new_ones(n_cells)

    def _descend(self, loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
        """Take one clipped step; return the loss it started from."""
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), self.params.clip_norm, foreach=True)
        optimizer.step()
        return loss.detach()

    def iterate(self) -> tuple[Tensor, Tensor]:
        """Run one iteration; return the losses of its last generator step and its last critic step."""
        self.noise_rows.uniform_(-1, 1, generator=self.rng)
        fake = self.generator(self.z)
        self.fake_rows.copy_(fake.detach())
        for _ in range(self.params.critic_steps):
            # the published sum of two means, over real and over generated cells
            loss = 2 * F.binary_cross_entropy_with_logits(self.critic(self.batch), self.targets)
            critic_loss = self._descend(loss, self.critic, self.critic_optimizer)
        self.critic.requires_grad_(False)
        for step in range(self.params.generator_steps):
            verdict = self.critic(fake if step == 0 else self.generator(self.z))
            loss = F.binary_cross_entropy_with_logits(verdict, self.fooled)
            generator_loss = self._descend(loss, self.generator, self.generator_optimizer)
        self.critic.requires_grad_(True)
        return generator_loss, critic_loss
