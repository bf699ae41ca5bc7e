"""What the default preset promises, on cells it has not seen."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.ensemble import RandomForestClassifier

from benchmarking.controls import copula
from common.comparison import make_views
from common.data import CellSource, load_cells, select_genes, split_cells
from common.evaluation import evaluate
from common.metrics.catalogue import ALL
from common.metrics.privacy import copies
from common.runs import Run
from config import GarageParams
from data_generation.model import fit, sample

FEW = 3  # cells left of a type
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")
def test_default_preset_beats_the_copula_on_held_out_halves():
    """And scVI, as the design measured it on the genes of pbmc3k: .77."""
    train, held = split_cells(load_cells(CellSource(input=SHARED / "pbmc3k.h5ad")), 0.5, seed=0)
    genes = select_genes(train, 1000)
    train, held = train[:, genes].copy(), held[:, genes].copy()
    synthetic = sample(fit(train, GarageParams(), seed=0, device="cpu"), train.n_obs, seed=0)
    rival = copula.sample(copula.fit(train, seed=0), train.n_obs, seed=0)
    run = Run(SHARED, "pbmc3k", "garage", 0, "halves", {}, None, train, held, synthetic, None)

    def judge(cells: AnnData) -> pd.Series:
        found = evaluate(replace(run, synthetic=cells), families=["fidelity"])
        return found[found["group"] == ALL].set_index("metric")["value"]

    ours, theirs = judge(synthetic), judge(rival)
    assert ours["types_present"] == 1
    assert ours["rf_auroc_genes"] < min(0.71, theirs["rf_auroc_genes"])
    assert ours["rf_auroc_pcs"] < min(0.61, theirs["rf_auroc_pcs"])
    assert ours["coverage_pcs"] > max(0.91, theirs["coverage_pcs"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_three_cells_of_a_type_are_enough_to_draw_that_type(seed):
    """A classifier of held-out cells recognises most of them, and none is a copy."""
    train, held = split_cells(load_cells(CellSource(dataset="pbmc68k")), 0.5, seed=seed)
    rare = "CD19+ B"
    own = np.flatnonzero(train.obs["cell_type"] == rare)
    left_out = np.random.default_rng(seed).permutation(own)[FEW:]
    train = train[np.setdiff1d(np.arange(train.n_obs), left_out)].copy()
    drawn = sample(fit(train, GarageParams(), seed=seed, device="cpu"), 60, cell_type=rare, seed=seed)
    real, learnt, synthetic = make_views(held, train, drawn)
    forest = RandomForestClassifier(400, class_weight="balanced", random_state=0).fit(real.pcs, real.labels)
    assert (forest.predict(synthetic.pcs) == rare).mean() > 0.5
    assert copies(learnt.X, synthetic.X) == 0
