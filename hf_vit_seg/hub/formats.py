"""The model directory to push, in the format of this package or of transformers."""

import shutil
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from hf_vit_seg.conversion.convert import convert, export
from hf_vit_seg.conversion.errors import ConversionError
from hf_vit_seg.conversion.files.download import locate
from hf_vit_seg.conversion.in_memory import find_config, is_convertible
from hf_vit_seg.local_paths import installed_path
from hf_vit_seg.provenance import CARD
from hf_vit_seg.training.checkpoints.run_directory import RECIPE
from hf_vit_seg.training.reports.metrics_report import FILE as METRICS

from .model_directory import ModelDirectory, model_directory
from .repository import PushError

OWN, TRANSFORMERS = "own", "transformers"
COPIED = (CARD, RECIPE, METRICS, "LICENSE*")  # next to an exported model


def directory_in_format(source: str | Path, model_format: str, stack: ExitStack) -> tuple[ModelDirectory, list[str]]:
    """Return a model directory in a format, "own" or "transformers", and notes on its conversion.

    A checkpoint in another format (a directory, file, Hub id or address) is converted, and a model of this package
    exported, to a temporary directory, which the stack removes. Raises PushError.
    """
    source = installed_path(str(source))
    try:
        config = find_config(source)
        if config is not None and is_convertible(config):
            if model_format == TRANSFORMERS and "model_type" in config:
                return model_directory(locate(source)), []
            folder = temporary_folder(source, stack)
            report = convert(source, folder)
            if model_format == OWN:
                return model_directory(folder), [f"converted from {report.source}"]
            source = folder
        directory = model_directory(Path(source))
        if model_format == OWN:
            return directory, []
        folder = temporary_folder(directory.path, stack)
        report = export(directory.path, folder, to=TRANSFORMERS)
    except ConversionError as error:
        raise PushError(str(error)) from error
    for pattern in COPIED:
        for file in directory.path.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    return model_directory(folder), list(report.notes)


def temporary_folder(source: str | Path, stack: ExitStack) -> Path:
    """Return the path of a folder that does not exist yet, with the name of the source."""
    return Path(stack.enter_context(TemporaryDirectory()), Path(source).resolve().name or "model")


__all__ = ["OWN", "TRANSFORMERS", "directory_in_format"]
