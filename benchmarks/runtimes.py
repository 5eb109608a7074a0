"""Models in ONNX Runtime and OpenVINO: our export against torch's export of transformers' model, the same weights.

    python -m benchmarks.runtimes [--variants b0,b2] [--no-objects] [--folder cache]

SegFormer, and the mask logits of EoMT with ViT-S/16 and 100 queries.

Both are exported for the size that is timed (`hf-vit-seg export --size`); "any size" is our default export. "With
masks" includes the label map at the image's size: ours by `label_map`, or within the graph (`--label-map input`),
theirs by resizing all logits and arg-max, as in transformers' processor.
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from hf_vit_seg.conversion.convert import export as export_checkpoint

from hf_vit_seg import architectures
from hf_vit_seg.export.exporters import Exporter, OnnxExporter, OpenVinoExporter, quiet
from hf_vit_seg.export.forms import Target, with_export_forms
from hf_vit_seg.export.graphs import Geometry, LabelGraph, LogitGraph, ObjectGraph
from hf_vit_seg.models.label_maps import label_map
from hf_vit_seg.models.mask_classification import UniversalSegmentationOutput

from .contest import Logits, Out, Rounds, Threads, randomize, set_up
from .masks import QUERIES
from .masks import SIZE as EOMT_SIZE
from .masks import load_ours as load_eomt
from .masks import load_theirs as load_their_eomt
from .masks import save_all as save_eomt
from .measuring import Contender, print_table, time_interleaved
from .segformer import onnx_runtime_contender, openvino_contender


class Runtime(NamedTuple):
    """A runtime of ONNX files, and the exporter whose forms of a model suit it."""

    contender: Callable[[Path, torch.Tensor], Contender]
    exporter: type[Exporter]


RUNTIMES = {
    "ONNX Runtime": Runtime(onnx_runtime_contender, OnnxExporter),
    "OpenVINO": Runtime(openvino_contender, OpenVinoExporter),
}
OURS, OPEN, IN_GRAPH = "hf_vit_seg", "hf_vit_seg, any size", "hf_vit_seg, map in the graph"
THEIRS = "transformers"
OF_LOGITS, OF_LABELS = (OURS, OPEN, THEIRS), (OURS, IN_GRAPH, THEIRS)
MAX_DIFFERENCE = 1e-3  # of any logit, in standard deviations
LARGE = (1024, 2048)


def make_once(path: Path, make: Callable[[Path], Any]) -> Path:
    """Create a file with `make` unless it exists from an earlier run."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
    return path


def save_ours(path: Path, variant: str, classes: int) -> None:
    """Save random weights in our format."""
    architecture = architectures()["segformer"]
    # transformers uses 1e-5 in all norms, regardless of its config
    config = architecture.variant_config(variant, num_labels=classes, layer_norm_eps=1e-5)
    randomize(architecture.models["AutoModelForSemanticSegmentation"](config)).save_pretrained(path)
    architecture.image_processor["torchvision"]().save_pretrained(path)


def export_ours(
    path: Path, weights: Path, forms: Sequence[Target], size: tuple[int, int] | None, labels: bool = False
) -> None:
    """Export our model, for one image size or for any."""
    model = architectures()["segformer"].models["AutoModelForSemanticSegmentation"].from_pretrained(weights)
    plain = with_export_forms(model, forms)
    graph = LabelGraph(plain) if labels else LogitGraph(plain)
    OnnxExporter().write(graph.eval(), Geometry(3, size, size and 1), torch.float32, path)


def export_theirs(path: Path, weights: Path, size: tuple[int, int]) -> None:
    """Export transformers' model for one size, with torch's exporter."""
    from transformers import SegformerForSemanticSegmentation

    folder = make_once(weights.with_name(weights.name + "_transformers"), partial(to_transformers, weights))
    model = Logits(SegformerForSemanticSegmentation.from_pretrained(folder)).eval()
    with quiet():
        torch.onnx.export(
            model, (torch.randn(1, 3, *size),), path, dynamo=True, opset_version=18, verbose=False, external_data=False
        )


def to_transformers(weights: Path, folder: Path) -> None:
    """Convert our weights to transformers' format."""
    export_checkpoint(weights, folder, to="transformers")


def programs(
    folder: Path, variant: str, classes: int, size: tuple[int, int], runtime: str, selected: Sequence[str]
) -> dict[str, Path]:
    """Return the files of the selected programs by name, exported if necessary."""
    place, exporter = folder / f"{variant}_{classes}", RUNTIMES[runtime].exporter
    weights = make_once(place / "weights", lambda path: save_ours(path, variant, classes))
    write = partial(export_ours, weights=weights, forms=exporter.forms)
    own, name = place / runtime, f"{size[0]}x{size[1]}.onnx"
    files = {
        OURS: (own / f"ours_{name}", partial(write, size=size)),
        OPEN: (own / "ours.onnx", partial(write, size=None)),
        IN_GRAPH: (own / f"labels_{name}", partial(write, size=size, labels=True)),
        THEIRS: (place / f"theirs_{name}", lambda path: export_theirs(path, weights, size)),
    }
    return {who: make_once(*files[who]) for who in selected}


def write_eomt(path: Path, folder: Path, forms: Sequence[Target], size: tuple[int, int] | None) -> None:
    """Export our EoMT, for one image size or for any; mask logits are the first output."""
    plain = with_export_forms(load_eomt(folder).model, forms)
    graph = ObjectGraph(plain, UniversalSegmentationOutput.exported[::-1])
    OnnxExporter().write(graph.eval(), Geometry(3, size, size and 1), torch.float32, path)


def export_their_eomt(path: Path, folder: Path, size: tuple[int, int]) -> None:
    """Export the mask logits of transformers' EoMT with torch's exporter, which cannot branch on a buffer's values."""
    masks = load_their_eomt(folder).eval()
    model: Any = masks.model
    del model._buffers["attn_mask_probs"]
    model.attn_mask_probs = [0.0] * model.config.num_blocks  # as after training
    with quiet():
        torch.onnx.export(
            masks,
            (torch.randn(1, 3, *size),),
            path,
            dynamo=True,
            opset_version=18,
            verbose=False,
            external_data=False,
        )


def eomt_programs(folder: Path, runtime: str) -> dict[str, Path]:
    """Return the files of the programs of EoMT by name, exported if necessary."""
    place, size, forms = folder / "eomt", (EOMT_SIZE, EOMT_SIZE), RUNTIMES[runtime].exporter.forms
    weights = make_once(place / "weights", save_eomt)
    files = {
        OURS: (place / runtime / "ours.onnx", partial(write_eomt, folder=weights, forms=forms, size=size)),
        OPEN: (place / runtime / "ours_any_size.onnx", partial(write_eomt, folder=weights, forms=forms, size=None)),
        THEIRS: (place / "theirs.onnx", partial(export_their_eomt, folder=weights, size=size)),
    }
    return {who: make_once(*parts) for who, parts in files.items()}


def time_and_compare(
    contenders: dict[str, Contender], rounds: int, agree: Callable[[torch.Tensor, torch.Tensor], float]
):
    """Times in ms, and the difference of each contender from the first; `agree` raises if it is too large."""
    first = next(iter(contenders.values()))()
    differences = {name: agree(first, contender()) for name, contender in contenders.items()}
    return time_interleaved(contenders, rounds), differences


def logit_difference(ours: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference in standard deviations; RuntimeError if it is more than rounding."""
    difference = float((ours - other).abs().max() / ours.std())
    if difference > MAX_DIFFERENCE:
        raise RuntimeError(f"the programs do not agree: logits differ by {difference:.3g} standard deviations")
    return difference


def differing_labels(ours: torch.Tensor, other: torch.Tensor) -> float:
    """Fraction of pixels with different labels; RuntimeError if there are more than ties explain."""
    share = float((ours.long() != other.long()).double().mean())
    if share > MAX_DIFFERENCE:
        raise RuntimeError(f"the programs do not agree: {share:.2%} of the labels differ")
    return share


def labels_by_label_map(contender: Contender, size: tuple[int, int]) -> torch.Tensor:
    """Labels from logits by our exact label map."""
    return label_map(contender(), size, dtype=torch.uint8)


def labels_by_resizing(contender: Contender, size: tuple[int, int]) -> torch.Tensor:
    """Labels from logits as transformers' processor makes them."""
    return torch.nn.functional.interpolate(contender(), size, mode="bilinear", align_corners=False).argmax(1)


def result_rows(title: str, times: dict[str, float], differences: dict[str, float]) -> list[list[str]]:
    ours = next(iter(times.values()))
    return [[title, who, f"{ms:.1f}", f"{ms / ours:.2f}", f"{differences[who]:.1e}"] for who, ms in times.items()]


def main(
    variants: Annotated[str, typer.Option(help="variants of the comparison of logits, comma-separated")] = "b0,b2",
    size: Annotated[int, typer.Option(help="side of its square images")] = 512,
    classes: Annotated[
        str, typer.Option(help="numbers of classes of the comparison with masks at 1024x2048 (b0), comma-separated")
    ] = "19,150",
    objects: Annotated[bool, typer.Option(help="also compare the mask logits of EoMT")] = True,
    runtimes: Annotated[str, typer.Option(help="comma-separated")] = ",".join(RUNTIMES),
    folder: Annotated[Path | None, typer.Option(help="keep the exported programs here")] = None,
    prepare: Annotated[bool, typer.Option("--prepare", help="export only")] = False,
    rounds: Rounds = 8,
    threads: Threads = None,
    out: Out = None,
) -> None:
    """Print the tables."""
    set_up(threads)
    columns, names = ["comparison", "program", "ms", "to ours", "difference"], runtimes.split(",")
    counts = [int(count) for count in classes.split(",") if count]
    with nullcontext(folder) if folder else tempfile.TemporaryDirectory() as place:
        small = {
            (v, r): programs(Path(place), v, 150, (size, size), r, OF_LOGITS)
            for v in variants.split(",")
            if v
            for r in names
        }
        large = {(count, r): programs(Path(place), "b0", count, LARGE, r, OF_LABELS) for count in counts for r in names}
        masks = {r: eomt_programs(Path(place), r) for r in names if objects}
        if prepare:
            return
        if rows := [row for key, files in small.items() for row in logit_rows(*key, files, size, rounds)]:
            title = f"Logits, 1x{size}x{size}, 150 classes, float32, {torch.get_num_threads()} threads"
            print_table(title, columns, rows, out)
        rows = [row for r, files in masks.items() for row in logit_rows("EoMT", r, files, EOMT_SIZE, rounds)]
        if rows:
            title = f"Mask logits, 1x{EOMT_SIZE}x{EOMT_SIZE}, {QUERIES} queries, float32"
            print_table(title, columns, rows, out)
        if rows := [row for key, files in large.items() for row in label_rows(*key, files, rounds)]:
            print_table("With masks, B0, 1x1024x2048, float32", columns, rows, out)


def logit_rows(variant: str, runtime: str, files: dict[str, Path], size: int, rounds: int) -> list[list[str]]:
    """Compare logits in one runtime."""
    pixel_values = torch.randn(1, 3, size, size)
    contenders = {who: RUNTIMES[runtime].contender(files[who], pixel_values) for who in OF_LOGITS}
    return result_rows(f"{variant} {runtime}", *time_and_compare(contenders, rounds, logit_difference))


def label_rows(classes: int, runtime: str, files: dict[str, Path], rounds: int) -> list[list[str]]:
    """Compare label maps in one runtime."""
    pixel_values = torch.nn.functional.interpolate(torch.randn(1, 3, 32, 64), LARGE, mode="bicubic")
    run = {who: RUNTIMES[runtime].contender(files[who], pixel_values) for who in OF_LABELS}
    contenders = {
        OURS: partial(labels_by_label_map, run[OURS], LARGE),
        IN_GRAPH: run[IN_GRAPH],
        THEIRS: partial(labels_by_resizing, run[THEIRS], LARGE),
    }
    return result_rows(
        f"{classes} classes, {runtime}", *time_and_compare(contenders, max(rounds // 3, 1), differing_labels)
    )


if __name__ == "__main__":
    typer.run(main)
