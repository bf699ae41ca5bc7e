"""Where to compute, and that it gives the same twice."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from common.errors import UserError

Device = Literal["auto", "cpu", "cuda"]


def choose_device(device: Device) -> torch.device:
    """Turn auto into cuda where there is one, otherwise cpu.

    Raises
    ------
    UserError
        If cuda is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UserError("--device cuda, but PyTorch sees no CUDA device: give --device cpu or auto")
    if not available or device == "cpu":
        return torch.device("cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it products differ from run to run
    return torch.device("cuda")


@contextmanager
def deterministic() -> Iterator[None]:
    """Within a block take those kernels that add up in the same order each time, where there are such."""
    was, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)
