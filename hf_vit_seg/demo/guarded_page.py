"""A gradio page that checks the inputs of all calls and reports failures as sentences."""

import logging
import threading
from typing import Any

import gradio as gr

from hf_vit_seg.errors import HfVitSegError

from .inputs import check_values
from .uploads import error_message, failure_text

logger = logging.getLogger(__name__)


class GuardedPage(gr.Blocks):
    """A page whose events can be called by anyone.

    Every call goes through `preprocess_data`, whether it comes from the page, by name or by index, with or without the
    queue, so this is where its values are checked, before gradio moves, fetches or opens a file.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.closed = threading.Event()

    def close(self, verbose: bool = True) -> None:
        """End the server."""
        self.closed.set()
        super().close(verbose)

    async def preprocess_data(self, block_fn: Any, inputs: Any, state: Any, explicit_call: bool = False) -> Any:
        """Check the values first; gr.Error for invalid ones."""
        try:
            values = check_values(block_fn.inputs, inputs)
        except HfVitSegError as error:
            raise gr.Error(error_message(error), print_exception=False, duration=None) from error
        return await super().preprocess_data(block_fn, values, state, explicit_call)

    async def process_api(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Log unexpected exceptions and report them to the visitor in one sentence."""
        try:
            return await super().process_api(*arguments, **options)
        except gr.Error:
            raise
        except Exception as error:
            logger.error("a call of the demo failed", exc_info=error)
            raise gr.Error(failure_text(error), print_exception=False, duration=None) from error


__all__ = ["GuardedPage"]
