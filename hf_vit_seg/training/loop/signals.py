"""Ctrl-C and SIGTERM: the first asks the run to stop after its step, a second Ctrl-C ends it at once."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import clear_frames
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Launchers pass a Ctrl-C on to processes that have had it already: so soon after the first it is the same one.
ECHO_SECONDS = 1.0


class GracefulStop:
    """As a context, catches the signals; `signal` is the first that came. Only the first thread gets any."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.since = 0.0
        self.before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "GracefulStop":
        if threading.current_thread() is threading.main_thread():  # signals are for it alone
            self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self.since = signal.Signals(number), time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.since > ECHO_SECONDS:
            raise KeyboardInterrupt


def leave_signals_to_parent(worker: int) -> None:
    """For loader workers: they end with the process that they load for, which may still need them for its last step."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def workers_ended() -> Iterator[None]:
    """Let an error hold none of the loader's iterators, with which their workers end.

    A process that has workers when it ends waits for them, and these ignore the signal that it sends.
    """
    try:
        yield
    except BaseException as error:
        clear_frames(error.__traceback__)
        raise
