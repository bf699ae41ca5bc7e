"""Marginal calibration: a network is good at dependence between genes, the cells themselves know the marginals.

Each generated value is replaced by the value of the same rank in a target distribution, gene by gene and type by type.
The target is the posterior mean of a Dirichlet process (Ferguson 1973) whose base measure is the network's own
marginal: training cells count one each, the network as many as `prior`. A type with thousands of cells gets its
empirical marginal, one with three cells mostly what the network learnt from all types. Ranks are taken against stored
quantiles of the network, so a cell can be drawn alone; quantiles are interpolated, so values are not merely permuted.

The atom at the floor (zero, or a scaled gene's lowest value) is kept apart: its probability is calibrated exactly.

Capture efficiency is calibrated, too: it varies between cells, so that some have more genes detected than others, and a
network trained on few cells underestimates how much. The normal scores of a cell's ranks get a shared component, just
large enough for the number of detected genes to vary within types as it does in the training cells (`match_detection`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.scale import Scale
from config import CalibrateOn

READ_COUNTS = 10.0  # median of the counts above zero beyond which they are reads of full-length protocols, not UMIs
N_LEVELS = 33
MOST_IN_COMMON = 2.0  # standard deviations
HALVINGS = 12  # of the interval in which it is looked for
SORTED_AT_ONCE = 2**22  # values, which bounds the memory of sorting: 16 MB a copy


def quantile_levels(n_levels: int = N_LEVELS) -> Tensor:
    """Return levels from 0 to 1, denser towards the tails (Chebyshev spacing), shape (n_levels,)."""
    return (1 - torch.cos(torch.pi * torch.linspace(0, 1, n_levels))) / 2


def weighted_quantiles(values: Tensor, weights: Tensor, levels: Tensor) -> Tensor:
    """Compute quantiles of each column, linear between the mid-ranks of the sorted values.

    Parameters
    ----------
    values, weights
        Shape (n_columns, n_values); weights are not negative and at least one a row is positive.
    levels
        Shape (n_levels,), in [0, 1].

    Returns
    -------
    Shape (n_columns, n_levels).
    """
    # values of weight zero are no knots: sorted to the front, at rank 0, they take the lowest value that counts
    ordered, order = values.where(weights > 0, -torch.inf).sort(dim=1)
    ordered = ordered.maximum(values.where(weights > 0, torch.inf).amin(1, keepdim=True))
    weights = weights.gather(1, order)
    rank = (weights.cumsum(1) - weights / 2) / weights.sum(1, keepdim=True)
    return interpolate(levels.expand(len(values), -1).contiguous(), rank, ordered)


def interpolate(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Evaluate piecewise linear functions, constant beyond their ends.

    Parameters
    ----------
    at
        Shape (n_functions, n_points).
    x, y
        Knots of shape (n_functions, n_knots), x not decreasing; a single knot makes a constant.
    """
    if x.shape[1] == 1:
        return y.expand(at.shape)
    right = torch.searchsorted(x.contiguous(), at.contiguous()).clamp(1, x.shape[1] - 1)
    x0, x1 = x.gather(1, right - 1), x.gather(1, right)
    y0, y1 = y.gather(1, right - 1), y.gather(1, right)
    share = ((at - x0) / (x1 - x0).clamp_min(1e-12)).clamp(0, 1)
    return y0 + share * (y1 - y0)


def log_normalise(counts: Tensor, target_sum: float) -> Tensor:
    """Scale counts (B, G) to a common library size and take log1p."""
    return torch.log1p(counts * (target_sum / counts.sum(1, keepdim=True).clamp_min(1.0)))


@dataclass(frozen=True)
class Ranking:
    """Which values are ranked, and the way back from them. Shapes: cells (B, G), log library size (B, 1)."""

    scale: Scale
    counts: bool
    """counts are ranked as they are; otherwise log-normalised"""
    target_sum: float
    """library size to which counts are normalised; 1 for other scales"""

    @classmethod
    def of(
        cls, blocks: Iterable[Tensor], scale: Scale, target_sum: float, calibrate_on: CalibrateOn
    ) -> "Ranking":  # fmt: skip
        """Decide it for training cells, in blocks: UMI counts are ranked as they are, all else normalised."""
        counts = scale == "counts" and calibrate_on != "normalised"
        if counts and calibrate_on == "auto":
            low, some = torch.tensor([[((x > 0) & (x <= READ_COUNTS)).sum(), (x > 0).sum()] for x in blocks]).sum(0)
            counts = bool(2 * low >= some)
        return cls(scale, counts, target_sum)

    def normalise(self, x: Tensor) -> Tensor:
        """Return log-normalised values. Those of other scales than counts stay as they are."""
        return log_normalise(x, self.target_sum) if self.scale == "counts" else x

    def to_rank(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return the values that calibration ranks: the log of counts, spread over their unit; or those of `normalise`.

        UMI counts are few and their ties many: adding U(0, 1) makes ranks unique and `from_rank` exact. Read counts are
        so large that their library size, not the lattice, matters.
        """
        if not self.counts:
            return self.normalise(x)
        return self._spread(x, torch.rand(x.shape, generator=rng, device=x.device))

    def highest(self, x: Tensor) -> Tensor:
        """Return what no value of `to_rank` exceeds."""
        return self._spread(x, torch.ones_like(x)) if self.counts else self.normalise(x)

    @staticmethod
    def _spread(x: Tensor, by: Tensor) -> Tensor:
        return torch.where(x > 0, x + by, 0.0).log1p()

    def from_rank(self, v: Tensor, size: Tensor) -> Tensor:
        """Undo `to_rank` for cells of log library size `size`; what is above zero stays above."""
        if self.scale != "counts":
            return v
        x = v.expm1().floor() if self.counts else (v.expm1() * (size.exp() / self.target_sum)).round()
        return torch.where(v > 0, x.clamp_min(1.0), 0.0)


def normal_score(rank: Tensor) -> Tensor:
    """Return the normal quantile of ranks in [0, 1], finite at the ends."""
    return torch.special.ndtri(rank.clamp(1e-6, 1 - 1e-6))


def add_common(scores: Tensor, common: Tensor, amount: Tensor | float) -> Tensor:
    """Give normal scores (n_genes, n_cells) so much in common by cell, normal and (n_cells,); they stay normal."""
    return (scores + amount * common) / (1 + amount**2) ** 0.5


@dataclass(frozen=True)
class Calibration:
    """The map of one type. Shapes: floor and atoms (n_genes,), quantiles above the floor (n_genes, n_levels)."""

    floor: Tensor
    atom_from: Tensor
    atom_to: Tensor
    quantiles_from: Tensor
    quantiles_to: Tensor
    in_common: Tensor
    """of normal scores of a cell's ranks, in standard deviations of what is a gene's own: a number"""

    @classmethod
    def fit(cls, real: Tensor, generated: Tensor, floor: Tensor, ceiling: Tensor, *, prior: float) -> "Calibration":
        """Learn the map from a reference sample of the network to the cells of one type.

        Parameters
        ----------
        real, generated
            Shape (n_cells, n_genes) each, on the log-normalised or scaled values.
        floor, ceiling
            Lowest and highest value of each gene in all types, shape (n_genes,). What the network generates beyond the
            ceiling is left out of the target: the tail of a fitted distribution may reach where no cell does.
        prior
            Cells' worth of trust in the network's own marginals.
        """
        levels = quantile_levels().to(real.device)
        weights = torch.ones(len(real) + len(generated), 1, device=real.device)
        weights[len(real) :] = prior / len(generated)

        def describe(samples: Sequence[Tensor], weights: Tensor, ceiling: Tensor) -> tuple[Tensor, Tensor]:
            atoms, quantiles = [], []
            for genes in torch.arange(len(floor), device=floor.device).split(max(1, SORTED_AT_ONCE // len(weights))):
                values = torch.cat([sample[:, genes] for sample in samples])
                weight = weights * (values <= ceiling[genes])
                is_above = values > floor[genes]
                atoms.append((~is_above * weight).sum(0) / weight.sum(0))  # not 1 - the rest: none must be exactly 0
                above = is_above * weight
                above[:, above.sum(0) == 0] = 1.0  # never above the floor: any quantile does, none is used
                quantiles.append(weighted_quantiles(values.T, above.T, levels))
            return torch.cat(atoms), torch.cat(quantiles)

        everything = torch.full_like(ceiling, torch.inf)
        atom_from, quantiles_from = describe([generated], torch.ones_like(generated[:, :1]), everything)
        atom_to, quantiles_to = describe([real, generated], weights, ceiling)
        return cls(floor, atom_from, atom_to, quantiles_from, quantiles_to, torch.zeros((), device=floor.device))

    def ranks(self, values: Tensor, rng: torch.Generator) -> Tensor:
        """Return the ranks in [0, 1] of generated cells (n_cells, n_genes) among the network's, transposed.

        Within the atom they are random.
        """
        levels = quantile_levels().to(values.device).expand(len(self.floor), -1)
        v, atom = values.T, self.atom_from[:, None]
        within = interpolate(v, self.quantiles_from, levels)
        chance = torch.rand(v.shape, generator=rng, device=v.device)
        return torch.where(v > self.floor[:, None], atom + (1 - atom) * within, atom * chance)

    def apply(self, values: Tensor, rng: torch.Generator) -> Tensor:
        """Carry generated values over to the target.

        Cells drawn together are spread evenly over the target: of n cells each gene has one rank in each n-th of
        [0, 1], moved there by as little as it takes. A cell drawn alone keeps its ranks.

        Parameters
        ----------
        values
            Shape (n_cells, n_genes), cells of this type, drawn together.
        """
        levels = quantile_levels().to(values.device).expand(len(self.floor), -1)
        floor, atom_to = self.floor[:, None], self.atom_to[:, None]
        rank = self.ranks(values, rng)
        if self.in_common > 0:
            common = torch.randn(len(values), generator=rng, device=values.device)
            rank = torch.special.ndtr(add_common(normal_score(rank), common, self.in_common))
        order = rank.argsort(dim=1, stable=True)
        places = torch.arange(len(values), device=values.device).expand_as(order)
        stratum = torch.empty_like(order).scatter_(1, order, places)
        rank = rank.clamp(stratum / len(values), (stratum + 1) / len(values))
        above = ((rank - atom_to) / (1 - atom_to).clamp_min(1e-12)).clamp(0, 1)
        return torch.where(rank < atom_to, floor, interpolate(above, levels, self.quantiles_to)).T


def match_detection(
    calibrations: Sequence[Calibration], ranks: Sequence[Tensor], detected: Sequence[Tensor], rng: torch.Generator
) -> list[Calibration]:
    """Give the genes of a cell as much in common as the number of detected genes needs to scatter as in real cells.

    Parameters
    ----------
    calibrations
        Of each type.
    ranks
        Of generated cells of each type, shape (n_genes, n_generated): `Calibration.ranks`.
    detected
        Number of genes above their floor of each real cell of each type, shape (n_cells,). Their variance within types
        is what is wanted, types weighing as in it.

    Returns
    -------
    The same with `in_common`, 0 if the number scatters enough as it is.
    """
    squares = sum(float((number - number.mean()).square().sum()) for number in detected)
    freedom = [len(number) - 1 for number in detected]
    wanted = squares / max(1, sum(freedom))
    common = [torch.randn(r.shape[1], generator=rng, device=r.device) for r in ranks]
    scores = [normal_score(r) for r in ranks]
    bounds = [normal_score(calibration.atom_to)[:, None] for calibration in calibrations]
    weights = [n * (r.shape[1] > 1) for n, r in zip(freedom, ranks, strict=True)]  # one cell does not scatter

    def scatter(amount: float) -> float:
        found = [
            float((add_common(s, u, amount) >= bound).sum(0).float().var()) * weight
            for s, u, bound, weight in zip(scores, common, bounds, weights, strict=True)
            if weight
        ]
        return sum(found) / sum(weights)

    low, high = 0.0, MOST_IN_COMMON
    if any(weights) and scatter(low) < wanted:
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if scatter(middle) < wanted else (low, middle)
    return [replace(c, in_common=torch.full_like(c.in_common, low)) for c in calibrations]
