"""Code blocks in Markdown files, and a runner that executes them in one process and a temporary folder.

A block with a title is written to a file. `pycon` is a doctest, `text` a part of the output of the last command, with
`...` for omissions, `yaml` without a title a part of a recipe. A comment before a block changes that:
`<!-- not run: REASON -->`, or `<!-- alone -->` for Python in a separate process.
"""

import doctest
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tiny_people
import tiny_runs
import yaml
from object_models import draw_spots
from paths import REPOSITORY
from PIL import Image
from scipy import ndimage
from typer.testing import CliRunner

from hf_vit_seg.cli import app
from hf_vit_seg.training.recipe.location import shipped_recipes
from hf_vit_seg.training.recipe_loading import load_recipe

STAND_INS = {"segformer.b0.512x512.ade.160k.pth": "tests/oracles/nvlabs_segformer/segformer.tiny.7cls.pth"}
PHOTOS = ("photos/1.jpg", "photos/2.jpg", "more/3.jpg", "photo.jpg", "slide.tif")
FENCE = re.compile(r"^(?:<!-- (.*?) -->\n)?```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r'title="(.*?)"')
PROGRAM = "hf-vit-seg"
SHORT = (
    "loop.steps=2",
    "loop.batch_size=2",
    "data.workers=0",
    "evaluation.samples=1",
)  # overrides of `train`
LOOSELY = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Snippet:
    mark: str
    language: str
    title: str | None
    text: str

    @property
    def is_run(self) -> bool:
        return not self.mark.startswith("not run: ")

    @property
    def commands(self) -> list[list[str]]:
        """The commands of a `bash` block, split into words."""
        if self.language != "bash":
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        parts = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
        return [words for words in parts if words]


def snippets(text: str) -> list[Snippet]:
    found = []
    for mark, language, options, code in FENCE.findall(text):
        title = TITLE.search(options)
        found.append(Snippet(mark, language, title[1] if title else None, code))
    return found


def write_files(folder: Path) -> Path:
    """The reader's files: the repository's examples, a checkpoint, photos, a slide, and data for each task."""
    folder.mkdir()
    (folder / "examples").symlink_to(REPOSITORY / "examples")
    for name, stand_in in STAND_INS.items():
        shutil.copy(REPOSITORY / stand_in, folder / name)
    tiny_runs.write_images(folder / "my_data")
    write_pets(folder / "my_pets")
    write_cells(folder / "my_cells")
    (folder / "my_people").mkdir()
    tiny_people.write_people(folder / "my_people", images=4)
    found = sorted((REPOSITORY / "examples" / "nuclei" / "data" / "test" / "images").glob("*.webp"))
    for photo, name in zip(found, PHOTOS, strict=False):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.open(photo).convert("RGB").save(folder / name)
    return folder


def write_cells(folder: Path) -> None:
    """Images of bright cells, and their instance maps."""
    for kind in ("images", "instances"):
        (folder / kind).mkdir(parents=True)
    for number in range(8):
        image = draw_spots(48, 64, 10, 14, seed=number)
        Image.fromarray(image).convert("RGB").save(folder / "images" / f"{number}.png")
        numbers = ndimage.label(image, np.ones((3, 3)))[0]
        Image.fromarray(np.asarray(numbers, np.uint16)).save(folder / "instances" / f"{number}.png")


def write_pets(folder: Path) -> None:
    """Images in one folder for each of two classes, in different colors."""
    random = np.random.default_rng(0)
    for name, level in (("cat", 60), ("dog", 160)):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(random.integers(level, level + 60, (48, 64, 3), np.uint8)).save(
                folder / name / f"{number}.png"
            )


class Reader:
    """Run the snippets of a page in the current directory; `environment` is for separate processes."""

    def __init__(self, environment: dict[str, str]):
        self.environment = os.environ | environment
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.output = ""

    def read(self, snippet: Snippet) -> None:
        if snippet.title is not None:
            Path(snippet.title).write_text(snippet.text)
        elif snippet.is_run:
            ACTIONS[snippet.language](self, snippet)

    def run_commands(self, snippet: Snippet) -> None:
        for words in snippet.commands:
            self.run_command(words)

    def run_command(self, words: list[str]) -> None:
        if words[0] != PROGRAM:
            self.run_process(words)
            return
        tiny_runs.forget_accelerate()
        short = SHORT if words[1] == "train" else ()
        done = CliRunner(env={"COLUMNS": "100"}).invoke(app, [*words[1:], *short])
        self.output = done.output
        problem = done.exception if done.exit_code else None
        assert done.exit_code == 0, f"{shlex.join(words)}: {done.output[-3000:]} {problem!r}"

    def run_process(self, words: list[str]) -> None:
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stdout[-3000:]} {done.stderr[-3000:]}"
        self.output = done.stdout

    def run_python(self, snippet: Snippet) -> None:
        if snippet.mark == "alone":
            self.run_process([sys.executable, "-c", snippet.text])
        else:
            exec(compile(snippet.text, "snippet", "exec"), self.names)

    def run_session(self, snippet: Snippet) -> None:
        session = doctest.DocTestParser().get_doctest(snippet.text, self.names, "snippet", None, 0)
        said: list[str] = []
        failed, _ = doctest.DocTestRunner(optionflags=LOOSELY).run(session, out=said.append, clear_globs=False)
        assert not failed, "".join(said)
        self.names = session.globs

    def compare_output(self, snippet: Snippet) -> None:
        wanted, found = f"<... {snippet.text} ...>", f"< {self.output} >"
        assert doctest.OutputChecker().check_output(wanted, found, LOOSELY), f"{snippet.text}\n!=\n{self.output}"

    def read_recipe(self, snippet: Snippet) -> None:
        """A part of a recipe, inserted into a shipped one."""
        whole = yaml.safe_load(shipped_recipes()["nuclei"].read_text())
        for name, part in yaml.safe_load(snippet.text).items():
            whole[name] = {**whole[name], **part} if name in ("data", "loop") else part
        Path("part.yaml").write_text(yaml.safe_dump(whole))
        load_recipe("part.yaml")


ACTIONS: dict[str, Callable[[Reader, Snippet], None]] = {
    "bash": Reader.run_commands,
    "python": Reader.run_python,
    "pycon": Reader.run_session,
    "text": Reader.compare_output,
    "yaml": Reader.read_recipe,
    "mermaid": lambda reader, snippet: None,  # a diagram, rendered by the browser
}
MADE_WHEN_BUILT = {"source", "help"}  # see docs/code_blocks.py
