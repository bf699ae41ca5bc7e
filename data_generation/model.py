"""A model from real cells, and synthetic cells from a model: AnnData in, AnnData out.

`fit()` runs stage 1 (`attention.py`, `cell_selection.py`) and stage 2 (`seeded_gan.py`, or `paper_gan.py` for preset
`paper`); `sample()` draws. This is the contract that every generator of the benchmark keeps.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData

from common.checks import check_known, make_learnable
from common.cli import Reporter, silent
from common.data import types_of
from common.device import Device, choose_device, deterministic
from common.disk import is_on_disk, map_rows, row_sums, take
from common.errors import UserError
from common.processes import ALONE, Team
from common.run import ResumableRun, Stopwatch, read_tensors
from common.scale import Scale, to_log
from config import PRESETS, GarageParams, PaperParams
from data_generation import paper_gan, seeded_gan
from data_generation.calibration import log_normalise
from data_generation.cell_selection import Selection, select
from data_generation.paper_gan import PublishedGan
from data_generation.seeded_gan import TrainingCells
from data_generation.synthesis import SeededGan

FORMAT = "garage-model-3"


@dataclass
class Garage:
    """A fitted model.

    `seeds` and `losses` are the tables of seeds.csv and losses.csv, None for a model read from a file.
    """

    gan: SeededGan | PublishedGan
    preset: str
    params: GarageParams | PaperParams
    dataset: str
    scale: Scale
    genes: list[str]
    types: list[str]
    type_counts: list[int]
    """training cells of each type"""
    device: torch.device
    accuracy: float
    """of the attention network, see `Selection`"""
    seeds: pd.DataFrame | None = None
    losses: pd.DataFrame | None = None
    notes: list[str] = field(default_factory=list)

    def content(self) -> dict[str, Any]:
        """Return what model.pt holds: tensors, numbers, strings, lists and dicts only."""
        return {
            "format": FORMAT, "preset": self.preset, "params": asdict(self.params), "dataset": self.dataset,
            "scale": str(self.scale), "genes": self.genes, "types": self.types, "type_counts": self.type_counts,
            "accuracy": self.accuracy, "gan": self.gan.state(),
        }  # fmt: skip


def load(path: Path, *, device: Device = "auto") -> Garage:
    """Read a model from model.pt.

    Raises
    ------
    UserError
        If the file is missing, damaged, or not a model of GARAGE.
    """
    content = read_tensors(path)
    if content["format"] != FORMAT:
        raise UserError(f"{path} is a {content['format']}, this version reads {FORMAT}: give the model.pt of a run")
    on = choose_device(device)
    same = ("preset", "dataset", "scale", "genes", "types", "type_counts", "accuracy")
    try:
        params = PRESETS[content["preset"]](**content["params"])
        kind = PublishedGan if isinstance(params, PaperParams) else SeededGan
        gan: Any = kind.from_state(content["gan"], params, content["scale"], on)  # type: ignore[arg-type]
        return Garage(gan=gan, params=params, device=on, **{name: content[name] for name in same})
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} lacks parts of a model ({error}): give the model.pt of a finished run") from error


def _canonical_order(X: sp.csr_matrix, types: np.ndarray) -> np.ndarray:
    """Order cells by their content, so that nothing depends on the order of the file."""
    if not is_on_disk(X):
        X.sort_indices()
    rows = [
        hashlib.blake2b(X.indices[a:b].astype(np.int64).tobytes() + X.data[a:b].tobytes(), digest_size=16).hexdigest()
        for a, b in zip(X.indptr[:-1], X.indptr[1:], strict=True)
    ]
    return np.lexsort((types, np.array(rows)))


@deterministic()
def fit(
    cells: AnnData, params: GarageParams | PaperParams, *, seed: int, device: Device = "auto",
    report: Reporter = silent, run: ResumableRun | None = None, clock: Stopwatch | None = None, team: Team = ALONE,
) -> Garage:  # fmt: skip
    """Learn from real cells.

    Parameters
    ----------
    cells
        X of shape (n_cells, n_genes); `obs["cell_type"]`; `uns["scale"]`, detected if it is not there. Cells without
        counts are left out.
    params
        Hyperparameters; their class is the preset.
    seed
        The same seed gives the same model on the same machine, whatever the order of the cells.
    report, run, clock
        Progress, checkpoints and timing, for scripts.
    team
        Processes that train together. The first runs stage 1; the others read its result from the checkpoint of `run`,
        which must lie where all can read it.

    Raises
    ------
    UserError
        If there are no types, or fewer than two cells; or with preset `paper`, which learns from all cells at once in
        one process, if they are on disk or there are more.
    """
    if isinstance(params, PaperParams) and (is_on_disk(cells.X) or team.size > 1):
        raise UserError(
            "preset paper learns from all cells at once in one process: leave out --on-disk and torchrun, or use "
            "preset garage"
        )
    on, clock = choose_device(device), clock or Stopwatch()
    cells, notes = make_learnable(cells)
    scale: Scale = cells.uns["scale"]
    if cells.n_obs < params.neighbors:
        notes.append(f"{cells.n_obs} cells are fewer than {params.neighbors} neighbours: the graph joins them all")
    if isinstance(params, PaperParams):
        notes.append("model.pt of preset paper holds the expression of its seed cells: treat it as the real cells")
    type_names, types = np.unique(types_of(cells), return_inverse=True)
    order = _canonical_order(cells.X, types)
    X, types = take(cells.X, order), types[order]
    preset = next(name for name, kind in PRESETS.items() if isinstance(params, kind))

    with clock.stage("selection"):
        library_size = float(np.median(row_sums(X))) if scale == "counts" else 1.0
        log_values = map_rows(lambda block: to_log(block, scale, library_size), X)
        selection = _select(log_values, types, params, seed, on, report, run, team)
        del log_values
    with clock.stage("training"):
        training_cells = TrainingCells.on(on, X, types, scale)
        gan, losses = _train(training_cells, selection, len(type_names), params, seed, on, report, run, team)

    table = pd.DataFrame(
        {
            "cell": cells.obs_names[order], "cell_type": type_names[types], "attention": selection.attention,
            "rank": (-selection.attention).argsort(kind="stable").argsort(kind="stable") + 1,
            "is_seed": selection.is_seed, "is_rare": selection.is_rare,
        }
    ).iloc[np.argsort(order)]  # fmt: skip
    return Garage(
        gan=gan, preset=preset, params=params, dataset=str(cells.uns.get("dataset", "cells")), scale=scale,
        genes=list(cells.var_names), types=[str(name) for name in type_names],
        type_counts=np.bincount(types).tolist(), device=on, accuracy=selection.accuracy,
        seeds=table, losses=pd.DataFrame(losses or {"step": []}), notes=notes,
    )  # fmt: skip


def _select(
    log_values: sp.csr_matrix, types: np.ndarray, params: GarageParams | PaperParams, seed: int, on: torch.device,
    report: Reporter, run: ResumableRun | None, team: Team,
) -> Selection:  # fmt: skip
    """Run stage 1, or read its result if the run that is resumed, or the process that leads, has finished it."""
    if run is None:
        return select(log_values, types, params, seed=seed, device=on, report=report)
    if not team.leads:
        team.wait()
        run.read()
    done = run.state("selection")
    if done is None:
        selection = select(
            log_values, types, params, seed=seed, device=on, report=report,
            state=run.state("attention"), checkpoint=run.checkpoint("attention"),
        )  # fmt: skip
        run.save("selection", selection.state())
    else:
        selection = Selection.from_state(done)
    if team.leads:
        team.wait()
    return selection


def _train(
    cells: TrainingCells, selection: Selection, n_types: int, params: GarageParams | PaperParams, seed: int,
    on: torch.device, report: Reporter, run: ResumableRun | None, team: Team,
) -> tuple[SeededGan | PublishedGan, list[dict[str, float]]]:  # fmt: skip
    """Run stage 2, from where the run that is resumed had got to."""
    training: seeded_gan.Training | paper_gan.Training
    if isinstance(params, PaperParams):
        best_first = np.argsort(-selection.attention, kind="stable")
        ranked = torch.from_numpy(best_first[selection.is_seed[best_first]]).to(on)
        x = cells.rows(torch.arange(cells.n_cells, device=on))
        values = log_normalise(x, cells.target_sum) if cells.scale == "counts" else x
        training = paper_gan.Training(values, values[ranked], params, torch.Generator(on).manual_seed(seed))
    else:
        training = seeded_gan.Training(cells, selection, n_types, params, seed=seed, team=team)
    if run is None:
        training.run(report)
    else:
        state = run.state("training")
        if state is not None:
            training.load(state)
        training.run(report, run.checkpoint("training"))
        run.save("training", training.state())
    if isinstance(training, paper_gan.Training):
        return PublishedGan.of(training, cells, values[ranked]), training.losses
    return SeededGan.of(training), training.losses


def compose(weights: np.ndarray, n_cells: int) -> np.ndarray:
    """Share cells out among types in proportion to weights (largest remainder), one at least if there are enough.

    Parameters
    ----------
    weights
        Shape (n_types,), not negative, at least one positive.

    Returns
    -------
    Cells of each type, shape (n_types,), summing to n_cells.
    """
    share = n_cells * weights / weights.sum()
    quota = np.floor(share).astype(int)
    quota[np.argsort(quota - share, kind="stable")[: n_cells - quota.sum()]] += 1
    wanted = weights > 0
    while n_cells >= wanted.sum() and (missing := np.flatnonzero(wanted & (quota == 0))).size:
        quota[quota.argmax()] -= 1
        quota[missing[0]] += 1
    return quota


def check_proportions(proportions: dict[str, float], types: list[str]) -> None:
    """Make sure that proportions are of known types and can be met.

    Raises
    ------
    UserError
        If a type is unknown, or the proportions are negative or all zero.
    """
    for name, weight in proportions.items():
        check_known(name, types, "there is no cell type")
        if not 0 <= weight < np.inf:
            raise UserError(f"the proportion of {name} is {weight}: give a number that is not negative")
    if not any(proportions.values()):
        raise UserError("all proportions are zero: give at least one type a positive number")


def sample_blocks(
    model: Garage, n_cells: int, *, cell_type: str | None = None, proportions: dict[str, float] | None = None, seed: int
) -> Iterator[AnnData]:
    """Draw synthetic cells block by block, so that with preset `garage` any number of them fits into memory.

    Parameters, blocks and errors as of `sample`, which returns the same cells together.
    """
    if n_cells < 1:
        raise UserError(f"{n_cells} cells cannot be drawn: give at least 1")
    weights = np.array(model.type_counts, dtype=float)
    if cell_type is not None:
        if proportions is not None:
            raise UserError("a cell type and proportions are two compositions: give one of them")
        proportions = {str(cell_type): 1.0}
    if proportions is not None:
        check_proportions(proportions, model.types)
        weights = np.array([proportions.get(name, 0.0) for name in model.types])
    rng = torch.Generator(model.device).manual_seed(seed)
    if proportions is None and isinstance(model.gan, PublishedGan):
        portions = iter([model.gan.draw_freely(n_cells, rng)])
    else:
        portions = model.gan.draw(compose(weights, n_cells), rng)
    var = pd.DataFrame(index=model.genes)
    uns = {"scale": model.scale, "dataset": model.dataset, "method": model.preset}
    start = 0
    for X, types, from_seed in portions:
        obs = pd.DataFrame(
            {
                "cell_type": pd.Categorical.from_codes(types, model.types),
                "origin": pd.Categorical.from_codes(from_seed.astype(int), ["noise", "seed"]),
            },
            index=[f"synthetic_{start + i}" for i in range(len(types))],
        )  # fmt: skip
        yield AnnData(X.expm1() if model.scale == "linear" else X, obs=obs, var=var, uns=uns)
        start += len(types)


def sample(
    model: Garage, n_cells: int, *, cell_type: str | None = None, proportions: dict[str, float] | None = None, seed: int
) -> AnnData:
    """Draw synthetic cells.

    Parameters
    ----------
    n_cells
        How many.
    cell_type
        Draw this type only.
    proportions
        Weight of each type; types left out are not drawn. By default the training cells' composition (with preset
        `paper`, whatever composition the generator has).
    seed
        The same seed gives the same cells on the same machine.

    Returns
    -------
    Cells on the scale of the input, CSR float32, with obs cell_type and origin (noise or seed).

    Raises
    ------
    UserError
        If a type is unknown or a proportion is not a positive number.
    """
    blocks = list(sample_blocks(model, n_cells, cell_type=cell_type, proportions=proportions, seed=seed))
    X, obs = sp.vstack([block.X for block in blocks], format="csr"), pd.concat([block.obs for block in blocks])
    return AnnData(X, obs=obs, var=blocks[0].var, uns=dict(blocks[0].uns))
