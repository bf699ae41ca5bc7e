"""PyTorch's number of threads, which the last bits of every result depend on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads_kept() -> Iterator[None]:
    """Keep it through a block or function: numba, which scanpy and pynndescent start, sets it for the whole process."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
