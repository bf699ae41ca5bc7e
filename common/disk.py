"""Cells larger than memory: a CSR matrix whose arrays lie in nameless scratch files and are mapped, block by block.

A mapped matrix is an ordinary `scipy.sparse.csr_matrix`: rows are taken from it as from any other, and the operating
system reads what is asked for. What must not happen is a copy of all its values; the functions here go by blocks of
rows instead. A matrix in memory is one block. Scratch files lie where the system keeps temporary files (TMPDIR) and
vanish with the process, however it ends.
"""

import itertools
import mmap
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import h5py
import numpy as np
import zarr
from anndata import AnnData
from scipy import sparse

from common.errors import UserError

if TYPE_CHECKING:
    import dask

BLOCK_VALUES = 2_000_000  # stored values of a block, 24 MB
BLOCK_ROWS = 8192  # rows of a block at most


def is_on_disk(X: np.ndarray | sparse.spmatrix) -> bool:
    """Tell whether the values of a matrix are mapped from a file."""
    values = X if isinstance(X, np.ndarray) else X.data
    while isinstance(values, np.ndarray) and values.base is not None:
        values = values.base
    return isinstance(values, mmap.mmap)


def check_indices(X: sparse.csr_matrix | sparse.csc_matrix) -> None:
    """Make sure that a matrix of a file that may be damaged has valid indices: scipy would read out of bounds.

    Raises
    ------
    ValueError
        Otherwise.
    """
    ends, n = X.indptr, X.shape[X.format == "csr"]
    inside = X.indices.size == 0 or (X.indices.min() >= 0 and X.indices.max() < n)
    if not inside or ends[0] != 0 or ends[-1] != len(X.indices) or (ends[1:] < ends[:-1]).any():
        raise ValueError("its indices point outside the matrix")


def _bounds(X: sparse.csr_matrix) -> list[int]:
    """Return where blocks of rows begin and end that fit into memory."""
    bounds = [0]
    while bounds[-1] < X.shape[0]:
        fitting = int(np.searchsorted(X.indptr, X.indptr[bounds[-1]] + BLOCK_VALUES, side="right")) - 1
        bounds.append(min(max(fitting, bounds[-1] + 1), bounds[-1] + BLOCK_ROWS, X.shape[0]))
    return bounds


def row_blocks(X: sparse.csr_matrix) -> Iterator[sparse.csr_matrix]:
    """Yield a matrix in blocks of rows that fit into memory; one in memory as it is."""
    if not is_on_disk(X):
        yield X
    else:
        yield from (X[start:end] for start, end in itertools.pairwise(_bounds(X)))


def value_blocks(X: np.ndarray | sparse.spmatrix) -> Iterator[np.ndarray]:
    """Yield the stored values of a matrix in order, one or more arrays."""
    values = X.ravel() if isinstance(X, np.ndarray) else np.asarray(X.data)
    n_values = BLOCK_VALUES if is_on_disk(X) else max(1, len(values))
    for start in range(0, len(values), n_values):
        yield values[start : start + n_values]


def row_sums(X: sparse.csr_matrix) -> np.ndarray:
    """Return the sum of each row in double precision, shape (n_rows,)."""
    return np.concatenate([np.asarray(block.sum(1, dtype=np.float64)).ravel() for block in row_blocks(X)])


def map_rows(transform: Callable[[sparse.csr_matrix], sparse.csr_matrix], X: sparse.csr_matrix) -> sparse.csr_matrix:
    """Apply to a matrix what treats each row by itself; the result lies where the matrix does."""
    if not is_on_disk(X):
        return transform(X)
    return to_disk(map(transform, row_blocks(X)))


def take(X: sparse.csr_matrix, rows: np.ndarray) -> sparse.csr_matrix:
    """Return some rows, in the given order; they lie where the matrix does.

    Parameters
    ----------
    rows
        Indices, or a mask of shape (n_rows,).
    """
    if not is_on_disk(X):
        return X[rows]
    rows = np.flatnonzero(rows) if rows.dtype == bool else rows
    n_values = int(np.diff(X.indptr)[rows].sum())
    return to_disk(X[some] for some in np.array_split(rows, 1 + n_values // BLOCK_VALUES + len(rows) // BLOCK_ROWS))


def subset(cells: AnnData, rows: np.ndarray | None = None, genes: np.ndarray | None = None) -> AnnData:
    """Return a copy of some cells and genes, given as masks; X of shape (n_cells, n_genes) lies where it did."""
    rows = np.ones(cells.n_obs, dtype=bool) if rows is None else rows
    genes = np.ones(cells.n_vars, dtype=bool) if genes is None else genes
    if not is_on_disk(cells.X):
        return cells[rows, genes].copy()
    X = cells.X if rows.all() else take(cells.X, rows)
    if not genes.all():
        X = map_rows(lambda block: block[:, np.flatnonzero(genes)], X)
    return AnnData(X, obs=cells.obs[rows].copy(), var=cells.var[genes].copy(), uns=dict(cells.uns))


@contextmanager
def as_dask(X: sparse.csr_matrix) -> "Iterator[dask.array.Array]":
    """Yield a mapped matrix as a dask array of row blocks, which scanpy goes through, within the block one by one."""
    import dask.array  # takes a while: only what is on disk needs it

    meta = sparse.csr_matrix((0, 0), dtype=X.dtype)
    rows = dask.delayed(X.__getitem__)
    parts = [
        dask.array.from_delayed(rows(slice(start, end)), (end - start, X.shape[1]), X.dtype, meta)
        for start, end in itertools.pairwise(_bounds(X))
    ]
    with dask.config.set(scheduler="synchronous"):
        yield dask.array.concatenate(parts)


def to_disk(blocks: Iterator[sparse.csr_matrix]) -> sparse.csr_matrix:
    """Write blocks of rows, one at least, to scratch files and return them as one mapped matrix.

    Raises
    ------
    UserError
        If the disk is full.
    """
    with tempfile.TemporaryFile(prefix="garage-") as values, tempfile.TemporaryFile(prefix="garage-") as columns:
        ends = [np.zeros(1, dtype=np.int64)]
        try:
            for block in blocks:
                values.write(np.ascontiguousarray(block.data).data)
                columns.write(np.ascontiguousarray(block.indices, dtype=np.int64).data)
                ends.append(ends[-1][-1] + block.indptr[1:].astype(np.int64))
            values.flush()
            columns.flush()
        except OSError as error:
            raise UserError(
                f"no room left for scratch files in {tempfile.gettempdir()} ({error.strerror}): free some space or "
                "let TMPDIR name another folder"
            ) from error
        indptr = np.concatenate(ends)
        n = int(indptr[-1])
        X = sparse.csr_matrix((len(indptr) - 1, block.shape[1]), dtype=block.dtype)
        if n:  # nothing cannot be mapped
            # not by the constructor, which would read every index to choose its type
            X.data = np.memmap(values, block.dtype, mode="r", shape=(n,))
            X.indices, X.indptr = np.memmap(columns, np.int64, mode="r", shape=(n,)), indptr
        X.has_sorted_indices = X.has_canonical_format = True
    return X


def read_on_disk(path: Path, layer: str | None) -> AnnData:
    """Read an h5ad file or Zarr store of AnnData, its matrix block by block onto scratch files.

    Parameters
    ----------
    layer
        Layer to take instead of X; raw, where no layer is called so, means .raw.

    Returns
    -------
    X of shape (n_cells, n_genes), CSR float32 without stored zeros, on disk; the file's obs and var, or raw's var.

    Raises
    ------
    UserError
        If there is no such matrix, or it is stored by genes.
    """
    store: Any = zarr.open_group(path, mode="r") if path.is_dir() else h5py.File(path)
    try:
        of_raw = layer == "raw" and "layers/raw" not in store and "raw/X" in store
        key = "raw/X" if of_raw else f"layers/{layer}" if layer else "X"
        if key not in store:
            layers = list(store["layers"]) if "layers" in store else []
            raise UserError(f"{path} has no {key}: give --layer, one of {layers}")
        stored = store[key]
        if isinstance(stored, h5py.Group | zarr.Group):
            stored = anndata.io.sparse_dataset(stored)
            if stored.format != "csr":
                raise UserError(f"{path} stores {key} by genes (csc): store it by cells (csr), or leave out --on-disk")
        n_cells, n_genes = stored.shape
        n_rows = max(1, min(BLOCK_ROWS, BLOCK_VALUES // n_genes))

        def blocks() -> Iterator[sparse.csr_matrix]:
            for start in range(0, max(n_cells, 1), n_rows):
                block = sparse.csr_matrix(stored[start : start + n_rows], dtype=np.float32)
                check_indices(block)
                block.sum_duplicates()
                block.eliminate_zeros()
                yield block

        obs, var = (anndata.io.read_elem(store[name]) for name in ("obs", "raw/var" if of_raw else "var"))
        return AnnData(to_disk(blocks()), obs=obs, var=var)
    finally:
        if isinstance(store, h5py.File):
            store.close()
