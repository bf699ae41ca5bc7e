"""Training steps replayed as one CUDA graph: launching their kernels one by one takes longer than they do.

A step of GARAGE is many small kernels. The graph of a step runs the same kernels on the same addresses, so results
are those of the step as it is written, to the last bit (`tests/test_gpu.py`).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UP = 3  # calls as written, in which optimisers make their state and libraries choose their kernels


class Replayed:
    """A step that a CUDA device replays.

    Parameters
    ----------
    step
        Returns tensors by name. It must not look at values on the device, and what changes from call to call must
        stand in tensors or in generators.
    generators
        What it draws random numbers from. They may be seeded anew between calls.
    """

    def __init__(self, step: Callable[[], dict[str, Tensor]], generators: Sequence[torch.Generator]) -> None:
        self.step, self.generators = step, generators
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.terms: dict[str, Tensor] = {}

    def __call__(self) -> dict[str, Tensor]:
        """Take the step; what it returns is overwritten by the next call."""
        self.calls += 1
        if self.calls <= WARM_UP:
            return self._as_written()
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            for generator in self.generators:
                self.graph.register_generator_state(generator)
            with torch.cuda.graph(self.graph):
                self.terms = self.step()
        self.graph.replay()
        return self.terms

    def _as_written(self) -> dict[str, Tensor]:
        # on a stream of its own, as the capture will be: autograd goes on where a parameter was first used
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            terms = self.step()
        torch.cuda.current_stream().wait_stream(stream)
        return terms
