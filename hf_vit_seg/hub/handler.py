"""Serve this model on Hugging Face Inference Endpoints, which look for `EndpointHandler` in this file.

Requires transformers, torch, NumPy and Pillow, and runs without the package that trained the model, whose code is in
this directory. Only code in this directory is trusted.

Shapes: K classes, H W pixels of the image, h w of the logits.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image, ImageOps

UNIVERSAL = "AutoModelForUniversalSegmentation"
CLASSIFICATION = "AutoModelForImageClassification"
AUTO_CLASSES = ("AutoModelForSemanticSegmentation", UNIVERSAL, CLASSIFICATION)
CONFIG, CODE_FILES = "config.json", ("config.json", "preprocessor_config.json", "processor_config.json")
FUNCTIONS = {"softmax": partial(torch.softmax, dim=-1), "sigmoid": torch.sigmoid, "none": torch.clone}
MAX_PIXELS = 100_000_000
MANY_CLASSES = 256  # a label map of more has 16 bits


class EndpointHandler:
    """Answers requests for one model, see `__call__`."""

    def __init__(self, path: str = "") -> None:
        """Load the model of a local directory. Raises ValueError if it has no model, or needs other code."""
        folder = Path(path or Path(__file__).parent).resolve()
        check_local_code(folder)
        own_code: dict[str, Any] = {"trust_remote_code": True, "local_files_only": True}
        config = transformers.AutoConfig.from_pretrained(folder, **own_code)
        self.auto_class = find_auto_class(config, folder)
        self.processor: Any = transformers.AutoImageProcessor.from_pretrained(folder, **own_code)
        self.model: Any = getattr(transformers, self.auto_class).from_pretrained(folder, **own_code).eval()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device)
        self.names = {int(index): str(name) for index, name in self.model.config.id2label.items()}

    @torch.inference_mode()
    def __call__(self, data: Mapping[str, Any]) -> Any:
        """Answer a request: `inputs` is an image as base64 text, bytes or a PIL image, `parameters` are optional.

        Segmentation returns the list of the Hub's task image-segmentation: `label`, `mask` (a base64 PNG, 255 in the
        segment) and `score`. Parameters: `threshold` of scores, `subtask` (semantic, instance or panoptic) of models
        that find objects, and `label_map: true` for one map instead of the masks, see `label_map_answer`.

        Classification returns the list of the task image-classification: `label` and `score`. Parameters: `top_k` (5),
        and `function_to_apply` (softmax, sigmoid or none). Raises ValueError for requests that cannot be answered.
        """
        if "inputs" not in data:
            raise ValueError("inputs is missing: send an image as base64 text or as bytes")
        image, parameters = read_image(data["inputs"]), dict(data.get("parameters") or {})
        inputs = self.processor(images=image, return_tensors="pt").to(self.device)
        size = (image.height, image.width)
        if self.auto_class == CLASSIFICATION:
            return self.classify(inputs, parameters)
        as_map = parse_parameter(parameters, "label_map", is_true, False)
        subtask = parse_parameter(
            parameters, "subtask", str, "panoptic" if self.auto_class == UNIVERSAL else "semantic"
        )
        threshold = parse_parameter(parameters, "threshold", float, 0.0 if subtask == "semantic" else 0.5)
        check_parameters(parameters, ("label_map", "subtask", "threshold"))
        outputs = self.model(**inputs)
        check_outputs(outputs)
        if subtask == "semantic":
            segments = self.semantic_segments(outputs, size)
        elif self.auto_class == UNIVERSAL and subtask in ("instance", "panoptic"):
            segments = self.object_segments(outputs, size, subtask, threshold)
        else:
            raise ValueError(f"subtask is {subtask!r}, which this model does not support")
        confident = [segment for segment in segments if segment["score"] >= threshold]
        return label_map_answer(confident, size, subtask) if as_map else [as_answer(segment) for segment in confident]

    def classify(self, inputs: Mapping[str, torch.Tensor], parameters: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the most likely classes of an image."""
        is_multi_label = self.model.config.problem_type == "multi_label_classification"
        function = parse_parameter(parameters, "function_to_apply", str, "sigmoid" if is_multi_label else "softmax")
        count = parse_parameter(parameters, "top_k", int, 5)
        check_parameters(parameters, ("function_to_apply", "top_k"))
        if function not in FUNCTIONS or count < 1:
            raise ValueError(
                f"function_to_apply is {function!r} and top_k {count}, expected {', '.join(FUNCTIONS)}, and at least 1"
            )
        outputs = self.model(**inputs)
        check_outputs(outputs)
        scores = FUNCTIONS[function](outputs.logits[0].float())
        best = scores.topk(min(count, len(scores)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [{"label": self.names[index], "score": score} for index, score in pairs]

    def semantic_segments(self, outputs: Any, size: tuple[int, int]) -> Iterator[dict[str, Any]]:
        """Yield the classes of an image; a score is the mean probability of the class in its pixels."""
        (labels,) = self.processor.post_process_semantic_segmentation(outputs, target_sizes=[size])
        probabilities = class_probabilities(outputs, len(self.names))  # (K, h, w)
        for index in labels.unique().tolist():
            mask = labels == index
            # A single output is the probability of its class, labeled 1; the other pixels belong to no segment.
            class_index = index - 1 if len(self.names) == 1 else index
            if class_index not in self.names:
                continue
            whole = torch.nn.functional.interpolate(
                probabilities[None, class_index : class_index + 1], size=size, mode="bilinear"
            )
            yield segment(class_index, self.names[class_index], mask, float(whole[0, 0][mask].mean()))

    def object_segments(
        self, outputs: Any, size: tuple[int, int], subtask: str, threshold: float
    ) -> Iterator[dict[str, Any]]:
        """Yield the objects of an image, and for panoptic segmentation its stuff."""
        process = getattr(self.processor, f"post_process_{subtask}_segmentation")
        (results,) = process(outputs, threshold=threshold, target_sizes=[size])
        for info in results["segments_info"]:
            index = int(info["label_id"])
            yield segment(index, self.names[index], results["segmentation"] == info["id"], float(info["score"]))


def check_local_code(folder: Path) -> None:
    """Raise ValueError unless `folder` is a local directory whose config files name code of their own directory."""
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} is not the directory of a model: it has no {CONFIG}")
    for name in CODE_FILES:
        with suppress(FileNotFoundError):
            settings = json.loads((folder / name).read_text(encoding="utf-8"))
            if any("--" in json.dumps(auto_map) for auto_map in auto_maps(settings)):
                raise ValueError(f"{name} names code of another repository, which is not trusted: copy the code here")


def auto_maps(settings: Any) -> Iterator[Any]:
    """Yield the values of all keys `auto_map`, also of nested configs."""
    if isinstance(settings, list):
        settings = dict(enumerate(settings))
    if isinstance(settings, dict):
        for key, value in settings.items():
            if key == "auto_map":
                yield value
            yield from auto_maps(value)


def find_auto_class(config: Any, folder: Path) -> str:
    """Return the Auto class of the saved model. Raises ValueError for other tasks."""
    own_code = getattr(config, "auto_map", None) or {}
    for auto_class in AUTO_CLASSES:
        suffix, class_name = auto_class.removeprefix("AutoModel"), str(own_code.get(auto_class, "")).rpartition(".")[2]
        if any(name.endswith(suffix) or name == class_name for name in config.architectures or ()):
            return auto_class
    raise ValueError(f"{folder} has no model for segmentation or classification")


def read_image(source: Any) -> Image.Image:
    """Read an image from base64 text (also a data URL), bytes or a PIL image, upright. Raises ValueError.

    Text is never an address or a path: a server must not open what its clients name.
    """
    if isinstance(source, str):
        try:
            source = base64.b64decode(source.partition(";base64,")[2] or source, validate=True)
        except ValueError:
            raise ValueError("inputs is not valid base64: send the bytes of an image as base64") from None
    if isinstance(source, bytes | bytearray | memoryview):
        source = decode_image(bytes(source))
    if not isinstance(source, Image.Image):
        raise ValueError(f"inputs has the type {type(source).__name__}, expected an image, its bytes, or base64 text")
    return ImageOps.exif_transpose(source)


def decode_image(content: bytes) -> Image.Image:
    """Decode the bytes of an image of at most MAX_PIXELS. Raises ValueError."""
    try:
        image = Image.open(BytesIO(content))
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"the image has {image.width}x{image.height} pixels, more than {MAX_PIXELS}")
        image.load()
    except Exception as error:  # decoders of damaged files raise almost any exception
        raise ValueError(f"inputs cannot be read as an image: {error}") from None
    return image


def parse_parameter(parameters: Mapping[str, Any], name: str, kind: Any, default: Any) -> Any:
    """Return a parameter, which may be text of a query string. Raises ValueError for other types."""
    value = parameters.get(name)
    try:
        return default if value is None else kind(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}, expected a value like {default!r}") from None


def is_true(value: Any) -> bool:
    """Convert a boolean, 0 or 1, or the text "true" or "false"."""
    values = {"true": True, "false": False, "1": True, "0": False}
    text = str(value).lower()
    if text not in values:
        raise ValueError(text)
    return values[text]


def check_parameters(parameters: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Raise ValueError for parameters that have no effect."""
    if others := sorted(parameters.keys() - set(names)):
        raise ValueError(f"unknown parameters {', '.join(others)}, expected {', '.join(names)}")


def check_outputs(outputs: Mapping[str, Any]) -> None:
    """Raise ValueError if outputs of the model contain NaN or infinity."""
    for value in outputs.values():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and (value.isnan() | value.isposinf()).any():
            raise ValueError("the outputs of the model contain NaN or infinity: use float32 or bfloat16")


def class_probabilities(outputs: Any, classes: int) -> torch.Tensor:
    """Return the probabilities of the classes (K, h, w); of queries with several classes, the shares of the scores."""
    if getattr(outputs, "logits", None) is not None:
        logits = outputs.logits[0].float()
        return logits.sigmoid() if classes == 1 else logits.softmax(0)
    if getattr(outputs, "class_logits", None) is not None:  # distance head, with "no object"
        return outputs.class_logits[0].float().softmax(0)[:-1]
    scores = outputs.class_queries_logits[0].float().softmax(-1)[:, :-1]  # (queries, K), without "no object"
    summed = torch.einsum("qk,qhw->khw", scores, outputs.masks_queries_logits[0].float().sigmoid())
    return summed.clamp(max=1) if classes == 1 else summed / summed.sum(0, keepdim=True).clamp(min=1e-6)


def segment(index: int, label: str, mask: torch.Tensor, score: float) -> dict[str, Any]:
    """Return a segment with the mask (H, W) bool of its pixels."""
    return {"id": index, "label": label, "score": score, "mask": mask.cpu().numpy()}


def as_answer(segment: Mapping[str, Any]) -> dict[str, Any]:
    """Return a segment in the Hub's schema."""
    mask = encode_png(segment["mask"].astype(np.uint8) * 255)
    return {"label": segment["label"], "mask": mask, "score": segment["score"]}


def label_map_answer(segments: list[dict[str, Any]], size: tuple[int, int], subtask: str) -> dict[str, Any]:
    """Return one map of all segments as a base64 PNG of 8 or 16 bits, and what its values are.

    Values are class indices for semantic segmentation, and 1, 2, ... for objects. The largest value that the PNG can
    store, 255 or 65535, is no segment.
    """
    values = [each["id"] if subtask == "semantic" else number for number, each in enumerate(segments, start=1)]
    kind = np.uint8 if max(values, default=0) < MANY_CLASSES - 1 else np.uint16
    label_map = np.full(size, np.iinfo(kind).max, kind)
    for value, each in zip(values, segments, strict=True):
        label_map[each["mask"]] = value
    rows = [
        {"value": value, "label": each["label"], "score": each["score"], "pixels": int(each["mask"].sum())}
        for value, each in zip(values, segments, strict=True)
    ]
    return {"label_map": encode_png(label_map), "segments": rows, "height": size[0], "width": size[1]}


def encode_png(values: np.ndarray) -> str:
    """Encode an array (H, W) as a PNG in base64."""
    buffer = BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


__all__ = ["EndpointHandler"]
