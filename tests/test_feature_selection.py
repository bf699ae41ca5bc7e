"""Scores agree with their definitions, other implementations and R; ties, silent genes and flags do as said."""

import json
import shutil
import subprocess
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse
from scipy.optimize import minimize
from sklearn.decomposition import PCA

from common.data import CellSource, load_cells, split_cells
from common.errors import UserError
from common.run import write_cells
from data_validation import feature_selection
from data_validation.feature_selection import choose_on, scores, select_features, values_for

VARIANTS = list(product(["cv2", "fano", "pca"], [False, True]))
R_SCRIPT = Path(feature_selection.__file__).with_suffix(".R")
needs_r = pytest.mark.skipif(shutil.which("Rscript") is None, reason="Rscript is not installed")


@pytest.fixture(scope="module")
def blood():
    return load_cells(CellSource())


@pytest.fixture
def run(toy, tmp_path):
    """A finished run that held cells out; its synthetic cells are the held-out ones with half the counts of g0."""
    folder = tmp_path / "run"
    folder.mkdir()
    toy.write_h5ad(tmp_path / "mine.h5ad")
    real = load_cells(CellSource(input=tmp_path / "mine.h5ad"))
    train, held = split_cells(real, 0.5, 0)
    synthetic = held.copy()
    synthetic.X = sparse.csr_matrix(np.hstack([held.X.toarray()[:, :1] // 2, held.X.toarray()[:, 1:]]))
    synthetic.uns = {"scale": "counts"}
    write_cells(folder, synthetic)
    held.obs.rename_axis("cell").reset_index().to_csv(folder / "heldout.csv", index=False)
    source = {"input": str(tmp_path / "mine.h5ad"), "expression_csv": None, "labels_csv": None, "scale": None}
    record = {
        "source": source, "dataset": "mine", "method": "garage", "seed": 3, "scale": "counts", "holdout": 0.5,
        "genes": train.n_vars, "params": {}, "sha256": dict(real.uns["sha256"]),
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record, indent=2))
    return folder


def choose(run, *flags):
    out = run / "features.csv"
    feature_selection.main(["--run", str(run), "--n-genes", "5", "--out", str(out), *flags])
    return pd.read_csv(out)


def genes_of(table, chosen_on, selection="cv2"):
    return table.query("chosen_on == @chosen_on and selection == @selection")["gene"].tolist()


# definitions, and other implementations of them


def test_fano_is_variance_over_mean(blood):
    X = values_for("fano", blood)
    np.testing.assert_allclose(X.sum(axis=1), 1e4)
    dense = X.toarray()
    np.testing.assert_allclose(scores(X, "fano"), dense.var(0, ddof=1) / dense.mean(0), rtol=1e-9)


def test_fano_of_poisson_counts_is_one():
    X = np.random.default_rng(0).poisson(np.linspace(0.5, 20, 60), size=(20_000, 60))
    np.testing.assert_allclose(scores(X, "fano"), 1, atol=0.05)


def test_trend_of_cv2_has_the_highest_gamma_likelihood(blood):
    dense = values_for("cv2", blood).toarray()
    x, y = 1 / dense.mean(0), dense.var(0, ddof=1) / dense.mean(0) ** 2

    def deviance(log_a):
        trend = np.exp(log_a[0]) * x + np.exp(log_a[1])
        return (np.log(trend) + y / trend).sum()

    best = minimize(deviance, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-12})
    a1, a0 = np.exp(best.x)
    np.testing.assert_allclose(scores(dense, "cv2"), y / (a1 * x + a0), rtol=1e-6)


def test_trend_of_cv2_is_that_of_the_noise():
    """Negative binomial counts with dispersion 0.3 have CV² = 1/mean + 0.3: every gene scores 1 but those with more."""
    rng = np.random.default_rng(0)
    mean = rng.lognormal(0, 1.5, 300).clip(0.1, 50)
    dispersion = np.where(np.arange(300) < 5, 3.0, 0.3)
    X = rng.poisson(rng.gamma(1 / dispersion, mean * dispersion, size=(3000, 300)))
    found = scores(X, "cv2")
    assert np.median(found) == pytest.approx(1, abs=0.1)
    assert set(select_features(X, "cv2", 2)) <= set(range(5))
    assert abs(np.corrcoef(found[5:], np.log(mean[5:]))[0, 1]) < 0.2
    plain = X.var(0) / X.mean(0) ** 2
    assert np.corrcoef(plain[5:], np.log(mean[5:]))[0, 1] < -0.5  # what the trend is there to remove


@pytest.mark.parametrize("power", [-1.0, 1.0])
def test_trend_of_cv2_at_its_bounds(power):
    """CV² in proportion to 1/mean leaves no constant part, and CV² that rises with the mean no other."""
    mean = np.array([1.0, 2.0, 4.0, 8.0])
    half_range = np.sqrt(0.01 * mean**power) * mean
    X = np.stack([mean - half_range, mean + half_range])
    y = X.var(0, ddof=1) / mean**2
    trend = y if power < 0 else y.mean()
    np.testing.assert_allclose(scores(X, "cv2"), y / trend, rtol=1e-9)


def test_cv2_and_ranks_have_no_unit(blood):
    X = values_for("cv2", blood)
    np.testing.assert_allclose(scores(X * 37.0, "cv2"), scores(X, "cv2"), rtol=1e-9)
    for method in ("cv2", "fano"):
        np.testing.assert_array_equal(select_features(X * 4.0, method, 200), select_features(X, method, 200))


@pytest.mark.slow
@pytest.mark.parametrize("n_cells", [700, 300])  # fewer genes than cells, and more
def test_pca_is_the_variance_within_components(blood, n_cells):
    X = values_for("pca", blood)[:n_cells, :500].toarray()
    X = X[:, X.any(0)]
    pca = PCA(20, svd_solver="full").fit(X)
    expected = pca.explained_variance_ @ pca.components_**2
    np.testing.assert_allclose(scores(X, "pca"), expected, rtol=1e-6)
    assert (scores(X, "pca") <= X.var(0, ddof=1) + 1e-9).all()


def test_pca_of_few_cells_is_all_their_variance(toy):
    X = values_for("pca", toy)[:10].toarray()
    X = X[:, X.any(0)]
    np.testing.assert_allclose(scores(X, "pca"), X.var(0, ddof=1), rtol=1e-6)


@pytest.mark.slow
def test_published_pca_is_that_of_scikit_learn(blood):
    """Which approximates the components at random for a matrix of this shape."""
    X = blood.X.toarray().astype(float)
    expected = np.abs(PCA(3, random_state=42).fit(X).components_).max(0)
    np.testing.assert_allclose(scores(X, "pca", published=True), expected, atol=1e-5)
    assert set(select_features(X, "pca", 100, published=True)) == set(np.argsort(-expected)[:100])


def test_published_fano_takes_the_least_variable(blood):
    X = blood.X.toarray().astype(float)
    fano = X.var(0) / (X.mean(0) + 1e-12)
    np.testing.assert_allclose(scores(X, "fano", published=True), -fano, rtol=1e-9)
    assert fano[select_features(X, "fano", 50, published=True)].max() <= np.sort(fano)[49]


def test_published_cv2_follows_its_description(blood):
    X = blood.X.toarray().astype(float)
    mean = X.mean(0)
    dispersion = X.var(0, ddof=1) / mean
    edges = np.percentile(mean, range(10, 100, 5))
    expected = np.empty(len(mean))
    for low, high in zip([-np.inf, *edges], [*edges, np.inf], strict=True):
        inside = (mean >= low) & (mean < high)
        apart = np.abs(dispersion[inside] - np.median(dispersion[inside]))
        expected[inside] = apart / (np.median(apart) or 1e-8)
    np.testing.assert_allclose(scores(X, "cv2", published=True), expected, rtol=1e-7, atol=1e-9)


def test_published_cv2_is_that_of_scanpy_without_sign():
    """Flavour cell_ranger, whose bins are closed on the other side: no mean here lies on an edge."""
    rng = np.random.default_rng(0)
    X = rng.gamma(rng.uniform(0.5, 5, 764), 1.0, size=(200, 764))
    theirs = sc.pp.highly_variable_genes(AnnData(X), flavor="cell_ranger", inplace=False)["dispersions_norm"]
    factor = 1.482602  # of their MAD
    np.testing.assert_allclose(scores(X, "cv2", published=True), theirs.abs() * factor, rtol=1e-6, atol=1e-12)
    assert (theirs.iloc[select_features(X, "cv2", 100, published=True)] < 0).any()  # low dispersion gets in


# scales


def test_values_are_on_the_scale_of_the_method(toy):
    counts = toy.X.toarray()
    linear = counts / counts.sum(1, keepdims=True) * 1e4
    log = AnnData(sparse.csr_matrix(np.log1p(linear)), uns={"scale": "log"})
    for method, expected in {"cv2": linear, "fano": linear, "pca": np.log1p(linear)}.items():
        np.testing.assert_allclose(values_for(method, toy).toarray(), expected, rtol=1e-6)
        np.testing.assert_allclose(values_for(method, log).toarray(), expected, rtol=1e-5)
        np.testing.assert_array_equal(values_for(method, toy, published=True).toarray(), counts)
        np.testing.assert_array_equal(values_for(method, log, published=True).toarray(), log.X.toarray())
    np.testing.assert_array_equal(toy.X.toarray(), counts)  # the input is left alone


@pytest.mark.parametrize(("method", "published"), VARIANTS)
def test_negative_values(method, published):
    X = np.random.default_rng(0).normal(size=(30, 12))
    cells = AnnData(sparse.csr_matrix(X), uns={"scale": "scaled"})
    values = values_for(method, cells, published=published)
    if method == "pca":
        assert len(select_features(values, method, 12, published=published)) == 12
    else:
        with pytest.raises(UserError, match=f"{method} is not defined for negative values"):
            scores(values, method, published=published)


# ties, silent genes, errors


@pytest.mark.parametrize(("method", "published"), VARIANTS)
def test_silent_genes_are_never_chosen(toy, method, published):
    X = values_for(method, toy, published=published)
    found = scores(X, method, published=published)
    assert np.flatnonzero(np.isnan(found)).tolist() == [19]
    assert sorted(select_features(X, method, 19, published=published)) == list(range(19))
    with pytest.raises(UserError, match="but 19 genes are expressed"):
        select_features(X, method, 20, published=published)


@pytest.mark.parametrize(("method", "published"), VARIANTS)
def test_ties_come_in_the_order_of_the_file(toy, method, published):
    """Every gene stands thrice: the three must be chosen in order, though the last bits may differ by position."""
    X = np.tile(values_for(method, toy, published=published).toarray()[:, :19], 3)
    order = select_features(X, method, 57, published=published)
    assert not (np.diff(order) > 0).all()
    for gene in range(19):
        assert order[order % 19 == gene].tolist() == [gene, gene + 19, gene + 38]
    found = scores(X, method, published=published)[order]
    assert (np.diff(found) <= 1e-9 * np.abs(found[1:])).all()


def test_the_same_counts_in_other_cells_are_a_tie(toy):
    rng = np.random.default_rng(0)
    gene = toy.X.toarray()[:, :1]
    X = np.hstack([gene + 1, *(rng.permutation(gene) for _ in range(40))])
    np.testing.assert_array_equal(select_features(X, "fano", 41), [*range(1, 41), 0])


@pytest.mark.parametrize(("method", "published"), VARIANTS)
@pytest.mark.parametrize("X", [np.zeros((4, 3)), np.ones((4, 3)), np.array([[1.0, 2.0, 3.0]])])
def test_without_variation_there_is_nothing_to_choose(X, method, published):
    with pytest.raises(UserError, match="no gene varies"):
        scores(X, method, published=published)


@pytest.mark.parametrize("n_genes", [-1, 0, 20])
def test_number_out_of_range(toy, n_genes):
    with pytest.raises(UserError, match="give 1 to 19"):
        select_features(toy.X, "cv2", n_genes)


# the script


def test_table_of_a_run(run, capsys):
    table = choose(run)
    assert table.columns.tolist() == [
        "dataset", "method", "seed", "selection", "chosen_on", "rank", "gene", "score"
    ]  # fmt: skip
    assert (table["dataset"] == "mine").all() and (table["method"] == "garage").all() and (table["seed"] == 3).all()
    groups = table.groupby(["selection", "chosen_on"])
    assert set(groups.groups) == set(product(["cv2", "fano", "pca"], ["synthetic", "real", "heldout", "random"]))
    assert (groups["rank"].agg(list).map(lambda ranks: ranks == [1, 2, 3, 4, 5])).all()
    scored = table[table["chosen_on"] != "random"]
    assert scored.groupby(["selection", "chosen_on"])["score"].agg(lambda s: s.is_monotonic_decreasing).all()
    assert not table["gene"].eq("g19").any()  # silent
    out = capsys.readouterr().out
    assert "1.3" in out  # 5 of 19 expressed genes by chance: 25/19
    assert "wrote" in out


def test_chosen_on_says_on_which_cells(run):
    table = choose(run, "--method", "fano")
    cells = load_cells(CellSource(input=run.parent / "mine.h5ad"))
    train, held = split_cells(cells, 0.5, 0)
    for name, group in {"real": train, "heldout": held}.items():
        expected = cells.var_names[select_features(values_for("fano", group), "fano", 5)].tolist()
        assert genes_of(table, name, "fano") == expected
    synthetic, heldout = (table[table["chosen_on"] == name] for name in ("synthetic", "heldout"))
    assert not np.allclose(synthetic["score"], heldout["score"])


def test_flags_change_what_they_say(run):
    plain = choose(run, "--method", "cv2")
    assert plain["selection"].unique().tolist() == ["cv2"]
    other = choose(run, "--method", "cv2", "--seed", "7")
    assert genes_of(other, "random") != genes_of(plain, "random")
    assert genes_of(other, "synthetic") == genes_of(plain, "synthetic")
    fewer = choose(run, "--method", "cv2", "--n-genes", "3")
    assert genes_of(fewer, "real") == genes_of(plain, "real")[:3]
    published = choose(run, "--method", "fano", "--published")
    assert published["selection"].unique().tolist() == ["fano_published"]
    textbook = genes_of(choose(run, "--method", "fano"), "real", "fano")
    assert not set(textbook) & set(genes_of(published, "real", "fano_published"))  # highest, and lowest


def test_default_place_of_the_table(run, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_selection, "RESULTS_DIR", tmp_path)
    for flags in ([], ["--published"]):
        feature_selection.main(["--run", str(run), "--n-genes", "5", *flags])
    names = {path.name for path in (tmp_path / "tables").iterdir()}
    assert names == {"features_mine_garage_seed3.csv", "features_mine_garage_seed3_published.csv"}


def test_random_choice_is_one_of_expressed_genes(toy):
    groups = {"real": toy}
    drawn = [set(choose_on(groups, "fano", 5, seed=seed).query("chosen_on == 'random'")["gene"]) for seed in range(100)]
    share = pd.Series([gene for genes in drawn for gene in genes]).value_counts() / 100
    assert set(share.index) == {f"g{i}" for i in range(19)}
    assert share.between(5 / 19 - 0.18, 5 / 19 + 0.18).all()  # four standard errors


@pytest.mark.parametrize("flags, complaint", [
    (["--run", "nowhere"], "holds no finished run"),
    (["--run", "RUN", "--method"], "give one or more of cv2, fano and pca"),
    (["--run", "RUN", "--n-genes", "20"], "synthetic cells: --n-genes is 20, but 19 genes are expressed"),
])  # fmt: skip
def test_complaints(run, flags, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(feature_selection, "RESULTS_DIR", tmp_path)
    with pytest.raises(SystemExit) as left:
        feature_selection.main([str(run) if flag == "RUN" else flag for flag in flags])
    assert left.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "tables").exists()


# R


def rscript(*flags):
    return subprocess.run(["Rscript", str(R_SCRIPT), *map(str, flags)], capture_output=True, text=True, timeout=120)


def chosen_by_r(folder, *flags):
    out = folder / "genes.csv"
    done = rscript("--out", out, *flags)
    assert (done.returncode, done.stderr) == (0, "")
    return pd.read_csv(out)


@pytest.fixture(scope="module")
def folder_of(blood, tmp_path_factory):
    """Write cells as a run does: counts, and those on the log scale, whose text has the digits of single precision."""

    def make(cells, scale="counts"):
        folder = tmp_path_factory.mktemp("cells")
        cells = cells.copy()
        if scale == "log":
            cells.X, cells.uns["scale"] = values_for("pca", cells).astype(np.float32), "log"
        write_cells(folder, cells)
        (folder / "run.json").write_text(json.dumps({"source": {"scale": None}, "scale": scale}, indent=2))
        return folder, cells

    return make


@pytest.fixture(scope="module", params=["counts", "log"])
def blood_folder(request, blood, folder_of):
    return folder_of(blood, request.param)


def assert_r_agrees(folder, cells, method, published):
    values = values_for(method, cells, published=published)
    found = scores(values, method, published=published)
    n_genes = int((~np.isnan(found)).sum())
    expected = select_features(values, method, n_genes, published=published)
    flags = ["--method", method, "--n-genes", n_genes, *(["--published"] if published else [])]
    table = chosen_by_r(folder, "--run", folder, *flags)
    assert table["rank"].tolist() == list(range(1, n_genes + 1))
    assert table["gene"].tolist() == cells.var_names[expected].tolist()
    np.testing.assert_allclose(table["score"], found[expected], rtol=1e-6)


@pytest.mark.slow
@needs_r
@pytest.mark.parametrize(("method", "published"), VARIANTS)
def test_r_chooses_the_same_genes(blood_folder, method, published):
    assert_r_agrees(*blood_folder, method, published)


@needs_r
@pytest.mark.parametrize(("method", "published"), VARIANTS)
def test_r_breaks_ties_alike(toy, folder_of, method, published):
    """With more genes than cells, a silent one, names that need quotes, and means on the edges of bins."""
    X = np.hstack([np.tile(toy.X.toarray(), 4), np.eye(72, 21)])  # 101 genes: a bin edge falls on every fifth
    names = [f'gene "{i}", {"αβ"[i % 2]}' for i in range(101)]
    cells = AnnData(sparse.csr_matrix(X.astype(np.float32)), obs=toy.obs, var=pd.DataFrame(index=names))
    cells.uns["scale"] = "counts"
    assert_r_agrees(*folder_of(cells), method, published)


@needs_r
def test_r_takes_the_scale_from_flag_record_or_values(toy, folder_of):
    folder, _ = folder_of(toy)
    cells = ["--matrix", folder / "cells.csv", "--method", "fano", "--n-genes", 19]

    def found(*flags):
        return chosen_by_r(folder, *flags).set_index("gene")["score"]

    recognised = found(*cells)
    pd.testing.assert_series_equal(recognised, found(*cells, "--scale", "counts"))
    linear = found(*cells, "--scale", "linear")
    np.testing.assert_allclose(linear.loc[toy.var_names[:19]], scores(toy.X, "fano")[:19], rtol=1e-9)
    assert not np.allclose(linear.sort_index(), recognised.sort_index())
    record = folder / "run.json"
    record.write_text(record.read_text().replace('"counts"', '"linear"'))
    pd.testing.assert_series_equal(linear, found("--run", folder, "--method", "fano", "--n-genes", 19))


@needs_r
@pytest.mark.parametrize("flags, complaint", [
    (["--matrix", "CSV", "--method", "cv3"], "--method is one of cv2, fano, pca"),
    (["--matrix", "CSV", "--method", "cv2", "--n-genes", "20"], "but 19 genes are expressed: give 1 to 19"),
    (["--matrix", "CSV", "--method", "cv2", "--n-genes", "2.5"], "--n-genes is 2.5"),
    (["--matrix", "CSV", "--method", "cv2", "--n-genes", "many"], "--n-genes is many"),
    (["--matrix", "CSV", "--run", "FOLDER", "--method", "cv2"], "give one of --run and --matrix"),
    (["--matrix", "CSV", "--method"], "--method needs a value"),
    (["--matrix", "CSV", "--colour", "red"], "there is no flag --colour"),
    (["--matrix", "CSV", "--method", "cv2", "--scale", "log", "--published"], "leave out --scale"),
    (["--matrix", "nowhere.csv", "--method", "cv2"], "nowhere.csv does not exist"),
    (["--matrix", "FOLDER/run.json", "--method", "cv2"], "is no readable table of cells"),
    (["--matrix", "FOLDER/scaled.csv", "--method", "cv2"], "not defined for negative values"),
    (["--matrix", "FOLDER/same.csv", "--method", "pca"], "no gene varies"),
    (["--matrix", "FOLDER/gap.csv", "--method", "pca"], "missing or infinite values"),
    (["--run", "FOLDER/none", "--method", "cv2"], "holds no finished run"),
])  # fmt: skip
def test_complaints_of_r(toy, folder_of, flags, complaint):
    folder, _ = folder_of(toy)
    for name, rows in {"scaled": "1,-1\nb,T,0,2", "same": "1,2\nb,T,1,2", "gap": "1,NA\nb,T,1,2"}.items():
        (folder / f"{name}.csv").write_text(f"cell,cell_type,g0,g1\na,T,{rows}\n")
    flags = [flag.replace("CSV", str(folder / "cells.csv")).replace("FOLDER", str(folder)) for flag in flags]
    done = rscript(*flags, "--out", folder / "genes.csv")
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (folder / "genes.csv").exists()


@needs_r
def test_r_cannot_write(toy, folder_of):
    folder, _ = folder_of(toy)
    done = rscript("--run", folder, "--method", "fano", "--n-genes", "3", "--out", folder / "run.json" / "genes.csv")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "choose a folder you can write to" in done.stderr
