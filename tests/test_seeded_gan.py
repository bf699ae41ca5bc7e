"""Stage 2 of preset `garage`: hybrid batches, training that resumes exactly, cells on every scale."""

import io
from dataclasses import fields, replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.spatial.distance import cdist

from common.cli import silent
from common.disk import to_disk
from common.run import no_checkpoint
from common.scale import to_log
from config import GarageParams, SelectionParams
from data_generation.calibration import Ranking
from data_generation.cell_selection import select
from data_generation.seeded_gan import Generator, SeedRows, Sight, Training, TrainingCells, observation_model
from data_generation.synthesis import SeededGan, learn_seed_shares

CPU = torch.device("cpu")
SCALES = ["counts", "linear", "log", "scaled"]


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def on_scale(X, scale):
    """Express counts on another scale."""
    X = X.toarray()
    if scale == "linear":
        return sp.csr_matrix(X / X.sum(1, keepdims=True) * 5e3)
    if scale == "log":
        return to_log(sp.csr_matrix(X), "counts", 50.0)
    if scale == "scaled":
        X = np.log1p(X)
        return sp.csr_matrix((X - X.mean(0)) / np.where(X.std(0) > 0, X.std(0), 1))
    return sp.csr_matrix(X)


def prepare(toy, params, *, scale="counts", seed=0, types=None, X=None, place=lambda X: X):
    """Run stage 1 and set stage 2 up."""
    X = place(on_scale(toy.X if X is None else X, scale))
    types = toy.obs["cell_type"].cat.codes.to_numpy() if types is None else types
    cells = TrainingCells.on(CPU, X, types, scale)
    library_size = float(np.median(np.asarray(X.sum(1)))) if scale == "counts" else 1.0
    selection = select(to_log(X, scale, library_size), types, params, seed=seed, device=CPU, report=silent)
    return Training(cells, selection, int(types.max()) + 1, params, seed=seed)


def train(toy, params, *, state=None, checkpoint=no_checkpoint, **options):
    training = prepare(toy, params, **options)
    if state is not None:
        training.load(state)
    training.run(silent, checkpoint)
    return training


def whole(gan, quota, rng):
    """All portions together."""
    X, types, from_seed = zip(*gan.draw(quota, rng), strict=True)
    return sp.vstack(X), np.concatenate(types), np.concatenate(from_seed)


def draw(training, n_each=40, seed=5):
    return whole(SeededGan.of(training), np.full(training.n_types, n_each), random(seed))[0].toarray()


def file_of(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def read(file):
    return torch.load(io.BytesIO(file), weights_only=True)


# ---------------------------------------------------------------------------------------------- hybrid batch


def test_batch_holds_the_share_of_seed_rows(toy, tiny):
    training = prepare(toy, replace(tiny, leakage=0.25))
    assert training.n_rows == 32 and training.n_seed_rows == 8
    seeds = training.seed_rows.seeds
    hood = {int(s): set(row.indices) for s, row in zip(seeds, training_hood(toy, tiny, 0.25), strict=True)}
    seen = set()
    for _ in range(60):
        start, goal = training._batch()
        assert len(start) == len(goal) == 32
        assert torch.equal(start[:24], goal[:24])  # these rows are to produce the cell they start from
        for seed, neighbor in zip(start[24:].tolist(), goal[24:].tolist(), strict=True):
            assert neighbor in hood[seed]
            seen.add((seed, neighbor))
    assert {seed for seed, _ in seen} == {seed for seed in seeds.tolist() if hood[seed]}
    types = training.cells.types
    assert all(types[a] == types[b] for a, b in seen)
    assert all(a != b for a, b in seen) and len(seen) > 50  # a seed never aims at itself


def training_hood(toy, tiny, leakage):
    X, types = toy.X, toy.obs["cell_type"].cat.codes.to_numpy()
    log_values = to_log(X, "counts", float(np.median(np.asarray(X.sum(1)))))
    params = replace(tiny, leakage=leakage)
    return select(log_values, types, params, seed=0, device=CPU, report=silent).neighborhood


def test_neighbours_are_drawn_in_proportion_to_attention():
    class Picked:
        is_seed = np.array([True, False, True, False])
        neighborhood = sp.csr_matrix(np.array([[0, 0.2, 0.0, 1.0], [0, 0.8, 0, 0]]))

    seeds, neighbors = SeedRows(Picked, CPU).draw(8000, random())
    assert (neighbors == 1).float().mean() == pytest.approx(0.5, abs=0.03)  # each listener as often
    of_second = seeds[neighbors == 1]
    assert set(of_second.tolist()) == {0, 2}
    assert (of_second == 2).float().mean() == pytest.approx(0.8, abs=0.03)
    assert (seeds[neighbors == 3] == 0).all()


def test_steps_of_an_epoch_cover_all_cells(toy, tiny):
    training = prepare(toy, replace(tiny, leakage=0.25, anchor_epochs=3, critic_steps=7))
    assert training.steps_per_epoch == 3  # 24 rows of its own, 72 cells
    assert training.anchor_steps == 9 and training.total_steps == 16


def test_seed_rows_keep_their_posterior_against_the_critic(toy, tiny, monkeypatch):
    training = prepare(toy, tiny)
    latents = []
    decode = Generator.decode
    monkeypatch.setattr(Generator, "decode", lambda self, z, *rest: (latents.append(z), decode(self, z, *rest))[1])
    training.critic_step()
    posteriors, mixed = latents
    n_noise = training.n_rows - training.n_seed_rows
    assert training.n_seed_rows == 6 and len(mixed) == training.n_rows
    assert torch.equal(mixed[n_noise:], posteriors[n_noise:])
    assert (mixed[:n_noise] != posteriors[:n_noise]).all()


def test_without_leakage_there_are_no_seed_rows(toy, tiny):
    training = train(toy, replace(tiny, leakage=0.0))
    assert training.n_seed_rows == 0
    start, goal = training._batch()
    assert torch.equal(start, goal) and len(start) == training.n_rows
    gan = SeededGan.of(training)
    X, _, from_seed = whole(gan, np.array([20, 20, 20]), random())
    assert X.shape == (60, 20) and not from_seed.any()


def test_share_of_seed_rows_among_synthetic_cells(toy, tiny):
    gan = SeededGan.of(train(toy, replace(tiny, leakage=0.3, seed_share=0.3)))
    _, _, from_seed = whole(gan, np.array([1000, 1000, 1000]), random())
    assert from_seed.reshape(3, 1000).mean(1) == pytest.approx([0.3] * 3, abs=0.05)


def test_only_types_that_have_seeds_make_seed_rows(toy, tiny):
    params = replace(tiny, rare_quota=False, leakage=0.03, seed_share=0.5)  # three seeds, of whatever type
    training = train(toy, params)
    with_seeds = set(training.cells.types[training.seed_rows.seeds].tolist())
    assert 0 < len(with_seeds) < 3
    _, types, from_seed = whole(SeededGan.of(training), np.array([400, 400, 400]), random())
    assert set(types[from_seed].tolist()) == with_seeds


# ---------------------------------------------------------------------------------------------- training


def elbo(training):
    """The bound on all cells, with noise of its own."""
    every = torch.arange(len(training.cells.dense)).repeat(10)
    batch = {"rng": random(77), "n_rows": len(every), "mine": torch.arange(len(every))}
    kept = {name: getattr(training, name) for name in batch}
    vars(training).update(batch)
    with torch.no_grad():
        nll, kl, _ = training._negative_elbo(every, every, training.cells.rows(every))
    vars(training).update(kept)
    return float(nll + kl)


@pytest.mark.parametrize("scale", SCALES)
def test_anchor_raises_the_evidence_lower_bound(toy, tiny, scale):
    params = replace(tiny, anchor_epochs=60, warmup_epochs=5, critic_steps=0, anchor_lr=5e-3)
    training = prepare(toy, params, scale=scale)
    before = elbo(training)
    training.run(silent)
    # an optimum of the mean profile alone is where it starts; the bound must rise by more than noise
    assert elbo(training) < before - 1.0
    assert [row["step"] for row in training.losses][-1] == training.total_steps


def test_warm_up_raises_the_weight_of_the_kl_term(toy, tiny, monkeypatch):
    training = prepare(toy, replace(tiny, warmup_epochs=2, anchor_epochs=30))
    weights = []
    bound = training._negative_elbo
    monkeypatch.setattr(
        training, "_negative_elbo", lambda *a: (weights.append(float(training.kl_weight)), bound(*a))[1]
    )
    training.run(silent)
    steps = training.warmup_steps
    assert steps == 2 * training.steps_per_epoch
    expected = [min(1.0, (step + 1) / (steps + 1)) for step in range(training.anchor_steps)]
    assert weights == pytest.approx([*expected, 1.0]) and weights[0] < 1


def test_average_follows_the_weights(toy, tiny):
    training = prepare(toy, replace(tiny, critic_steps=3, ema_decay=0.9))
    seen = []
    training.run(silent, lambda state: seen.append(read(file_of(state()))))
    name = "decoder.0.weight"
    at = {state["step"]: (state["generator"][name], state["average"][name]) for state in seen}
    anchored = training.anchor_steps
    assert torch.equal(*at[anchored])  # until then the average is the weights
    average = at[anchored][1]
    for step in range(anchored + 1, training.total_steps + 1):
        average = 0.9 * average + 0.1 * at[step][0]
        torch.testing.assert_close(at[step][1], average)
        assert not torch.equal(*at[step])
    assert torch.equal(training.generator.state_dict()[name], at[training.total_steps][1])  # cells are drawn from it
    assert not any(p.requires_grad for p in training.generator.parameters())


def test_critic_learns_to_tell_real_cells(toy, tiny):
    params = replace(tiny, anchor_epochs=0, critic_steps=60, generator_lr=1e-12, critic_lr=5e-3, r1_weight=0.0)
    training = train(toy, params)
    first, last = training.losses[0]["critic"], training.losses[-1]["critic"]
    assert last < first and last < 2 * np.log(2)


@pytest.mark.parametrize("scale", SCALES)
def test_critic_sees_the_genes_that_vary_most(toy, tiny, scale):
    cells = prepare(toy, tiny, scale=scale).cells
    x = cells.rows(torch.arange(cells.n_cells))
    ranking = Ranking.of([x], scale, cells.target_sum, "auto")
    every = Sight.of(cells, ranking, cells.n_genes)
    assert every.ranking is ranking and torch.equal(x[:, every.genes], x)

    sight = Sight.of(cells, ranking, 5)
    variance = ranking.normalise(x).var(0)
    assert sight.genes.tolist() == sorted(variance.argsort(descending=True)[:5].tolist())
    seen = x[:, sight.genes]
    if scale == "counts":  # normalised as if there were no other genes
        sums = seen.sum(1, keepdim=True)
        torch.testing.assert_close(sight.ranking.normalise(seen), (seen * sums.median() / sums.clamp_min(1)).log1p())
    else:
        assert torch.equal(sight.ranking.normalise(seen), seen)
    critic = prepare(toy, replace(tiny, critic_genes=5), scale=scale).critic
    assert critic.body[0].in_features == 5


def test_generator_step_leaves_the_critic_alone(toy, tiny, monkeypatch):
    training = prepare(toy, tiny)
    monkeypatch.setattr(training.critic_optimizer, "step", lambda: None)
    before = [p.clone() for p in training.critic.parameters()]
    weights = [p.clone() for p in training.generator.decoder.parameters()]
    training.critic_step()
    assert all(torch.equal(a, b) for a, b in zip(before, training.critic.parameters(), strict=True))
    assert all(p.requires_grad for p in training.critic.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(weights, training.generator.decoder.parameters(), strict=True))


def test_losses_are_logged_at_intervals(toy, tiny):
    training = train(toy, replace(tiny, anchor_epochs=5, critic_steps=13))
    total = training.total_steps
    assert [row["step"] for row in training.losses] == sorted({*range(10, total + 1, 10), total})
    assert set(training.losses[0]) == {"step", "nll", "kl"}
    assert set(training.losses[-1]) == {"step", "nll", "kl", "adversarial", "critic"}
    assert np.isfinite([value for row in training.losses for value in row.values()]).all()


@pytest.mark.parametrize("scale", SCALES)
def test_interrupted_training_ends_the_same(toy, tiny, scale):
    params = replace(tiny, anchor_epochs=3, critic_steps=11)
    files = []
    whole = train(toy, params, scale=scale, checkpoint=lambda state: files.append(file_of(state())))
    assert len(files) == whole.total_steps
    expected = draw(whole)
    for step in (2, whole.anchor_steps, whole.anchor_steps + 3, whole.total_steps):
        resumed = train(toy, params, scale=scale, state=read(files[step - 1]))
        assert resumed.losses == whole.losses
        for a, b in zip(whole.state()["generator"].values(), resumed.state()["generator"].values(), strict=True):
            assert torch.equal(a, b)
        assert np.array_equal(draw(resumed), expected)
        whole.rng.set_state(resumed.rng.get_state())


def test_training_depends_on_its_seed_alone(toy, tiny):
    a = draw(train(toy, tiny, seed=1))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert np.array_equal(a, draw(train(toy, tiny, seed=1)))
    assert torch.equal(before, torch.get_rng_state())
    assert not np.array_equal(a, draw(train(toy, tiny, seed=2)))


CHANGES = [
    {"latent_dim": 4}, {"hidden_dim": 13}, {"batch_size": 31}, {"anchor_epochs": 3}, {"warmup_epochs": 0},
    {"anchor_steps": 4}, {"anchor_lr": 5e-3}, {"critic_steps": 11}, {"critic_hidden": 13}, {"critic_genes": 5},
    {"generator_lr": 2e-2}, {"critic_lr": 2e-2}, {"seed_share": 0.7},
    {"adversarial_weight": 50.0}, {"r1_weight": 50.0}, {"r1_every": 3}, {"ema_decay": 0.5}, {"calibrate": False},
    {"calibrate_on": "normalised"}, {"calibration_prior": 50.0}, {"calibration_cells": 61}, {"leakage": 0.4},
    {"latent_spread": 3.0}, {"calibrate_detection": False},
]  # fmt: skip


def output(training):
    """The finished weights and the synthetic cells: with so few steps, whole counts may happen to be the same."""
    state = SeededGan.of(training).state()
    return torch.cat([value.flatten().float() for value in state["weights"].values()]), draw(training, 200)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_every_parameter_acts(toy, tiny, change):
    # marginals that lean on the network, or its small changes would be calibrated away
    params = replace(tiny, anchor_epochs=2, critic_steps=20, generator_lr=8e-3, critic_lr=8e-3, calibration_prior=20.0)
    name = next(iter(change))
    if name == "calibrate_detection":  # which UMI counts do without
        params = replace(params, calibrate_on="normalised")
    if name == "warmup_epochs":  # which a tenth of the anchor bounds
        params = replace(params, anchor_epochs=20)
    (weights, cells), (other_weights, other_cells) = (
        output(train(toy, p)) for p in (params, replace(params, **change))
    )  # fmt: skip
    assert not np.array_equal(cells, other_cells)
    if name not in ("latent_spread", "seed_share") and "calibra" not in name:  # which act after training
        assert weights.shape != other_weights.shape or not torch.equal(weights, other_weights)
    else:
        assert torch.equal(weights, other_weights)


def test_every_parameter_is_tried():
    """Those of stage 1 are tried there."""
    of_stage_1 = {field.name for field in fields(SelectionParams)} - {"leakage"}
    assert {name for change in CHANGES for name in change} == {f.name for f in fields(GarageParams)} - of_stage_1


def test_what_calibration_ranks(toy, tiny):
    def ranks_counts(calibrate_on, factor=1, scale="counts"):
        return prepare(
            toy, replace(tiny, calibrate_on=calibrate_on), X=toy.X * factor, scale=scale
        ).generator.ranking.counts  # fmt: skip

    assert ranks_counts("auto") and ranks_counts("counts") and not ranks_counts("normalised")
    assert not ranks_counts("auto", factor=100)  # reads, no molecules
    assert ranks_counts("counts", factor=100)


@pytest.mark.parametrize("scale", ["linear", "log", "scaled"])
def test_calibrate_on_is_for_counts(toy, tiny, scale):
    """Other scales have one way to rank values, so the choice changes nothing there."""
    a, b, c = (draw(train(toy, replace(tiny, calibrate_on=on), scale=scale)) for on in ("auto", "counts", "normalised"))
    assert np.array_equal(a, b) and np.array_equal(a, c)


# ---------------------------------------------------------------------------------------------- scales


def generator_for(X, params, scale="counts"):
    X = sp.csr_matrix(np.asarray(X, dtype=np.float32))
    return Generator.for_cells(TrainingCells.on(CPU, X, np.zeros(X.shape[0], int), scale), 1, params)


@pytest.mark.parametrize("largest", [9, 200, 5000])
def test_counts_go_to_ranks_and_back(tiny, largest):
    x = torch.randint(0, largest + 1, (300, 30), generator=random()).float()
    generator = generator_for(x, replace(tiny, calibrate_on="counts"))
    v = generator.ranking.to_rank(x, random())
    assert torch.equal(v == 0, x == 0)
    positive = v[v > 0]
    if largest < 100:
        assert len(positive.unique()) > 0.99 * len(positive)  # ties are broken
        order = x.flatten()[v.flatten().argsort()]
        assert (order.diff() >= 0).all()
    back = generator.ranking.from_rank(v, torch.zeros(300, 1))
    assert torch.equal(back, back.round())
    assert ((back - x) != 0).float().mean() < 1e-3 and (back - x).abs().max() <= 1
    if largest < 1000:
        assert torch.equal(back, x)


def test_reads_go_to_ranks_and_back(tiny):
    x = torch.randint(0, 20_000, (200, 30), generator=random()) * (torch.rand(200, 30, generator=random(1)) < 0.5)
    x = x.float()
    generator = generator_for(x, tiny)
    assert not generator.ranking.counts
    v = generator.ranking.to_rank(x, random())
    torch.testing.assert_close(v, torch.log1p(x / x.sum(1, keepdim=True) * x.sum(1).median()))
    assert torch.equal(generator.ranking.from_rank(v, x.sum(1, keepdim=True).log()), x)


def test_normalised_values_above_zero_stay_above(tiny):
    x = torch.full((4, 3), 1000.0)
    generator = generator_for(x, tiny)
    few = generator.ranking.from_rank(torch.tensor([[1e-6, 0.0, 1.0]]), torch.tensor([[1.0]]))
    assert few[0, 0] == 1 and few[0, 1] == 0


@pytest.mark.parametrize("scale", ["linear", "log", "scaled"])
def test_other_scales_are_their_own_ranks(toy, tiny, scale):
    training = prepare(toy, tiny, scale=scale)
    x = training.cells.dense
    v = training.generator.ranking.to_rank(x, random())
    assert torch.equal(v, x) and torch.equal(training.generator.ranking.normalise(x), x)
    assert torch.equal(training.generator.ranking.from_rank(v, torch.zeros(len(x), 1)), x)


def test_training_cells_of_each_scale(toy):
    types = np.zeros(toy.n_obs, int)
    counts = TrainingCells.on(CPU, toy.X, types, "counts")
    total = toy.X.toarray().sum(1)
    np.testing.assert_allclose(counts.size.squeeze(1), np.log(total), rtol=1e-6)
    assert counts.target_sum in total
    linear = TrainingCells.on(CPU, toy.X, types, "linear")
    np.testing.assert_allclose(linear.dense, np.log1p(toy.X.toarray()), rtol=1e-6)
    assert linear.target_sum == 1 and not linear.size.any()
    assert torch.equal(TrainingCells.on(CPU, toy.X, types, "log").dense, counts.dense)


@pytest.mark.parametrize("scale", SCALES)
def test_untrained_model_draws_each_types_mean(toy, tiny, scale):
    """The observation model starts at the types' mean profiles, shrunk a little towards the population's."""
    training = prepare(toy, tiny, scale=scale)
    cells, n_types = training.cells, training.n_types
    model = observation_model(cells, n_types)
    decoded = torch.zeros(20_000, model.outputs * model.n_genes)
    for t in range(n_types):
        own = cells.types == t
        size = cells.size[own].exp().mean().log() if scale == "counts" else torch.zeros(())
        drawn = model.draw(decoded, torch.full((20_000,), t), size.expand(20_000, 1), random()).detach().mean(0)
        share = own.sum() / (own.sum() + 10)
        expected = share * cells.dense[own].mean(0) + (1 - share) * cells.dense.mean(0)
        torch.testing.assert_close(drawn, expected, rtol=0.15, atol=0.1)


def test_untrained_model_scatters_values_as_the_cells_do(tiny):
    rng = np.random.default_rng(0)
    types, shape, sd = np.arange(600) % 2, np.array([0.7, 8.0, 100.0]), np.array([0.3, 1.0, 4.0])
    level = np.array([[2.0, 5.0, 7.0], [4.0, 1.0, 7.0]])[types]
    amounts = rng.gamma(shape, level / shape) * (rng.random((600, 3)) < 0.7)
    model = observation_model(TrainingCells.on(CPU, sp.csr_matrix(amounts), types, "log"), 2)
    np.testing.assert_allclose(model.shape.detach(), shape, rtol=0.25)
    scaled = TrainingCells.on(CPU, sp.csr_matrix(level + sd * rng.normal(size=(600, 3))), types, "scaled")
    np.testing.assert_allclose(observation_model(scaled, 2).log_sd.detach().exp(), sd, rtol=0.1)


@pytest.mark.parametrize("calibrate", [True, False])
@pytest.mark.parametrize("scale", SCALES)
def test_cells_are_on_the_scale_of_training(toy, tiny, scale, calibrate):
    training = train(toy, replace(tiny, calibrate=calibrate), scale=scale)
    X = draw(training, 100)
    assert X.shape == (300, 20) and X.dtype == np.float32 and np.isfinite(X).all()
    assert (np.rint(X) == X).all() == (scale == "counts")
    assert (X < 0).any() == (scale == "scaled")
    real = training.cells.dense
    if scale != "scaled":
        assert not X[:, -1].any()  # the silent gene
        assert np.mean(X == 0) == pytest.approx(float((real == 0).float().mean()), abs=0.1)
    if calibrate:
        assert (np.minimum(real.numpy().min(0), 0) <= X).all()  # no gene falls below its floor


def scatter(X, types):
    """Variance within types of the number of detected genes."""
    number = (X > 0).sum(1)
    return sum(((number[types == t] - number[types == t].mean()) ** 2).sum() for t in range(3)) / (len(X) - 3)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_number_of_detected_genes_scatters_as_it_does(toy, tiny, scale):
    caught = np.where(np.random.default_rng(0).random(toy.n_obs) < 0.5, 0.35, 1.0)  # every other cell loses much
    X = sp.csr_matrix(np.random.default_rng(1).binomial(toy.X.toarray().astype(int), caught[:, None]), dtype=np.float32)
    X = sp.csr_matrix(np.hstack([np.ones((toy.n_obs, 1), np.float32), X.toarray()[:, 1:]]))  # no cell is empty
    types = toy.obs["cell_type"].cat.codes.to_numpy()
    real = scatter(X.toarray(), types)

    def drawn(on):
        gan = SeededGan.of(train(toy, replace(tiny, calibrate_detection=on), scale=scale, X=X))
        cells, of_type, _ = whole(gan, 20 * np.bincount(types), random(5))
        amounts = {float(t.calibration.in_common) for t in gan.types}
        return scatter(cells.toarray(), of_type), amounts

    without, none = drawn(False)
    having, amounts = drawn(True)
    assert none == {0.0} and len(amounts) == 1 and amounts.pop() > 0.1
    assert abs(having - real) < 0.25 * real < abs(without - real)


def test_detection_of_umi_counts_is_left_to_their_library_size(toy, tiny):
    gan = SeededGan.of(train(toy, tiny))
    assert gan.generator.ranking.counts and all(float(t.calibration.in_common) == 0 for t in gan.types)


@pytest.mark.parametrize("scale", ["counts", "linear", "log"])
def test_genes_no_cell_expresses_stay_silent(toy, tiny, scale):
    X = toy.X * 1000  # so many that the least share of counts would show
    for calibrate in (True, False):
        gan = SeededGan.of(train(toy, replace(tiny, calibrate=calibrate), scale=scale, X=X))
        drawn = whole(gan, np.array([30_000, 0, 0]), random())[0]
        assert drawn[:, -1].nnz == 0 and drawn[:, -2].nnz > 0


def test_calibrated_cells_have_the_types_marginals(toy, tiny):
    params = replace(tiny, calibration_prior=0.5, calibration_cells=1000)
    training = train(toy, params)
    X = draw(training, 1500).reshape(3, 1500, 20)
    uncalibrated = draw(train(toy, replace(params, calibrate=False)), 1500).reshape(3, 1500, 20)

    def furthest(drawn):
        """Mean over genes and types of the largest gap between distribution functions."""
        at = np.arange(30)[:, None, None]
        real = [training.cells.dense[training.cells.types == t].numpy() for t in range(3)]
        return np.mean([np.abs((drawn[t] <= at).mean(1) - (real[t] <= at).mean(1)).max(0) for t in range(3)])

    assert furthest(X) < 0.06 < furthest(uncalibrated)


# ---------------------------------------------------------------------------------------------- drawing


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("calibrate", [True, False])
def test_model_read_from_a_file_draws_the_same_cells(toy, tiny, scale, calibrate):
    params = replace(tiny, calibrate=calibrate)
    gan = SeededGan.of(train(toy, params, scale=scale))
    state = read(file_of(gan.state()))
    for _ in range(2):  # reading leaves the state as it was
        back = SeededGan.from_state(state, params, scale, CPU)
        ours, theirs = (whole(model, np.array([9, 0, 30]), random(1)) for model in (gan, back))
        assert (ours[0] != theirs[0]).nnz == 0
        assert all(np.array_equal(a, b) for a, b in zip(ours[1:], theirs[1:], strict=True))


def test_drawn_cells_are_of_the_types_asked_for(toy, tiny):
    gan = SeededGan.of(train(toy, tiny))
    X, types, from_seed = whole(gan, np.array([3, 0, 5]), random())
    assert types.tolist() == [0] * 3 + [2] * 5 and X.shape == (8, 20) and from_seed.shape == (8,)
    assert not list(gan.draw(np.array([0, 0, 0]), random()))


def test_many_cells_are_drawn_in_portions(toy, tiny, monkeypatch):
    gan = SeededGan.of(train(toy, tiny))
    monkeypatch.setattr("data_generation.synthesis.ROWS_AT_ONCE", 7)
    sizes = []
    one = gan._draw
    monkeypatch.setattr(gan, "_draw", lambda t, n, rng: (sizes.append(n), one(t, n, rng))[1])
    X, types, _ = whole(gan, np.array([20, 7, 0]), random())
    assert sizes == [7, 7, 6, 7] and X.shape[0] == len(types) == 27


def test_the_model_holds_no_cell(toy, tiny):
    """No value of it has the size of the training set, and no row of it is a training cell."""
    state = SeededGan.of(train(toy, tiny)).state()
    cells = toy.X.toarray()

    def tensors(content):
        if isinstance(content, torch.Tensor):
            yield content
        elif isinstance(content, dict | list):
            for part in content.values() if isinstance(content, dict) else content:
                yield from tensors(part)

    for tensor in tensors(state):
        assert toy.n_obs not in tensor.shape
        if tensor.ndim == 2 and tensor.shape[1] == cells.shape[1]:
            assert not (tensor.numpy()[:, None] == cells).all(2).any()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("sizes", [(30, 1, 2, 3), (20,), (2,), (1, 1)], ids=str)
def test_few_cells_and_few_types(tiny, scale, sizes):
    rng = np.random.default_rng(0)
    X = sp.csr_matrix(rng.poisson(2.0, (sum(sizes), 12)).astype(np.float32))
    training = train(None, tiny, X=X, scale=scale, types=np.repeat(np.arange(len(sizes)), sizes))
    cells = draw(training, 30)
    assert cells.shape == (30 * len(sizes), 12) and np.isfinite(cells).all()
    assert np.ptp(cells, axis=0).any()
    if scale != "scaled":
        assert (cells >= 0).all()


def test_seeds_are_kept_as_neighbourhoods():
    """The moments of the mixture of the neighbours' posteriors, as a sample of that mixture has them."""

    class Picked:
        is_seed = np.array([True, False, False])
        neighborhood = sp.csr_matrix(np.array([[0, 0.2, 0.6]]))

    mean, log_variance = torch.tensor([[100.0], [1.0], [3.0]]), torch.tensor([[5.0], [0.2], [-1.0]])
    cells, center, pooled = SeedRows(Picked, CPU).pool(mean, log_variance.exp())
    rng = np.random.default_rng(0)
    row = np.where(rng.random(200_000) < 0.25, 1, 2)
    drawn = rng.normal(mean.numpy()[row, 0], np.exp(0.5 * log_variance.numpy()[row, 0]))
    assert float(center) == pytest.approx(drawn.mean(), abs=0.02)  # nothing of the seed's own posterior
    assert float(pooled) == pytest.approx(drawn.var(), rel=0.02) and float(cells) == pytest.approx(0.8)
    only_last = SeedRows(Picked, CPU).pool(mean, log_variance.exp(), torch.tensor([True, False, True]))
    assert [float(found) for found in only_last] == pytest.approx([0.6, 3.0, np.exp(-1.0)])


def shares_of(position, hood, types=None, **params):
    """Learn shares where posteriors lie at `position` and every cell is a seed, heard by those that `hood` says."""

    class Picked:
        is_seed = np.ones(len(position), bool)
        neighborhood = sp.csr_matrix(hood / np.maximum(hood.sum(0), 1e-9))

    mean = torch.from_numpy(position).float()
    types = torch.zeros(len(mean), dtype=torch.long) if types is None else torch.from_numpy(types)
    size, log_variance = torch.zeros(len(mean), 1), torch.full_like(mean, np.log(0.1))
    found = learn_seed_shares(
        SeedRows(Picked, CPU), types, int(types.max()) + 1, mean, log_variance, size, GarageParams(**params), random()
    )
    return [float(share) for share in found]


def neighbors_of(position, types=None):
    distance = cdist(position, position)
    np.fill_diagonal(distance, np.inf)
    if types is not None:
        distance[types[:, None] != types] = np.inf
    return (distance <= np.sort(distance, axis=0)[5]).astype(float)


def test_a_type_in_several_places_is_drawn_from_its_seeds():
    rng = np.random.default_rng(0)
    places = 6 * rng.normal(size=(4, 3))
    scattered = places[rng.integers(4, size=200)] + 0.5 * rng.normal(size=(200, 3))
    (several,) = shares_of(scattered, neighbors_of(scattered))
    one = rng.normal(size=(200, 3))
    (single,) = shares_of(one, neighbors_of(one))
    assert several > 0.9 and single < several / 2


def test_shares_are_of_types_with_cells_enough_and_seeds():
    rng = np.random.default_rng(0)
    position, types = (
        np.concatenate([rng.normal(size=(9, 2)), rng.normal(size=(60, 2)) ** 3]),
        np.repeat([0, 1], [9, 60]),
    )
    hood = neighbors_of(position, types)
    few, many = shares_of(position, hood, types)
    assert few == 0 and many > 0
    assert shares_of(position, hood, types, seed_share=0.4) == pytest.approx([0.4, 0.4])
    hood[9:] = 0
    assert shares_of(position, hood, types, seed_share=0.4) == pytest.approx([0.4, 0.0])
    assert shares_of(position, hood, types)[1] == 0


def test_rows_from_seeds_keep_their_places_and_sizes(toy, tiny):
    """Two places, each with its library size: no row has the latent vector of one and the size of the other."""
    gan = SeededGan.of(train(toy, replace(tiny, calibrate=False, seed_share=1.0)))
    latents = []
    gan.generator.decode = lambda z, types, size: latents.append((z, size)) or torch.zeros(len(z), 20)
    one = gan.types[0]
    L = len(one.latent_mean)
    sizes = torch.linspace(3.0, 9.0, len(one.sizes))
    means = torch.stack([torch.tensor([-5.0] * L + [4.0]), torch.tensor([5.0] * L + [8.0])])
    gan.types[0] = replace(
        one, sizes=sizes, seed_share=torch.ones(()), seed_cells=torch.tensor([1.0, 3.0]), seed_mean=means,
        seed_variance=torch.full_like(means, 0.01),
    )  # fmt: skip
    gan._draw(0, 800, random())
    z, size = latents[0]
    assert ((z[:, 0] > 0) == (size[:, 0] > 6)).all() and (z[:, 0] > 0).float().mean() == pytest.approx(0.75, abs=0.05)


def test_width_follows_the_number_of_cells(tiny):
    def width(n_cells, hidden_dim=None):
        X = np.random.default_rng(0).poisson(2.0, (n_cells, 5)) + 1
        return generator_for(X, replace(tiny, hidden_dim=hidden_dim)).encoder[0].out_features

    assert [width(n) for n in (40, 400, 2500, 40_000)] == [16, 20, 50, 128]
    assert width(400, hidden_dim=7) == 7


@pytest.mark.parametrize("scale", ["counts", "log", "linear", "scaled"])
def test_cells_that_do_not_fit_teach_the_same(toy, tiny, scale, monkeypatch):
    dense = train(toy, tiny, scale=scale)
    monkeypatch.setattr("data_generation.seeded_gan.DENSE_VALUES", 0)
    row_by_row = train(toy, tiny, scale=scale)
    on_disk = train(toy, tiny, scale=scale, place=lambda X: to_disk(iter([X[:50], X[50:]])))
    assert dense.cells.dense is not None and row_by_row.cells.dense is None and on_disk.cells.dense is None
    assert dense.losses == row_by_row.losses == on_disk.losses
    assert np.array_equal(draw(dense), draw(on_disk))


@pytest.mark.parametrize("scale", ["counts", "log", "scaled"])
def test_observation_model_is_built_block_by_block(toy, tiny, scale, monkeypatch):
    types = toy.obs["cell_type"].cat.codes.to_numpy()
    cells = TrainingCells.on(CPU, on_scale(toy.X, scale), types, scale)
    at_once = observation_model(cells, 3).state_dict()
    monkeypatch.setattr("data_generation.seeded_gan.BLOCK_VALUES", 140)  # seven cells
    in_blocks = observation_model(cells, 3).state_dict()
    for name, value in at_once.items():
        torch.testing.assert_close(in_blocks[name], value, rtol=1e-3, atol=1e-4)


def test_marginals_are_learnt_block_by_block(toy, tiny, monkeypatch):
    training = train(toy, replace(tiny, calibration_prior=0.0))  # of the training cells alone
    state = training.rng.get_state()
    at_once = SeededGan.of(training)
    monkeypatch.setattr("data_generation.seeded_gan.BLOCK_VALUES", 140)  # seven cells
    training.rng.set_state(state)
    in_blocks = SeededGan.of(training)
    for a, b in zip(at_once.types, in_blocks.types, strict=True):
        torch.testing.assert_close(a.calibration.atom_to, b.calibration.atom_to)
        torch.testing.assert_close(a.calibration.quantiles_to, b.calibration.quantiles_to)


def test_steps_are_bounded_however_many_cells(toy, tiny):
    training = prepare(toy, replace(tiny, anchor_epochs=100, warmup_epochs=80, anchor_steps=50))
    assert training.anchor_steps == 50 and training.warmup_steps == 5
