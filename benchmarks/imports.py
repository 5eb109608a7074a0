"""Processor time of imports and of the command line beside `import transformers`, each in new processes.

    python -m benchmarks.imports [--rounds 5] [--model DIRECTORY --image FILE]

Processor time of the process and its threads, user and system: the best of several rounds in which every contender
starts once. With a model and an image, `hf-vit-seg predict` is compared with a script that loads the same model
with the Auto classes and segments the same image.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .contest import Out
from .measuring import print_table

COMMAND = "import sys; from hf_vit_seg.cli import app; sys.exit(app())"
STARTS = {
    "import transformers": ("import transformers",),
    "import hf_vit_seg": ("import hf_vit_seg",),
    "import hf_vit_seg, transformers": ("import hf_vit_seg, transformers",),
    "from transformers import AutoConfig": ("from transformers import AutoConfig",),
    "... after import hf_vit_seg": ("import hf_vit_seg; from transformers import AutoConfig",),
    "from transformers import AutoModel, AutoImageProcessor": (
        "from transformers import AutoModel, AutoImageProcessor",
    ),
    "... with import hf_vit_seg": ("import hf_vit_seg; from transformers import AutoModel, AutoImageProcessor",),
    "hf-vit-seg --version": (COMMAND, "--version"),
    "hf-vit-seg --help": (COMMAND, "--help"),
    "hf-vit-seg predict --help": (COMMAND, "predict", "--help"),
    "hf-vit-seg predict (error of usage)": (COMMAND, "predict"),
}
SCRIPT = """
import sys
import hf_vit_seg
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
model, image, out = sys.argv[1:]
processor = AutoImageProcessor.from_pretrained(model)
segmenter = AutoModelForSemanticSegmentation.from_pretrained(model).eval()
photo = Image.open(image).convert("RGB")
with torch.no_grad():
    outputs = segmenter(**processor(photo, return_tensors="pt"))
(label_map,) = processor.post_process_semantic_segmentation(outputs, [(photo.height, photo.width)])
Image.fromarray(label_map.byte().numpy()).save(out)
"""


def processor_time(code: str, *arguments: str) -> float:
    """Seconds of user and system time of a new Python process."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    usage = os.wait4(process.pid, 0)[2]
    return usage.ru_utime + usage.ru_stime


def main(
    rounds: Annotated[int, typer.Option(help="processes of each contender")] = 5,
    model: Annotated[Path | None, typer.Option(help="directory of a segmentation model")] = None,
    image: Annotated[Path | None, typer.Option(help="image to segment")] = None,
    out: Out = None,
) -> None:
    """Measure in turns, so that other load affects all contenders equally."""
    contenders: dict[str, Sequence[str]] = dict(STARTS)
    with tempfile.TemporaryDirectory() as folder:
        if model is not None and image is not None:
            paths = str(model), str(image)
            contenders["script: load, segment, write"] = (SCRIPT, *paths, f"{folder}/map.png")
            predict = ("predict", *paths, "--out", f"{folder}/out", "--overwrite", "--no-overlay")
            contenders["hf-vit-seg predict"] = (COMMAND, *predict)
        best = dict.fromkeys(contenders, float("inf"))
        for _ in range(rounds):
            for name, (code, *arguments) in contenders.items():
                best[name] = min(best[name], processor_time(code, *arguments))
    rows = [[name, f"{seconds:.2f}"] for name, seconds in best.items()]
    print_table(f"Start, best of {rounds} processes", ["process", "processor time (s)"], rows, out)


if __name__ == "__main__":
    typer.run(main)
