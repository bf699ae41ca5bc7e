"""Types for cells of generators that are not told what type to make: what a classifier of real cells takes them for."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

LABEL_PCS = 30  # principal components on which generated cells are labelled
MOST_DRAWS = 50  # times the cells asked for: how long to wait for a type that the generator hardly makes


@dataclass(frozen=True)
class Labeller:
    """A logistic regression on components of log-normalised values. Shapes: T types, K components, G genes."""

    names: np.ndarray
    """of the types, or their codes, shape (T,)"""
    mean: np.ndarray
    """shape (G,)"""
    components: np.ndarray
    """shape (K, G)"""
    weights: np.ndarray
    """shape (T, K); with two types (1, K), for the second of them"""
    bias: np.ndarray
    """shape (T,), or (1,)"""

    @classmethod
    def of(cls, X: np.ndarray, types: np.ndarray) -> "Labeller":
        """Learn from cells (n_cells, G) and the names, or codes, of their types (n_cells,)."""
        names = np.unique(types)
        if len(names) == 1:
            return cls(names, X[0], X[:0], np.zeros((1, 0)), np.zeros(1))
        pca = PCA(max(1, min(LABEL_PCS, *(size - 1 for size in X.shape))), random_state=0)
        found = LogisticRegression(max_iter=1000).fit(pca.fit_transform(X), types)
        return cls(names, pca.mean_, pca.components_, found.coef_, found.intercept_)

    def label(self, X: np.ndarray) -> np.ndarray:
        """Return the name, or code, of each cell's type, given log values (n_cells, G)."""
        score = (X - self.mean) @ self.components.T @ self.weights.T + self.bias
        chosen = score.argmax(1) if len(self.weights) > 1 else (score[:, 0] > 0).astype(int)
        labels: np.ndarray = self.names[chosen]
        return labels

    def content(self) -> dict[str, Any]:
        """Return everything as tensors and lists."""
        arrays = {name: torch.from_numpy(value) for name, value in vars(self).items() if name != "names"}
        return {"names": self.names.tolist(), **arrays}

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> "Labeller":
        """Read what `content` returned."""
        arrays = {name: value.numpy() for name, value in content.items() if name != "names"}
        return cls(np.array(content["names"]), **arrays)
