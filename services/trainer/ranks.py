"""The ranks of the trainer as one: rank 0 decides, the others follow. Small messages, never
gradients.

Gradients are DeepSpeed's business. What is said here (plans, token counts, sums of statistics) goes
over a gloo group of its own, so it is the same on CPU and CUDA. Plans travel as bytes, not as
pickled objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

TIMEOUT = timedelta(minutes=30)
"""Longer than rank 0 ever waits for the buffer; it says something at every long poll anyway."""


class Ranks:
    """`Ranks()` needs an initialised `torch.distributed` and is called on every rank."""

    def __init__(self) -> None:
        self.rank: int = dist.get_rank()
        self.size: int = dist.get_world_size()
        self._group = dist.new_group(backend="gloo", timeout=TIMEOUT)

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, the only one that talks to people and writes results."""
        return self.rank == 0

    def broadcast(self, said: bytes | None) -> bytes:
        """What rank 0 says, on every rank; the others pass None."""
        if self.size == 1:
            return said or b""
        length = torch.tensor([len(said or b"")], dtype=torch.int64)
        dist.broadcast(length, src=0, group=self._group)
        body = torch.empty(int(length), dtype=torch.uint8)
        if said:
            body = torch.frombuffer(bytearray(said), dtype=torch.uint8)
        if len(body):
            dist.broadcast(body, src=0, group=self._group)
        return body.numpy().tobytes()

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise over all ranks, in float64, so counts stay exact."""
        total = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(total, group=self._group)
        return [float(value) for value in total]

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank."""
        return self.sum([float(flag)])[0] > 0

    def barrier(self) -> None:
        """Returns when every rank has come here."""
        self.sum([0.0])
