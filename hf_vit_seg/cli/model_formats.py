"""The commands `convert` and `export`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_vit_seg.error_reporting import print_result
from hf_vit_seg.errors import HfVitSegError

from .app import FILES, FORMAT, MODEL, ConvertOption, FloatType, Split, command

# Panels that group the options in --help.
INPUTS, QUANTIZATION = "Inputs of the exported model", "8-bit quantization"


@command(example="hf-vit-seg convert nvidia/segformer-b0-finetuned-ade-512-512 b0", prints_result=True)
def convert(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="Checkpoint: a file, a directory, a Hub ID, or the https address of a file; with --to, a model "
            "directory."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Model directory to create; with --to, the file or directory to create.")],
    source: Annotated[str | None, typer.Option(help="Override format detection.", rich_help_panel=FORMAT)] = None,
    to: Annotated[
        str | None, typer.Option(help="Export a model directory back to this format.", rich_help_panel=FORMAT)
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Weights to convert if the file has several, such as state_dict_ema or teacher.",
            rich_help_panel=FORMAT,
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a Hub ID.", rich_help_panel=FORMAT)
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Class names: ade20k, cityscapes, imagenet-1k, or a JSON or YAML file.", rich_help_panel=MODEL
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a field of the config, as NAME=VALUE. Repeatable.", rich_help_panel=MODEL),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing OUT.", rich_help_panel=FILES)
    ] = False,
) -> None:
    """Convert a reference checkpoint to a model directory that AutoModel loads, or back.

    The source's epsilons, labels, palette and preprocessing are preserved. Pickled code is never executed. Nothing is
    written unless all tensors match.
    """
    from dataclasses import asdict

    from hf_vit_seg.conversion.convert import convert as convert_checkpoint

    if to is not None and (source or labels or settings or weights or revision):
        raise HfVitSegError(
            "--to exports the model unchanged: omit --source, --labels, --set, --weights and --revision"
        )
    if to is not None:
        report = convert_checkpoint(checkpoint, out, to=to, overwrite=overwrite)
    else:
        report = convert_checkpoint(
            checkpoint,
            out,
            source=source,
            labels=labels,
            settings=parse_settings(settings or []),
            overwrite=overwrite,
            weights=weights,
            revision=revision,
        )
    print_result(report, lambda: asdict(report) | {"path": str(report.path)})


def parse_settings(settings: list[str]) -> dict[str, object]:
    """Parse options NAME=VALUE whose values are YAML, such as `--set sr_ratios=[8,4,2,1]`."""
    from hf_vit_seg.records import shorten
    from hf_vit_seg.text_files import parse

    fields = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.isidentifier():
            raise HfVitSegError(f"--set: found '{setting}', expected NAME=VALUE, such as decode_head_hidden_size=768")
        try:
            fields[name] = parse(value)
        except HfVitSegError as error:
            raise HfVitSegError(f"--set {name}: {shorten(value)} is not valid YAML ({error})") from None
    return fields


@command(example="hf-vit-seg export out/best program --to onnx", prints_result=True)
def export(
    model: Annotated[str, typer.Argument(help="Directory, exported model, or Hub ID of a segmentation model.")],
    out: Annotated[Path, typer.Argument(help="Output directory for the exported model and its configuration.")],
    to: Annotated[
        str,
        typer.Option(
            help="Format: onnx, openvino, torchscript, executorch, or that of a plugin.", rich_help_panel=FORMAT
        ),
    ],
    size: Annotated[
        str | None,
        typer.Option(
            help="Fixed input size: 512 or 512x1024 (height x width). Default: any. --to executorch, and --to openvino "
            "with --int8, require it.",
            rich_help_panel=INPUTS,
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Fixed batch size. Default: any.", rich_help_panel=INPUTS)
    ] = None,
    label_map: Annotated[
        str | None,
        typer.Option(
            help="Output a uint8 label map instead of logits, at the size of the input (input) or at 1024x2048.",
            rich_help_panel=FORMAT,
        ),
    ] = None,
    dtype: Annotated[
        FloatType,
        typer.Option(help="Number format: float32, or float16 if the format supports it.", rich_help_panel=FORMAT),
    ] = FloatType.float32,
    int8: Annotated[
        Path | None,
        typer.Option(
            help="Quantize to 8 bits, calibrated on the images in this folder (onnx; openvino with --size).",
            rich_help_panel=QUANTIZATION,
        ),
    ] = None,
    int8_images: Annotated[
        int, typer.Option(min=1, help="Maximum number of calibration images.", rich_help_panel=QUANTIZATION)
    ] = 100,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Print the mean IoU before and after quantization on the data of this recipe.",
            rich_help_panel=QUANTIZATION,
        ),
    ] = None,
    split: Annotated[
        Split, typer.Option(help="Split of the recipe's data.", rich_help_panel=QUANTIZATION)
    ] = Split.validation,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Option of the format as NAME=VALUE, such as opset=18. Repeatable.", rich_help_panel=FORMAT
        ),
    ] = None,
    convert_model: ConvertOption = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing exported model.", rich_help_panel=FILES)
    ] = False,
) -> None:
    """Export a model for another runtime, and compare its outputs with those of the model.

    If they differ, nothing is written and the exit code is 1.

    By default, the exported model accepts any image size and batch size. Preprocessing, labels and the result of the
    comparison (parity.json) are saved in the same directory, so that hf-vit-seg predict OUT/model.onnx works as with
    the model itself.
    """
    from hf_vit_seg.data.images.files import find_images
    from hf_vit_seg.export.export_command import label_size, run_export, sides
    from hf_vit_seg.export.exported_model import ExportOptions
    from hf_vit_seg.training.evaluation.evaluate import mean_iou_on
    from hf_vit_seg.training.recipe_loading import load_recipe

    if recipe is not None and int8 is None:
        raise HfVitSegError("--recipe evaluates the quantized model: also pass --int8 FOLDER")
    export_options = ExportOptions(
        size=None if size is None else sides(size, "--size"),
        batch=batch,
        labels=label_size(label_map),
        dtype=dtype.value,
        calibration=[] if int8 is None else [image.path for image in find_images([str(int8)])],
        calibration_images=int8_images,
    )
    score = None if recipe is None else mean_iou_on(load_recipe(recipe, []), split.value)
    code = run_export(
        model,
        out,
        to,
        export_options,
        parse_settings(settings or []),
        overwrite=overwrite,
        score=score,
        convert=convert_model,
    )
    raise typer.Exit(code)
