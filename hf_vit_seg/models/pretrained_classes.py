"""The base classes of all configs and models.

Configs: fields that are set after construction take effect as those given to it.

Models can be pickled (`torch.save(model)`, `spawn`). transformers records hidden states with hooks that are local
functions, which pickle refuses, and keeps the outputs that can be recorded in a table that only constructors fill: a
process that unpickles a model does not have its entry.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin
from transformers.utils import output_capturing

HOOKS_INSTALLED = "_output_capturing_hooks_installed"  # transformers' attribute of a model
RECORDABLE = getattr(output_capturing, "_CAN_RECORD_REGISTRY", {})  # private: it may have another name one day


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
        loaded = super().from_dict(config_dict, **kwargs)
        config: Any = loaded[0] if isinstance(loaded, tuple) else loaded
        config.update_derived_fields()
        config.validate()
        return loaded

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "id2label" and isinstance(value, Mapping):  # the keys of a JSON object are strings
            value = {int(index): label for index, label in value.items()}
        super().__setattr__(name, value)


class StagedConfig(BackboneConfigMixin, SegmentationConfig):
    """A config of an encoder whose stages can be selected as the outputs of a backbone."""

    def list_stages(self) -> list[str]:
        """The names of all stages."""
        raise NotImplementedError

    def update_derived_fields(self) -> None:
        """Name the stages. Selected stages that no longer exist are dropped; the last one remains the last one."""
        stages, old = self.list_stages(), self.stage_names
        if stages == old:
            return
        self.stage_names = stages
        follows_last = self.out_features == old[-1:]
        kept = None if follows_last else [name for name in self.out_features if name in stages]
        self.set_output_features_output_indices(kept or None, None)

    def select_stages(self, fields: dict[str, Any]) -> None:
        """Set the selected stages from the fields of a config, and remove these."""
        self.stage_names = self.list_stages()
        fields.pop("stage_names", None)
        self.set_output_features_output_indices(
            out_features=fields.pop("out_features", None), out_indices=fields.pop("out_indices", None)
        )


class PicklableModel(PreTrainedModel):
    """A model whose pickle has no recording hooks; they are installed again when it is loaded."""

    def __getstate__(self) -> dict[str, Any]:
        return without_recording_hooks(self, {}).__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for model in submodels(self):
            RECORDABLE[model] = model._can_record_outputs
        for model in submodels(self):
            if model.__dict__.get(HOOKS_INSTALLED) is False:
                output_capturing.maybe_install_capturing_hooks(model)


def submodels(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """A model and those inside it."""
    return (module for module in model.modules() if isinstance(module, PreTrainedModel))


def without_recording_hooks(module: nn.Module, copies: dict[nn.Module, nn.Module]) -> nn.Module:
    """A copy of a tree of modules that shares its parameters, without transformers' recording hooks."""
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


__all__ = ["PicklableModel", "SegmentationConfig", "StagedConfig"]
