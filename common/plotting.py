"""Figures, and the one palette they share. Figures are for the eye; claims rest on tables."""

from pathlib import Path

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import sparse
from sklearn.decomposition import PCA

from common.data import types_of
from common.errors import UserError
from common.run import atomic
from common.scale import to_log

# told apart with any colour vision (Petroff 2021, arXiv:2107.02270); further types take the next marker
PALETTE = [
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
]  # fmt: skip
MARKERS = ["o", "^", "s", "D"]
ORIGIN_COLORS = {"real": "#c8c8c8", "synthetic": "#1b5fa8"}

RARE_SHARE = 0.05  # a type with at most this share of the real cells is drawn larger, outlined and on top
PCS, NEIGHBORS = 50, 15
DPI = 200


def figures_of(table: Path) -> Path:
    """Return the folder for figures of a table: results/figures for one in results/tables, otherwise the table's."""
    return table.parent.with_name("figures") if table.parent.name == "tables" else table.parent


def joint_umap(real: AnnData, synthetic: AnnData, path: Path, *, seed: int) -> None:
    """Draw real and synthetic cells on one UMAP: real by type, synthetic by type, and both by origin.

    Parameters
    ----------
    real, synthetic
        Cells of the same genes, both on the scale in `real.uns["scale"]`, with their types in `obs["cell_type"]`.
    path
        The picture, of a kind that matplotlib writes; it appears whole or not at all.
    seed
        Of UMAP, fitted on both kinds of cells together (McInnes et al. 2018, arXiv:1802.03426).

    Raises
    ------
    UserError
        If matplotlib knows no such picture, or it cannot be written there.
    """
    figure = Figure(figsize=(15, 4.4), layout="constrained")
    if path.suffix[1:] not in figure.canvas.get_supported_filetypes():
        raise UserError(f"{path} has no ending of a picture: let it end in .png, .pdf or .svg")
    points = np.split(embed(real, synthetic, seed=seed), [real.n_obs])
    labels = [types_of(cells) for cells in (real, synthetic)]
    n_real = {label: int((labels[0] == label).sum()) for label in np.unique(np.concatenate(labels))}
    types = sorted(n_real, key=lambda label: -n_real[label])
    rare = {label for label in types if n_real[label] <= RARE_SHARE * real.n_obs}
    styles = {t: (PALETTE[i % len(PALETTE)], MARKERS[i // len(PALETTE) % len(MARKERS)]) for i, t in enumerate(types)}
    area = float(np.clip(8000 / real.n_obs, 3, 12))  # of a point: small enough not to bury the others

    def draw(axes: Axes, which: int, origin_color: str | None = None) -> None:
        for label in types:  # the rarest last, so on top
            color, marker = styles[label]
            x, y = points[which][labels[which] == label].T
            axes.scatter(
                x, y, c=origin_color or color, marker=marker, alpha=0.7, s=area * (3 if label in rare else 1),
                edgecolors="black" if label in rare else "none", linewidths=0.5,
            )  # fmt: skip

    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    draw(panels[0], 0)
    draw(panels[1], 1)
    for which, color in enumerate(ORIGIN_COLORS.values()):
        draw(panels[2], which, color)
    titles = (f"{real.n_obs:,} real cells", f"{synthetic.n_obs:,} synthetic cells", "both")
    for axes, title in zip(panels, titles, strict=True):
        axes.set(title=title, xlabel="UMAP 1", xticks=[], yticks=[])
    panels[0].set_ylabel("UMAP 2")

    handles = [_key(label, *styles[label], outlined=label in rare) for label in types]
    handles += [_key(f"{origin} (right panel)", color, "o") for origin, color in ORIGIN_COLORS.items()]
    figure.legend(
        handles=handles, loc="outside right center", frameon=False, fontsize="small", alignment="left",
        title=f"outlined: at most {RARE_SHARE:.0%} of the real cells", title_fontsize="small",
    )  # fmt: skip
    save(figure, path)


def embed(real: AnnData, synthetic: AnnData, *, seed: int) -> np.ndarray:
    """Return coordinates on a UMAP fitted on real, then synthetic cells, shape (n_cells, 2); parameters as above."""
    from umap import UMAP  # numba compiles for seconds: only who draws pays

    X = sparse.vstack([sparse.csr_matrix(cells.X) for cells in (real, synthetic[:, real.var_names])], format="csr")
    library_size = float(np.median(np.asarray(real.X.sum(axis=1))))  # of use for counts only
    log = to_log(X, real.uns["scale"], library_size)
    pcs = PCA(min(PCS, min(log.shape) - 1), svd_solver="arpack", random_state=seed).fit_transform(log)
    umap = UMAP(n_neighbors=min(NEIGHBORS, len(pcs) - 1), init="pca", random_state=seed, n_jobs=1)
    return umap.fit_transform(pcs)


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's ending; it appears whole or not at all."""
    with atomic(path) as part:
        figure.savefig(part, format=path.suffix[1:], dpi=DPI)


def _key(label: str, color: str, marker: str, *, outlined: bool = False) -> Line2D:
    edge = "black" if outlined else "none"
    return Line2D([], [], linestyle="", marker=marker, color=color, markeredgecolor=edge, markersize=7, label=label)
