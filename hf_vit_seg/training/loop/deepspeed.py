"""What DeepSpeed has to be told of a recipe: it accumulates and clips by its own configuration alone."""

from accelerate import Accelerator

from hf_vit_seg.records import RecordError
from hf_vit_seg.training.recipe.schema import Recipe


def refuse_stage_3(accelerator: Accelerator) -> None:
    """RecordError for the stage that scatters weights while a model is built, which a run looks at as a whole."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None and plugin.zero_stage == 3:
        raise RecordError(
            "DeepSpeed's ZeRO stage 3 has no whole model before the first step; set zero_stage to 2 in accelerate's "
            "configuration, or train with FSDP2"
        )


def settle_deepspeed(accelerator: Accelerator, recipe: Recipe) -> None:
    """Write a resolved recipe's batch size, accumulation and clipping into DeepSpeed's configuration, if it is used.

    To be called before accelerate prepares the model. The size of a batch cannot be seen in the sampler, and an
    accumulation that differs would take another number of steps than the recipe says.
    """
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": recipe.loop.batch_size,
            "gradient_accumulation_steps": recipe.loop.accumulation,
            "gradient_clipping": recipe.loop.clip_norm or 0.0,
        }
