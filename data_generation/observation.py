"""How a cell is measured: one observation model a scale, so that the noise of the measurement need not be learnt.

An observation model turns what the decoder says of a cell, (B, outputs * G), into a distribution over its values. Each
has `log_likelihood(x, decoded, types, size)`, shape (B,), and `draw(decoded, types, size, rng, genes)`, shape (B, G) or
as wide as the genes asked for. Draws pass the critic's gradient on to the mean (straight-through): the dispersions are
learnt from the likelihood, and the marginals are calibrated afterwards.

Shapes throughout: n_rows cells (B), n_genes (G), n_types (T); `size` is the log library size of counts, 0 for other
scales, shape (B, 1).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Genes = Tensor | slice
"""which genes: their numbers, or a slice of all"""

MIN_SHAPE = 1e-4  # keeps dispersions off zero
ALL_GENES = slice(None)


def _straight_through(drawn: Tensor, mean: Tensor) -> Tensor:
    return mean + (drawn - mean).detach()


class NegativeBinomial(nn.Module):
    """Counts: x ~ NB(library size * share, dispersion of the gene), as in scVI (Lopez et al. 2018).

    The shares start from the type's own mean profile: softmax(decoded + log profile).
    """

    outputs = 1

    def __init__(self, log_profile: Tensor) -> None:
        super().__init__()
        self.n_types, self.n_genes = log_profile.shape
        self.log_profile: Tensor
        self.register_buffer("log_profile", log_profile)  # (T, G)
        self.log_dispersion = nn.Parameter(torch.zeros_like(log_profile[0]))

    @property
    def dispersion(self) -> Tensor:
        """Inverse overdispersion theta of each gene: variance = mean + mean^2 / theta."""
        return self.log_dispersion.exp() + MIN_SHAPE

    def _log_mean(self, decoded: Tensor, types: Tensor, size: Tensor) -> Tensor:
        return torch.log_softmax(decoded + self.log_profile[types], dim=1) + size

    def log_likelihood(self, x: Tensor, decoded: Tensor, types: Tensor, size: Tensor) -> Tensor:
        """Return the log-likelihood of counts x, up to log x!."""
        log_mean, theta = self._log_mean(decoded, types, size), self.dispersion
        log_theta = theta.log()
        log_total = torch.logaddexp(log_mean, log_theta)
        per_gene = theta * (log_theta - log_total) + x * (log_mean - log_total)
        if x.is_cuda:  # which has time for every gene, but none to tell the host where counts are
            return (per_gene + torch.lgamma(x + theta) - torch.lgamma(theta)).sum(1)
        # most counts are zero, where the gamma functions cancel
        row, gene = (x > 0).nonzero(as_tuple=True)  # of bools: three times as fast
        gammas = torch.lgamma(x[row, gene] + theta.index_select(0, gene)) - torch.lgamma(theta).index_select(0, gene)
        return per_gene.sum(1).index_add(0, row, gammas)

    def draw(
        self, decoded: Tensor, types: Tensor, size: Tensor, rng: torch.Generator, genes: Genes = ALL_GENES
    ) -> Tensor:
        """Draw whole counts."""
        mean = self._log_mean(decoded, types, size)[:, genes].exp()
        with torch.no_grad():
            theta = self.dispersion[genes].expand_as(mean)
            rate = torch._standard_gamma(theta.contiguous(), generator=rng) * (mean / theta)
            drawn = torch.poisson(rate, generator=rng)
        return _straight_through(drawn, mean)


class HurdleGamma(nn.Module):
    """Non-negative values with exact zeros: detected or not (Bernoulli), and if so how much (Gamma).

    Both parts start from the type's own frequencies and levels; the Gamma's shape belongs to the gene.
    """

    outputs = 2

    def __init__(self, detection_logit: Tensor, log_level: Tensor) -> None:
        super().__init__()
        self.n_types, self.n_genes = detection_logit.shape
        self.detection_logit: Tensor
        self.log_level: Tensor
        self.register_buffer("detection_logit", detection_logit)  # (T, G)
        self.register_buffer("log_level", log_level)  # (T, G), log of the mean of the values above zero
        self.raw_shape = nn.Parameter(torch.full_like(log_level[0], 3.0))

    @property
    def shape(self) -> Tensor:
        """Shape of each gene's Gamma: 1 / squared coefficient of variation of the values above zero."""
        return F.softplus(self.raw_shape) + MIN_SHAPE

    def _parts(self, decoded: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        detection, level = decoded.chunk(2, dim=1)
        return detection + self.detection_logit[types], level + self.log_level[types]

    def log_likelihood(self, x: Tensor, decoded: Tensor, types: Tensor, size: Tensor) -> Tensor:
        """Return the log-likelihood of non-negative x."""
        detection, log_mean = self._parts(decoded, types)
        k = self.shape
        some = x > 0
        log_x = torch.where(some, x, torch.ones_like(x)).log()
        gamma = k * (k.log() - log_mean) - torch.lgamma(k) + (k - 1) * log_x - k * x * (-log_mean).exp()
        return torch.where(some, F.logsigmoid(detection) + gamma, F.logsigmoid(-detection)).sum(1)

    def draw(
        self, decoded: Tensor, types: Tensor, size: Tensor, rng: torch.Generator, genes: Genes = ALL_GENES
    ) -> Tensor:
        """Draw non-negative values, zeros exact."""
        detection, log_mean = (part[:, genes] for part in self._parts(decoded, types))
        detected, level = detection.sigmoid(), log_mean.exp()
        with torch.no_grad():
            k = self.shape[genes].expand_as(level)
            amount = torch._standard_gamma(k.contiguous(), generator=rng) * (level / k)
            drawn = amount * (torch.rand(level.shape, generator=rng, device=level.device) < detected)
        return _straight_through(drawn, detected * level)


class Gaussian(nn.Module):
    """Scaled values, negative ones among them: a normal distribution around the type's mean, one variance a gene."""

    outputs = 1

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.n_types, self.n_genes = mean.shape
        self.mean: Tensor
        self.register_buffer("mean", mean)  # (T, G)
        self.log_sd = nn.Parameter(torch.zeros_like(mean[0]))

    def log_likelihood(self, x: Tensor, decoded: Tensor, types: Tensor, size: Tensor) -> Tensor:
        """Return the log-likelihood of x, up to a constant."""
        z = (x - decoded - self.mean[types]) * (-self.log_sd).exp()
        return -(0.5 * z.square() + self.log_sd).sum(1)

    def draw(
        self, decoded: Tensor, types: Tensor, size: Tensor, rng: torch.Generator, genes: Genes = ALL_GENES
    ) -> Tensor:
        """Draw values of either sign."""
        mean = (decoded + self.mean[types])[:, genes]
        noise = torch.randn(mean.shape, generator=rng, device=mean.device)
        return _straight_through(mean + self.log_sd[genes].exp() * noise, mean)
