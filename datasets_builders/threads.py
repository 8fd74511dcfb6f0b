"""Compiled kernels over many rows, on several threads (they release the interpreter lock)."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm


def in_threads(
    kernel: Callable[[slice], None],
    count: int,
    threads: int | None = None,
    block: int = 512,
    progress: str | None = None,
) -> None:
    """Call kernel(slice) for blocks of rows 0 ... count - 1; `progress` names a progress bar."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, min(threads or cores, -(-count // block)))
    blocks = [slice(start, min(start + block, count)) for start in range(0, count, block)]
    hint = "the first use compiles for up to a minute"
    with tqdm(total=count, desc=progress, disable=progress is None, unit=" rows", postfix=hint) as bar:
        with ThreadPoolExecutor(threads) as pool:
            for rows, _ in zip(blocks, pool.map(kernel, blocks)):
                bar.set_postfix_str("", refresh=False)
                bar.update(rows.stop - rows.start)
