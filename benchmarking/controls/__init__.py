"""What every table must also show: simple generators and real cells, by the contract of `data_generation.model`."""

from collections.abc import Sequence
from importlib.util import find_spec
from types import ModuleType

from benchmarking.controls import (
    all_zeros,
    bootstrap,
    copula,
    gene_wise_normal,
    jitter,
    poisson,
    real_half,
    scvi,
    smote,
)
from common.checks import check_known
from common.errors import UserError

CONTROLS: dict[str, ModuleType] = {
    "real_half": real_half, "bootstrap": bootstrap, "gene_wise_normal": gene_wise_normal, "all_zeros": all_zeros,
    "poisson": poisson, "copula": copula, "smote": smote, "jitter": jitter, "scvi": scvi,
}  # fmt: skip
"""in the order of a table"""
PEERS = frozenset({"copula", "smote", "jitter", "scvi"})
"""those that one would use to make cells, and has to beat; the others only say what a measure is worth"""
PURE_CONTROLS = tuple(name for name in CONTROLS if name not in PEERS)
OPTIONAL = {"scvi": "scvi"}
"""those that need a package of requirements_optional.txt, by the name it is imported by"""
DEFAULT_CONTROLS = tuple(name for name in CONTROLS if name not in OPTIONAL)
"""those that need nothing more, and cost seconds"""


def load_controls(names: Sequence[str]) -> dict[str, ModuleType]:
    """Return controls that can run here, without importing what they need.

    Raises
    ------
    UserError
        If there is none of a name, or the package that it needs is not installed.
    """
    for name in names:
        check_known(name, CONTROLS, "there is no control")
        if name in OPTIONAL and find_spec(OPTIONAL[name]) is None:
            raise UserError(f"{name} is not installed: pip install -r requirements_optional.txt, or leave {name} out")
    return {name: CONTROLS[name] for name in names}
