"""Marker genes of cell types: the published lists, a list of one's own, or genes chosen on the training cells."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from common.checks import existing, nearest, reading
from common.data import types_of
from common.errors import UserError
from common.metrics.fidelity import compare_on
from common.metrics.utility import rank_sum_scores
from common.results import read_results
from common.run import digest

Markers = dict[str, list[str]]
"""cell type -> its marker genes, one at least"""

PUBLISHED: dict[str, Markers] = {
    "cbmc": {
        "Eryth": ["HBB", "HBA1", "HBA2", "GYPA", "AHSP", "ALAS2", "SLC4A1", "KLF1"],
        "NK": ["NKG7", "GNLY", "KLRF1", "PRF1", "GZMB", "KLRD1"],
        "CD14+ Mono": ["CD14", "S100A8", "S100A9", "CST3", "FCN1"],
        "CD16+ Mono": ["FCGR3A", "CDKN1C"],
        "CD34+": ["CD34", "KIT", "PROM1"],
        "CD8 T": ["CD8A", "CD8B", "GZMK"],
        "B": ["CD19", "MS4A1", "CD79A", "CD79B", "BANK1"],
        "Mk": ["PPBP", "PF4", "ITGA2B", "GP9", "GP1BA"],
        "pDCs": ["LILRA4", "TCF4", "CLEC4C", "IRF7", "IRF8"],
        "DC": ["FCER1A", "CLEC10A", "FLT3"],
    },
    "muraro": {
        "alpha": ["GCG", "TTR", "ARX", "IRX2"],
        "beta": ["INS", "IAPP", "NKX6-1", "MAFA", "PDX1", "DLK1"],
        "delta": ["SST", "HHEX", "RBP4", "LEPR"],
        "ductal": ["KRT19", "CFTR", "SOX9", "SPP1", "MMP7", "TFF1", "TFF3"],
        "acinar": ["CPA1", "PRSS1", "CTRB1", "CTRB2", "CELA3A", "AMY2A", "REG1A", "REG1B"],
        "endothelial": ["PECAM1", "CDH5", "VWF", "CLDN5", "ENG", "KDR", "PLVAP"],
        "gamma": ["PPY", "PAX6"],
        "epsilon": ["GHRL"],
        "mesenchymal": ["COL1A1", "COL1A2", "PDGFRA", "THY1", "LUM", "DCN"],
    },
}
"""by data set, from the literature; types that are not named have none"""


@dataclass(frozen=True)
class MarkerSource:
    """Where marker genes come from."""

    markers: Path | None = None
    """your own marker genes, a JSON file {"type": ["gene", ...]}; by default published ones for cbmc and muraro, and
    genes chosen on the training cells for other data"""
    n_markers: int = 10
    """genes to choose for each type, where there is no list"""

    def __post_init__(self) -> None:
        """Refuse a number that is too small, or that would be ignored."""
        if self.n_markers < 1:
            raise UserError(f"--n-markers is {self.n_markers}: give at least 1")
        if self.markers and self.n_markers != MarkerSource.n_markers:
            raise UserError("--markers and --n-markers are two sources of marker genes: give one of them")

    def describe(self, dataset: str) -> str:
        """Return what tables call the markers of a data set; two lists of one file name differ in their checksum."""
        if self.markers:
            return f"{self.markers.name} {digest(existing(self.markers).read_bytes())[:8]}"
        return "published" if dataset in PUBLISHED else f"{self.n_markers} chosen"


def find_markers(
    cells: AnnData, source: MarkerSource, *, choose_from: pd.Index | None = None
) -> tuple[Markers, list[str]]:
    """Return the marker genes of the cells' types that are among their genes.

    Parameters
    ----------
    cells
        Training cells, with `obs["cell_type"]` and in `uns` their scale and data set.
    choose_from
        Genes to choose from if there is no list; by default all.

    Returns
    -------
    The markers, and sentences that say which genes the data lack and which types have no markers.

    Raises
    ------
    UserError
        If a list cannot be read, it names a type that the data have not, or no marker is left.
    """
    dataset, types = cells.uns["dataset"], np.unique(types_of(cells)).tolist()
    if source.markers:
        listed, notes = _read_list(source.markers), []
        for name in listed:
            if name not in types:
                raise UserError(
                    f"{source.markers} has markers of '{name}', but the types of {dataset} are {', '.join(types)}"
                    f"{nearest(name, types)}"
                )
    elif dataset in PUBLISHED:
        unknown = [name for name in PUBLISHED[dataset] if name not in types]
        notes = [f"{dataset} has no type {', '.join(unknown)} of the published markers"] if unknown else []
        listed = {name: genes for name, genes in PUBLISHED[dataset].items() if name in types}
    else:
        listed, notes = choose_markers(cells if choose_from is None else cells[:, choose_from], source.n_markers), []

    named = list(dict.fromkeys(gene for genes in listed.values() for gene in genes))
    lacking = [gene for gene in named if gene not in cells.var_names]
    if lacking:
        notes.append(f"{dataset} lacks {len(lacking)} of {len(named)} marker genes: {', '.join(lacking)}")
    found = {name: [gene for gene in dict.fromkeys(genes) if gene in cells.var_names] for name, genes in listed.items()}
    found = {name: genes for name, genes in found.items() if genes}
    if not found:
        raise UserError(
            f"{dataset} has none of the marker genes; its genes are called such as '{cells.var_names[0]}': name "
            "markers so in a file and give it as --markers"
        )
    without = [name for name in types if name not in found]
    if without:
        notes.append(f"no marker genes for {', '.join(without)} of {dataset}")
    return found, notes


def choose_markers(cells: AnnData, n_genes: int) -> Markers:
    """Choose the genes that rank highest in a type against all other cells (Wilcoxon's rank sum), upregulated only."""
    labels = types_of(cells)
    types = np.unique(labels).tolist()
    scores = rank_sum_scores(compare_on(cells), labels, types)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :n_genes]
    return {name: cells.var_names[row[z[row] > 0]].tolist() for name, row, z in zip(types, best, scores, strict=True)}


def check_same_markers(path: Path, datasets: set[str], source: MarkerSource) -> None:
    """Make sure that a table, if it is there, has no rows of these data sets that were made with other markers.

    Raises
    ------
    UserError
        If it has: its controls would stand beside runs judged otherwise.
    """
    if not path.exists():
        return
    table = read_results(path, made_by="the same command")
    for dataset in sorted(datasets):
        of_dataset = table.loc[table["dataset"] == dataset, "markers"]
        if (of_dataset != source.describe(dataset)).any():
            raise UserError(
                f"{path} holds rows of {dataset} that were made with other markers ({of_dataset.iloc[0]}): give "
                "another --out, or remove it"
            )


def _read_list(path: Path) -> Markers:
    with reading(existing(path), "JSON file"):
        listed = json.loads(path.read_text())
    shaped = isinstance(listed, dict) and all(isinstance(genes, list) for genes in listed.values())
    if not shaped or not all(isinstance(gene, str) for genes in listed.values() for gene in genes):
        raise UserError(f'{path} is no list of markers: let it be like {{"B cell": ["CD19", "MS4A1"], "NK": ["NKG7"]}}')
    return dict(listed)
