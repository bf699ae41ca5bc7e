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
from data_generation.seeded_gan import Generator, Training, TrainingCells, reparameterise

ROWS_AT_ONCE = 1000  # cells generated at a time, which bounds memory
RANKED_VALUES = 2**25  # of a type's cells that its marginals are learnt from: all, unless they are more, 128 MB
LEAST_RANKED = 1000  # cells of a type, however many genes
MATCHED_CELLS = 1000  # drawn of all types together to know how the number of detected genes scatters, and of each at
LEAST_MATCHED = 20  # least so many

Portion = tuple[sp.csr_matrix, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class TypeModel:
    """What is known of one type besides the network. It holds no cell: a seed is kept as its neighbourhood.

    Shapes: latent_mean (L,), latent_factor (L, L), sizes (n_levels,), seed_mean and seed_log_variance (n_seeds, L).
    """

    latent_mean: Tensor
    latent_factor: Tensor
    """z = latent_mean + latent_factor @ noise: the first two moments of the type's posteriors, spread out"""
    sizes: Tensor
    """quantiles of the log library size"""
    seed_mean: Tensor
    seed_log_variance: Tensor
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


@dataclass
class SeededGan:
    """A trained generator, ready to draw. Shapes: cells (n_rows, n_genes), on the scale on which it was trained."""

    generator: Generator
    leakage: float
    """share of seed rows"""
    constant: Tensor
    """the value of genes that are the same in every training cell, nan for all others, shape (n_genes,)"""
    types: list[TypeModel]

    @classmethod
    @torch.no_grad()
    def of(cls, training: Training) -> "SeededGan":
        """Sum up a finished training type by type, and calibrate."""
        cells, params, generator, rng = training.cells, training.params, training.generator, training.rng
        prior, seeds = params.calibration_prior, training.seed_rows.seeds
        ranking, posteriors, extremes = generator.ranking, [], []
        for index, x in cells.blocks():
            posteriors.append(torch.cat(generator.encode(x, cells.types[index], cells.size[index]), dim=1))
            extremes.append(torch.stack([*x.aminmax(dim=0), ranking.highest(x).amax(0)]))
        mean, log_variance = torch.cat(posteriors).chunk(2, dim=1)
        seed_mean, seed_log_variance = training.seed_rows.pool(mean, log_variance)
        lowest, highest, ceiling = torch.stack(extremes).unbind(1)
        lowest, highest, ceiling = lowest.amin(0), highest.amax(0), ceiling.amax(0)
        constant = torch.where(lowest == highest, lowest, torch.nan)
        model = cls(generator, params.leakage if len(seeds) else 0.0, constant, [])
        for t in range(training.n_types):
            own, of_type = cells.types == t, cells.types[seeds] == t
            center, factor = _latent_moments(mean[own], log_variance[own], prior)
            factor = params.latent_spread * factor
            sizes = size_quantiles(cells.size.squeeze(1), cells.types, t, prior)
            model.types.append(TypeModel(center, factor, sizes, seed_mean[of_type], seed_log_variance[of_type]))
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
        n_seeds = len(of_type.seed_mean)
        from_seed = torch.rand(n_rows, generator=rng, device=device) < (self.leakage if n_seeds else 0.0)
        if n_seeds:
            row = torch.randint(n_seeds, (n_rows,), generator=rng, device=device)
            of_seed = torch.randn(noise.shape, generator=rng, device=device)
            posterior = reparameterise(of_type.seed_mean[row], of_type.seed_log_variance[row], of_seed)
            z = torch.where(from_seed[:, None], posterior, z)
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
            "weights": g.state_dict(), "leakage": self.leakage, "constant": self.constant, "types": types,
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
        return cls(generator, state["leakage"], state["constant"].to(device), types)


def _portions(n_rows: int) -> list[int]:
    """Split a number of rows into portions that fit into memory."""
    whole, rest = divmod(n_rows, ROWS_AT_ONCE)
    return [ROWS_AT_ONCE] * whole + [rest] * (rest > 0)
