"""Running out of memory, said in a sentence that helps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# What PyTorch's CPU allocator says; it raises a plain RuntimeError.
CPU_FAILURE = "can't allocate memory"


@contextmanager
def memory_advice(doing: str, advice: str) -> Iterator[None]:
    """Turn a failed allocation inside, on a GPU or the CPU, into a RuntimeError that says what to lower.

    The failed frames are let go of, so that what they held can be freed at once. Other errors pass through.
    """
    try:
        yield
        return
    except (torch.OutOfMemoryError, MemoryError):
        where = "The graphics card" if torch.cuda.is_available() else "The computer"
    except RuntimeError as error:
        if CPU_FAILURE not in str(error):
            raise
        where = "The computer"
    # Outside the except clause: the error, and with it the frames that hold the tensors, is gone.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    raise RuntimeError(f"{where} ran out of memory while {doing}; {advice}")
