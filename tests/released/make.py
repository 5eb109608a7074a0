"""`python -m tests.released.make`: freeze tiny models of every type and head, as this version writes them.

Each directory `VERSION/NAME` has a model, its image processor, and `outputs.safetensors`, the outputs for
`pixel_values`. `VERSION/run` is a recipe with its data and a run of `STEPS` steps; `resumed.safetensors` are the
outputs of its model after twice as many. Later versions test that they load the directories, which are written once
for each release and never changed.
"""

import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from random_weights import randomize_weights
from tiny_runs import run, settings, write_data, write_recipe

from hf_vit_seg import __version__, architectures
from hf_vit_seg.training.checkpoints.run_directory import RunDirectory

from .outputs import ABOUT, OUTPUTS, SIZE, outputs_of

FOLDER = Path(__file__).parent
RUN, RESUMED, STEPS = "run", "resumed.safetensors", 3
NOT_FROZEN = ("plots", "samples", "best", "last", "report.html")  # of a run, which a resumed one writes again
SEGMENTATION, UNIVERSAL = "AutoModelForSemanticSegmentation", "AutoModelForUniversalSegmentation"
CLASSIFICATION, POSE = "AutoModelForImageClassification", "AutoModelForPoseEstimation"
BACKBONE, FEATURES = "AutoBackbone", "AutoModel"

SMALL: dict[str, dict[str, Any]] = {
    "segformer": {
        "hidden_sizes": (8, 8, 16, 16),
        "depths": (1, 1, 1, 1),
        "num_attention_heads": (1, 1, 2, 2),
        "decode_head_hidden_size": 16,
    },
    "cvt": {
        "hidden_sizes": (8, 8, 16),
        "depths": (1, 1, 2),
        "num_attention_heads": (1, 1, 2),
        "decode_head_hidden_size": 16,
    },
    "vit": {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "patch_size": 8,
        "image_size": SIZE,
        "decode_head_hidden_size": 16,
    },
    "backbone": {
        "backbone_config": {
            "model_type": "dinov2",
            "hidden_size": 16,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 8,
            "image_size": 56,
        },
        "decode_head_hidden_size": 16,
    },
}
QUERIES = {"num_queries": 4, "train_num_points": 16}
DECODER = QUERIES | {"query_num_layers": 2, "query_num_heads": 2}
STEM = {"stem": "resnetv2", "stem_depths": (1,), "patch_size": 1, "decode_head": "linear"}
# Name, architecture, auto class, and fields besides SMALL.
MODELS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("segformer_all_mlp", "segformer", SEGMENTATION, {}),
    ("segformer_mmseg", "segformer", SEGMENTATION, {"decode_head_flavor": "mmseg"}),
    ("segformer_classification", "segformer", CLASSIFICATION, {}),
    ("segformer_query", "segformer", UNIVERSAL, {"decode_head": "query", **DECODER}),
    ("segformer_distance", "segformer", UNIVERSAL, {"decode_head": "distance"}),
    ("segformer_backbone", "segformer", BACKBONE, {"out_features": ["stage2", "stage4"]}),
    ("cvt_all_mlp", "cvt", SEGMENTATION, {}),
    ("cvt_classification", "cvt", CLASSIFICATION, {}),
    ("cvt_query", "cvt", UNIVERSAL, {"decode_head": "query", **DECODER}),
    ("cvt_distance", "cvt", UNIVERSAL, {"decode_head": "distance"}),
    ("cvt_backbone", "cvt", BACKBONE, {}),
    ("vit_linear", "vit", SEGMENTATION, {"decode_head": "linear"}),
    ("vit_mask_transformer", "vit", SEGMENTATION, {"decode_head": "mask_transformer"}),
    ("vit_feature_pyramid", "vit", SEGMENTATION, {"decode_head": "feature_pyramid"}),
    ("vit_hybrid", "vit", SEGMENTATION, STEM),
    (
        "vit_classification",
        "vit",
        CLASSIFICATION,
        {"use_distillation_token": True, "use_distillation_classifier": True},
    ),
    ("vit_pose_classic", "vit", POSE, {"pose_head": "classic", "pose_head_hidden_size": 16}),
    ("vit_pose_simple", "vit", POSE, {"pose_head": "simple"}),
    ("vit_eomt", "vit", UNIVERSAL, {**QUERIES, "num_query_blocks": 2, "num_register_tokens": 2}),
    ("vit_features", "vit", FEATURES, {}),
    ("vit_backbone", "vit", BACKBONE, {"out_indices": [2, 4]}),
    ("backbone_linear", "backbone", SEGMENTATION, {"decode_head": "linear"}),
    ("backbone_feature_pyramid", "backbone", SEGMENTATION, {"decode_head": "feature_pyramid"}),
    ("backbone_mask_transformer", "backbone", SEGMENTATION, {"decode_head": "mask_transformer"}),
    ("backbone_query", "backbone", UNIVERSAL, {"decode_head": "query", **DECODER}),
]


def freeze(folder: Path, architecture: str, auto: str, fields: dict[str, Any], with_code: bool = False) -> None:
    """Write a model with random weights, which bfloat16 holds exactly, its image processor, and its outputs.

    With code, the directory also has the copies of our modules for users without the package.
    """
    torch.manual_seed(0)
    own = architectures()[architecture]
    labels = {} if auto in (BACKBONE, FEATURES) else {"num_labels": 3}
    config = own.variant_config("tiny", **SMALL[architecture] | labels | fields)
    model = randomize_weights(getattr(transformers, auto).from_config(config))
    model.to(torch.bfloat16).save_pretrained(folder)
    kind = "instance" if auto == UNIVERSAL else None
    own.processor_classes(kind)["torchvision"](size={"height": SIZE[0], "width": SIZE[1]}).save_pretrained(folder)
    save_file(outputs_of(model.float()), folder / OUTPUTS)
    if not with_code:
        for module in folder.glob("*.py"):
            module.unlink()
    (folder / ABOUT).write_text(json.dumps({"architecture": architecture, "auto": auto}) + "\n")


def freeze_run(folder: Path) -> None:
    """Write a recipe with relative paths, its data, a run, and the outputs of the model after it was resumed."""
    with TemporaryDirectory() as place:
        project = write_data(Path(place) / "project")
        recipe = settings(Path("."), loop={"steps": STEPS, "batch_size": 2, "checkpoint_every": STEPS, "log_every": 1})
        recipe["model"]["fields"] |= SMALL["segformer"]
        run(write_recipe(project, recipe), project / "out")
        for name in NOT_FROZEN:
            path = project / "out" / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(project, folder)
        shutil.rmtree(project)  # a run is resumed after its data have moved only if they are not there any more
        save_file(resume(Path(shutil.copytree(folder, Path(place) / "moved"))), folder / RESUMED)


def resume(folder: Path) -> dict[str, torch.Tensor]:
    """Resume a frozen run in place until it has twice as many steps; return the outputs of its model."""
    run(folder / "recipe.yaml", folder / "out", f"loop.steps={2 * STEPS}", resume=True)
    model = transformers.AutoModelForSemanticSegmentation.from_pretrained(RunDirectory(folder / "out").last)
    return outputs_of(model)


def main() -> None:
    """Write the directories of this version."""
    for name, architecture, auto, fields in MODELS:
        folder = FOLDER / __version__ / name
        freeze(folder, architecture, auto, fields)
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{name}: {size / 1000:.0f} kB")
    freeze_run(FOLDER / __version__ / RUN)


if __name__ == "__main__":
    main()
