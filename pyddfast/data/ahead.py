"""Decoding in threads, a little ahead of whoever takes the images."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

__all__ = ["AHEAD_BYTES", "ahead", "default_workers"]

# Decoded images that wait: 450 photographs of ImageNet, or two of the largest that Pillow accepts
# without a warning.
AHEAD_BYTES = 256 << 20


def default_workers() -> int:
    """The cores that this process may use; decoders release the GIL."""
    return len(os.sched_getaffinity(0))


def ahead(
    decode: Callable[[int], Tensor | Exception], indices: Iterable[int], *, workers: int, most: int
) -> Iterator[tuple[int, Tensor | Exception]]:
    """Results of ``decode`` in the order of ``indices``, whatever the number of threads.

    Args:
        decode: Called in the threads.
        indices: What to decode.
        workers: Threads; 0 decodes in the caller's.
        most: Results that may wait; fewer of them, but one a thread, where the largest so far would
            fill ``AHEAD_BYTES`` sooner.

    Yields:
        (index, result).
    """
    if workers == 0:
        yield from ((index, decode(index)) for index in indices)
        return
    waiting: deque[tuple[int, Future[Tensor | Exception]]] = deque()
    remaining = iter(indices)
    largest: int | None = None
    pool = ThreadPoolExecutor(workers)
    try:
        while True:
            room = workers
            if largest is not None:
                room = max(workers, min(most, AHEAD_BYTES // largest))
            while len(waiting) < room and (index := next(remaining, None)) is not None:
                waiting.append((index, pool.submit(decode, index)))
            if not waiting:
                return
            index, future = waiting.popleft()
            result = future.result()
            if isinstance(result, Tensor):
                largest = max(largest or 1, result.nbytes)
            yield index, result
    finally:
        pool.shutdown(cancel_futures=True)
