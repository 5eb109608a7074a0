"""ZeroGPU on Hugging Face Spaces: a GPU for the duration of a call.

The package `spaces` exists on Spaces only. On ZeroGPU a call runs in a separate process, which has the models that
were loaded before. A visitor has a quota of a few minutes a day, so only the forward pass of a model uses it.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

# For all events with a model, which computes for one of them at a time while others read images and write results.
CALLS: dict[str, Any] = {"concurrency_limit": 4, "concurrency_id": "model"}


def on_gpu(work: Callable[..., Any], seconds: Callable[..., int]) -> Callable[..., Any]:
    """Wrap a function to run on a GPU of ZeroGPU; elsewhere it is returned unchanged.

    `seconds` maps the arguments to the time limit. On ZeroGPU, arguments and results are pickled, and only gradio's
    own errors keep their messages.
    """
    return import_module("spaces").GPU(duration=seconds)(work) if on_spaces() else work


def zero_gpu() -> bool:
    """Return whether this is a Space on ZeroGPU, where models have to be loaded before the first call."""
    return on_spaces() and bool(import_module("spaces.config").Config.zero_gpu)


def on_spaces() -> bool:
    """Return whether the package `spaces` is installed; a folder of that name does not count."""
    found = find_spec("spaces")
    return found is not None and found.origin is not None


__all__ = ["CALLS", "on_gpu", "zero_gpu"]
