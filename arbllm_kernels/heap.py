"""What the C library does with freed memory."""

from __future__ import annotations

import torch

LARGEST = 31 << 20  # bytes: glibc learns from blocks up to 32 MiB, its own bookkeeping included


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 31 MiB for the next allocation of this process.

    It gives every block above 128 KiB back to the kernel until it has seen a larger one freed, and then those larger
    than that one. The activations of a small model are just in between, so that each operation of each layer has the
    kernel clear its result page by page: a tenth of a layer's time. Freeing one large block, as a large model does
    anyway, teaches it better, once and for all; at most twice as much as it freed stays unused at the end of the heap.
    On other C libraries this does nothing.
    """
    block = torch.empty(LARGEST, dtype=torch.uint8, device="cpu")
    del block
