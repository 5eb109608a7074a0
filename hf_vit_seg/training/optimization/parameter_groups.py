"""The optimizer and its parameter groups, defined by a table of rows.

A row sets the learning rate scale, the weight decay, or both, for parameters that match its regular expression. For
each of the two, the first matching row that sets it applies; the recipe's rows come first. A parameter without a weight
decay from any row is an error.

Layer-wise decay (arXiv 2003.10555, and BEiT, 2106.08254): with L layers in the encoder, layer l of 1 .. L has depth l.
Parameters before the first layer have depth 0, those between layers the depth of the previous layer, and those after
the last layer depth L + 1, as the head. The learning rate is scaled by decay ** (L + 1 - depth).
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_vit_seg.records import CountFromZero, Factor, FactorFromZero, Record, RecordError, read_record
from hf_vit_seg.training.model.freezing import compile_pattern
from hf_vit_seg.training.model.parameter_names import encoder_layers, encoder_prefix, plain_name
from hf_vit_seg.training.recipe.schema import OptimizerRecipe

NO_DECAY_SUFFIX = ", no decay"  # suffix of groups without weight decay


class GroupRow(Record):
    """Settings of parameters whose plain names match `match` (`re.search`) and that have at most `dimensions`."""

    match: str
    learning_rate_scale: Factor | None = None  # instead of layer decay and multiplier
    weight_decay: FactorFromZero | None = None
    dimensions: CountFromZero | None = None  # maximum number of dimensions

    def matches(self, name: str, parameter: torch.Tensor) -> bool:
        """Return whether the row applies to this parameter."""
        few = self.dimensions is None or parameter.ndim <= self.dimensions
        return few and compile_pattern(self.match).search(name) is not None


NO_DECAY = (
    GroupRow(match=r"", dimensions=1, weight_decay=0),  # biases, norms, layer scales
    GroupRow(match=r"(^|[._])bias$", weight_decay=0),
    GroupRow(match=r"(^|[._])(\w*norm\d*|bn\d*)\.\w+$", weight_decay=0),
    # Class, mask, distillation and register tokens, classes of a mask transformer, tables of relative positions.
    GroupRow(match=r"(^|[._])(tokens?|queries|embeddings?|embed|table|scale)$", weight_decay=0),
    GroupRow(match=r"(^|[._])pos(ition|itional)?_\w+(\.weight)?$", weight_decay=0),
    GroupRow(match=r"(^|[._])(queries|query_positions|level_embeddings)\.weight$", weight_decay=0),  # as Mask2Former
)
MATRICES = r"(^|[._])weight$"


def group_rows(recipe: OptimizerRecipe) -> list[GroupRow]:
    """Return the recipe's rows, the rows without weight decay, and the row of matrices and kernels."""
    own = [read_record(GroupRow, row, f"optimizer.groups.{index}") for index, row in enumerate(recipe.groups)]
    return [*own, *NO_DECAY, GroupRow(match=MATRICES, weight_decay=recipe.weight_decay)]


@dataclass(frozen=True)
class LayerGroup:
    """The part of the model that a parameter belongs to, for group names, and its learning rate scale."""

    part: str
    scale: float


def layer_groups(model: nn.Module, recipe: OptimizerRecipe) -> dict[str, LayerGroup]:
    """Return the group of each parameter by its plain name, in the order of the model."""
    prefix, layers = encoder_prefix(model), encoder_layers(model)
    if recipe.head_multiplier != 1 and not prefix:
        raise RecordError("optimizer.head_multiplier: this model has no head; remove the setting")
    if recipe.layer_decay is not None and not layers:
        raise RecordError("optimizer.layer_decay: found no layers in this model's encoder; remove the setting")
    groups, passed = {}, 0
    for name in (plain_name(name) for name, _ in model.named_parameters()):
        if not name.startswith(prefix):
            groups[name] = LayerGroup("head", recipe.head_multiplier)
            continue
        layer = next((i for i, layer in enumerate(layers, 1) if name.startswith(f"{layer}.")), None)
        passed = max(passed, layer or 0)
        groups[name] = layer_group(passed, layer is None, len(layers), recipe.layer_decay)
    return groups


def layer_group(layer: int, is_after: bool, num_layers: int, decay: float | None) -> LayerGroup:
    """Return the group of an encoder parameter in a layer (from 1; 0 for the stem), or after it if `is_after`."""
    if decay is None:
        return LayerGroup("encoder", 1.0)
    depth = num_layers + 1 if is_after and layer == num_layers else layer
    part = "end of encoder" if depth > num_layers else f"layer {depth}" if depth else "stem"
    return LayerGroup(part, decay ** (num_layers + 1 - depth))


def parameter_groups(model: nn.Module, recipe: OptimizerRecipe) -> list[dict[str, Any]]:
    """Return groups for a torch optimizer with `params`, `lr`, `weight_decay` and `name`, without frozen parameters.

    RecordError for a parameter without a weight decay, a row of the recipe that matches no parameter, and if no
    parameter is trainable.
    """
    rows, placed = group_rows(recipe), layer_groups(model, recipe)
    groups: dict[tuple[str, float, float], dict[str, Any]] = {}
    unused = set(range(len(recipe.groups)))
    for name, parameter in ((plain_name(name), p) for name, p in model.named_parameters()):
        matching = [index for index, row in enumerate(rows) if row.matches(name, parameter)]
        unused -= set(matching)
        if not parameter.requires_grad:
            continue
        scale = first(rows[i].learning_rate_scale for i in matching)
        weight_decay = first(rows[i].weight_decay for i in matching)
        if weight_decay is None:
            raise RecordError(
                f"optimizer.groups: no row sets the weight decay of {name} with shape {tuple(parameter.shape)}; add "
                f"{{match: '{re.escape(name)}$', weight_decay: 0}}, or another number"
            )
        rate = recipe.learning_rate * (placed[name].scale if scale is None else scale)
        label = placed[name].part + ("" if weight_decay else NO_DECAY_SUFFIX)
        group = {"params": [], "lr": rate, "weight_decay": weight_decay, "name": label}
        groups.setdefault((label, rate, weight_decay), group)["params"].append(parameter)
    for index in sorted(unused):
        raise RecordError(f"optimizer.groups.{index}: '{rows[index].match}' matches no parameter")
    if not groups:
        raise RecordError("optimizer: all parameters are frozen")
    return list(groups.values())


def first(values: Iterable[float | None]) -> float | None:
    """Return the first value that is not None."""
    return next((value for value in values if value is not None), None)


def adamw(groups: list[dict[str, Any]], recipe: OptimizerRecipe) -> torch.optim.Optimizer:
    """Build AdamW (arXiv 1711.05101)."""
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay)


def sgd(groups: list[dict[str, Any]], recipe: OptimizerRecipe) -> torch.optim.Optimizer:
    """Build SGD with momentum; weight decay is part of the gradient."""
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], OptimizerRecipe], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "sgd": sgd,
}


def build_optimizer(model: nn.Module, recipe: OptimizerRecipe) -> torch.optim.Optimizer:
    """Build the recipe's optimizer for the model's parameter groups."""
    return OPTIMIZERS[recipe.name](parameter_groups(model, recipe), recipe)
