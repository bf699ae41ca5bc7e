"""The contract of a generator: AnnData in and out, the composition that was asked for, a model that can be kept."""

import pickle
from dataclasses import replace

import anndata
import numpy as np
import pytest
import scanpy as sc
import torch
from anndata import AnnData
from scipy import sparse

from common.device import choose_device
from common.errors import UserError
from common.run import write_tensors
from config import GarageParams, PaperParams
from data_generation import paper_gan
from data_generation.model import compose, fit, load, sample
from data_generation.paper_gan import PublishedGan

PAPER = PaperParams(
    rare_threshold=8, gat_epochs=12, gat_heads=2, gat_hidden=4, iterations=3, generator_hidden=(12, 12),
    critic_hidden=(8, 8),
)  # fmt: skip


@pytest.fixture(params=["garage", "paper"])
def params(request, tiny) -> GarageParams | PaperParams:
    return tiny if request.param == "garage" else PAPER


@pytest.fixture
def model(toy, tiny):
    return fit(toy, tiny, seed=1, device="cpu")


def same(a: AnnData, b: AnnData) -> bool:
    return a.shape == b.shape and (a.X != b.X).nnz == 0 and a.obs.equals(b.obs)


def on_scale(toy, scale):
    X = toy.X.toarray()
    if scale != "counts":
        X = X / X.sum(1, keepdims=True) * 1e4
    if scale in ("log", "scaled"):
        X = np.log1p(X)
    if scale == "scaled":
        X = X - X.mean(0)
    cells = AnnData(sparse.csr_matrix(X.astype(np.float32)), obs=toy.obs, var=toy.var, uns=dict(toy.uns))
    cells.uns["scale"] = scale
    return cells


# ---------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("scale", ["counts", "linear", "log", "scaled"])
def test_cells_come_out_as_they_went_in(toy, params, scale):
    cells = on_scale(toy, scale)
    before = cells.copy()
    model = fit(cells, params, seed=1, device="cpu")
    assert (cells.X != before.X).nnz == 0 and cells.obs.equals(before.obs)
    drawn = sample(model, 60, seed=2)
    assert drawn.shape == (60, toy.n_vars)
    assert sparse.isspmatrix_csr(drawn.X) and drawn.X.dtype == np.float32 and np.isfinite(drawn.X.data).all()
    assert list(drawn.var_names) == list(toy.var_names)
    assert drawn.obs_names.is_unique and not set(drawn.obs_names) & set(toy.obs_names)
    assert list(drawn.obs) == ["cell_type", "origin"]
    assert list(drawn.obs["cell_type"].cat.categories) == ["B", "NK", "T"]
    assert list(drawn.obs["origin"].cat.categories) == ["noise", "seed"]
    assert set(drawn.obs["origin"]) == {"noise", "seed"}
    assert drawn.uns == {"scale": scale, "dataset": "toy", "method": model.preset}
    X = drawn.X.toarray()
    assert (np.rint(X) == X).all() == (scale == "counts")
    assert (X < 0).any() == (scale == "scaled")


def test_linear_values_come_out_linear(toy, tiny):
    cells = on_scale(toy, "linear")
    drawn = sample(fit(cells, tiny, seed=1, device="cpu"), 500, seed=2)
    assert drawn.X.toarray().mean() == pytest.approx(cells.X.toarray().mean(), rel=0.3)  # 500; their logs are below 10


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["counts", "linear", "log", "scaled"])
def test_training_with_default_parameters_does_not_diverge(toy, scale):
    cells = on_scale(toy, scale)
    model = fit(cells, replace(GarageParams(), calibrate=False, gat_epochs=20), seed=1, device="cpu")
    X, drawn = cells.X.toarray(), sample(model, 500, seed=2).X.toarray()
    if scale == "linear":
        X, drawn = np.log1p(X), np.log1p(drawn)
    assert drawn.mean() == pytest.approx(X.mean(), abs=0.15 * float(X.std()))
    assert drawn.std() == pytest.approx(float(X.std()), rel=0.25)
    if scale == "counts":  # the largest of 10,000 overdispersed counts says little but on their log
        X, drawn = np.log1p(X), np.log1p(drawn)
    assert np.abs(drawn).max() < 2.5 * np.abs(X).max()


def test_cells_can_be_kept_in_a_file(model, tmp_path):
    drawn = sample(model, 30, seed=2)
    drawn.write_h5ad(tmp_path / "cells.h5ad")
    assert same(anndata.read_h5ad(tmp_path / "cells.h5ad"), drawn)


def test_tables_of_a_fit(toy, tiny, params):
    model = fit(toy, params, seed=1, device="cpu")
    assert list(model.seeds) == ["cell", "cell_type", "attention", "rank", "is_seed", "is_rare"]
    assert model.seeds["cell"].tolist() == toy.obs_names.tolist()
    assert model.seeds["cell_type"].tolist() == toy.obs["cell_type"].tolist()
    assert sorted(model.seeds["rank"]) == list(range(1, toy.n_obs + 1))
    assert model.seeds.sort_values("rank")["attention"].is_monotonic_decreasing
    assert model.seeds["is_seed"].sum() == np.ceil(0.2 * toy.n_obs)
    assert model.seeds.loc[model.seeds["is_rare"], "cell_type"].unique().tolist() == ["NK"]
    assert set(model.seeds.loc[model.seeds["is_seed"], "cell_type"]) == {"B", "NK", "T"}
    assert "step" in model.losses and np.isfinite(model.losses.to_numpy()).all()
    assert model.type_counts == [24, 8, 40] and 0 <= model.accuracy <= 1


def test_a_seed_decides_everything(toy, params):
    a, b, c = (fit(toy, params, seed=seed, device="cpu") for seed in (1, 1, 2))
    assert same(sample(a, 40, seed=3), sample(b, 40, seed=3))
    assert not same(sample(a, 40, seed=3), sample(a, 40, seed=4))
    assert not same(sample(a, 40, seed=3), sample(c, 40, seed=3))


def test_order_of_the_file_does_not_matter(toy, params):
    shuffled = toy[np.random.default_rng(1).permutation(toy.n_obs)].copy()
    a, b = (fit(cells, params, seed=1, device="cpu") for cells in (toy, shuffled))
    assert same(sample(a, 40, seed=2), sample(b, 40, seed=2))
    ours, theirs = a.seeds.set_index("cell"), b.seeds.set_index("cell").loc[toy.obs_names]
    assert ours.equals(theirs)


@pytest.mark.parametrize(
    "shape",
    [
        lambda X: X.toarray(), lambda X: X.tocsc(), lambda X: X.astype(np.int64), lambda X: X.astype(np.float64),
        lambda X: sparse.csr_matrix((X.data, X.indices, X.indptr), X.shape) + 0 * X[::-1],
    ],
    ids=["dense", "csc", "integers", "doubles", "stored zeros"],
)  # fmt: skip
def test_any_form_of_the_same_matrix_is_the_same(toy, tiny, model, shape):
    other = AnnData(shape(toy.X), obs=toy.obs, var=toy.var, uns=toy.uns)
    assert same(sample(fit(other, tiny, seed=1, device="cpu"), 40, seed=2), sample(model, 40, seed=2))


def test_scale_is_detected_where_it_is_not_given(toy, tiny, model):
    del toy.uns["scale"]
    again = fit(toy, tiny, seed=1, device="cpu")
    assert again.scale == "counts" and same(sample(again, 20, seed=2), sample(model, 20, seed=2))
    log = on_scale(toy, "log")
    del log.uns["scale"]
    assert fit(log, tiny, seed=1, device="cpu").scale == "log"


@pytest.mark.parametrize("stored", [False, True])
def test_cells_without_counts_are_left_out_with_a_note(toy, tiny, stored):
    X = toy.X.copy()
    for cell in (3, 50):
        X.data[X.indptr[cell] : X.indptr[cell + 1]] = 0
    if not stored:
        X.eliminate_zeros()
    toy.X = X
    model = fit(toy, tiny, seed=1, device="cpu")
    assert model.notes == ["2 cells without counts were dropped"]
    assert sum(model.type_counts) == 70 and not {"c3", "c50"} & set(model.seeds["cell"])
    assert np.isfinite(sample(model, 20, seed=1).X.data).all()


def test_unfit_cells_are_refused(toy, tiny):
    with pytest.raises(UserError, match=r"no obs\['cell_type'\]"):
        fit(AnnData(toy.X), tiny, seed=1, device="cpu")
    with pytest.raises(UserError, match="1 cells are too few"):
        fit(toy[:1].copy(), tiny, seed=1, device="cpu")
    with pytest.raises(UserError, match="every value of the matrix is zero"):
        fit(AnnData(sparse.csr_matrix(toy.shape, dtype=np.float32), obs=toy.obs), tiny, seed=1, device="cpu")


@pytest.mark.parametrize("rows", [[0, 30], [0, 1], [0, 0], [0, 24, 25, 32, 33, 34]], ids=str)
def test_a_handful_of_cells_will_do(toy, params, rows):
    few = toy[rows].copy()
    few.obs_names_make_unique()
    model = fit(few, params, seed=1, device="cpu")
    assert any("fewer than 5 neighbours" in note for note in model.notes) == (len(rows) < 5)
    drawn = sample(model, 10, seed=1)
    assert drawn.n_obs == 10 and np.isfinite(drawn.X.data).all()


def test_cuda_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="--device cpu or auto"):
        choose_device("cuda")


def test_cells_that_were_transformed_since_are_not_taken_for_what_they_were(toy, tiny, model):
    """Synthetic cells say their scale, and scanpy does not change what they say."""
    drawn = sample(model, 60, seed=0)
    sc.pp.normalize_total(drawn, target_sum=1e4)
    with pytest.raises(UserError, match=r"uns\['scale'\] is 'counts', which these values are not: remove"):
        fit(drawn, tiny, seed=0, device="cpu")
    drawn.uns["scale"] = "linear"
    sc.pp.log1p(drawn)
    with pytest.raises(UserError, match=r"uns\['scale'\] is 'linear', which these values are not any more"):
        fit(drawn, tiny, seed=0, device="cpu")
    for odd in ("zscore", {"mean": [1]}, np.ones(3)):
        with pytest.raises(UserError, match=r"uns\['scale'\] is"):
            fit(AnnData(toy.X, obs=toy.obs, uns={"scale": odd}), tiny, seed=0, device="cpu")
    del drawn.uns["scale"]
    assert fit(drawn, tiny, seed=0, device="cpu").scale == "log"


def test_cells_that_cannot_be_learnt_from(toy, tiny):
    untold, holes = toy.copy(), toy.copy()
    untold.obs["cell_type"] = untold.obs["cell_type"].where(np.arange(72) > 4)
    with pytest.raises(UserError, match="5 cells have no type"):
        fit(untold, tiny, seed=0, device="cpu")
    holes.X.data[3] = np.nan
    with pytest.raises(UserError, match="1 values are missing or infinite"):
        fit(holes, tiny, seed=0, device="cpu")
    twice = AnnData(toy.X, obs=toy.obs, var=toy.var.set_axis(["g", "g", *toy.var_names[2:]]))
    with pytest.raises(UserError, match="1 gene names occur more than once"):
        fit(twice, tiny, seed=0, device="cpu")


def test_backed_cells_and_types_that_are_numbers(toy, tiny, model, tmp_path):
    toy.write_h5ad(tmp_path / "toy.h5ad")
    backed = anndata.read_h5ad(tmp_path / "toy.h5ad", backed="r")
    assert same(sample(fit(backed, tiny, seed=1, device="cpu"), 9, seed=0), sample(model, 9, seed=0))
    toy.obs["cell_type"] = toy.obs["cell_type"].cat.codes
    assert set(sample(fit(toy, tiny, seed=1, device="cpu"), 9, cell_type=1, seed=0).obs["cell_type"]) == {"1"}


# ---------------------------------------------------------------------------------------------- composition


@pytest.mark.parametrize(
    ("weights", "n_cells", "expected"),
    [
        ([24, 8, 40], 9, [3, 1, 5]),
        ([1, 1, 1], 10, [4, 3, 3]),
        ([1, 2, 3], 4, [1, 1, 2]),
        ([0.5, 0.3, 0.2], 10, [5, 3, 2]),
        ([1000, 1, 1], 10, [8, 1, 1]),  # one at least
        ([1000, 1, 0], 10, [9, 1, 0]),  # none of what is not wanted
        ([5, 4, 3], 2, [1, 1, 0]),  # fewer cells than types
        ([0, 1, 0], 7, [0, 7, 0]),
    ],
)
def test_composition_by_hand(weights, n_cells, expected):
    assert compose(np.array(weights, dtype=float), n_cells).tolist() == expected


def test_composition_keeps_its_promises():
    rng = np.random.default_rng(0)
    for _ in range(500):
        weights = rng.random(rng.integers(1, 12)) ** 6 * (rng.random() + 1e-3)
        n_cells = int(rng.integers(1, 300))
        quota = compose(weights, n_cells)
        assert quota.sum() == n_cells and (quota >= 0).all()
        if n_cells >= len(weights):
            assert (quota >= 1).all()
        share = n_cells * weights / weights.sum()
        plenty = share >= len(weights) + 1
        assert (np.abs(quota - share)[plenty] < len(weights)).all()


def test_training_composition_is_the_default(model):
    assert sample(model, 72, seed=1).obs["cell_type"].value_counts().to_dict() == {"T": 40, "B": 24, "NK": 8}
    assert sample(model, 9, seed=1).obs["cell_type"].value_counts().to_dict() == {"T": 5, "B": 3, "NK": 1}


def test_composition_that_was_asked_for(model):
    assert set(sample(model, 12, cell_type="NK", seed=1).obs["cell_type"]) == {"NK"}
    drawn = sample(model, 8, proportions={"T": 1, "NK": 3}, seed=1)
    assert drawn.obs["cell_type"].value_counts().to_dict() == {"NK": 6, "T": 2, "B": 0}


@pytest.mark.parametrize(
    ("n_cells", "asked", "message"),
    [
        (0, {}, "give at least 1"),
        (-3, {}, "give at least 1"),
        (5, {"cell_type": "NKT"}, "no cell type 'NKT', only B, NK, T; did you mean 'NK'?"),
        (5, {"proportions": {"T": 1.0, "Bb": 1.0}}, "did you mean 'B'?"),
        (5, {"proportions": {"T": -1.0}}, "not negative"),
        (5, {"proportions": {"T": float("nan")}}, "not negative"),
        (5, {"proportions": {"T": float("inf")}}, "not negative"),
        (5, {"proportions": {"T": 0.0}}, "all proportions are zero"),
        (5, {"cell_type": "T", "proportions": {"T": 1.0}}, "give one of them"),
    ],
)
def test_composition_that_cannot_be(model, n_cells, asked, message):
    with pytest.raises(UserError) as error:
        sample(model, n_cells, **asked, seed=1)
    assert message in str(error.value)


# ---------------------------------------------------------------------------------------------- preset paper


@pytest.fixture
def published(toy):
    return fit(toy, PAPER, seed=1, device="cpu")


def test_paper_draws_freely_by_default(published):
    assert published.preset == "paper" and isinstance(published.gan, PublishedGan)
    drawn = sample(published, 50, seed=1)
    n_seeds = int(published.seeds["is_seed"].sum())
    assert (drawn.obs["origin"] == "seed").sum() == n_seeds == 15
    assert len(published.losses) == 1


def with_types(gan, odds):
    """Let the labeller find types with fixed odds, whatever the cell: the generator here is hardly trained."""

    def draw_freely(n_cells, rng):
        X, _, from_seed = PublishedGan.draw_freely(gan, n_cells, rng)
        types = torch.multinomial(torch.tensor(odds), n_cells, replacement=True, generator=rng).numpy()
        X.data[:] = 1
        return X, types, from_seed

    return draw_freely


def test_paper_meets_a_composition_by_drawing_on(published, monkeypatch):
    monkeypatch.setattr(published.gan, "draw_freely", with_types(published.gan, [0.9, 0.002, 0.098]))
    drawn = sample(published, 30, proportions={"B": 1, "NK": 1, "T": 1}, seed=1)
    assert drawn.obs["cell_type"].tolist() == ["B"] * 10 + ["NK"] * 10 + ["T"] * 10  # ordered by type, as in garage
    assert drawn.shape == (30, 20)
    assert same(drawn, sample(published, 30, proportions={"B": 1, "NK": 1, "T": 1}, seed=1))


def test_paper_gives_up_on_a_type_it_never_makes(published, monkeypatch):
    monkeypatch.setattr(published.gan, "draw_freely", with_types(published.gan, [0.5, 0.0, 0.5]))
    monkeypatch.setattr(paper_gan, "MOST_DRAWS", 3)
    with pytest.raises(UserError, match=r"made 0 of 4 cells of a type in 3000 draws.*preset garage"):
        sample(published, 4, cell_type="NK", seed=1)


@pytest.mark.parametrize("types", [["B", "NK", "T"], ["B", "T"], ["T"]], ids=len)
def test_paper_labels_cells_by_what_they_look_like(toy, types):
    """Fed with the training cells in place of generated ones, the labeller knows their types."""
    cells = toy[toy.obs["cell_type"].isin(types)].copy()
    model = fit(cells, PAPER, seed=1, device="cpu")
    assert set(sample(model, 30, seed=1).obs["cell_type"]) <= set(types)
    gan, X = model.gan, cells.X.toarray()
    found = np.array(model.types)[gan.labeller.label(np.log1p(X / X.sum(1, keepdims=True) * gan.target_sum))]
    assert (found == cells.obs["cell_type"].to_numpy()).mean() > 0.9


# ---------------------------------------------------------------------------------------------- kept models


@pytest.mark.parametrize("scale", ["counts", "linear", "log", "scaled"])
def test_kept_model_draws_the_same_cells(toy, params, scale, tmp_path):
    model = fit(on_scale(toy, scale), params, seed=1, device="cpu")
    write_tensors(tmp_path / "model.pt", model.content())
    back = load(tmp_path / "model.pt", device="cpu")
    assert same(sample(model, 40, seed=3), sample(back, 40, seed=3))
    assert sample(back, 5, seed=3).uns == sample(model, 5, seed=3).uns
    kept = ("preset", "params", "dataset", "scale", "genes", "types", "type_counts", "accuracy")
    assert all(getattr(back, name) == getattr(model, name) for name in kept)
    assert back.seeds is None and back.losses is None


def test_scale_as_an_h5ad_file_may_have_it(toy, tiny, tmp_path):
    toy.uns["scale"] = np.str_("counts")
    write_tensors(tmp_path / "model.pt", fit(toy, tiny, seed=1, device="cpu").content())
    assert load(tmp_path / "model.pt", device="cpu").scale == "counts"


class Malicious:
    def __reduce__(self):
        return (open, ("/dev/null",))


def test_files_that_are_no_model(model, tmp_path):
    path = tmp_path / "model.pt"
    with pytest.raises(UserError, match="is missing"):
        load(path, device="cpu")
    write_tensors(path, model.content())
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a model", pickle.dumps({"format": "garage-model-1"})):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged or was not written by GARAGE"):
            load(path, device="cpu")
    torch.save({"format": "garage-model-1", "gan": Malicious()}, path)  # code, not data
    with pytest.raises(UserError, match="damaged or was not written by GARAGE"):
        load(path, device="cpu")
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="was not written by GARAGE"):
        load(path, device="cpu")
    write_tensors(path, {"format": "garage-checkpoint-1", "identity": {}, "stages": {}})
    with pytest.raises(UserError, match="is a garage-checkpoint-1"):
        load(path, device="cpu")
