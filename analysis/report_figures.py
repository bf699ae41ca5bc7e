"""The interactive figures of the report, as JSON for plotly.js, each with the numbers that it shows."""

import json
from collections.abc import Sequence
from functools import partial
from html import escape
from typing import Any

import anndata
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from anndata import AnnData
from plotly.subplots import make_subplots
from sklearn.neighbors import NearestNeighbors

from common.data import types_of
from common.metrics.catalogue import HELD, OTHERS, SEEDS
from common.plotting import MARKERS, PALETTE, embed
from common.runs import Run

Spec = dict[str, Any]
"""data and layout of plotly.js"""

MOST_CELLS = 2000  # of a kind on the map: more would make the page slow
SYNTHETIC, TRAINING = "synthetic cells", "training cells"
COLORS = {SEEDS: PALETTE[2], OTHERS: PALETTE[3], TRAINING: PALETTE[3], HELD: PALETTE[1], SYNTHETIC: PALETTE[0]}
SYMBOLS = dict(zip(MARKERS, ["circle", "triangle-up", "square", "diamond"], strict=True))
GLYPHS = dict(zip(MARKERS, "●▲■◆", strict=True))
literal = partial(escape, quote=False)  # plotly reads its texts as HTML, but knows no &quot;
GRID = "rgba(128, 128, 128, 0.25)"  # seen on light and on dark; text takes its colour from the page's style sheet
BAR, ROW, PAD = 16, 30, 70  # heights in pixels
LONGEST = 24  # characters of a name that fit beside a figure on a phone


def style_of(types: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return color and marker of each type, in the order given, as `common.plotting` has them."""
    n = len(PALETTE)
    return {name: (PALETTE[i % n], MARKERS[i // n % len(MARKERS)]) for i, name in enumerate(types)}


def cell_map(run: Run, types: Sequence[str], rare: Sequence[str]) -> tuple[Spec, dict[str, int], pd.Series]:
    """Draw all kinds of cells on one UMAP, real ones as rings, synthetic ones as dots.

    Parameters
    ----------
    run
        Of kinds with more than `MOST_CELLS` cells, a random subset is drawn that keeps the rare types.
    types
        In the order of their styles.
    rare
        Names of the rare types, drawn larger.

    Returns
    -------
    The figure, one trace a kind and type, `meta` naming both and the colors by either; the number of cells drawn of
    each kind; and by type the share of its synthetic cells whose nearest real cell on the map is of the type.
    """
    rng = np.random.default_rng(run.seed)
    groups = {
        kind: _thin(cells, rare, rng)
        for kind, cells in ((TRAINING, run.train), (HELD, run.held), (SYNTHETIC, run.synthetic))
        if cells.n_obs
    }
    real = anndata.concat([cells for kind, cells in groups.items() if kind != SYNTHETIC], merge="same")
    real.uns["scale"] = run.train.uns["scale"]
    points = embed(real, groups[SYNTHETIC], seed=run.seed).round(3)
    table = pd.concat([_describe(cells, kind, run.seeds) for kind, cells in groups.items()], ignore_index=True)
    table[["x", "y"]] = points
    is_real = table["kind"] != SYNTHETIC

    styles, figure = style_of(types), _figure(height=560)
    for name in types:
        for kind in COLORS:
            cells = table[(table["type"] == name) & (table["kind"] == kind)]
            if cells.empty:
                continue
            color, marker = styles[name]
            figure.add_scatter(
                x=cells["x"], y=cells["y"], mode="markers", name=literal(name), text=cells["text"],
                hovertemplate="%{text}<extra></extra>",
                marker={
                    "color": color, "symbol": SYMBOLS[marker] + ("" if kind == SYNTHETIC else "-open"), "opacity": 0.75,
                    "size": (9 if name in rare else 5) + (2 if kind == SEEDS else 0),
                    "line": {"width": {SYNTHETIC: 0, SEEDS: 2}.get(kind, 1)},
                },
                meta={"kind": kind, "type": name, "by type": color, "by kind": COLORS[kind]},
            )  # fmt: skip
    blank = {"showticklabels": False, "showgrid": False, "zeroline": False}
    figure.update_xaxes(title="UMAP 1", **blank)
    figure.update_yaxes(title="UMAP 2", **blank)

    search = NearestNeighbors(n_neighbors=1).fit(points[is_real])
    nearest = search.kneighbors(points[~is_real], return_distance=False)[:, 0]
    own = table.loc[~is_real, "type"].to_numpy()
    agrees = pd.Series(table.loc[is_real, "type"].to_numpy()[nearest] == own).groupby(own).mean()
    return _spec(figure), table["kind"].value_counts().to_dict(), agrees


def composition(counts: pd.DataFrame) -> Spec:
    """Draw the share of each type in each kind of cells.

    Parameters
    ----------
    counts
        Number of cells; types as index, kinds as columns.
    """
    figure = _figure(height=PAD + len(counts) * (BAR * counts.shape[1] + 10), barmode="group")
    for kind in counts.columns:
        share = 100 * counts[kind] / counts[kind].sum()
        figure.add_bar(
            x=share.round(2), y=np.arange(len(counts)), orientation="h", name=kind, marker_color=COLORS[kind],
            text=[f"<b>{literal(name)}</b><br>{kind}: {n}" for name, n in counts[kind].items()], textposition="none",
            hovertemplate="%{text} (%{x:.1f}%)<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title="% of the cells")
    _label_rows(figure, counts.index)
    return _spec(figure)


def attention(seeds: pd.DataFrame, types: Sequence[str]) -> Spec:
    """Draw the attention of the training cells by type, seed cells filled.

    Parameters
    ----------
    seeds
        Table of seeds.csv.
    types
        From top to bottom.
    """
    figure = _figure(height=PAD + ROW * len(types))
    rows = {name: i for i, name in enumerate(types)}
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(seeds))
    for is_seed, kind in ((False, OTHERS), (True, SEEDS)):
        mask = (seeds["is_seed"] == is_seed).to_numpy()
        cells = seeds[mask]
        text = [
            f"<b>{literal(str(name))}</b><br>{literal(str(cell))}<br>attention {value:.3g}, rank {rank}"
            for name, cell, value, rank in cells[["cell_type", "cell", "attention", "rank"]].itertuples(index=False)
        ]
        figure.add_scatter(
            x=cells["attention"].round(5), y=cells["cell_type"].map(rows) + jitter[mask], mode="markers", name=kind,
            text=text, hovertemplate="%{text}<extra></extra>",
            marker={"color": COLORS[kind], "symbol": "circle" if is_seed else "circle-open", "size": 6},
        )  # fmt: skip
    figure.update_xaxes(title="attention")
    _label_rows(figure, types)
    return _spec(figure)


def losses(table: pd.DataFrame) -> Spec:
    """Draw each term of the loss by step, on a scale of its own.

    Parameters
    ----------
    table
        step, and one column a term.
    """
    terms = table.columns.drop("step")
    titles = [literal(term) for term in terms]
    figure = make_subplots(len(terms), 1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.25 / len(terms))
    for i, term in enumerate(terms, start=1):
        known = table[["step", term]].dropna()
        figure.add_scatter(
            x=known["step"], y=known[term], mode="lines", line={"color": PALETTE[0]}, row=i, col=1,
            hovertemplate="step %{x}: %{y:.4g}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title="step", row=len(terms), col=1)
    figure.update_layout(_layout(PAD + 150 * len(terms)))
    return _spec(figure.update_layout(margin_t=30))


def _thin(cells: AnnData, rare: Sequence[str], rng: np.random.Generator) -> AnnData:
    if cells.n_obs <= MOST_CELLS:
        return cells
    order = np.lexsort([rng.random(cells.n_obs), ~cells.obs["cell_type"].isin(rare)])
    return cells[np.sort(order[:MOST_CELLS])].copy()


def _describe(cells: AnnData, kind: str, seeds: pd.DataFrame | None) -> pd.DataFrame:
    """Return type, kind (seeds told from other training cells) and text under the pointer of each cell."""
    types, kinds = types_of(cells), np.full(cells.n_obs, kind, dtype=object)
    if kind == TRAINING and seeds is not None:
        kinds = np.where(cells.obs_names.isin(seeds["cell"][seeds["is_seed"]]), SEEDS, OTHERS)
    text = [
        f"<b>{literal(name)}</b><br>{one[:-1]}<br>{literal(cell)}"
        for name, one, cell in zip(types, kinds, cells.obs_names, strict=True)
    ]
    return pd.DataFrame({"type": types, "kind": kinds, "text": text})


def _label_rows(figure: go.Figure, names: Sequence[str]) -> None:
    """Let the y axis run downwards over rows 0, 1, ... that are named; add a legend."""
    shown = [literal(name if len(name) <= LONGEST else f"{name[: LONGEST - 2]}…") for name in names]
    rows = list(range(len(names)))
    figure.update_yaxes(tickvals=rows, ticktext=shown, range=[len(names) - 0.5, -0.5], showgrid=False, zeroline=False)
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"})


def _layout(height: int) -> dict[str, Any]:
    return {
        "template": "none", "height": height, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False, "dragmode": False, "margin": {"l": 10, "r": 10, "t": 10, "b": 45},
        "hoverlabel": {"bgcolor": "#22262b", "font": {"color": "#ffffff"}, "align": "left"},
        "font": {"family": "system-ui, sans-serif", "size": 13},
    }  # fmt: skip


def _figure(height: int, **layout: Any) -> go.Figure:
    return go.Figure(layout=_layout(height) | layout)


def _spec(figure: go.Figure) -> Spec:
    figure.update_xaxes(gridcolor=GRID, zerolinecolor=GRID, automargin=True, fixedrange=True)
    figure.update_yaxes(gridcolor=GRID, zerolinecolor=GRID, automargin=True, fixedrange=True)
    spec: Spec = json.loads(figure.to_json())
    return spec
