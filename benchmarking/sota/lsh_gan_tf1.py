"""Reference of lsh_gan.py in TensorFlow-1 style: the LSH-GAN of Lall et al. 2022, hashed with scikit-learn's LSHForest.

Run:    .venv-tf1/bin/python benchmarking/sota/lsh_gan_tf1.py --expression cells.csv --out folder
Reads:  a csv file, cells x genes
Writes: folder/cells_0.25n.csv ... cells_1.5n.csv, folder/losses.csv, folder/kept.csv (the cells of the sub-sample)

Locality-sensitive hashing thins the cells: in the file's order, a cell that still stands is kept and strikes out its
nearest neighbours. In training the generator's input is noise as wide as a cell with the kept cells among it, as many
rows in all as there are cells; at generation it is noise alone, as published.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Iterator

import numpy as np
import pandas as pd
import tensorflow.compat.v1 as tf
from sklearn.neighbors import LSHForest
from tf1 import Graph, cross_entropy, dense, flags, perceptron, run

SLOPE = 0.2
N_TREES = 10


def subsample(X: np.ndarray, n_neighbors: int, seed: int) -> np.ndarray:
    """Return a mask of the cells that hashing keeps; about one in `n_neighbors` where cells are dense."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, which is why this environment is old
        forest = LSHForest(n_estimators=N_TREES, random_state=seed).fit(X)
        neighbors = forest.kneighbors(X, n_neighbors, return_distance=False)
    kept = np.ones(len(X), dtype=bool)
    for cell, row in enumerate(neighbors):
        if kept[cell]:
            kept[row[row != cell]] = False
    return kept


def leaky(h: tf.Tensor) -> tf.Tensor:
    """Return the activation of both networks."""
    return tf.nn.leaky_relu(h, SLOPE)


def build_generator(z: tf.Tensor, n_genes: int, hidden: list[int]) -> tf.Tensor:
    """Return cells made from noise rows and kept cells."""
    with tf.variable_scope("generator", reuse=tf.AUTO_REUSE):
        return perceptron(z, hidden, n_genes, leaky)


def build_critic(x: tf.Tensor, hidden: list[int]) -> tf.Tensor:
    """Return one logit a cell, high for real ones; a linear layer as wide as a cell stands before it."""
    with tf.variable_scope("critic", reuse=tf.AUTO_REUSE):
        return dense(perceptron(x, hidden, int(x.shape[1]), leaky), 1, "logit")


def build(n_genes: int, args: argparse.Namespace) -> Graph:
    """Return networks, losses and steps."""
    x = tf.placeholder(args.dtype, [None, n_genes])
    z = tf.placeholder(args.dtype, [None, n_genes])
    fake = build_generator(z, n_genes, args.generator_hidden)
    real_verdict = build_critic(x, args.critic_hidden)
    fake_verdict = build_critic(fake, args.critic_hidden)
    losses = {
        "critic": cross_entropy(real_verdict, 1.0) + cross_entropy(fake_verdict, 0.0),
        "generator": cross_entropy(fake_verdict, 1.0),
    }
    steps = {
        scope: tf.train.RMSPropOptimizer(args.lr).minimize(loss, var_list=tf.trainable_variables(scope + "/"))
        for scope, loss in losses.items()
    }
    outputs = {"fake": fake, "real_verdict": real_verdict, "fake_verdict": fake_verdict}
    return Graph({"x": x, "z": z}, outputs, losses, steps)


def uniform(n_rows: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Return noise between -1 and 1."""
    return rng.uniform(-1, 1, (n_rows, width))


def train(
    session: tf.Session, graph: Graph, X: np.ndarray, args: argparse.Namespace, rng: np.random.Generator
) -> Iterator[dict]:
    """Thin the cells, then run the epochs, each some steps of both networks, yielding the last losses of each."""
    kept = subsample(X, args.n_neighbors, args.seed)
    pd.DataFrame({"row": np.flatnonzero(kept)}).to_csv(args.out / "kept.csv", index=False)
    for _ in range(args.epochs):
        row = {}
        for part in ("critic", "generator"):
            for _ in range(args.steps):
                real = X[rng.choice(len(X), args.batch_size)]
                z = uniform(args.batch_size, X.shape[1], rng)
                seeds = np.flatnonzero(rng.random(args.batch_size) < kept.mean())
                z[seeds] = X[rng.choice(np.flatnonzero(kept), len(seeds))]
                feed = {graph.inputs["x"]: real, graph.inputs["z"]: z}
                row[part], _ = session.run([graph.losses[part], graph.steps[part]], feed)
        yield row


if __name__ == "__main__":
    parser = flags(
        __doc__, epochs=2001, steps=10, batch_size=64, generator_hidden=[16, 16], critic_hidden=[16, 16],
        lr=1e-3, n_neighbors=5,
    )  # fmt: skip
    run(parser.parse_args(), build, train, uniform)
