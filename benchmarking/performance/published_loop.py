"""The published loop of stage 2, written straight from its description: the reference for speed and for equality.

Nothing else uses it. Every critic step uploads the cells again, generates anew and judges real and generated cells
apart; every generator step computes gradients of the critic too; the critic's layers are evaluated one by one.
"""

import numpy as np
import torch
from torch import Tensor, nn

from config import PaperParams

SLOPE = 0.2


def perceptron(*sizes: int, linear_tail: int) -> nn.Sequential:
    """Return linear layers with LeakyReLU between them, none before the last `linear_tail`."""
    layers: list[nn.Module] = []
    for i in range(len(sizes) - 1):
        layers.append(nn.Linear(sizes[i], sizes[i + 1]))
        if i < len(sizes) - 1 - linear_tail:
            layers.append(nn.LeakyReLU(SLOPE))
    return nn.Sequential(*layers)


class PublishedLoop:
    """Generator, critic and the published iteration.

    Parameters
    ----------
    X
        real cells, shape (n_cells, n_genes)
    seeds
        seed cells, shape (n_seeds, n_genes)
    params
        hyperparameters
    rng
        source of the noise
    dtype
        precision
    """

    def __init__(
        self, X: np.ndarray, seeds: np.ndarray, params: PaperParams, rng: torch.Generator, dtype: torch.dtype
    ) -> None:
        self.X, self.seeds, self.params, self.rng, self.dtype = X, seeds, params, rng, dtype
        n_genes = X.shape[1]
        self.generator = perceptron(n_genes, *params.generator_hidden, n_genes, linear_tail=1).to(dtype)
        self.critic = perceptron(n_genes, *params.critic_hidden, n_genes, 1, linear_tail=2).to(dtype)
        self.generator_optimizer = torch.optim.RMSprop(self.generator.parameters(), lr=params.generator_lr)
        self.critic_optimizer = torch.optim.RMSprop(self.critic.parameters(), lr=params.critic_lr)
        self.bce = nn.BCEWithLogitsLoss()

    def _input(self) -> Tensor:
        noise = torch.empty(len(self.X) - len(self.seeds), self.X.shape[1], dtype=self.dtype)
        return torch.cat([noise.uniform_(-1, 1, generator=self.rng), torch.tensor(self.seeds, dtype=self.dtype)])

    def iterate(self) -> tuple[float, float]:
        """Run one iteration; return the losses of its last generator step and its last critic step."""
        z = self._input()
        for _ in range(self.params.critic_steps):
            real = torch.tensor(self.X, dtype=self.dtype)
            fake = self.generator(z).detach()
            verdict_real, verdict_fake = self.critic(real), self.critic(fake)
            critic_loss = self.bce(verdict_real, torch.full_like(verdict_real, self.params.real_target))
            critic_loss = critic_loss + self.bce(verdict_fake, torch.full_like(verdict_fake, self.params.fake_target))
            self.critic_optimizer.zero_grad()
            critic_loss.backward()
            nn.utils.clip_grad_norm_(self.critic.parameters(), self.params.clip_norm)
            self.critic_optimizer.step()
        for _ in range(self.params.generator_steps):
            verdict = self.critic(self.generator(z))
            generator_loss = self.bce(verdict, torch.ones_like(verdict))
            self.generator_optimizer.zero_grad()
            generator_loss.backward()
            nn.utils.clip_grad_norm_(self.generator.parameters(), self.params.clip_norm)
            self.generator_optimizer.step()
        return generator_loss.item(), critic_loss.item()

    @torch.no_grad()
    def draw(self) -> np.ndarray:
        """Return generated cells, as many as it learns from, shape (n_cells, n_genes)."""
        cells: np.ndarray = self.generator(self._input()).float().numpy()
        return cells
