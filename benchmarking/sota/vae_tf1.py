"""Reference of vae.py in TensorFlow-1 style: the VAE of Kingma and Welling 2014 on expression values, as published.

Run:    .venv-tf1/bin/python benchmarking/sota/vae_tf1.py --expression cells.csv --out folder
Reads:  a csv file, cells x genes
Writes: folder/cells_0.25n.csv ... cells_1.5n.csv, folder/losses.csv

Tanh layers encode and decode; generated cells are the decoder's means. As published (`--likelihood squared_error
--reduce mean`, the defaults) the squared error is a mean over genes and the divergence a mean over latent dimensions,
which weighs the divergence n_genes / latent times too heavily: the posterior collapses. `--reduce sum` makes it the
evidence lower bound for a variance of 1/2; `--likelihood normal` learns a variance of each gene.
"""

from __future__ import annotations

import argparse
from typing import Iterator

import numpy as np
import tensorflow.compat.v1 as tf
from tf1 import Graph, batches, dense, flags, gaussian, perceptron, run


def build_encoder(x: tf.Tensor, latent: int, hidden: list[int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Return means and log variances of the posteriors."""
    with tf.variable_scope("vae/encoder", reuse=tf.AUTO_REUSE):
        for i, width in enumerate(hidden):
            x = dense(x, width, f"hidden{i}", tf.tanh)
        return dense(x, latent, "mean"), dense(x, latent, "log_variance")


def build_decoder(z: tf.Tensor, n_genes: int, hidden: list[int]) -> tf.Tensor:
    """Return the cells' means given their codes."""
    with tf.variable_scope("vae/decoder", reuse=tf.AUTO_REUSE):
        return perceptron(z, hidden, n_genes, tf.tanh)


def build(n_genes: int, args: argparse.Namespace) -> Graph:
    """Return networks, loss and step."""
    x = tf.placeholder(args.dtype, [None, n_genes])
    z = tf.placeholder(args.dtype, [None, args.latent_dim])
    eps = tf.placeholder(args.dtype, [None, args.latent_dim])
    mean, log_variance = build_encoder(x, args.latent_dim, args.encoder_hidden)
    reconstruction = build_decoder(mean + tf.exp(0.5 * log_variance) * eps, n_genes, args.decoder_hidden)
    reduce = {"mean": tf.reduce_mean, "sum": tf.reduce_sum}[args.reduce]
    error = tf.squared_difference(x, reconstruction)
    if args.likelihood == "normal":
        with tf.variable_scope("vae", reuse=tf.AUTO_REUSE):
            noise = tf.get_variable("noise", [n_genes], args.dtype, tf.zeros_initializer())  # log variances
        error = 0.5 * (error / tf.exp(noise) + noise)
    divergence = 0.5 * (mean**2 + tf.exp(log_variance) - 1.0 - log_variance)
    parts = {"error": tf.reduce_mean(reduce(error, axis=1)), "kl": tf.reduce_mean(reduce(divergence, axis=1))}
    losses = {"vae": parts["error"] + parts["kl"]}
    steps = {"vae": tf.train.AdamOptimizer(args.lr).minimize(losses["vae"])}
    outputs = {
        "mean": mean, "log_variance": log_variance, "reconstruction": reconstruction, **parts,
        "fake": build_decoder(z, n_genes, args.decoder_hidden),
    }  # fmt: skip
    return Graph({"x": x, "z": z, "eps": eps}, outputs, losses, steps)


def train(
    session: tf.Session, graph: Graph, X: np.ndarray, args: argparse.Namespace, rng: np.random.Generator
) -> Iterator[dict]:
    """Run the epochs, yielding the last loss of each."""
    for _ in range(args.epochs):
        for rows in batches(len(X), args.batch_size, rng):
            feed = {graph.inputs["x"]: X[rows], graph.inputs["eps"]: gaussian(len(rows), args.latent_dim, rng)}
            loss, _ = session.run([graph.losses["vae"], graph.steps["vae"]], feed)
        yield {"vae": loss}


if __name__ == "__main__":
    parser = flags(
        __doc__, epochs=2001, batch_size=64, latent_dim=100, encoder_hidden=[32], decoder_hidden=[32], lr=1e-4,
        likelihood=("squared_error", "normal"), reduce=("mean", "sum"),
    )  # fmt: skip
    run(parser.parse_args(), build, train, gaussian)
