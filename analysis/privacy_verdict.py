"""What the privacy metrics of a method add up to, in words: a leak that was found, or none that these attacks find."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from scipy.stats import norm

from common.data import types_of
from common.metrics.catalogue import ALL, METRICS, SEEDS
from common.runs import Run

LEVEL = 0.05  # chance that attacks report a leak where there is none
ATTACKS = ["attack_auc", "calibrated_auc"]
COPY = "real_half"
BLIND = ["gene_wise_normal", "all_zeros"]  # know no cell and no type: what attacks find there is the split's luck
BY_MEANS = ["poisson", *BLIND]  # know no cell: their copies are coincidence


@dataclass(frozen=True)
class Verdict:
    """On one method."""

    method: str
    kind: Literal["copies", "leak", "none", "unknown"]
    headline: str
    reasons: list[str]


def judge_privacy(
    rows: pd.DataFrame, method: str, sizes: Mapping[int, tuple[int, int]], *, too_few: str = ""
) -> Verdict:  # fmt: skip
    """Judge a method by its worst attack in its worst split, beside what the same attack finds in the controls.

    An attack on all training cells finds a leak if its AUROC exceeds what chance may give (one-sided Mann-Whitney test,
    5 % over all attacks and splits) and what it finds in the cells of generators that know no cell. Seed cells are
    told, not tested: they are no random sample of the training cells.

    Parameters
    ----------
    rows
        Of one data set and split, with the columns `common.results.COLUMNS`.
    method
        Whose cells are judged; the other methods are its controls.
    sizes
        Numbers of training and held-out cells by seed.
    too_few
        What was drawn, if that is too little for attacks that find nothing to say anything (`describe_shortage`).
    """
    values = rows.set_index(["seed", "metric", "group", "method"])["value"].dropna().to_dict()
    tests = [(seed, attack) for seed in sizes for attack in ATTACKS if (seed, attack, ALL, method) in values]
    if not tests:
        return Verdict(method, "unknown", "Privacy was not judged: no attack has a value.", [])
    limits = {
        (seed, attack): max(
            _limit(*sizes[seed], level=LEVEL / len(tests)),
            *(values.get((seed, attack, ALL, name), 0.0) for name in BLIND),
        )
        for seed, attack in tests
    }
    worst = max(tests, key=lambda test: values[*test, ALL, method] - limits[test])
    reasons = _about_attack(values, *worst, method, limits[worst])

    mean = rows[rows["group"] == ALL].groupby(["metric", "method"])["value"].mean().dropna().to_dict()
    copies = mean.get(("copies", method), 0.0)
    by_chance = max(mean.get(("copies", name), 0.0) for name in BY_MEANS)
    if ("copies", method) in mean:
        share = f"{copies:.1%} of the synthetic cells are" if copies else "No synthetic cell is"
        coincidence = f"; {by_chance:.1%} would be coincidence" if by_chance else ""
        reasons.append(f"{share} a training cell, gene by gene{coincidence}.")
    if ("nearer_to_training", method) in mean:
        nearer = mean["nearer_to_training", method]
        reasons.append(
            f"{nearer:.0%} of the synthetic cells are nearer to a training than a held-out cell; chance: 50%."
        )
    if copies > by_chance:
        return Verdict(method, "copies", "Training cells are among the synthetic ones.", reasons)
    if values[*worst, ALL, method] > limits[worst]:
        return Verdict(method, "leak", "A leak was found: training cells can be told from unused ones.", reasons)
    if too_few:
        return Verdict(method, "unknown", f"Privacy was not judged: {too_few}. Judge the whole run.", reasons)
    return Verdict(method, "none", "No leak was found by the attacks tried here; others may find one.", reasons)


def describe_shortage(run: Run) -> str:
    """Return in words what was drawn of a run, if it is fewer cells than it learnt from, or not all of their types."""
    n, types = run.synthetic.n_obs, set(types_of(run.train))
    drawn = len(types & set(types_of(run.synthetic)))
    if n >= run.train.n_obs and drawn == len(types):
        return ""
    return f"only {n} cells of {drawn} of {len(types)} types were drawn of a model of {run.train.n_obs}"


def _limit(n_training: int, n_held: int, *, level: float) -> float:
    """Return the AUROC that two samples of one distribution exceed with a probability of `level`."""
    sd = math.sqrt((n_training + n_held + 1) / (12 * n_training * n_held))  # of Mann and Whitney's U, over its maximum
    return 0.5 + float(norm.ppf(1 - level)) * sd


def _about_attack(values: Mapping[tuple, float], seed: int, attack: str, method: str, limit: float) -> list[str]:
    """Return sentences about an attack in a split: on this method, on its seed cells, and on the others."""
    found = {name: value for (*key, name), value in values.items() if key == [seed, attack, ALL]}
    own, copy = found.pop(method), found.get(COPY)
    reasons = [
        f"The {METRICS[attack].label} tells a training from a held-out cell with an AUROC of {own:.2f}, where 0.5 is a "
        f"guess and up to {limit:.2f} may be chance (seed {seed}, where it finds most)."
    ]
    if copy is not None and own > limit:
        reasons.append(
            f"A copy of the training cells gets {copy:.2f}: this is {(own - 0.5) / (copy - 0.5):.0%} of the way there."
        )
    if found:
        listed = ", ".join(f"{found[name]:.2f} with {name}" for name in sorted(found, key=lambda name: found[name]))
        reasons.append(f"The same attack reaches {listed}.")
    if (seed, attack, SEEDS, method) in values:
        reasons.append(f"On the seed cells alone it reaches {values[seed, attack, SEEDS, method]:.2f}.")
    return reasons
