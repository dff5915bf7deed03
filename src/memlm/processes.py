"""Processes: signals that stop a command, the launcher's variables, and worker processes that end with their parent."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final, NoReturn, TypeVar

from memlm.errors import ConfigError, UserError

STOPS: Final = (signal.SIGINT, signal.SIGTERM)
"""Signals that ask a command to stop."""
_RANKS: Final = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
T = TypeVar("T")


class Stopped:
    """The signal that asked this process to stop, if one did."""

    signal: int | None = None

    @classmethod
    def exit_code(cls) -> int | None:
        """Return 130 after SIGINT, 143 after SIGTERM, and None where nothing asked to stop."""
        return None if cls.signal is None else 128 + cls.signal


@contextmanager
def stoppable() -> Generator[None]:
    """Raise KeyboardInterrupt at SIGINT and SIGTERM within the context, and remember the signal in `Stopped`.

    While a module is imported, the function that handled the signal before the context is called first: libraries lose
    an exception there, or end the process.
    """
    here = inspect.currentframe()
    caller = here and here.f_back and here.f_back.f_back  # contextlib stands between

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        Stopped.signal = number
        if callable(earlier := before.get(number)) and _is_importing(frame, caller):
            earlier(number, frame)
        raise KeyboardInterrupt

    def again(unraisable: Any) -> None:
        # an interrupt in a destructor or a callback of a library is lost there: the signal is sent once more
        if issubclass(unraisable.exc_type, KeyboardInterrupt) and Stopped.signal is not None:
            signal.raise_signal(Stopped.signal)
        else:
            sys.__unraisablehook__(unraisable)

    Stopped.signal = None
    before, hook = handled_by(stop), sys.unraisablehook
    sys.unraisablehook = again if before else hook
    try:
        yield
    finally:
        restore(before)
        sys.unraisablehook = hook


def _is_importing(frame: FrameType | None, outside: FrameType | None) -> bool:
    """Return whether Python imports a module in a frame, or in one that called it within another one."""
    while frame is not None and frame is not outside:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def handled_by(handler: Callable[[int, FrameType | None], object]) -> dict[int, Any]:
    """Handle `STOPS` by a function, and return the handlers before; none where this is not the main thread."""
    with suppress(ValueError):
        before: dict[int, Any] = {number: signal.signal(number, handler) for number in STOPS}
        _replaced.append(before)
        return before
    return {}


def restore(handlers: dict[int, Any]) -> None:
    """Put back the handlers that `handled_by` returned."""
    _replaced[:] = [before for before in _replaced if before is not handlers]
    for number, handler in handlers.items():
        # a handler that was not set by Python cannot be put back
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


_replaced: list[dict[int, Any]] = []
"""Handlers that ours stand for, the outermost ones first."""
_mask = threading.local()


# A process that a library forks must end as it would without memlm. Python drops signals that arrive while it is made,
# so they wait until it has the handlers from before.
def _before_fork() -> None:
    _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS) if _replaced else None


def _after_fork() -> None:
    if _mask.before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _mask.before)


def _in_forked() -> None:
    if _replaced:
        restore(_replaced[0])
        _replaced.clear()
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_forked)


def rank_of_launcher() -> int:
    """Return the number of this process among those of a launcher such as torchrun; 0 without one.

    Raises:
        ConfigError: a variable of the launcher is no whole number.
    """
    found = {name: _whole(name) for name in _RANKS}
    return found["RANK"] if found["WORLD_SIZE"] > 1 else 0


def processes_of_launcher() -> int:
    """Return the number of a launcher's processes; 1 without one."""
    return max(1, _whole("WORLD_SIZE"))


def _whole(name: str) -> int:
    value = os.environ.get(name, "0")
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise ConfigError(f"{name} ('{value}') must be a whole number, as torchrun sets it; unset {name}.")
    return int(value)


@contextmanager
def worker_pool(workers: int, start: Callable[..., object] | None = None, *given: object) -> Generator[WorkerPool]:
    """Yield worker processes, which are stopped when the block fails, and always end with this process.

    Args:
        workers: the number of processes.
        start: a function of a module that every worker calls first, with `given`.
        given: arguments of `start`.

    Raises:
        UserError: a worker was ended from outside.
    """
    context = multiprocessing.get_context("spawn")
    pool = WorkerPool(workers, context, initializer=_begin, initargs=(start, given))
    try:
        yield pool
    except BrokenExecutor as error:
        pool.stop()
        raise UserError(
            "a worker process was ended from outside, perhaps because memory ran out; give fewer workers."
        ) from error
    except (KeyboardInterrupt, GeneratorExit):
        pool.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


class WorkerPool(ProcessPoolExecutor):
    """Processes that run functions of modules; `worker_pool` makes them."""

    def run(self, work: Callable[..., T], *given: object) -> Future[T]:
        """Start `work` in a worker."""
        # workers inherit the mask, so that none prints a traceback before it can handle signals
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        try:
            return self.submit(_work, work, *given)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def stop(self) -> None:
        """Ask every worker to stop; one that trains keeps a checkpoint first."""
        for process in list((self._processes or {}).values()):
            with suppress(ProcessLookupError, ValueError):
                process.terminate()


_failed: list[Exception] = []
"""The error of this worker's start; its first job raises it."""


def _begin(start: Callable[..., object] | None, given: tuple[object, ...]) -> None:
    """Prepare a worker: it ignores Ctrl-C, since its parent tells it to stop, and it ends with its parent."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    try:
        if start is not None:
            start(*given)
    except Exception as error:  # an executor would print it with its traceback
        _failed.append(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(work: Callable[..., T], *given: object) -> T:
    """Do a job; SIGTERM interrupts it, and ends a worker that has none."""
    if _failed:
        raise _failed[0]
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return work(*given)
    finally:
        signal.signal(signal.SIGTERM, before)
