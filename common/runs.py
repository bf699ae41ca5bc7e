"""A finished run read back: its synthetic cells beside the real cells that it learnt from and those it never saw."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from common.checks import not_finite, reading
from common.data import CellSource, load_cells
from common.errors import UserError
from common.run import digest, file_digest, intact, load_record


@dataclass(frozen=True)
class Run:
    """A generator's run, ready to be judged. The three groups of cells have the same genes in the same order."""

    folder: Path
    dataset: str
    method: str
    seed: int
    split: str
    """how the real cells were split, such as "holdout 0.5, 1000 genes\""""
    params: dict[str, Any]
    rare_threshold: int | None
    """a type with at most this many real cells is rare; None leaves it to `common.data.rare_types`"""
    train: AnnData
    held: AnnData
    synthetic: AnnData
    seeds: pd.DataFrame | None
    """the table of seeds.csv, for a generator that has seeds"""
    labels: Literal["given", "classifier"] = "given"
    """whether the generator is told the type to make, or a classifier labels what it made"""

    @property
    def made_of(self) -> str:
        """Checksum of all that a row depends on but the code: cells, types, split, what is rare, hyperparameters.

        Tables know by it whether their rows are of this run. Two runs on one file with other labels, or another layer
        of it, differ.
        """
        parts = [json.dumps([self.params, self.rare_threshold], sort_keys=True).encode()]
        for cells in (self.train, self.held):
            X = sparse.csr_matrix(cells.X)
            names = [*cells.obs_names, *cells.obs["cell_type"].astype(str), *cells.var_names, str(cells.uns["scale"])]
            arrays = (X.data, X.indices.astype(np.int64), X.indptr.astype(np.int64))
            parts += ["\n".join(names).encode(), *(array.tobytes() for array in arrays)]
        return digest(*parts)[:12]


def read_record(folder: Path) -> dict[str, Any]:
    """Read run.json of a run; for cells drawn later, of the run that they were drawn from.

    Raises
    ------
    UserError
        If the run is not there, not finished or not readable.
    """
    path = folder / "run.json"
    if not path.exists():  # a run writes it last
        raise UserError(
            f"{folder} holds no finished run: make it with python data_generation/garage.py --holdout 0.5 --out "
            f"{folder}, and the flags that name your data"
        )
    record = load_record(path)
    if "drawn_from" in record:
        trained_in = Path(record["drawn_from"])
        model = trained_in / "model.pt"
        if model.exists() and file_digest(model) != record["sha256"]["model.pt"]:
            raise UserError(f"{trained_in} was made again since {folder} was drawn from it: draw again")
        return read_record(trained_in) | {"trained_in": record["drawn_from"], "draw": record}
    return record


def read_source(folder: Path) -> CellSource:
    """Read where a run had its real cells.

    Variable genes were chosen on the training cells alone and cannot be chosen again: take those of the synthetic
    cells.
    """
    given = read_record(folder)["source"]
    paths = {name: Path(given[name]) for name in ("input", "expression_csv", "labels_csv") if given[name]}
    return CellSource(**given | paths | {"n_top_genes": None})


def read_synthetic(folder: Path) -> AnnData:
    """Read the synthetic cells of a run.

    Raises
    ------
    UserError
        If they are missing or not readable, or a value is missing or infinite.
    """
    path = intact(folder / "cells.h5ad")
    with reading(path, "h5ad file"):
        cells = anndata.read_h5ad(path)
        cells.X = sparse.csr_matrix(cells.X)  # as every generator here writes it
    if "scale" not in cells.uns:
        raise UserError(f"{path} does not say on which scale its values are: write it into uns['scale']")
    if not_finite(cells.X):
        raise UserError(f"{path} has missing or infinite values: repeat the run, if need be with another --seed")
    return cells


def _read_table(path: Path) -> pd.DataFrame:
    with reading(intact(path), "table of cells"):
        return pd.read_csv(path, dtype={"cell": str}, keep_default_na=False)


def with_genes_of(real: AnnData, synthetic: AnnData) -> AnnData:
    """Return real cells with the genes of synthetic ones, in their order.

    Raises
    ------
    UserError
        If a gene is not there any more.
    """
    missing = synthetic.var_names.difference(real.var_names)
    if len(missing):
        raise UserError(f"the real cells have no gene '{missing[0]}' any more: repeat the run with the data of today")
    return real[:, synthetic.var_names].copy()


def identify(folder: Path) -> tuple[str, str, int, str]:
    """Return what tells a run from others in tables: dataset, split, seed and method."""
    record = read_record(folder)
    # cells drawn later are told apart from the run's own
    later = f" drawn by seed {record['draw']['seed']}" if "draw" in record else ""
    return (
        record["dataset"],
        describe_split(record["holdout"], record["genes"], record.get("split_seed")),
        record["seed"],
        record["method"] + later,
    )


def describe_split(holdout: float, n_genes: int, split_seed: int | None) -> str:
    """Return how tables name a split; None: each seed has its own."""
    return f"holdout {holdout:g}" + ("" if split_seed is None else f" by seed {split_seed}") + f", {n_genes} genes"


def load_run(folder: Path, *, needs_held: bool = True) -> Run:
    """Read a run, by default one that held cells out.

    Parameters
    ----------
    folder
        With cells.h5ad, heldout.csv and run.json; the real cells are read from where the run had them.
    needs_held
        Refuse a run that held none out; otherwise its `held` has no cells.

    Raises
    ------
    UserError
        If a file is missing, the real cells have changed since, or none were held out.
    """
    folder = folder.resolve()
    record = read_record(folder)
    trained_in = Path(record.get("trained_in", folder))
    has_held, has_seeds = (
        (trained_in / name).exists() or name in record.get("files", {}) for name in ("heldout.csv", "seeds.csv")
    )
    if needs_held and not has_held:
        raise UserError(
            f"{trained_in} learnt from every cell, so that none is left to judge it by: repeat it with --holdout 0.5"
        )
    real = load_cells(read_source(folder))
    if real.uns["sha256"] != record["sha256"]:
        raise UserError(f"the real cells of {folder} have changed since the run: repeat the run with those of today")
    synthetic = read_synthetic(folder)
    real = with_genes_of(real, synthetic)
    names = _read_table(trained_in / "heldout.csv")["cell"] if has_held else []
    is_held = real.obs_names.isin(names)
    seeds = _read_table(trained_in / "seeds.csv") if has_seeds else None
    dataset, split, seed, method = identify(folder)
    return Run(
        folder=folder, dataset=dataset, method=method, seed=seed, split=split, params=record["params"],
        rare_threshold=record["params"].get("rare_threshold", record.get("rare_threshold")),
        train=real[~is_held].copy(), held=real[is_held].copy(), synthetic=synthetic, seeds=seeds,
        labels=record.get("labels", "given"),
    )  # fmt: skip
