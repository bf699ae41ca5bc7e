"""A generator and a critic in turns: what the plain GANs share. Each brings its networks and its losses."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarking.baseline import Unconditional
from benchmarking.training import TrainingCells, train
from common.cli import Reporter
from config import AdversarialParams

R1_EVERY = 4  # steps between two gradient penalties, weighted to make up for it (lazy regularisation)


def r1(critic: nn.Module, real: Tensor) -> Tensor:
    """Half the critic's mean squared gradient at real cells (n_rows, n_genes) (Mescheder et al. 2018)."""
    real = real.requires_grad_()
    (gradient,) = torch.autograd.grad(critic(real).sum(), real, create_graph=True)
    penalty: Tensor = 0.5 * gradient.square().sum(1).mean()
    return penalty


class FromNoise(nn.Module):
    """A generator that is fed normal noise. Shapes: (n_rows, width) -> (n_rows, n_genes)."""

    def __init__(self, network: nn.Module, width: int) -> None:
        super().__init__()
        self.network, self.width = network, width

    def noise(self, n: int) -> Tensor:
        """Make its input."""
        return torch.randn(n, self.width, device=next(self.network.parameters()).device)

    def draw(self, n: int) -> Tensor:
        """Draw cells."""
        made: Tensor = self.network(self.noise(n))
        return made


@dataclass
class Duel:
    """Two networks and their losses.

    Shapes: generator's network (n_rows, width of the noise) -> (n_rows, n_genes); critic (n_rows, n_genes) -> (n_rows,
    1).
    """

    generator: FromNoise
    critic: nn.Module
    critic_loss: Callable[[Tensor, Tensor], Tensor]
    """of the critic's verdicts on real and on generated cells"""
    generator_loss: Callable[[Tensor, Tensor], Tensor]
    """of the same, real cells first"""
    optimizer: Callable[..., torch.optim.Optimizer]
    """called with parameters and lr"""
    training_noise: Callable[[int], Tensor] | None = None
    """makes the generator's input in training, where that is another than its `noise`"""
    after_critic: Callable[[], Any] = field(default=lambda: None)
    """called after each critic step"""

    def fit(self, data: TrainingCells, params: AdversarialParams, *, report: Reporter) -> Unconditional:
        """Train, and return the generator with the averaged weights."""
        average = AveragedModel(self.generator, multi_avg_fn=get_ema_multi_avg_fn(params.ema_decay))
        optimizers = {
            "critic": self.optimizer(self.critic.parameters(), lr=params.critic_lr),
            "generator": self.optimizer(self.generator.parameters(), lr=params.generator_lr),
        }
        judged = data.values.whole if params.whole_counts else lambda x: x
        noise, taken = self.training_noise or self.generator.noise, 0

        def generate(n: int) -> Tensor:
            made: Tensor = judged(self.generator.network(noise(n)))
            return made

        def descend(part: str, loss: Tensor) -> Tensor:
            optimizers[part].zero_grad()
            loss.backward()
            optimizers[part].step()
            return loss

        def step(rows: Tensor) -> dict[str, Tensor]:
            nonlocal taken
            with torch.no_grad():
                fake = generate(len(rows))
            loss = self.critic_loss(self.critic(data.X[rows]), self.critic(fake))
            if params.r1_weight and taken % R1_EVERY == 0:
                loss = loss + params.r1_weight * R1_EVERY * r1(self.critic, data.X[rows])
            losses = {"critic": descend("critic", loss)}
            self.after_critic()
            taken += 1
            if taken % params.critic_steps == 0:
                self.critic.requires_grad_(False)
                real = self.critic(data.X[rows])
                for _ in range(params.generator_steps):
                    loss = self.generator_loss(real, self.critic(generate(len(rows))))
                    losses["generator"] = descend("generator", loss)
                    average.update_parameters(self.generator)
                self.critic.requires_grad_(True)
            return losses

        networks = {"generator": average, "critic": self.critic}
        sampler: Any = average.module
        losses = train(step, lambda n: data.values.whole(sampler.draw(n)), networks, data, params, report=report)
        return Unconditional.of(data, sampler, losses)
