"""Search of the baselines' hyperparameters, with the same effort for each: what preset `tuned` of config.py stands on.

Trial 0 of a method is preset `tuned` as it is, the others draw every hyperparameter of its space at random. Trials are
judged like any run, on splits that no results table uses; they are ranked by the forest's verdicts, MMD and coverage,
averaged over data sets. The best one's values are then written into config.py, by hand: a search changes nothing there.

Run:    python benchmarking/search.py --methods gan wgan --trials 6
Reads:  data sets of config.py, or h5ad files with cell types in obs
Writes: results/tables/search.csv: method, trial, mean rank, each metric's mean, and the hyperparameters as flags
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarking.experiment import rows_of_outcomes, sources_of, tell, tell_if_all_failed
from benchmarking.matrix import Job, perform_all
from benchmarking.run_benchmark import choose_methods
from common.cli import parse_flags, progress_bar, run_script
from common.errors import UserError
from common.metrics.catalogue import ALL, METRICS
from common.run import write_table
from config import BASELINES, RESULTS_DIR

SEED = 1000  # of splits; results tables count from 0
WIDTHS = ((128, 128), (256, 256), (512, 512))
RATES = (1e-4, 2e-4, 5e-4, 1e-3)
ADVERSARIAL = {
    "generator_lr": RATES, "critic_lr": RATES, "generator_hidden": WIDTHS, "critic_hidden": ((64,), *WIDTHS),
    "r1_weight": (0.1, 1.0, 10.0), "ema_decay": (0.99, 0.995, 0.999), "batch_size": (64, 128),
}  # fmt: skip
NOISE = {"latent_dim": (16, 32, 100)}
AUTOENCODER = {"latent_dim": (10, 20, 50), "lr": (3e-4, 1e-3, 3e-3), "batch_size": (64, 128), "warmup": (300, 1000)}
SPACES: dict[str, dict[str, Sequence[Any]]] = {
    "gan": {**ADVERSARIAL, **NOISE, "beta1": (0.0, 0.5, 0.9)},
    "wgan": {
        **{name: values for name, values in ADVERSARIAL.items() if name != "r1_weight"}, **NOISE,
        "clip": (0.01, 0.03, 0.1), "critic_steps": (2, 5),
    },  # the clipping holds its critic
    "fgan": {**ADVERSARIAL, **NOISE, "beta1": (0.0, 0.5, 0.9), "divergence": ("jensen_shannon", "kl", "pearson")},
    "lsh_gan": {**ADVERSARIAL, "neighbors": (3, 5, 10)},
    "vae": {
        **AUTOENCODER, "encoder_hidden": WIDTHS, "decoder_hidden": WIDTHS, "likelihood": ("normal", "squared_error"),
    },
    "scgan": {
        **NOISE, "generator_lr": RATES, "critic_lr": RATES, "generator_hidden": ((256, 256), (256, 512)),
        "critic_hidden": ((256, 256), (512, 256)), "critic_steps": (2, 5), "penalty": (1.0, 10.0),
        "ema_decay": (0.99, 0.995, 0.999), "batch_size": (64, 128),
    },
    "scvae": {**AUTOENCODER, "hidden": ((128, 128), (256, 128)), "likelihood": ("nb", "zinb")},
    "scdiffusion": {
        "latent_dim": (10, 16, 32), "autoencoder_steps": (3000, 6000), "denoiser_hidden": ((256, 128), (512, 256)),
        "diffusion_steps": (200, 500), "guidance": (0.0, 1.0, 2.0), "lr": (3e-4, 1e-3, 3e-3),
        "ema_decay": (0.99, 0.995, 0.999), "batch_size": (64, 128),
    },
}  # fmt: skip
"""gan_ros and vae_ros take what is found for gan and vae"""
JUDGED_BY = ("rf_auroc_genes", "rf_auroc_pcs", "mmd_pcs", "coverage_pcs")


@dataclass(frozen=True)
class Args:
    """Search hyperparameters at random."""

    methods: tuple[str, ...] = tuple(SPACES)
    """baselines"""
    datasets: tuple[str, ...] = ("pbmc68k",)
    """names of config.py, or paths of h5ad files with obs['cell_type']"""
    trials: int = 6
    """configurations of each method, the first is preset `tuned`"""
    n_top_genes: int | None = 1000
    """variable genes, chosen on the training cells"""
    jobs: int = 2
    """processes at a time"""
    out: Path = RESULTS_DIR / "tables" / "search.csv"
    """table to write; a long table of all metrics stands beside it"""


def propose(method: str, trial: int) -> dict[str, Any]:
    """Return hyperparameters of a trial, the same for the same number; those of preset `tuned` for trial 0."""
    if trial == 0:
        return {name: getattr(BASELINES[method]["tuned"], name) for name in SPACES[method]}
    rng = np.random.default_rng([trial, *method.encode()])
    return {name: values[int(rng.integers(len(values)))] for name, values in SPACES[method].items()}


def as_flags(params: dict[str, Any]) -> tuple[str, ...]:
    """Return hyperparameters, or other fields, as words of a command line; what is True is a flag by itself."""
    words: list[str] = []
    for name, value in params.items():
        given = () if value is True else value if isinstance(value, tuple) else (value,)
        words += ["--" + name.replace("_", "-"), *map(str, given)]
    return tuple(words)


def rank_trials(rows: pd.DataFrame) -> pd.DataFrame:
    """Rank trials of each method by the mean of their ranks over metrics and data sets.

    Parameters
    ----------
    rows
        With the columns `common.results.COLUMNS`, methods being called <method>_trial<number>.

    Returns
    -------
    Columns method, trial, rank (mean, 1 is best) and the mean of each metric over data sets, best first.
    """
    rows = rows[(rows["group"] == ALL) & rows["metric"].isin(JUDGED_BY)].reset_index(drop=True)
    rows = rows.join(rows["method"].str.extract(r"(?P<of>.+)_trial(?P<trial>\d+)"))
    shortfall = [METRICS[metric].shortfall(value) for metric, value in zip(rows["metric"], rows["value"], strict=True)]
    rows = rows.assign(shortfall=np.nan_to_num(shortfall, nan=np.inf))
    rows["rank"] = rows.groupby(["dataset", "of", "metric"])["shortfall"].rank()
    by = [rows["of"].rename("method"), rows["trial"].astype(int)]
    means = rows.pivot_table(index=by, columns="metric", values="value", sort=False)
    found = rows.groupby(by)["rank"].mean().to_frame("rank").join(means.reindex(columns=list(JUDGED_BY)))
    return found.reset_index().sort_values(["method", "rank", "trial"])


@run_script
def main(argv: list[str]) -> None:
    """Run the trials, and write their table."""
    args: Args = parse_flags(Args, argv, __doc__)
    choose_methods(args.methods)
    if without := [name for name in args.methods if name not in SPACES]:
        raise UserError(f"{without[0]} has no space to search: give {', '.join(SPACES)}")
    sources = sources_of(args.datasets, args.n_top_genes)
    jobs = [
        Job(source, 0.5, SEED, method, f"{method}_trial{trial}", as_flags(propose(method, trial)))
        for source in sources
        for method in args.methods
        for trial in range(args.trials)
    ]
    long = args.out.with_name(f"{args.out.stem}_metrics.csv")
    with progress_bar() as report:
        outcomes = perform_all(jobs, table=long, families=["fidelity"], n_jobs=args.jobs, again=False, report=report)
    tell_if_all_failed(outcomes)
    ranked = rank_trials(rows_of_outcomes(outcomes, long))
    ranked["flags"] = [
        " ".join(as_flags(propose(method, trial)))
        for method, trial in zip(ranked["method"], ranked["trial"], strict=True)
    ]
    write_table(args.out, ranked.round(4))
    tell(outcomes, f"wrote {args.out}: the best of each method belongs into config.py")


for _method, _space in SPACES.items():  # a misspelt one would only be told after hours
    assert set(_space) <= {field.name for field in fields(BASELINES[_method]["tuned"])}, _method

if __name__ == "__main__":
    main()
