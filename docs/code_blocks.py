"""MkDocs hook that inserts code and command help into the pages when the site is built, so they are always current.

A `source` block contains the path of a file, optionally followed by an object in it (`Class.method` or a constant), and
is replaced by the source. A `help` block contains a command of hf-vit-seg and is replaced by the output of `--help`.
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
    """Replace the blocks of a page. Called by MkDocs."""
    return FENCE.sub(lambda fence: BLOCKS[fence[1]](fence[2]), markdown)


def source_block(target: str) -> str:
    """The source of a file, or of an object in it, with line numbers."""
    file_name, _, name = target.partition(" ")
    path = REPOSITORY / file_name
    text = path.read_text(encoding="utf-8")
    first, last = line_range(text, name, file_name) if name else (1, len(text.splitlines()))
    lines = dedent("\n".join(text.splitlines()[first - 1 : last]))
    return f'```{{.{LANGUAGES[path.suffix]} title="{file_name}" linenums="{first}"}}\n{lines}\n```'


def line_range(text: str, name: str, file_name: str) -> tuple[int, int]:
    """First and last line of an object in the text of a module. Raises ValueError if it does not exist."""
    body: list[ast.stmt] = ast.parse(text).body
    node: Any = None
    for part in name.split("."):
        node = next((each for each in body if part in names_of(each)), None)
        if node is None:
            raise ValueError(f"the documentation shows {name} of {file_name}, which has no {part}")
        body = getattr(node, "body", [])
    decorators = [each.lineno for each in getattr(node, "decorator_list", [])]
    return min([node.lineno, *decorators]), node.end_lineno


def names_of(node: ast.stmt) -> Iterator[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def help_block(command: str) -> str:
    """The help text of a command."""
    from typer.testing import CliRunner

    from hf_vit_seg.cli import app

    environment = {"COLUMNS": LINE_WIDTH, "TERMINAL_WIDTH": LINE_WIDTH, "NO_COLOR": "1"}
    shown = CliRunner(env=environment).invoke(app, [command, "--help"], prog_name="hf-vit-seg", catch_exceptions=False)
    return f"```text\n{shown.stdout.strip()}\n```"


BLOCKS: dict[str, Callable[[str], str]] = {"source": source_block, "help": help_block}
