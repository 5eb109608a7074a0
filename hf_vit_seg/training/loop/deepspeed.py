"""Copy settings of a recipe to DeepSpeed's configuration, which alone controls its accumulation and clipping."""

from accelerate import Accelerator

from hf_vit_seg.records import RecordError
from hf_vit_seg.training.recipe.schema import Recipe


def refuse_stage_3(accelerator: Accelerator) -> None:
    """RecordError for ZeRO stage 3, which partitions weights while the model is built; setup needs the whole model."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None and plugin.zero_stage == 3:
        raise RecordError(
            "DeepSpeed ZeRO stage 3 is not supported; set zero_stage to 2 in accelerate's configuration, or use FSDP2"
        )


def configure_deepspeed(accelerator: Accelerator, recipe: Recipe) -> None:
    """Copy batch size, accumulation and clipping of a resolved recipe to DeepSpeed's configuration, if it is used.

    Call this before `Accelerator.prepare`, which cannot infer the batch size from the sampler. A different
    accumulation would change the number of steps.
    """
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": recipe.loop.batch_size,
            "gradient_accumulation_steps": recipe.loop.accumulation,
            "gradient_clipping": recipe.loop.clip_norm or 0.0,
        }
