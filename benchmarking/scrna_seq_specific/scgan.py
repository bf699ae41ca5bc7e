"""Baseline: cscGAN, the conditional scGAN of Marouf et al. 2020 (Nature Communications 11:166).

Run:    python benchmarking/scrna_seq_specific/scgan.py --dataset pbmc68k --holdout 0.5 --seed 0
Reads:  a data set of config.py, or your own cells (--input, --expression-csv)
Writes: results/synthetic/<dataset>/scgan/seed<k>/: cells.h5ad, cells.csv, losses.csv, heldout.csv, model.pt, run.json

A Wasserstein GAN with gradient penalty whose generator ends in a layer that brings every cell to a given library size.
Types reach the generator by batch normalisation with scale and shift of the type, the critic by projection. Differs
from the paper:
1. The critic sees logarithms of size-normalised values, which spread its attention over the genes.
2. Cells get library sizes of training cells of their type, in place of one size for all. Scaled values, which have no
   library size, go without the layer.
3. The projection is that of Miyato & Koyama 2018, a verdict on the cell and one on its type, in place of a head a type.
4. `tuned`: narrower networks with higher, constant learning rates, cells drawn from a moving average of the weights,
   and counts rounded before the critic, which sees them as they are handed out.
5. `paper`: the widths, rates and 200 generator steps of the published comparison, whose code lacked both the layer and
   the types.
"""

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from anndata import AnnData
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarking.baseline import TrainingCells, prepare, reproducible, script, train
from benchmarking.scrna_seq_specific.conditional import LABELS, Conditional, as_given, as_seen, like, sample
from common.cli import Reporter, silent
from common.networks import mlp
from config import ScganParams
from data_generation.model import Device

__all__ = ["LABELS", "fit", "main", "sample"]

BETAS = (0.5, 0.9)  # of Adam, as in the paper
MIN_TOTAL = 1e-8  # below which a cell is one of zeros


class TypeBatchNorm(nn.Module):
    """Batch normalisation with scale and shift of the cell's type. Shapes: (n_rows, width), codes (n_rows,)."""

    def __init__(self, width: int, n_types: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.scale = nn.Embedding.from_pretrained(torch.ones(n_types, width), freeze=False)
        self.shift = nn.Embedding.from_pretrained(torch.zeros(n_types, width), freeze=False)

    def forward(self, h: Tensor, types: Tensor) -> Tensor:
        """Normalise over the batch."""
        return self.norm(h) * self.scale(types) + self.shift(types)


def to_library_size(x: Tensor, size: Tensor) -> Tensor:
    """Scale non-negative cells (n_rows, n_genes) to library sizes (n_rows, 1); a cell of zeros stays one."""
    return x * (size / x.sum(1, keepdim=True).clamp_min(MIN_TOTAL))


class Generator(nn.Module):
    """Noise (n_rows, latent_dim), types (n_rows,) and library sizes (n_rows, 1), if any, to cells (n_rows, n_genes)."""

    def __init__(self, n_genes: int, n_types: int, params: ScganParams) -> None:
        super().__init__()
        widths = (params.latent_dim, *params.generator_hidden)
        self.hidden = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(TypeBatchNorm(width, n_types) for width in widths[1:])
        self.out = nn.Linear(widths[-1], n_genes)

    def forward(self, z: Tensor, types: Tensor, size: Tensor | None) -> Tensor:
        """Generate cells."""
        for linear, norm in zip(self.hidden, self.norms, strict=True):
            z = F.relu(norm(linear(z), types))
        return self.out(z) if size is None else to_library_size(F.relu(self.out(z)), size)


class Critic(nn.Module):
    """Cells (n_rows, n_genes) on the log scale and types (n_rows,) to verdicts (n_rows,), high for real cells."""

    def __init__(self, n_genes: int, n_types: int, params: ScganParams) -> None:
        super().__init__()
        *hidden, last = params.critic_hidden
        self.body = nn.Sequential(mlp(n_genes, hidden, last, norm=False, activation=nn.ReLU), nn.ReLU())
        self.verdict = nn.Linear(last, 1)
        self.types = nn.Embedding.from_pretrained(torch.zeros(n_types, last), freeze=False)

    def forward(self, x: Tensor, types: Tensor) -> Tensor:
        """Judge cells."""
        h = self.body(x)
        return self.verdict(h).squeeze(1) + (h * self.types(types)).sum(1)


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, types: Tensor) -> Tensor:
    """Return the mean squared deviation from 1 of the critic's slope, at random points between real and fake cells."""
    x = real.lerp(fake, torch.rand(len(real), 1, device=real.device)).requires_grad_(True)
    (slope,) = torch.autograd.grad(critic(x, types).sum(), x, create_graph=True)
    return (slope.norm(dim=1) - 1).square().mean()


def fit(
    cells: AnnData, params: ScganParams, *, seed: int, device: Device = "auto", report: Reporter = silent
) -> Conditional:
    """Learn from real cells; the contract of `data_generation.model.fit`."""
    with reproducible(seed):
        return _learn(prepare(cells, params, seed=seed, device=device), params, report)


def _learn(data: TrainingCells, params: ScganParams, report: Reporter) -> Conditional:
    values, scale, on = data.values, data.values.frame.scale, data.X.device
    sizes = torch.from_numpy(values.sizes if scale == "counts" else np.expm1(values.X).sum(1)).to(data.X)[:, None]
    n_genes, n_types = data.X.shape[1], len(values.frame.type_sizes)
    generator, critic = Generator(n_genes, n_types, params).to(on), Critic(n_genes, n_types, params).to(on)
    average = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(params.ema_decay), use_buffers=True)
    of_generator, of_critic = (
        torch.optim.Adam(network.parameters(), lr, betas=BETAS, amsgrad=True)
        for network, lr in ((generator, params.generator_lr), (critic, params.critic_lr))
    )
    taken = 0

    def generate(network: nn.Module, types: Tensor, rows: np.ndarray, *, whole: bool) -> Tensor:
        z = torch.randn(len(rows), params.latent_dim, device=on)
        x: Tensor = network(z, types, None if scale == "scaled" else sizes[rows])
        if whole and scale == "counts":
            x = x + ((x + torch.rand_like(x)).floor() - x).detach()  # rounding passes the gradient on
        return x

    def step(batch: Tensor) -> dict[str, Tensor]:
        nonlocal taken
        types, real, rows = data.types[batch], data.X[batch], data.rows[batch.cpu()]
        with torch.no_grad():
            fake = as_seen(generate(generator, types, rows, whole=params.whole_counts), values)
        distance = critic(real, types).mean() - critic(fake, types).mean()
        penalty = gradient_penalty(critic, real, fake, types)
        of_critic.zero_grad()
        (params.penalty * penalty - distance).backward()
        of_critic.step()
        losses = {"distance": distance, "penalty": penalty}
        taken += 1
        if taken % params.critic_steps == 0:
            critic.requires_grad_(False)
            fake = as_seen(generate(generator, types, rows, whole=params.whole_counts), values)
            losses["generator"] = -critic(fake, types).mean()
            critic.requires_grad_(True)
            of_generator.zero_grad()
            losses["generator"].backward()
            of_generator.step()
            average.update_parameters(generator)
        return losses

    def draw_like_training(n: int) -> Tensor:
        some = torch.randint(len(data.X), (n,), device=on)
        return as_seen(generate(average, data.types[some], data.rows[some.cpu()], whole=True), values)

    def draw(codes: Tensor, rng: np.random.Generator) -> np.ndarray:
        return as_given(generate(average, codes.to(on), like(values, codes, rng), whole=True), values)

    networks = {"generator": average, "critic": critic}
    losses = train(step, draw_like_training, networks, data, params, report=report)
    return Conditional(values, draw, networks, losses)


main = script("scgan", __doc__, fit, sample, LABELS)

if __name__ == "__main__":
    main()
