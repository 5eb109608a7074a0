"""A head of another package: built by name, and saved with the code of the model that wears it.

Such a head is a module in a file like those of this folder (it imports torch, transformers and siblings). It is built
as `Head(in_channels, num_labels, ...)` with the channels C_i of each map, and with those of SETTINGS that it has
parameters for. Called with the maps (B, C_i, H_i, W_i), finest first, it gives logits (B, K, H, W) on the finest grid.

Shapes: B images, K classes, H W the finest grid, C_i H_i W_i channels and grid of map i.
"""

import shutil
import sys
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files

from .plugged_heads import PLUGGED_HEADS

# Parameters that a head may have, and the config's fields that give them.
SETTINGS = {
    "width": "segmentation_head_width",
    "depth": "segmentation_head_depth",
    "dropout": "classifier_dropout_prob",
    "norm": "decoder_norm",
    "norm_eps": "segmentation_norm_eps",
    "hidden_act": "hidden_act",
}
TABLE_FILE = "plugged_heads.py"
PUSH_OPTIONS = tuple(signature(PreTrainedModel.push_to_hub).parameters)


def plugged_head(config: Any, in_channels: Sequence[int]) -> nn.Module:
    """The head that `config.segmentation_head` names; a width that the config leaves open is the head's own.

    ValueError where the head cannot be built.
    """
    head = PLUGGED_HEADS[config.segmentation_head]
    known = signature(head).parameters
    settings = {name: getattr(config, field) for name, field in SETTINGS.items() if name in known}
    given = {name: value for name, value in settings.items() if value is not None}
    try:
        return head(in_channels, config.num_labels, **given)
    except Exception as error:  # a stranger's code may raise anything
        raise ValueError(
            f"segmentation_head '{config.segmentation_head}' cannot be built for maps of {list(in_channels)} channels: "
            f"{type(error).__name__}: {error}"
        ) from error


class WearsPluggedHead(PreTrainedModel):
    """A model whose `decode_head` may be of another package: what it is saved with has the head's code too."""

    def save_pretrained(self, save_directory: Any, *args: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As transformers does; a push follows when all files are there."""
        super().save_pretrained(save_directory, *args, **kwargs)
        name = getattr(self.config, "segmentation_head", None)
        if self._auto_class is not None and name in PLUGGED_HEADS:
            copy_head_code(name, Path(save_directory))
        if push_to_hub:
            options = {option: kwargs[option] for option in PUSH_OPTIONS if option in kwargs}
            self.push_to_hub(options.pop("repo_id", Path(save_directory).name), **options)


def copy_head_code(name: str, folder: Path) -> None:
    """Put a head's file and its siblings into a folder, and the table that finds it there.

    ValueError where a file of the head has the name of another one of the model.
    """
    head = PLUGGED_HEADS[name]
    source = Path(sys.modules[head.__module__].__file__ or "")
    for file in (source, *map(Path, get_relative_import_files(source))):
        ours = Path(__file__).with_name(file.name)
        if ours.exists() and not ours.samefile(file):
            raise ValueError(f"segmentation_head '{name}' has a file {file}, and the model one of that name: rename it")
        shutil.copyfile(file, folder / file.name)
    (folder / TABLE_FILE).write_text(table_of(name, source.stem, head.__name__), encoding="utf-8")


def table_of(name: str, module: str, head: str) -> str:
    """The text of `plugged_heads` for one head that lies beside it."""
    lines = [
        '"""The segmentation head that the model beside this file wears."""',
        "",
        "from torch import nn",
        "",
        f"from .{module} import {head}",
        "",
        f"PLUGGED_HEADS: dict[str, type[nn.Module]] = {{{name!r}: {head}}}",
    ]
    return "\n".join(lines) + "\n"


__all__ = ["WearsPluggedHead", "plugged_head"]
