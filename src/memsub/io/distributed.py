"""Several processes, on one machine or many: `accelerate launch -m memsub run ...`.

    mine = shard(range(100))            # this process' share
    total = summed(tensor)              # over all processes
    images = gathered({0: ..., 3: ...}) # the entries of all processes, by key
    if is_main(): ...
    with first_on_each_machine():       # one process fetches a file, the others find it
        ...
    wait()

In a single process these functions change nothing. The rest of the library does not know the number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def _state() -> Any:
    import torch
    from accelerate import PartialState  # takes a second to import; a single process does not need it

    return PartialState(cpu=not torch.cuda.is_available())


def processes() -> int:
    """How many processes take part."""
    return _state().num_processes if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 1


def rank() -> int:
    """The index of this process, from 0."""
    return _state().process_index if processes() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes results."""
    return rank() == 0


def device(wanted: str | torch.device | None = None) -> torch.device:
    """The `wanted` device (ValueError if there is none), or that of this process: its own GPU, the first, or CPU."""
    import torch

    if wanted is not None:
        try:
            return torch.empty(0, device=wanted).device
        except (RuntimeError, AssertionError, TypeError) as error:
            raise ValueError(f"there is no device {wanted!r} here: {str(error).splitlines()[0][:100]}") from None
    if processes() > 1:
        return _state().device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def shard(items: Sequence[T]) -> Sequence[T]:
    """Every n-th item, beginning with this process' rank."""
    return items[rank() :: processes()]


def summed(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of every process' tensor."""
    if processes() == 1:
        return tensor
    from accelerate.utils import reduce

    return reduce(tensor, "sum")


def gathered(entries: dict[int, T]) -> dict[int, T]:
    """The entries of all processes, returned in every process."""
    if processes() == 1:
        return entries
    from accelerate.utils import gather_object

    return {key: value for part in gather_object([entries]) for key, value in part.items()}


def first_on_each_machine() -> AbstractContextManager:
    """One process of each machine enters first, the others after it has left. All processes must call this."""
    return _state().local_main_process_first() if processes() > 1 else nullcontext()


def wait() -> None:
    """Returns when every process has called it."""
    if processes() > 1:
        _state().wait_for_everyone()
