"""On which scale an expression matrix is, and the ways from one scale to another."""

from typing import Literal, TypeVar, get_args

import numpy as np
from scipy import sparse

from common.disk import value_blocks
from common.errors import UserError

Scale = Literal["counts", "linear", "log", "scaled"]
"""counts: non-negative integers; linear: non-negative, not logged (RPKM, TPM, CPM); log: log-normalised; scaled: has
negative values, such as z-scores"""

Matrix = TypeVar("Matrix", np.ndarray, sparse.csr_matrix)

LOG_BOUND = 30.0  # log2 of a billion: no log-normalised value lies above, and some RPKM or TPM always does
COUNT_TOLERANCE = 0.2  # furthest a recovered count may lie from an integer; chance alone would give up to 0.5
MOST_COUNTS = 2**24  # float32 holds every integer up to here, and no gene has more molecules in a cell


def _fractions(values: np.ndarray) -> np.ndarray:
    return values[values != np.rint(values)]


def detect_scale(X: np.ndarray | sparse.spmatrix) -> Scale:
    """Name the scale of a matrix by its values: negative, integer, or below the bound of log-normalised values.

    Parameters
    ----------
    X
        Expression of shape (n_cells, n_genes), finite.

    Returns
    -------
    "scaled" if a value is negative, else "counts" if all are integers, else "log" if none is above 30, else "linear".
    """
    # zeros that are not stored belong to every scale
    if any((values < 0).any() for values in value_blocks(X)):
        return "scaled"
    if not any(_fractions(values).size for values in value_blocks(X)):
        return "counts"
    return "log" if max(values.max() for values in value_blocks(X)) <= LOG_BOUND else "linear"


def check_scale(X: np.ndarray | sparse.spmatrix, scale: Scale) -> None:
    """Make sure that the values do not contradict a scale that the user has forced.

    Parameters
    ----------
    X
        Expression of shape (n_cells, n_genes), finite.
    scale
        The forced scale.

    Raises
    ------
    UserError
        If counts, linear or log values are negative, counts are not integers, or log values are above 30.
    """
    if scale not in get_args(Scale):
        raise UserError(f"there is no scale '{scale}': give --scale {', '.join(get_args(Scale))}, or leave it out")
    if scale == "scaled":
        return
    negative = sum(int((values < 0).sum()) for values in value_blocks(X))
    if negative:
        raise UserError(f"--scale {scale} but {negative} values are negative: give --scale scaled, or correct them")
    for values in value_blocks(X):
        if scale == "counts" and (broken := _fractions(values)).size:
            raise UserError(
                f"--scale counts but {broken[0]:g} is no integer: give --scale log or linear, or the raw counts"
            )
        if scale == "log" and values.max() > LOG_BOUND:
            raise UserError(f"--scale log but a value is {values.max():g}, beyond any logarithm: give --scale linear")


def recover_counts(X_log: np.ndarray | sparse.spmatrix) -> sparse.csr_matrix:
    """Recover UMI counts from size-normalised, log1p-transformed values.

    Normalisation divides a cell by one number, so its smallest value stands for one molecule. Practically every cell
    has a gene seen once; a cell without one betrays itself by fractions, unless all its counts share a divisor.

    Parameters
    ----------
    X_log
        Natural log1p of size-normalised counts, shape (n_cells, n_genes).

    Returns
    -------
    Integer counts of the same shape, CSR float32.

    Raises
    ------
    UserError
        If a recovered count is further than 0.2 from an integer, or absurdly large.
    """
    counts = sparse.csr_matrix(X_log, dtype=np.float64)  # a copy in any case
    counts.eliminate_zeros()
    counts.data = np.expm1(counts.data)
    cell_of_value = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    smallest = np.full(counts.shape[0], np.inf)
    np.minimum.at(smallest, cell_of_value, counts.data)
    ratios = counts.data / smallest[cell_of_value]
    counts.data = np.rint(ratios)
    near = np.abs(ratios - counts.data) <= COUNT_TOLERANCE
    if not (near & (ratios > 0) & (ratios < MOST_COUNTS)).all():
        raise UserError("no integer counts can be recovered from these values: give the raw counts instead")
    return counts.astype(np.float32)


def to_log(X: Matrix, scale: Scale, target_sum: float) -> Matrix:
    """Bring expression to the log scale.

    Parameters
    ----------
    X
        Expression of shape (n_cells, n_genes), dense or CSR; not changed.
    scale
        Its scale. Only counts are brought to a common library size; log and scaled values are left as they are.
    target_sum
        Library size to which the counts of a cell are scaled; a cell without counts stays zero.

    Returns
    -------
    float32 matrix of the same shape and sparsity, log1p if counts or linear values went in.
    """
    X = X.astype(np.float32)
    if scale == "counts":
        library_size = np.asarray(X.sum(axis=1, dtype=np.float64)).ravel()
        factor = (target_sum / np.where(library_size > 0, library_size, 1.0)).astype(np.float32)
        if isinstance(X, np.ndarray):
            X *= factor[:, None]
        else:
            X.data *= np.repeat(factor, np.diff(X.indptr))
    if scale in ("counts", "linear"):
        values = X if isinstance(X, np.ndarray) else X.data
        np.log1p(values, out=values)
    return X
