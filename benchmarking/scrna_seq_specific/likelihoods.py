"""Log-likelihoods of counts, and the divergence of Gaussians."""

import torch
import torch.nn.functional as F
from torch import Tensor


def nb_log_likelihood(x: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
    """Log-likelihood of counts: variance mean + mean^2 / theta. Shapes broadcast to that of x."""
    theta, log_total = log_theta.exp(), torch.logaddexp(log_mean, log_theta)
    gammas = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return gammas + theta * (log_theta - log_total) + x * (log_mean - log_total)


def zinb_log_likelihood(x: Tensor, log_mean: Tensor, log_theta: Tensor, dropout_logit: Tensor) -> Tensor:
    """Log-likelihood of counts that are zero with a probability, negative binomial otherwise."""
    kept = F.logsigmoid(-dropout_logit) + nb_log_likelihood(x, log_mean, log_theta)
    return torch.where(x > 0, kept, torch.logaddexp(F.logsigmoid(dropout_logit), kept))


def normal_kl(mean: Tensor, log_variance: Tensor, prior_mean: Tensor, prior_log_variance: Tensor) -> Tensor:
    """Divergence of one diagonal Gaussian from another, (n_rows, latent_dim) -> (n_rows,)."""
    apart = (log_variance.exp() + (mean - prior_mean).square()) / prior_log_variance.exp()
    return 0.5 * (apart - 1 + prior_log_variance - log_variance).sum(1)
