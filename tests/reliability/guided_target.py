"""`python -m tests.reliability.guided_target READER CORPUS [libFuzzer options]`: fuzz one reader with atheris.

Every input must be read, or refused by HfVitSegError. Another exception ends the process, and the input is kept.
"""

import sys
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

import atheris  # pyright: ignore[reportMissingImports]

with atheris.instrument_imports(include=["hf_vit_seg", "yaml"]):
    from hf_vit_seg.conversion.checkpoint_readers import read_checkpoint

    from hf_vit_seg.errors import HfVitSegError
    from hf_vit_seg.loading.image_processors import load_processor
    from hf_vit_seg.loading.models import model_task
    from hf_vit_seg.training.recipe_loading import load_recipe

FOLDER = Path(mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
READERS = {
    ".npz": ("model.npz", read_checkpoint),
    ".pth": ("model.pth", read_checkpoint),
    ".safetensors": ("model.safetensors", read_checkpoint),
    "config.json": ("config.json", lambda path: model_task(str(path.parent))),
    "preprocessor_config.json": ("preprocessor_config.json", lambda path: load_processor(str(path.parent))),
    "recipe.yaml": ("recipe.yaml", load_recipe),
}


def main(reader: str, options: list[str]) -> None:
    """Fuzz until the time limit in the options."""
    name, read = READERS[reader]
    path = FOLDER / name

    def read_input(data: bytes) -> None:
        path.write_bytes(data)
        with suppress(HfVitSegError):
            read(path)

    atheris.Setup([sys.argv[0], *options], read_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
