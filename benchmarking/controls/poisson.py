"""Control: Poisson counts with the mean of the type. One line of statistics, and the bar for every network."""

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from data_generation.model import compose


def fit(cells: AnnData, params: None = None, *, seed: int, device: str = "cpu") -> AnnData:
    """Keep the mean profile of each type, as one row a type with obs["n_cells"]. Counts only."""
    sizes = cells.obs["cell_type"].value_counts().sort_index()
    means = np.stack([np.asarray(cells[cells.obs["cell_type"] == name].X.mean(0)).ravel() for name in sizes.index])
    obs = pd.DataFrame({"n_cells": sizes.to_numpy()}, index=sizes.index.astype(str))
    return AnnData(means, obs=obs, var=cells.var[[]], uns=dict(cells.uns))


def sample(model: AnnData, n_cells: int, *, cell_type: str | None = None, seed: int) -> AnnData:
    """Draw every gene of a cell on its own."""
    rng = np.random.default_rng(seed)
    weights = model.obs["n_cells"].to_numpy() * (1 if cell_type is None else model.obs_names == cell_type)
    types = np.repeat(np.arange(model.n_obs), compose(weights, n_cells))
    X = sp.csr_matrix(rng.poisson(model.X[types]).astype(np.float32))
    obs = pd.DataFrame({"cell_type": model.obs_names[types]}, index=[f"synthetic_{i}" for i in range(n_cells)])
    return AnnData(X, obs=obs, var=model.var, uns=dict(model.uns))
