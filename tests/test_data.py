"""Cells come in from every source in one form, and each kind of bad input is answered with one useful line."""

import gzip
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import io, sparse

import common.data
from common.data import CellSource, load_cells, select_genes
from common.errors import UserError
from config import DATASETS

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
N_CELLS, N_GENES = 30, 12
X = np.random.default_rng(1).poisson(2.0, size=(N_CELLS, N_GENES)).astype(np.float32)
TYPES = [["B", "T", "NK"][cell % 3] for cell in range(N_CELLS)]
CELLS = [f"c{cell}" for cell in range(N_CELLS)]
GENES = [f"G{gene}" for gene in range(N_GENES)]


def cells_in_memory(matrix=X):
    return AnnData(
        sparse.csr_matrix(matrix), obs=pd.DataFrame({"cell_type": TYPES}, index=CELLS), var=pd.DataFrame(index=GENES)
    )


def save(cells, path):
    cells.write_h5ad(path)
    return path


def table(matrix=X, cells=CELLS, genes=GENES):
    return pd.DataFrame(matrix, index=cells, columns=genes)


@pytest.fixture
def h5ad(tmp_path):
    return save(cells_in_memory(), tmp_path / "mine.h5ad")


@pytest.fixture
def expression(tmp_path):
    table().to_csv(tmp_path / "x.csv")
    return tmp_path / "x.csv"


@pytest.fixture
def labels(tmp_path):
    return write(tmp_path / "labels.csv", "\n".join(TYPES))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def assert_contract(cells, matrix=X):
    assert sparse.isspmatrix_csr(cells.X)
    assert cells.X.dtype == np.float32
    np.testing.assert_allclose(cells.X.toarray(), matrix, rtol=1e-5)
    assert isinstance(cells.obs["cell_type"].dtype, pd.CategoricalDtype)
    assert cells.obs["cell_type"].tolist() == TYPES
    assert cells.obs_names.is_unique
    assert cells.var_names.is_unique
    assert cells.uns["scale"] == "counts"
    assert all(len(checksum) == 64 for checksum in cells.uns["sha256"].values())


# ---------------------------------------------------------------------------------------------- good input


def test_embedded_set_is_the_default():
    cells = load_cells(CellSource())
    assert cells.shape == (700, 765)
    assert cells.uns["dataset"] == "pbmc68k"
    assert cells.uns["scale"] == "counts"
    assert cells.uns["labels_from"] == "authors"
    assert cells.uns["rare_threshold"] == 20
    assert cells.obs["cell_type"].value_counts()["CD34+"] == 13
    assert list(cells.uns["sha256"]) == ["pbmc68k"]
    assert load_cells(CellSource(n_top_genes=50)).uns["sha256"] == cells.uns["sha256"]


def test_h5ad(h5ad, tmp_path):
    cells = load_cells(CellSource(input=h5ad))
    assert_contract(cells)
    assert cells.uns["dataset"] == "mine"
    assert "rare_threshold" not in cells.uns
    assert cells.uns["notes"] == []
    cells.write_h5ad(tmp_path / "again.h5ad")
    assert_contract(load_cells(CellSource(input=tmp_path / "again.h5ad")))


def test_h5ad_layer_labels_and_orientation(tmp_path):
    cells = cells_in_memory(np.sqrt(X))
    cells.layers["counts"] = X
    cells.obs = cells.obs.rename(columns={"cell_type": "kind"})
    path = save(cells.T, tmp_path / "other.h5ad")
    assert_contract(load_cells(CellSource(input=path, layer="counts", label_key="kind", transpose=True)))


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".txt", ".csv.gz"])
@pytest.mark.parametrize("end_of_line", ["\n", "\r\n"])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("index", [True, False])
def test_text_tables(tmp_path, labels, ending, end_of_line, header, index):
    separator = {".csv": ",", ".tsv": "\t", ".txt": " "}[ending.removesuffix(".gz")]
    text = table().to_csv(sep=separator, header=header, index=index).replace("\n", end_of_line)
    cells = load_cells(CellSource(expression_csv=write(tmp_path / f"x{ending}", text), labels_csv=labels))
    assert_contract(cells)
    assert cells.obs_names[0] == ("c0" if index else "cell_0")
    assert cells.var_names[0] == ("G0" if header else "gene_0")
    assert set(cells.uns["sha256"]) == {f"x{ending}", "labels.csv"}
    assert cells.uns["labels_from"] == "labels.csv"


def test_text_table_of_r(tmp_path, labels):
    """R's write.table puts no name over the row names."""
    text = table().T.to_csv(sep="\t", quoting=2).replace('""\t', "", 1)
    path = write(tmp_path / "r.tsv", text)
    assert_contract(load_cells(CellSource(expression_csv=path, labels_csv=labels, transpose=True)))


@pytest.mark.parametrize("text", [
    table(cells=range(N_CELLS)).to_csv(index_label="unknown"), table(cells=range(1, N_CELLS + 1)).to_csv(header=False),
    table(cells=range(4000, 4000 + N_CELLS)).to_csv(index_label="unknown"),
    table(genes=range(7000, 7000 + N_GENES)).to_csv(index=False), table(genes=range(N_GENES)).to_csv(index=False),
])  # fmt: skip
def test_numbers_for_names_are_not_taken_for_expression(tmp_path, text):
    with pytest.raises(UserError, match=r"number the rows|name columns by numbers"):
        load_cells(CellSource(expression_csv=write(tmp_path / "x.csv", text), cluster=True))


@pytest.mark.parametrize("called", ["cell_id", "Barcode", "Geneid", "index"])
def test_names_that_are_numbers_are_names_in_a_column_called_so(tmp_path, called):
    cells, genes = (list(map(str, range(start, start + n))) for start, n in ((4000, N_CELLS), (0, N_GENES)))
    path = write(tmp_path / "x.csv", table(cells=cells, genes=genes).to_csv(index_label=called))
    found = load_cells(CellSource(expression_csv=path, cluster=True))
    assert found.obs_names.tolist() == cells and found.var_names.tolist() == [f"gene_{gene}" for gene in genes]
    np.testing.assert_array_equal(found.X.toarray(), table().to_numpy())


def test_a_cell_may_be_called_what_means_names(tmp_path):
    path = write(tmp_path / "x.csv", "ID,0,0,1.5\nb,2,1,0\nc,1,3,0\nd,1,3,0\n")
    assert load_cells(CellSource(expression_csv=path, cluster=True)).obs_names.tolist() == ["ID", "b", "c", "d"]
    told = "could name columns by numbers or be a row called 'ID': leave its first field"
    for first in ("2,0,1", "1.1,1.2,1.3"):
        path = write(tmp_path / "y.csv", f"ID,{first}\nb,2,1,0\n")
        with pytest.raises(UserError, match=told):
            load_cells(CellSource(expression_csv=path, cluster=True))


def test_decimal_commas_are_told(tmp_path):
    path = write(tmp_path / "x.csv", "cell;a;b\nx;1,5;2\n")
    with pytest.raises(UserError, match=r"'1,5' in line 2, column 2 \(write decimals with a point\)"):
        load_cells(CellSource(expression_csv=path, cluster=True))


def test_labels_may_name_the_cells_in_any_column(tmp_path):
    """As pandas writes them: numbers, barcodes, types; in another order they are refused, never taken by their row."""
    names, types = table().index, ["A", "B"] * N_CELLS
    for columns in (["", "barcode", "cell_type"], ["cell_type", "barcode", "n"]):
        rows = [{"": i, "n": i, "barcode": name, "cell_type": types[i]} for i, name in enumerate(names)]
        for order, fits in ((rows, True), (rows[::-1], False)):
            path = write(tmp_path / "labels.csv", pd.DataFrame(order)[columns].to_csv(index=False))
            source = CellSource(expression_csv=write(tmp_path / "x.csv", table().to_csv()), labels_csv=path)
            if fits:
                assert load_cells(source).obs["cell_type"].tolist() == types[:N_CELLS]
            else:
                with pytest.raises(UserError, match="in another order"):
                    load_cells(source)


def test_labels_that_number_cells_without_names_come_in_order(tmp_path):
    path = write(tmp_path / "x.csv", table().to_csv(index=False, header=False))
    labels = pd.DataFrame({"cell_type": ["A", "B"] * (N_CELLS // 2)}, index=range(1, N_CELLS // 2 * 2 + 1))[:N_CELLS]
    source = CellSource(expression_csv=path, labels_csv=write(tmp_path / "l.csv", labels.to_csv()))
    load_cells(source)
    write(tmp_path / "l.csv", labels[::-1].to_csv())
    with pytest.raises(UserError, match="not in the order of the matrix"):
        load_cells(source)


def test_raw_may_be_the_layer(tmp_path):
    cells = AnnData(
        sparse.csr_matrix(table().to_numpy(np.float32)), obs=pd.DataFrame({"cell_type": list("AB") * (N_CELLS // 2)})
    )
    cells.raw = cells
    cells.X = sparse.csr_matrix(np.log1p(cells.X.toarray()))
    cells = cells[:, :3].copy()
    cells.write_h5ad(tmp_path / "x.h5ad")
    notes = load_cells(CellSource(input=tmp_path / "x.h5ad")).uns["notes"]
    assert "X holds log values; counts, which say more, are there, too: --layer raw" in notes
    found = load_cells(CellSource(input=tmp_path / "x.h5ad", layer="raw"))
    assert found.uns["scale"] == "counts" and found.n_vars == N_GENES
    with pytest.raises(UserError, match="no layer 'counts', only raw"):
        load_cells(CellSource(input=tmp_path / "x.h5ad", layer="counts"))


def test_labels_of_which_every_cell_has_its_own_are_no_types(tmp_path):
    cells = AnnData(np.ones((30, 3), np.float32), obs=pd.DataFrame({"cell_type": [f"c{i}" for i in range(30)]}))
    cells.write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(UserError, match="30 different labels for 30 cells"):
        load_cells(CellSource(input=tmp_path / "x.h5ad"))


def test_names_are_read_as_they_stand_there(tmp_path):
    cells = ["NA", "n/a", "nan", "None", *CELLS[4:]]
    genes = ["NA", "a b", 'c"d', *GENES[3:]]
    for ending, separator in ((".csv", ","), (".txt", " ")):
        text = table(cells=cells, genes=genes).to_csv(sep=separator)
        found = load_cells(CellSource(expression_csv=write(tmp_path / f"x{ending}", text), cluster=True))
        assert found.obs_names.tolist() == cells and found.var_names.tolist() == genes


def test_text_is_read_in_blocks(expression, labels, monkeypatch):
    monkeypatch.setattr("common.tables.VALUES_AT_A_TIME", 3 * N_GENES)
    assert_contract(load_cells(CellSource(expression_csv=expression, labels_csv=labels)))


@pytest.mark.parametrize(
    "text",
    [
        "cell_type\n" + "\n".join(TYPES),
        "a header nobody knows\n" + "\n".join(TYPES) + "\n\n",
        "\n".join(f"{cell},{label}" for cell, label in zip(CELLS, TYPES, strict=True)),
        "barcode\tlabel\r\n" + "\r\n".join(f"{cell}\t{label}" for cell, label in zip(CELLS, TYPES, strict=True)),
        "id;cell_type;batch\n" + "\n".join(f"{cell};{label};1" for cell, label in zip(CELLS, TYPES, strict=True)),
        '"cell_type"\n' + "\n".join(f'"{row}","{label}"' for row, label in enumerate(TYPES, start=1)),
    ],
    ids=["header", "unknown header", "ids", "ids and header", "three columns", "R"],
)
def test_label_tables(h5ad, tmp_path, text):
    assert_contract(load_cells(CellSource(input=h5ad, labels_csv=write(tmp_path / "l.csv", text))))


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("version", [2, 3])
def test_10x_folder(tmp_path, ending, version):
    folder = tmp_path / "10x"
    folder.mkdir()
    rows = np.vstack([X.T, np.full((1, N_CELLS), 7)]) if version == 3 else X.T
    io.mmwrite(folder / "matrix.mtx", sparse.coo_matrix(rows.astype(int)))
    if ending:
        write(folder / "matrix.mtx.gz", (folder / "matrix.mtx").read_text())
        (folder / "matrix.mtx").unlink()
    write(folder / f"barcodes.tsv{ending}", "\n".join(CELLS))
    kind = "\tGene Expression" if version == 3 else ""
    features = [f"ENSG{gene}\t{name}{kind}" for gene, name in enumerate(GENES)]
    features += ["AB1\tCD3\tAntibody Capture"] if version == 3 else []
    write(folder / f"{'features' if version == 3 else 'genes'}.tsv{ending}", "\n".join(features))
    pairs = write(tmp_path / "l.csv", "\n".join(f"{cell},{label}" for cell, label in zip(CELLS, TYPES, strict=True)))
    cells = load_cells(CellSource(input=folder, labels_csv=pairs))
    assert_contract(cells)
    assert list(cells.var_names) == GENES
    assert len(cells.uns["sha256"]) == 4
    (folder / f"barcodes.tsv{ending}").unlink()
    with pytest.raises(UserError, match=r"barcodes\.tsv"):
        load_cells(CellSource(input=folder, cluster=True))


def test_10x_h5(tmp_path):
    path = tmp_path / "filtered.h5"
    counts = sparse.csr_matrix(X)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(CELLS, dtype="S")
        group["data"], group["indices"], group["indptr"] = counts.data.astype(int), counts.indices, counts.indptr
        group["shape"] = (N_GENES, N_CELLS)
        for key, values in {"id": GENES, "name": GENES, "genome": ["hg"] * N_GENES}.items():
            group[f"features/{key}"] = np.array(values, dtype="S")
        group["features/feature_type"] = np.array(["Gene Expression"] * N_GENES, dtype="S")
    labels = write(tmp_path / "l.csv", "\n".join(TYPES))
    assert_contract(load_cells(CellSource(input=path, labels_csv=labels)))


PUBLISHED = {
    "yan": (table().T.to_csv(header=False, index=False), "\r\n".join(TYPES) + "\r\n"),
    "pollen": (table().to_csv(sep=" ", header=False, index=False), "\n".join(TYPES) + "\n"),
    "cbmc": (table().T.to_csv(), pd.DataFrame({"x": TYPES}, index=CELLS).to_csv()),
    "muraro": (table(genes=["A__chr1", "A__chr2", *GENES[2:]]).to_csv(index=False), "cell_type\n" + "\n".join(TYPES)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_layouts(tmp_path, monkeypatch, name):
    monkeypatch.setattr(common.data, "DATA_DIR", tmp_path)
    with pytest.raises(UserError, match=rf"python data/download\.py --dataset {name}"):
        load_cells(CellSource(dataset=name))
    expression, labels = PUBLISHED[name]
    write(tmp_path / DATASETS[name].expression, expression)
    write(tmp_path / DATASETS[name].labels, labels)
    cells = load_cells(CellSource(dataset=name))
    assert_contract(cells)
    assert cells.uns["rare_threshold"] == DATASETS[name].rare_threshold
    assert cells.uns["labels_from"] == "authors"
    assert any("not the published" in note for note in cells.uns["notes"]) == (name != "pollen")
    assert list(cells.var_names[:2]) == {"cbmc": ["G0", "G1"], "muraro": ["A", "A-1"]}.get(name, ["gene_0", "gene_1"])


def test_clusters_stand_in_for_labels():
    cells, again = (load_cells(CellSource(cluster=True)) for _ in range(2))
    assert cells.uns["labels_from"] == "leiden"
    assert any("Leiden" in note for note in cells.uns["notes"])
    assert 2 < cells.obs["cell_type"].nunique() < 30
    assert cells.obs["cell_type"].equals(again.obs["cell_type"])


def test_gene_choice_is_scanpys():
    cells = load_cells(CellSource())
    chosen = select_genes(cells, 100)
    assert len(chosen) == 100
    assert sparse.isspmatrix_csr(load_cells(CellSource(n_top_genes=100)).X)
    assert list(chosen) == [gene for gene in cells.var_names if gene in set(chosen)]
    log = cells.copy()
    sc.pp.normalize_total(log, target_sum=1e4)
    sc.pp.log1p(log)
    sc.pp.highly_variable_genes(log, n_top_genes=100)
    assert set(chosen) <= set(log.var_names[log.var["highly_variable"]])
    assert list(load_cells(CellSource(n_top_genes=100)).var_names) == list(chosen)
    assert len(select_genes(cells[::2], 100)) == 100
    assert len(select_genes(cells, 10**6)) == cells.n_vars


def test_oddities_are_noted(tmp_path):
    matrix = X.copy()
    matrix[4], matrix[:, 2] = 0, 0
    cells = cells_in_memory(matrix)
    cells.obs["cell_type"] = ["lone", *["T"] * (N_CELLS - 1)]
    loaded = load_cells(CellSource(input=save(cells, tmp_path / "odd.h5ad")))
    assert loaded.shape == (N_CELLS - 1, N_GENES)
    notes = "\n".join(loaded.uns["notes"])
    assert "1 cells without counts were dropped" in notes
    assert "1 genes are zero in every cell" in notes
    assert "1 types have only one or two cells: lone" in notes
    cells.obs["cell_type"] = "T"
    loaded = load_cells(CellSource(input=save(cells, tmp_path / "one.h5ad")))
    assert "all cells are of one type, 'T'" in loaded.uns["notes"]


def test_scale_can_be_forced(h5ad):
    assert load_cells(CellSource(input=h5ad, scale="linear")).uns["scale"] == "linear"


@pytest.mark.parametrize(
    ("name", "shape", "n_types", "scale"),
    [
        ("yan", (90, 20214), 6, "linear"),
        ("pollen", (299, 23794), 11, "counts"),
        ("pbmc3k", (2638, 13714), 9, "counts"),
        ("baron_mouse", (1886, 14878), 13, "counts"),
    ],
)
def test_real_files(name, shape, n_types, scale):
    path = SHARED / f"{name}.h5ad"
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    cells = load_cells(CellSource(input=path))
    assert cells.shape == shape
    assert cells.obs["cell_type"].nunique() == n_types
    assert cells.uns["scale"] == scale
    assert (cells.X != anndata.read_h5ad(path).X).nnz == 0


# ---------------------------------------------------------------------------------------------- bad input


def changed(row, column, value):
    matrix = X.copy()
    matrix[row, column] = value
    return cells_in_memory(matrix)


def with_labels(labels):
    cells = cells_in_memory()
    cells.obs["cell_type"] = pd.Categorical(labels)
    return cells


def with_names(**names):
    cells = cells_in_memory()
    for attribute, values in names.items():
        setattr(cells, attribute, values)
    return cells


@pytest.mark.parametrize(
    ("cells", "flags", "words"),
    [
        (changed(3, 2, np.nan), {}, ["nan", "'c3'", "'G2'"]),
        (changed(3, 2, np.inf), {}, ["infinite", "'c3'"]),
        (changed(3, 2, -1), {"scale": "counts"}, ["negative", "--scale scaled"]),
        (changed(3, 2, 0.5), {"scale": "counts"}, ["0.5 is no integer"]),
        (cells_in_memory(), {"label_key": "cell_typ"}, ["'cell_typ'", "did you mean 'cell_type'", "--cluster"]),
        (with_labels([None, *TYPES[1:]]), {}, ["1 labels are missing", "'c0'"]),
        (with_labels(["nan", "", *TYPES[2:]]), {}, ["2 labels are missing"]),
        (with_names(obs_names=["c1", "c1", *CELLS[2:]]), {}, ["cell names occur more than once", "'c1'"]),
        (with_names(var_names=["G1", "G1", *GENES[2:]]), {}, ["gene names occur more than once", "'G1'"]),
        (cells_in_memory()[:0], {}, ["empty", "0 cells"]),
        (cells_in_memory()[:, :0], {}, ["empty", "0 genes"]),
        (cells_in_memory(np.zeros_like(X)), {}, ["every value of the matrix is zero"]),
        (cells_in_memory().T, {}, ["--transpose"]),
        (cells_in_memory(), {"transpose": True}, ["--transpose"]),
        (cells_in_memory(), {"layer": "countz"}, ["no layer 'countz'", "did you mean 'counts'"]),
        (cells_in_memory(), {"n_top_genes": 0}, ["--n-top-genes is 0"]),
        (changed(3, 2, -0.5), {"n_top_genes": 5}, ["scaled", "--n-top-genes"]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*names are not unique")
def test_bad_h5ad(tmp_path, cells, flags, words):
    cells = cells.copy()
    if "layer" in flags:
        cells.layers["counts"] = cells.X
    expect(CellSource(input=save(cells, tmp_path / "bad.h5ad"), **flags), words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n".join(TYPES[1:]), ["29 labels for 30 cells"]),
        ("\n".join([*TYPES, "B"]), ["31 labels for 30 cells"]),
        ("\n".join(TYPES[:N_GENES]), ["--transpose"]),
        ("\n".join(f"{gene},B" for gene in GENES), ["names the genes", "--transpose"]),
        ("\n".join(f"{cell},B" for cell in ["c1", "c0", *CELLS[2:]]), ["another order", "row 1", "'c1'", "'c0'"]),
        ("\n".join(f"{cell}-1,B" for cell in CELLS), ["other cells", "'c0-1'", "'c0'"]),
        ("\n".join(["", *TYPES[1:]]), ["1 labels are missing", "'c0'"]),
        ("\n".join([*TYPES[:-1], "NA"]), ["1 labels are missing", "'c29'"]),
        ("\n".join([f"{cell},1,B" for cell in CELLS]), ["3 columns", "--label-key"]),
        ("\n".join([*(f"{cell},B" for cell in CELLS[:-1]), "c29"]), ["line 30"]),
        ("", ["empty"]),
    ],
)
@pytest.mark.parametrize("kind", ["h5ad", "expression"])
def test_bad_labels(request, tmp_path, kind, text, words):
    source = {"h5ad": "input", "expression": "expression_csv"}[kind]
    flags = {source: request.getfixturevalue(kind), "labels_csv": write(tmp_path / "l.csv", text)}
    expect(CellSource(**flags), words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,2,3\n4,oops,6\n", ["text", "'oops'", "line 2, column 2"]),
        (",G1,G2\nc1,1,2\nc2,3,x\n", ["text", "'x'", "line 3, column 3"]),
        (",G1,G2\nc1,1,2\nc2,3,\n", ["missing or infinite", "'c2'", "'G2'"]),
        (",G1,G2\nc1,1,2\nc2,3\n", ["missing or infinite", "'c2'", "'G2'"]),
        (",G1,G1\nc1,1,2\nc2,3,4\n", ["gene names occur more than once"]),
        (",G1,G2\nc1,1,2\nc1,3,4\n", ["cell names occur more than once"]),
        ("G1,G2,G3\n1,2\n3,4\n", ["3 names in its header for 2 columns"]),
        ("1,2\n3,4,5\n", ["x.csv"]),
        (",G1,G2\n", ["empty"]),
        ("", ["empty"]),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", ["Git LFS", "data/download.py"]),
    ],
)
def test_bad_text_table(tmp_path, text, words):
    expect(CellSource(expression_csv=write(tmp_path / "x.csv", text), cluster=True), words)


def test_damaged_files(tmp_path, h5ad, expression):
    (tmp_path / "cut.h5ad").write_bytes(h5ad.read_bytes()[:3000])
    (tmp_path / "text.h5ad").write_text("no HDF5 here")
    (tmp_path / "text.h5").write_text("no HDF5 here")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(expression.read_bytes() * 20)[:-50])
    (tmp_path / "plain.csv.gz").write_text("1,2\n")
    (tmp_path / "zipped.csv").write_bytes(gzip.compress(b"1,2\n"))
    (tmp_path / "binary.csv").write_bytes(h5ad.read_bytes())
    for name in ("cut.h5ad", "text.h5ad", "text.h5"):
        expect(CellSource(input=tmp_path / name), [name, "damaged"])
    for name in ("cut.csv.gz", "binary.csv"):
        expect(CellSource(expression_csv=tmp_path / name, cluster=True), [name, "damaged"])
    for name in ("plain.csv.gz", "zipped.csv"):
        expect(CellSource(expression_csv=tmp_path / name, cluster=True), [name, "gzipped"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"dataset": "polen"}, ["no data set 'polen'", "did you mean 'pollen'"]),
        ({"dataset": "yan", "input": Path("x.h5ad")}, ["--dataset and --input", "give one"]),
        ({"input": Path("x.h5ad"), "expression_csv": Path("x.csv")}, ["--input and --expression-csv"]),
        ({"input": Path("nowhere.h5ad")}, ["nowhere.h5ad does not exist"]),
        ({"expression_csv": Path("nowhere.csv"), "cluster": True}, ["nowhere.csv does not exist"]),
        ({"input": Path(__file__)}, ["--input takes an h5ad file"]),
        ({"labels_csv": Path("x.csv")}, ["--labels-csv has no meaning for --dataset"]),
        ({"transpose": True}, ["--transpose has no meaning for --dataset"]),
        ({"input": Path("x.h5ad"), "labels_csv": Path("l.csv"), "cluster": True}, ["two sources of labels"]),
        ({"expression_csv": Path("x.csv"), "layer": "counts"}, ["--layer has no meaning for --expression-csv"]),
    ],
)
def test_bad_flags(flags, words):
    expect(CellSource(**flags), words)


def test_missing_labels_file_and_labels(expression, tmp_path):
    expect(CellSource(expression_csv=expression, labels_csv=tmp_path / "label.csv"), ["label.csv does not exist"])
    expect(CellSource(expression_csv=expression), ["--labels-csv", "--cluster"])
    expect(CellSource(input=expression), ["--expression-csv"])


def expect(source, words):
    with pytest.raises(UserError) as error:
        load_cells(source)
    message = str(error.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message
