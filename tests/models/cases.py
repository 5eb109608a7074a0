"""One row per architecture with the parameters of the shared tests."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Case:
    """`sizes` are image sizes (height, width) that the tiny variant must accept; `grid` maps a side of the image to the
    side of its segmentation logits.

    `alternatives` gives every config field another value, to check that the model uses the field.
    `required_fields` gives the other settings under which a field has an effect, `under` the auto class that uses it,
    if that is not the segmentation model.
    `unreached` lists, by auto class, the suffixes of parameters that get no gradient by design.
    `hidden_states` is the number of hidden states, if that is not one per layer.
    `training_only` fields have an effect only in training, `loss_only` in the loss, `initial_only` at initialization.
    """

    sizes: tuple[tuple[int, int], ...]
    grid: Callable[[int], int]
    alternatives: Mapping[str, Any]
    training_only: frozenset[str] = frozenset()
    loss_only: frozenset[str] = frozenset()
    initial_only: frozenset[str] = frozenset()
    backbone_only: frozenset[str] = frozenset()
    required_fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    under: Mapping[str, str] = field(default_factory=dict)
    unreached: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hidden_states: int | None = None


UNIVERSAL = "AutoModelForUniversalSegmentation"
# Fields of models that predict objects; the numbers of points exceed what is sampled at random.
OBJECTS = {
    "num_queries": 5,
    "query_masked_inference": True,
    "no_object_weight": 0.5,
    "class_weight": 1.0,
    "mask_weight": 1.0,
    "dice_weight": 1.0,
    "train_num_points": 20,
    "oversample_ratio": 1.5,
    "importance_sample_ratio": 0.5,
}
OBJECT_LOSS = frozenset(OBJECTS) - {"num_queries", "query_masked_inference"}
QUERY_LAYERS = {"query_num_layers": 2, "query_num_heads": 2, "query_masked_inference": False}
UNDER_UNIVERSAL = dict.fromkeys((*OBJECTS, *QUERY_LAYERS), UNIVERSAL)

CLASSIFIERS = ("pooling", "pool_norm", "pre_logits_size", "use_distillation_classifier")

CASES: dict[str, Case] = {
    "segformer": Case(
        sizes=((64, 64), (64, 96), (61, 45), (32, 131), (29, 29)),
        grid=lambda side: -(-side // 4),
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
            "decode_head_dropout_prob": 0.9,
            "layer_norm_eps": 0.5,
            "patch_norm_eps": 0.5,
            "reduction_norm_eps": 0.5,
            "decode_head_hidden_size": 16,
            "decode_head_flavor": "mmseg",
            "decode_head_norm": "group",
            "decode_head_norm_eps": 0.5,
            "initializer_range": 0.2,
            "semantic_loss_ignore_index": 1,
            "decode_head": "query",
            **OBJECTS,
            **QUERY_LAYERS,
        },
        under=UNDER_UNIVERSAL,
        training_only=frozenset(
            {"hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "decode_head_dropout_prob"}
        ),
        loss_only=frozenset({"semantic_loss_ignore_index"}) | OBJECT_LOSS,
        initial_only=frozenset({"initializer_range"}),
    ),
    "cvt": Case(
        sizes=((64, 64), (64, 96), (61, 45), (32, 131), (3, 3)),
        grid=lambda side: (side + 1) // 4,
        alternatives={
            "num_channels": 5,
            "depths": (2, 2, 2),
            "hidden_sizes": (8, 32, 48),
            "num_attention_heads": (2, 2, 3),
            "patch_sizes": (5, 3, 3),
            "strides": (2, 2, 2),
            "paddings": (3, 1, 1),
            "mlp_ratios": (2, 4, 4),
            "qkv_bias": (True, False, True),
            "use_cls_token": (True, False, True),
            "projection_methods": ("dw_bn", "avg", "dw_bn"),
            "kernel_qkv": (3, 1, 3),
            "stride_kv": (2, 1, 2),
            "padding_kv": (1, 0, 1),
            "hidden_act": "relu",
            "hidden_dropout_prob": 0.5,
            "attention_probs_dropout_prob": (0.0, 0.5, 0.0),
            "drop_path_rate": 0.9,
            "decode_head_dropout_prob": 0.9,
            "layer_norm_eps": 0.5,
            "batch_norm_eps": 0.5,
            "decode_head_hidden_size": 16,
            "decode_head_flavor": "mmseg",
            "decode_head_norm": "group",
            "decode_head_norm_eps": 0.5,
            "initializer_range": 0.2,
            "semantic_loss_ignore_index": 1,
            "decode_head": "query",
            **OBJECTS,
            **QUERY_LAYERS,
        },
        under=UNDER_UNIVERSAL,
        # In the last layer only the class token's query reaches the classifier, and it bypasses the convolution.
        unreached={
            "AutoModelForImageClassification": (
                "stages.2.layers.1.attention.q_conv.convolution.weight",
                "stages.2.layers.1.attention.q_conv.norm.weight",
                "stages.2.layers.1.attention.q_conv.norm.bias",
            )
        },
        training_only=frozenset(
            {"hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "decode_head_dropout_prob"}
        ),
        loss_only=frozenset({"semantic_loss_ignore_index"}) | OBJECT_LOSS,
        initial_only=frozenset({"initializer_range"}),
    ),
}

HYBRID = {"stem": "resnetv2", "stem_depths": (1,), "stem_width_factor": 0.5, "patch_size": 4}
MASKS = {"decode_head": "mask_transformer"}
VIT = Case(
    hidden_states=5,
    sizes=((64, 64), (64, 96), (61, 45), (32, 131), (1, 7)),
    grid=lambda side: -(-side // 8),
    alternatives={
        "num_channels": 5,
        "image_size": 32,
        "patch_size": (8, 16),
        "patch_padding": 1,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "hidden_act": "quick_gelu",
        "qkv_bias": False,
        "use_cls_token": False,
        "use_distillation_token": True,
        "use_distillation_classifier": False,
        "num_register_tokens": 2,
        "position_embeddings_cover_prefix": False,
        "position_resize_mode": "bilinear",
        "position_resize_align_corners": True,
        "position_resize_antialias": False,
        "layer_scale_init_value": 0.1,
        "hidden_dropout_prob": 0.5,
        "attention_probs_dropout_prob": 0.5,
        "drop_path_rate": 0.9,
        "layer_norm_eps": 0.5,
        "use_final_norm": False,
        "pooling": "mean",
        "pool_norm": True,
        "pre_logits_size": 7,
        "initializer_range": 0.2,
        "stem": "resnetv2",
        "stem_depths": (),
        "stem_width_factor": 1,
        "stem_padding": "symmetric",
        "stem_weight_standardization_mode": "sqrt_var_plus_eps",
        "stem_weight_standardization_eps": 0.5,
        "stem_group_norm_eps": 0.5,
        "stem_shortcut_norm": "channel",
        "stem_shortcut_norm_eps": 0.5,
        "stem_pool_padding": False,
        "decode_head": "feature_pyramid",
        "decode_head_num_layers": 1,
        "decode_head_hidden_size": 64,
        "decode_head_norm_eps": 0.5,
        "decode_head_norm": "group",
        "decode_head_levels": (1, 1, 2, 3),
        "pose_head": "simple",
        "pose_head_hidden_size": 16,
        "pose_head_norm": "group",
        "pose_flip_test": True,
        "pose_flip_pairs": ((3, 4),),
        "pose_target_sigma": 1,
        "decode_head_dropout_prob": 0.9,
        "token_merging": 0.5,
        "semantic_loss_ignore_index": 1,
        "num_query_blocks": 3,
        "num_upscale_blocks": 1,
        **OBJECTS,
    },
    required_fields={
        "position_resize_mode": {"image_size": 128},
        "position_resize_align_corners": {"image_size": 128},
        "position_resize_antialias": {"image_size": 128},
        "stem_depths": HYBRID,
        "stem_width_factor": HYBRID,
        "stem_padding": HYBRID,
        "stem_weight_standardization_mode": HYBRID | {"stem_weight_standardization_eps": 0.1},
        "stem_weight_standardization_eps": HYBRID,
        "stem_group_norm_eps": HYBRID,
        "stem_shortcut_norm": HYBRID,
        "stem_shortcut_norm_eps": HYBRID,
        "stem_pool_padding": HYBRID | {"stem_depths": (1, 1), "patch_size": 2},
        "decode_head_num_layers": MASKS,
        "decode_head_hidden_size": MASKS,
        "decode_head_norm_eps": MASKS,
        "decode_head_levels": {"decode_head": "feature_pyramid"},
        "decode_head_norm": {"decode_head": "feature_pyramid"},
        "use_distillation_classifier": {"use_distillation_token": True},
        "pose_flip_test": {"pose_flip_pairs": ((1, 2),)},
        "pose_flip_pairs": {"pose_flip_test": True, "pose_flip_pairs": ((1, 2),)},
    },
    under=dict.fromkeys((*OBJECTS, "num_query_blocks", "num_upscale_blocks"), UNIVERSAL)
    | {name: "AutoModelForImageClassification" for name in CLASSIFIERS}
    | {
        name: "AutoModelForPoseEstimation"
        for name in (
            "pose_head",
            "pose_head_hidden_size",
            "pose_head_norm",
            "pose_flip_test",
            "pose_flip_pairs",
            "pose_target_sigma",
        )
    },
    training_only=frozenset(
        {"hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "decode_head_dropout_prob"}
    ),
    loss_only=frozenset({"semantic_loss_ignore_index", "pose_target_sigma"}) | OBJECT_LOSS,
    initial_only=frozenset({"initializer_range"}),
)
CASES["vit"] = VIT

DINOV2 = {"model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 8}
BACKBONE = Case(
    sizes=((64, 64), (64, 96), (61, 45), (32, 131), (1, 7)),
    grid=lambda side: -(-side // 2),
    alternatives={
        "backbone_config": DINOV2 | {"mlp_ratio": 1},
        "decode_head": "linear",
        "decode_head_levels": (1, 2, 3, 4),
        "decode_head_num_layers": 1,
        "decode_head_hidden_size": 64,
        "decode_head_norm_eps": 0.5,
        "hidden_act": "relu",
        "decode_head_norm": "group",
        "decode_head_dropout_prob": 0.9,
        "initializer_range": 0.2,
        "semantic_loss_ignore_index": 1,
        **OBJECTS,
        **QUERY_LAYERS,
    },
    under=UNDER_UNIVERSAL,
    required_fields={
        "decode_head_num_layers": MASKS,
        "decode_head_hidden_size": MASKS,
        "decode_head_norm_eps": MASKS,
        "decode_head_levels": {"decode_head_levels": (0, 1, 2, 3)},
        "hidden_act": MASKS,
    },
    # The mask token is used in DINOv2's pretraining; a key bias shifts all scores of a query equally.
    unreached=dict.fromkeys(("AutoModelForSemanticSegmentation", UNIVERSAL), ("mask_token", "key.bias")),
    training_only=frozenset({"decode_head_dropout_prob"}),
    loss_only=frozenset({"semantic_loss_ignore_index"}) | OBJECT_LOSS,
    initial_only=frozenset({"initializer_range"}),
    hidden_states=5,
)
CASES["backbone"] = BACKBONE
