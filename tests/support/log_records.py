"""Messages of loggers, also of those that transformers keeps from pytest's `caplog`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class Messages(logging.Handler):
    """Collects messages."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def collect_messages(name: str) -> Iterator[list[str]]:
    """Yield the messages that a logger gets, also those of `warning_once` that it has had before."""
    getattr(logging.Logger, "warning_once").cache_clear()  # noqa: B009 (transformers adds the method)
    handler, logger = Messages(), logging.getLogger(name)
    logger.addHandler(handler)
    try:
        yield handler.texts
    finally:
        logger.removeHandler(handler)
