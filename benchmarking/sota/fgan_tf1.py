"""Reference of fgan.py in TensorFlow-1 style: the published "f-GAN", its generator's sign mended, and true ones.

Run:    .venv-tf1/bin/python benchmarking/sota/fgan_tf1.py --expression cells.csv --out folder
Reads:  a csv file, cells x genes
Writes: folder/cells_0.25n.csv ... cells_1.5n.csv, folder/losses.csv

No f-divergence is in the published one (`--divergence fisher_ratio`, the default). Its critic T maximises a Fisher
ratio, after the Fisher GAN of Mroueh and Sercu 2017,

    (mean T(real) - mean T(fake)) / sqrt(var T(real) + var T(fake) + 1e-8),

less 10 max(0, mean T(real)^2 + mean T(fake)^2 - 1)^2. As published the generator maximised that ratio too, and so was
trained to be told apart; here it minimises it. The other divergences are those of Nowozin et al. 2016 by their table 6:
an activation g of T, and the conjugate f* of the divergence's function.
"""

from __future__ import annotations

import argparse
from typing import Iterator

import numpy as np
import tensorflow.compat.v1 as tf
from tf1 import Graph, batches, flags, gaussian, perceptron, run

SLOPE = 0.01
DIVERGENCES = {  # g(T) and f*(g)
    "kl": (lambda T: T, lambda g: tf.exp(g - 1.0)),
    "reverse_kl": (lambda T: -tf.exp(-T), lambda g: -1.0 - tf.log(-g)),
    "pearson": (lambda T: T, lambda g: 0.25 * g**2 + g),
    "jensen_shannon": (lambda T: np.log(2.0) - tf.nn.softplus(-T), lambda g: -tf.log(2.0 - tf.exp(g))),
}


def leaky(h: tf.Tensor) -> tf.Tensor:
    """Return the activation of both networks."""
    return tf.nn.leaky_relu(h, SLOPE)


def build_generator(z: tf.Tensor, n_genes: int, hidden: list[int]) -> tf.Tensor:
    """Return cells made from noise."""
    with tf.variable_scope("generator", reuse=tf.AUTO_REUSE):
        return perceptron(z, hidden, n_genes, leaky)


def build_critic(x: tf.Tensor, hidden: list[int]) -> tf.Tensor:
    """Return T, one number a cell."""
    with tf.variable_scope("critic", reuse=tf.AUTO_REUSE):
        return perceptron(x, hidden, 1, leaky)


def build_fisher_ratio(T_real: tf.Tensor, T_fake: tf.Tensor, args: argparse.Namespace) -> dict[str, tf.Tensor]:
    """Return the published losses, the generator's with its sign mended."""
    real_mean, real_variance = tf.nn.moments(T_real, [0, 1])
    fake_mean, fake_variance = tf.nn.moments(T_fake, [0, 1])
    ratio = (real_mean - fake_mean) / tf.sqrt(real_variance + fake_variance + 1e-8)
    excess = tf.nn.relu(tf.reduce_mean(T_real**2) + tf.reduce_mean(T_fake**2) - 1.0)
    return {"critic": -ratio + args.penalty * excess**2, "generator": ratio}


def build_bound(T_real: tf.Tensor, T_fake: tf.Tensor, args: argparse.Namespace) -> dict[str, tf.Tensor]:
    """Return the losses of a true f-GAN; the generator raises g(T), as Nowozin et al. advise."""
    activate, conjugate = DIVERGENCES[args.divergence]
    bound = tf.reduce_mean(activate(T_real)) - tf.reduce_mean(conjugate(activate(T_fake)))
    return {"critic": -bound, "generator": -tf.reduce_mean(activate(T_fake))}


def build(n_genes: int, args: argparse.Namespace) -> Graph:
    """Return networks, losses and steps."""
    x = tf.placeholder(args.dtype, [None, n_genes])
    z = tf.placeholder(args.dtype, [None, args.latent_dim])
    fake = build_generator(z, n_genes, args.generator_hidden)
    T_real, T_fake = build_critic(x, args.critic_hidden), build_critic(fake, args.critic_hidden)
    losses = (build_fisher_ratio if args.divergence == "fisher_ratio" else build_bound)(T_real, T_fake, args)
    steps = {
        scope: tf.train.AdamOptimizer(args.lr).minimize(loss, var_list=tf.trainable_variables(scope + "/"))
        for scope, loss in losses.items()
    }
    outputs = {"fake": fake, "real_verdict": T_real, "fake_verdict": T_fake}
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
        __doc__, epochs=2001, batch_size=64, latent_dim=100, generator_hidden=[128], critic_hidden=[128], lr=5e-4,
        penalty=10.0, divergence=("fisher_ratio", *DIVERGENCES),
    )  # fmt: skip
    run(parser.parse_args(), build, train, gaussian)
