"""After training: what drawing cells needs, each type's calibration, and the draw itself."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from common.scale import Scale
from config import GarageParams
from data_generation.calibration import (
    Calibration,
    Ranking,
    interpolate,
    match_detection,
    quantile_levels,
    weighted_quantiles,
)
from data_generation.observation import Gaussian, HurdleGamma, NegativeBinomial
from data_generation.seeded_gan import Generator, SeedRows, Training, TrainingCells

ROWS_AT_ONCE = 1000  # cells generated at a time, which bounds memory
RANKED_VALUES = 2**25  # of a type's cells that its marginals are learnt from: all, unless they are more, 128 MB
LEAST_RANKED = 1000  # cells of a type, however many genes
MATCHED_CELLS = 1000  # drawn of all types together to know how the number of detected genes scatters, and of each at
LEAST_MATCHED = 20  # least so many
SIZE_VARIANCE = 0.01  # of a cell's log library size around the one it has, where its surroundings are learnt
PARTS = 5  # of a type's cells, each left out once to learn how many cells to draw from seeds
LEAST_LEFT_OUT = 10  # cells of a type for that to be learnt
MOST_LEFT_OUT = 200  # cells of a type in each part, which bounds time and memory
TRIES = 4  # latent vectors of each cell that is left out
POINTS_AT_ONCE = 50  # of these that are compared with all seeds together, which bounds memory

Portion = tuple[sp.csr_matrix, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class TypeModel:
    """What is known of one type besides the network. It holds no cell: a seed is kept as its neighbourhood.

    Shapes: latent_mean (L,), latent_factor (L, L), sizes (n_levels,), seed_share (), seed_cells (n_seeds,), seed_mean
    and seed_variance (n_seeds, L + 1).
    """

    latent_mean: Tensor
    latent_factor: Tensor
    """z = latent_mean + latent_factor @ noise: the first two moments of the type's posteriors, spread out"""
    sizes: Tensor
    """quantiles of the log library size"""
    seed_share: Tensor
    """share of the type's cells that are drawn from the neighbourhoods of its seeds"""
    seed_cells: Tensor
    """cells that each seed stands for: how often it is drawn"""
    seed_mean: Tensor
    seed_variance: Tensor
    """of latent vector and log library size in each seed's neighbourhood"""
    calibration: Calibration | None = None


def _latent_moments(mean: Tensor, log_variance: Tensor, prior: float) -> tuple[Tensor, Tensor]:
    """Match a normal distribution to posteriors (n, L), shrunk to N(0, I) as if by `prior` more cells."""
    n, identity = len(mean), torch.eye(mean.shape[1], device=mean.device)
    center = mean.sum(0) / (n + prior)
    second = mean.T @ mean + log_variance.exp().sum(0).diag() + prior * identity
    return center, torch.linalg.cholesky(second / (n + prior) - center.outer(center))


def size_quantiles(size: Tensor, types: Tensor, t: int, prior: float) -> Tensor:
    """Quantiles of a type's log library sizes, with `prior` cells' worth of all types' scatter around its mean.

    Shapes: size and types (n_cells,) -> (n_levels,), at `quantile_levels`.
    """
    own = size[types == t]
    scatter = torch.cat([size[types == other] - size[types == other].mean() for other in types.unique()])
    values = torch.cat([own, own.mean() + scatter])
    weights = torch.ones_like(values)
    weights[len(own) :] = prior / len(scatter)
    return weighted_quantiles(values[None], weights[None], quantile_levels().to(size.device))[0]


def _log_density_of_normal(z: Tensor, center: Tensor, factor: Tensor) -> Tensor:
    """Log density of latent vectors (n, L) under a normal distribution, up to a constant: shape (n,)."""
    scaled = torch.linalg.solve_triangular(factor, (z - center).T, upper=False)
    return -0.5 * scaled.square().sum(0) - factor.diagonal().log().sum()


def _log_density_of_seeds(point: Tensor, cells: Tensor, center: Tensor, variance: Tensor) -> Tensor:
    """Log density of points (n, D) under the neighbourhoods of seeds, up to the same constant: shape (n,)."""
    precision = 1 / variance.double()  # products of large numbers that nearly cancel
    pull, center = center.double() * precision, center.double()
    weight = (cells / cells.sum()).double().log() + 0.5 * (precision.log() - center * pull).sum(1)
    found = []
    for some in point.double().split(POINTS_AT_ONCE):
        found.append(torch.logsumexp(weight + some @ pull.T - 0.5 * some.square() @ precision.T, dim=1))
    return torch.cat(found).float()


def _mixing_share(log_ratio: Tensor, doubt: float) -> Tensor:
    """Maximise the likelihood of a mixture of two given densities by expectation-maximisation: shape ().

    Parameters
    ----------
    log_ratio
        Log density under the first, less that under the second, shape (n_points,).
    doubt
        Points' worth of the second that are added.
    """
    share = log_ratio.new_tensor(0.5)
    for _ in range(100):
        share = torch.sigmoid(torch.logit(share) + log_ratio).sum() / (len(log_ratio) + doubt)
    return share


def learn_seed_shares(
    seed_rows: SeedRows, types: Tensor, n_types: int, mean: Tensor, log_variance: Tensor, size: Tensor,
    params: GarageParams, rng: torch.Generator,
) -> list[Tensor]:  # fmt: skip
    """Learn how many cells of each type to draw from the neighbourhoods of seeds, and not from one normal distribution.

    A type's cells are left out part by part: of those that are left, both are made anew, and the share is the one that
    gives the cells that were left out the highest likelihood. Where a label hides several types, that is most. The
    normal distribution is that of the posteriors, not spread out: `latent_spread` makes up for the decoder.

    Parameters
    ----------
    types, mean, log_variance, size
        Of every training cell: type code (n_cells,), posterior (n_cells, L), log library size (n_cells, 1).

    Returns
    -------
    Share of each type, shape () each: `params.seed_share` if given, nothing for types without seeds or with fewer than
    `LEAST_LEFT_OUT` cells.
    """
    nothing = mean.new_zeros(())
    position = torch.cat([mean, size], dim=1)
    variance = torch.cat([log_variance.exp(), torch.full_like(size, SIZE_VARIANCE)], dim=1)
    type_of_seed = types[seed_rows.seeds]
    if params.seed_share is not None:
        cells, _, _ = seed_rows.pool(position, variance)
        fixed = mean.new_tensor(params.seed_share)
        return [fixed if (cells[type_of_seed == t] > 0).any() else nothing for t in range(n_types)]
    part = torch.randperm(len(types), generator=rng, device=types.device) % PARTS
    log_ratios: list[list[Tensor]] = [[] for _ in range(n_types)]
    for i in range(PARTS):
        known = part != i
        cells, center, spread = seed_rows.pool(position, variance, known)
        for t in range(n_types):
            own, mine = types == t, (type_of_seed == t) & (cells > 0)
            left_out = (own & ~known).nonzero().squeeze(1)[:MOST_LEFT_OUT].repeat(TRIES)
            if not (len(left_out) and mine.any() and int(own.sum()) >= LEAST_LEFT_OUT):
                continue
            noise = torch.randn((len(left_out), position.shape[1]), generator=rng, device=types.device)
            point = position[left_out] + variance[left_out].sqrt() * noise
            middle, factor = _latent_moments(mean[own & known], log_variance[own & known], params.calibration_prior)
            of_size = size[own & known]
            scatter = of_size.var(correction=0) + SIZE_VARIANCE
            normal = _log_density_of_normal(point[:, :-1], middle, factor)
            normal = normal - 0.5 * ((point[:, -1] - of_size.mean()).square() / scatter + scatter.log())
            seeds = _log_density_of_seeds(point, cells[mine], center[mine], spread[mine])
            log_ratios[t].append(seeds - normal)
    doubt = TRIES * params.calibration_prior
    return [_mixing_share(torch.cat(found), doubt) if found else nothing for found in log_ratios]


@dataclass
class SeededGan:
    """A trained generator, ready to draw. Shapes: cells (n_rows, n_genes), on the scale on which it was trained."""

    generator: Generator
    constant: Tensor
    """the value of genes that are the same in every training cell, nan for all others, shape (n_genes,)"""
    types: list[TypeModel]

    @classmethod
    @torch.no_grad()
    def of(cls, training: Training) -> "SeededGan":
        """Sum up a finished training type by type, and calibrate."""
        cells, params, generator, rng = training.cells, training.params, training.generator, training.rng
        prior, seed_rows, size = params.calibration_prior, training.seed_rows, cells.size
        ranking, posteriors, extremes = generator.ranking, [], []
        for index, x in cells.blocks():
            posteriors.append(torch.cat(generator.encode(x, cells.types[index], cells.size[index]), dim=1))
            extremes.append(torch.stack([*x.aminmax(dim=0), ranking.highest(x).amax(0)]))
        mean, log_variance = torch.cat(posteriors).chunk(2, dim=1)
        shares = learn_seed_shares(seed_rows, cells.types, training.n_types, mean, log_variance, size, params, rng)
        stands_for, seed_mean, seed_variance = seed_rows.pool(
            torch.cat([mean, size], dim=1), torch.cat([log_variance.exp(), torch.zeros_like(size)], dim=1)
        )
        lowest, highest, ceiling = torch.stack(extremes).unbind(1)
        lowest, highest, ceiling = lowest.amin(0), highest.amax(0), ceiling.amax(0)
        constant = torch.where(lowest == highest, lowest, torch.nan)
        model = cls(generator, constant, [])
        for t in range(training.n_types):
            own, mine = cells.types == t, (cells.types[seed_rows.seeds] == t) & (stands_for > 0)
            center, factor = _latent_moments(mean[own], log_variance[own], prior)
            factor = params.latent_spread * factor
            sizes = size_quantiles(size.squeeze(1), cells.types, t, prior)
            of_seeds = stands_for[mine], seed_mean[mine], seed_variance[mine]
            model.types.append(TypeModel(center, factor, sizes, shares[t], *of_seeds))
        if params.calibrate:
            for t, uncalibrated in enumerate(model.types):
                drawn = torch.cat([
                    ranking.to_rank(model._draw(t, n, rng)[0], rng) for n in _portions(params.calibration_cells)
                ])  # fmt: skip
                own = (cells.types == t).nonzero().squeeze(1)
                if len(own) > (most := max(LEAST_RANKED, RANKED_VALUES // cells.n_genes)):
                    own = own[torch.randperm(len(own), generator=rng, device=own.device)[:most].sort().values]
                real = torch.cat([ranking.to_rank(x, rng) for _, x in cells.blocks(own)])
                calibration = Calibration.fit(real, drawn, lowest.clamp_max(0), ceiling, prior=prior)
                model.types[t] = replace(uncalibrated, calibration=calibration)
            if params.calibrate_detection and not ranking.counts:
                model._match_detection(cells, rng)
        return model

    def _match_detection(self, cells: TrainingCells, rng: torch.Generator) -> None:
        """Let the number of detected genes scatter as in the training cells, see `match_detection`."""
        ranking, ranks = self.generator.ranking, []
        calibrations = [t.calibration for t in self.types if t.calibration is not None]
        for t, calibration in enumerate(calibrations):
            x, _, _ = self._draw(t, max(LEAST_MATCHED, MATCHED_CELLS // len(calibrations)), rng)
            ranks.append(calibration.ranks(ranking.to_rank(x, rng), rng))
        floor = calibrations[0].floor
        detected = torch.cat([(ranking.normalise(x) > floor).sum(1) for _, x in cells.blocks()]).double()
        of_type = [detected[cells.types == t] for t in range(len(self.types))]
        matched = match_detection(calibrations, ranks, of_type, rng)
        self.types = [replace(t, calibration=c) for t, c in zip(self.types, matched, strict=True)]

    def _draw(self, t: int, n_rows: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw cells of type t as the network has them, their log library sizes, and which come from seed rows."""
        of_type, device = self.types[t], self.types[t].sizes.device
        chance = torch.rand((1, n_rows), generator=rng, device=device)
        size = interpolate(chance, quantile_levels().to(device)[None], of_type.sizes[None]).T
        noise = torch.randn((n_rows, len(of_type.latent_mean)), generator=rng, device=device)
        z = of_type.latent_mean + noise @ of_type.latent_factor.T
        from_seed = torch.rand(n_rows, generator=rng, device=device) < of_type.seed_share
        if len(of_type.seed_cells):
            row = torch.multinomial(of_type.seed_cells, n_rows, replacement=True, generator=rng)
            around = torch.randn((n_rows, noise.shape[1] + 1), generator=rng, device=device)
            around = of_type.seed_mean[row] + of_type.seed_variance[row].sqrt() * around
            z = torch.where(from_seed[:, None], around[:, :-1], z)
            size = torch.where(from_seed[:, None], around[:, -1:].clamp(of_type.sizes[0], of_type.sizes[-1]), size)
        types = torch.full((n_rows,), t, device=device)
        x = self.generator.observation.draw(self.generator.decode(z, types, size), types, size, rng)
        return x, size, from_seed

    @torch.no_grad()
    def draw(self, quota: np.ndarray, rng: torch.Generator) -> Iterator[Portion]:
        """Draw cells, so many of each type.

        Parameters
        ----------
        quota
            Cells of each type, shape (n_types,).

        Yields
        ------
        Cells of shape (n_rows, n_genes), their type codes, and a mask, true for seed rows; ordered by type.
        """
        ranking = self.generator.ranking
        for t, n_cells in enumerate(quota):
            for n_rows in _portions(int(n_cells)):
                x, size, from_seed = self._draw(t, n_rows, rng)
                calibration = self.types[t].calibration
                if calibration is not None:
                    v = calibration.apply(ranking.to_rank(x, rng), rng)
                    x = ranking.from_rank(v, size)
                x = torch.where(self.constant.isnan(), x, self.constant)
                yield sp.csr_matrix(x.cpu().numpy()), np.full(n_rows, t), from_seed.cpu().numpy()

    def state(self) -> dict[str, Any]:
        """Return everything as tensors, numbers, strings, lists and dicts."""
        g = self.generator
        types = [
            {**vars(t), "calibration": None if t.calibration is None else vars(t.calibration)} for t in self.types
        ]  # fmt: skip
        return {
            "weights": g.state_dict(), "constant": self.constant, "types": types,
            "target_sum": g.ranking.target_sum, "ranks_counts": g.ranking.counts,
            "size_mean": g.size_mean, "size_sd": g.size_sd,
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: dict[str, Any], params: GarageParams, scale: Scale, device: torch.device) -> "SeededGan":
        """Rebuild the model from `state`."""
        weights = state["weights"]
        if scale == "counts":
            observation: Any = NegativeBinomial(weights["observation.log_profile"])
        elif scale == "scaled":
            observation = Gaussian(weights["observation.mean"])
        else:
            observation = HurdleGamma(weights["observation.detection_logit"], weights["observation.log_level"])
        generator = Generator(
            observation, params.latent_dim, len(weights["encoder.0.weight"]),
            ranking=Ranking(scale, state["ranks_counts"], state["target_sum"]),
            size_mean=state["size_mean"], size_sd=state["size_sd"],
        )  # fmt: skip
        generator.load_state_dict(weights)
        generator.to(device).eval().requires_grad_(False)

        def on_device(tensors: dict[str, Any]) -> dict[str, Any]:
            return {name: value.to(device) for name, value in tensors.items()}

        types = []
        for t in state["types"]:
            calibration = t["calibration"]
            map_ = None if calibration is None else Calibration(**on_device(calibration))
            own = {name: value for name, value in t.items() if name != "calibration"}
            types.append(TypeModel(**on_device(own), calibration=map_))
        return cls(generator, state["constant"].to(device), types)


def _portions(n_rows: int) -> list[int]:
    """Split a number of rows into portions that fit into memory."""
    whole, rest = divmod(n_rows, ROWS_AT_ONCE)
    return [ROWS_AT_ONCE] * whole + [rest] * (rest > 0)
