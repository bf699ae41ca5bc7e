"""The picture of a run is written whole, with real cells from where the run had them; a missing run is said."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.image import imread
from scipy import sparse

from analysis import plot_umap
from common.plotting import figures_of
from common.runs import read_source

TYPES = np.repeat(["B", "T", "rare"], [20, 19, 1])


def cells(seed, n_genes):
    X = np.random.default_rng(seed).poisson(3.0, size=(len(TYPES), n_genes)).astype(np.float32)
    obs = pd.DataFrame({"cell_type": TYPES}, index=[f"c{seed}_{i}" for i in range(len(TYPES))])
    genes = pd.DataFrame(index=[f"G{i}" for i in range(n_genes)])
    return AnnData(sparse.csr_matrix(X), obs=obs, var=genes, uns={"scale": "counts"})


@pytest.fixture
def run(tmp_path):
    """A finished run whose synthetic cells have fewer genes, in another order, than the real ones."""
    folder = tmp_path / "synthetic" / "mine" / "garage" / "seed1"
    folder.mkdir(parents=True)
    cells(0, n_genes=8).write_h5ad(tmp_path / "mine.h5ad")
    cells(1, n_genes=6)[:, ::-1].copy().write_h5ad(folder / "cells.h5ad")
    source = {"input": str(tmp_path / "mine.h5ad"), "expression_csv": None, "labels_csv": None, "n_top_genes": 6}
    (folder / "run.json").write_text(json.dumps({"source": source}))
    return folder


def test_figures_lie_where_tables_do():
    assert figures_of(Path("results/tables/ablation.csv")) == Path("results/figures")
    assert figures_of(Path("mine/ablation.csv")) == Path("mine")


@pytest.mark.slow
def test_picture(run, tmp_path, monkeypatch):
    monkeypatch.setattr(plot_umap, "RESULTS_DIR", tmp_path)
    plot_umap.main(["--run", str(run)])
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["umap_mine_garage_seed1.png"]
    picture = imread(tmp_path / "figures" / "umap_mine_garage_seed1.png")
    assert picture.shape[1] > picture.shape[0] > 500
    assert len(np.unique(picture.reshape(-1, 4), axis=0)) > 50  # colours, not a blank sheet


def test_source_of_cells_drawn_later(run, tmp_path):
    later = tmp_path / "later"
    later.mkdir()
    (later / "run.json").write_text(json.dumps({"drawn_from": str(run)}))
    assert read_source(later) == read_source(run)


@pytest.mark.parametrize("flags, complaint", [
    (["--run", "nowhere"], "make it with python data_generation/garage.py"),
    (["--run", "RUN", "--out", "picture.xyz"], "let it end in .png"),
])  # fmt: skip
def test_complaints(flags, complaint, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        plot_umap.main([str(run) if flag == "RUN" else flag for flag in flags])
    assert exit_.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "picture.xyz").exists()
