"""The baselines of benchmarking/sota against their TensorFlow-1 references: the same weights, the same numbers.

Each reference runs under its own Python 3.7. Compared are outputs, losses, and each loss's gradients in the network
that descends on it, so that no sign and no detached tensor escapes; in double precision, so that no rounding is taken
for a difference, nor hides one.
"""

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from benchmarking.baseline import load_method
from config import BASELINES

ROOT = Path(__file__).resolve().parents[1]
PYTHON37 = ROOT / ".venv-tf1" / "bin" / "python"
N_CELLS, N_GENES = 64, 300
TOLERANCE = 1e-5

pytestmark = [
    pytest.mark.skipif(not PYTHON37.exists(), reason="TensorFlow 1 is not installed: make test-tf1"),
    pytest.mark.slow,
]


def run_reference(name, *flags):
    script = ROOT / "benchmarking" / "sota" / f"{name}_tf1.py"
    done = subprocess.run([PYTHON37, script, *map(str, flags)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def evaluate_reference(name, arrays, flags, folder):
    """Return the reference's numbers by name, at weights and inputs given by name."""
    np.savez(folder / "given.npz", **arrays)
    run_reference(name, "--check", folder / "given.npz", "--out", folder / "numbers.npz", "--dtype", "float64", *flags)
    with np.load(folder / "numbers.npz") as file:
        return dict(file)


def layers(network, scope, names):
    """Return the parameters of linear layers by the names of the reference's variables."""
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    found = {}
    for layer, name in zip(linear, names, strict=True):
        found[f"{scope}/{name}/kernel"], found[f"{scope}/{name}/bias"] = layer.weight, layer.bias
    return found


def perceptron(network, scope, n_hidden, *more):
    return layers(network, scope, [*(f"hidden{i}" for i in range(n_hidden)), "out", *more])


def as_arrays(tensors):
    """Return arrays in the reference's orientation: kernels are (n_in, n_out)."""
    return {
        name: (tensor.T if name.endswith("kernel") else tensor).detach().numpy() for name, tensor in tensors.items()
    }


def gradients(loss, part, parameters):
    found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
    return {f"{part}:{name}": gradient for name, gradient in zip(parameters, found, strict=True)}


def losses_of(name, baseline, params, real, fake):
    if name == "fgan":
        losses = (loss(real, fake, params.divergence) for loss in (baseline.critic_loss, baseline.generator_loss))
    else:
        losses = baseline.critic_loss(real, fake), baseline.generator_loss(fake)
    return dict(zip(("critic", "generator"), losses, strict=True))


def make_cells(rng):
    """Log values as expression has them, many zeros among them."""
    return torch.tensor(np.log1p(rng.poisson(rng.gamma(0.4, 3.0, size=(N_CELLS, N_GENES)))), dtype=torch.float64)


def assert_agree(reference, expected):
    """Differences are at most `TOLERANCE` of the largest value of an output, a loss, or all gradients of a loss."""
    assert reference.keys() == expected.keys()
    scale = {}
    for name, value in reference.items():
        quantity = name.split("/")[0]
        scale[quantity] = max(scale.get(quantity, 0.0), np.abs(value).max())
    for name, value in reference.items():
        atol = TOLERANCE * scale[name.split("/")[0]]
        np.testing.assert_allclose(expected[name].reshape(value.shape), value, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("name, preset, changes", [
    *((name, preset, {}) for name in ("gan", "wgan", "lsh_gan", "fgan") for preset in ("tuned", "paper")),
    *(("fgan", "tuned", {"divergence": name}) for name in ("kl", "reverse_kl", "pearson", "jensen_shannon")),
])  # fmt: skip
def test_gan(name, preset, changes, tmp_path):
    baseline, params = load_method(name), replace(BASELINES[name][preset], **changes)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    generator = baseline.make_generator(N_GENES, params).double()
    critic = baseline.make_critic(N_GENES, params).double()
    width = next(generator.parameters()).shape[1]
    x, z = make_cells(rng), torch.tensor(rng.standard_normal((N_CELLS, width)), dtype=torch.float64)
    with torch.no_grad():  # verdicts well away from 0, where curved losses look straight and no penalty is due
        critic[-1].weight *= 5 / critic(torch.cat([x, generator(z)])).abs().max()
    of_generator = perceptron(generator, "generator", len(params.generator_hidden))
    of_critic = perceptron(critic, "critic", len(params.critic_hidden), *(["logit"] if name == "lsh_gan" else []))

    fake = generator(z)
    verdicts = {"real_verdict": critic(x), "fake_verdict": critic(fake)}
    losses = losses_of(name, baseline, params, *verdicts.values())
    expected = {
        "fake": fake, **verdicts, **losses, **gradients(losses["critic"], "critic", of_critic),
        **gradients(losses["generator"], "generator", of_generator),
    }  # fmt: skip
    flags = ["--generator-hidden", *params.generator_hidden, "--critic-hidden", *params.critic_hidden]
    if name != "lsh_gan":  # its noise is as wide as a cell
        flags += ["--latent-dim", params.latent_dim]
    if name == "fgan":
        flags += ["--divergence", params.divergence]
    given = as_arrays({**of_generator, **of_critic, "x": x, "z": z})
    assert_agree(evaluate_reference(name, given, flags, tmp_path), as_arrays(expected))


@pytest.mark.parametrize("preset, changes", [("tuned", {}), ("tuned", {"likelihood": "normal"}), ("paper", {})])
def test_vae(preset, changes, tmp_path):
    baseline, params = load_method("vae"), replace(BASELINES["vae"][preset], **changes)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    vae = baseline.Vae(N_GENES, params).double()
    parameters = layers(vae, "vae", [
        *(f"encoder/hidden{i}" for i in range(len(params.encoder_hidden))), "encoder/mean", "encoder/log_variance",
        *(f"decoder/hidden{i}" for i in range(len(params.decoder_hidden))), "decoder/out",
    ])  # fmt: skip
    noise = None
    if params.likelihood == "normal":
        noise = parameters["vae/noise"] = vae.noise
        nn.init.normal_(noise)
    x = make_cells(rng)
    eps, z = torch.tensor(rng.standard_normal((2, N_CELLS, params.latent_dim)), dtype=torch.float64)

    out = vae(x, eps)
    reduce = getattr(torch, params.reduce)
    parts = {
        "error": reduce(baseline.error(x, out.reconstruction, noise), 1).mean(),
        "kl": reduce(baseline.divergence(out.mean, out.log_variance), 1).mean(),
    }
    loss = parts["error"] + parts["kl"]
    expected = {
        **out._asdict(), **parts, "vae": loss, "fake": vae.decoder(z), **gradients(loss, "vae", parameters),
    }  # fmt: skip
    flags = [
        "--latent-dim", params.latent_dim, "--encoder-hidden", *params.encoder_hidden, "--decoder-hidden",
        *params.decoder_hidden, "--likelihood", params.likelihood, "--reduce", params.reduce,
    ]  # fmt: skip
    given = as_arrays({**parameters, "x": x, "eps": eps, "z": z})
    assert_agree(evaluate_reference("vae", given, flags, tmp_path), as_arrays(expected))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gan", "wgan", "fgan", "vae", "lsh_gan"])
def test_reference_trains(name, tmp_path):
    """The references are whole scripts: cells in, cells of every size out, losses that move."""
    X = make_cells(np.random.default_rng(0))[:, :20].numpy()
    genes = [f"g{i}" for i in range(X.shape[1])]
    table = pd.DataFrame(X, [f"c{i}" for i in range(N_CELLS)], genes)
    table.insert(0, "cell_type", "T")  # as in the cells.csv of a run
    table.to_csv(tmp_path / "cells.csv")
    run_reference(name, "--expression", tmp_path / "cells.csv", "--out", tmp_path, "--epochs", 5, "--batch-size", 12)
    losses = pd.read_csv(tmp_path / "losses.csv")
    assert losses["step"].tolist() == [1, 2, 3, 4, 5]
    assert np.isfinite(losses).all(axis=None)
    assert (losses.iloc[:, 1:].nunique() > 1).all()
    for fraction in ("0.25", "0.5", "0.75", "1", "1.25", "1.5"):
        drawn = pd.read_csv(tmp_path / f"cells_{fraction}n.csv", index_col=0)
        assert drawn.shape == (N_CELLS * float(fraction), len(genes))
        assert drawn.columns.tolist() == genes
        assert np.isfinite(drawn).all(axis=None)


@pytest.mark.slow
def test_lsh_subsample(tmp_path):
    """LSHForest and the baseline's hash tables find other neighbours, but keep like shares of each type's cells."""
    sizes, rng = [240, 120, 60], np.random.default_rng(0)
    types = np.repeat(np.arange(3), sizes)
    X = np.log1p(rng.poisson(rng.gamma(0.4, 3.0, size=(3, 200))[types]))
    pd.DataFrame(X, [f"c{i}" for i in range(len(X))]).to_csv(tmp_path / "cells.csv")
    run_reference("lsh_gan", "--expression", tmp_path / "cells.csv", "--out", tmp_path, "--epochs", 0)
    of_reference = pd.read_csv(tmp_path / "kept.csv")["row"]

    baseline, params = load_method("lsh_gan"), BASELINES["lsh_gan"]["tuned"]
    neighbors = baseline.hash_neighbors(X, 5, tables=params.hash_tables, bits=params.hash_bits, seed=0)
    of_baseline = np.flatnonzero(baseline.subsample(neighbors, rng))
    shares = np.array([np.bincount(types[kept], minlength=3) / sizes for kept in (of_reference, of_baseline)])
    assert (shares > 1 / 5).all()  # a cell strikes out four others at most
    assert (shares < 1 / 2).all()
    assert abs(len(of_reference) - len(of_baseline)) < 0.15 * len(X)
