"""Genes chosen on the synthetic cells of a run, beside those chosen on real cells and at random (paper, "Validation").

Three ways to choose, each by its textbook definition or, with --published, as the published code has it:

            textbook, on size-normalised values              published, on the values as they come
    cv2     squared coefficient of variation over the trend  deviation of variance/mean from the median of genes of
            that it has with the mean (Brennecke 2013)       like mean, to either side, in median absolute deviations
    fano    variance/mean, highest first                     variance/mean, LOWEST first
    pca     variance of the log-normalised gene within the   largest absolute loading on the first three components
            first 20 components

A gene without expression is never chosen, and genes whose scores agree to ten digits come in the order of the file.
`feature_selection.R` chooses the same genes from the same matrix.

Run:    python data_validation/feature_selection.py --run results/synthetic/pbmc68k/garage/seed42 --method cv2
Reads:  cells.h5ad, heldout.csv and run.json of the run, and the real cells from where it had them
Writes: results/tables/features_<dataset>_<method>_seed<k>.csv: dataset, method, seed, selection, chosen_on, rank, gene,
        score; with --published it ends in _published.csv
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from rich.markup import escape
from rich.table import Table
from scipy import sparse
from scipy.linalg import eigh

from common.cli import console, parse_flags, progress_bar, run_script
from common.data import TARGET_SUM
from common.errors import UserError
from common.run import write_table
from common.runs import load_run
from config import RESULTS_DIR, SEED

Method = Literal["cv2", "fano", "pca"]

N_COMPONENTS = 20
PUBLISHED_COMPONENTS = 3
PUBLISHED_BINS = np.arange(2, 20) / 20  # quantiles of the mean: 0.10, 0.15 ... 0.95
DECIMALS = 10  # of loadings: genes with the same values tie, whatever the last bits
TREND_STEPS = 80  # bisections, after which the interval is one floating-point number


def values_for(method: Method, cells: AnnData, *, published: bool = False) -> sparse.csr_matrix:
    """Bring cells to the scale on which a method is defined.

    Parameters
    ----------
    method
        Linear values for cv2 and fano, log1p for pca.
    cells
        On the scale in `uns["scale"]`.
    published
        Leave the values as they come.

    Returns
    -------
    CSR float64 of shape (n_cells, n_genes). Counts are brought to 10,000 a cell, linear values are taken to be
    normalised; log values are taken to be natural log1p; scaled values have no way back and are left alone.
    """
    X, scale = sparse.csr_matrix(cells.X, dtype=np.float64), cells.uns["scale"]
    if published or scale == "scaled":
        return X
    if scale == "counts":
        library_size = np.asarray(X.sum(axis=1)).ravel()
        X = sparse.diags(TARGET_SUM / np.where(library_size > 0, library_size, 1.0)) @ X
    if method == "pca":
        return X if scale == "log" else X.log1p()
    return X.expm1() if scale == "log" else X


def scores(X: np.ndarray | sparse.spmatrix, method: Method, *, published: bool = False) -> np.ndarray:
    """Score genes by how much they vary; the highest are chosen.

    Parameters
    ----------
    X
        Expression of shape (n_cells, n_genes), on the scale that `values_for` gives.
    method
        cv2: CV² = variance/mean² divided by its trend a1/mean + a0 over all expressed genes, fitted by maximum
        likelihood with gamma errors; at least 0, mean 1. CV² itself would only rank genes by how low they are: a1/mean
        is the noise of counting. Brennecke et al. (2013, doi 10.1038/nmeth.2645) fit the trend to spike-ins.
        fano: variance/mean (Fano 1947), at least 0.
        pca: variance of the gene within the first 20 principal components of the covariance, the sum of
        eigenvalue x squared loading (its communality); at least 0, at most the gene's variance.
    published
        Score as the published code does instead. cv2: |d - median| / MAD of the dispersion d = variance/mean, within
        bins of genes between the 0.10, 0.15 ... 0.95 quantiles of the mean; so low dispersion counts as much as high.
        fano: -variance/mean, since it takes the LOWEST; the variance is that of a population. pca: largest absolute
        loading among three components. The published code approximates them at random with a fixed seed; they are
        exact here.

    Returns
    -------
    Shape (n_genes,); NaN for genes that are zero in every cell.

    Raises
    ------
    UserError
        For cv2 and fano of negative values, or if no gene varies.
    """
    X = sparse.csr_matrix(X, dtype=np.float64)
    n_cells, n_genes = X.shape
    expressed = np.bincount(X.indices[X.data != 0], minlength=n_genes) > 0
    mean, variance = _moments(X)
    if not variance.any():
        raise UserError("no gene varies among these cells: there is nothing to choose by")
    if method == "pca":
        found = _loading(X) if published else _communality(X)
    else:
        if (X.data < 0).any():
            raise UserError(f"{method} is not defined for negative values: give counts, or choose by --method pca")
        with np.errstate(divide="ignore", invalid="ignore"):  # genes that are not expressed
            if method == "cv2":
                found = _binned_dispersion(mean, variance) if published else _excess_cv2(mean, variance, expressed)
            else:
                found = -variance * ((n_cells - 1) / n_cells) / (mean + 1e-12) if published else variance / mean
    found[~expressed] = np.nan
    return found


def select_features(
    X: np.ndarray | sparse.spmatrix, method: Method, n_genes: int, *, published: bool = False
) -> np.ndarray:
    """Choose the genes of highest score.

    Parameters
    ----------
    X, method, published
        As in `scores`.
    n_genes
        How many to choose.

    Returns
    -------
    Their column numbers, shape (n_genes,), best first; equal ones in the order of the columns.

    Raises
    ------
    UserError
        As in `scores`, or if fewer genes than asked for are expressed.
    """
    return _best(scores(X, method, published=published), n_genes)


def _best(score: np.ndarray, n_genes: int) -> np.ndarray:
    n_expressed = int((~np.isnan(score)).sum())
    if not 1 <= n_genes <= n_expressed:
        raise UserError(f"--n-genes is {n_genes}, but {n_expressed} genes are expressed: give 1 to {n_expressed}")
    rounded = np.char.mod("%.9e", score).astype(float)  # scores that differ in their last bits only are a tie
    return np.argsort(-rounded, kind="stable")[:n_genes]  # NaN comes last


def _moments(X: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sample variance of each gene, shape (n_genes,).

    From sums and sums of squares, which are exact for counts: genes with the same counts tie, whatever their order.
    """
    n_cells, n_genes = X.shape
    total, squares = (np.bincount(X.indices, values, n_genes) for values in (X.data, X.data**2))
    variance = (n_cells * squares - total**2) / (n_cells * max(n_cells - 1, 1))
    return total / n_cells, variance.clip(min=0)


def _excess_cv2(mean: np.ndarray, variance: np.ndarray, expressed: np.ndarray) -> np.ndarray:
    """CV² over its fitted trend a1 (1/mean + t), t = a0/a1 >= 0, with a1 and t of highest gamma likelihood.

    For a given t the best a1 is the mean of CV²/(1/mean + t). The sign of the likelihood's slope then brackets t, which
    is 0 or infinite, to working precision, where no inner t is best: no iteration that could fail to converge.
    """
    x, y = 1 / mean, variance / mean**2
    x_fit, y_fit = x[expressed], y[expressed]
    low, high = np.log(x_fit.min()) - 30, np.log(x_fit.max()) + 30
    for _ in range(TREND_STEPS):
        middle = (low + high) / 2
        w = 1 / (x_fit + np.exp(middle))
        if (y_fit * w**2).mean() > (y_fit * w).mean() * w.mean():
            low = middle
        else:
            high = middle
    t = np.exp(low)
    return y / (x + t) / (y_fit / (x_fit + t)).mean()


def _binned_dispersion(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Distance of variance/mean from its bin's median in MADs; 1e-8 stands in for a mean or MAD of 0."""
    dispersion = variance / np.where(mean > 0, mean, 1e-8)
    bins = pd.Series(np.digitize(mean, np.quantile(mean, PUBLISHED_BINS)))
    apart = (dispersion - pd.Series(dispersion).groupby(bins).transform("median")).abs()
    mad = apart.groupby(bins).transform("median")
    return (apart / mad.where(mad > 0, 1e-8)).to_numpy()


def _components(X: sparse.csr_matrix, n_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of the genes' covariance, shape (k,), and loadings, shape (n_genes, k), k <= n_components.

    Both come from the products of cells or of genes, whichever are fewer.
    """
    centred = X.toarray()
    centred -= centred.mean(axis=0)
    n_cells, n_genes = centred.shape
    products = centred @ centred.T if n_cells < n_genes else centred.T @ centred
    n = len(products)
    values, vectors = eigh(products, subset_by_index=(n - min(n_components, n), n - 1))
    values, vectors = values[values > 1e-9 * values.max()], vectors[:, values > 1e-9 * values.max()]
    loadings = centred.T @ vectors / np.sqrt(values) if n_cells < n_genes else vectors
    return values / (n_cells - 1), loadings.round(DECIMALS)


def _communality(X: sparse.csr_matrix) -> np.ndarray:
    values, loadings = _components(X, N_COMPONENTS)
    return (loadings**2 * values).sum(axis=1)


def _loading(X: sparse.csr_matrix) -> np.ndarray:
    return np.abs(_components(X, PUBLISHED_COMPONENTS)[1]).max(axis=1, initial=0.0)


@dataclass(frozen=True)
class Args:
    """Choose genes on synthetic cells, on real ones and at random."""

    run: Path
    """folder of a run that held cells out (garage.py --holdout 0.5)"""
    method: tuple[Method, ...] = ("cv2", "fano", "pca")
    """one or more ways to choose; the table holds those asked for"""
    n_genes: int = 100
    """genes to choose (as published)"""
    published: bool = False
    """the published variants instead of the textbook definitions"""
    seed: int = SEED
    """seed of the random choice"""
    out: Path | None = None
    """table to write; by default in results/tables, named by the run"""


def choose_on(
    groups: dict[str, AnnData], method: Method, n_genes: int, *, published: bool = False, seed: int
) -> pd.DataFrame:
    """Choose genes on each group of cells, and at random.

    Parameters
    ----------
    groups
        Name to cells of the same genes; "real" names those whose expressed genes the random choice is made from.
    method, published, n_genes
        As in `select_features`.
    seed
        Of the random choice.

    Returns
    -------
    Columns chosen_on (a group, or "random"), rank (from 1), gene and score (NaN at random).

    Raises
    ------
    UserError
        As in `select_features`, naming the group.
    """
    tables = []
    for name, cells in groups.items():
        try:
            score = scores(values_for(method, cells, published=published), method, published=published)
            best = _best(score, n_genes)
        except UserError as error:
            raise UserError(f"{name} cells: {error}") from error
        tables.append(pd.DataFrame({"chosen_on": name, "gene": cells.var_names[best], "score": score[best]}))
    drawn = np.random.default_rng(seed).permutation(expressed_genes(groups["real"]))[:n_genes]
    tables.append(pd.DataFrame({"chosen_on": "random", "gene": drawn, "score": np.nan}))
    table = pd.concat([table.assign(rank=np.arange(1, n_genes + 1)) for table in tables], ignore_index=True)
    return table[["chosen_on", "rank", "gene", "score"]]


def expressed_genes(cells: AnnData) -> pd.Index:
    """Return the genes that are not zero in every cell, from which every choice is made."""
    return cells.var_names[np.asarray((cells.X != 0).sum(axis=0)).ravel() > 0]


@run_script
def main(argv: list[str]) -> None:
    """Choose, write the table, and say how far the choices agree."""
    args = parse_flags(Args, argv, __doc__)
    if not args.method:
        raise UserError("--method names no way to choose: give one or more of cv2, fano and pca")
    run = load_run(args.run)
    groups = {"synthetic": run.synthetic, "real": run.train, "heldout": run.held}
    chosen = []
    with progress_bar() as report:
        for step, method in enumerate(args.method, start=1):
            table = choose_on(groups, method, args.n_genes, published=args.published, seed=args.seed)
            chosen.append(table.assign(selection=f"{method}_published" if args.published else method))
            report("choosing", step, len(args.method))
    table = pd.concat(chosen, ignore_index=True).assign(dataset=run.dataset, method=run.method, seed=run.seed)
    name = f"features_{run.dataset}_{run.method}_seed{run.seed}{'_published' if args.published else ''}.csv"
    out = args.out or RESULTS_DIR / "tables" / name
    write_table(out, table[["dataset", "method", "seed", "selection", "chosen_on", "rank", "gene", "score"]])
    console.print(_agreement(table, args.n_genes, len(expressed_genes(run.train))))
    console.print(f"wrote {escape(str(out))}", soft_wrap=True)


def _agreement(table: pd.DataFrame, n_genes: int, n_expressed: int) -> Table:
    """Genes that each choice shares with that on the real training cells, and how many it would share by chance."""
    shown = Table("selection", "synthetic", "held-out real cells", "random", "by chance", box=None)
    shown.title = f"of {n_genes} genes, how many are chosen on the real training cells too"
    for selection, rows in table.groupby("selection", sort=False):
        chosen = rows.groupby("chosen_on")["gene"].agg(set)
        shared = [str(len(chosen[group] & chosen["real"])) for group in ("synthetic", "heldout", "random")]
        shown.add_row(str(selection), *shared, f"{n_genes**2 / n_expressed:.1f}")
    return shown


if __name__ == "__main__":
    main()
