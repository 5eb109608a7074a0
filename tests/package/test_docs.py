"""Run the code blocks of the documentation, and check its links and code map; Hub ids are served by the test Hub."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import typer.main
import yaml
from huggingface_hub import HfApi
from paths import REPOSITORY
from plugin_environment import run_commands
from snippets import ACTIONS, MADE_WHEN_BUILT, PROGRAM, SHORT, Snippet, snippets
from tiny_runs import write_images
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from hf_vit_seg.cli import app

DOCS = REPOSITORY / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}
PLUGIN_PAGE = "guides/plugin.md"
TEXTS = {name: path.read_text() for name, path in PAGES.items()} | {
    name: (REPOSITORY / name).read_text()
    for name in ("README.md", "CONTRIBUTING.md", "examples/nuclei/README.md", "examples/plugin/README.md")
}
INLINE = re.compile(rf"(?<!`)`({PROGRAM} [^`]+ [^`]+)`(?!`)")
NOTEBOOK = DOCS / "notebooks" / "fine_tune.ipynb"


def all_snippets() -> list[Snippet]:
    return [snippet for text in TEXTS.values() for snippet in snippets(text)]


@pytest.fixture
def dinov2(hub, tmp_path) -> None:
    """A tiny model under the id of a known one."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 14, "image_size": 70}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path / "dinov2")
    BitImageProcessor().save_pretrained(tmp_path / "dinov2")
    HfApi().create_repo("facebook/dinov2-small")
    HfApi().upload_folder(repo_id="facebook/dinov2-small", folder_path=tmp_path / "dinov2")


LONG_PAGES = {"guides/export.md", "guides/lora.md"}  # they export to every runtime, and train for hundreds of steps


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page in LONG_PAGES else ())
        for page in sorted(PAGES.keys() - {PLUGIN_PAGE})
    ],
)
@pytest.mark.usefixtures("dinov2", "segformer_on_hub")
def test_snippets_run(page, reader):
    for snippet in snippets(TEXTS[page]):
        if snippet.language not in MADE_WHEN_BUILT:
            reader.read(snippet)


@pytest.mark.slow
def test_plugin_guide(tmp_path, monkeypatch):
    """Its commands, sequentially, in an environment with the plugin."""
    shutil.copytree(REPOSITORY / "examples" / "plugin", tmp_path / "examples" / "plugin")
    install = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", "site"]
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-m", *install, "examples/plugin"], check=True, capture_output=True)
    wanted = [words for each in snippets(TEXTS[PLUGIN_PAGE]) if each.is_run for words in each.commands]
    commands = [[*words[1:], *(SHORT if words[1] == "train" else ())] for words in wanted if words[0] == PROGRAM]
    for words, outcome in zip(commands, run_commands(commands, tmp_path / "home", path=tmp_path / "site"), strict=True):
        assert outcome.code == 0, f"{words}: {outcome.output} {outcome.errors}"


def test_code_fences_are_known():
    assert {snippet.language for snippet in all_snippets() if snippet.is_run and snippet.title is None} <= (
        ACTIONS.keys() | MADE_WHEN_BUILT
    )


def test_commands_accept_documented_options():
    """Including commands that are not run or are part of a sentence."""
    known = typer.main.get_command(app).commands
    inline = [shlex.split(code) for text in TEXTS.values() for code in INLINE.findall(text)]
    commands = [words for each in all_snippets() for words in each.commands] + inline
    called = [words[1:] for words in commands if words[0] == PROGRAM and words[1] in known and "..." not in words]
    for name, *arguments in called:
        known[name].make_context(name, arguments)
    assert {name for name, *_ in called} == known.keys()


def test_extras_exist():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for text in TEXTS.values():
        for named in re.findall(r"pip install [^\n`]*?\.\[([\w,]+)\]", text):
            assert set(named.split(",")) <= extras.keys(), named


def test_documented_installs_exist():
    """The package itself is in the repository, and not yet on an index."""
    code = {path: path.read_text() for path in sorted((REPOSITORY / "hf_vit_seg").rglob("*.py"))}
    for name, text in {**TEXTS, **code}.items():
        assert not re.search(r"pip install [^\n`]*hf_vit_seg", text), name


def test_links_are_valid():
    for name, text in TEXTS.items():
        folder = (PAGES.get(name) or REPOSITORY / name).parent
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
            assert target.startswith("https://") or (folder / target).exists(), f"{name}: {target}"


def test_every_page_is_within_two_clicks():
    """By links in the texts, from the landing page."""
    reached = found = {"index.md"}
    for _ in range(2):
        found = {target for name in found for target in linked_pages(name)} - reached
        reached = reached | found
    assert PAGES.keys() - reached == set()


def linked_pages(name: str) -> set[str]:
    targets = re.findall(r"\]\(([^)#:]+\.md)(?:#[^)]*)?\)", TEXTS[name])
    pages = {(PAGES[name].parent / target).resolve() for target in targets}
    return {page.relative_to(DOCS).as_posix() for page in pages if page.is_relative_to(DOCS)}


def test_every_page_is_in_the_navigation_and_searched():
    config = yaml.load((REPOSITORY / "mkdocs.yml").read_text(), Loader=IgnoreTags)
    assert sorted(leaves(config["nav"])) == sorted(PAGES)
    assert "search" in config["plugins"]


def leaves(nav) -> list[str]:
    parts = nav.values() if isinstance(nav, dict) else nav
    return [nav] if isinstance(nav, str) else [leaf for part in parts for leaf in leaves(part)]


class IgnoreTags(yaml.SafeLoader):
    """mkdocs.yml names Python objects in tags."""


IgnoreTags.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def test_shown_sources_exist():
    spec = spec_from_file_location("code_blocks", DOCS / "code_blocks.py")
    assert spec is not None and spec.loader is not None
    blocks = module_from_spec(spec)
    spec.loader.exec_module(blocks)
    for snippet in all_snippets():
        if snippet.language in MADE_WHEN_BUILT:
            assert len(blocks.BLOCKS[snippet.language](snippet.text.strip())) > 50
    with pytest.raises(ValueError, match="has no absent"):
        blocks.source_block("tests/support/snippets.py Reader.absent")


@pytest.mark.slow
def test_site_builds(tmp_path):
    if find_spec("mkdocs") is None or find_spec("mkdocstrings") is None:
        pytest.skip("mkdocs is not installed: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for name in PAGES:
        page = (tmp_path / name).with_suffix(".html").read_text()
        assert not re.search(r"```(source|help)", page)


def run_notebook(reader, parameters: str) -> None:
    """Every cell, with parameters overridden after the parameter cell, as by papermill."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        text = "".join(cell["source"])
        if "parameters" in cell["metadata"].get("tags", ()):
            text += f"\n{parameters}\n"
        reader.run_python(Snippet("", "python", None, text))
    assert sum("parameters" in cell["metadata"].get("tags", ()) for cell in cells) == 1


def test_notebook_runs(reader, monkeypatch):
    root = Path.cwd()
    (root / "docs" / "notebooks").mkdir(parents=True)
    monkeypatch.chdir(root / "docs" / "notebooks")
    run_notebook(reader, "steps = 2")
    assert Path.cwd() == root


def test_notebook_runs_in_a_folder_with_user_images(reader, tmp_path, monkeypatch):
    own = tmp_path / "own"
    write_images(own)
    monkeypatch.chdir(own)
    run_notebook(reader, "steps, images, masks, classes = 2, 'images', 'masks', ['ground', 'disc', 'bar']")
    assert Path.cwd() == own and (own / "runs/notebook/best/config.json").is_file()


PAGE = (REPOSITORY / "docs" / "code_map.md").read_text()
ROWS = re.findall(r"^\| ([\w/]+\.py) \| ([\w.]+) \| ([\w, ]+) \|$", PAGE, flags=re.MULTILINE)


def definition(file: str, name: str) -> ast.AST:
    """The function or method of a file."""
    node: ast.AST = ast.parse((REPOSITORY / file).read_text())
    for part in name.split("."):
        node = next(each for each in ast.iter_child_nodes(node) if getattr(each, "name", None) == part)
    return node


def called_names(node: ast.AST) -> list[str]:
    """Names of the called functions and methods, in source order."""
    calls = [each for each in ast.walk(node) if isinstance(each, ast.Call)]
    calls.sort(key=lambda call: (call.lineno, call.col_offset))
    return [call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "") for call in calls]


def test_code_map_has_four_flows():
    assert len(ROWS) >= 20
    assert len(re.findall(r"^## (Register|Train|Predict|Convert)$", PAGE, flags=re.MULTILINE)) == 4


def test_files_of_diagrams_exist():
    files = re.findall(r"\[([\w/]+\.py)\]", PAGE)
    assert len(files) >= 20
    assert not [file for file in files if not any((REPOSITORY / root / file).is_file() for root in ("", "hf_vit_seg"))]


@pytest.mark.parametrize(("file", "name", "calls"), ROWS, ids=[f"{file}:{name}" for file, name, _ in ROWS])
def test_functions_call_each_other_in_order(file, name, calls):
    found = iter(called_names(definition(file, name)))
    for call in calls.split(", "):
        assert call in found, f"{call} is not called after those before it"  # `in` advances the iterator
