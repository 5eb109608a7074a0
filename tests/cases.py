"""What the shared test body must be told of each architecture: a row each, nothing else is written twice."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Case:
    """`sizes` are images (height, width) that the tiny variant must take; `stride` is that of its logits.

    `alternatives` gives every config field another value, so that the body can see the model read it.
    `training_only` fields show in training alone, `loss_only` in the loss, `initial_only` in fresh weights.
    """

    sizes: tuple[tuple[int, int], ...]
    stride: int
    alternatives: Mapping[str, Any]
    training_only: frozenset[str] = frozenset()
    loss_only: frozenset[str] = frozenset()
    initial_only: frozenset[str] = frozenset()
    backbone_only: frozenset[str] = frozenset()
    extra: Mapping[str, Any] = field(default_factory=dict)


CASES: dict[str, Case] = {
    "segformer": Case(
        sizes=((64, 64), (64, 96), (61, 45), (32, 131), (29, 29)),
        stride=4,
        alternatives={
            "num_channels": 5,
            "depths": (2, 1, 1, 1),
            "hidden_sizes": (8, 32, 40, 64),
            "num_attention_heads": (2, 2, 5, 8),
            "sr_ratios": (4, 4, 2, 1),
            "patch_sizes": (5, 3, 3, 3),
            "strides": (2, 2, 2, 2),
            "mlp_ratios": (2, 4, 4, 4),
            "hidden_act": "relu",
            "hidden_dropout_prob": 0.5,
            "attention_probs_dropout_prob": 0.5,
            "drop_path_rate": 0.9,
            "classifier_dropout_prob": 0.9,
            "layer_norm_eps": 0.5,
            "patch_norm_eps": 0.5,
            "reduction_norm_eps": 0.5,
            "decoder_hidden_size": 16,
            "decoder_flavour": "mmseg",
            "decoder_norm_eps": 0.5,
            "initializer_range": 0.2,
            "semantic_loss_ignore_index": 1,
        },
        training_only=frozenset(
            {"hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "classifier_dropout_prob"}
        ),
        loss_only=frozenset({"semantic_loss_ignore_index"}),
        initial_only=frozenset({"initializer_range"}),
    ),
}
