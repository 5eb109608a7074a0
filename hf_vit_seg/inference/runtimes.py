"""Runtimes of exported models, with the interface of a transformers model for `Segmenter` and `InstanceSegmenter`.

An exported model is a file in a directory with config.json and preprocessor_config.json. Plugins register runtimes in
the entry point group `hf_vit_seg.runtimes`: the name is the file's suffix without its dot, the object a function from
the path to a `Program`.

Shapes: B images, C channels, H W pixels, h w the logits' grid, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedConfig
from transformers.modeling_outputs import SemanticSegmenterOutput

from hf_vit_seg.conversion.checkpoint_readers import CONFIG
from hf_vit_seg.conversion.errors import ConversionError
from hf_vit_seg.entry_points import PREFIX, RuntimeFunction, check_contract, entries_by_name, load_entry
from hf_vit_seg.errors import error_sentence
from hf_vit_seg.loading.errors import INVALID_FILES, ModelError
from hf_vit_seg.loading.models import model_task
from hf_vit_seg.models.distance_head import DistanceOutput
from hf_vit_seg.models.mask_classification import UniversalSegmentationOutput

GROUP = PREFIX + "runtimes"

SHAPES_KEPT = 3  # number of shapes for which dynamic programs stay compiled; each has a copy of the weights

Outputs = torch.Tensor | tuple[torch.Tensor, ...]
Run = Callable[[torch.Tensor], Outputs]  # pixel values -> output

# Outputs of models that find objects. Their `exported` fields are the outputs of programs.
OBJECT_OUTPUTS: tuple[type[Any], ...] = (UniversalSegmentationOutput, DistanceOutput)


@dataclass(frozen=True)
class Program:
    """A loaded program from pixel values (B, C, H, W) of `dtype` to one tensor, or a tuple of tensors.

    `sides` is the (height, width) of its input if it is fixed; `outputs` are the names of several outputs.
    """

    run: Run
    dtype: torch.dtype
    sides: tuple[int, int] | None = None
    outputs: tuple[str, ...] = ()


def onnx_program(path: Path) -> Program:
    """Load an ONNX file with ONNX Runtime."""
    runtime = import_optional("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    dtype = torch.float16 if entry.type == "tensor(float16)" else torch.float32
    names = tuple(output.name for output in session.get_outputs())
    run = lambda images: tensors(session.run(None, {entry.name: images.numpy()}))  # noqa: E731
    return Program(run, dtype, static_size(entry.shape), names)


def tensors(arrays: Sequence[np.ndarray]) -> Outputs:
    """Convert the outputs of a program to tensors; a single output is not a tuple."""
    first, *others = map(torch.from_numpy, arrays)
    return (first, *others) if others else first


@cache
def openvino_core() -> Any:
    """Return the OpenVINO core, a singleton that is never destroyed.

    Its CPU device replaces the thread's alternate signal stack. If two devices are destroyed in the order of their
    creation, the second restores the freed stack of the first, and the next signal kills the process.
    """
    return import_optional("openvino").Core()


def compile_openvino(model: Any) -> Any:
    """Compile an OpenVINO model or file for float32 on the CPU, with torch's number of threads."""
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    return openvino_core().compile_model(model, "CPU", settings)


class OpenVinoProgram:
    """An OpenVINO program in float32 (OpenVINO's default is bfloat16 if the CPU supports it).

    With dynamic sizes, repeated shapes get a program with static sizes, which is about twice as fast.
    """

    def __init__(self, path: Path):
        self.model = openvino_core().read_model(str(path))
        self.compiled = compile_openvino(self.model)
        self.is_open = self.model.input(0).partial_shape.is_dynamic
        self.seen: set[tuple[int, ...]] = set()
        self.compiled_for = lru_cache(SHAPES_KEPT)(self.compile_for)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the outputs."""
        return tuple(output.get_any_name() for output in self.model.outputs)

    def __call__(self, images: torch.Tensor) -> Outputs:
        """Run the program on pixel values (B, C, H, W)."""
        shape = tuple(images.shape)
        program = self.compiled_for(shape) if shape in self.seen else self.compiled
        if self.is_open:
            self.seen.add(shape)
        # Results are copied: their memory belongs to the request, which the next call overwrites.
        return tensors([array.copy() for array in program(images.numpy()).to_tuple()])

    def compile_for(self, shape: tuple[int, ...]) -> Any:
        """Compile the model for one shape."""
        fixed = self.model.clone()
        fixed.reshape(list(shape))
        return compile_openvino(fixed)


def openvino_program(path: Path) -> Program:
    """Load an OpenVINO file."""
    program = OpenVinoProgram(path)
    shape = [side.get_length() if side.is_static else None for side in program.model.input(0).partial_shape]
    return Program(program, torch.float32, static_size(shape), program.names)


def torchscript_program(path: Path) -> Program:
    """Load a TorchScript file."""
    module = torch.jit.load(str(path)).eval()
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    return Program(module, dtype)


def executorch_program(path: Path) -> Program:
    """Load an ExecuTorch file."""
    runtime = import_optional("executorch.runtime").Runtime.get()
    method = runtime.load_program(path).load_method("forward")
    run = lambda images: method.execute([images.contiguous()])[0].clone()  # noqa: E731
    return Program(run, torch.float32, static_size(method.metadata.input_tensor_meta(0).sizes()))


def static_size(shape: Sequence[Any]) -> tuple[int, int] | None:
    """Return the (height, width) of an input shape (B, C, H, W), or None if it is dynamic."""
    height, width = shape[-2:]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


PROGRAMS: dict[str, Callable[[Path], Program]] = {
    ".onnx": onnx_program,
    ".xml": openvino_program,
    ".ts": torchscript_program,
    ".pte": executorch_program,
}


def import_optional(module: str) -> Any:
    """Import a module of the extra "export". Raises ModelError if it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ModelError(f"{package} is not installed (or lacks something: {error}): pip install {package}") from error


def is_program(name: str) -> bool:
    """Return whether a model name is the path of an exported file."""
    suffix = Path(name).suffix
    known = suffix in PROGRAMS or (suffix and suffix[1:] in entries_by_name(GROUP))
    return bool(known) and not Path(name).is_dir()


def task_of_model(name: str) -> str:
    """Return the task of a model (see `model_task`) or of an exported file, whose config.json names the class of its
    model.

    Raises ModelError for a model that has none, and for an exported file that does not exist.
    """
    if not is_program(name):
        return model_task(name)
    check_file(Path(name))
    folder = Path(name).parent
    try:
        return model_task(str(folder)) if (folder / CONFIG).is_file() else "segmentation"
    except ModelError:  # files of earlier versions do not name the class
        return "segmentation"


def find_task(name: str) -> str:
    """Return the task of a model as `task_of_model`, or "segmentation" if its head is unknown or missing.

    Loading the model as a segmenter then reports the error. Raises ModelError for a checkpoint that cannot be found,
    read or converted.
    """
    try:
        return task_of_model(name)
    except ModelError as error:
        if isinstance(error.__cause__, ConversionError):
            raise
        return "segmentation"


def check_file(path: Path) -> None:
    """Raise ModelError if an exported file does not exist."""
    if not path.is_file():
        raise ModelError(f"{path} does not exist; pass an exported model, such as model.onnx, or a model directory")


def check_runtime(value: Any) -> None:
    """Raise TypeError if a plugin's object is not a function from a path to a Program."""
    if not callable(value):
        raise TypeError(f"expected a function from a path to a Program, found {type(value).__name__}")
    check_contract(value, RuntimeFunction)


def loading_error(path: Path, error: Exception) -> ModelError:
    """Return the error for a file that a runtime or transformers cannot load."""
    return ModelError(f"{path} cannot be loaded as an exported model: {error_sentence(error, short=True)}")


def load_program(path: Path) -> Program:
    """Load the program in a file by its suffix. Raises ModelError if it fails, or without a runtime for the suffix."""
    if path.suffix in PROGRAMS:
        try:
            return PROGRAMS[path.suffix](path)
        except ModelError:
            raise
        except Exception as error:  # runtimes raise various exceptions
            raise loading_error(path, error) from error
    entry = entries_by_name(GROUP).get(path.suffix.removeprefix("."))
    if entry is None:
        raise ModelError(f"{path} is of no format that is known here: {', '.join(sorted(PROGRAMS))}, or a plugin's")
    runtime = load_entry(entry, check_runtime)
    if runtime.error:
        raise ModelError(f"the runtime of {runtime.origin} for '{path.suffix}' cannot be used: {runtime.error}")
    return runtime.value(path)


class RuntimeModel:
    """A program with its config, called like a model to compute logits on the CPU.

    Programs that return label maps instead of logits can only be run by `program.run`.
    """

    def __init__(self, path: Path, config: PreTrainedConfig | None = None, task: str | None = None):
        """`config` is read from the file's directory by default.

        Raises ModelError if loading fails, or if the program is not for `task`, "segmentation" or "instance".
        """
        self.path = path
        check_file(path)
        try:
            self.config = config or AutoConfig.from_pretrained(path.parent)
        except INVALID_FILES as error:
            raise loading_error(path, error) from error
        self.program = load_program(path)
        self.dtype = self.program.dtype
        names = self.program.outputs
        self.objects = next((output_class for output_class in OBJECT_OUTPUTS if output_class.exported == names), None)
        if task is not None and (task == "instance") != (self.objects is not None):
            kinds = ("classes of pixels", "objects")
            has, needs = kinds[self.objects is not None], kinds[task == "instance"]
            raise ModelError(f"{path} finds {has}, not {needs}: export a model for {task}")

    def eval(self) -> "RuntimeModel":
        """Return the model: exported programs are always in evaluation mode."""
        return self

    def to(self, device: torch.device) -> "RuntimeModel":
        """Raise ModelError for devices other than the CPU."""
        if device.type != "cpu":
            raise ModelError(f"{self.path.name} runs on the CPU here: choose device cpu instead of {device}")
        return self

    def __call__(self, pixel_values: torch.Tensor) -> Any:
        """Map pixel values (B, C, H, W) to logits (B, K, h, w), or the model's output for objects, in float32."""
        sides, (height, width) = self.program.sides, pixel_values.shape[-2:]
        if sides not in (None, (height, width)):
            raise ModelError(
                f"{self.path.name} takes images of {sides[0]}x{sides[1]} alone and would be shown one of "
                f"{height}x{width}: leave the size to it, or export it again without --size"
            )
        outputs = self.program.run(pixel_values.to(self.dtype))
        if self.objects is not None:
            named = zip(self.objects.exported, outputs, strict=True)
            return self.objects(**{name: tensor.float() for name, tensor in named})
        assert isinstance(outputs, torch.Tensor)
        if not outputs.is_floating_point():
            raise ModelError(
                f"{self.path.name} gives label maps, not the logits that a prediction at an image's own size is made "
                "of: export it again without --label-map"
            )
        return SemanticSegmenterOutput(logits=outputs.float())  # pyright: ignore[reportArgumentType]


__all__ = [
    "OBJECT_OUTPUTS",
    "PROGRAMS",
    "Program",
    "RuntimeModel",
    "check_runtime",
    "compile_openvino",
    "find_task",
    "import_optional",
    "is_program",
    "openvino_core",
    "task_of_model",
]
