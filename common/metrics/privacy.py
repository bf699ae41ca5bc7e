"""What synthetic cells give away about the cells that a generator learnt from.

Held-out cells say how near an unseen cell would come: every measure compares what training cells suffer with what
they do. Two views: of the synthetic cells (is this one a training cell, or suspiciously near one?), and of the records,
the real cells (can someone who has a cell tell whether it was used?). Only empirical attacks by distance are tried: a
bad value proves a leak, a good one proves nothing.
"""

from collections import defaultdict

import numpy as np
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

from common.metrics.catalogue import ALL, HELD, OTHERS, SEEDS, Scores
from common.metrics.fidelity import auroc

N_THINNINGS = 10
NEAR = 0.01  # share of held-out cells that are nearer to a training cell than a near copy may be


def copies(training: np.ndarray | sparse.spmatrix, synthetic: np.ndarray | sparse.spmatrix) -> float:
    """Share of synthetic cells that are a training cell, gene by gene: from 0 to 1, lower is better, ideally 0.

    Cells are hashed by which genes they express; values may differ by a relative 1e-5. NaN without synthetic cells.

    Parameters
    ----------
    training, synthetic
        Expression of shape (n_cells, n_genes), both on the same scale.
    """
    known: defaultdict[bytes, list[np.ndarray]] = defaultdict(list)
    for genes, values in _expressed(training):
        known[genes].append(values)
    stacked = {genes: np.stack(rows) for genes, rows in known.items()}
    found = [genes in stacked and _is_among(values, stacked[genes]) for genes, values in _expressed(synthetic)]
    return float(np.mean(found)) if found else float("nan")


def _expressed(X: np.ndarray | sparse.spmatrix) -> list[tuple[bytes, np.ndarray]]:
    """Return which genes each cell expresses, as bytes to hash, and how much."""
    X = sparse.csr_matrix(X, copy=True)
    X.sum_duplicates()
    X.eliminate_zeros()
    genes, values = (np.split(array, X.indptr[1:-1]) for array in (X.indices.astype(np.int64), X.data))
    return [(which.tobytes(), much) for which, much in zip(genes, values, strict=True)][: X.shape[0]]


def _is_among(values: np.ndarray, rows: np.ndarray) -> bool:
    for columns in (slice(1), slice(None)):  # one gene rules out most where all cells express the same
        rows = rows[np.isclose(rows[:, columns], values[columns]).all(1)]
    return len(rows) > 0


def nearness(training: np.ndarray, held: np.ndarray, synthetic: np.ndarray, *, seed: int) -> Scores:
    """Compare the distances from synthetic cells to the closest training and to the closest held-out cell.

    If one side has more cells, it is thinned at random to the size of the other, ten times over, and the mean is given:
    the more cells, the nearer the nearest.

    Parameters
    ----------
    training, held, synthetic
        Shape (n_cells, n_pcs), components of all three together.
    seed
        Of the thinning.

    Returns
    -------
    Under the group "all cells"; NaN where a side has no cells:

    nearer_to_training
        Share of synthetic cells nearer to a training cell, ties counting half: from 0 to 1, ideally 0.5, above it cells
        are copied (Platzer & Reutterer 2021; as a test, Meehan et al. 2020).
    dcr_ratio
        Median distance to the closest training cell over that to the closest held-out cell (distance to closest record,
        Park et al. 2018): at least 0, ideally 1, below it cells are copied. NaN if the latter is 0.
    near_copies
        Share of synthetic cells nearer to a training cell than 99 % of the held-out cells are: from 0 to 1, ideally
        0.01, above it cells are copied.
    """
    rng, n = np.random.default_rng(seed), min(len(training), len(held))
    shares, ratios = [], []
    for _ in range(1 if len(training) == len(held) else N_THINNINGS):
        to_training, to_held = (
            _closest(synthetic, side if len(side) == n else rng.choice(side, n, replace=False))
            for side in (training, held)
        )
        # a cell on both sides would be nearer to one of them by its last bits
        tied = np.isclose(to_training, to_held)
        shares.append(_mean(np.where(tied, 0.5, to_training < to_held)) if n else np.nan)
        ratios.append(_ratio(to_training, to_held))
    return {
        ("nearer_to_training", ALL): float(np.mean(shares)),
        ("dcr_ratio", ALL): float(np.mean(ratios)),
        ("near_copies", ALL): _share_below(_closest(synthetic, training), _near(training, held)),
    }


def exposure(
    training: np.ndarray, held: np.ndarray, synthetic: np.ndarray, *, is_seed: np.ndarray | None, seed: int
) -> Scores:
    """Attack real cells by their distance to the closest synthetic cell, held-out cells being those never used.

    Parameters
    ----------
    training, held, synthetic
        As in `nearness`. The more synthetic cells, the nearer the nearest: compare generators at the same number.
    is_seed
        Mask of the training cells that the generator had as seeds; None leaves out the two groups it makes.
    seed
        Of the halves of the held-out cells.

    Returns
    -------
    Under "all cells" (of the training), "seed cells", "other training cells" and "held-out cells"; NaN for a group
    without cells:

    record_distance
        Median distance to the closest synthetic cell: at least 0, in the unit of the components.
    record_ratio
        The same over that of the held-out cells: ideally 1, below it the group is exposed.
    record_near_copies
        Share of the group with a synthetic cell nearer than 99 % of the held-out cells are to a training cell: from 0
        to 1, ideally that of the held-out cells, above it the group is exposed.
    attack_auc
        Membership inference by that distance: AUROC of the group against held-out cells, from 0 to 1, ideally 0.5,
        above it the group is exposed (Hilprecht et al. 2019; GAN-Leaks, Chen et al. 2020). A group that is no random
        sample, such as seeds from the centre of their types, is told although nothing leaks.
    calibrated_auc
        The same by the distance relative to that to the closest other real cell, which is as short in the centre of a
        type (calibration of GAN-Leaks, with real cells for reference). It is fair to such a group as far as synthetic
        cells are spread as real ones are: where they crowd in the centre it rises, where they keep away it falls.

    For the held-out cells, attacks take one random half for used: what they find where there is nothing to find.
    """
    near = _near(training, held)
    used, unused = _closest(training, synthetic), _closest(held, synthetic)
    # other cells of both sides: a held-out cell has one other held-out cell less than a training cell has
    to_real = _closest(np.concatenate([training, held]))
    relative, relative_unused = _compare(used, to_real[: len(used)]), _compare(unused, to_real[len(used) :])
    half = np.random.default_rng(seed).permutation(len(held)) < len(held) // 2

    groups = {ALL: np.ones(len(training), bool)}
    if is_seed is not None:
        groups |= {SEEDS: is_seed, OTHERS: ~is_seed}
    scores: Scores = {}
    for group, rows in groups.items():
        scores |= _distances(group, used[rows], unused, near)
        scores["attack_auc", group] = _attack(used[rows], unused)
        scores["calibrated_auc", group] = _attack(relative[rows], relative_unused)
    scores |= _distances(HELD, unused, unused, near)
    scores["attack_auc", HELD] = _attack(unused[half], unused[~half])
    scores["calibrated_auc", HELD] = _attack(relative_unused[half], relative_unused[~half])
    return scores


def _distances(group: str, mine: np.ndarray, unused: np.ndarray, near: float) -> Scores:
    return {
        ("record_distance", group): float(np.median(mine)) if len(mine) else float("nan"),
        ("record_ratio", group): _ratio(mine, unused),
        ("record_near_copies", group): _share_below(mine, near),
    }


def _attack(used: np.ndarray, unused: np.ndarray) -> float:
    """Take the nearer for used."""
    return auroc(-unused, -used)


def _compare(to_synthetic: np.ndarray, to_real: np.ndarray) -> np.ndarray:
    """Return a distance relative to another, from -1 to 1: it orders as their quotient does, but knows 0 / 0."""
    both = to_synthetic + to_real
    return np.divide(to_synthetic - to_real, both, out=np.zeros(len(both)), where=both != 0)


def _closest(cells: np.ndarray, to: np.ndarray | None = None) -> np.ndarray:
    """Return each cell's distance to the closest of others, or of its own group; NaN if there is none."""
    others = len(cells) - 1 if to is None else len(to)
    if not len(cells) or others < 1:
        return np.full(len(cells), np.nan)
    search = NearestNeighbors(n_neighbors=1).fit(np.float64(cells if to is None else to))
    found: np.ndarray = search.kneighbors(None if to is None else np.float64(cells))[0][:, 0]
    return found


def _near(training: np.ndarray, held: np.ndarray) -> float:
    return float(np.quantile(_closest(held, training), NEAR)) if len(held) else float("nan")


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _share_below(distances: np.ndarray, limit: float) -> float:
    known = len(distances) and not np.isnan(distances).any() and not np.isnan(limit)
    return float((distances < limit).mean()) if known else float("nan")


def _ratio(distances: np.ndarray, reference: np.ndarray) -> float:
    """Return the quotient of two medians."""
    unit = np.median(reference) if len(reference) else 0.0
    return float(np.median(distances) / unit) if len(distances) and unit > 0 else float("nan")
