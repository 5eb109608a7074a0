"""The base class of the errors that users see as one sentence, and the error for config fields that were renamed.

They are defined here, among the files that the Hub copies, so that a model loaded from there raises them too.
Everything else imports the class from `hf_vit_seg.errors`.
"""

from collections.abc import Mapping
from typing import Any

RENAMED_FIELDS = {
    "segmentation_head": "decode_head",
    "segmentation_head_depth": "decode_head_num_layers",
    "segmentation_head_width": "decode_head_hidden_size",
    "segmentation_levels": "decode_head_levels",
    "segmentation_norm_eps": "decode_head_norm_eps",
    "decoder_hidden_size": "decode_head_hidden_size",
    "decoder_flavour": "decode_head_flavor",
    "decoder_norm": "decode_head_norm",
    "decoder_norm_eps": "decode_head_norm_eps",
    "classifier_dropout_prob": "decode_head_dropout_prob",
    "pose_head_width": "pose_head_hidden_size",
}


class HfVitSegError(ValueError):
    """Input that cannot be used: what was found, what was expected, and how to fix it, in one sentence.

    Any other exception is a bug, of this package or of a library: commands show its traceback and exit with code 70.
    """


def reject_renamed_fields(config: str, fields: Mapping[str, Any], renamed: Mapping[str, str] = RENAMED_FIELDS) -> None:
    """Raise HfVitSegError for fields that had another name before the first release; transformers would ignore them."""
    changes = [f"{name} to {renamed[name]}" for name in renamed if name in fields]
    if changes:
        raise HfVitSegError(f"Fields of {config} were renamed: in config.json, change {', '.join(changes)}")
