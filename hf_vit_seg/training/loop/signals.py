"""Ctrl-C and SIGTERM: the first signal stops the run after its step, a second Ctrl-C stops it immediately."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import clear_frames
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Launchers forward a Ctrl-C to processes that have received it already; ignore a repetition within this time.
ECHO_SECONDS = 1.0


class GracefulStop:
    """A context manager that catches the signals; `signal` is the first one received. Main thread only."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.since = 0.0
        self.before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "GracefulStop":
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            self.before = {number: signal.signal(number, self._request_stop) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self.since = signal.Signals(number), time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.since > ECHO_SECONDS:
            raise KeyboardInterrupt


def leave_signals_to_parent(worker: int) -> None:
    """Ignore the signals in a loader worker: the parent process may still need it for its last step."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def release_workers() -> Iterator[None]:
    """Release the loader's iterators on errors, so that its workers end.

    Otherwise the exiting process would wait for workers, which ignore the signal that it sends.
    """
    try:
        yield
    except BaseException as error:
        clear_frames(error.__traceback__)
        raise
