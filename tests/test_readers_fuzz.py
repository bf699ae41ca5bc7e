"""Whatever a file holds, it is read as it was written or refused in one line, and a damaged one is no crash."""

import gzip
import io
import shutil
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import io as scipy_io
from scipy import sparse

from common.data import CellSource, load_cells
from common.errors import UserError, is_out_of_memory
from common.run import CHECKED
from common.runs import load_run
from common.tables import read_expression, read_labels

pytestmark = pytest.mark.filterwarnings("ignore")  # what readers say of damaged files


def fuzzed(n_examples):
    """The same examples every time."""
    allowed = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(derandomize=True, deadline=None, max_examples=n_examples, suppress_health_check=allowed)


SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": " "}
# what a name may be made of: no line ends, no surrogates, and nothing that stands for itself in no encoding
letters = st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"])
names = st.text(letters, min_size=1, max_size=6)
visible = st.characters(min_codepoint=33, max_codepoint=126)  # of ASCII
numbers = st.one_of(
    st.integers(0, 9), st.integers(0, 2**24), st.floats(-1e6, 1e6, width=32), st.sampled_from([1e-30, 1e30, -0.0])
)


def is_number(name):
    try:
        float(name)
    except ValueError:
        return False
    return True


@st.composite
def matrices(draw, n_rows=1, n_columns=1):
    """Of so many rows and columns at least."""
    shape = draw(st.integers(n_rows, 6)), draw(st.integers(n_columns, 6))
    values = draw(st.lists(numbers, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    return np.array(values, dtype=np.float64).reshape(shape)


def named(draw, n, names=names):
    return draw(st.lists(names.filter(lambda name: not is_number(name)), min_size=n, max_size=n, unique=True))


def refusal_or(read):
    """Return what is read, None if it is refused in one line; whatever else happens is a failure."""
    try:
        return read()
    except UserError as error:
        assert str(error).strip()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return None


# ---------------------------------------------------------------------------------------------- whole files


@fuzzed(200)
@given(data=st.data(), matrix=matrices(n_columns=2), ending=st.sampled_from(sorted(SEPARATORS)))
@pytest.mark.slow
def test_text_tables_are_read_as_they_were_written(tmp_path, data, matrix, ending):
    header, index, zipped = data.draw(st.booleans()), data.draw(st.booleans()), data.draw(st.booleans())
    rows, columns = (named(data.draw, n) for n in matrix.shape)
    table = pd.DataFrame(matrix.astype(np.float32), rows, columns)
    text = table.to_csv(
        header=header, index=index, sep=SEPARATORS[ending], lineterminator=data.draw(st.sampled_from(["\n", "\r\n"])),
        index_label=data.draw(st.sampled_from(["", "cell"])),
    )  # fmt: skip
    path = tmp_path / f"x{ending}{'.gz' if zipped else ''}"
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    cells = refusal_or(lambda: read_expression(path))
    if cells is None:
        return
    assert cells.shape == matrix.shape, text
    np.testing.assert_array_equal(cells.X.toarray(), table.to_numpy())
    assert list(cells.obs_names) == (rows if index else list(map(str, range(len(rows))))), text
    assert list(cells.var_names) == (columns if header else list(map(str, range(len(columns))))), text


@fuzzed(200)
@given(data=st.data(), n_cells=st.integers(1, 6), key=st.sampled_from(["cell_type", "kind"]))
def test_labels_are_read_as_they_were_written(tmp_path, data, n_cells, key):
    cells = AnnData(np.ones((n_cells, 2), dtype=np.float32))
    cells.obs_names = named(data.draw, n_cells)
    labels = data.draw(st.lists(names, min_size=n_cells, max_size=n_cells))
    table = pd.DataFrame({key: labels}, cells.obs_names)
    ending = data.draw(st.sampled_from([".csv", ".tsv"]))
    path = tmp_path / f"labels{ending}"
    header, index = data.draw(st.booleans()), data.draw(st.booleans())
    path.write_text(table.to_csv(header=header, index=index, sep=SEPARATORS[ending]))
    found = refusal_or(lambda: read_labels(path, key, cells))
    assert found is None or found == [label.strip() for label in labels], path.read_text()


@st.composite
def annotated(draw):
    """AnnData of any kind of matrix and labels, with the expression and labels that must be read from it."""
    matrix = draw(matrices(n_rows=2))
    dtype = draw(st.sampled_from([np.float32, np.float64, np.int32, np.int64, np.uint8, bool]))
    matrix = np.clip(matrix, 0, 200).astype(dtype) if dtype not in (np.float32, np.float64) else matrix.astype(dtype)
    kind = draw(st.sampled_from([np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array]))
    categorical = draw(st.booleans())
    label = draw(
        st.sampled_from([names, st.integers(-3, 3), st.booleans(), names | st.none() if categorical else names])
    )
    labels = draw(st.lists(label, min_size=len(matrix), max_size=len(matrix)))
    obs = pd.DataFrame({"cell_type": pd.Categorical(labels) if categorical else labels}, named(draw, len(matrix)))
    cells = AnnData(kind(matrix), obs=obs, var=pd.DataFrame(index=named(draw, matrix.shape[1])))
    return cells, matrix.astype(np.float32), ["" if label is None else str(label).strip() for label in labels]


@fuzzed(100)
@given(made=annotated(), compression=st.sampled_from([None, "gzip", "lzf"]), on_disk=st.booleans())
@pytest.mark.slow
def test_h5ad_files_are_read_as_they_were_written(tmp_path, made, compression, on_disk):
    cells, matrix, labels = made
    path = tmp_path / "x.h5ad"
    cells.write_h5ad(path, compression=compression)
    found = refusal_or(lambda: load_cells(CellSource(input=path, on_disk=on_disk)))
    if found is None:
        return
    kept = (matrix != 0).any(1)
    np.testing.assert_array_equal(found.X.toarray(), matrix[kept])
    assert list(found.obs_names) == list(cells.obs_names[kept])
    assert list(found.var_names) == list(cells.var_names)
    assert found.obs["cell_type"].tolist() == [label for label, keep in zip(labels, kept, strict=True) if keep]


def write_10x_h5(path, counts, cells, genes):
    """As Cell Ranger 3 and later do; counts of shape (n_cells, n_genes)."""
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        csr = sparse.csr_matrix(counts)
        for name in ("data", "indices", "indptr"):
            matrix[name] = getattr(csr, name)
        matrix["shape"] = np.array(counts.shape[::-1])
        matrix["barcodes"] = [cell.encode() for cell in cells]
        features = matrix.create_group("features")
        for name in ("id", "name"):
            features[name] = [gene.encode() for gene in genes]
        features["feature_type"] = [b"Gene Expression"] * len(genes)
        features["genome"] = [b"GRCh38"] * len(genes)


def write_10x_folder(path, counts, cells, genes, zipped):
    path.mkdir(exist_ok=True)
    matrix = io.BytesIO()
    scipy_io.mmwrite(matrix, sparse.coo_matrix(counts.T), field="integer")
    texts = {
        "matrix.mtx": matrix.getvalue(), "barcodes.tsv": "".join(f"{cell}\n" for cell in cells).encode(),
        "features.tsv": "".join(f"{gene}\t{gene}\tGene Expression\n" for gene in genes).encode(),
    }  # fmt: skip
    for name, text in texts.items():
        (path / f"{name}.gz" if zipped else path / name).write_bytes(gzip.compress(text, mtime=0) if zipped else text)


@fuzzed(100)
@given(data=st.data(), form=st.sampled_from(["h5", "folder", "gzipped"]))
@pytest.mark.slow
def test_10x_output_is_read_as_it_was_written(tmp_path_factory, data, form):
    path = tmp_path_factory.mktemp("10x") / ("x.h5" if form == "h5" else "x")
    matrix = data.draw(matrices(n_rows=4, n_columns=3))
    counts = np.clip(np.abs(np.nan_to_num(matrix)), 0, 2**24).astype(np.int32)
    cells, genes = (named(data.draw, n, st.text(visible, min_size=1, max_size=9)) for n in counts.shape)
    if form == "h5":
        write_10x_h5(path, counts, cells, genes)
    else:
        write_10x_folder(path, counts, cells, genes, zipped=form == "gzipped")
    labels = path.parent / "labels.csv"
    labels.write_text("\n".join("AB"[i % 2] for i in range(len(cells))))
    found = refusal_or(lambda: load_cells(CellSource(input=path, labels_csv=labels)))
    if found is None:
        return
    kept = (counts != 0).any(1)
    np.testing.assert_array_equal(found.X.toarray(), counts[kept])
    assert list(found.obs_names) == [cell for cell, keep in zip(cells, kept, strict=True) if keep]
    assert list(found.var_names) == genes


# ---------------------------------------------------------------------------------------------- damaged files

N_CELLS, N_GENES = 40, 15
COUNTS = np.random.default_rng(0).poisson(2.0, (N_CELLS, N_GENES)).astype(np.float32)
CELLS = [f"cell{i}" for i in range(N_CELLS)]
GENES = [f"gene{i}" for i in range(N_GENES)]
TYPES = ["AB"[i % 2] for i in range(N_CELLS)]
WHOLE = {"gzip.h5ad", "x.csv.gz", "matrix.mtx.gz", "barcodes.tsv.gz", "features.tsv.gz", "labels.csv.gz"}
"""files with checksums: damage does not only end in no traceback, it is noticed"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return the good files of every format: what to read them by, and which of them to damage."""
    folder = tmp_path_factory.mktemp("files")
    obs, var = pd.DataFrame({"cell_type": TYPES}, CELLS), pd.DataFrame(index=GENES)
    cells = AnnData(sparse.csr_matrix(COUNTS), obs=obs, var=var)
    cells.write_h5ad(folder / "plain.h5ad")
    cells.write_h5ad(folder / "on_disk.h5ad")
    cells.write_h5ad(folder / "gzip.h5ad", compression="gzip")
    AnnData(COUNTS, obs=obs, var=var).write_h5ad(folder / "dense.h5ad", compression="gzip")
    write_10x_h5(folder / "x.h5", COUNTS.astype(np.int32), CELLS, GENES)
    write_10x_folder(folder / "plain", COUNTS.astype(np.int32), CELLS, GENES, zipped=False)
    write_10x_folder(folder / "gzipped", COUNTS.astype(np.int32), CELLS, GENES, zipped=True)
    text = pd.DataFrame(COUNTS, CELLS, GENES).to_csv()
    labels = obs.to_csv()
    (folder / "x.csv").write_text(text)
    (folder / "x.csv.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    (folder / "labels.csv").write_text(labels)
    (folder / "labels.csv.gz").write_bytes(gzip.compress(labels.encode(), mtime=0))
    return folder


def damageable(path):
    """Return the ranges of bytes in which a file is damaged; of HDF5 only numbers, for its library is apt to crash."""
    if path.suffix not in (".h5", ".h5ad"):
        return [range(path.stat().st_size)]
    found = []

    def visit(_, item):
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf" and item.shape:
            chunks = [item.id.get_chunk_info(i) for i in range(item.id.get_num_chunks())] if item.chunks else []
            parts = [(c.byte_offset, c.size) for c in chunks] or [(item.id.get_offset(), item.id.get_storage_size())]
            found.extend(range(start, start + size) for start, size in parts)

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def source_of(folder, name):
    """Return the source of cells that a file is part of."""
    labels = folder / ("labels.csv.gz" if name.endswith("gz") else "labels.csv")
    if name.endswith(".h5ad"):
        return CellSource(input=folder / name, on_disk=name == "on_disk.h5ad")
    if name.startswith(("x.csv", "labels")):
        return CellSource(expression_csv=folder / ("x.csv.gz" if name.endswith("gz") else "x.csv"), labels_csv=labels)
    path = folder / name
    return CellSource(input=path if name == "x.h5" else path.parent, labels_csv=labels)


WAYS = pytest.mark.parametrize("way", ["cut", "flipped", "garbled"])


@contextmanager
def damaged(path, way, draw, where=None):
    """Let a file be damaged within the block, in one of the bytes of `where`."""
    good = path.read_bytes()
    if way == "cut":
        bad = good[: draw(st.integers(0, len(good) - 1))]
    else:
        position = draw(st.sampled_from(where or range(len(good))))
        flips = draw(st.binary(min_size=1, max_size=1 if way == "flipped" else 8))
        bad = bytearray(good)
        for i, flip in enumerate(flips[: len(good) - position]):
            bad[position + i] ^= 1 << flip % 8 if way == "flipped" else flip
    try:
        path.write_bytes(bad)
        yield
    finally:
        path.write_bytes(good)


@fuzzed(100)
@given(data=st.data())
@WAYS
@pytest.mark.parametrize("name", [
    "plain.h5ad", "on_disk.h5ad", "gzip.h5ad", "dense.h5ad", "x.h5", "x.csv", "x.csv.gz", "labels.csv", "labels.csv.gz",
    *(f"{folder}/{file}" for folder, end in (("plain", ""), ("gzipped", ".gz"))
      for file in (f"matrix.mtx{end}", f"barcodes.tsv{end}", f"features.tsv{end}")),
])  # fmt: skip
@pytest.mark.slow
def test_damaged_files_end_in_one_line(files, name, way, data):
    path = files / name
    where = data.draw(st.sampled_from(damageable(path))) if way != "cut" else None
    with damaged(path, way, data.draw, where):
        cells = refusal_or(lambda: load_cells(source_of(files, name)))
    if cells is not None and Path(name).name in WHOLE:
        np.testing.assert_array_equal(cells.X.toarray(), COUNTS)
        assert list(cells.obs_names) == CELLS
        assert list(cells.var_names) == GENES
        assert cells.obs["cell_type"].tolist() == TYPES


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A Zarr store of the same cells."""
    path = tmp_path_factory.mktemp("store") / "x.zarr"
    obs, var = pd.DataFrame({"cell_type": TYPES}, CELLS), pd.DataFrame(index=GENES)
    AnnData(sparse.csr_matrix(COUNTS), obs=obs, var=var).write_zarr(path)
    return path


@fuzzed(300)
@given(data=st.data(), on_disk=st.booleans())
@WAYS
@pytest.mark.slow
def test_a_damaged_store_ends_in_one_line(store, way, data, on_disk):
    path = data.draw(st.sampled_from(sorted(p for p in store.rglob("*") if p.is_file() and p.stat().st_size)))
    with damaged(path, way, data.draw):
        refusal_or(lambda: load_cells(CellSource(input=store, on_disk=on_disk)))


@pytest.fixture(scope="module")
def finished(toy_runs, tmp_path_factory):
    return shutil.copytree(toy_runs / "seed0", tmp_path_factory.mktemp("finished") / "run")


@fuzzed(100)
@given(data=st.data())
@WAYS
@pytest.mark.parametrize("name", ["run.json", *CHECKED])
@pytest.mark.slow
def test_a_damaged_run_is_refused_or_read_as_it_was(finished, name, way, data):
    with damaged(finished / name, way, data.draw):
        run = refusal_or(lambda: load_run(finished))
    if run is None:
        return
    good = load_run(finished)
    assert (run.dataset, run.method, run.seed, run.split, run.params) == (
        good.dataset, good.method, good.seed, good.split, good.params,
    )  # fmt: skip
    for part in ("train", "held", "synthetic"):
        a, b = getattr(run, part), getattr(good, part)
        assert list(a.obs_names) == list(b.obs_names) and (a.X != b.X).nnz == 0
