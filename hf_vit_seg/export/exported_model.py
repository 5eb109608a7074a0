"""Export of a model to a verified file for another runtime, with the config files that `predict` requires."""

import copy
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_vit_seg.atomic_io import move_contents
from hf_vit_seg.directory_lock import lock_directory
from hf_vit_seg.inference.instance_segmenter import InstanceSegmenter
from hf_vit_seg.inference.runtimes import OBJECT_OUTPUTS, RuntimeModel
from hf_vit_seg.inference.segmenter import Segmenter
from hf_vit_seg.loading.errors import ModelError
from hf_vit_seg.records import RecordError
from hf_vit_seg.text_files import read_json_object

from .calibration_images import Calibration, resize_images
from .exporters import Exporter
from .forms import with_export_forms
from .graphs import MAX_CLASSES, Geometry, LabelGraph, LogitGraph, ObjectGraph
from .parity import TOLERANCES, Case, Parity, compare, compare_labels, compare_objects, random_images, sizes_to_check

REPORT = "parity.json"
USUAL_SIDE = 512  # if the processor has no size
AnySegmenter = Segmenter | InstanceSegmenter


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of an exported program.

    Size and batch are dynamic unless `size` (height, width) or `batch` is given. With `labels` the output is a label
    map, at the input's size ("input") or at (height, width). `calibration` are images for 8-bit quantization, of which
    at most `calibration_images` are used.
    """

    size: tuple[int, int] | None = None
    batch: int | None = None
    labels: str | tuple[int, int] | None = None
    dtype: str = "float32"
    calibration: Sequence[Path] = ()
    calibration_images: int = 100


def export_model(
    segmenter: AnySegmenter,
    out: Path,
    name: str,
    exporter: Exporter,
    options: ExportOptions,
    *,
    overwrite: bool = False,
    score: Callable[[Segmenter], float] | None = None,
) -> Parity:
    """Export the model of a segmenter to the directory `out` in the format `name`, and check its parity.

    `score`, such as mean IoU, is computed for the model and the 8-bit program. If the check succeeds, `out` contains
    the program, config.json, preprocessor_config.json and the report parity.json; otherwise nothing is written. Raises
    RecordError for unsupported options, ParityError if the outputs differ, InUseError if another process writes `out`.
    """
    check_program(segmenter, out, name, exporter, options, overwrite)
    with lock_directory(out), tempfile.TemporaryDirectory(prefix=".export-", dir=out) as folder:
        check_program(segmenter, out, name, exporter, options, overwrite)  # another export may have written it
        path = Path(folder) / exporter.file
        geometry = Geometry(segmenter.channels, options.size, options.batch)
        dtype = getattr(torch, options.dtype)
        plain = with_export_forms(segmenter.model, exporter.forms).to(dtype)
        size = options.labels if isinstance(options.labels, tuple) else None
        if isinstance(segmenter, InstanceSegmenter):
            graph: nn.Module = ObjectGraph(plain, object_outputs(segmenter))
        else:
            graph = LabelGraph(plain, size) if options.labels else LogitGraph(plain)
        exporter.write(graph.eval(), geometry, dtype, path)
        del plain, graph
        parity = check_parity(segmenter, path, name, geometry, options)
        if not parity.passed:
            raise parity.failure(exporter.file)
        if options.calibration:
            parity = quantize(segmenter, path, name, exporter, options, score)
        write_metadata(segmenter, path.parent, out, parity, exporter.file)
        move_contents(path.parent, out, last=path.name)
    return parity


def check_program(
    segmenter: AnySegmenter, out: Path, name: str, exporter: Exporter, options: ExportOptions, overwrite: bool
) -> None:
    """Raise RecordError if the options are not supported."""
    exporter.check()
    if options.dtype not in exporter.dtypes:
        raise RecordError(f"{name} supports {' or '.join(exporter.dtypes)}, found {options.dtype}")
    if options.calibration and not exporter.quantizes:
        raise RecordError(f"{name} cannot be quantized to 8 bits: omit --int8, or use --to onnx or openvino")
    if options.calibration and options.size is None and not exporter.quantizes_open_sizes:
        raise RecordError(f"{name} is quantized for one size of images: also pass --size, such as --size 512x512")
    if options.calibration and (options.labels or options.dtype != "float32"):
        raise RecordError("8-bit programs are made from float32 and return logits: omit --label-map and --dtype")
    if not exporter.runs_alone and (options.size is None or options.batch is None):
        raise RecordError(f"{name} has a fixed input shape: pass --size and --batch, such as --size 512x512 --batch 1")
    if options.labels and segmenter.model.config.num_labels > MAX_CLASSES:
        raise RecordError(
            f"a label map of bytes has at most {MAX_CLASSES} classes, this model has more: omit --label-map"
        )
    if isinstance(segmenter, InstanceSegmenter):
        check_object_options(name, exporter, options)
    if (out / exporter.file).exists() and not overwrite:
        raise RecordError(f"{out / exporter.file} exists: pass --overwrite to replace it")
    if isinstance(segmenter.model, RuntimeModel):
        raise ModelError(f"{segmenter.model.path} is exported already: give the model directory it was made from")


def check_object_options(name: str, exporter: Exporter, options: ExportOptions) -> None:
    """Raise RecordError if the options are not supported for models that find objects."""
    if options.labels:
        raise RecordError("a label map has classes, but this model finds objects: omit --label-map")
    if not exporter.names_outputs:
        raise RecordError(f"{name} does not support models that find objects: use --to onnx or openvino")


def check_parity(segmenter: AnySegmenter, path: Path, name: str, geometry: Geometry, options: ExportOptions) -> Parity:
    """Compare the program with the model on random images of several sizes."""
    program = RuntimeModel(path, segmenter.model.config)
    compare_case = comparison(segmenter, program, TOLERANCES[options.dtype], options.labels)
    cases = []
    for seed, (batch, height, width) in enumerate(sizes_to_check(geometry, default_input_size(segmenter))):
        pixel_values = random_images(batch, geometry.channels, height, width, seed)
        cases.append(compare_case("random images", pixel_values))
    return Parity(name, options.dtype, TOLERANCES[options.dtype], tuple(cases))


def comparison(
    segmenter: AnySegmenter, program: RuntimeModel, tolerance: float, labels: str | tuple[int, int] | None = None
) -> Callable[[str, torch.Tensor], Case]:
    """Return a function that compares the outputs of a program and its model for named pixel values (B, C, H, W)."""
    if isinstance(segmenter, InstanceSegmenter):
        return partial(compare_objects, model=segmenter.outputs, program=program, tolerance=tolerance)
    run: Any = program.program.run
    return partial(
        compare,
        model=segmenter.logits,
        program=lambda images: run(images.to(program.dtype)),
        tolerance=tolerance,
        label_size=labels if isinstance(labels, tuple) else None,
    )


@torch.inference_mode()
def object_outputs(segmenter: InstanceSegmenter) -> tuple[str, ...]:
    """Return the output names of an exported model. Raises RecordError if the outputs of the model have no names."""
    size = default_input_size(segmenter)
    output = type(segmenter.outputs(random_images(1, segmenter.channels, *size, seed=0)))
    if output not in OBJECT_OUTPUTS:
        names = " and ".join(output_class.__name__ for output_class in OBJECT_OUTPUTS)
        raise RecordError(f"the model returns {output.__name__}, but only {names} can be exported")
    return output.exported


def default_input_size(segmenter: AnySegmenter) -> tuple[int, int]:
    """Return the approximate (height, width) that the image processor resizes to."""
    size: Any = dict(getattr(segmenter.processor, "size", None) or {})
    edge = size.get("shortest_edge") or USUAL_SIDE
    return int(size.get("height") or edge), int(size.get("width") or edge)


def quantize(
    segmenter: AnySegmenter,
    path: Path,
    name: str,
    exporter: Exporter,
    options: ExportOptions,
    score: Callable[[Segmenter], float] | None,
) -> Parity:
    """Quantize the program to 8 bits, and compare its labels and scores with those of the model."""
    calibration = Calibration.from_files(options.calibration, segmenter, options.calibration_images, options.size)
    exporter.quantize(path, calibration)
    eight = RuntimeModel(path, segmenter.model.config)
    compare_case = comparison(segmenter, eight, float("inf"))
    pixels = map(torch.from_numpy, calibration.images)
    images = dict(zip(calibration.names, pixels, strict=True))
    if options.size is None:  # the program must also work at sizes without calibration
        name, first = next(iter(images.items()))
        height, width = first.shape[-2:]
        images[f"{name}, resized"] = resize_images(first, (height * 3 // 4, width * 4 // 3))
    cases = compare_labels(images, compare_case)
    scores = {}
    if score is not None and isinstance(segmenter, Segmenter):
        after = Segmenter(eight, segmenter.processor, "cpu", segmenter.protocol)
        scores = {"before": score(segmenter), "after": score(after)}
    parity = Parity(name, "int8", None, cases, scores)
    if not parity.passed:
        raise parity.int8_failure(exporter.file, outer_layers(segmenter.model))
    return parity


def outer_layers(model: nn.Module) -> list[str]:
    """Return the names of the first and the last layer with weights, which are usually the first to be excluded."""
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return list(dict.fromkeys(layers[:1] + layers[-1:]))


def write_metadata(segmenter: AnySegmenter, folder: Path, out: Path, parity: Parity, file: str) -> None:
    """Write config, preprocessor config and parity report to `folder`, keeping reports of other exports in `out`."""
    config = copy.deepcopy(segmenter.model.config)
    config.architectures = [type(segmenter.model).__name__]  # says whether the program finds objects
    config.save_pretrained(folder)
    segmenter.processor.save_pretrained(folder)
    stored = out / REPORT
    reports = read_json_object(stored) if stored.is_file() else {}
    reports[file] = parity.as_json()
    (folder / REPORT).write_text(json.dumps(reports, indent=2) + "\n", encoding="utf-8")


__all__ = ["REPORT", "ExportOptions", "export_model"]
