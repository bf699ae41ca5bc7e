"""What each metric is called, which way is better, where it lies and where it comes from: the one place for it."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Computed = Literal["fidelity", "utility", "privacy", "clustering"]
"""what `common.evaluation.evaluate` computes"""
Family = Literal[Computed, "published", "cost"]
"""the published measures have scripts of their own, costs are measured by the benchmark"""
FAMILIES: tuple[Computed, ...] = get_args(Computed)

ALL, RARE, SEEDS, OTHERS, HELD, SYNTHETIC = (
    "all cells", "rare cells", "seed cells", "other training cells", "held-out cells", "synthetic cells",
)  # fmt: skip
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
    meaning: str
    """what a value says, in plain words"""

    def shortfall(self, value: float) -> float:
        """Return how far a value falls short of the ideal: 0 at best, NaN for NaN."""
        gap = {"lower": value - self.ideal, "higher": self.ideal - value, "near": abs(value - self.ideal)}[self.better]
        return max(0.0, gap) if not math.isnan(gap) else gap


METRICS: dict[str, Metric] = {
    "rf_auroc_genes": Metric(
        "forest, genes", "fidelity", "lower", 0.5, 0, 1, "Lopez-Paz & Oquab 2017; Breiman 2001",
        "A random forest is asked to tell synthetic from held-out cells by genes. 0.5: it cannot; 1: it always can.",
    ),
    "rf_auroc_pcs": Metric(
        "forest, PCs", "fidelity", "lower", 0.5, 0, 1, "Lopez-Paz & Oquab 2017; Breiman 2001",
        "A random forest is asked the same on principal components, which show what genes do together. 0.5: it cannot.",
    ),
    "w1_pcs": Metric(
        "W1, PCs", "fidelity", "lower", 0, 0, math.inf, "Villani 2009; POT, Flamary 2021",
        "How far cells must be moved to turn the synthetic into the held-out ones. Never 0 for finite samples.",
    ),
    "w2_pcs": Metric(
        "W2, PCs", "fidelity", "lower", 0, 0, math.inf, "Villani 2009; POT, Flamary 2021",
        "As W1, with squared distances: cells far off weigh more.",
    ),
    "sliced_w1_pcs": Metric(
        "sliced W1, PCs", "fidelity", "lower", 0, 0, math.inf, "Bonneel 2015",
        "As W1, along random directions and averaged.",
    ),
    "mmd_pcs": Metric(
        "MMD², PCs", "fidelity", "lower", 0, -1, 2, "Gretton 2012",
        "How far the densities of both kinds of cells differ. About 0, and below as often as above, if they do not.",
    ),
    "lisi_pcs": Metric(
        "LISI", "fidelity", "higher", 2, 1, 2, "Korsunsky 2019",
        "How mixed both kinds are among the 30 nearest cells. 1: apart; about 1.94: as two samples of real cells are.",
    ),
    "density_pcs": Metric(
        "density", "fidelity", "near", 1, 0, math.inf, "Naeem 2020",
        "How dense synthetic cells are where held-out ones are. Above 1 they crowd in the centre, below 1 they stray.",
    ),
    "coverage_pcs": Metric(
        "coverage", "fidelity", "higher", 1, 0, 1, "Naeem 2020",
        "Share of held-out cells with a synthetic cell nearer than their fifth real neighbour. About 0.97 at best.",
    ),
    "gene_mean": Metric(
        "gene means", "fidelity", "higher", 1, -1, 1, "concordance, Lin 1989",
        "Whether genes have the same mean. 1: all of them have.",
    ),
    "gene_variance": Metric(
        "gene variances", "fidelity", "higher", 1, -1, 1, "concordance, Lin 1989",
        "Whether genes have the same variance. 1: all of them have.",
    ),
    "gene_zeros": Metric(
        "zeros of genes", "fidelity", "higher", 1, -1, 1, "concordance, Lin 1989",
        "Whether genes are silent in the same share of cells. 1: all of them are.",
    ),
    "gene_correlation": Metric(
        "correlations of genes", "fidelity", "higher", 1, -1, 1, "concordance, Lin 1989",
        "Whether pairs of the most variable genes go together as they do in held-out cells. 1: all of them do.",
    ),
    "library_size": Metric(
        "library size, KS", "fidelity", "lower", 0, 0, 1, "Kolmogorov-Smirnov, Massey 1951",
        "Largest gap between the distributions of the cells' sums over genes.",
    ),
    "types_present": Metric(
        "types present", "fidelity", "higher", 1, 0, 1, "share of the training cells' types",
        "Share of the training cells' types that were drawn at all.",
    ),
    "tstr_f1": Metric(
        "macro-F1, trained on synthetic", "utility", "higher", 1, 0, 1, "Esteban 2017",
        "How well a classifier that saw only synthetic cells names held-out ones, every type weighing the same.",
    ),
    "tstr_recall": Metric(
        "recall, trained on synthetic", "utility", "higher", 1, 0, 1, "Esteban 2017",
        "Share of a type's held-out cells found by a classifier that saw only synthetic ones, types weighing the same.",
    ),
    "augmentation_f1": Metric(
        "gain in macro-F1", "utility", "higher", 1, -1, 1, "Esteban 2017",
        "What macro-F1 gains if synthetic cells are added to the real training cells. Below 0 they do harm.",
    ),
    "augmentation_recall": Metric(
        "gain in recall", "utility", "higher", 1, -1, 1, "Esteban 2017",
        "What recall gains if synthetic cells are added to the real training cells. Below 0 they do harm.",
    ),
    "label_agreement_gap": Metric(
        "labels agree, gap", "utility", "lower", 0, 0, 1, "Breiman 2001",
        "How far the share of a type's synthetic cells that a classifier of real cells takes for it lies from that of "
        "its held-out cells: caricatures agree too well, wrong labels too seldom.",
    ),
    "lfc_slope": Metric(
        "log-fold changes, slope", "utility", "near", 1, -math.inf, math.inf, "Deming 1943; Hao 2021",
        "Whether markers differ between types as much as in held-out cells. Below 1 they differ less, above 1 more.",
    ),
    "lfc_correlation": Metric(
        "log-fold changes, correlation", "utility", "higher", 1, -1, 1, "Hao 2021",
        "Whether the marker genes that differ most between held-out types are those that do in synthetic ones.",
    ),
    "marker_overlap": Metric(
        "markers in common", "utility", "higher", 1, 0, 1, "Wilcoxon 1945",
        "Share of the 50 markers a type that are found again. Two samples of real cells are far from 1.",
    ),
    "copies": Metric(
        "copies", "privacy", "lower", 0, 0, 1, "gene by gene",
        "Share of synthetic cells that are a training cell, gene by gene.",
    ),
    "near_copies": Metric(
        "near copies", "privacy", "lower", 0.01, 0, 1, "1st percentile of held-out cells",
        "Share of synthetic cells nearer to a training cell than 99 % of the held-out cells are. 0.01 by chance.",
    ),
    "nearer_to_training": Metric(
        "nearer to training", "privacy", "lower", 0.5, 0, 1, "Platzer & Reutterer 2021",
        "Share of synthetic cells nearer to a training than to a held-out cell. 0.5 by chance; 1: all of them.",
    ),
    "dcr_ratio": Metric(
        "distance ratio", "privacy", "higher", 1, 0, math.inf, "Park 2018",
        "How far synthetic cells are from training cells, over how far from held-out ones. Below 1: copies.",
    ),
    "record_distance": Metric(
        "record distance", "privacy", "higher", math.nan, 0, math.inf, "Chen 2020",
        "Distance of a real cell to the nearest synthetic one. Compare training with held-out cells.",
    ),
    "record_ratio": Metric(
        "record distance ratio", "privacy", "higher", 1, 0, math.inf, "Chen 2020",
        "Distance of a training cell to the nearest synthetic one, over that of a held-out cell. Below 1: exposed.",
    ),
    "record_near_copies": Metric(
        "records nearly copied", "privacy", "lower", 0.01, 0, 1, "Chen 2020",
        "Share of real cells with a synthetic one nearer than 99 % of the held-out cells are to a training cell.",
    ),
    "attack_auc": Metric(
        "membership attack", "privacy", "lower", 0.5, 0, 1, "Hilprecht 2019; Chen 2020",
        "Chance to tell a training from a held-out cell by its distance to synthetic ones. 0.5: a guess; 1: always.",
    ),
    "calibrated_auc": Metric(
        "calibrated attack", "privacy", "lower", 0.5, 0, 1, "Chen 2020, calibrated",
        "The membership attack by one who also knows how near other real cells are. 0.5: a guess; 1: always.",
    ),
    "ari_gap": Metric(
        "ARI of clusters, off by", "clustering", "lower", 0, 0, 1.5, "Hubert & Arabie 1985",
        "Difference between the agreement of clusters with types in synthetic and in held-out cells.",
    ),
    "ari": Metric(
        "ARI of clusters", "clustering", "near", math.nan, -0.5, 1, "Hubert & Arabie 1985",
        "How far clusters of synthetic cells agree with the types. Best if as far as those of the real half.",
    ),
    "nmi": Metric(
        "NMI of clusters", "clustering", "near", math.nan, 0, 1, "Strehl & Ghosh 2002",
        "As ARI, by mutual information. It grows with the number of clusters.",
    ),
    "macro_f1": Metric(
        "macro-F1 of clusters", "clustering", "near", math.nan, 0, 1, "Kuhn 1955",
        "As ARI, each type matched with one cluster and weighing the same.",
    ),
    "w1_genes": Metric(
        "W1, genes", "published", "lower", 0, 0, math.inf, "Villani 2009; POT, Flamary 2021",
        "How far cells must be moved, on all genes, to turn the synthetic into the held-out ones.",
    ),
    "w1_genes_divided": Metric(
        "W1, genes, divided by cells", "published", "lower", 0, 0, math.inf, "published formula",
        "As W1 on genes, on values divided by numbers of cells: the published formula, a matter of size.",
    ),
    "training_seconds": Metric(
        "training, s", "cost", "lower", 0, 0, math.inf, "wall clock",
        "Seconds to learn from the training cells.",
    ),
    "sampling_seconds": Metric(
        "sampling, s", "cost", "lower", 0, 0, math.inf, "wall clock",
        "Seconds to draw as many cells.",
    ),
}  # fmt: skip
"""in the order of a table"""
