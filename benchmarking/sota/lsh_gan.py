"""Baseline: LSH-GAN (Lall et al. 2022, Communications Biology), a GAN whose noise has real cells among it.

Run:    python benchmarking/sota/lsh_gan.py --dataset pbmc68k --holdout 0.5 --seed 0
Reads:  a data set of config.py, or your own cells (--input, --expression-csv)
Writes: results/synthetic/<dataset>/lsh_gan/seed<k>/: cells.h5ad, cells.csv, losses.csv, heldout.csv, model.pt, run.json

Locality-sensitive hashing thins the training cells: a cell that still stands is kept and strikes out its neighbours.
The generator's input is uniform noise as wide as a cell, with the kept cells among it in the proportion that they have
among the cells. Differs from the paper:
1. The hash is the same (signs of random projections, Charikar 2002, which meet in a table with a chance that falls with
   the angle between two cells), in the hash tables of faiss: scikit-learn's LSHForest exists no more.
2. Cells are walked through in random order, not that of the file, and projections are cut at their medians.
3. `tuned`: cells are generated from the same input as in training, kept cells included; from noise alone in preset
   `paper`, as published, which is another input than that of training.
4. `tuned`: wider networks, Adam, drawn from a moving average of weights; no negative values before the critic.
"""

from functools import partial

import faiss
import numpy as np
import torch
from anndata import AnnData
from torch import Tensor, nn

from benchmarking.adversarial import Duel
from benchmarking.baseline import Unconditional, prepare, reproducible, sample, script
from benchmarking.sota.gan import critic_loss, generator_loss
from common.cli import Reporter, silent
from common.networks import mlp
from config import LshGanParams
from data_generation.model import Device

LABELS = "classifier"
SLOPE = 0.2  # of the leaky rectifiers

__all__ = ["critic_loss", "fit", "generator_loss", "main", "sample"]  # the losses are those of gan.py


def make_generator(n_genes: int, params: LshGanParams) -> nn.Sequential:
    """Return the generator. Shapes: (n_rows, n_genes) -> (n_rows, n_genes)."""
    return mlp(n_genes, params.generator_hidden, n_genes, norm=False, activation=partial(nn.LeakyReLU, SLOPE))


def make_critic(n_genes: int, params: LshGanParams) -> nn.Sequential:
    """Return the critic, with a linear layer as wide as a cell before the logit, as published.

    Shapes: (n_rows, n_genes) -> logits (n_rows, 1), high for real cells.
    """
    wide = mlp(n_genes, params.critic_hidden, n_genes, norm=False, activation=partial(nn.LeakyReLU, SLOPE))
    return nn.Sequential(*wide, nn.Linear(n_genes, 1))


def hash_neighbors(X: np.ndarray, n_neighbors: int, *, tables: int, bits: int, seed: int) -> np.ndarray:
    """Find neighbours among the cells that share a hash bucket with a cell, nearest first by all bits of the hash.

    Parameters
    ----------
    X
        Values of shape (n_cells, n_genes).
    n_neighbors
        At most so many of a cell, the cell itself counted as one.
    tables, bits
        Hash tables, and random projections of each. More tables find more neighbours, more bits nearer ones.

    Returns
    -------
    Rows of neighbours, shape (n_cells, n_neighbors); -1 where a cell's buckets hold no more.
    """
    X = np.ascontiguousarray(X, dtype=np.float32)
    n_bits = -(-tables * bits // 8) * 8  # faiss counts in bytes
    hashing = faiss.IndexLSH(X.shape[1], n_bits, True, True)  # projections rotated, and cut at their medians
    hashing.rrot.init(seed % 2**31)
    hashing.train(X)
    codes = hashing.sa_encode(X)
    buckets = faiss.IndexBinaryMultiHash(n_bits, tables, bits)
    buckets.add(codes)
    found: np.ndarray = buckets.search(codes, n_neighbors)[1]
    return found


def subsample(neighbors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Keep cells, in random order, each striking out its neighbours; (n_cells, n_neighbors) -> mask (n_cells,)."""
    kept = np.ones(len(neighbors), dtype=bool)
    for cell in rng.permutation(len(neighbors)):
        if kept[cell]:
            others = neighbors[cell]
            kept[others[(others >= 0) & (others != cell)]] = False
    return kept


def uniform(n_rows: int, n_genes: int, device: torch.device) -> Tensor:
    """Draw noise between -1 and 1."""
    return torch.rand(n_rows, n_genes, device=device) * 2 - 1


def fit(
    cells: AnnData, params: LshGanParams, *, seed: int, device: Device = "auto", report: Reporter = silent
) -> Unconditional:
    """Learn from real cells; the contract of `data_generation.model.fit`."""
    with reproducible(seed):
        data = prepare(cells, params, seed=seed, device=device)
        on = data.X.device
        X = data.X.cpu().numpy()
        neighbors = hash_neighbors(X, params.neighbors, tables=params.hash_tables, bits=params.hash_bits, seed=seed)
        kept = torch.from_numpy(np.flatnonzero(subsample(neighbors, np.random.default_rng(seed)))).to(on)
        n_cells, n_genes = data.X.shape

        def mixed(n: int) -> Tensor:
            z = uniform(n, n_genes, on)
            real = torch.rand(n, device=on) < len(kept) / n_cells
            z[real] = data.X[kept[torch.randint(len(kept), (int(real.sum()),), device=on)]]
            return z

        def pure(n: int) -> Tensor:
            return uniform(n, n_genes, on)

        duel = Duel(
            make_generator(n_genes, params).to(on), make_critic(n_genes, params).to(on), critic_loss,
            lambda real, fake: generator_loss(fake), noise=mixed if params.generate_from == "mixed" else pure,
            training_noise=mixed, optimizer=torch.optim.RMSprop,
        )  # fmt: skip
        return duel.fit(data, params, report=report)


main = script("lsh_gan", __doc__, fit, sample, LABELS)

if __name__ == "__main__":
    main()
