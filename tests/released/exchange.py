"""Load models with other versions of torch and transformers than those that wrote them, from their own code.

`python -m tests.released.exchange write FOLDER` writes a tiny model of every type and head with its code and outputs;
`... read FOLDER` loads them without importing the package, and fails if an output differs. `.ci/oldest` runs one half
in each of two environments.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from .outputs import ABOUT, OUTPUTS, assert_close_to, outputs_of

VERSIONS = f"torch {torch.__version__}, transformers {transformers.__version__}"
PACKAGE = "hf_vit_seg"


def write(folder: Path) -> None:
    """Write every model of `make.MODELS` into a directory of its own."""
    from .make import MODELS, freeze

    for name, architecture, auto, fields in MODELS:
        freeze(folder / name, architecture, auto, fields, with_code=True)
    print(f"{len(MODELS)} models written by {VERSIONS}")


def load_with_code(folder: Path, auto: str) -> Any:
    """Load a model in float32 with the code in its directory."""
    if auto == "AutoBackbone":  # transformers 5.23 loads backbones with code only from the Hub
        reference = json.loads((folder / "config.json").read_text())["auto_map"][auto]
        model_class = get_class_from_dynamic_module(reference, str(folder))
        return model_class.from_pretrained(str(folder), dtype=torch.float32)
    return getattr(transformers, auto).from_pretrained(str(folder), trust_remote_code=True, dtype=torch.float32)


def read(folder: Path) -> None:
    """Load every model in a folder with its code, and compare its outputs.

    Raises:
        AssertionError: a model has other outputs, or the package itself was imported.
    """
    directories = sorted(path.parent for path in folder.glob(f"*/{ABOUT}"))
    assert directories, f"no models in {folder}"
    for directory in directories:
        model = load_with_code(directory, json.loads((directory / ABOUT).read_text())["auto"])
        assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
        outputs, expected = outputs_of(model), load_file(directory / OUTPUTS)
        assert outputs.keys() == expected.keys(), (directory.name, sorted(outputs), sorted(expected))
        assert_close_to(expected, outputs, f"{directory.name}: ")
    assert PACKAGE not in sys.modules, f"{PACKAGE} was imported"
    print(f"{len(directories)} models read by {VERSIONS}")


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
