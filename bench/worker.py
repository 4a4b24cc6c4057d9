"""The child process that measures: if a cell kills it, the sweep notes that and starts another."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing as mp
import multiprocessing.connection
import time
import traceback
from collections.abc import Callable
from typing import Any

from longformer_triton.bench.record import DIED, ERROR, OK, OUT_OF_MEMORY, WRONG

_POLL_SECONDS = 0.1
_LEAVING_SECONDS = 10.0

# A status, the reason when it is not OK, and what was measured.
Outcome = tuple[str, str, Any]
Measure = Callable[[Any, Any, float], Any]


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _is_fault(outcome: Outcome) -> bool:
    """Whether a GPU has reported a fault, after which nothing else runs in the process."""
    status, reason, _ = outcome
    return status == ERROR and any(name in reason for name in ("CUDA error", "HIP error"))


def _serve(connection: multiprocessing.connection.Connection, device_name: str, threads: int | None, measure: Measure) -> None:
    """Measure case after case until the other end closes."""
    import torch

    from longformer_triton.bench.check import WrongAnswerError

    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device(device_name)
    while True:
        try:
            case, cell_seconds = connection.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        try:
            outcome: Outcome = (OK, "", measure(case, device, cell_seconds))
        except WrongAnswerError as error:
            outcome = (WRONG, str(error), None)
        except KeyboardInterrupt:
            return
        except Exception as error:
            status = OUT_OF_MEMORY if _is_out_of_memory(error) else ERROR
            last = traceback.extract_tb(error.__traceback__)[-1]
            lines = str(error).strip().splitlines()
            outcome = (status, f"{type(error).__name__}: {lines[0] if lines else ''} ({last.name}:{last.lineno})", None)
        # What a cell leaves in PyTorch's cache would count as taken when the next one is asked whether it fits.
        gc.collect()
        if device.type == "cuda":
            with contextlib.suppress(RuntimeError):  # after a fault not even this works
                torch.cuda.empty_cache()
        connection.send(outcome)


class Worker:
    """A child process that takes one case at a time and is replaced when it dies.

    ``measure(case, device, seconds)`` is a function that the child can import; the case is whatever it takes.
    """

    def __init__(self, device: str, threads: int | None, measure: Measure, serve: Callable[..., None] = _serve) -> None:
        self._arguments = (device, threads, measure)
        self._serve = serve
        self._process: Any = None
        self._connection: Any = None
        self._is_busy = False

    def _start(self) -> None:
        # Spawned, not forked: a fork of a process that has used torch's threads or a GPU does not work.
        context = mp.get_context("spawn")
        connection, child = context.Pipe()
        process = context.Process(target=self._serve, args=(child, *self._arguments), daemon=True)
        process.start()
        child.close()
        self._process, self._connection = process, connection

    def run(self, case: Any, cell_seconds: float, deadline: float | None) -> Outcome | None:
        """The outcome of one cell, or None when ``deadline`` (of ``time.monotonic``) came first; the child is then stopped.

        A child that is gone is replaced, but for a case of None: that goes on with what an earlier case has set up in it.
        """
        if case is not None and (self._process is None or not self._process.is_alive()):
            self.stop()
            self._start()
        try:
            self._connection.send((case, cell_seconds))
            self._is_busy = True
            while not self._connection.poll(_POLL_SECONDS):
                if deadline is not None and time.monotonic() > deadline:
                    self.stop()
                    return None
            outcome: Outcome = self._connection.recv()
            self._is_busy = False
            if _is_fault(outcome):
                self.stop()
            return outcome
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            self.stop()
            hint = ", as when the system runs out of memory" if code == -9 else ""
            return DIED, f"the measuring process ended with exit code {code}{hint}", None

    def stop(self) -> None:
        """End the child: an idle one leaves by itself, and so cleans up; a busy one is terminated."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.join(0 if self._is_busy else _LEAVING_SECONDS)
            if self._process.is_alive():
                self._process.terminate()
            self._process.join()
        self._process = self._connection = None
        self._is_busy = False
