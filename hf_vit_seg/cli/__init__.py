"""The command `hf-vit-seg`: each subcommand parses its options and makes one call of the library.

Exit codes: 0 success, 1 some of the work failed, 2 the command cannot be executed as given, 70 a bug (its traceback is
shown), 130 stopped by a signal.
"""

# The order of the imports is that of the commands in --help.
# isort: off
from . import predict, training, model_formats, publishing, listings  # noqa: F401
from .app import app

__all__ = ["app"]
