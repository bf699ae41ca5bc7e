"""Baseline: scDiffusion of Luo et al. 2024 (Bioinformatics 40:btae518), diffusion in a latent space guided by type.

Run:    python benchmarking/scrna_seq_specific/scdiffusion.py --dataset pbmc68k --holdout 0.5 --seed 0
Reads:  a data set of config.py, or your own cells (--input, --expression-csv)
Writes: results/synthetic/<dataset>/scdiffusion/seed<k>/: cells.h5ad, cells.csv, losses.csv, heldout.csv, model.pt,
        run.json

An autoencoder brings log-normalised cells to a latent space; there a residual perceptron learns to take noise away (Ho
et al. 2020), and a classifier of noisy latent cells guides it to the type that is asked for (Dhariwal & Nichol 2021).
How it differs from the paper: docs/baselines.md.
"""

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarking.baseline import script
from benchmarking.scrna_seq_specific.conditional import LABELS, Conditional, sample
from benchmarking.scrna_seq_specific.diffusion import Diffusion
from benchmarking.training import TrainingCells, fit_by, train
from common.cli import Reporter
from common.networks import mlp
from config import ScdiffusionParams

__all__ = ["LABELS", "fit", "main", "sample"]  # two of them from conditional.py

MIN_DEVIATION = 1e-3  # of a latent variable that hardly varies


def _learn_autoencoder(data: TrainingCells, params: ScdiffusionParams, report: Reporter) -> tuple[nn.Module, nn.Module]:
    n_genes, on = data.X.shape[1], data.X.device
    encoder = mlp(n_genes, params.autoencoder_hidden, params.latent_dim, activation=nn.ReLU).to(on)
    decoder = mlp(params.latent_dim, params.autoencoder_hidden[::-1], n_genes, activation=nn.ReLU).to(on)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], params.lr)
    for step in range(params.autoencoder_steps):
        x = data.X[torch.randint(len(data.X), (params.batch_size,), device=on)]
        loss = F.mse_loss(decoder(encoder(x)), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report("autoencoder", step + 1, params.autoencoder_steps)
    return encoder, decoder


def learn(data: TrainingCells, params: ScdiffusionParams, *, report: Reporter) -> Conditional:
    """Train on prepared cells, by PyTorch's own random numbers."""
    values, on = data.values, data.X.device
    encoder, decoder = _learn_autoencoder(data, params, report)
    with torch.no_grad():
        z = encoder(data.X)
        centre, deviation = z.mean(0), z.std(0, correction=0).clamp_min(MIN_DEVIATION)
        z = (z - centre) / deviation
    diffusion = Diffusion(len(values.frame.type_sizes), params).to(on)
    average = AveragedModel(diffusion, multi_avg_fn=get_ema_multi_avg_fn(params.ema_decay))
    optimizer = torch.optim.AdamW(diffusion.parameters(), params.lr)

    def step(batch: Tensor) -> dict[str, Tensor]:
        losses = diffusion.losses(z[batch], data.types[batch])
        optimizer.zero_grad()
        (losses["denoiser"] + losses["classifier"]).backward()
        optimizer.step()
        average.update_parameters(diffusion)
        return losses

    def decode(types: Tensor) -> Tensor:
        with torch.no_grad():
            x: Tensor = decoder(average(types) * deviation + centre)
        return x

    def draw(codes: Tensor, rng: np.random.Generator) -> sp.csr_matrix:
        names = np.array(list(values.frame.type_sizes))[codes]
        return values.back(decode(codes.to(on)).cpu().numpy(), names, rng)

    def draw_like_training(n: int) -> Tensor:
        return values.whole(decode(data.types[torch.randint(len(data.X), (n,), device=on)]))

    networks = {"diffusion": average}
    losses = train(step, draw_like_training, networks, data, params, report=report)
    return Conditional(values, draw, networks | {"encoder": encoder, "decoder": decoder}, losses)


fit = fit_by(learn)
main = script("scdiffusion", __doc__, fit, sample, LABELS)

if __name__ == "__main__":
    main()
