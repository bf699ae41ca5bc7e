"""What the TensorFlow-1 references `*_tf1.py` share: flags, cells in and out, mini-batches, the check on weights.

The references are scripts for Python 3.7 with requirements_benchmarking.txt, to be read beside the baselines that are
checked against them (`make test-tf1`). They take values as they are: give log-normalised ones. What differs from
PyTorch by default is left as TensorFlow has it: first weights (Glorot, biases zero), RMSprop's decay (0.9, not 0.99),
and where the optimisers add their epsilon.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Callable, Iterator, NamedTuple

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"  # read when TensorFlow is imported

import numpy as np
import pandas as pd
import tensorflow.compat.v1 as tf

tf.logging.set_verbosity(tf.logging.ERROR)
tf.disable_v2_behavior()

FRACTIONS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # the paper's output sizes, in training cells


class Graph(NamedTuple):
    """A model's graph: what is fed, what comes out, what each part descends on, and the ops that move it.

    `losses` names the variable scope that descends on the loss.
    """

    inputs: dict[str, tf.Tensor]
    outputs: dict[str, tf.Tensor]
    losses: dict[str, tf.Tensor]
    steps: dict[str, tf.Operation]


def flags(doc: str, **defaults: object) -> argparse.ArgumentParser:
    """Return a parser with the flags that all have, and one a default: many values for a list, a choice for a tuple."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--expression", type=Path, help="csv file, cells x genes, with names of both")
    given.add_argument("--check", type=Path, help="npz file with weights and inputs: write outputs, losses, gradients")
    parser.add_argument("--out", type=Path, required=True, help="folder of a training, npz file of a check")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    for name, value in defaults.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, tuple):
            parser.add_argument(flag, choices=value, default=value[0])
        elif isinstance(value, list):
            parser.add_argument(flag, type=type(value[0]), nargs="*", default=value)
        else:
            parser.add_argument(flag, type=type(value), default=value)
    return parser


def dense(x: tf.Tensor, width: int, name: str, activation: Callable | None = None) -> tf.Tensor:
    """Return a fully connected layer with variables `name`/kernel and `name`/bias."""
    return tf.layers.dense(x, width, activation, name=name, reuse=tf.AUTO_REUSE)


def perceptron(x: tf.Tensor, hidden: list[int], n_out: int, activation: Callable) -> tf.Tensor:
    """Return hidden layers hidden0, hidden1, ... with activation and a linear layer out."""
    for i, width in enumerate(hidden):
        x = dense(x, width, f"hidden{i}", activation)
    return dense(x, n_out, "out")


def cross_entropy(logits: tf.Tensor, target: float) -> tf.Tensor:
    """Return the mean binary cross-entropy of logits with one target for all."""
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(logits=logits, labels=target * tf.ones_like(logits)))


def gaussian(n_cells: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Return standard normal noise."""
    return rng.standard_normal((n_cells, width))


def batches(n_rows: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the row numbers of an epoch's mini-batches, every row once, the last batch with what is left."""
    order = rng.permutation(n_rows)
    for start in range(0, n_rows, size):
        yield order[start : start + size]


def run(args: argparse.Namespace, build: Callable, train: Callable, draw: Callable) -> None:
    """Train on cells and write what was generated, or evaluate the graph on given weights.

    Parameters
    ----------
    args
        of the parser made by `flags`
    build
        (n_genes, args) -> `Graph` with input z and output fake among others
    train
        (session, graph, X, args, rng) -> iterator over the loss table's rows, dicts, one an epoch
    draw
        (n_cells, width, rng) -> noise for input z, shape (n_cells, width)
    """
    source = args.check or args.expression
    if not source.exists():
        sys.exit(f"error: there is no {source}: give an existing file")
    if args.check:
        check(build, args)
        print(f"wrote {args.out}")
        return
    table = pd.read_csv(args.expression, index_col=0).drop(columns="cell_type", errors="ignore")
    X = table.to_numpy(np.float32)
    rng = np.random.default_rng(args.seed)
    tf.set_random_seed(args.seed)
    graph = build(X.shape[1], args)
    args.out.mkdir(parents=True, exist_ok=True)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        losses = []
        for epoch, row in enumerate(train(session, graph, X, args, rng), start=1):
            losses.append(dict(step=epoch, **row))
            if epoch % max(1, args.epochs // 20) == 0:
                values = "  ".join(f"{name} {loss:.3g}" for name, loss in row.items())
                print(f"epoch {epoch} of {args.epochs}  {values}", file=sys.stderr)
        for fraction in FRACTIONS:
            z = draw(int(fraction * len(X)), int(graph.inputs["z"].shape[1]), rng)
            cells = session.run(graph.outputs["fake"], {graph.inputs["z"]: z})
            drawn = pd.DataFrame(cells, columns=table.columns)
            drawn.to_csv(args.out / f"cells_{fraction:g}n.csv", index_label="cell")
    pd.DataFrame(losses).to_csv(args.out / "losses.csv", index=False)
    print(f"wrote losses.csv and cells_0.25n.csv ... cells_1.5n.csv to {args.out}")


def check(build: Callable, args: argparse.Namespace) -> None:
    """Evaluate outputs, losses and each loss's gradients at the weights and inputs of an npz file; write an npz file.

    Weights bear the names of their variables, inputs those of the graph's; a gradient is called <loss>:<variable>.
    """
    with np.load(args.check) as file:
        given = dict(file)
    graph = build(given["x"].shape[1], args)
    variables = tf.trainable_variables()
    amiss = set(given) ^ {*graph.inputs, *(variable.op.name for variable in variables)}
    if amiss:
        sys.exit(f"error: either the graph or {args.check} has no {', '.join(sorted(amiss))}: let them agree")
    wanted = {**graph.outputs, **graph.losses}
    for scope, loss in graph.losses.items():
        trained = tf.trainable_variables(scope + "/")
        wanted.update({f"{scope}:{v.op.name}": g for v, g in zip(trained, tf.gradients(loss, trained))})
    with tf.Session() as session:
        for variable in variables:
            variable.load(given[variable.op.name], session)
        np.savez(args.out, **session.run(wanted, {tensor: given[name] for name, tensor in graph.inputs.items()}))
