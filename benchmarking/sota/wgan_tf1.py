"""Reference of wgan.py in TensorFlow-1 style: the Wasserstein GAN of Arjovsky et al. 2017 on expression values.

Run:    .venv-tf1/bin/python benchmarking/sota/wgan_tf1.py --expression cells.csv --out folder
Reads:  a csv file, cells x genes
Writes: folder/cells_0.25n.csv ... cells_1.5n.csv, folder/losses.csv

The critic's weights are clipped after each of its steps. The published networks and rates, with one error mended: the
generator moves after every `--n-critic` steps of the critic, as in the paper, not once an epoch.
"""

from __future__ import annotations

import argparse
from typing import Iterator

import numpy as np
import tensorflow.compat.v1 as tf
from tf1 import Graph, batches, flags, gaussian, perceptron, run


def build_generator(z: tf.Tensor, n_genes: int, hidden: list[int]) -> tf.Tensor:
    """Return cells made from noise."""
    with tf.variable_scope("generator", reuse=tf.AUTO_REUSE):
        return perceptron(z, hidden, n_genes, tf.tanh)


def build_critic(x: tf.Tensor, hidden: list[int]) -> tf.Tensor:
    """Return one number a cell, high for real ones."""
    with tf.variable_scope("critic", reuse=tf.AUTO_REUSE):
        return perceptron(x, hidden, 1, tf.tanh)


def build(n_genes: int, args: argparse.Namespace) -> Graph:
    """Return networks, losses and steps; the critic's step ends with the clipping."""
    x = tf.placeholder(args.dtype, [None, n_genes])
    z = tf.placeholder(args.dtype, [None, args.latent_dim])
    fake = build_generator(z, n_genes, args.generator_hidden)
    real_verdict, fake_verdict = build_critic(x, args.critic_hidden), build_critic(fake, args.critic_hidden)
    losses = {
        "critic": tf.reduce_mean(fake_verdict) - tf.reduce_mean(real_verdict),
        "generator": -tf.reduce_mean(fake_verdict),
    }
    steps = {
        scope: tf.train.RMSPropOptimizer(args.lr).minimize(loss, var_list=tf.trainable_variables(scope + "/"))
        for scope, loss in losses.items()
    }
    with tf.control_dependencies([steps["critic"]]):
        clipped = [v.assign(tf.clip_by_value(v, -args.clip, args.clip)) for v in tf.trainable_variables("critic/")]
    steps["critic"] = tf.group(*clipped)
    outputs = {"fake": fake, "real_verdict": real_verdict, "fake_verdict": fake_verdict}
    return Graph({"x": x, "z": z}, outputs, losses, steps)


def train(
    session: tf.Session, graph: Graph, X: np.ndarray, args: argparse.Namespace, rng: np.random.Generator
) -> Iterator[dict]:
    """Run the epochs, yielding the last losses of each."""
    row, critic_steps = {"critic": float("nan"), "generator": float("nan")}, 0
    for _ in range(args.epochs):
        for rows in batches(len(X), args.batch_size, rng):
            critic_steps += 1
            for part in ("critic",) if critic_steps % args.n_critic else ("critic", "generator"):
                feed = {graph.inputs["x"]: X[rows], graph.inputs["z"]: gaussian(len(rows), args.latent_dim, rng)}
                row[part], _ = session.run([graph.losses[part], graph.steps[part]], feed)
        yield dict(row)


if __name__ == "__main__":
    parser = flags(
        __doc__, epochs=2001, batch_size=64, latent_dim=100, generator_hidden=[32], critic_hidden=[32], lr=5e-4,
        clip=0.01, n_critic=5,
    )  # fmt: skip
    run(parser.parse_args(), build, train, gaussian)
