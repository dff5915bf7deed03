"""Jobs in processes of their own, each as soon as what it needs is done."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import TypeVar

import torch

Job = TypeVar("Job", bound=Hashable)
_SECONDS = 2.0
"""Between two looks at what is running."""


def run_side_by_side(
    jobs: Sequence[Job],
    work: Callable[[Job], None],
    *,
    needs: Callable[[Job], Job | None],
    workers: int,
    watch: Callable[[], None],
) -> Iterator[Job]:
    """Yields each job when it is finished.

    A small model's training gains little from a second thread: so many of them with their share of the cores each are
    faster than one after the other with all of them (LOG.md).

    Args:
        jobs: begun in this order, where their needs allow it.
        work: a function of a module, as it is called in another process.
        needs: the job that must be finished first; one that is not among `jobs` is taken as finished.
        workers: processes.
        watch: called now and then.

    Raises:
        Exception: what `work` raised, when the others that were running have finished.
        KeyboardInterrupt: Ctrl-C, which running jobs have been told, too.
    """
    waiting, left = list(jobs), set(jobs)
    running: dict[Future[None], Job] = {}
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        try:
            while left:
                for job in [j for j in waiting if needs(j) not in left][: workers - len(running)]:
                    waiting.remove(job)
                    running[pool.submit(work, job)] = job
                finished = wait(running, timeout=_SECONDS, return_when=FIRST_COMPLETED).done
                for future in finished:
                    future.result()
                    job = running.pop(future)
                    left.remove(job)
                    yield job
                watch()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
