"""Any generator's cells with their marginals calibrated as GARAGE's are (`data_generation.calibration`).

Calibration is a step that any generator could take. Where a rival is judged a second time with it, what is left of the
difference lies in the dependence between genes.
"""

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData

from common.checks import drop_empty_cells
from common.data import types_of
from config import GarageParams
from data_generation.calibration import Calibration, Ranking, interpolate, match_detection, quantile_levels
from data_generation.seeded_gan import TrainingCells
from data_generation.synthesis import size_quantiles


def calibrate(drawn: AnnData, train: AnnData, params: GarageParams, *, seed: int) -> AnnData:
    """Give each gene of each type the distribution of the training cells, the ranks of the drawn cells kept.

    As GARAGE's own cells, those of read, log and linear data also get what the number of detected genes needs to
    scatter as in the training cells (`match_detection`): there ranks move by as much.

    The drawn cells themselves are the reference sample of their generator. Library sizes, which normalised values need
    on their way back to counts, keep their ranks too.

    Parameters
    ----------
    drawn, train
        Cells with obs cell_type and `uns["scale"]`, of the same genes, both on the scale of the training cells.
    params
        Those of calibration: what is ranked, and how far the generator's own marginals are trusted.

    Returns
    -------
    As many cells as were drawn. Those of types that the training cells lack stay as they are.
    """
    train, _ = drop_empty_cells(train)  # those that the choice of genes left empty; no generator learns from them
    scale, device = train.uns["scale"], torch.device("cpu")
    names, types = np.unique(types_of(train), return_inverse=True)
    real = TrainingCells.on(device, sp.csr_matrix(train.X), types, scale)
    labels = types_of(drawn)
    x = real.rows(torch.arange(real.n_cells))
    ranking = Ranking.of([x], scale, real.target_sum, params.calibrate_on)
    rng = torch.Generator().manual_seed(seed)
    ranked = ranking.to_rank(x, rng)
    floor, ceiling = x.min(0).values.clamp_max(0), ranking.highest(x).max(0).values

    maps, cells_of = {}, {}
    for t in np.unique(types):
        rows = np.flatnonzero(labels == names[t])
        if len(rows):
            cells = TrainingCells.on(device, sp.csr_matrix(drawn.X[rows]), np.full(len(rows), t), scale)
            own = ranking.to_rank(cells.rows(torch.arange(len(rows))), rng)
            maps[t] = Calibration.fit(ranked[real.types == t], own, floor, ceiling, prior=params.calibration_prior)
            cells_of[t] = rows, cells.size.squeeze(1), own
    if params.calibrate_detection and not ranking.counts:
        detected = (ranking.normalise(x) > floor).sum(1).double()
        ranks = [maps[t].ranks(own, rng) for t, (_, _, own) in cells_of.items()]
        matched = match_detection(list(maps.values()), ranks, [detected[real.types == t] for t in maps], rng)
        maps = dict(zip(maps, matched, strict=True))

    calibrated = sp.csr_matrix(drawn.X, dtype=np.float32).toarray()
    for t, (rows, own_size, own) in cells_of.items():
        order = own_size.argsort(stable=True).argsort()
        sizes = size_quantiles(real.size.squeeze(1), real.types, t, params.calibration_prior)
        size = interpolate((order[None] + 0.5) / len(rows), quantile_levels()[None], sizes[None]).T
        x = ranking.from_rank(maps[t].apply(own, rng), size)
        calibrated[rows] = (x.expm1() if scale == "linear" else x).numpy()
    return AnnData(sp.csr_matrix(calibrated), obs=drawn.obs.copy(), var=drawn.var.copy(), uns=dict(drawn.uns))
