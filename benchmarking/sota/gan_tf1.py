"""Reference of gan.py in TensorFlow-1 style: the GAN of Goodfellow et al. 2014 on expression values, as published.

Run:    .venv-tf1/bin/python benchmarking/sota/gan_tf1.py --expression cells.csv --out folder
Reads:  a csv file, cells x genes
Writes: folder/cells_0.25n.csv ... cells_1.5n.csv, folder/losses.csv

Normal noise; one tanh layer makes cells, one leaky layer judges them; cross-entropy with hard labels; one step of the
critic and one of the generator, which wants its cells called real, a mini-batch.
"""

from __future__ import annotations

import argparse
from typing import Iterator

import numpy as np
import tensorflow.compat.v1 as tf
from tf1 import Graph, batches, cross_entropy, flags, gaussian, perceptron, run

SLOPE = 0.2


def build_generator(z: tf.Tensor, n_genes: int, hidden: list[int]) -> tf.Tensor:
    """Return cells made from noise."""
    with tf.variable_scope("generator", reuse=tf.AUTO_REUSE):
        return perceptron(z, hidden, n_genes, tf.tanh)


def build_critic(x: tf.Tensor, hidden: list[int]) -> tf.Tensor:
    """Return one logit a cell, high for real ones."""
    with tf.variable_scope("critic", reuse=tf.AUTO_REUSE):
        return perceptron(x, hidden, 1, lambda h: tf.nn.leaky_relu(h, SLOPE))


def build(n_genes: int, args: argparse.Namespace) -> Graph:
    """Return networks, losses and steps."""
    x = tf.placeholder(args.dtype, [None, n_genes])
    z = tf.placeholder(args.dtype, [None, args.latent_dim])
    fake = build_generator(z, n_genes, args.generator_hidden)
    real_verdict = build_critic(x, args.critic_hidden)
    fake_verdict = build_critic(fake, args.critic_hidden)
    losses = {
        "critic": cross_entropy(real_verdict, 1.0) + cross_entropy(fake_verdict, 0.0),
        "generator": cross_entropy(fake_verdict, 1.0),
    }
    steps = {
        scope: tf.train.AdamOptimizer(args.lr).minimize(loss, var_list=tf.trainable_variables(scope + "/"))
        for scope, loss in losses.items()
    }
    outputs = {"fake": fake, "real_verdict": real_verdict, "fake_verdict": fake_verdict}
    return Graph({"x": x, "z": z}, outputs, losses, steps)


def train(
    session: tf.Session, graph: Graph, X: np.ndarray, args: argparse.Namespace, rng: np.random.Generator
) -> Iterator[dict]:
    """Run the epochs, yielding the last losses of each."""
    for _ in range(args.epochs):
        row = {}
        for rows in batches(len(X), args.batch_size, rng):
            for part in ("critic", "generator"):
                feed = {graph.inputs["x"]: X[rows], graph.inputs["z"]: gaussian(len(rows), args.latent_dim, rng)}
                row[part], _ = session.run([graph.losses[part], graph.steps[part]], feed)
        yield row


if __name__ == "__main__":
    parser = flags(
        __doc__, epochs=2001, batch_size=64, latent_dim=100, generator_hidden=[32], critic_hidden=[32], lr=1e-4
    )
    run(parser.parse_args(), build, train, gaussian)
