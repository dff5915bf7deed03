"""Jobs in processes of their own, each started as soon as the job that it needs is finished."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TypeVar

import torch

from memlm.processes import worker_pool

Job = TypeVar("Job", bound=Hashable)
_SECONDS = 2.0
"""Seconds between two calls of `watch`."""


def run_side_by_side(
    jobs: Sequence[Job],
    work: Callable[[Job], None],
    *,
    needs: Callable[[Job], Job | None],
    workers: int,
    watch: Callable[[], None] = lambda: None,
) -> Iterator[Job]:
    """Run jobs and yield each one when it is finished; one worker is this process, which takes them in order.

    The training of a small model gains little from a second thread, so several at once, each with a share of the cores,
    take less time than one after the other with all cores (LOG.md).

    Args:
        jobs: the jobs, started in this order where their needs allow it.
        work: a function of a module, called in another process where there are several.
        needs: returns the job that must finish first, or None; a job that is not in `jobs` counts as finished.
        workers: the number of processes; with one, every job must stand behind the one that it needs.
        watch: called every few seconds while there are several workers.

    Raises:
        Exception: the exception that `work` raised, after the running jobs have finished.
        KeyboardInterrupt: Ctrl-C or SIGTERM, at which running jobs are stopped too.
    """
    if workers == 1:
        for job in jobs:
            work(job)
            yield job
        return
    waiting, left = list(jobs), set(jobs)
    running: dict[Future[None], Job] = {}
    threads = max(1, (os.cpu_count() or 1) // workers)
    with worker_pool(workers, torch.set_num_threads, threads) as pool:
        while left:
            for job in [j for j in waiting if needs(j) not in left][: workers - len(running)]:
                waiting.remove(job)
                running[pool.run(work, job)] = job
            finished = wait(running, timeout=_SECONDS, return_when=FIRST_COMPLETED).done
            for future in finished:
                future.result()
                job = running.pop(future)
                left.remove(job)
                yield job
            watch()
