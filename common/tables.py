"""Text tables as people have them: csv, tsv or txt, gzipped or not, with or without names.

The rules by which a layout is recognised:

- separator: whichever of tab, comma and semicolon is most frequent in the first line; white space if none is there;
- header: the first field of the first line is empty or means names (`NAMING`), or most of the others are no numbers; if
  all are numbers after such a word, which a cell may be called, too, it is a header if they count or look like
  identifiers, a row if they repeat, and refused otherwise;
- index: the header's first field is empty, missing or means names, or the first field of the first row is no number.
"""

import csv
import gzip
import re
from pathlib import Path
from typing import TextIO, cast

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from common.checks import check_labels, nearest, reading
from common.errors import UserError

NAMING = {
    "barcode", "barcodes", "cell", "cells", "cell_id", "cell_name", "cell_names", "cellid", "ensembl", "ensembl_id",
    "entrez", "entrez_id", "feature", "feature_id", "gene", "genes", "gene_id", "gene_name", "gene_names", "geneid",
    "gene_symbol", "id", "ids", "index", "name", "names", "rowname", "rownames", "sample", "symbol",
}  # fmt: skip
"""what a column of names is called, in lower case"""
VALUES_AT_A_TIME = 20_000_000  # a chunk of the text held as numbers, 80 MB, however large the file


def _open_text(path: Path) -> TextIO:
    """Open a text file, gzipped or not, and refuse what its first bytes show to be something else."""
    with path.open("rb") as file:
        start = file.read(40)
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not the data: fetch the file itself (python data/download.py)")
    if start.startswith(b"\x1f\x8b") != (path.suffix == ".gz"):
        raise UserError(f"{path} is {'' if path.suffix != '.gz' else 'not '}gzipped: let its ending say so, .gz or not")
    if path.suffix == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    return path.open(encoding="utf-8-sig", newline="")


def _separator(line: str) -> str:
    best = max("\t,;", key=line.count)
    return best if best in line else r"\s+"


def _fields(line: str, separator: str) -> list[str]:
    line = line.rstrip("\r\n")
    if separator == r"\s+":
        return next(csv.reader([line.strip(" ")], delimiter=" ", skipinitialspace=True), [])
    return next(csv.reader([line], delimiter=separator), [])


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def read_expression(path: Path, *, header: bool | None = None, index: bool | None = None) -> AnnData:
    """Read a text table of numbers.

    Parameters
    ----------
    path
        The table, gzipped if it ends in .gz.
    header, index
        Whether the first line and the first column hold names; None recognises it by the rules above.

    Returns
    -------
    The rows as obs and the columns as var, in the file's orientation; X is CSR float32. Without names in the file, rows
    and columns are counted from "0". Missing numbers become NaN.

    Raises
    ------
    UserError
        If the file is no such table, with the place of the first text among the numbers.
    """
    recognised = header is None and index is None
    with reading(path, "text table"):
        with _open_text(path) as file:
            first, second = file.readline(), file.readline()
        separator = _separator(first)
        top, row = _fields(first, separator), _fields(second, separator)
        is_naming = bool(top) and (not top[0] or top[0].strip().lower() in NAMING)
        if header is None:
            is_naming = is_naming and _are_names(path, top)
            texts = sum(not _is_number(field) for field in top[1:])
            header = bool(top) and (is_naming or 2 * texts > len(top[1:]))
        if not header:
            row = top
        if not row:
            raise UserError(f"{path} is empty: it holds no row of numbers")
        if index is None:
            index = (header and (is_naming or len(row) == len(top) + 1)) or not _is_number(row[0] or "nan")
        n_columns = len(row) - index
        names: list[str] = []
        blocks = []
        types = dict.fromkeys(range(index, len(row)), np.float32)
        try:
            for chunk in pd.read_csv(
                path, sep=separator, header=None, skiprows=int(header), encoding="utf-8-sig", dtype=types,
                converters={0: str} if index else None,  # as it stands there, n/a too
                chunksize=max(1, VALUES_AT_A_TIME // len(row)),
            ):  # fmt: skip
                if index:
                    names += chunk.pop(0).tolist()
                blocks.append(sparse.csr_matrix(chunk.to_numpy(np.float32)))
        except ValueError as error:
            place = _first_text(path, separator, header, index)
            if place is None:
                raise
            raise UserError(f"{path} holds text among its numbers: {place}") from error
    cells = AnnData(sparse.vstack(blocks, format="csr"))
    if index:
        cells.obs_names = names
    if header:
        if len(top) not in (n_columns, n_columns + index):
            raise UserError(f"{path} has {len(top)} names in its header for {n_columns} columns: correct the header")
        cells.var_names = top[-n_columns:]
    if recognised:
        _check_names(path, cells.X, header, index)
    return cells


def _check_names(path: Path, X: sparse.csr_matrix, header: bool, index: bool) -> None:
    """Refuse names that are numbers where the rules take them for expression: they would be one gene or cell more."""
    column, row = X[:, [0]].toarray().ravel(), X[[0]].toarray().ravel()
    in_order = (np.diff(column) > 0).all() or (np.diff(column) < 0).all()
    if not index and len(column) > 2 and (_count(column) or (len(column) > 9 and _are_whole(column) and in_order)):
        raise UserError(
            f"the first column of {path} seems to number the rows: leave its name empty in the header, or remove it"
        )
    if not header and _seem_to_be_names(row):
        raise UserError(
            f"the first line of {path} seems to name columns by numbers: leave the first of its fields empty"
        )


def _are_names(path: Path, top: list[str]) -> bool:
    """Tell whether the first line, whose first field is empty or means names, holds them or is a row called so."""
    word, *fields = top
    if not word or not fields or not all(map(_is_number, fields)) or _seem_to_be_names(np.array(fields, dtype=float)):
        return True
    if len(set(fields)) < len(fields):  # names do not repeat
        return False
    raise UserError(
        f"the first line of {path} could name columns by numbers or be a row called '{word}': leave its first field "
        "empty, or call the row something else"
    )


def _seem_to_be_names(row: np.ndarray) -> bool:
    """Tell whether numbers in a line are rather names of columns than expression."""
    return bool((len(row) > 4 and _count(row)) or (len(row) > 9 and _are_whole(row) and (row > 0).all()))


def _count(values: np.ndarray) -> bool:
    """Tell whether numbers count from 0 or 1."""
    return values[0] in (0, 1) and np.array_equal(values - values[0], np.arange(len(values)))


def _are_whole(values: np.ndarray) -> bool:
    """Tell whether numbers are whole and all different, as identifiers are."""
    return bool((values == np.rint(values)).all()) and len(set(values)) == len(values)


def _first_text(path: Path, separator: str, header: bool, index: bool) -> str | None:
    """Say where the first text stands among the numbers, or None if all are numbers."""
    with _open_text(path) as file:
        for number, line in enumerate(file, start=1):
            fields = _fields(line, separator)
            for column, field in enumerate(fields[index:] if number > header else [], start=1 + index):
                if field not in ("", "NA", "N/A", "NULL") and not _is_number(field):
                    hint = " (write decimals with a point)" if re.fullmatch(r"-?\d+,\d+", field) else ""
                    return f"'{field}' in line {number}, column {column}{hint}"
    return None


def read_matrix_market(path: Path) -> sparse.coo_matrix:
    """Read a sparse matrix in Matrix Market's coordinate format; scipy's reader can crash on a damaged file.

    Returns
    -------
    The matrix in the file's orientation, float32.

    Raises
    ------
    ValueError
        If the file is not such a matrix, or holds another number of values than it says.
    """
    with _open_text(path) as file:
        kind = file.readline().lower().split()
        if kind not in (["%%matrixmarket", "matrix", "coordinate", field, "general"] for field in ("integer", "real")):
            raise ValueError("its first line does not announce a general coordinate matrix of numbers")
        while (line := file.readline()).startswith("%") or line.isspace():
            pass
        n_rows, n_columns, n_values = map(int, line.split())
        types = {0: np.int64, 1: np.int64, 2: np.float32}
        table = pd.read_csv(file, sep=r"\s+", header=None, dtype=types)
    if table.shape != (n_values, 3):
        raise ValueError(f"{n_values} values are announced and {len(table)} are there")
    return sparse.coo_matrix((table[2], (table[0] - 1, table[1] - 1)), (n_rows, n_columns), dtype=np.float32)


def read_labels(path: Path, key: str, cells: AnnData) -> list[str]:
    """Read the cell types of given cells from a text table: a column of labels, or names and labels.

    The first line is a header if the column's name is in it, or if there is one line more than cells and its label
    occurs in no other line. With a header, the labels are the column of that name, or else the last of one or two
    columns. The cells are named by whichever other column holds their names, or else by the first.

    Parameters
    ----------
    path
        The table; separated by tab, comma or semicolon.
    key
        Name of the column of labels.
    cells
        The cells to be labelled, with which names and order are compared.

    Returns
    -------
    Cell types, one a cell, stripped of white space.

    Raises
    ------
    UserError
        If the file is no such table, or does not fit the cells (`common.checks.check_labels`).
    """
    with reading(path, "table of labels"):
        with _open_text(path) as file:
            text = file.read()
        lines = text.rstrip("\r\n").splitlines()
        separator = _separator("".join(lines[:2]))
        fields = csv.reader(lines, delimiter="," if separator == r"\s+" else separator)
        rows = [[field.strip() for field in line] or [""] for line in fields]
    if not rows:
        raise UserError(f"{path} is empty: give one label a cell")
    header = key in rows[0]
    if not header and len(rows) == cells.n_obs + 1:
        header = all(row[-1] != rows[0][-1] for row in rows[1:])
    names = rows.pop(0) if header else []
    n_columns = len(names or rows[0])
    ragged = [number for number, row in enumerate(rows, start=1 + header) if len(row) != n_columns and row != [""]]
    if key not in names and n_columns > 2:
        hint = nearest(key, names) if header else "; it has no header that names it"
        raise UserError(f"{path} has {n_columns} columns and none is called '{key}': give --label-key{hint}")
    # R writes row names without a name over them: the rows are then one field longer than the header
    shift = int(bool(names) and bool(rows) and all(len(row) == n_columns + 1 for row in rows))
    if ragged and not shift:
        raise UserError(f"{path} has another number of fields in line {ragged[0]} than in the first: mend that line")
    column = (names.index(key) if key in names else n_columns - 1) + shift
    labels = [row[min(column, len(row) - 1)] for row in rows]
    ids = [row[0] for row in rows] if column > 0 else None
    for other in set(range(len(rows[0]) if rows else 0)) - {column}:  # names may stand in any column
        found = [row[min(other, len(row) - 1)] for row in rows]
        if set(found) == set(cells.obs_names):
            ids = found
    check_labels(labels, ids, cells, path.name)
    return labels
