"""Stage 1: which cells are worth starting from (paper, "Seed cell selection").

The cells that together are attended to (`attention.py`) by most others, a quota from every type, become the seeds of
stage 2. The cells of highest attention, which the paper takes, are neighbours of one another: they leave out whatever
the labels do not name (docs/findings.md).
"""

import heapq
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from common.cli import Reporter
from common.data import rare_types
from common.errors import UserError
from common.run import Checkpoint, no_checkpoint
from config import SelectionParams
from data_generation.attention import average_attention, cell_attention, graph_features, knn_graph, train_attention

LEAST_LISTENERS = 3  # of its type, for a cell to stand for its neighbourhood: of fewer it would tell too much


@dataclass(frozen=True)
class Selection:
    """What stage 1 found out about every training cell.

    Shapes: attention, is_seed, is_rare (n_cells,); neighborhood (n_seeds, n_cells), rows in the order of
    `np.flatnonzero(is_seed)`, columns as `seed_neighborhoods` returns them.
    """

    attention: np.ndarray
    is_seed: np.ndarray
    is_rare: np.ndarray
    neighborhood: sp.csr_matrix
    accuracy: float
    """share of cells the network classifies correctly: held-back ones if there are any, otherwise training cells"""

    def state(self) -> dict[str, Any]:
        """Return everything as tensors, numbers and lists, for a checkpoint."""
        hood = self.neighborhood
        arrays = {name: torch.from_numpy(getattr(self, name)) for name in ("attention", "is_seed", "is_rare")}
        parts = {name: torch.from_numpy(getattr(hood, name)) for name in ("data", "indices", "indptr")}
        return {**arrays, "neighborhood": {**parts, "shape": list(hood.shape)}, "accuracy": self.accuracy}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Selection":
        """Rebuild a selection from `state`."""
        arrays = {name: state[name].numpy() for name in ("attention", "is_seed", "is_rare")}
        parts = state["neighborhood"]
        hood = sp.csr_matrix(
            tuple(parts[name].numpy() for name in ("data", "indices", "indptr")), shape=tuple(parts["shape"])
        )
        return cls(**arrays, neighborhood=hood, accuracy=state["accuracy"])


def seed_quota(sizes: np.ndarray, n_seeds: int, is_rare: np.ndarray, priority_weight: float) -> np.ndarray:
    """Share seeds out among types: one each, the rest by highest averages (D'Hondt), rare cells counting more.

    Parameters
    ----------
    sizes
        Cells of each type, shape (n_types,).
    n_seeds
        Seeds to share out; raised to the number of types, so that no type goes without.
    is_rare
        Shape (n_types,); a rare type's cells count 1 + priority_weight.

    Returns
    -------
    Seeds of each type, shape (n_types,), never more than its cells.
    """
    quota = np.minimum(sizes, 1)
    votes = sizes * np.where(is_rare, 1.0 + priority_weight, 1.0)
    queue = [(-votes[t] / 2, t) for t in range(len(sizes)) if sizes[t] > 1]
    heapq.heapify(queue)
    for _ in range(min(n_seeds, int(sizes.sum())) - int(quota.sum())):
        _, t = heapq.heappop(queue)
        quota[t] += 1
        if quota[t] < sizes[t]:
            heapq.heappush(queue, (-votes[t] / (quota[t] + 1), t))
    return quota


def farthest_first(features: np.ndarray) -> np.ndarray:
    """Order cells so that each is the one farthest from all before it (k-centre, Gonzalez 1985), from the middle on.

    Parameters
    ----------
    features
        Shape (n_cells, n_features).

    Returns
    -------
    Cell indices of shape (n_cells,): the first k of them are k centres.
    """
    order = [int(np.square(features - features.mean(0)).sum(1).argmin())]
    nearest = np.full(len(features), np.inf)
    for _ in range(len(features) - 1):
        nearest = np.minimum(nearest, np.square(features - features[order[-1]]).sum(1))
        nearest[order[-1]] = -1.0  # never again, even where all that are left coincide
        order.append(int(nearest.argmax()))
    return np.array(order)


def farthest_reach_first(paid: sp.csr_matrix) -> np.ndarray:
    """Order cells so that each adds most to what all before it are paid, if a cell pays but once (Kempe et al. 2003).

    With a set S of seeds, the sum over cells of the most that each pays to one of S is submodular: taking the cell
    that adds most, again and again, comes within 1 - 1/e of the best set of any size.

    Parameters
    ----------
    paid
        What each cell (column) pays to each other (row), shape (n_cells, n_cells).

    Returns
    -------
    Cell indices of shape (n_cells,).
    """
    n_cells = paid.shape[0]
    most = np.zeros(n_cells)  # that each cell pays to one of those in order
    start, listeners, pays = paid.indptr, paid.indices, paid.data
    # what a cell adds only falls: one that is still ahead of all others' last known gain is the next
    queue = [(-float(pays[start[i] : start[i + 1]].sum()), i) for i in range(n_cells)]
    heapq.heapify(queue)
    order = []
    while queue:
        _, i = queue[0]
        mine = slice(start[i], start[i + 1])
        adds = float(np.maximum(pays[mine] - most[listeners[mine]], 0).sum())
        heapq.heapreplace(queue, (-adds, i))
        if queue[0][1] == i:
            heapq.heappop(queue)
            order.append(i)
            most[listeners[mine]] = np.maximum(most[listeners[mine]], pays[mine])
    return np.array(order)


def seed_scores(
    attention: np.ndarray, edge_index: np.ndarray, features: np.ndarray, types: np.ndarray, params: SelectionParams, *,
    seed: int, paid: sp.csr_matrix | None = None,
) -> np.ndarray:  # fmt: skip
    """Score each cell's fitness as a seed by `params.seeds_by`.

    Parameters
    ----------
    attention
        From `cell_attention`.
    edge_index, features
        The graph, self loops or not, and what it was built on. Centres, and cells of most reach, are sought within each
        type if seeds are shared out by type, and among all cells otherwise.
    paid
        From `kin_payments`, for seeds by reach.

    Returns
    -------
    Shape (n_cells,), higher is better; cells of equal degree in random order.
    """
    n_cells, rng = len(types), np.random.default_rng(seed)
    if params.seeds_by == "random":
        return rng.random(n_cells)
    if params.seeds_by == "degree":
        source, target = edge_index
        return np.bincount(source[source != target], minlength=n_cells) + rng.random(n_cells)
    if params.seeds_by == "attention":
        return attention
    scores = np.empty(n_cells)
    group = types if params.rare_quota else np.zeros_like(types)
    for t in np.unique(group):
        members = np.flatnonzero(group == t)
        if params.seeds_by == "reach":
            assert paid is not None
            order = farthest_reach_first(paid[members][:, members])
        else:
            order = farthest_first(features[members])
        scores[members[order]] = -np.arange(len(members))
    return scores


def choose_seeds(scores: np.ndarray, types: np.ndarray, is_rare: np.ndarray, params: SelectionParams) -> np.ndarray:
    """Choose ceil(leakage x n_cells) seeds, at least one a type: those of highest score, by the type's quota.

    Parameters
    ----------
    scores
        Shape (n_cells,), from `seed_scores`.

    Returns
    -------
    Boolean mask of shape (n_cells,). With `params.rare_only` no more than there are rare cells.

    Raises
    ------
    UserError
        If seeds are to be rare, and no cell is.
    """
    is_seed = np.zeros(len(types), dtype=bool)
    n_seeds = int(np.ceil(round(params.leakage * len(types), 6)))  # 0.07 x 100 is a little more than 7
    if n_seeds == 0:
        return is_seed
    best_first = np.argsort(-scores, kind="stable")
    if params.rare_only:
        if not is_rare.any():
            raise UserError("--rare-only, but no type is rare: raise --rare-threshold")
        best_first = best_first[is_rare[best_first]]
    if not params.rare_quota:
        is_seed[best_first[:n_seeds]] = True
        return is_seed
    sizes = np.bincount(types[best_first], minlength=int(types.max()) + 1)
    type_is_rare = np.bincount(types, is_rare) > 0
    for t, quota in enumerate(seed_quota(sizes, n_seeds, type_is_rare, params.priority_weight)):
        is_seed[best_first[types[best_first] == t][:quota]] = True
    return is_seed


def kin_payments(edge_index: np.ndarray, alpha: np.ndarray, types: np.ndarray) -> sp.csr_matrix:
    """Return what cells pay to others of their type, if these have `LEAST_LISTENERS` of it.

    Parameters
    ----------
    edge_index, alpha
        As `train_attention` returns them.

    Returns
    -------
    Shape (n_cells, n_cells): a row for the cell that is paid, a column for the one that listens.
    """
    source, target = edge_index
    kin = (source != target) & (types[source] == types[target])
    kin &= np.bincount(source[kin], minlength=len(types))[source] >= LEAST_LISTENERS
    shape = (len(types), len(types))
    paid = sp.csr_matrix((alpha[kin].astype(np.float64), (source[kin], target[kin])), shape)
    paid.sort_indices()  # what random numbers choose depends on the order
    return paid


def seed_neighborhoods(paid: sp.csr_matrix, seeds: np.ndarray) -> sp.csr_matrix:
    """Share each cell out among the seeds that it listens to, in proportion to what it pays them.

    So a seed stands for its listeners, and many seeds in one place do not make it more than it is.

    Parameters
    ----------
    paid
        From `kin_payments`.
    seeds
        Cell indices, shape (n_seeds,).

    Returns
    -------
    Shape (n_seeds, n_cells). Columns sum to 1, or to 0 for a cell that listens to no seed; a seed is never in its own
    row, and one with fewer than `LEAST_LISTENERS` of its type, as all have in types of three cells, stands for none.
    """
    of_seeds = paid[seeds]
    total = np.asarray(of_seeds.sum(0)).ravel()
    return sp.csr_matrix(of_seeds @ sp.diags(1 / np.where(total > 0, total, 1.0)))


def select(
    log_values: sp.csr_matrix,
    types: np.ndarray,
    params: SelectionParams,
    *,
    seed: int,
    device: torch.device,
    report: Reporter,
    state: dict[str, Any] | None = None,
    checkpoint: Checkpoint = no_checkpoint,
) -> Selection:
    """Run stage 1.

    Parameters
    ----------
    log_values
        Log-normalised expression of shape (n_cells, n_genes).
    types
        Type codes of shape (n_cells,), 0 to n_types - 1.
    """
    n_cells = len(types)
    is_rare = rare_types(types, params.rare_threshold)
    features = graph_features(log_values, params, seed=seed)
    edges = knn_graph(features, params.neighbors, symmetric=params.graph_symmetric, seed=seed)
    train = partial(train_attention, features, edges, types, is_rare, params, device=device, report=report)
    edges, alpha, accuracy = average_attention(
        train, params.gat_networks, seed=seed, state=state, checkpoint=checkpoint
    )
    attention = cell_attention(edges, alpha, n_cells)
    paid = kin_payments(edges, alpha, types)
    scores = seed_scores(attention, edges, features, types, params, seed=seed, paid=paid)
    is_seed = choose_seeds(scores, types, is_rare, params)
    return Selection(attention, is_seed, is_rare, seed_neighborhoods(paid, np.flatnonzero(is_seed)), accuracy)
