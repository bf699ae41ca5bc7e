"""Stage 2 of preset `paper`: the published GAN and its loop (paper, "GAN with attention-guided leakage"), full batch.

The arithmetic is the published one; what an iteration repeats for nothing is left out. The generator does not move
during the critic steps, so its cells are computed once and their graph serves the first generator step too; real and
generated cells pass the critic together; the critic's weights get no gradient in generator steps; its last two layers,
both linear, are evaluated as one vector; matrix products take the faster of PyTorch's two CPU libraries.
`benchmarking/performance` holds the loop written out as published and measures the difference.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.cli import Reporter
from common.errors import UserError
from common.run import Checkpoint, no_checkpoint
from common.scale import Scale
from config import PaperParams
from data_generation.calibration import interpolate, quantile_levels, weighted_quantiles
from data_generation.labeller import MOST_DRAWS, Labeller
from data_generation.seeded_gan import TrainingCells
from data_generation.synthesis import Portion

SLOPE = 0.2  # LeakyReLU, as published
LOG_EVERY = 10  # iterations between two rows of the loss table, reports and checkpoints

# PyTorch multiplies by MKL, which runs at half speed on AMD processors. oneDNN comes with PyTorch too and does not, but
# only this operator, the one `torch.compile` emits, reaches it in full precision.
ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a @ b.T + bias, by oneDNN where it can be had."""
    if ONEDNN_LINEAR is not None and a.device.type == "cpu" and a.dtype == torch.float32:
        return ONEDNN_LINEAR(a, b, bias, "none", [], "")
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
        """Generate cells from noise rows and seed rows."""
        for layer in self.layers[:-1]:
            z = F.leaky_relu(_linear(z, layer), SLOPE, inplace=True)
        return _linear(z, self.layers[-1])


class Critic(nn.Module):
    """The published critic. Shapes: (n_rows, n_genes) -> logits (n_rows,).

    A gene-wide linear layer and the logit's follow each other directly: w (W h + b) + c = (w W) h + (w b + c).
    """

    def __init__(self, n_genes: int, params: PaperParams) -> None:
        super().__init__()
        widths = (n_genes, *params.critic_hidden)
        self.hidden = _linears(*widths)
        self.wide = nn.Linear(widths[-1], n_genes)
        self.logit = nn.Linear(n_genes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Judge cells."""
        for layer in self.hidden:
            x = F.leaky_relu(_linear(x, layer), SLOPE, inplace=True)
        return F.linear(x, self.logit.weight @ self.wide.weight, self.logit(self.wide.bias)).squeeze(1)


class Training:
    """The state of a run, and the iteration that moves it on.

    Each iteration draws one input of n_cells rows, fresh U(-1, 1) noise and all seeds, and uses it for all its steps:
    some of the critic, real against generated cells with smoothed labels, then some of the generator. Losses are binary
    cross-entropies; the critic's is the sum over real and generated cells, at least 0.650 with targets of 0.9 and 0.1.

    Parameters
    ----------
    X
        Real cells, shape (n_cells, n_genes), on the scale on which cells are to be generated.
    seeds
        Seed cells, shape (n_seeds, n_genes), on the same scale; at most n_cells.
    params
        Hyperparameters.
    rng
        Source of all randomness, the first weights included; on the device of X.
    """

    def __init__(self, X: Tensor, seeds: Tensor, params: PaperParams, rng: torch.Generator) -> None:
        self.params, self.rng = params, rng
        n_cells, n_genes = X.shape
        first_weights = int(torch.randint(2**62, (), generator=rng, device=rng.device))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(first_weights)
            self.generator = Generator(n_genes, params).to(X)
            self.critic = Critic(n_genes, params).to(X)
        self.generator_optimizer = torch.optim.RMSprop(self.generator.parameters(), lr=params.generator_lr)
        self.critic_optimizer = torch.optim.RMSprop(self.critic.parameters(), lr=params.critic_lr)
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
        nn.utils.clip_grad_norm_(model.parameters(), self.params.clip_norm)
        optimizer.step()
        return loss.detach()

    def iterate(self) -> tuple[Tensor, Tensor]:
        """Run one iteration; return the losses of its last generator step and its last critic step."""
        generator_loss = critic_loss = self.fooled.new_tensor(float("nan"))
        self.noise_rows.uniform_(-1, 1, generator=self.rng)
        fake = self.generator(self.z)
        self.fake_rows.copy_(fake.detach())
        for _ in range(self.params.critic_steps):
            # the published sum of two means, over real and over generated cells
            loss = 2 * F.binary_cross_entropy_with_logits(self.critic(self.batch), self.targets)
            critic_loss = self._descend(loss, self.critic, self.critic_optimizer)
        self.critic.requires_grad_(False)  # its gradients here would only be thrown away
        for step in range(self.params.generator_steps):
            verdict = self.critic(fake if step == 0 else self.generator(self.z))
            loss = F.binary_cross_entropy_with_logits(verdict, self.fooled)
            generator_loss = self._descend(loss, self.generator, self.generator_optimizer)
        self.critic.requires_grad_(True)
        return generator_loss, critic_loss

    def run(self, report: Reporter, checkpoint: Checkpoint = no_checkpoint) -> None:
        """Run all iterations that are left, reporting losses every `LOG_EVERY` iterations."""
        while self.step < self.params.iterations:
            generator_loss, critic_loss = self.iterate()
            self.step += 1
            if self.step % LOG_EVERY == 0 or self.step == self.params.iterations:
                row = {"generator": float(generator_loss), "critic": float(critic_loss)}
                self.losses.append({"step": self.step, **row})
                report("GAN", self.step, self.params.iterations, **row)
                checkpoint(self.state)

    def state(self) -> dict[str, Any]:
        """Return everything needed to go on exactly, as tensors, numbers, strings, lists and dicts."""
        return {
            "step": self.step, "losses": self.losses, "rng": self.rng.get_state(),
            **{name: getattr(self, name).state_dict() for name in self._stateful},
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Go on from where an earlier run on the same data and params stood, as if it had never stopped."""
        self.step, self.losses = state["step"], list(state["losses"])
        self.rng.set_state(state["rng"].cpu())
        for name in self._stateful:
            getattr(self, name).load_state_dict(state[name])

    _stateful = ("generator", "critic", "generator_optimizer", "critic_optimizer")


@torch.no_grad()
def sample(generator: Generator, seeds: Tensor, n_cells: int, *, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Generate cells as published: noise rows, then as many seed rows as there are seeds and room.

    Parameters
    ----------
    generator
        trained generator
    seeds
        the seed cells of its training, shape (n_seeds, n_genes)
    n_cells
        cells to generate. The published code returns n_seeds cells when fewer are asked for; here it is n_cells, from
        the first seeds
    rng
        source of the noise, on the generator's device

    Returns
    -------
    Cells on the scale of training, shape (n_cells, n_genes), negative values included, and a mask of shape (n_cells,):
    True where a cell was generated from a seed.
    """
    seeds = seeds[:n_cells]
    n_noise = n_cells - len(seeds)
    noise = seeds.new_empty(n_noise, seeds.shape[1]).uniform_(-1, 1, generator=rng)
    return generator(torch.cat([noise, seeds])), torch.arange(n_cells, device=seeds.device) >= n_noise


@dataclass
class PublishedGan:
    """The published generator with what it lacks: cell types, and the way back to the input's scale.

    It is not told what type to make. A classifier trained on the training cells labels what comes out; a composition
    that is asked for is met by drawing until it is.

    Shapes: seeds (n_seeds, n_genes), sizes (n_levels,).
    """

    generator: Generator
    scale: Scale
    target_sum: float
    seeds: Tensor
    sizes: Tensor
    """quantiles of the training cells' log library size"""
    labeller: Labeller
    """of type codes"""

    @classmethod
    def of(cls, training: Training, cells: TrainingCells, seeds: Tensor) -> "PublishedGan":
        """Add classifier and library sizes to a finished training; `seeds` in the order of their rank."""
        X, types = training.batch[: cells.n_cells], cells.types
        labeller = Labeller.of(X.cpu().numpy(), types.cpu().numpy())
        size = cells.size.squeeze(1)
        sizes = weighted_quantiles(size[None], torch.ones_like(size)[None], quantile_levels().to(X.device))[0]
        generator = training.generator.eval().requires_grad_(False)
        return cls(generator, cells.scale, cells.target_sum, seeds, sizes, labeller)

    @torch.no_grad()
    def draw_freely(self, n_cells: int, rng: torch.Generator) -> Portion:
        """Draw cells of whatever types come, as published: cells, their type codes, and a mask: true for seed rows."""
        x, from_seed = sample(self.generator, self.seeds, n_cells, rng=rng)
        types = self.labeller.label(x.cpu().numpy())
        if self.scale != "scaled":
            x = x.clamp_min(0.0)  # the published generator is free to go below
        if self.scale == "counts":
            chance = torch.rand((1, n_cells), generator=rng, device=x.device)
            size = interpolate(chance, quantile_levels().to(x.device)[None], self.sizes[None]).T.exp()
            x = (x.expm1() * (size / self.target_sum)).round()
        return sp.csr_matrix(x.cpu().numpy()), types, from_seed.cpu().numpy()

    def draw(self, quota: np.ndarray, rng: torch.Generator) -> Iterator[Portion]:
        """Draw cells, so many of each type, in one portion; shapes as of `SeededGan.draw`.

        Raises
        ------
        UserError
            If a type does not turn up often enough.
        """
        wanted, n_cells = quota.copy(), max(1000, int(quota.sum()))
        found: list[Portion] = []
        for _ in range(MOST_DRAWS):
            if not wanted.any():
                break
            x, types, from_seed = self.draw_freely(n_cells, rng)
            kept = np.concatenate([np.flatnonzero(types == t)[:n] for t, n in enumerate(wanted)])
            found.append((x[kept], types[kept], from_seed[kept]))
            wanted -= np.bincount(types[kept], minlength=len(wanted))
        if wanted.any():
            t = int(wanted.argmax())
            raise UserError(
                f"preset paper made {quota[t] - wanted[t]} of {quota[t]} cells of a type in {MOST_DRAWS * n_cells} "
                "draws: ask for its own composition (leave out --cell-type and --proportions) or use preset garage"
            )
        X, types, from_seed = (
            sp.vstack([f[0] for f in found]),
            *(np.concatenate([f[i] for f in found]) for i in (1, 2)),
        )
        order = np.argsort(types, kind="stable")
        yield X.tocsr()[order], types[order], from_seed[order]

    def state(self) -> dict[str, Any]:
        """Return everything as tensors, numbers, strings, lists and dicts."""
        return {**vars(self), "generator": self.generator.state_dict(), "labeller": self.labeller.content()}

    @classmethod
    def from_state(
        cls, state: dict[str, Any], params: PaperParams, scale: Scale, device: torch.device
    ) -> "PublishedGan":
        """Rebuild the model from `state`."""
        state = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in state.items()}
        generator = Generator(state["seeds"].shape[1], params)
        generator.load_state_dict(state["generator"])
        generator.to(device).eval().requires_grad_(False)
        return cls(**{**state, "generator": generator, "labeller": Labeller.from_content(state["labeller"])})
