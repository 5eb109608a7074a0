"""A hook of MkDocs: blocks of the documentation that are made from the code when it is built, and so never become old.

A fence `source` names a file of the repository or, behind a Python file, one thing in it (`Class.method`, a constant),
and becomes its text. A fence `help` names a command of hf-vit-seg, and becomes what `--help` prints.
"""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```(source|help)\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".md": "markdown"}
LINE_WIDTH = "100"


def on_page_markdown(markdown: str, **context: Any) -> str:
    """What MkDocs calls with the text of each page."""
    return FENCE.sub(lambda fence: BLOCKS[fence[1]](fence[2]), markdown)


def source_block(target: str) -> str:
    """A file, or a thing in it, with the numbers of its lines."""
    place, _, name = target.partition(" ")
    path = REPOSITORY / place
    text = path.read_text(encoding="utf-8")
    first, last = line_range(text, name, place) if name else (1, len(text.splitlines()))
    lines = dedent("\n".join(text.splitlines()[first - 1 : last]))
    return f'```{{.{LANGUAGES[path.suffix]} title="{place}" linenums="{first}"}}\n{lines}\n```'


def line_range(text: str, name: str, place: str) -> tuple[int, int]:
    """First and last line of a thing in the text of a module; ValueError when it is not there."""
    body: list[ast.stmt] = ast.parse(text).body
    node: Any = None
    for part in name.split("."):
        node = next((each for each in body if part in names_of(each)), None)
        if node is None:
            raise ValueError(f"the documentation shows {name} of {place}, and there is no {part} there")
        body = getattr(node, "body", [])
    decorators = [each.lineno for each in getattr(node, "decorator_list", [])]
    return min([node.lineno, *decorators]), node.end_lineno


def names_of(node: ast.stmt) -> Iterator[str]:
    """What a statement defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def help_block(command: str) -> str:
    """What a command says of itself."""
    from typer.testing import CliRunner

    from hf_vit_seg.cli import app

    environment = {"COLUMNS": LINE_WIDTH, "TERMINAL_WIDTH": LINE_WIDTH, "NO_COLOR": "1"}
    shown = CliRunner(env=environment).invoke(app, [command, "--help"], prog_name="hf-vit-seg", catch_exceptions=False)
    return f"```text\n{shown.stdout.strip()}\n```"


BLOCKS: dict[str, Callable[[str], str]] = {"source": source_block, "help": help_block}
