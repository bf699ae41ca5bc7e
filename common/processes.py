"""Processes that train one model together, as torchrun starts them: each has every cell and a share of each batch.

Gradients are added up with `torch.distributed` itself, not by `DistributedDataParallel`: the critic's gradient penalty
needs a second derivative, which that wrapper does not support.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.device import Device, choose_device
from common.errors import UserError

PATIENCE = timedelta(hours=12)  # for stage 1, which the first process runs while the others wait


@dataclass(frozen=True)
class Team:
    """The processes of a run, seen from one of them."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that reads, writes and talks."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """Return this process's rows of a batch: every `size`-th."""
        return rows[self.rank :: self.size]

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by the sum over the processes.

        Raises
        ------
        UserError
            If a process was lost.
        """
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self._add(flat)
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def add(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """Return the sums of numbers over the processes; errors as of `add_gradients`."""
        values = torch.stack([value.detach() for value in terms.values()])
        if self.size > 1:
            self._add(values)
        return dict(zip(terms, values.tolist(), strict=True))

    def wait(self) -> None:
        """Wait until every process is here; errors as of `add_gradients`."""
        if self.size > 1:
            self._add(torch.zeros(1, device="cuda" if dist.get_backend() == "nccl" else "cpu"))

    def _add(self, values: Tensor) -> None:
        try:
            dist.all_reduce(values)
        except RuntimeError as error:
            raise UserError(
                "another process of this run was lost: start all of them again, with --resume to go on where the last "
                "checkpoint stands"
            ) from error


ALONE = Team()


@contextmanager
def joined(device: Device) -> Iterator[Team]:
    """Join the processes that torchrun has started with this one, if it has; on GPUs each takes one of its own.

    Raises
    ------
    UserError
        If they do not find each other, or are more than the machine has GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    on_gpu = choose_device(device).type == "cuda"
    if on_gpu:
        place, n_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place >= n_gpus:
            raise UserError(f"this machine has {n_gpus} GPUs, one a process: give --nproc-per-node {n_gpus}")
        torch.cuda.set_device(place)
    try:
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the {size} processes do not find each other ({reason}): start them with torchrun") from error
    try:
        yield Team(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
