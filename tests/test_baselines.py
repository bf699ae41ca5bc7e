"""Baselines keep the contract of a generator, stop when they should, and descend on the losses that they name."""

import json
from dataclasses import fields, replace
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from conftest import TOY_SIZES, make_toy, on_scale
from scipy import sparse
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from torch import nn

from benchmarking import baseline
from benchmarking.adversarial import Duel, FromNoise, r1
from benchmarking.baseline import METHODS, load_method, parse
from benchmarking.sota import fgan, gan, lsh_gan, vae, wgan
from benchmarking.training import Criterion, LogValues, TrainingCells, prepare, train
from common.errors import UserError
from common.runs import load_run
from common.scale import detect_scale
from config import BASELINES, BaselineParams, LshGanParams, VaeParams, WganParams

SOTA = ("gan", "wgan", "fgan", "vae", "lsh_gan")
SHORT = {
    "budget": 4, "check_every": 2, "batch_size": 16, "budget_in": "steps", "validation": 0.3, "autoencoder_steps": 2,
    "diffusion_steps": 5,
}  # fmt: skip


def small(name, **others):
    """Preset `tuned` in a fraction of a second."""
    params = BASELINES[name]["tuned"]
    given = {f.name for f in fields(params)}
    narrow = {f.name: (8,) * len(value) for f in fields(params) if isinstance(value := getattr(params, f.name), tuple)}
    return replace(params, **narrow | {name: value for name, value in SHORT.items() if name in given} | others)


def flags_of(params):
    words = []
    for field in fields(params):
        value, flag = getattr(params, field.name), "--" + field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, *map(str, value if isinstance(value, tuple) else [value])]
    return words


def cells_of(name, toy, n_cells=30, seed=1, **others):
    method = load_method(name)
    model = method.fit(toy, small(name, **others), seed=0, device="cpu")
    return method.sample(model, n_cells, seed=seed)


# ---------------------------------------------------------------------------------------------- the contract


def test_the_registry_is_whole():
    assert set(METHODS) == set(BASELINES) and all(set(presets) == {"tuned", "paper"} for presets in BASELINES.values())
    assert all(load_method(name).LABELS in ("given", "classifier") for name in METHODS)
    with pytest.raises(UserError, match=r"no baseline 'wagn'.*did you mean 'wgan'"):
        load_method("wagn")


@pytest.mark.parametrize("scale", ["counts", "linear", "log"])
@pytest.mark.parametrize("name", METHODS)
def test_a_run_writes_what_the_contract_says(name, scale, toy, tmp_path):
    on_scale(toy, scale).write_h5ad(tmp_path / "toy.h5ad")
    method, folder = load_method(name), tmp_path / "run"
    flags = ["--input", str(tmp_path / "toy.h5ad"), "--scale", scale, "--holdout", "0.5", "--seed", "1"]
    flags += ["--device", "cpu", *flags_of(small(name))]
    method.main([*flags, "--out", str(folder)])
    assert {path.name for path in folder.iterdir()} == {
        "cells.h5ad", "cells.csv", "losses.csv", "heldout.csv", "model.pt", "run.json",
    }  # fmt: skip
    cells, record = anndata.read_h5ad(folder / "cells.h5ad"), json.loads((folder / "run.json").read_text())
    assert cells.shape == (36, 20) and list(cells.var_names) == list(toy.var_names)
    assert set(cells.obs["cell_type"]) <= set(TOY_SIZES) and cells.uns["scale"] == scale
    assert cells.X.dtype == np.float32 and np.isfinite(cells.X.data).all() and (cells.X.data >= 0).all()
    assert scale != "counts" or detect_scale(cells.X) == "counts"
    csv = pd.read_csv(folder / "cells.csv", index_col="cell")
    np.testing.assert_allclose(csv[list(toy.var_names)].to_numpy(), cells.X.toarray(), rtol=1e-5)
    assert list(csv["cell_type"]) == list(cells.obs["cell_type"])
    losses = pd.read_csv(folder / "losses.csv")
    assert losses["step"].tolist() == [2, 4] and "mmd" in losses and losses.shape[1] > 2

    assert (record["dataset"], record["method"], record["seed"], record["holdout"]) == ("toy", name, 1, 0.5)
    assert (record["baseline"], record["labels"], record["steps"]) == (name, method.LABELS, 4)
    assert record["params"] == json.loads(
        json.dumps({f.name: getattr(small(name), f.name) for f in fields(small(name))})
    )
    assert (record["cells"], record["genes"], record["preset"]) == (36, 20, "tuned") and list(record["sha256"])
    assert list(record["stages"]) == ["loading", "training", "sampling"]
    run = load_run(folder)  # as the judges read it
    assert run.train.n_obs == run.held.n_obs == 36 and run.method == name
    weights = torch.load(folder / "model.pt", weights_only=True)
    assert weights["method"] == name

    method.main(["--from", str(folder), "--seed", "1"])  # later, by model.pt alone
    later = anndata.read_h5ad(folder / "drawn_seed1" / "cells.h5ad")
    assert (later.X != cells.X).nnz == 0 and (later.obs["cell_type"] == cells.obs["cell_type"]).all()
    assert load_run(folder / "drawn_seed1").method == f"{name} drawn by seed 1"

    method.main([*flags, "--out", str(tmp_path / "again")])
    assert (tmp_path / "again" / "cells.csv").read_bytes() == (folder / "cells.csv").read_bytes()
    assert (tmp_path / "again" / "losses.csv").read_bytes() == (folder / "losses.csv").read_bytes()


def test_flags_of_the_run(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("common.generation.RESULTS_DIR", tmp_path)
    toy.write_h5ad(tmp_path / "toy.h5ad")
    flags = ["--input", str(tmp_path / "toy.h5ad"), *flags_of(small("gan"))]
    gan.main([*flags, "--n-cells", "5", "--cell-type", "T"])
    cells = anndata.read_h5ad(tmp_path / "synthetic" / "toy" / "gan" / "seed42" / "cells.h5ad")
    assert cells.n_obs == 5 and set(cells.obs["cell_type"]) == {"T"}
    gan.main([*flags, "--preset", "paper", "--seed", "3"])
    gan.main([*flags, "--name", "mine"])
    assert {path.name for path in (tmp_path / "synthetic" / "toy").iterdir()} == {"gan", "gan_paper", "mine"}
    assert not (tmp_path / "synthetic" / "toy" / "gan_paper" / "seed3" / "heldout.csv").exists()
    for wrong, told in (
        (["--cell-type", "NKT"], "did you mean 'NK'"),
        (["--n-cells", "0"], "give at least 1"),
        (["--seed", "-1"], "--seed is -1"),
        (["--generator-lr", "0"], "--generator-lr is 0.0"),
    ):
        with pytest.raises(SystemExit):
            gan.main([*flags, *wrong])
        assert told in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("name", METHODS)
def test_a_model_keeps_no_expression_of_a_cell(toy, name):
    """But for the kept cells, which are LSH-GAN's input."""
    model = load_method(name).fit(toy, small(name), seed=0, device="cpu")
    tensors = [*model.sampler.state_dict().values(), *model.memory.content().values()]
    rows = {row.tobytes() for t in tensors if torch.is_tensor(t) and t.shape[-1:] == (20,) for row in t.numpy()}
    assert any(row.tobytes() in rows for row in LogValues.of(toy).X) == (name == "lsh_gan")


def test_what_cannot_be_drawn_from(toy, tmp_path, capsys):
    toy.write_h5ad(tmp_path / "toy.h5ad")
    run = tmp_path / "run"
    gan.main(["--input", str(tmp_path / "toy.h5ad"), *flags_of(small("gan")), "--out", str(run)])
    torch.save({"format": "garage-model-1"}, tmp_path / "model.pt")
    broken = torch.load(run / "model.pt", weights_only=True)
    (tmp_path / "broken").mkdir()
    torch.save({**broken, "weights": {}}, tmp_path / "broken" / "model.pt")
    for main, folder, flags, told in (
        (wgan.main, run, [], "is a run of gan"),
        (gan.main, tmp_path, [], "is a garage-model-1"),
        (gan.main, tmp_path / "broken", [], "lacks parts of a model"),
        (gan.main, tmp_path / "nowhere", [], "is missing"),
        (gan.main, run, ["--holdout", "0.5"], "settles its holdout"),
        (gan.main, run, ["--cell-type", "NKT"], "did you mean 'NK'"),
        (gan.main, run, ["--out", str(run)], "give another folder"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["--from", str(folder), *flags])
        assert stop.value.code == 2 and told in capsys.readouterr().err.replace("\n", " ")
    assert {path.name for path in run.iterdir()} == {"cells.h5ad", "cells.csv", "losses.csv", "model.pt", "run.json"}


@pytest.mark.parametrize("name", METHODS)
def test_presets_and_hyperparameters_are_flags(name):
    presets = BASELINES[name]
    assert parse(name, []).params == presets["tuned"] and parse(name, ["--preset", "paper"]).params == presets["paper"]
    assert parse(name, ["--preset=paper", "--budget", "7"]).params == replace(presets["paper"], budget=7)
    assert parse(name, flags_of(small(name))).params == small(name)


@pytest.mark.parametrize(("flags", "told"), [([], "is empty"), (["8", "-3"], "is 8 -3")])
def test_layers_have_a_width(capsys, flags, told):
    with pytest.raises(SystemExit) as stop:
        vae.main(["--encoder-hidden", *flags])
    assert stop.value.code == 2 and f"--encoder-hidden {told}: give one width or more" in capsys.readouterr().err


TRAINING = {"budget": 3, "budget_in": "epochs", "batch_size": 9, "validation": 0.5}
DUEL = {
    **TRAINING, "generator_hidden": (9, 8), "critic_hidden": (9, 8), "generator_lr": 0.1, "critic_lr": 0.1,
    "critic_steps": 3, "generator_steps": 2, "ema_decay": 0.1, "r1_weight": 50.0, "whole_counts": False,
}  # fmt: skip
CHANGED = {
    "gan": {**DUEL, "latent_dim": 7, "beta1": 0.1},
    "wgan": {**DUEL, "latent_dim": 7, "clip": 0.3},
    "fgan": {**DUEL, "latent_dim": 7, "beta1": 0.1, "divergence": "kl"},
    "lsh_gan": {**DUEL, "neighbors": 30, "hash_tables": 1, "hash_bits": 3, "generate_from": "noise"},
    "vae": {
        **TRAINING, "latent_dim": 7, "encoder_hidden": (9,), "decoder_hidden": (9,), "lr": 0.1, "reduce": "mean",
        "likelihood": "normal", "warmup": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize(("name", "flag"), [(name, flag) for name in SOTA for flag in CHANGED[name]])
def test_every_hyperparameter_changes_the_cells(toy, name, flag):
    common = {"validation": 0.0, "budget": 12}  # the last weights, after some turns of the generator
    cells = on_scale(toy, "log")  # where nothing is rounded away
    plain, other = cells_of(name, cells, **common), cells_of(name, cells, **common | {flag: CHANGED[name][flag]})
    assert (plain.X != other.X).nnz > 0


@pytest.mark.parametrize("name", SOTA)
def test_no_hyperparameter_is_left_out(name):
    """check_every and patience are of the loop, whose test is below."""
    assert {field.name for field in fields(BASELINES[name]["tuned"])} == {*CHANGED[name], "check_every", "patience"}


@pytest.mark.parametrize("name", SOTA)
def test_scaled_values_stay_scaled(toy, name):
    drawn = cells_of(name, on_scale(toy, "scaled"), budget=60)
    assert (drawn.X.data < 0).any() and np.isfinite(drawn.X.data).all()


@pytest.mark.parametrize("name", SOTA)
def test_importers_keep_their_random_numbers(toy, name):
    state = torch.get_rng_state()
    cells_of(name, toy)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", SOTA)
def test_few_cells_of_one_type_will_do(toy, name):
    cells = toy[toy.obs["cell_type"] == "NK"][:3].copy()
    drawn = cells_of(name, cells, n_cells=4)
    assert drawn.n_obs == 4 and set(drawn.obs["cell_type"]) == {"NK"}
    with pytest.raises(UserError, match="too few"):
        cells_of(name, cells[:1].copy())


# ---------------------------------------------------------------------------------------------- values and labels


def test_back_is_right_in_expectation_and_has_library_sizes_of_the_type(toy):
    toy.X = sparse.csr_matrix(toy.X.multiply(np.where(toy.obs["cell_type"] == "NK", 50, 1)[:, None]), dtype=np.float32)
    values, rng = LogValues.of(toy), np.random.default_rng(0)
    row = np.log1p(np.array([[0.0, 0.3, 2.6, 1.1]])) - np.array([[0.7, 0, 0, 0]])
    for name in ("NK", "T"):
        drawn = values.back(np.repeat(row, 4000, 0), np.repeat(name, 4000), rng).toarray()
        expected = values.sizes[values.types == name].mean() * np.array([0, 0.3, 2.6, 1.1]) / 4
        np.testing.assert_allclose(drawn.mean(0), expected, rtol=0.03)
        assert (drawn == np.rint(drawn)).all()


@pytest.mark.parametrize("scale", ["linear", "log", "scaled"])
def test_back_undoes_the_way_there(toy, scale):
    cells = on_scale(toy, scale)
    values = LogValues.of(cells)
    back = values.back(values.X, values.types, np.random.default_rng(0))
    np.testing.assert_allclose(back.toarray(), cells.X.toarray(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", ["counts", "linear"])
def test_what_a_network_makes_is_finite_even_if_it_diverged(toy, scale):
    values = LogValues.of(on_scale(toy, scale) if scale == "linear" else toy)
    diverged = values.X.copy()
    diverged[0, 0] = 2000.0  # beyond the exponential of any float
    back = values.back(diverged, values.types, np.random.default_rng(0))
    assert np.isfinite(back.data).all()
    if scale == "counts":
        assert np.isclose(values.sizes[values.types == values.types[0]], back[0].sum(), atol=1).any()


def test_counts_are_brought_to_the_median_library_size(toy):
    values = LogValues.of(toy)
    np.testing.assert_allclose(np.expm1(values.X).sum(1), np.median(toy.X.toarray().sum(1)), 1e-4)


def with_generator(toy, draw):
    data = prepare(toy, BaselineParams(), seed=0, device="cpu")
    return baseline.Unconditional.of(data, SimpleNamespace(draw=draw), pd.DataFrame())


def test_the_classifier_names_the_types_that_come(toy):
    values = LogValues.of(toy)
    rows = np.tile(np.arange(72), 1000)
    model = with_generator(toy, lambda n: torch.from_numpy(values.X[rows[:n]]))
    drawn = baseline.sample(model, 72, seed=0)
    assert (drawn.obs["cell_type"].to_numpy() == toy.obs["cell_type"].to_numpy()).mean() > 0.95
    only = baseline.sample(model, 2500, cell_type="NK", seed=0)
    assert only.n_obs == 2500 and set(only.obs["cell_type"]) == {"NK"}
    assert list(only.obs["cell_type"].cat.categories) == list(TOY_SIZES)


def test_a_type_that_never_comes_is_told(toy):
    values = LogValues.of(toy)
    model = with_generator(toy, lambda n: torch.from_numpy(values.X[values.types == "T"][:1]).repeat(n, 1))
    with pytest.raises(UserError, match=r"made 0 of 3 cells of type NK in 50000 draws: .*leave out --cell-type"):
        baseline.sample(model, 3, cell_type="NK", seed=0)


# ---------------------------------------------------------------------------------------------- the loop


def test_every_type_gives_its_share_to_the_validation(toy):
    values = LogValues.of(toy)
    chosen = set()
    for seed in range(5):
        data = TrainingCells.of(values, 0.25, torch.device("cpu"), np.random.default_rng(seed))
        left = np.setdiff1d(np.arange(72), data.rows)
        for name, size in TOY_SIZES.items():
            assert abs((values.types[left] == name).sum() - 0.25 * size) < 1
        np.testing.assert_array_equal(data.X.numpy(), values.X[data.rows])
        assert sorted(map(tuple, data.validation.numpy())) == sorted(map(tuple, values.X[left]))
        assert [list(TOY_SIZES)[t] for t in data.types] == values.types[data.rows].tolist()
        chosen.add(tuple(left))
    assert len(chosen) == 5
    assert len(TrainingCells.of(values, 0.0, torch.device("cpu"), np.random.default_rng(0)).validation) == 0


def test_small_types_keep_all_their_cells_for_training(toy):
    """A tenth of the eight NK cells is less than one."""
    values = LogValues.of(toy)
    for seed in range(20):
        data = TrainingCells.of(values, 0.1, torch.device("cpu"), np.random.default_rng(seed))
        left = values.types[np.setdiff1d(np.arange(72), data.rows)]
        assert "NK" not in left and len(left) in (6, 7)


def gaussian_cells(n_cells=400, n_genes=60):
    rng = np.random.default_rng(0)
    X = 5 + rng.standard_normal((n_cells, n_genes)).astype(np.float32)
    obs = pd.DataFrame({"cell_type": "T"}, index=[f"c{i}" for i in range(n_cells)])
    cells = AnnData(sparse.csr_matrix(X), obs, uns={"scale": "log"})
    return TrainingCells.of(LogValues.of(cells), 0.25, torch.device("cpu"), rng)


def test_the_criterion_sees_shifts_lost_variance_and_noise_beyond_the_cells():
    criterion = Criterion(gaussian_cells())
    same = criterion(lambda n: 5 + torch.randn(n, 60))
    assert abs(same) < 0.01
    assert criterion(lambda n: 5.5 + torch.randn(n, 60)) > same + 0.02
    assert criterion(lambda n: 5 + 0.3 * torch.randn(n, 60)) > same + 0.02
    assert criterion(lambda n: 5 + torch.randn(n, 5) @ torch.randn(5, 60)) > same + 0.02
    assert criterion(lambda n: torch.full((n, 60), torch.nan)) == np.inf
    assert criterion(lambda n: torch.randn(n, 60)) == criterion(lambda n: torch.randn(n, 60))


def test_counts_are_judged_as_they_are_handed_out(toy):
    values = LogValues.of(toy)
    x = torch.tensor([[-1.0, 0.0, 0.4, 2.2]]).repeat(20_000, 1).requires_grad_()
    made = values.whole(x)
    counts = made.detach().expm1()
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-4)
    expected = x[0].detach().clamp_min(0).expm1()
    torch.testing.assert_close(counts.mean(0), expected, rtol=0.05, atol=0.02)  # right in expectation
    made.sum().backward()
    assert x.grad.mean(0).tolist() == [0, 1, 1, 1]  # as if nothing had been rounded
    assert torch.isfinite(values.whole(torch.full((1, 20), 1e4))).all()
    for scale, least in (("log", 0), ("linear", 0), ("scaled", -1)):
        made = LogValues.of(on_scale(toy, scale)).whole(x.detach())
        torch.testing.assert_close(made, x.detach().clamp_min(least))


def walk(params, *, n_steps=None):
    """Train a mean that comes nearer to the cells' until step 20 and then leaves again."""
    data, network, reports = gaussian_cells(), nn.Linear(1, 1), []
    network.weight.data.fill_(-20)
    batches = []

    def step(rows):
        network.weight.data += 1
        batches.append(rows)
        return {"loss": network.weight.detach().clone().squeeze()}

    def draw(n):
        return 5 + 0.1 * network.weight.detach() + torch.randn(n, 60)

    losses = train(step, draw, {"it": network}, data, params, report=lambda *a, **k: reports.append(a))
    return losses, float(network.weight), batches, reports


def test_training_stops_when_it_gets_no_better_and_keeps_the_best_weights():
    losses, weight, _, reports = walk(BaselineParams(budget=1000, check_every=5, patience=4))
    assert losses["step"].tolist() == [5, 10, 15, 20, 25, 30, 35, 40]
    assert weight == 0 and losses["mmd"].idxmin() == 3
    assert losses["loss"].tolist() == pytest.approx([-17, -12, -7, -2, 3, 8, 13, 18])
    assert reports[-1][1:] == (1000, 1000)
    assert walk(BaselineParams(budget=1000, check_every=5, patience=2))[0]["step"].iloc[-1] == 30


def test_the_budget_is_kept():
    losses, weight, batches, _ = walk(BaselineParams(budget=12, check_every=5))
    assert losses["step"].tolist() == [5, 10, 12] and weight == -8
    _, _, batches, _ = walk(BaselineParams(budget=2, budget_in="epochs", batch_size=64, check_every=5))
    assert [len(rows) for rows in batches] == 2 * [64, 64, 64, 64, 44]
    for epoch in (batches[:5], batches[5:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(300))
    assert not torch.equal(batches[0], batches[5])
    _, _, batches, _ = walk(BaselineParams(budget=1, budget_in="epochs", batch_size=299))
    assert [len(rows) for rows in batches] == [299]  # a lone cell has no variance
    losses, weight, _, _ = walk(BaselineParams(budget=0))
    assert losses.empty and weight == -20


def test_without_validation_cells_the_whole_budget_is_run(toy):
    model = gan.fit(toy, small("gan", validation=0.0, budget=9), seed=0, device="cpu")
    assert model.losses["step"].tolist() == [2, 4, 6, 8, 9] and model.losses["mmd"].isna().all()


# ---------------------------------------------------------------------------------------------- duels


def duel_with(params, **parts):
    """A duel of two linear networks on the toy cells, that counts the turns of both."""
    data = prepare(make_toy(), params, seed=0, device="cpu")
    turns = []
    known = {
        "generator": FromNoise(nn.Linear(3, 20), 3), "critic": nn.Linear(20, 1),
        "critic_loss": lambda real, fake: (turns.append("c"), (fake - real).mean())[1],
        "generator_loss": lambda real, fake: (turns.append("g"), -fake.mean())[1],
        "optimizer": torch.optim.SGD,
    }  # fmt: skip
    return Duel(**known | parts).fit(data, params, report=lambda *a, **k: None), "".join(turns)


@pytest.mark.parametrize(
    ("critic", "generator", "turns"), [(1, 1, "cg" * 10), (5, 1, "cccccg" * 2), (2, 3, "ccggg" * 5)]
)
def test_turns_are_taken_as_told(critic, generator, turns):
    params = small("gan", budget=10, critic_steps=critic, generator_steps=generator)
    assert duel_with(params)[1] == turns


def test_cells_are_drawn_from_the_averaged_weights():
    seen = []
    network = nn.Linear(3, 20)
    network.register_forward_hook(lambda *_: seen.append(network.weight.detach().clone()))
    params = small("gan", budget=3, validation=0.0, ema_decay=0.75, generator_lr=5.0)
    model, _ = duel_with(params, generator=FromNoise(network, 3))
    a, b, c = seen[2], seen[4], network.weight.detach()  # after each of the three steps
    average = 0.75 * (0.75 * a + 0.25 * b) + 0.25 * c
    torch.testing.assert_close(model.sampler.network.weight, average)
    assert not torch.allclose(average, c)


def test_the_critic_sees_cells_as_they_are_handed_out(toy):
    real = {round(float(value), 4) for value in np.unique(LogValues.of(toy).X)}
    for whole in (True, False):
        critic, seen = nn.Linear(20, 1), []
        critic.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0].detach()))
        duel_with(small("gan", whole_counts=whole), critic=critic)
        fake = torch.cat([x for x in seen if round(float(x.max()), 4) not in real])
        counts = fake.expm1()
        assert torch.allclose(counts, counts.round(), atol=1e-4) == whole
        assert (float(fake.min()) < 0) != whole


def test_r1_is_half_the_mean_squared_gradient():
    critic = nn.Sequential(nn.Linear(4, 1, bias=False))
    critic[0].weight.data = torch.tensor([[1.0, 2.0, 0.0, 2.0]])
    assert float(r1(critic, torch.randn(6, 4))) == pytest.approx(4.5)
    x = torch.randn(50, 3)
    assert float(r1(lambda x: x.square().sum(1), x)) == pytest.approx(2 * float(x.square().sum(1).mean()), rel=1e-5)


@pytest.mark.parametrize("make", [gan, wgan, fgan, lsh_gan])
@pytest.mark.parametrize("preset", ["tuned", "paper"])
def test_networks_are_plain_layers_of_the_stated_widths(make, preset):
    params = BASELINES[make.__name__.rpartition(".")[2]][preset]
    generator, critic = make.make_generator(50, params), make.make_critic(50, params)
    n_in = getattr(params, "latent_dim", 50)
    widths = [layer.weight.shape for layer in generator if isinstance(layer, nn.Linear)]
    expected = [n_in, *params.generator_hidden, 50]
    assert [tuple(w) for w in widths] == list(zip(expected[1:], expected[:-1], strict=True))
    widths = [tuple(layer.weight.shape) for layer in critic if isinstance(layer, nn.Linear)]
    expected = [50, *params.critic_hidden, *([50] if make is lsh_gan else []), 1]
    assert widths == list(zip(expected[1:], expected[:-1], strict=True))


# ---------------------------------------------------------------------------------------------- gan and wgan


def test_gan_losses_are_cross_entropies():
    real, fake = np.array([1.5, -0.3, 0.2]), np.array([0.7, -2.0])
    chance = [1 / (1 + np.exp(-v)) for v in (real, fake)]
    tensors = [torch.tensor(v)[:, None] for v in (real, fake)]
    expected = -np.log(chance[0]).mean() - np.log(1 - chance[1]).mean()
    assert float(gan.critic_loss(*tensors)) == pytest.approx(expected)
    assert float(gan.generator_loss(tensors[1])) == pytest.approx(-np.log(chance[1]).mean())
    assert float(gan.critic_loss(torch.zeros(3, 1), torch.zeros(2, 1))) == pytest.approx(2 * np.log(2))
    assert lsh_gan.critic_loss is gan.critic_loss and lsh_gan.generator_loss is gan.generator_loss


def test_wgan_estimates_the_wasserstein_distance_of_a_shift():
    x = torch.randn(1000, 3)
    shift = torch.tensor([0.0, 0.6, -0.8])
    assert float(-wgan.critic_loss((x + shift) @ shift, x @ shift)) == pytest.approx(1.0, abs=1e-5)  # slope 1
    assert float(wgan.generator_loss(torch.tensor([1.0, 2.0]))) == -1.5


@pytest.mark.parametrize("clip", [0.01, 0.05])
def test_wgan_weights_stay_within_the_clip(toy, clip, monkeypatch):
    params = WganParams(budget=40, check_every=10, critic_lr=0.05, clip=clip, critic_hidden=(8,), validation=0.0)
    critic = wgan.make_critic(20, params)
    monkeypatch.setattr(wgan, "make_critic", lambda *_: critic)
    model = wgan.fit(toy, params, seed=0, device="cpu")
    assert max(float(weights.abs().max()) for weights in critic.parameters()) == pytest.approx(clip)
    assert max(float(w.abs().max()) for w in model.sampler.parameters()) > clip


# ---------------------------------------------------------------------------------------------- fgan

F = {  # f of each divergence, D_f(P || Q) being the mean of f(p / q) under Q (Nowozin et al., table 1)
    "kl": lambda u: u * np.log(u),
    "reverse_kl": lambda u: -np.log(u),
    "pearson": lambda u: (u - 1) ** 2,
    "jensen_shannon": lambda u: u * np.log(u) - (u + 1) * np.log((u + 1) / 2),
}
BEST = {"kl": lambda r: 1 + torch.log(r), "pearson": lambda r: 2 * (r - 1)}  # the verdicts that make the bound tight


def number(function, value):
    return float(function(torch.tensor(value, dtype=torch.float64)))


@pytest.mark.parametrize("divergence", F)
@pytest.mark.parametrize("v", [-1.5, -0.2, 0.0, 0.9, 2.0])
def test_conjugates_are_those_of_f(divergence, v):
    activation, conjugate = fgan.DIVERGENCES[divergence]
    t = number(activation, v)
    best = minimize_scalar(
        lambda u: F[divergence](u) - t * u, bounds=(1e-9, 200), method="bounded", options={"xatol": 1e-9}
    )
    assert number(conjugate, v) == pytest.approx(-best.fun, abs=1e-4)


@pytest.mark.parametrize("shift", [0.3, 0.8])
@pytest.mark.parametrize("divergence", F)
def test_the_bound_of_the_best_critic_is_the_divergence_of_gaussians(divergence, shift):
    closed = {"kl": shift**2 / 2, "reverse_kl": shift**2 / 2, "pearson": np.exp(shift**2) - 1}
    p, q = norm(shift, 1).pdf, norm(0, 1).pdf
    exact = quad(lambda x: q(x) * F[divergence](p(x) / q(x)), -8, 8)[0]
    assert divergence not in closed or exact == pytest.approx(closed[divergence], rel=1e-6)
    z = torch.from_numpy(norm.ppf((np.arange(200_000) + 0.5) / 200_000))
    best = BEST.get(divergence, torch.log)

    def verdict(x):
        return best(torch.exp(shift * x - shift**2 / 2))  # of the ratio p / q

    assert float(fgan.bound(verdict(z + shift), verdict(z), divergence)) == pytest.approx(exact, rel=1e-3)
    for worse in (lambda x: verdict(x) + 0.3, lambda x: 0.5 * verdict(x), lambda x: torch.zeros_like(x)):
        assert float(fgan.bound(worse(z + shift), worse(z), divergence)) < exact
    assert float(fgan.critic_loss(verdict(z + shift), verdict(z), divergence)) == pytest.approx(-exact, rel=1e-3)


@pytest.mark.parametrize("divergence", [*F, "fisher_ratio"])
def test_the_generator_moves_towards_the_real_cells(divergence):
    """With a critic that prefers larger values, as real ones are; the published sign would move away."""
    x = torch.linspace(-1, 1, 50)
    fake = (x - 1).requires_grad_()
    fgan.generator_loss(0.5 * x, 0.5 * fake, divergence).backward()
    assert float(fake.grad.mean()) < 0


def test_the_fisher_ratio_is_that_of_hand_computation():
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([-1.0, 0.0, 1.0])
    ratio = 2 / np.sqrt(1 + 2 / 3)
    assert float(fgan.fisher_ratio(real, fake)) == pytest.approx(ratio)
    assert float(fgan.critic_loss(real, fake, "fisher_ratio")) == pytest.approx(-ratio + 10 * (5 + 2 / 3 - 1) ** 2)
    assert float(fgan.critic_loss(0.1 * real, 0.1 * fake, "fisher_ratio")) == pytest.approx(-ratio, rel=1e-5)


@pytest.mark.parametrize("divergence", F)
def test_every_divergence_trains(toy, divergence):
    model = fgan.fit(toy, small("fgan", budget=40, divergence=divergence), seed=0, device="cpu")
    assert np.isfinite(model.losses).all(axis=None)


# ---------------------------------------------------------------------------------------------- vae


def test_vae_losses_are_the_evidence_lower_bound():
    torch.manual_seed(0)
    x, r, noise, m, v = torch.randn(5, 7), torch.randn(5, 7), torch.randn(7), torch.randn(5, 3), torch.randn(5, 3)
    normal = torch.distributions.Normal
    expected = -normal(r, torch.exp(0.5 * noise)).log_prob(x) - 0.5 * np.log(2 * np.pi)
    torch.testing.assert_close(vae.error(x, r, noise), expected)
    torch.testing.assert_close(vae.error(x, r, None), (x - r) ** 2)
    kl = torch.distributions.kl_divergence(normal(m, torch.exp(0.5 * v)), normal(0.0, 1.0))
    torch.testing.assert_close(vae.divergence(m, v), kl)


def test_the_network_draws_posteriors_and_decodes_them():
    network = vae.Vae(7, VaeParams(latent_dim=3, encoder_hidden=(6, 5), decoder_hidden=(4,)))
    x, eps = torch.randn(2, 7), torch.randn(2, 3)
    out = network(x, eps)
    z = out.mean + torch.exp(out.log_variance).sqrt() * eps
    torch.testing.assert_close(out.reconstruction, network.decoder(z))
    linear = [tuple(layer.weight.shape) for layer in network.modules() if isinstance(layer, nn.Linear)]
    assert linear == [(6, 7), (5, 6), (3, 5), (3, 5), (4, 3), (7, 4)]


@pytest.mark.slow
def test_the_tuned_posterior_does_not_collapse_and_the_published_one_does(toy):
    """With twenty genes for each latent dimension, as cbmc has with the published hundred; other sets have more."""
    short = {"budget": 600, "budget_in": "steps", "check_every": 100, "validation": 0.0, "lr": 3e-3, "latent_dim": 1}
    tuned, paper = (
        vae.fit(toy, replace(BASELINES["vae"][preset], **short), seed=0, device="cpu") for preset in ("tuned", "paper")
    )
    spread = [torch.var(model.sampler.decoder(torch.randn(500, 1)), 0).sum() for model in (tuned, paper)]
    total = LogValues.of(toy).X.var(0).sum()
    assert tuned.losses["kl"].iloc[-1] > 1  # nats a cell
    assert spread[0] > 0.2 * total
    assert spread[1] < 0.05 * total


def test_generated_values_vary_about_the_decoder_s_mean_as_the_cells_do(toy):
    draws = {}
    for likelihood in ("normal", "squared_error"):
        model = vae.fit(toy, small("vae", likelihood=likelihood), seed=0, device="cpu")
        model.sampler.decoder[-1].weight.data.zero_()
        with torch.no_grad():
            draws[likelihood] = model.sampler.draw(20_000).var(0)
            noise = torch.exp(model.sampler.noise)
    torch.testing.assert_close(draws["normal"], noise, rtol=0.05, atol=1e-4)
    assert (draws["squared_error"] < 1e-9).all()


def test_the_weight_of_the_divergence_rises(toy):
    """A warm-up that has hardly begun leaves the posterior where the likelihood wants it."""
    kl = [
        vae.fit(toy, small("vae", budget=300, warmup=steps, validation=0.0, lr=3e-3), seed=0, device="cpu")
        .losses["kl"]
        .iloc[-1]
        for steps in (0, 100_000)
    ]
    assert kl[1] > 2 * kl[0]


# ---------------------------------------------------------------------------------------------- lsh_gan


def clusters(n_genes=100):
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 3, (6, n_genes))
    return np.repeat(centres, 50, 0) + rng.normal(0, 1, (300, n_genes)), np.repeat(np.arange(6), 50)


def hashed(X, k=5, tables=32, bits=8, seed=0):
    return lsh_gan.hash_neighbors(X, k, tables=tables, bits=bits, seed=seed)


def test_hashing_keeps_neighbours_together():
    X, cluster = clusters()
    found = hashed(X)
    assert found.shape == (300, 5) and (found[:, 0] == np.arange(300)).mean() > 0.99
    assert (cluster[found] == cluster[:, None]).mean() > 0.99
    # within a cluster, the nearer by angle the sooner found
    X = np.random.default_rng(1).normal(size=(300, 20))
    angle = np.argsort(-np.corrcoef(X), 1)[:, :15]
    hit = np.mean([np.isin(row[row >= 0][1:], near).mean() for row, near in zip(hashed(X), angle, strict=True)])
    assert hit > 3 * 15 / 300


def test_buckets_of_many_bits_hold_few():
    X = np.random.default_rng(1).normal(size=(300, 20))
    assert (hashed(X, tables=1, bits=30) < 0).mean() > (hashed(X, tables=32, bits=4) < 0).mean() == 0
    assert (hashed(X, tables=8, bits=16) != hashed(X, tables=8, bits=16, seed=1)).any()
    assert (hashed(X) == hashed(X)).all()


def test_the_sub_sample_thins_every_cluster_and_needs_no_order():
    X, cluster = clusters()
    neighbors = hashed(X)
    kept = lsh_gan.subsample(neighbors, np.random.default_rng(0))
    share = [kept[cluster == c].mean() for c in range(6)]
    assert min(share) > 0.15 and max(share) < 0.6
    others = [lsh_gan.subsample(neighbors, np.random.default_rng(seed)) for seed in range(40)]
    assert np.mean(others, 0)[::50].min() < 1  # by the file's order the first of them would always be kept
    lone = np.full((7, 3), -1)
    lone[:, 0] = np.arange(7)
    assert lsh_gan.subsample(lone, np.random.default_rng(0)).all()
    chain = np.array([[0, 1], [1, 0], [2, 1]])
    found = {tuple(lsh_gan.subsample(chain, np.random.default_rng(s)).tolist()) for s in range(30)}
    assert found == {(True, False, True), (False, False, True)}  # a later cell strikes out kept ones too, as published


def test_the_generator_is_fed_kept_cells_as_told(toy, monkeypatch):
    """Their rows among the noise, in the proportion that they have among the cells."""
    fed = []
    make = lsh_gan.make_generator

    def noting(*args):
        network = make(*args)
        network.register_forward_pre_hook(lambda _, z: fed.append(z[0].detach().clone()))
        return network

    monkeypatch.setattr(lsh_gan, "make_generator", noting)
    real = {row.tobytes() for row in LogValues.of(toy).X}

    def share(z):
        is_real = np.array([row.numpy().tobytes() in real for row in z])
        assert (z[~is_real].abs() <= 1).all() and (z[~is_real] < 0).any()
        return is_real.mean()

    for generate_from, drawn in (("mixed", True), ("noise", False)):
        fed.clear()
        params = small("lsh_gan", budget=40, validation=0.0, generate_from=generate_from)
        model = lsh_gan.fit(toy, params, seed=0, device="cpu")
        training = share(torch.cat(fed))
        assert 0.1 < training < 0.6
        hook = model.sampler.network.register_forward_pre_hook(lambda _, z: fed.append(z[0]))
        fed.clear()
        model.sampler.draw(2000)
        hook.remove()
        assert share(fed[0]) == pytest.approx(training if drawn else 0, abs=0.06)


def test_paper_presets_are_the_published_ones():
    found = {name: BASELINES[name]["paper"] for name in SOTA}
    assert {name: (p.budget, p.budget_in, p.batch_size) for name, p in found.items()} == {
        **dict.fromkeys(SOTA[:4], (2001, "epochs", 64)), "lsh_gan": (20010, "steps", 64),
    }  # fmt: skip
    assert all(p.validation == 0 for p in found.values())
    assert (found["wgan"].clip, found["wgan"].generator_lr, found["fgan"].divergence) == (0.01, 5e-4, "fisher_ratio")
    assert isinstance(found["lsh_gan"], LshGanParams) and found["lsh_gan"].generator_hidden == (16, 16)
