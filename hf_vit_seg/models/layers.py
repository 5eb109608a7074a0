"""Base classes and layers that several architectures share.

Configs and models: config fields that are set after construction have the same effect as constructor arguments. Models
can be pickled (`torch.save(model)`, `spawn`). transformers records hidden states with hooks that are local functions,
which pickle refuses, and keeps the outputs that can be recorded in a table that only constructors fill: a process that
unpickles a model does not have its entry.

Layers: attention, stochastic depth, and the Vision Transformer's layer.

Sources: attention (arXiv 1706.03762, equation 1), stochastic depth (arXiv 1603.09382), the Vision Transformer
(arXiv 2010.11929, figure 1; equation numbers are this paper's), GroupNorm (arXiv 1803.08494).

Shapes: B images, N queries, M keys, T tokens, C channels, D width of a head, H W grid.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps
from math import gcd, inf
from typing import Any, NamedTuple

import torch
from packaging.version import InvalidVersion, Version
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging, output_capturing

from .cpu_kernels import apply_linear, in_row_strips
from .errors import HfVitSegError

logger = logging.get_logger(__name__)

HOOKS_INSTALLED = "_output_capturing_hooks_installed"  # transformers' attribute of a model
RECORDABLE = getattr(output_capturing, "_CAN_RECORD_REGISTRY", {})  # private, so it may be renamed
MAX_GROUPS = 32  # groups of GroupNorm, section 4
# Options of `from_pretrained` that locate files.
HUB_OPTIONS = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download")
RATES = ("_dropout_prob", "drop_path_rate")  # ends of the names of fields that are probabilities of dropping values
POSITIVE = frozenset(
    (
        *("num_channels", "hidden_size", "hidden_sizes", "intermediate_size", "num_attention_heads", "mlp_ratios"),
        *("image_size", "patch_size", "patch_sizes", "strides", "sr_ratios", "kernel_qkv", "stride_kv"),
        *("decode_head_hidden_size", "pose_head_hidden_size", "pre_logits_size", "stem_width_factor"),
        *("num_queries", "num_query_blocks", "query_num_heads", "train_num_points"),
    )
)
NOT_NEGATIVE = ("_eps", "padding", "paddings", "padding_kv", "depths", "num_hidden_layers", "num_register_tokens")


LAYERS = ("depths", "num_hidden_layers")
MAX_LAYERS = 1000  # of a stage: a file that declares billions of layers would exhaust the memory
MAX_INTEGER = 2**31  # limit of any integer field


Fields = dict[str, Any]
FORMAT_FIELD = "hf_vit_seg_version"  # in config.json
FORMAT_VERSION = "0.1.0"  # the package's version: it is not installed where this code is loaded from the Hub
FIRST_VERSION = "0.1.0"  # version of configs without the field
# Changes of the fields of configs, by the version that made them, in ascending order.
MIGRATIONS: tuple[tuple[str, Callable[[Fields], Fields]], ...] = ()


def migrate_fields(fields: Fields, name: str) -> Fields:
    """Return the fields of a config that another version has written in the format of this one, without the version.

    A newer version is reported: its new fields have no effect. Raises HfVitSegError if it is not a version.
    """
    fields = dict(fields)
    given = fields.pop(FORMAT_FIELD, FIRST_VERSION)
    try:
        written = Version(given)
    except (InvalidVersion, TypeError):
        raise HfVitSegError(
            f"{name}.{FORMAT_FIELD} must be a version such as {FORMAT_VERSION}, got {given!r}"
        ) from None
    for changed, change in MIGRATIONS:
        if written < Version(changed):
            fields = change(fields)
    if written > Version(FORMAT_VERSION):
        logger.warning_once(
            f"{name} was written by hf_vit_seg {written}, which is newer than {FORMAT_VERSION}: update the package if "
            "the model cannot be loaded, or computes something else."
        )
    return fields


def check_fields(fields: Mapping[str, Any], name: str) -> None:
    """Raise HfVitSegError for fields of a config.json that transformers expects to have the right type, and for huge
    numbers.

    Configs check their own fields when they are built, but some of these are used before.
    """
    for field, expected, described in (
        ("id2label", Mapping, "a mapping"),
        ("out_indices", list | tuple, "a list of indices"),
        ("out_features", list | tuple, "a list of names"),
    ):
        given = fields.get(field)
        is_flat = not isinstance(given, list | tuple) or all(isinstance(each, int | str) for each in given)
        if given is not None and not (isinstance(given, expected) and is_flat):
            raise HfVitSegError(f"{name}.{field} must be {described}, got {str(given)[:80]}")
    for field, given in fields.items():
        limit = MAX_LAYERS if field in LAYERS else MAX_INTEGER
        for number in given if isinstance(given, list | tuple) else [given]:
            if isinstance(number, int) and number > limit:
                raise HfVitSegError(f"{name}.{field} must be at most {limit}, got {number}")


class SegmentationConfig(PreTrainedConfig):
    """A config whose derived fields follow the fields that `from_pretrained` overrides.

    transformers builds a config from its file, and sets the overrides of `from_pretrained(path, depths=...)` as
    attributes afterwards. `update_derived_fields` is called, and the config validated, after both.
    """

    def update_derived_fields(self) -> None:
        """Compute the fields that depend on others; may be called any number of times."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a config as transformers does, with the derived fields of the overrides in `kwargs`."""
        config_dict = migrate_fields(config_dict, cls.__name__)
        check_fields({**config_dict, **kwargs}, cls.__name__)
        loaded = super().from_dict(config_dict, **kwargs)
        config: Any = loaded[0] if isinstance(loaded, tuple) else loaded
        config.update_derived_fields()
        config.validate()
        return loaded

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, with the version of the package that writes them."""
        return super().to_dict() | {FORMAT_FIELD: FORMAT_VERSION}

    def validate_rates(self) -> None:
        """Raise ValueError for rates of dropout and stochastic depth that are negative, or not below 1."""
        for name, given in vars(self).items():
            if not name.endswith(RATES):
                continue
            for rate in given if isinstance(given, list | tuple) else [given]:
                if rate is not None and not 0 <= rate < 1:
                    raise HfVitSegError(f"{type(self).__name__}.{name} must be from 0 to below 1, got {rate}")

    def validate_numbers(self) -> None:
        """Raise ValueError for sizes that are not positive, and for negative paddings, depths and epsilons."""
        for name, given in vars(self).items():
            if name not in POSITIVE and not name.endswith(NOT_NEGATIVE):
                continue
            for number in given if isinstance(given, list | tuple) else [given]:
                if isinstance(number, int | float) and not (0 <= number < inf and (number or name not in POSITIVE)):
                    expected = "positive" if name in POSITIVE else "at least 0"
                    raise HfVitSegError(f"{type(self).__name__}.{name} must be {expected}, got {number}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "id2label" and isinstance(value, Mapping):  # the keys of a JSON object are strings
            value = {int(index): label for index, label in value.items()}
        super().__setattr__(name, value)


class StagedConfig(BackboneConfigMixin, SegmentationConfig):
    """A config of an encoder whose stages can be selected as the outputs of a backbone."""

    def list_stages(self) -> list[str]:
        """Return the names of all stages."""
        raise NotImplementedError

    def update_derived_fields(self) -> None:
        """Name the stages. Selected stages that no longer exist are dropped; the last one remains the last one."""
        stages, old = self.list_stages(), self.stage_names
        if stages == old:
            return
        self.stage_names = stages
        follows_last = self.out_features == old[-1:]
        kept = None if follows_last else [name for name in self.out_features or () if name in stages]
        self.set_output_features_output_indices(kept or None, None)

    def select_stages(self, fields: dict[str, Any]) -> None:
        """Set the selected stages from config fields, and remove these fields."""
        self.stage_names = self.list_stages()
        fields.pop("stage_names", None)
        self.set_output_features_output_indices(
            out_features=fields.pop("out_features", None), out_indices=fields.pop("out_indices", None)
        )


class MaskClassificationConfig(SegmentationConfig):
    """The fields of models that predict objects (arXiv 2112.01527, arXiv 2503.19108).

    `num_queries` is the largest number of objects in an image. `class_weight`, `mask_weight` and `dice_weight` are the
    weights of the loss and of the matching, `no_object_weight` is the weight of queries without an object in the class
    term. Masks are compared at `train_num_points` points, of which `importance_sample_ratio` are the most uncertain of
    `oversample_ratio` times as many. `query_masked_inference`: queries attend within their own masks in inference, as
    in training. Otherwise, training anneals the masks.
    """

    num_queries: int = 100
    query_masked_inference: bool = False
    no_object_weight: float | int = 0.1
    class_weight: float | int = 2.0
    mask_weight: float | int = 5.0
    dice_weight: float | int = 5.0
    train_num_points: int = 12544
    oversample_ratio: float | int = 3.0
    importance_sample_ratio: float | int = 0.75

    def validate_queries(self) -> None:
        """Raise ValueError for numbers and weights of the loss without a meaning."""
        if self.oversample_ratio < 1 or not 0 <= self.importance_sample_ratio <= 1:
            raise HfVitSegError(
                f"{type(self).__name__}.oversample_ratio must be at least 1 and importance_sample_ratio from 0 to 1, "
                f"got {self.oversample_ratio} and {self.importance_sample_ratio}"
            )
        for name in ("no_object_weight", "class_weight", "mask_weight", "dice_weight"):
            if not 0 <= getattr(self, name) < inf:
                raise HfVitSegError(f"{type(self).__name__}.{name} must be at least 0, got {getattr(self, name)}")


# Checkpoints in other formats. transformers would ignore their tensors, whose names differ, and return random weights.
# If the package is installed, it adds its converter to the table. Code that is saved with a model has an empty table,
# and rejects such checkpoints.


def hub_options(loading: Mapping[str, Any]) -> dict[str, Any]:
    """Select the options of `from_pretrained` that locate files, without unset ones."""
    return {name: loading[name] for name in HUB_OPTIONS if loading.get(name) is not None}


@dataclass(frozen=True)
class ConvertedCheckpoint:
    """A converted checkpoint: its config, and its tensors by our names."""

    config: PreTrainedConfig
    state_dict: Mapping[str, torch.Tensor]

    def config_for(self, config: Any, loading: dict[str, Any]) -> tuple[PreTrainedConfig, dict[str, Any]]:
        """Return the config to load with, and the remaining options; fields of the config in `loading` override it."""
        loading = {name: value for name, value in loading.items() if name not in HUB_OPTIONS}
        loading["state_dict"] = dict(self.state_dict)
        if isinstance(config, PreTrainedConfig):
            return config, loading
        kept = {name: loading.pop(name) for name in ("dtype", "torch_dtype") if name in loading}  # may be "auto"
        build: Any = type(self.config).from_dict
        config, loading = build(self.config.to_dict(), return_unused_kwargs=True, **loading)
        return config, loading | kept


Converter = Callable[..., ConvertedCheckpoint | None]
CONVERTERS: list[Converter] = []  # (path, options that locate files) -> the converted checkpoint


def convert_foreign(
    config_class: Any, path: Any, config: Any, loading: Mapping[str, Any]
) -> ConvertedCheckpoint | None:
    """Convert a checkpoint in another format; None for one of this model's own type.

    HfVitSegError for a checkpoint of another architecture, and for one in another format without a converter.
    """
    if path is None or loading.get("state_dict") is not None:
        return None
    hub = hub_options(loading)
    try:
        stored, _ = PreTrainedConfig.get_config_dict(path, **hub)
    except OSError:  # no config.json: a single file, or nothing
        if not os.path.isfile(path) or not CONVERTERS:
            return None
        stored = {}
    model_type = stored.get("model_type")
    if model_type == config_class.model_type:
        return None
    if not stored and isinstance(config, config_class) and not os.path.isfile(path):  # weights without a config.json
        return None
    converted = next((checkpoint for convert in CONVERTERS if (checkpoint := convert(path, **hub)) is not None), None)
    if converted is None and os.path.isfile(path):
        raise HfVitSegError(f"'{path}' is a file in the format of this package or of transformers; pass its directory")
    if converted is None:
        raise HfVitSegError(
            f"'{path}' has model_type '{model_type}', expected '{config_class.model_type}'; load it with its own "
            "class; a checkpoint of the same architecture in another format is converted by `hf-vit-seg convert`"
        )
    if not isinstance(converted.config, config_class):
        raise HfVitSegError(
            f"'{path}' is a checkpoint for {type(converted.config).__name__}, expected {config_class.__name__}; load "
            "it with `hf_vit_seg.load`"
        )
    converted.config.name_or_path = str(path)
    return converted


def check_any_weights(path: Any, expected: Mapping[str, Any], missing: Any) -> None:
    """Raise HfVitSegError if a checkpoint has no tensor of the model: all weights would be random."""
    if expected and len(set(missing)) >= len(expected):
        raise HfVitSegError(
            f"'{path}' contains none of the model's {len(expected)} tensors, so its weights would be random; it has "
            "another format: convert it with `hf-vit-seg convert`"
        )


# Heads that predict objects, by name, and the class with such a head for each semantic model. The files that define
# them fill these tables, so that models with other heads are saved without these files.
OBJECT_HEADS: dict[str, Callable[..., nn.Module]] = {}
SEMANTIC_MODELS: dict[type, type] = {}


def object_auto_classes(kind: type) -> dict[str, type]:
    """Return the classes for a checkpoint of `kind`, a class whose head predicts objects, by Auto class.

    transformers' pipeline "image-segmentation" first loads AutoModelForImageSegmentation, which is `kind` itself.
    """
    semantic = next(
        (semantic_class for semantic_class in SEMANTIC_MODELS.values() if issubclass(semantic_class, kind)), kind
    )
    universal = semantic.__bases__[-1]  # the semantic class is a variant of it
    return {
        "AutoModelForImageSegmentation": kind,
        "AutoModelForSemanticSegmentation": semantic,
        "AutoModelForUniversalSegmentation": universal,
        "AutoModelForInstanceSegmentation": universal,
    }


class SegmentationPreTrainedModel(PreTrainedModel):
    """The base class of all models.

    Checkpoints in other formats are converted when they are loaded. A model's pickle has no recording hooks; they are
    installed again when it is loaded.
    """

    def __new__(cls, config: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Build the class for object heads if the head of a semantic model predicts objects."""
        predicts_objects = getattr(config, "decode_head", None) in OBJECT_HEADS
        kind: Any = SEMANTIC_MODELS.get(cls, cls) if predicts_objects else cls
        return super().__new__(kind)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, output_loading_info=False, **kwargs):
        """Load as transformers does; checkpoints in other formats are converted or rejected. Raises HfVitSegError (a
        ValueError) for a checkpoint that contains none of the model's weights.
        """
        path = pretrained_model_name_or_path
        converted = convert_foreign(cls.config_class, path, config, kwargs)
        if converted is not None:
            path = None
            config, kwargs = converted.config_for(config, kwargs)
        load: Any = super().from_pretrained
        model, info = load(path, *args, config=config, output_loading_info=True, **kwargs)
        check_any_weights(pretrained_model_name_or_path, dict(model.state_dict()), info["missing_keys"])
        return (model, info) if output_loading_info else model

    def __getstate__(self) -> dict[str, Any]:
        return nn.Module.__getstate__(without_recording_hooks(self, {}))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for model in submodels(self):
            RECORDABLE[model] = model._can_record_outputs
        for model in submodels(self):
            if model.__dict__.get(HOOKS_INSTALLED) is False:
                output_capturing.maybe_install_capturing_hooks(model)


def submodels(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Return a model and those inside it."""
    return (module for module in model.modules() if isinstance(module, PreTrainedModel))


def without_recording_hooks(module: nn.Module, copies: dict[nn.Module, nn.Module]) -> nn.Module:
    """Return a copy of a tree of modules that shares its parameters, without transformers' recording hooks."""
    if module in copies:
        return copies[module]
    copy = copies[module] = object.__new__(type(module))
    copy.__dict__.update(module.__dict__)
    hooks = module._forward_hooks
    kept = {key: hook for key, hook in hooks.items() if getattr(hook, "__module__", None) != output_capturing.__name__}
    if len(kept) < len(hooks):
        copy.__dict__["_forward_hooks"] = type(hooks)(kept)
    if HOOKS_INSTALLED in copy.__dict__:
        copy.__dict__[HOOKS_INSTALLED] = False
    copy.__dict__["_modules"] = {
        name: None if child is None else without_recording_hooks(child, copies)
        for name, child in module._modules.items()
    }
    return copy


def check_channels(config: PreTrainedConfig, pixel_values: torch.Tensor) -> None:
    """Raise ValueError unless images (B, C, H, W) have `config.num_channels` channels."""
    if pixel_values.shape[1] != config.num_channels:
        raise HfVitSegError(
            f"This model takes images of {config.num_channels} channels (config.num_channels), got "
            f"pixel_values of shape {tuple(pixel_values.shape)}"
        )


def match_dtype(pixel_values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Cast float images to the type of the weights, such as bfloat16. Integers are pixels that were not normalized."""
    casts = pixel_values.is_floating_point() and dtype.is_floating_point
    return pixel_values.to(dtype) if casts else pixel_values


def split_axis(tensor: torch.Tensor, axis: int, sizes: Sequence[int]) -> torch.Tensor:
    """Compute `tensor.unflatten(axis, sizes)`; with `unflatten`, torch's TorchScript exporter to ONNX would fix all
    sizes.
    """
    axis %= tensor.ndim
    return tensor.view(*tensor.shape[:axis], *sizes, *tensor.shape[axis + 1 :])


def unknown_head(name: str | None, known: Iterable[str]) -> HfVitSegError:
    """Return the error for a semantic model without a head of this name."""
    names = list(known)
    if near := get_close_matches(str(name), names, n=1):
        return HfVitSegError(f"there is no decode_head '{name}' for this class; did you mean '{near[0]}'?")
    return HfVitSegError(
        f"there is no decode_head '{name}' for this class, expected one of {', '.join(names)}; load a model whose head "
        "predicts objects with AutoModelForUniversalSegmentation, after `import hf_vit_seg`"
    )


def with_dicts(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a forward, inside of `can_return_tuple`: its encoder returns dicts for any `config.return_dict`."""

    @wraps(forward)
    def wrapper(model: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(model, *args, **(kwargs | {"return_dict": True}))

    return wrapper


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,  # (B, heads, N, C/heads)
    key: torch.Tensor,  # (B, heads, M, C/heads)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute softmax(Q K^T * scaling) V, (B, N, heads, C/heads), and the attention weights (B, heads, N, M).

    The only implementation that returns weights; transformers' ALL_ATTENTION_FUNCTIONS has the others.
    """
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a residual branch for some images of a batch."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return a residual branch (B, ..) to the same shape."""
        if self.rate == 0.0 or not self.training:
            return hidden_states
        keep = 1 - self.rate
        shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
        return hidden_states * (hidden_states.new_empty(shape).bernoulli_(keep) / keep)

    def extra_repr(self) -> str:
        """Return the rate."""
        return f"rate={self.rate:.4f}"


class LayerGeometry(NamedTuple):
    """The widths, epsilon and dropout rates of a Vision Transformer's layer."""

    width: int
    heads: int
    mlp_width: int
    norm_eps: float
    dropout: float
    attention_dropout: float
    qkv_bias: bool = True
    layer_scale: float | None = None


class LayerScale(nn.Module):
    """A learned factor per channel of a residual branch (arXiv 2103.17239)."""

    def __init__(self, width: int, initial: float):
        super().__init__()
        self.initial = initial
        self.gamma = nn.Parameter(torch.full((width,), float(initial)))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map (.., C) to the same shape."""
        return hidden_states * self.gamma


class VisionTransformerAttention(nn.Module):
    """Multi-head self-attention, equations 5 to 8."""

    def __init__(self, config: PreTrainedConfig, geometry: LayerGeometry):
        super().__init__()
        width = geometry.width
        self.config = config
        self.head_dim = width // geometry.heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = geometry.attention_dropout
        self.is_causal = False
        self.q_proj = nn.Linear(width, width, bias=geometry.qkv_bias)
        self.k_proj = nn.Linear(width, width, bias=geometry.qkv_bias)
        self.v_proj = nn.Linear(width, width, bias=geometry.qkv_bias)
        self.o_proj = nn.Linear(width, width)

    def split_heads(self, tokens: torch.Tensor) -> torch.Tensor:
        """Split channels into heads: (B, T, C) to (B, heads, T, C/heads)."""
        return split_axis(tokens, -1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map (B, T, C) to the same shape, and the weights (B, heads, T, T) if the implementation returns them.

        `attention_mask` (B, 1, T, T) is added to the scores.
        """
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation or "eager", eager_attention_forward
        )
        context, weights = attention(
            self,
            self.split_heads(apply_linear(self.q_proj, hidden_states)),
            self.split_heads(apply_linear(self.k_proj, hidden_states)),
            self.split_heads(apply_linear(self.v_proj, hidden_states)),
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return apply_linear(self.o_proj, context.reshape(hidden_states.shape)), weights  # (B, T, C)


class VisionTransformerMLP(nn.Module):
    """Two linear layers with an activation in between."""

    def __init__(self, config: PreTrainedConfig, geometry: LayerGeometry):
        super().__init__()
        self.expanded_width = geometry.mlp_width
        self.fc1 = nn.Linear(geometry.width, geometry.mlp_width)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(geometry.mlp_width, geometry.width)
        self.dropout = nn.Dropout(geometry.dropout)

    @in_row_strips()
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map (.., C) to the same shape."""
        expanded = self.dropout(self.activation(apply_linear(self.fc1, hidden_states)))
        return self.dropout(apply_linear(self.fc2, expanded))


class VisionTransformerLayer(GradientCheckpointingLayer):
    """Equations 2 and 3: attention and MLP, each with a norm before it and a residual connection around it."""

    def __init__(self, config: PreTrainedConfig, geometry: LayerGeometry, drop_path_rate: float = 0.0):
        super().__init__()
        width, scale = geometry.width, geometry.layer_scale
        self.norm1 = nn.LayerNorm(width, eps=geometry.norm_eps)
        self.attention = VisionTransformerAttention(config, geometry)
        self.layer_scale1 = nn.Identity() if scale is None else LayerScale(width, scale)
        self.norm2 = nn.LayerNorm(width, eps=geometry.norm_eps)
        self.mlp = VisionTransformerMLP(config, geometry)
        self.layer_scale2 = nn.Identity() if scale is None else LayerScale(width, scale)
        self.dropout = nn.Dropout(geometry.dropout)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """Map (B, T, C) to the same shape."""
        attended, _ = self.attention(self.norm1(hidden_states), **kwargs)
        hidden_states = hidden_states + self.drop_path(self.layer_scale1(self.dropout(attended)))
        return hidden_states + self.drop_path(self.layer_scale2(self.mlp(self.norm2(hidden_states))))


def group_norm(width: int, eps: float) -> nn.GroupNorm:
    """Build a GroupNorm with 32 groups, or with the largest number of groups that divides both 32 and the width."""
    return nn.GroupNorm(gcd(width, MAX_GROUPS), width, eps=eps)


HEAD_NORMS: dict[str, Callable[..., nn.Module]] = {"batch": nn.BatchNorm2d, "group": group_norm}


def head_norm(kind: str, width: int, eps: float = 1e-5) -> nn.Module:
    """Return a head's norm of (B, D, H, W): "batch" as in the publications, or "group", which is independent of the
    batch.
    """
    if kind not in HEAD_NORMS:
        raise HfVitSegError(f"A head's norm is one of {', '.join(HEAD_NORMS)}, got '{kind}'")
    return HEAD_NORMS[kind](width, eps=eps)


__all__ = [
    "CONVERTERS",
    "HUB_OPTIONS",
    "OBJECT_HEADS",
    "SEMANTIC_MODELS",
    "ConvertedCheckpoint",
    "DropPath",
    "LayerGeometry",
    "LayerScale",
    "MaskClassificationConfig",
    "SegmentationConfig",
    "SegmentationPreTrainedModel",
    "StagedConfig",
    "VisionTransformerAttention",
    "VisionTransformerLayer",
    "check_any_weights",
    "check_channels",
    "convert_foreign",
    "eager_attention_forward",
    "head_norm",
    "hub_options",
    "match_dtype",
    "object_auto_classes",
    "split_axis",
    "unknown_head",
    "with_dicts",
]
