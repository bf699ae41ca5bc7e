"""Stage 2 of preset `paper`: the published arithmetic, and nothing of it lost to speed."""

import io
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarking.performance.published_loop import PublishedLoop
from common.cli import silent
from common.run import no_checkpoint
from config import PaperParams
from data_generation import paper_gan
from data_generation.paper_gan import Critic, Generator, Training, sample

N_CELLS, N_GENES, N_SEEDS = 20, 12, 5
PARAMS = PaperParams(iterations=25, generator_hidden=(16, 14), critic_hidden=(10, 8))


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def cells() -> Tensor:
    return torch.rand(N_CELLS, N_GENES, generator=random(), dtype=torch.float64).mul(5).floor()


def fit(cells: Tensor, params: PaperParams = PARAMS, **options) -> tuple[Generator, list[dict[str, float]]]:
    training = Training(cells, cells[:N_SEEDS], params, options.get("rng", random(1)))
    if "state" in options:
        training.load(options["state"])
    training.run(options.get("report", silent), options.get("checkpoint", no_checkpoint))
    return training.generator, training.losses


def weights(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_arithmetic_is_the_published_one(cells):
    ours = Training(cells, cells[:N_SEEDS], PARAMS, random(1))
    rng = torch.Generator().set_state(ours.rng.get_state())
    published = PublishedLoop(cells.numpy(), cells[:N_SEEDS].numpy(), PARAMS, rng, torch.float64)
    for mine, theirs in ((ours.generator, published.generator), (ours.critic, published.critic)):
        for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
            q.data.copy_(p)
    start = weights(ours.generator)
    for _ in range(20):
        np.testing.assert_allclose([float(x) for x in ours.iterate()], published.iterate(), rtol=1e-9)
    torch.testing.assert_close(weights(ours.generator), weights(published.generator), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(weights(ours.critic), weights(published.critic), rtol=1e-7, atol=1e-9)
    assert (weights(ours.generator) - start).abs().max() > 1e-3


def test_critic_equals_its_layers_one_by_one(cells):
    critic = Critic(N_GENES, PARAMS).double()
    x = cells.clone().requires_grad_()

    def layer_by_layer(h: Tensor) -> Tensor:
        for layer in critic.hidden:
            h = F.leaky_relu(layer(h), 0.2)
        return critic.logit(critic.wide(h)).squeeze(1)

    wanted = [x, *critic.parameters()]
    fused, plain = critic(x), layer_by_layer(x)
    torch.testing.assert_close(fused, plain)
    for a, b in zip(torch.autograd.grad(fused.sin().sum(), wanted),
                    torch.autograd.grad(plain.sin().sum(), wanted), strict=True):  # fmt: skip
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_equals_pytorchs(dtype):
    shapes = ((9, 7), (5, 7), (5,))
    x, weight, bias = (torch.randn(*s, generator=random(), dtype=dtype).requires_grad_() for s in shapes)
    ours, theirs = paper_gan._Linear.apply(x, weight, bias), F.linear(x, weight, bias)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours.sin().sum(), (x, weight, bias)),
                    torch.autograd.grad(theirs.sin().sum(), (x, weight, bias)), strict=True):  # fmt: skip
        torch.testing.assert_close(a, b)


def test_layers_are_the_published_ones():
    params = PaperParams()
    shapes = [tuple(layer.weight.shape) for layer in Generator(30, params).layers]
    assert shapes == [(b, a) for a, b in pairwise((30, 1024, 1024, 30))]
    critic = Critic(30, params)
    shapes = [tuple(layer.weight.shape) for layer in (*critic.hidden, critic.wide, critic.logit)]
    assert shapes == [(b, a) for a, b in pairwise((30, 512, 256, 30, 1))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_interrupted_run_ends_the_same(cells, dtype):
    X = cells.to(dtype)
    files: list[bytes] = []

    def save(make_state: Callable[[], dict]) -> None:
        buffer = io.BytesIO()
        torch.save(make_state(), buffer)
        files.append(buffer.getvalue())

    generator, losses = fit(X, checkpoint=save)
    assert [row["step"] for row in losses] == [10, 20, 25]
    state = torch.load(io.BytesIO(files[0]), weights_only=True)
    assert state["step"] == 10
    resumed, resumed_losses = fit(X, rng=random(99), state=state)
    assert torch.equal(weights(generator), weights(resumed))
    assert losses == resumed_losses


def test_a_finished_run_is_left_as_it_is(cells):
    files: list[dict] = []
    generator, losses = fit(cells, checkpoint=lambda make_state: files.append(make_state()))
    again, again_losses = fit(cells, rng=random(99), state=files[-1])
    assert torch.equal(weights(generator), weights(again))
    assert losses == again_losses


def test_input_is_noise_and_all_seeds(cells, monkeypatch):
    inputs: list[Tensor] = []
    forward = Generator.forward
    monkeypatch.setattr(Generator, "forward", lambda self, z: (inputs.append(z.clone()), forward(self, z))[1])
    fit(cells, replace(PARAMS, iterations=3))
    assert len(inputs) == 3 * PARAMS.generator_steps  # none of its own for the critic's steps
    noise = torch.stack(inputs)[:, : N_CELLS - N_SEEDS]
    assert all(torch.equal(z[-N_SEEDS:], cells[:N_SEEDS]) and len(z) == N_CELLS for z in inputs)
    assert -1 <= noise.min() < -0.95 and 0.95 < noise.max() <= 1
    assert noise.mean().abs() < 0.1 and (noise.std() - 3**-0.5).abs() < 0.05
    assert torch.equal(inputs[0], inputs[1]) and not torch.equal(inputs[1], inputs[2])


@pytest.mark.parametrize("change", [
    {"iterations": 24}, {"generator_hidden": (16, 13)}, {"critic_hidden": (10, 7)}, {"generator_steps": 1},
    {"critic_steps": 4}, {"generator_lr": 1e-3}, {"critic_lr": 1e-3}, {"real_target": 0.8}, {"fake_target": 0.2},
    {"clip_norm": 0.01},
], ids=lambda change: next(iter(change)))  # fmt: skip
def test_every_parameter_acts(cells, change):
    params = replace(PARAMS, clip_norm=0.1)  # low enough to bite
    as_is, changed = fit(cells, params)[0], fit(cells, replace(params, **change))[0]
    assert weights(as_is).shape != weights(changed).shape or not torch.equal(weights(as_is), weights(changed))


def test_critic_tends_to_its_smoothed_targets(cells):
    params = replace(PARAMS, iterations=150, generator_steps=0, critic_lr=5e-3)
    training = Training(cells, cells[:0], params, random(1))
    training.run(silent)
    verdict = training.critic(training.batch).sigmoid().detach()
    assert verdict[:N_CELLS].mean() == pytest.approx(params.real_target, abs=0.03)
    assert verdict[N_CELLS:].mean() == pytest.approx(params.fake_target, abs=0.03)
    least = -2 * (0.9 * np.log(0.9) + 0.1 * np.log(0.1))  # 0.650
    assert least <= training.losses[-1]["critic"] < least + 0.05
    assert np.isnan(training.losses[-1]["generator"])


def test_weights_depend_on_rng_alone(cells):
    a = fit(cells)[0]
    torch.manual_seed(123)
    before = torch.get_rng_state()
    b = fit(cells)[0]
    assert torch.equal(weights(a), weights(b))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(weights(a), weights(fit(cells, rng=random(2))[0]))


def test_report_sees_the_losses(cells):
    seen = []
    _, losses = fit(cells, report=lambda *where, **values: seen.append((*where, values)))
    assert seen == [("GAN", r["step"], 25, {"generator": r["generator"], "critic": r["critic"]}) for r in losses]


@pytest.mark.parametrize(("n_cells", "n_from_seeds"), [(N_SEEDS + 6, N_SEEDS), (N_SEEDS, N_SEEDS), (3, 3), (0, 0)])
def test_sample_marks_what_came_from_seeds(cells, n_cells, n_from_seeds):
    generator = Generator(N_GENES, PARAMS).double()
    drawn, from_seed = sample(generator, cells[:N_SEEDS], n_cells, rng=random())
    assert drawn.shape == (n_cells, N_GENES) and not drawn.requires_grad
    assert from_seed.dtype == torch.bool and int(from_seed.sum()) == n_from_seeds
    torch.testing.assert_close(drawn[from_seed], generator(cells[:n_from_seeds]).detach())
    assert torch.equal(drawn, sample(generator, cells[:N_SEEDS], n_cells, rng=random())[0])
