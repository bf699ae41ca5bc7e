"""Attention of the cells on their neighbour graph: the first half of stage 1 (paper, "Seed cell selection").

A graph attention network (Velickovic et al. 2018, arXiv:1710.10903) learns the cell types on the cell-cell kNN graph.
What the network's second layer pays to a cell, from the cells that listen to it, is that cell's attention.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from common.cli import Reporter
from common.disk import row_blocks
from common.run import Checkpoint, no_checkpoint
from common.threads import torch_threads_kept
from config import SelectionParams

EXACT_UP_TO = 20_000  # cells; beyond this principal components are those of so many, neighbours are approximate, and
# the attention network learns from batches
BATCH_CELLS = 512  # cells of such a batch
VALIDATION_CELLS = 256  # cells that it is judged by
FAN_OUT = 4  # neighbours that each cell of a batch listens to at most
READ_AT_ONCE = 4000  # cells of those many whose attention is read together, which bounds memory


def graph_features(log_values: sp.csr_matrix, params: SelectionParams, *, seed: int) -> np.ndarray:
    """Represent each cell for the neighbour search and the attention network.

    Parameters
    ----------
    log_values
        Log-normalised expression of shape (n_cells, n_genes).

    Returns
    -------
    Array of shape (n_cells, n_features): principal components in units of the first one's standard deviation, or the
    genes themselves.
    """
    if params.graph_on == "genes":
        return log_values.toarray().astype(np.float32)
    some, n_cells = log_values, log_values.shape[0]
    if n_cells > EXACT_UP_TO:
        some = log_values[np.sort(np.random.default_rng(seed).choice(n_cells, EXACT_UP_TO, replace=False))]
    n_pcs = min(params.graph_pcs, min(some.shape) - 1)
    varies = (some.max(axis=0) != some.min(axis=0)).nnz > 0
    if n_pcs < 1 or not varies:
        return log_values.toarray().astype(np.float32)
    pca = PCA(n_pcs, svd_solver="arpack", random_state=seed)
    if n_cells > EXACT_UP_TO:
        pca.fit(some)
        pcs = np.concatenate([pca.transform(block) for block in row_blocks(log_values)])
    else:
        pcs = pca.fit_transform(log_values)
    return (pcs / (pcs[:, 0].std() or 1.0)).astype(np.float32)


def knn_graph(features: np.ndarray, n_neighbors: int, *, symmetric: bool, seed: int) -> np.ndarray:
    """Connect every cell to its nearest neighbours (Euclidean).

    Parameters
    ----------
    features
        Shape (n_cells, n_features).
    n_neighbors
        Neighbours of a cell, the cell itself among them; cut to the number of cells.
    symmetric
        Keep an edge both ways when it exists one way.

    Returns
    -------
    Edges of shape (2, n_edges), source above target, sorted, without self loops. An edge runs from the neighbour to the
    cell: the cell listens to its neighbour.
    """
    n_cells = len(features)
    k = min(n_neighbors, n_cells)
    if n_cells <= EXACT_UP_TO:
        search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(features)
        found = search.kneighbors(features, return_distance=False)
    else:
        from pynndescent import NNDescent  # numba compiles for seconds: only the large pay

        with torch_threads_kept():
            found, _ = NNDescent(features, n_neighbors=k, random_state=seed).neighbor_graph
    target = np.repeat(np.arange(n_cells), k)
    source = found.ravel()
    others = source != target
    joined = sp.csr_matrix((np.ones(others.sum(), dtype=bool), (source[others], target[others])), (n_cells, n_cells))
    if symmetric:
        joined = joined + joined.T
    joined.sort_indices()
    return np.stack(joined.nonzero()).astype(np.int64)


class AttentionNet(nn.Module):
    """Two graph attention layers: heads x hidden features, then one head over the types.

    Shapes: x (n_cells, n_features), edge_index (2, n_edges) -> logits (n_cells, n_types) and, from the second layer,
    (edge_index', alpha) where alpha of shape (n_edges', 1) belongs to edge_index', which has self loops appended.
    """

    def __init__(self, n_features: int, n_types: int, params: SelectionParams) -> None:
        from torch_geometric.nn import GATConv  # takes two seconds, which only those who learn should wait

        super().__init__()
        self.hidden = GATConv(n_features, params.gat_hidden, heads=params.gat_heads)
        self.out = GATConv(params.gat_hidden * params.gat_heads, n_types, heads=1)

    def forward(self, x: Tensor, edge_index: Tensor, scale: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Classify cells; `scale` (n_cells, 1) multiplies their hidden features."""
        return self.out(self.hide(x, edge_index, scale), edge_index, return_attention_weights=True)

    def hide(self, x: Tensor, edge_index: Tensor, scale: Tensor) -> Tensor:
        """Return the hidden features, shape (n_cells, heads x hidden)."""
        return F.relu(self.hidden(x, edge_index) * scale)


class ListenerGraph:
    """The graph by listener, from which the surroundings of some cells are cut out."""

    def __init__(self, edge_index: np.ndarray, n_cells: int) -> None:
        source, target = edge_index
        order = np.lexsort((source, target))
        self.sources = source[order]
        self.degree = np.bincount(target, minlength=n_cells)
        self.start = np.cumsum(self.degree) - self.degree

    def _into(self, cells: np.ndarray, fan_out: int | None, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return sources and targets of the edges into some cells, at most `fan_out` a cell, drawn at random."""
        degree = self.degree[cells]
        first = np.cumsum(degree) - degree
        edge = np.arange(degree.sum()) - np.repeat(first - self.start[cells], degree)
        target = np.repeat(cells, degree)
        if fan_out is not None and len(edge):
            place = np.repeat(np.arange(len(cells)), degree)
            shuffled = np.lexsort((rng.random(len(edge)), place))
            kept = np.sort(shuffled[np.arange(len(edge)) - first[place] < fan_out])
            edge, target = edge[kept], target[kept]
        return self.sources[edge], target

    def around(
        self, cells: np.ndarray, *, hops: int, fan_out: int | None, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cut out what some cells listen to, directly or through `hops - 1` others.

        Parameters
        ----------
        cells
            Indices, each once.
        fan_out
            Cells that each listens to at most; None takes all.

        Returns
        -------
        Indices of the cells of this part, the given ones first; and its edges of shape (2, n_edges), which number them.
        """
        nodes, listeners, edges = cells, cells, []
        for _ in range(hops):
            edges.append(np.stack(self._into(listeners, fan_out, rng)))
            listeners = np.setdiff1d(edges[-1][0], nodes)
            nodes = np.concatenate([nodes, listeners])
        number = np.empty(len(self.degree), dtype=np.int64)
        number[nodes] = np.arange(len(nodes))
        return nodes, number[np.concatenate(edges, axis=1)]


def split_validation(types: np.ndarray, fraction: float, rng: torch.Generator) -> np.ndarray:
    """Hold back a share of every type (rounded down, so that small types keep all their cells).

    Returns
    -------
    Boolean mask of shape (n_cells,), true for cells held back.
    """
    held = np.zeros(len(types), dtype=bool)
    for t in np.unique(types):
        members = np.flatnonzero(types == t)
        shuffled = members[torch.randperm(len(members), generator=rng).numpy()]
        held[shuffled[: int(fraction * len(members))]] = True
    return held


class AttentionTraining:
    """A network that learns the cell types on the graph, and what early stopping remembers of it.

    Up to `EXACT_UP_TO` cells an epoch is a step on all of them, beyond that one on a batch and its surroundings.

    Parameters
    ----------
    features, edge_index
        From `graph_features` and `knn_graph`.
    types
        Type codes of shape (n_cells,), 0 to n_types - 1.
    is_rare
        Shape (n_cells,); these cells carry the priority weight.
    """

    def __init__(
        self, features: np.ndarray, edge_index: np.ndarray, types: np.ndarray, is_rare: np.ndarray,
        params: SelectionParams, *, seed: int, device: torch.device,
    ) -> None:  # fmt: skip
        self.params, self.seed, self.device, self.types = params, seed, device, types
        self.is_held = split_validation(types, params.gat_validation, torch.Generator().manual_seed(seed))
        self.x = torch.from_numpy(features).to(device)
        self.y = torch.from_numpy(types.astype(np.int64)).to(device)
        priority = torch.where(torch.from_numpy(is_rare).to(device), 1.0 + params.priority_weight, 1.0)
        self.weight = torch.ones_like(priority)
        if params.gat_balanced:
            self.weight = self.weight / torch.bincount(self.y).clamp(min=1)[self.y]
        self.scale = torch.ones_like(priority)[:, None]
        if params.priority_on == "loss":
            self.weight = self.weight * priority
        else:
            self.scale = priority[:, None]

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # PyG initialises from the global generator
            self.net = AttentionNet(features.shape[1], int(types.max()) + 1, params)
        self.net.to(device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=params.gat_lr)
        self.epoch, self.best, self.best_epoch, self.best_weights = 0, float("inf"), 0, self.net.state_dict()

        self.graph = ListenerGraph(edge_index, len(types))
        self.learnt, self.judged = np.flatnonzero(~self.is_held), np.flatnonzero(self.is_held)
        self.has_validation = len(self.judged) > 0
        self.whole: tuple[Tensor, Tensor] | None = None
        if len(types) > EXACT_UP_TO:
            self.judged = np.random.default_rng(seed).permutation(self.judged)[:VALIDATION_CELLS]
        else:
            self.whole = self._part_around(np.arange(len(types)), hops=1, fan_out=None, part_seed=0)

    def state(self) -> dict[str, Any]:
        """Return what `load` goes on from."""
        return {
            "net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "epoch": self.epoch,
            "best": self.best, "best_epoch": self.best_epoch, "best_weights": self.best_weights,
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.best, self.best_epoch, self.best_weights = (
            state[name] for name in ("epoch", "best", "best_epoch", "best_weights")
        )

    @property
    def is_done(self) -> bool:
        """Whether all epochs were taken, or held-back cells have waited too long for a better one."""
        waited = self.has_validation and self.epoch - self.best_epoch >= self.params.gat_patience
        return self.epoch >= self.params.gat_epochs or waited

    def _part_around(
        self, cells: np.ndarray, *, hops: int, fan_out: int | None, part_seed: int
    ) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, part_seed))
        nodes, edges = self.graph.around(cells, hops=hops, fan_out=fan_out, rng=rng)
        return torch.from_numpy(nodes).to(self.device), torch.from_numpy(edges).to(self.device)

    def take_epoch(self) -> Tensor:
        """Take a step, and keep the weights before it if they were the best so far; return the loss."""
        if self.whole is None:  # drawn by the number of the epoch alone, so that a resumed run draws the same
            rng = np.random.default_rng((self.seed, self.epoch))
            batch = rng.choice(self.learnt, min(BATCH_CELLS, len(self.learnt)), replace=False)
            cells = np.concatenate([batch, self.judged])
            nodes, edges = self._part_around(cells, hops=2, fan_out=FAN_OUT, part_seed=self.epoch)
        else:
            cells, (nodes, edges) = np.arange(len(self.types)), self.whole
        held, mine = torch.from_numpy(self.is_held[cells]).to(self.device), nodes[: len(cells)]
        logits, _ = self.net(self.x[nodes], edges, self.scale[nodes])
        losses = self.weight[mine] * F.cross_entropy(logits[: len(cells)], self.y[mine], reduction="none")
        loss = losses[~held].sum() / self.weight[mine][~held].sum()
        if self.has_validation:
            # before the step, so that the weights that are kept are those that were judged
            validation = float(losses[held].sum().detach() / self.weight[mine][held].sum())
            if validation < self.best:
                self.best, self.best_epoch = validation, self.epoch
                self.best_weights = {k: v.detach().clone() for k, v in self.net.state_dict().items()}
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.epoch += 1
        return loss.detach()

    @torch.no_grad()
    def read(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Return what every cell attends to, as `train_attention` does: layer by layer and block by block."""
        if self.has_validation:
            self.net.load_state_dict(self.best_weights)
        n_cells = len(self.types)
        n_blocks = 1 if self.whole is not None else math.ceil(n_cells / READ_AT_ONCE)
        blocks = np.array_split(np.arange(n_cells), n_blocks)

        def parts() -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
            for block in blocks:
                yield block, *self._part_around(block, hops=1, fan_out=None, part_seed=0)

        hidden = self.x.new_empty((n_cells, self.params.gat_heads * self.params.gat_hidden))
        for block, nodes, edges in parts():
            hidden[block] = self.net.hide(self.x[nodes], edges, self.scale[nodes])[: len(block)]
        looped_edges, paid, predicted = [], [], []
        for block, nodes, edges in parts():
            logits, (looped, alpha) = self.net.out(hidden[nodes], edges, return_attention_weights=True)
            of_block = looped[1] < len(block)
            looped_edges.append(nodes[looped[:, of_block]].cpu().numpy())
            paid.append(alpha[of_block].squeeze(1).cpu().numpy())
            predicted.append(logits[: len(block)].argmax(1).cpu().numpy())
        right = (np.concatenate(predicted) == self.types)[self.is_held if self.is_held.any() else slice(None)]
        return np.concatenate(looped_edges, axis=1), np.concatenate(paid), float(right.mean())


def train_attention(
    features: np.ndarray, edge_index: np.ndarray, types: np.ndarray, is_rare: np.ndarray, params: SelectionParams, *,
    seed: int, device: torch.device, report: Reporter, state: dict[str, Any] | None = None,
    checkpoint: Checkpoint = no_checkpoint,
) -> tuple[np.ndarray, np.ndarray, float]:  # fmt: skip
    """Learn the cell types on the graph and return what the second layer attends to.

    Parameters
    ----------
    features, edge_index, types, is_rare
        As of `AttentionTraining`.
    state, checkpoint
        A state to go on from, and what to offer the state to after each epoch.

    Returns
    -------
    Edges of shape (2, n_edges + n_cells), self loops included; their attention, of shape (n_edges + n_cells,), which
    sums to 1 over the edges into each cell; and the accuracy on cells held back (training cells if none are).
    """
    training = AttentionTraining(features, edge_index, types, is_rare, params, seed=seed, device=device)
    if state is not None:
        training.load(state)
    while not training.is_done:
        loss = training.take_epoch()
        if training.epoch % 10 == 0:
            report("attention", training.epoch, params.gat_epochs, loss=float(loss))
        checkpoint(training.state)
    report("attention", params.gat_epochs, params.gat_epochs)
    return training.read()


def average_attention(
    train: Callable[..., tuple[np.ndarray, np.ndarray, float]], n_networks: int, *, seed: int,
    state: dict[str, Any] | None = None, checkpoint: Checkpoint = no_checkpoint,
) -> tuple[np.ndarray, np.ndarray, float]:  # fmt: skip
    """Train several attention networks and average what they attend to and their accuracy.

    What one network attends to depends on its first weights as much as on the cells.

    Parameters
    ----------
    train
        `train_attention`, given all but seed, state and checkpoint.
    state, checkpoint
        As of `train_attention`, and so are the returns.
    """
    done: dict[str, Any] = {"networks": 0, "alpha": 0.0, "accuracy": 0.0, "state": None} if state is None else state
    for i in range(done["networks"], n_networks):
        looped_edges, alpha, accuracy = train(
            seed=network_seed(seed, i), state=done["state"], checkpoint=_nested(checkpoint, done)
        )
        total = done["alpha"] + torch.from_numpy(alpha)
        done = {"networks": i + 1, "alpha": total, "accuracy": done["accuracy"] + accuracy, "state": None}
    return looped_edges, (done["alpha"] / n_networks).numpy(), done["accuracy"] / n_networks


def network_seed(seed: int, i: int) -> int:
    """Return the seed of a run's i-th attention network, which it shares with no other run: the first has the run's."""
    return seed if i == 0 else int(np.random.SeedSequence((seed, i)).generate_state(1)[0])


def _nested(checkpoint: Checkpoint, done: dict[str, Any]) -> Checkpoint:
    """Return the checkpoint of one network, to which what the others found is added."""
    return lambda make_state: checkpoint(lambda: {**done, "state": make_state()})


def cell_attention(edge_index: np.ndarray, alpha: np.ndarray, n_cells: int) -> np.ndarray:
    """Score each cell by what OTHERS pay to it, whatever its degree.

    alpha sums to 1 over the edges into a cell, so a listener with many neighbours pays each of them little. Times the
    listener's in-degree, a payment of 1 is an even share; a cell's attention is the mean over its listeners.

    Parameters
    ----------
    edge_index, alpha
        Edges with self loops, and the attention that belongs to them, as `train_attention` returns them.

    Returns
    -------
    Shape (n_cells,). 1 is what an untrained network pays; 0 means that no cell listens.
    """
    source, target = edge_index
    in_degree = np.bincount(target, minlength=n_cells)  # the self loop counts: alpha is shared with it
    others = source != target
    paid = np.bincount(source[others], (alpha * in_degree[target])[others], minlength=n_cells)
    listeners = np.bincount(source[others], minlength=n_cells)
    return paid / np.maximum(listeners, 1)
