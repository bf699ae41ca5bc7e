"""What each metric is called, which way is better, where it lies and where it comes from: the one place for it."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Computed = Literal["fidelity", "utility", "privacy", "clustering"]
"""what `common.evaluation.evaluate` computes"""
Family = Literal[Computed, "published", "cost"]
"""the published measures have scripts of their own, costs are measured by the benchmark"""
FAMILIES: tuple[Computed, ...] = get_args(Computed)

ALL, RARE, SEEDS, OTHERS, HELD = "all cells", "rare cells", "seed cells", "other training cells", "held-out cells"
"""groups of cells that a value is about; others are cell types"""
Scores = dict[tuple[str, str], float]
"""(metric, group) -> value"""


@dataclass(frozen=True)
class Metric:
    """A row of the catalogue."""

    label: str
    """what stands in tables and figures"""
    family: Family
    better: Literal["lower", "higher", "near"]
    """which way is better; beyond the ideal, lower and higher gain nothing more"""
    ideal: float
    """value of new draws from the distribution of the real cells, as many as one likes; NaN if there is none"""
    low: float
    high: float
    source: str

    def shortfall(self, value: float) -> float:
        """Return how far a value falls short of the ideal: 0 at best, NaN for NaN."""
        gap = {"lower": value - self.ideal, "higher": self.ideal - value, "near": abs(value - self.ideal)}[self.better]
        return max(0.0, gap) if not math.isnan(gap) else gap


METRICS: dict[str, Metric] = {
    "rf_auroc_genes": Metric("forest, genes", "fidelity", "lower", 0.5, 0, 1, "Lopez-Paz & Oquab 2017; Breiman 2001"),
    "rf_auroc_pcs": Metric("forest, PCs", "fidelity", "lower", 0.5, 0, 1, "Lopez-Paz & Oquab 2017; Breiman 2001"),
    "w1_pcs": Metric("W1, PCs", "fidelity", "lower", 0, 0, math.inf, "Villani 2009; POT, Flamary 2021"),
    "w2_pcs": Metric("W2, PCs", "fidelity", "lower", 0, 0, math.inf, "Villani 2009; POT, Flamary 2021"),
    "sliced_w1_pcs": Metric("sliced W1, PCs", "fidelity", "lower", 0, 0, math.inf, "Bonneel 2015"),
    "mmd_pcs": Metric("MMD², PCs", "fidelity", "lower", 0, -1, 2, "Gretton 2012"),
    "lisi_pcs": Metric("LISI", "fidelity", "higher", 2, 1, 2, "Korsunsky 2019"),
    "density_pcs": Metric("density", "fidelity", "near", 1, 0, math.inf, "Naeem 2020"),
    "coverage_pcs": Metric("coverage", "fidelity", "higher", 1, 0, 1, "Naeem 2020"),
    "gene_mean": Metric("gene means", "fidelity", "higher", 1, -1, 1, "concordance, Lin 1989"),
    "gene_variance": Metric("gene variances", "fidelity", "higher", 1, -1, 1, "concordance, Lin 1989"),
    "gene_zeros": Metric("zeros of genes", "fidelity", "higher", 1, -1, 1, "concordance, Lin 1989"),
    "gene_correlation": Metric("correlations of genes", "fidelity", "higher", 1, -1, 1, "concordance, Lin 1989"),
    "library_size": Metric("library size, KS", "fidelity", "lower", 0, 0, 1, "Kolmogorov-Smirnov, Massey 1951"),
    "types_present": Metric("types present", "fidelity", "higher", 1, 0, 1, "share of the training cells' types"),
    "tstr_f1": Metric("macro-F1, trained on synthetic", "utility", "higher", 1, 0, 1, "Esteban 2017"),
    "tstr_recall": Metric("recall, trained on synthetic", "utility", "higher", 1, 0, 1, "Esteban 2017"),
    "augmentation_f1": Metric("gain in macro-F1", "utility", "higher", 1, -1, 1, "Esteban 2017"),
    "augmentation_recall": Metric("gain in recall", "utility", "higher", 1, -1, 1, "Esteban 2017"),
    "label_agreement": Metric("labels agree, types", "utility", "higher", 1, 0, 1, "Breiman 2001"),
    "label_agreement_cells": Metric("labels agree, cells", "utility", "higher", 1, 0, 1, "Breiman 2001"),
    "lfc_slope": Metric("log-fold changes, slope", "utility", "near", 1, -math.inf, math.inf, "Deming 1943; Hao 2021"),
    "lfc_correlation": Metric("log-fold changes, correlation", "utility", "higher", 1, -1, 1, "Hao 2021"),
    "marker_overlap": Metric("markers in common", "utility", "higher", 1, 0, 1, "Wilcoxon 1945"),
    "copies": Metric("copies", "privacy", "lower", 0, 0, 1, "gene by gene"),
    "near_copies": Metric("near copies", "privacy", "lower", 0.01, 0, 1, "1st percentile of held-out cells"),
    "nearer_to_training": Metric("nearer to training", "privacy", "lower", 0.5, 0, 1, "Platzer & Reutterer 2021"),
    "dcr_ratio": Metric("distance ratio", "privacy", "higher", 1, 0, math.inf, "Park 2018"),
    "record_distance": Metric("record distance", "privacy", "higher", math.nan, 0, math.inf, "Chen 2020"),
    "record_ratio": Metric("record distance ratio", "privacy", "higher", 1, 0, math.inf, "Chen 2020"),
    "record_near_copies": Metric("records nearly copied", "privacy", "lower", 0.01, 0, 1, "Chen 2020"),
    "attack_auc": Metric("membership attack", "privacy", "lower", 0.5, 0, 1, "Hilprecht 2019; Chen 2020"),
    "calibrated_auc": Metric("calibrated attack", "privacy", "lower", 0.5, 0, 1, "Chen 2020, calibrated"),
    "ari_gap": Metric("ARI of clusters, off by", "clustering", "lower", 0, 0, 1.5, "Hubert & Arabie 1985"),
    "ari": Metric("ARI of clusters", "clustering", "near", math.nan, -0.5, 1, "Hubert & Arabie 1985"),
    "nmi": Metric("NMI of clusters", "clustering", "near", math.nan, 0, 1, "Strehl & Ghosh 2002"),
    "macro_f1": Metric("macro-F1 of clusters", "clustering", "near", math.nan, 0, 1, "Kuhn 1955"),
    "w1_genes": Metric("W1, genes", "published", "lower", 0, 0, math.inf, "Villani 2009; POT, Flamary 2021"),
    "w1_genes_divided": Metric(
        "W1, genes, divided by cells", "published", "lower", 0, 0, math.inf, "published formula"
    ),
    "training_seconds": Metric("training, s", "cost", "lower", 0, 0, math.inf, "wall clock"),
    "sampling_seconds": Metric("sampling, s", "cost", "lower", 0, 0, math.inf, "wall clock"),
}
"""in the order of a table"""
