"""Cells larger than memory: the same results from scratch files as from memory, within a limit that is enforced."""

import subprocess
import sys
import textwrap
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData
from conftest import make_toy

from benchmarking.sota import vae
from common import disk
from common.data import CellSource, load_cells, select_genes
from common.disk import as_dask, is_on_disk, map_rows, row_blocks, row_sums, subset, take, to_disk
from common.errors import UserError
from common.generation import load_split
from common.scale import check_scale, detect_scale
from config import GarageParams
from data_generation import garage
from data_generation.model import fit, sample

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(disk, "BLOCK_VALUES", 150)
    monkeypatch.setattr(disk, "BLOCK_ROWS", 30)


@pytest.fixture
def matrix():
    X = sp.random(100, 20, density=0.3, format="csr", dtype=np.float32, random_state=0)
    X.data = np.ceil(X.data * 9)
    empty = np.repeat(np.arange(100), np.diff(X.indptr)) == 7
    X.data[empty] = 0
    X.eliminate_zeros()
    return X


@pytest.fixture
def mapped(matrix):
    return to_disk(iter([matrix[:40], matrix[40:]]))


@pytest.fixture
def h5ad(tmp_path):
    toy = make_toy()
    toy.write_h5ad(tmp_path / "toy.h5ad")
    return tmp_path / "toy.h5ad"


def test_mapped_matrix_is_the_matrix(matrix, mapped):
    assert is_on_disk(mapped) and not is_on_disk(matrix)
    assert np.array_equal(mapped.toarray(), matrix.toarray())
    blocks = list(row_blocks(mapped))
    assert len(blocks) > 4 and not any(is_on_disk(block) for block in blocks)
    assert max(block.nnz for block in blocks) <= 150 and max(block.shape[0] for block in blocks) <= 30
    assert (sp.vstack(blocks) != matrix).nnz == 0
    assert [block is matrix for block in row_blocks(matrix)] == [True]
    np.testing.assert_allclose(row_sums(mapped), matrix.toarray().sum(1))


def test_row_longer_than_a_block_is_a_block(monkeypatch, mapped):
    monkeypatch.setattr(disk, "BLOCK_VALUES", 1)
    blocks = list(row_blocks(mapped))
    assert len(blocks) >= 90 and sum(block.shape[0] for block in blocks) == 100


def test_rows_and_genes_are_taken(matrix, mapped):
    order = np.random.default_rng(0).permutation(100)
    for rows in (order, order % 3 == 0):
        taken = take(mapped, rows)
        assert is_on_disk(taken) and np.array_equal(taken.toarray(), matrix[rows].toarray())
    logged = map_rows(lambda block: block.log1p(), mapped)
    assert is_on_disk(logged) and np.array_equal(logged.toarray(), matrix.log1p().toarray())
    cells, genes = order % 2 == 0, np.arange(20) % 3 > 0
    both = [subset(AnnData(X, uns={"scale": "counts"}), cells, genes) for X in (matrix, mapped)]
    assert is_on_disk(both[1].X) and np.array_equal(both[0].X.toarray(), both[1].X.toarray())
    assert both[0].obs_names.equals(both[1].obs_names) and both[0].var_names.equals(both[1].var_names)
    assert both[1].uns == {"scale": "counts"}


def test_nothing_stored_is_still_a_matrix():
    empty = to_disk(iter([sp.csr_matrix((3, 4), dtype=np.float32)]))
    assert empty.shape == (3, 4) and empty.nnz == 0


def test_scratch_files_leave_no_trace(matrix, tmp_path, monkeypatch):
    monkeypatch.setattr(disk.tempfile, "tempdir", str(tmp_path))
    mapped = to_disk(iter([matrix]))
    assert not list(tmp_path.iterdir()) and np.array_equal(mapped.toarray(), matrix.toarray())


def test_scale_is_told_by_every_block(matrix, mapped):
    assert detect_scale(mapped) == "counts"
    for last, scale in ((0.5, "log"), (300.5, "linear"), (-1.0, "scaled")):
        X = matrix.copy()
        X.data[-1] = last
        assert detect_scale(to_disk(iter([X]))) == scale
        if scale != "scaled":
            with pytest.raises(UserError, match="no integer"):
                check_scale(to_disk(iter([X])), "counts")


@pytest.mark.parametrize("layout", ["csr", "dense", "layer", "raw", "zarr"])
def test_h5ad_and_zarr_are_read(h5ad, tmp_path, layout):
    toy = anndata.read_h5ad(h5ad)
    if layout == "dense":
        toy.X = toy.X.toarray()
    if layout == "layer":
        toy.layers["raw"], toy.X = toy.X, sp.csr_matrix(toy.shape, dtype=np.float32)
    if layout == "raw":  # of more genes
        toy.raw = toy
        toy = toy[:, :5].copy()
    path = tmp_path / ("cells.zarr" if layout == "zarr" else "cells.h5ad")
    (toy.write_zarr if layout == "zarr" else toy.write_h5ad)(path)
    source = CellSource(input=path, layer="raw" if layout in ("layer", "raw") else None)
    there, here = load_cells(CellSource(**{**vars(source), "on_disk": True})), load_cells(source)
    assert is_on_disk(there.X) and np.array_equal(there.X.toarray(), here.X.toarray())
    pd.testing.assert_frame_equal(there.obs, here.obs)
    assert there.var_names.equals(here.var_names) and there.uns == here.uns and len(here.uns["sha256"]) == 1


def test_checksum_of_a_zarr_store_is_that_of_its_content(tmp_path):
    toy = make_toy()
    for name in ("a", "b"):
        toy.write_zarr(tmp_path / name / "cells.zarr")
    sums = [load_cells(CellSource(input=tmp_path / name / "cells.zarr")).uns["sha256"] for name in "ab"]
    assert sums[0] == sums[1]
    toy.X[0, 0] += 1
    toy.write_zarr(tmp_path / "c" / "cells.zarr")
    assert load_cells(CellSource(input=tmp_path / "c" / "cells.zarr")).uns["sha256"] != sums[0]


def test_what_cannot_stay_on_disk_is_refused(h5ad, tmp_path):
    def read(path=h5ad, **flags):
        return load_cells(CellSource(input=path, on_disk=True, **flags))

    for flag in ("cluster", "transpose"):
        with pytest.raises(UserError, match=f"--{flag} needs all cells in memory"):
            read(**{flag: True})
    with pytest.raises(UserError, match="has no layers/raw"):
        read(layer="raw")
    toy = anndata.read_h5ad(h5ad)
    toy.X = toy.X.tocsc()
    toy.write_h5ad(tmp_path / "csc.h5ad")
    with pytest.raises(UserError, match="by genes"):
        read(tmp_path / "csc.h5ad")
    (tmp_path / "10x").mkdir()
    with pytest.raises(UserError, match="--on-disk is for h5ad files"):
        read(tmp_path / "10x")
    h5ad.write_bytes(h5ad.read_bytes()[:3000])
    with pytest.raises(UserError, match="damaged"):
        read()


def test_a_missing_value_is_found_where_it_is(h5ad):
    toy = anndata.read_h5ad(h5ad)
    toy.X[50, 3] = np.nan
    toy.write_h5ad(h5ad)
    with pytest.raises(UserError, match=f"cell '{toy.obs_names[50]}', gene '{toy.var_names[3]}'"):
        load_cells(CellSource(input=h5ad, on_disk=True))


def test_genes_are_chosen_as_in_memory():
    rng = np.random.default_rng(0)
    X = sp.csr_matrix(rng.poisson(rng.gamma(1, 1, (300, 200)) * rng.gamma(0.5, 3, 200)).astype(np.float32))
    mapped = to_disk(iter([X[:120], X[120:]]))
    here, there = (AnnData(matrix, uns={"scale": "counts"}) for matrix in (X, mapped))
    assert list(select_genes(here, 40)) == list(select_genes(there, 40))
    expected = sc.pp.highly_variable_genes(AnnData(X.log1p()), inplace=False)["means"]
    with as_dask(map_rows(lambda block: block.log1p(), mapped)) as blocks:
        means = sc.pp.highly_variable_genes(AnnData(blocks), inplace=False)["means"]
    np.testing.assert_allclose(means, expected, rtol=1e-5)


TINY = GarageParams(
    rare_threshold=8, graph_pcs=8, gat_heads=2, gat_hidden=4, gat_epochs=10, hidden_dim=8, latent_dim=3, batch_size=32,
    anchor_epochs=4, warmup_epochs=1, critic_steps=4, critic_hidden=8, calibration_cells=60,
)  # fmt: skip


def test_cells_on_disk_give_the_same_cells(h5ad):
    drawn = []
    for on_disk in (False, True):
        train, held = load_split(CellSource(input=h5ad, on_disk=on_disk, n_top_genes=15), 0.25, 0)
        assert is_on_disk(train.X) == is_on_disk(held.X) == on_disk
        drawn.append(sample(fit(train, TINY, seed=0, device="cpu"), 50, seed=1))
    assert np.array_equal(drawn[0].X.toarray(), drawn[1].X.toarray())


def test_script_leaves_the_cells_on_disk(h5ad, tmp_path):
    flags = ["--gat-epochs", "5", "--anchor-epochs", "2", "--critic-steps", "2", "--holdout", "0.5", "--device", "cpu"]
    for name, more in (("memory", []), ("disk", ["--on-disk", "--no-csv"])):
        garage.main(["--input", str(h5ad), "--out", str(tmp_path / name), *flags, *more])
    here, there = (anndata.read_h5ad(tmp_path / name / "cells.h5ad") for name in ("memory", "disk"))
    assert np.array_equal(here.X.toarray(), there.X.toarray())
    assert (tmp_path / "memory/cells.csv").exists() and not (tmp_path / "disk/cells.csv").exists()
    with pytest.raises(SystemExit) as stopped:
        garage.main(["--input", str(h5ad), "--out", str(tmp_path / "p"), "--preset", "paper", "--on-disk"])
    assert stopped.value.code == 2


def test_baselines_do_not_take_cells_on_disk(h5ad, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        vae.main(["--input", str(h5ad), "--out", str(tmp_path / "run"), "--on-disk"])
    assert stopped.value.code == 2 and "leave out --on-disk" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


LIMIT = 200_000_000
LIMITED = """
    import resource, sys
    from pathlib import Path
    import scanpy, dask.array, torch_geometric  # what is imported later would count as the data's
    from data_generation import garage
    import re
    held = int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    limit = held + int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    garage.main(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is limited by what Linux tells")
def test_data_five_times_larger_than_the_memory_allowed(tmp_path):
    """1 GB of counts, in a process that may take 200 MB beyond what its libraries take: too little to load them."""
    rng, n_cells, n_genes = np.random.default_rng(0), 20_000, 15_000
    block = sp.random(1000, n_genes, density=0.42, format="csr", dtype=np.float32, random_state=0)
    block.data = rng.integers(1, 9, block.nnz).astype(np.float32)
    X = sp.vstack([block] * (n_cells // 1000), format="csr")
    assert X.data.nbytes + X.indices.nbytes > 5 * LIMIT
    obs = pd.DataFrame({"cell_type": rng.choice(["a", "b", "c"], n_cells)}, index=[f"c{i}" for i in range(n_cells)])
    AnnData(X, obs=obs).write_h5ad(tmp_path / "large.h5ad")
    del X

    def run(*flags):
        command = [
            sys.executable, "-c", textwrap.dedent(LIMITED), str(LIMIT), "--input", str(tmp_path / "large.h5ad"),
            "--out", str(tmp_path / "run"), "--n-top-genes", "100", "--n-cells", "500", "--gat-epochs", "3",
            "--anchor-steps", "30", "--critic-steps", "3", "--graph-pcs", "10", "--gat-heads", "2", "--gat-hidden", "4",
            "--device", "cpu", *flags,
        ]  # fmt: skip
        environment = {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin"}
        environment |= {"OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=600)

    in_memory = run()
    assert in_memory.returncode == 2 and "memory" in in_memory.stderr, in_memory.stderr
    on_disk = run("--on-disk")
    assert on_disk.returncode == 0, on_disk.stderr
    assert anndata.read_h5ad(tmp_path / "run/cells.h5ad").shape == (500, 100)
