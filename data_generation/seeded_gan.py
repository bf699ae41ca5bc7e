"""Stage 2 of preset `garage`: a generator anchored by likelihood, fed noise rows and seed rows, refined by a critic.

The generator is the decoder of a conditional variational autoencoder with an observation model for the input's scale.
Its input is a hybrid batch (paper, "attention-guided leakage"): noise rows draw their latent vector from the prior,
seed rows from the posterior of a seed cell. A seed row is asked for a cell of the seed's NEIGHBOURHOOD, a neighbour
drawn in proportion to attention, so that it ties the generator to the manifold without teaching it to copy the seed.
Networks are narrow where cells are few: a wide one has room for the noise of each cell, and gives it away.

1. Anchor: maximise the evidence lower bound (Kingma & Welling 2014).
2. Critic: continue with a projection critic (Miyato & Koyama 2018) that sees the most variable genes, logistic loss
   and lazy R1 penalty on real cells (Mescheder et al. 2018); cells are drawn from a moving average of the weights.

Then `synthesis.py` takes over: it calibrates each type's marginals and draws cells.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.cli import Reporter
from common.disk import is_on_disk, map_rows, row_sums
from common.graphs import Replayed
from common.networks import mlp
from common.processes import ALONE, Team
from common.run import Checkpoint, no_checkpoint
from common.scale import Scale
from config import GarageParams
from data_generation.calibration import Ranking
from data_generation.cell_selection import Selection
from data_generation.observation import ALL_GENES, Gaussian, Genes, HurdleGamma, NegativeBinomial

PROFILE_PRIOR = 10.0  # cells' worth of the population's mean in each type's mean profile
MIN_SHARE = 1e-30  # of a gene nobody expresses: its logarithm exists, and no molecule of it is ever drawn
MIN_DETECTED = 1e-3
MIN_VARIANCE = 1e-2  # a scaled gene's, where the observation model starts
SHAPE_PRIOR = 1.0  # values' worth of the common shape in each gene's, where the observation model starts
NEVER = -200.0  # logit of the detection of such a gene: a probability of exactly zero
NARROWEST, WIDEST = 16, 128  # hidden layers whose width follows the number of cells
BETAS = (0.5, 0.99)  # of Adam against a critic: little momentum, as the target moves
DENSE_VALUES = 2**27  # of training cells that are kept dense in memory, 512 MB
BLOCK_VALUES = 2**24  # of cells that are looked at together where many are, 64 MB
LOG_EVERY = 10  # steps between two rows of the loss table


@dataclass(frozen=True)
class TrainingCells:
    """Training cells: dense on the device if there is room, otherwise where they came from, and moved row by row.

    A GPU has room as long as they take half of its free memory; what is on disk stays out of the host's.

    Shapes: X (n_cells, n_genes), types (n_cells,), size (n_cells, 1).
    """

    X: sp.csr_matrix
    """counts, log-normalised or scaled values"""
    dense: Tensor | None
    """the same on the device"""
    types: Tensor
    size: Tensor
    """log library size of counts, otherwise 0"""
    target_sum: float
    """library size to which counts are normalised: the median; 1 for other scales"""
    scale: Scale

    @classmethod
    def on(cls, device: torch.device, X: sp.csr_matrix, types: np.ndarray, scale: Scale) -> "TrainingCells":
        """Move cells of shape (n_cells, n_genes) to a device; linear values are logged on the way."""
        X = X.astype(np.float32, copy=False)  # which on disk they are: nothing is copied there
        if scale == "linear":
            X = map_rows(lambda block: block.log1p(), X)
        total = torch.from_numpy(row_sums(X).astype(np.float32)).to(device)[:, None]
        size = total.log() if scale == "counts" else torch.zeros_like(total)
        target = float(total.median()) if scale == "counts" else 1.0
        cells = cls(X, None, torch.from_numpy(types.astype(np.int64)).to(device), size, target, scale)
        if X.shape[0] * X.shape[1] > _room(device, on_disk=is_on_disk(X)):
            return cells
        dense = torch.empty(X.shape, device=device)
        for index, x in cells.blocks():
            dense[index] = x
        return replace(cells, dense=dense)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.X.shape[0]

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.X.shape[1]

    def rows(self, index: Tensor) -> Tensor:
        """Return some cells on the device, shape (len(index), n_genes)."""
        if self.dense is not None:
            return self.dense[index]
        return torch.from_numpy(self.X[index.cpu().numpy()].toarray()).to(index.device)

    def blocks(self, of: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the indices and values of some cells, by default of all, as many at a time as fit."""
        cells = torch.arange(self.n_cells, device=self.types.device) if of is None else of
        for index in cells.split(max(1, BLOCK_VALUES // self.n_genes)):
            yield index, self.rows(index)

    def total(self, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return the sum of `measure(index, x)` over blocks."""
        parts = [measure(index, x) for index, x in self.blocks()]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def _room(device: torch.device, *, on_disk: bool) -> int:
    """Return how many values of training cells may be kept dense on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free // 2 // torch.float32.itemsize
    return 0 if on_disk else DENSE_VALUES


def _type_means(cells: TrainingCells, of: Callable[[Tensor, Tensor], Tensor], n_types: int) -> Tensor:
    """Mean of each type of `of(index, x)`, shrunk towards the population's: shape (n_types, n_genes)."""

    def by_type(index: Tensor, x: Tensor) -> Tensor:
        member = F.one_hot(cells.types[index], n_types).to(x.dtype).T  # (T, n)
        return member @ of(index, x)

    total, count = cells.total(by_type), torch.bincount(cells.types, minlength=n_types)[:, None]
    return (total + PROFILE_PRIOR * total.sum(0) / cells.n_cells) / (count + PROFILE_PRIOR)


def observation_model(cells: TrainingCells, n_types: int) -> NegativeBinomial | HurdleGamma | Gaussian:
    """Build the observation model of the cells' scale, started at the types' own mean profiles."""
    types, size = cells.types, cells.size
    if cells.scale == "counts":
        shares = _type_means(cells, lambda index, x: x / size[index].exp(), n_types)
        negative_binomial = NegativeBinomial((shares + MIN_SHARE).log())

        def moments(index: Tensor, x: Tensor) -> Tensor:
            mean = shares[types[index]] * size[index].exp()
            return torch.stack([mean.square().sum(0), ((x - mean).square() - mean).sum(0)])

        square, excess = cells.total(moments)
        dispersion = (square + SHAPE_PRIOR) / (excess.clamp_min(0) + SHAPE_PRIOR)
        negative_binomial.log_dispersion.data = dispersion.log()
        return negative_binomial
    if cells.scale == "scaled":
        gaussian = Gaussian(_type_means(cells, lambda index, x: x, n_types))
        squares = cells.total(lambda index, x: (x - gaussian.mean[types[index]]).square().sum(0))
        gaussian.log_sd.data = 0.5 * (squares / cells.n_cells).clamp_min(MIN_VARIANCE).log()
        return gaussian
    frequency = _type_means(cells, lambda index, x: (x > 0).float(), n_types)
    detected = frequency.clamp(MIN_DETECTED, 1 - MIN_DETECTED)
    level = _type_means(cells, lambda index, x: x, n_types) / detected
    logit = torch.where(frequency > 0, detected.logit(), NEVER)
    hurdle = HurdleGamma(logit, level.clamp_min(MIN_DETECTED).log())
    # by the method of moments: a shape far off is learnt more slowly than the critic drives the values to infinity

    def scatter_above_zero(index: Tensor, x: Tensor) -> Tensor:
        some = x > 0
        return torch.stack([some.sum(0), ((x / hurdle.log_level[types[index]].exp() - 1).square() * some).sum(0)])

    some, scatter = cells.total(scatter_above_zero)
    shape = (some + SHAPE_PRIOR) / (scatter + SHAPE_PRIOR / F.softplus(hurdle.raw_shape.data))
    hurdle.raw_shape.data = shape + torch.log(-torch.expm1(-shape))  # undoes softplus
    return hurdle


class Generator(nn.Module):
    """Encoder, decoder and observation model.

    Shapes: x (B, G), types (B,), size (B, 1), z (B, latent_dim).
    """

    def __init__(
        self, observation: NegativeBinomial | HurdleGamma | Gaussian, latent_dim: int, width: int, *,
        ranking: Ranking, size_mean: float, size_sd: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.ranking, self.size_mean, self.size_sd = ranking, size_mean, size_sd
        self.n_types, self.n_genes = observation.n_types, observation.n_genes
        self.encoder = mlp(self.n_genes + self.n_types + 1, (width, width), 2 * latent_dim)
        self.decoder = mlp(latent_dim + self.n_types + 1, (width, width), observation.outputs * self.n_genes)
        self.observation = observation
        # near zero at the start, so that every cell begins as its type's mean profile
        for parameter in self.decoder[-1].parameters():
            nn.init.normal_(parameter, std=0.01)

    @classmethod
    def for_cells(cls, cells: TrainingCells, n_types: int, params: GarageParams) -> "Generator":
        """Build the generator that suits the training cells."""
        width = params.hidden_dim or min(max(round(math.sqrt(cells.n_cells)), NARROWEST), WIDEST)
        return cls(
            observation_model(cells, n_types), params.latent_dim, width,
            ranking=Ranking.of((x for _, x in cells.blocks()), cells.scale, cells.target_sum, params.calibrate_on),
            size_mean=float(cells.size.mean()),
            size_sd=float(cells.size.std(correction=0)) or 1.0,
        )  # fmt: skip

    def _condition(self, types: Tensor, size: Tensor) -> Tensor:
        return torch.cat([F.one_hot(types, self.n_types).float(), (size - self.size_mean) / self.size_sd], dim=1)

    def encode(self, x: Tensor, types: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the posterior of z."""
        out = self.encoder(torch.cat([self.ranking.normalise(x), self._condition(types, size)], dim=1))
        mean, log_variance = out.chunk(2, dim=1)
        return mean, log_variance.clamp(-10, 10)

    def decode(self, z: Tensor, types: Tensor, size: Tensor) -> Tensor:
        """Return the observation model's input."""
        return self.decoder(torch.cat([z, self._condition(types, size)], dim=1))


@dataclass(frozen=True)
class Sight:
    """What the critic sees of a cell: some genes, normalised by their own sum, as if there were no others."""

    genes: Genes
    n_genes: int
    ranking: Ranking

    @classmethod
    def of(cls, cells: TrainingCells, ranking: Ranking, most: int) -> "Sight":
        """Choose the genes whose normalised values vary most, all if there are no more than `most`."""
        if cells.n_genes <= most:
            return cls(ALL_GENES, cells.n_genes, ranking)
        mean = cells.total(lambda _, x: ranking.normalise(x).sum(0)) / cells.n_cells
        scatter = cells.total(lambda _, x: (ranking.normalise(x) - mean).square().sum(0))
        genes = scatter.topk(most).indices.sort().values
        if cells.scale == "counts":
            sums = torch.cat([x[:, genes].sum(1) for _, x in cells.blocks()])
            ranking = replace(ranking, target_sum=float(sums.median()))
        return cls(genes, most, ranking)


class Critic(nn.Module):
    """Projection critic: how real a cell looks, and how much like its type.

    Shapes: log-normalised v of the genes that it sees, (B, n_genes), types (B,) -> (B,).
    """

    def __init__(self, n_genes: int, n_types: int, params: GarageParams) -> None:
        super().__init__()
        self.body = mlp(n_genes, (params.critic_hidden,), params.critic_hidden, norm=False)
        self.verdict = nn.Linear(params.critic_hidden, 1)
        self.types = nn.Embedding(n_types, params.critic_hidden)
        nn.init.zeros_(self.types.weight)

    def forward(self, v: Tensor, types: Tensor) -> Tensor:
        """Judge cells; above zero means real."""
        h = F.silu(self.body(v))
        return self.verdict(h).squeeze(1) + (h * self.types(types)).sum(1)


def reparameterise(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """Turn standard normal noise into z, differentiable in mean and log variance, all of shape (B, L)."""
    return mean + (0.5 * log_variance).exp() * noise


class SeedRows:
    """Draws seed rows: a seed, and a cell of its neighbourhood, each cell that listens to a seed as often as any other.

    Shapes: seeds (n_seeds,), the cells' indices; of_seed, neighbors, payments (n_payments,), the entries of
    `Selection.neighborhood`.
    """

    def __init__(self, selection: Selection, device: torch.device) -> None:
        hood = selection.neighborhood.tocsr()
        self.seeds = torch.from_numpy(np.flatnonzero(selection.is_seed)).to(device)
        self.of_seed = torch.from_numpy(np.repeat(np.arange(hood.shape[0]), np.diff(hood.indptr))).to(device)
        self.neighbors = torch.from_numpy(hood.indices.astype(np.int64)).to(device)
        self.payments = torch.from_numpy(hood.data.astype(np.float32)).to(device)
        self.ends = torch.from_numpy(np.cumsum(hood.data)).to(device)

    def __bool__(self) -> bool:
        """Whether any cell listens to a seed."""
        return len(self.payments) > 0

    def draw(self, n_rows: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return cell indices of shape (n_rows,): the seeds, and the neighbours they are to produce."""
        chance = torch.rand(n_rows, generator=rng, device=self.ends.device, dtype=torch.float64)
        row = torch.searchsorted(self.ends, chance * self.ends[-1], right=True).clamp_max(len(self.ends) - 1)
        return self.seeds[self.of_seed[row]], self.neighbors[row]

    def pool(self, mean: Tensor, variance: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Match a normal distribution to what is known of the cells in each seed's neighbourhood.

        Parameters
        ----------
        mean, variance
            Of every cell, shape (n_cells, D).
        known
            Mask of the cells that count, shape (n_cells,); by default all.

        Returns
        -------
        How many cells each seed stands for, shape (n_seeds,), mean and variance, shape (n_seeds, D). The seed itself is
        not among its neighbours, so what is left of it is only where it stands in the graph.
        """
        share = self.payments if known is None else self.payments * known[self.neighbors]
        cells = share.new_zeros(len(self.seeds)).index_add(0, self.of_seed, share)
        share = (share / cells.clamp_min(1e-30)[self.of_seed])[:, None]
        nothing, means = mean.new_zeros(len(self.seeds), mean.shape[1]), mean[self.neighbors]
        center = nothing.index_add(0, self.of_seed, share * means)
        square = variance[self.neighbors] + (means - center[self.of_seed]).square()
        return cells, center, nothing.index_add(0, self.of_seed, share * square)


def count_steps(n_cells: int, params: GarageParams) -> int:
    """Return the steps of an epoch: as many as draw each cell once in the mean, seed rows not counted."""
    n_rows = min(params.batch_size, n_cells)
    return math.ceil(n_cells / max(1, n_rows - round(params.leakage * n_rows)))


def count_anchor_steps(n_cells: int, params: GarageParams) -> int:
    """Return the steps of the anchor."""
    return min(params.anchor_epochs * count_steps(n_cells, params), params.anchor_steps)


class Training:
    """The state of a run of stage 2, and the two phases that move it on.

    Of each hybrid batch a process of the team computes its share; all draw the same batch and the same latent noise,
    so that the number of processes changes the order of sums, and the counts that are drawn against the critic.

    Parameters
    ----------
    replay
        Whether a CUDA device may replay steps as graphs; it does where all cells are on it and there is one process.
    """

    def __init__(
        self, cells: TrainingCells, selection: Selection, n_types: int, params: GarageParams, *, seed: int,
        team: Team = ALONE, replay: bool = True,
    ) -> None:  # fmt: skip
        self.cells, self.params, self.n_types, self.seed, self.team = cells, params, n_types, seed, team
        device = cells.types.device
        self.seed_rows = SeedRows(selection, device)
        self.rng, self.rng_of_step = torch.Generator(device).manual_seed(seed), torch.Generator(device)
        self.kl_weight = torch.ones((), device=device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.generator = Generator.for_cells(cells, n_types, params).to(device)
            self.sight = Sight.of(cells, self.generator.ranking, params.critic_genes)
            self.critic = Critic(self.sight.n_genes, n_types, params).to(device)
        own, others = self.generator.parameters, self.critic.parameters
        how: dict[str, Any] = {"fused": True, "capturable": device.type == "cuda"}
        self.anchor_optimizer = torch.optim.AdamW(own(), params.anchor_lr, **how)
        self.generator_optimizer = torch.optim.Adam(own(), params.generator_lr, betas=BETAS, **how)
        self.critic_optimizer = torch.optim.Adam(others(), params.critic_lr, betas=BETAS, **how)
        self.replays = replay and device.type == "cuda" and cells.dense is not None and team.size == 1
        self.replayed: dict[str, Replayed] = {}
        self.average = {k: v.detach().clone() for k, v in self.generator.state_dict().items()}
        self.step = 0
        self.losses: list[dict[str, float]] = []

        # a hybrid batch: the share `leakage` of its rows starts from seeds
        self.n_rows = min(params.batch_size, cells.n_cells)
        self.n_seed_rows = round(params.leakage * self.n_rows) if self.seed_rows else 0
        n_own = self.n_rows - self.n_seed_rows
        own, seeds = torch.arange(self.n_rows, device=device).split([n_own, self.n_seed_rows])
        self.mine = torch.cat([team.share(own), team.share(seeds)])
        self.n_own = len(team.share(own))
        self.share = len(self.mine) / self.n_rows
        self.steps_per_epoch = count_steps(cells.n_cells, params)
        self.anchor_steps = count_anchor_steps(cells.n_cells, params)
        self.warmup_steps = min(params.warmup_epochs * self.steps_per_epoch, self.anchor_steps // 10)
        self.total_steps = self.anchor_steps + params.critic_steps

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Return indices of shape (n_rows,): the cells to encode, and the cells to produce."""
        n_own = self.n_rows - self.n_seed_rows
        own = torch.randint(self.cells.n_cells, (n_own,), generator=self.rng, device=self.cells.types.device)
        if not self.n_seed_rows:
            return own[self.mine], own[self.mine]
        seeds, neighbors = self.seed_rows.draw(self.n_seed_rows, self.rng)
        return torch.cat([own, seeds])[self.mine], torch.cat([own, neighbors])[self.mine]

    def _noise(self) -> Tensor:
        """Return standard normal noise for a batch, shape (n_rows, L)."""
        shape = (self.n_rows, self.params.latent_dim)
        return torch.randn(shape, generator=self.rng, device=self.cells.types.device)[self.mine]

    def _negative_elbo(self, start: Tensor, goal: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the reconstruction and KL terms and z; rows start from cells, and aim at x.

        The terms are sums over this process's rows, divided by those of the whole batch.
        """
        types, size = self.cells.types, self.cells.size
        x_start = torch.cat([x[: self.n_own], self.cells.rows(start[self.n_own :])])
        mean, log_variance = self.generator.encode(x_start, types[start], size[start])
        z = reparameterise(mean, log_variance, self._noise())
        decoded = self.generator.decode(z, types[goal], size[goal])
        nll = -self.generator.observation.log_likelihood(x, decoded, types[goal], size[goal]).mean()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        return self.share * nll, self.kl_weight * kl, z

    def anchor_step(self) -> dict[str, Tensor]:
        """Take one step up the evidence lower bound."""
        self.kl_weight.fill_(self.share * min(1.0, (self.step + 1) / (self.warmup_steps + 1)))
        return self._take("anchor", self._anchor_step)

    def critic_step(self) -> dict[str, Tensor]:
        """Take one step of the critic and one of the generator."""
        self.kl_weight.fill_(self.share)
        # what counts are drawn by: of this step and process, so that no state of it is kept
        key = np.random.SeedSequence((self.seed, self.step, self.team.rank)).generate_state(2)
        self.rng_of_step.manual_seed(int(key[0]) << 31 | int(key[1]) >> 1)
        if self.step % self.params.r1_every:
            return self._take("critic", self._critic_step)
        return self._take("critic with penalty", partial(self._critic_step, penalise=True))

    def _take(self, name: str, step: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Take a step as it is written, or replay it."""
        if not self.replays:
            return step()
        if name not in self.replayed:
            self.replayed[name] = Replayed(step, (self.rng, self.rng_of_step))
        return self.replayed[name]()

    def _anchor_step(self) -> dict[str, Tensor]:
        start, goal = self._batch()
        nll, kl, _ = self._negative_elbo(start, goal, self.cells.rows(goal))
        self.anchor_optimizer.zero_grad()
        (nll + kl).backward()
        self.team.add_gradients(self.generator.parameters())
        self.anchor_optimizer.step()
        return {"nll": nll.detach(), "kl": kl.detach()}

    def _critic_step(self, *, penalise: bool = False) -> dict[str, Tensor]:
        params, cells = self.params, self.cells
        start, goal = self._batch()
        types, size = cells.types[goal], cells.size[goal]
        x = cells.rows(goal)
        sight = self.sight
        real = sight.ranking.normalise(x[:, sight.genes])
        nll, kl, z = self._negative_elbo(start, goal, x)
        # seed rows keep the posterior of their seed, the others become noise rows
        z = torch.cat([self._noise()[: self.n_own], z[self.n_own :]])
        decoded = self.generator.decode(z, types, size)
        drawn = self.generator.observation.draw(decoded, types, size, self.rng_of_step, sight.genes)
        fake = sight.ranking.normalise(drawn)

        real.requires_grad_(penalise)
        verdict_real, verdict_fake = self.critic(real, types), self.critic(fake.detach(), types)
        critic_loss = self.share * (F.softplus(-verdict_real).mean() + F.softplus(verdict_fake).mean())
        loss = critic_loss
        if penalise:
            (gradient,) = torch.autograd.grad(verdict_real.sum(), real, create_graph=True)
            penalty = self.share * gradient.square().sum(1).mean()
            loss = loss + 0.5 * params.r1_weight * params.r1_every * penalty
        self.critic_optimizer.zero_grad()
        loss.backward()
        self.team.add_gradients(self.critic.parameters())
        self.critic_optimizer.step()

        self.critic.requires_grad_(False)
        adversarial = self.share * F.softplus(-self.critic(fake, types)).mean()
        self.critic.requires_grad_(True)
        self.generator_optimizer.zero_grad()
        (nll + kl + params.adversarial_weight * adversarial).backward()
        self.team.add_gradients(self.generator.parameters())
        self.generator_optimizer.step()
        terms = {"nll": nll, "kl": kl, "adversarial": adversarial, "critic": critic_loss}
        return {name: value.detach() for name, value in terms.items()}

    def _follow(self) -> None:
        """Move the average after the weights; during the anchor phase it is the weights."""
        for name, value in self.generator.state_dict().items():
            if self.step <= self.anchor_steps:
                self.average[name].copy_(value)
            else:
                self.average[name].lerp_(value, 1 - self.params.ema_decay)

    def run(self, report: Reporter, checkpoint: Checkpoint = no_checkpoint) -> None:
        """Take all steps that are left."""
        while self.step < self.total_steps:
            anchoring = self.step < self.anchor_steps
            terms = self.anchor_step() if anchoring else self.critic_step()
            self.step += 1
            if self.step == self.anchor_steps or not anchoring:
                self._follow()
            if self.step % LOG_EVERY == 0 or self.step == self.total_steps:
                row = self.team.add(terms)
                self.losses.append({"step": self.step, **row})
                if anchoring:
                    report("anchor", self.step, self.anchor_steps, **row)
                else:
                    report("critic", self.step - self.anchor_steps, self.params.critic_steps, **row)
            checkpoint(self.state)
        self.replayed.clear()  # graphs hold memory, and this object
        self.generator.load_state_dict(self.average)
        self.generator.eval().requires_grad_(False)

    def state(self) -> dict[str, Any]:
        """Return everything needed to go on exactly, as tensors, numbers, lists and dicts."""
        return {
            "step": self.step, "losses": self.losses, "rng": self.rng.get_state(), "average": self.average,
            **{name: getattr(self, name).state_dict() for name in self._stateful},
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.step, self.losses = state["step"], state["losses"]
        self.average = {k: v.to(self.cells.types.device) for k, v in state["average"].items()}
        self.rng.set_state(state["rng"].cpu())
        for name in self._stateful:
            getattr(self, name).load_state_dict(state[name])

    _stateful = ("generator", "critic", "anchor_optimizer", "generator_optimizer", "critic_optimizer")
