"""Baseline: scVAE of Grønbech et al. 2020 (Bioinformatics 36:4415), with its Gaussian-mixture prior.

Run:    python benchmarking/scrna_seq_specific/scvae.py --dataset pbmc68k --holdout 0.5 --seed 0
Reads:  a data set of config.py, or your own cells (--input, --expression-csv)
Writes: results/synthetic/<dataset>/scvae/seed<k>/: cells.h5ad, cells.csv, losses.csv, heldout.csv, model.pt, run.json

A variational autoencoder of counts: negative binomial or zero-inflated negative binomial, the decoder says all of its
parameters, cell by cell and gene by gene. The prior of the latent variables is a mixture of Gaussians (GMVAE), the
paper's variant for cells of several types.
How it differs from the paper: docs/baselines.md.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarking.baseline import script
from benchmarking.controls.contract import Frame
from benchmarking.scrna_seq_specific.conditional import LABELS, Conditional, as_counts, as_seen, draw_sized, sample
from benchmarking.scrna_seq_specific.likelihoods import nb_log_likelihood, normal_kl, zinb_log_likelihood
from benchmarking.training import TrainingCells, fit_by, train
from common.cli import Reporter
from common.networks import mlp
from config import ScvaeParams

__all__ = ["LABELS", "fit", "main", "sample"]  # two of them from conditional.py

MIN_SHARE = 1e-30  # of a gene nobody expresses: none of it is ever drawn
MOST_LOG = 12.0  # bounds log dispersions on either side


class Scvae(nn.Module):
    """Shapes: counts x (n_rows, n_genes), what the encoder sees of them `seen`, types (n_rows,), size (n_rows, 1)."""

    def __init__(self, start: Tensor, n_types: int, likelihood: str, params: ScvaeParams) -> None:
        super().__init__()
        self.likelihood, n_genes = likelihood, len(start)
        self.start: Tensor
        self.register_buffer("start", start)  # each gene's mean: log share of the library size, or normal value
        outputs = {"nb": 2, "zinb": 3, "normal": 2}[likelihood]
        self.encoder = mlp(n_genes + n_types, params.hidden, 2 * params.latent_dim, activation=nn.ReLU)
        self.decoder = mlp(params.latent_dim, params.hidden[::-1], outputs * n_genes, activation=nn.ReLU)
        for parameter in self.decoder[-1].parameters():
            nn.init.normal_(parameter, std=0.01)
        self.prior = nn.Embedding(n_types, 2 * params.latent_dim)
        nn.init.zeros_(self.prior.weight[:, params.latent_dim :].data)

    def elbo(self, x: Tensor, seen: Tensor, types: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-likelihood and the Kullback-Leibler term, means over cells."""
        one_hot = F.one_hot(types, self.prior.num_embeddings).to(seen)
        mean, log_variance = self.encoder(torch.cat([seen, one_hot], dim=1)).chunk(2, dim=1)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        first, *others = self._decode(z, size)
        if self.likelihood == "normal":
            found = torch.distributions.Normal(first, others[0].exp()).log_prob(x)
        else:
            found = (nb_log_likelihood if self.likelihood == "nb" else zinb_log_likelihood)(x, first, *others)
        return found.sum(1).mean(), normal_kl(mean, log_variance, *self.prior(types).chunk(2, dim=1)).mean()

    def _decode(self, z: Tensor, size: Tensor) -> list[Tensor]:
        """Return log mean, log dispersion and dropout's logit; of normal values mean and log deviation."""
        first, spread, *dropout = self.decoder(z).unflatten(1, (-1, len(self.start))).unbind(1)
        first = first + self.start
        if self.likelihood != "normal":
            first = torch.log_softmax(first, dim=1) + size.log()
        return [first, spread.clamp(-MOST_LOG, MOST_LOG), *dropout]

    def draw(self, types: Tensor, size: Tensor) -> Tensor:
        """Draw cells from the prior of their types."""
        mean, log_variance = self.prior(types).chunk(2, dim=1)
        first, spread, *dropout = self._decode(mean + (0.5 * log_variance).exp() * torch.randn_like(mean), size)
        if self.likelihood == "normal":
            return torch.normal(first, spread.exp())
        theta = spread.exp()
        x = torch.poisson(torch._standard_gamma(theta) * (first.exp() / theta))
        return x * (torch.rand_like(x) >= dropout[0].sigmoid()) if dropout else x


def make(frame: Frame, params: ScvaeParams) -> Scvae:
    """Return what draws cells, untrained."""
    likelihood = "normal" if frame.scale == "scaled" else params.likelihood
    return Scvae(torch.zeros(len(frame.genes)), len(frame.type_sizes), likelihood, params)


draw = draw_sized


def learn(data: TrainingCells, params: ScvaeParams, *, report: Reporter) -> Conditional:
    """Train on prepared cells, by PyTorch's own random numbers."""
    values, scale, on = data.values, data.values.frame.scale, data.X.device
    observed = values.X if scale == "scaled" else as_counts(values)
    start = observed.mean(0) if scale == "scaled" else np.log(observed.mean(0) / observed.sum(1).mean() + MIN_SHARE)
    x = torch.from_numpy(observed).to(on)
    size = torch.from_numpy(values.sizes).to(x)[:, None].clamp_min(1)
    vae = make(values.frame, params).to(on)
    vae.start.copy_(torch.from_numpy(start))
    optimizer = torch.optim.Adam(vae.parameters(), params.lr)
    taken = 0

    def step(batch: Tensor) -> dict[str, Tensor]:
        nonlocal taken
        rows = data.rows[batch.cpu()]
        log_likelihood, kl = vae.elbo(x[rows], data.X[batch], data.types[batch], size[rows])
        taken += 1
        weight = params.kl_weight * min(1.0, taken / (params.warmup + 1))
        optimizer.zero_grad()
        (weight * kl - log_likelihood).backward()
        optimizer.step()
        return {"nll": -log_likelihood, "kl": kl}

    def draw_like_training(n: int) -> Tensor:
        some = torch.randint(len(data.X), (n,), device=on)
        return as_seen(vae.draw(data.types[some], size[data.rows[some.cpu()]]), values)

    losses = train(step, draw_like_training, {"vae": vae}, data, params, report=report)
    return Conditional(values.memory, vae, draw, losses)


fit = fit_by(learn)
main = script("scvae", __doc__, fit, sample, LABELS)

if __name__ == "__main__":
    main()
