"""One way in for cells: the named data sets, h5ad files, 10x output and text tables, checked before use."""

import hashlib
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy import sparse
from sklearn.model_selection import train_test_split

from common.checks import (
    check_known,
    check_labels,
    check_matrix,
    drop_empty_cells,
    existing,
    find_oddities,
    is_row_numbers,
    nearest,
    reading,
)
from common.clustering import N_NEIGHBORS, cluster_cells
from common.disk import as_dask, check_indices, is_on_disk, map_rows, read_on_disk, subset
from common.errors import UserError
from common.run import file_digest
from common.scale import Scale, check_scale, detect_scale, recover_counts, to_log
from common.tables import read_expression, read_labels, read_matrix_market
from common.threads import torch_threads_kept
from config import DATA_DIR, DATASETS, Dataset

DEFAULT_DATASET = "pbmc68k"
TARGET_SUM = 1e4  # library size for the choice of genes and for clusters; the models have their own
CLUSTER_SEED = 0  # fixed: clusters stand in for the authors' labels, which no run's seed changes either
COUNTS_IN = "counts_in"  # in uns while cells are read: layers that hold counts where X was taken
CLUSTER_GENES, CLUSTER_PCS, CLUSTER_RESOLUTION = 2000, 50, 1.0


@dataclass(frozen=True)
class CellSource:
    """Where the cells and their types come from: one data set, or one input, or one text table."""

    dataset: str | None = None
    """a data set of config.py: pbmc68k (the default, needs no download), yan, pollen, cbmc or muraro"""
    input: Path | None = None
    """your own cells: an h5ad file or .zarr store, a 10x .h5 file, or a 10x folder with matrix.mtx, barcodes.tsv and
    features.tsv"""
    on_disk: bool = False
    """the h5ad file or .zarr store is larger than memory: leave the cells in scratch files (where TMPDIR says)"""
    label_key: str = "cell_type"
    """column with the cell types, in the h5ad file's obs or in --labels-csv"""
    expression_csv: Path | None = None
    """your own cells as a text table, cells x genes: csv, tsv or txt, or one of these gzipped"""
    labels_csv: Path | None = None
    """cell types as a text table: one label a line, or cell name and label"""
    transpose: bool = False
    """the input is genes x cells"""
    layer: str | None = None
    """layer of the h5ad file to take instead of X; raw, where no layer is called so, means its .raw"""
    n_top_genes: int | None = None
    """keep this many highly variable genes; by default all"""
    cluster: bool = False
    """no labels: let Leiden clusters stand in for the cell types"""
    scale: Scale | None = None
    """scale of the values, should it be recognised wrongly"""

    @property
    def name(self) -> str:
        """What the cells are called: the data set, or the file or folder without its ending."""
        path = self.input or self.expression_csv
        return _stem(path) if path else self.dataset or DEFAULT_DATASET


@torch_threads_kept()
def load_cells(source: CellSource) -> AnnData:
    """Load cells with their types, checked and in one form whatever they came in.

    Parameters
    ----------
    source
        What the user asked for.

    Returns
    -------
    Cells with X of shape (n_cells, n_genes), CSR float32 on the input's scale, in scratch files if the source is
    `on_disk` (see `common.disk`); unique names; `obs["cell_type"]` categorical; `uns` with scale, dataset, labels_from,
    sha256 (file name to checksum), notes (sentences for the user) and, for a named data set, rare_threshold. Cells
    without counts are dropped, genes without counts are kept.

    Raises
    ------
    UserError
        If flags contradict each other, a file is missing or damaged, or the data are unfit for use.
    """
    _check_flags(source)
    name = source.name
    row = None if source.input or source.expression_csv else _find_dataset(name)
    if row and row.expression and row.labels:
        source = replace(
            source, expression_csv=DATA_DIR / row.expression, labels_csv=DATA_DIR / row.labels,
            label_key=row.label_column or source.label_key, transpose=row.transpose,
        )  # fmt: skip
    cells = _read(source, row)
    check_matrix(cells)
    if source.scale:
        check_scale(cells.X, source.scale)
    cells.uns["dataset"] = name
    cells.uns["scale"] = source.scale or detect_scale(cells.X)
    cells.uns["sha256"] = _checksums(cells, source)
    layers = cells.uns.pop(COUNTS_IN, [])
    if row:
        cells.uns["rare_threshold"] = row.rare_threshold

    if not source.cluster:
        labels, origin = _labels(cells, source)
        cells.obs["cell_type"] = pd.Categorical(labels)
        cells.uns["labels_from"] = "authors" if row else origin
    cells, notes = drop_empty_cells(cells)
    if source.cluster:
        cells.uns["labels_from"] = "leiden"
        cells.obs["cell_type"] = pd.Categorical(_leiden(cells))
        notes.append(f"no authors' labels: {cells.obs['cell_type'].nunique()} Leiden clusters stand in for cell types")
    if source.n_top_genes is not None:
        chosen = cells.var_names.isin(select_genes(cells, source.n_top_genes))
        cells, dropped = drop_empty_cells(subset(cells, genes=chosen))
        notes += dropped
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.remove_unused_categories()

    if row and {row.expression_sha256, row.labels_sha256} - {None} - set(cells.uns["sha256"].values()):
        notes.append(f"the files of {name} are not the published ones: their SHA-256 differ")
    if layers and cells.uns["scale"] != "counts":
        notes.append(
            f"X holds {cells.uns['scale']} values; counts, which say more, are there, too: --layer {layers[0]}"
        )
    cells.uns["notes"] = notes + find_oddities(cells.X, cells.obs["cell_type"])
    return cells


@torch_threads_kept()
def select_genes(cells: AnnData, n_top_genes: int) -> pd.Index:
    """Choose highly variable genes as scanpy does by default: by dispersion among genes of like mean.

    Parameters
    ----------
    cells
        X of shape (n_cells, n_genes) on the scale in `uns["scale"]`; log1p is taken, of 10,000 counts a cell for
        counts. Give the training cells only, lest the choice knows the held-out ones.
    n_top_genes
        How many to choose.

    Returns
    -------
    Names of the chosen genes in the order of `cells`; fewer only if fewer vary.

    Raises
    ------
    UserError
        If the number is below one, or the values are scaled.
    """
    if n_top_genes < 1:
        raise UserError(f"--n-top-genes is {n_top_genes}: give at least 1")
    if cells.uns["scale"] == "scaled":
        raise UserError("scaled values do not tell variable genes: leave out --n-top-genes, or give --n-top-genes None")
    if n_top_genes >= cells.n_vars:
        return cells.var_names
    X = map_rows(lambda block: to_log(block, cells.uns["scale"], TARGET_SUM), cells.X)
    with as_dask(X) if is_on_disk(X) else nullcontext(X) as values:
        log = AnnData(values, var=pd.DataFrame(index=cells.var_names))
        # not its own n_top_genes, which lets ties exceed the number
        dispersion = sc.pp.highly_variable_genes(log, inplace=False)["dispersions_norm"].to_numpy()
    ranked = np.argsort(-np.nan_to_num(dispersion, nan=-np.inf), kind="stable")[:n_top_genes]
    return cells.var_names[np.sort(ranked[~np.isnan(dispersion[ranked])])]


def split_cells(cells: AnnData, holdout: float, seed: int) -> tuple[AnnData, AnnData | None]:
    """Keep a share of every type's cells away from training.

    Parameters
    ----------
    cells
        With `obs["cell_type"]`. The split follows the cells' names, whatever their order; types of one cell stay.
    holdout
        Share kept away, from 0 to below 1.

    Returns
    -------
    Training cells, and held-out cells (None if the share is 0).

    Raises
    ------
    UserError
        If the share is out of range, or a side would lack a type.
    """
    if not 0 <= holdout < 1:
        raise UserError(f"--holdout is {holdout}: give a share from 0 to below 1")
    if holdout == 0:
        return cells, None
    types = cells.obs["cell_type"].astype(str)
    order = np.argsort(cells.obs_names)
    order = order[(types.map(types.value_counts()) > 1).to_numpy()[order]]
    try:
        _, held = train_test_split(order, test_size=holdout, stratify=types.iloc[order], random_state=seed)
    except ValueError as error:
        raise UserError(f"--holdout {holdout} leaves a side without one of the types: give another share") from error
    is_held = np.isin(np.arange(cells.n_obs), held)
    for side, of_side in (("training", ~is_held), ("held-out", is_held)):
        if lacking := sorted(set(types.iloc[order]) - set(types[of_side])):
            raise UserError(f"--holdout {holdout} leaves no {side} cell of type {lacking[0]}: give another share")
    return subset(cells, ~is_held), subset(cells, is_held)


def types_of(cells: AnnData) -> np.ndarray:
    """Return the cells' types as an array of str."""
    return cells.obs["cell_type"].astype(str).to_numpy(dtype=str)


def rare_types(types: np.ndarray, threshold: int | None) -> np.ndarray:
    """Tell which cells are of a rare type: at most `threshold` cells; when that is None, 5 % of all cells, 10 at least.

    Returns
    -------
    Boolean mask of shape (n_cells,).
    """
    limit = max(10, 0.05 * len(types)) if threshold is None else threshold
    return np.bincount(types)[types] <= limit


def _check_flags(source: CellSource) -> None:
    """Refuse two sources at once, and every flag that would be ignored."""
    given = {field.name for field in fields(source) if getattr(source, field.name) != field.default}
    sources = [name for name in ("dataset", "input", "expression_csv") if name in given]
    if len(sources) > 1:
        raise UserError(f"{' and '.join(map(_flag, sources))} are two sources of cells: give one of them")
    kind = (sources or ["dataset"])[0]
    ignored: dict[str, set[str]] = {
        "dataset": {"label_key", "labels_csv", "transpose", "layer", "on_disk"},
        "expression_csv": {"layer", "on_disk"},
        "input": set(),
    }
    for name in sorted(given & ignored[kind]):
        raise UserError(f"{_flag(name)} has no meaning for {_flag(kind)}: leave it out")
    for name in sorted(given & {"transpose", "cluster"}) if source.on_disk else ():
        raise UserError(f"{_flag(name)} needs all cells in memory: leave out --on-disk, or do it beforehand")
    for name in sorted(given & {"label_key", "labels_csv"}) if source.cluster else ():
        raise UserError(f"{_flag(name)} and --cluster are two sources of labels: give one of them")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _stem(path: Path) -> str:
    name = path.resolve().name
    for ending in (".gz", ".h5ad", ".zarr", ".h5", ".csv", ".tsv", ".txt"):
        name = name.removesuffix(ending)
    return name


def _find_dataset(name: str) -> Dataset:
    check_known(name, DATASETS, "there is no data set")
    row = DATASETS[name]
    for file in (row.expression, row.labels):
        if file and not (DATA_DIR / file).exists():
            raise UserError(f"{DATA_DIR / file} is missing: fetch it with python data/download.py --dataset {name}")
    return row


def _read(source: CellSource, row: Dataset | None) -> AnnData:
    """Read the cells of any source: X CSR float32 without stored zeros, with the input's obs and var."""
    if source.input:
        cells = _read_input(existing(source.input), source.layer, on_disk=source.on_disk)
    elif source.expression_csv:
        layout = {"header": row.header, "index": row.index} if row else {}  # a user's own file is recognised
        cells = read_expression(existing(source.expression_csv), **layout)
    else:
        cells = _read_embedded()
    if source.transpose:
        cells = cells.T
    if source.on_disk:
        return cells
    with reading(source.input or Path(), "matrix of numbers"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # duplicate names are an error later on
        if sparse.issparse(cells.X):
            check_indices(cells.X)
        X = sparse.csr_matrix(cells.X, dtype=np.float32)
        X.sum_duplicates()
        X.eliminate_zeros()
        cells = AnnData(X, obs=cells.obs, var=cells.var, uns={COUNTS_IN: cells.uns.get(COUNTS_IN, [])})
        if source.expression_csv and is_row_numbers(cells.obs_names):
            cells.obs_names = "cell_" + cells.obs_names
        if source.expression_csv and is_row_numbers(cells.var_names):
            cells.var_names = "gene_" + cells.var_names
        if row and row.gene_separator:
            cells.var_names = [gene.split(row.gene_separator)[0] for gene in cells.var_names]
            cells.var_names_make_unique()  # one symbol on two chromosomes is two genes
    return cells


def _read_embedded() -> AnnData:
    """Return scanpy's pbmc68k_reduced as counts: its raw values are log-normalised and rounded to three decimals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reduced = sc.datasets.pbmc68k_reduced()
    obs = reduced.obs.rename(columns={"bulk_labels": "cell_type"})
    return AnnData(recover_counts(reduced.raw.X), obs=obs[["cell_type", "louvain"]], var=reduced.raw.var)


def _read_input(path: Path, layer: str | None, *, on_disk: bool) -> AnnData:
    """Read an h5ad file, a Zarr store, a 10x .h5 file or a 10x folder."""
    of_anndata = path.suffix in (".h5ad", ".zarr")
    for flag, given in (("--layer", layer is not None), ("--on-disk", on_disk)):
        if given and not of_anndata:
            raise UserError(f"{flag} is for h5ad files and .zarr stores: leave it out for {path}")
    if path.is_dir() and not of_anndata:
        return _read_10x_folder(path)
    if not of_anndata and path.suffix != ".h5":
        hint = "; give a text table as --expression-csv" if {".csv", ".tsv", ".txt"} & set(path.suffixes) else ""
        raise UserError(
            f"--input takes an h5ad file, a .zarr store, a 10x .h5 file or a 10x folder, not {path.name}{hint}"
        )
    with reading(path, f"{path.suffix} file"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # duplicate names are an error later on
        if path.suffix == ".h5":
            cells = sc.read_10x_h5(path, gex_only=False)
            check_indices(cells.X)
            if "feature_types" in cells.var:
                cells = cells[:, _is_gene(cells.var["feature_types"], path)].copy()
            cells.var_names_make_unique()
            return cells
        if on_disk:
            return read_on_disk(path, layer)
        cells = anndata.read_zarr(path) if path.suffix == ".zarr" else anndata.read_h5ad(path)
    if layer == "raw" and layer not in cells.layers and cells.raw is not None:
        return AnnData(cells.raw.X, obs=cells.obs, var=cells.raw.var[[]])
    if layer:
        layers = [*cells.layers, *(["raw"] if cells.raw is not None else [])]
        check_known(layer, layers, f"{path} has no layer")
        cells.X = cells.layers[layer]
    if cells.X is None:
        raise UserError(f"{path} has no X: give --layer, one of {list(cells.layers)}")
    others = {} if layer else {**cells.layers, **({"raw": cells.raw.X} if cells.raw is not None else {})}
    numbers = {name: X for name, X in others.items() if sparse.issparse(X) or isinstance(X, np.ndarray)}
    cells.uns = {COUNTS_IN: [name for name, X in numbers.items() if X.size and detect_scale(X) == "counts"]}
    return cells


def _read_10x_folder(folder: Path) -> AnnData:
    """Read gene expression from a 10x folder of any age, its files gzipped or not, with or without a prefix."""
    found = _files_of_10x(folder)
    with reading(folder, "10x folder"):
        X = read_matrix_market(found[0]).T
        barcodes, features = (
            pd.read_csv(file, sep="\t", header=None, dtype=str, keep_default_na=False, quoting=3) for file in found[1:]
        )
        if X.shape != (len(barcodes), len(features)):
            raise UserError(
                f"{found[0]} holds {X.shape[0]} cells x {X.shape[1]} genes, but its barcodes are {len(barcodes)} and "
                f"its features {len(features)}: take the three files of one run"
            )
        cells = AnnData(sparse.csr_matrix(X, dtype=np.float32))
        cells.obs_names = barcodes[0].to_numpy()
        cells.var_names = features[min(1, features.shape[1] - 1)].to_numpy()
        cells.var["gene_ids"] = features[0].to_numpy()
        if features.shape[1] > 2:
            cells = cells[:, _is_gene(features[2], folder)].copy()
        cells.var_names_make_unique()
    return cells


def _is_gene(kinds: pd.Series, path: Path) -> np.ndarray:
    """Tell which features are genes; antibodies and guides are none."""
    found: np.ndarray = (kinds == "Gene Expression").to_numpy()
    if not found.any():
        there = ", ".join(sorted(set(kinds.astype(str)))[:5])
        raise UserError(f"{path} has no feature of type 'Gene Expression', only {there}: correct that column")
    return found


def _files_of_10x(folder: Path) -> list[Path]:
    """Find matrix, barcodes and features (`genes` in old versions) of a 10x folder, in this order."""
    found = []
    for stems in (["matrix.mtx"], ["barcodes.tsv"], ["features.tsv", "genes.tsv"]):
        files = [file for stem in stems for end in ("", ".gz") for file in folder.glob(f"*{stem}{end}")]
        if len(files) != 1:
            raise UserError(f"a 10x folder holds one {' or '.join(stems)} (or .gz), but {folder} has {len(files)}")
        found += files
    return found


def _labels(cells: AnnData, source: CellSource) -> tuple[list[str], str]:
    """Return one label a cell, and where they come from."""
    if source.labels_csv:
        return read_labels(source.labels_csv, source.label_key, cells), source.labels_csv.name
    key = source.label_key
    if key not in cells.obs:
        if key in cells.var:
            raise UserError(f"'{key}' labels the genes, the matrix seems transposed: give or drop --transpose")
        only = f", only {', '.join(map(str, cells.obs.columns))}" if len(cells.obs.columns) else ""
        raise UserError(
            f"the cells have no column '{key}'{only}: name the one with their types by --label-key, give --labels-csv, "
            f"or let --cluster make types{nearest(key, cells.obs.columns)}"
        )
    labels = ["" if pd.isna(label) else str(label).strip() for label in cells.obs[key]]
    check_labels(labels, None, cells, f"obs['{key}']")
    return labels, f"obs['{key}']"


def _leiden(cells: AnnData) -> list[str]:
    """Cluster cells by Leiden on their 15-neighbour graph in PCA space, the same on every call."""
    scale = cells.uns["scale"]
    genes = cells.var_names if scale == "scaled" else select_genes(cells, CLUSTER_GENES)
    log = AnnData(to_log(cells[:, genes].X, scale, TARGET_SUM))
    n_pcs = min(CLUSTER_PCS, *(size - 1 for size in log.shape))
    if n_pcs < 1:
        raise UserError(f"{log.n_obs} cells x {log.n_vars} variable genes are too few to cluster: give labels")
    sc.pp.pca(log, n_comps=n_pcs, random_state=CLUSTER_SEED)
    clusters = cluster_cells(
        log.obsm["X_pca"], n_neighbors=N_NEIGHBORS, resolution=CLUSTER_RESOLUTION, seed=CLUSTER_SEED
    )
    return [f"cluster {cluster}" for cluster in clusters]


def _checksums(cells: AnnData, source: CellSource) -> dict[str, str]:
    """Return the SHA-256 of every file read; of the matrix itself where it came with scanpy."""
    files = [path for path in (source.input, source.expression_csv, source.labels_csv) if path]
    sums = {}
    if source.input and source.input.suffix == ".zarr":
        store = files.pop(0)
        parts = sorted(path for path in store.rglob("*") if path.is_file())
        lines = [f"{file_digest(path)}  {path.relative_to(store).as_posix()}\n" for path in parts]
        sums[store.name] = hashlib.sha256("".join(lines).encode()).hexdigest()
    elif source.input and source.input.is_dir():
        files[:1] = _files_of_10x(source.input)
    sums |= {path.name: file_digest(existing(path)) for path in files}
    return sums or {"pbmc68k": hashlib.sha256(cells.X.toarray().tobytes()).hexdigest()}
