"""What can be wrong with a user's data, each said in one line, and what is merely odd."""

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from common.disk import is_on_disk, row_blocks, subset, value_blocks
from common.errors import UserError, is_out_of_memory
from common.scale import Scale, check_scale, detect_scale

MANY_CELLS = 20  # of so many, a type for every second one is no type
MISSING_LABELS = {"", "na", "n/a", "nan", "none", "null"}


def existing(path: Path) -> Path:
    """Return the path if something is there.

    Raises
    ------
    UserError
        If nothing is.
    """
    if not path.exists():
        nearby = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{path} does not exist: correct the path{nearest(path.name, nearby)}")
    return path


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a reader raises within the block into one line about the file.

    Raises
    ------
    UserError
        On any failure: the readers of h5ad, gzip and text raise a dozen kinds of exceptions for a damaged file.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [""])[0][:150] or type(error).__name__
        message = f"{path} is no readable {kind}: it may be damaged, or not what its ending says; replace it ({reason})"
        raise UserError(message) from error


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the choice most like the name, or an empty string."""
    close = difflib.get_close_matches(name, [str(choice) for choice in choices], n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def check_known(name: str, known: Collection[str], there_is_none: str) -> None:
    """Refuse a name that nothing has, as in `there is no method 'x', only a, b; did you mean 'a'?`.

    Parameters
    ----------
    known
        What there is.
    there_is_none
        How the message begins.

    Raises
    ------
    UserError
        If the name is not among them.
    """
    if name not in known:
        others = f"only {', '.join(known)}" if known else "nor any other"
        raise UserError(f"{there_is_none} '{name}', {others}{nearest(name, known)}")


def not_finite(X: np.ndarray | sparse.spmatrix) -> list[int]:
    """Return which of the stored values of a matrix, counted in order, are missing or infinite."""
    bad: list[int] = []
    start = 0
    for values in value_blocks(X):
        bad += (start + np.flatnonzero(~np.isfinite(values))).tolist()
        start += len(values)
    return bad


def check_matrix(cells: AnnData) -> None:
    """Make sure that there are cells and genes, each name occurs once, and every value is a finite number.

    Parameters
    ----------
    cells
        X is CSR of shape (n_cells, n_genes).

    Raises
    ------
    UserError
        Otherwise, naming the first cell and gene in question.
    """
    if 0 in cells.shape:
        raise UserError(f"the matrix is empty: {cells.n_obs} cells x {cells.n_vars} genes")
    for kind, names, attribute in (("cell", cells.obs_names, "obs"), ("gene", cells.var_names, "var")):
        repeated = names[names.duplicated()].unique()
        if len(repeated):
            raise UserError(
                f"{len(repeated)} {kind} names occur more than once, the first is '{repeated[0]}': make them unique, "
                f"in an h5ad by {attribute}_names_make_unique()"
            )
    if bad := not_finite(cells.X):
        cell = cells.obs_names[np.searchsorted(cells.X.indptr, bad[0], side="right") - 1]
        gene = cells.var_names[cells.X.indices[bad[0]]]
        raise UserError(
            f"{len(bad)} values are missing or infinite, the first is {cells.X.data[bad[0]]} in cell '{cell}', "
            f"gene '{gene}': fill them in, or leave these cells or genes out"
        )


def check_labels(labels: Sequence[str], ids: Sequence[str] | None, cells: AnnData, origin: str) -> None:
    """Make sure that there is one label for each cell, in the order of the cells.

    Parameters
    ----------
    labels
        Cell types, one a cell.
    ids
        Names of the labelled cells; None, or row numbers, when the labels have none and go by their order.
    cells
        The cells to be labelled.
    origin
        Where the labels come from, for the message.

    Raises
    ------
    UserError
        If number, order or names do not fit, the matrix seems to be transposed, or labels are missing.
    """
    in_order = "sort the labels like the matrix"
    shuffled = ids is not None and not is_row_numbers(ids) and is_row_numbers(_sorted_by_number(ids))
    if shuffled and is_row_numbers(cells.obs_names):
        raise UserError(f"{origin} numbers the cells, but not in the order of the matrix: {in_order}")
    swapped = "the matrix seems to lie the other way round: give --transpose, or drop it if given"
    if ids is not None and is_row_numbers(ids):
        ids = None
    if ids and set(ids) <= set(cells.var_names) and not set(ids) <= set(cells.obs_names):
        raise UserError(f"{origin} names the genes, not the cells: {swapped}")
    if len(labels) != cells.n_obs:
        sizes = f"{origin} holds {len(labels)} labels for {cells.n_obs} cells"
        if len(labels) == cells.n_vars:
            raise UserError(f"{sizes} x {cells.n_vars} genes: {swapped}")
        raise UserError(f"{sizes}: give one label a cell")
    if ids and not is_row_numbers(cells.obs_names):
        differing = np.flatnonzero(np.asarray(ids) != np.asarray(cells.obs_names))
        if len(differing):
            first = differing[0]
            pair = f"row {first + 1} is '{ids[first]}' there and '{cells.obs_names[first]}' in the matrix"
            if set(ids) == set(cells.obs_names):
                raise UserError(f"{origin} holds the cells in another order ({pair}): {in_order}")
            raise UserError(f"{origin} names other cells than the matrix ({pair}): give the same names in both")
    if len(labels) >= MANY_CELLS and 2 * len(set(labels)) > len(labels):
        raise UserError(
            f"{origin} holds {len(set(labels))} different labels for {len(labels)} cells, which are hardly cell types: "
            "name their column with --label-key"
        )
    missing = [row for row, label in enumerate(labels) if label.lower() in MISSING_LABELS]
    if missing:
        raise UserError(
            f"{len(missing)} labels are missing in {origin}, the first for cell '{cells.obs_names[missing[0]]}': "
            "fill them in (unknown will do), or leave these cells out"
        )


def _sorted_by_number(names: Sequence[str]) -> list[str]:
    return sorted(names, key=lambda name: (len(name), name))


def is_row_numbers(names: Iterable[str]) -> bool:
    """Tell whether names merely count the rows, from 0 or 1: they identify no cell."""
    plain = [str(name).removeprefix("cell_") for name in names]
    return any(plain == [str(number) for number in range(start, start + len(plain))] for start in (0, 1))


def drop_empty_cells(cells: AnnData) -> tuple[AnnData, list[str]]:
    """Leave out cells in which every gene is zero.

    Parameters
    ----------
    cells
        X is CSR of shape (n_cells, n_genes) without stored zeros.

    Returns
    -------
    The other cells, and a sentence that says how many were dropped, if any.

    Raises
    ------
    UserError
        If no cell is left.
    """
    empty = np.diff(cells.X.indptr) == 0
    if empty.all():
        raise UserError("every value of the matrix is zero: give one with expression in it")
    if not empty.any():
        return cells, []
    return subset(cells, ~empty), [f"{empty.sum()} cells without counts were dropped"]


def make_learnable(cells: AnnData) -> tuple[AnnData, list[str]]:
    """Bring cells, whatever form they came in, into the one that generators learn from.

    Parameters
    ----------
    cells
        X of shape (n_cells, n_genes), of any kind; `obs["cell_type"]`; `uns["scale"]`, detected if it is not there.

    Returns
    -------
    Cells with X as CSR float32 without stored zeros and without empty cells, and a sentence if some were left out.

    Raises
    ------
    UserError
        If types, or those of some cells, are missing, values are missing or infinite, names occur twice, `uns["scale"]`
        contradicts the values, or there are fewer than two cells.
    """
    if "cell_type" not in cells.obs:
        raise UserError("cells have no obs['cell_type']: put the cell types there")
    if untold := int(cells.obs["cell_type"].isna().sum()):
        raise UserError(f"{untold} cells have no type in obs['cell_type']: fill it in, or leave these cells out")
    if cells.isbacked:
        cells = cells.to_memory()
    X = cells.X
    if not is_on_disk(X):  # there they have been read and checked already
        X = sparse.csr_matrix(X, dtype=np.float32, copy=True)
        X.sum_duplicates()
        X.eliminate_zeros()
        check_matrix(AnnData(X, obs=cells.obs[[]], var=cells.var[[]]))
        _check_stored_scale(X, cells.uns)
    uns = {**cells.uns, "scale": cells.uns.get("scale") or detect_scale(X)}
    cells, notes = drop_empty_cells(AnnData(X, obs=cells.obs[["cell_type"]], var=cells.var[[]], uns=uns))
    if cells.n_obs < 2:
        raise UserError(f"{cells.n_obs} cells are too few to learn from: give at least two")
    return cells, notes


def _check_stored_scale(X: sparse.csr_matrix, uns: Mapping[str, Any]) -> None:
    """Refuse a `uns["scale"]` of values that were since transformed, as synthetic cells are by scanpy."""
    stored = uns.get("scale")
    if stored is None:
        return
    advice = "remove uns['scale'], and it is detected, or set it to what the values are now"
    if not isinstance(stored, str) or (stored in ("counts", "linear") and "log1p" in uns):
        raise UserError(f"uns['scale'] is {stored!r}, which these values are not any more: {advice}")
    try:
        check_scale(X, cast(Scale, stored))
    except UserError as error:
        raise UserError(f"uns['scale'] is '{stored}', which these values are not: {advice}") from error


def find_oddities(X: sparse.csr_matrix, labels: pd.Series) -> list[str]:
    """Say what is odd about data that are otherwise fit for use.

    Parameters
    ----------
    X
        Expression of shape (n_cells, n_genes), without stored zeros.
    labels
        Cell type of each cell.

    Returns
    -------
    One sentence each for genes that are zero everywhere, types with one or two cells, and a single type.
    """
    notes = []
    heard = np.zeros(X.shape[1], dtype=bool)
    for block in row_blocks(X):
        heard[block.indices] = True
    silent_genes = int((~heard).sum())
    if silent_genes:
        notes.append(f"{silent_genes} genes are zero in every cell; they are kept and stay zero")
    sizes = labels.value_counts()
    tiny = sorted(sizes.index[sizes <= 2])
    if tiny:
        more = f" and {len(tiny) - 5} more" if len(tiny) > 6 else ""
        named = ", ".join(tiny[:5] if more else tiny)
        notes.append(f"{len(tiny)} types have only one or two cells: {named}{more}")
    if len(sizes) == 1:
        notes.append(f"all cells are of one type, '{sizes.index[0]}'")
    return notes
