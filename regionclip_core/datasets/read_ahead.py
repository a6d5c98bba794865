"""Reading ahead in threads, so that the images of the next batch are decoded and resized while a network has this one.

Threads, not processes: Pillow and torch do the work outside of Python's lock, nothing is copied, and a shard needs no
start. Beside a compute thread on the same CPU there is nothing to gain: then nothing is read ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def read_ahead(
    read: Callable[[_Item], _Result], items: Iterable[_Item], threads: int, ahead: int
) -> Generator[tuple[_Item, Callable[[], _Result]], None, None]:
    """Yield each item in order, with a function that returns `read(item)` or raises what that raised.

    Args:
        threads: that read; 0: the function itself reads when it is called.
        ahead: items that are read, or waiting to be, beyond those that were yielded. It bounds memory.

    Close it (`contextlib.closing`) before what `read` uses is closed.
    """
    if not threads:
        yield from ((item, partial(read, item)) for item in items)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="read_ahead") as pool:
        try:
            waiting: deque[tuple[_Item, Callable[[], _Result]]] = deque()
            for item in items:
                waiting.append((item, pool.submit(read, item).result))
                if len(waiting) > ahead:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        except BaseException:  # closed early; at a normal end results may still be waited for
            pool.shutdown(cancel_futures=True)
            raise
