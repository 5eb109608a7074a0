"""YAML and JSON from strangers, in cards, recipes, label files and options: limits of depth, size and types."""

import json
import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hf_vit_seg.conversion.errors import ConversionError
from hf_vit_seg.conversion.settings.labels import find_label_set
from paths import REPOSITORY

from hf_vit_seg.cli.model_formats import parse_settings
from hf_vit_seg.data.checks.sample_facts import FactsFile
from hf_vit_seg.data.sources.coco_files import read_lists
from hf_vit_seg.data.sources.source import SourceError
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.inference.files.boxes import BoxesError, read_boxes
from hf_vit_seg.inference.files.tables import read_table
from hf_vit_seg.provenance import card_metadata, provenance_from, split_card
from hf_vit_seg.text_files import MAX_DEPTH, MAX_LENGTH, MAX_VALUES, parse, parse_json, read_json, read_text
from hf_vit_seg.training.checkpoints.state import MANIFEST, CheckpointError, read_manifest
from hf_vit_seg.training.recipe.location import RecipeFileError
from hf_vit_seg.training.recipe_loading import load_recipe
from hf_vit_seg.training.reports.metrics_report import ReportError, read_report
from hf_vit_seg.training.reports.run_log import RunLogError, parse_line

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdef", "bcdefg", strict=True)
)
INVALID_YAML = {
    "billion laughs": LAUGHS,
    "long text repeated": f"a: &a {'x' * 9999}\nb: [{', '.join(['*a'] * 99)}]",
    "alias in its anchor": "kind: &x [*x]",
    "alias as its own key": "&x {*x : 1}",
    "undefined alias": "a: *x",
    "lists": "[" * 900,
    "mappings": "{" * 900,
    "block lists": "- " * 900,
    "complex keys": "? " * 900,
    "too long": "- a\n" * (MAX_LENGTH // 4 + 1),
    "many values": "[" + "x," * MAX_VALUES + "]",
    "many empty values": "- \n" * MAX_VALUES,
    "many empty lists": "[" + "[]," * MAX_VALUES + "]",
    "long integer": "a: " + "9" * 5000,
    "long version": "%YAML " + "9" * 5000 + ".1\n--- a",
    "lone surrogate": r'a: "\ud800"',
    "character beyond Unicode": r'a: "\U00110000"',
    "python object": "!!python/object/apply:os.system [ls]",
    "timestamp tag": "a: !!timestamp x",
    "set tag": "!!set {a, b}",
    "text tagged as integer": "a: !!int x",
    "text tagged as boolean": "a: !!bool maybe",
    "empty float": "a: !!float ''",
    "list tagged as mapping": "!!map [a, b]",
    "duplicate key": "a: 1\na: 2",
    "list as key": "? [a]\n: 1",
}
INVALID_JSON = {
    "lists": "[" * 100_000,
    "lists below the interpreter's limit": "[" * 200 + "]" * 200,
    "objects": '{"a":' * 200 + "1" + "}" * 200,
    "long integer": "9" * 5000,
    "lone surrogate": r'{"a": "\ud800"}',
    "lone surrogate in a key": r'{"\udfff": 1}',
    "empty": "",
}
# Functions that read JSON files which users name, with the errors they raise.
READERS: dict[type[HfVitSegError], Callable[[Path], Any]] = {
    BoxesError: read_boxes,
    SourceError: read_lists,
    ReportError: read_report,
    HfVitSegError: read_table,
}
# Files of a directory that cannot be read as text.
SPECIAL = {
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "dangling link": lambda path: path.symlink_to(path.parent / "gone"),
    "link to itself": lambda path: path.symlink_to(path),
    "link to memory": lambda path: path.symlink_to("/proc/kcore" if Path("/proc/kcore").exists() else "/dev/zero"),
    "link to zeros": lambda path: path.symlink_to("/dev/zero"),
}


def assert_short(error: pytest.ExceptionInfo[HfVitSegError]) -> None:
    """One line of limited length that can be printed anywhere."""
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 700
    text.encode()


@pytest.mark.parametrize("case", INVALID_YAML)
def test_yaml_beyond_limits_raises(tmp_path: Path, case: str) -> None:
    with pytest.raises(HfVitSegError) as error:
        parse(INVALID_YAML[case])
    assert_short(error)
    (tmp_path / "recipe.yaml").write_text(INVALID_YAML[case])
    with pytest.raises(RecipeFileError) as error:
        load_recipe(tmp_path / "recipe.yaml")
    assert_short(error)
    (tmp_path / "README.md").write_text(f"---\n{INVALID_YAML[case]}\n---\n# Model\n")
    with pytest.raises(HfVitSegError) as error:
        card_metadata(tmp_path)
    assert_short(error)
    with pytest.raises(ConversionError):
        find_label_set(tmp_path / "recipe.yaml")
    with pytest.raises(HfVitSegError) as error:
        parse_settings([f"hidden_act={INVALID_YAML[case]}"])
    assert_short(error)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: &a [1, 2]\nb: *a", {"a": [1, 2], "b": [1, 2]}),
        ("a: &a {b: 1}\nc: [*a, *a]", {"a": {"b": 1}, "c": [{"b": 1}, {"b": 1}]}),
        ("[" * MAX_DEPTH + "]" * MAX_DEPTH, None),
        (r'"\ud83d\ude00"', "\U0001f600"),
        ("a: !!str 5", {"a": "5"}),
        ("\n".join(f"{k}: c" for k in range(21843)), dict.fromkeys(range(21843), "c")),
        ("date: 2024-01-01", {"date": "2024-01-01"}),
        ("a: [1e-4, 0x1F, -3, .inf, no]", {"a": [1e-4, 31, -3, float("inf"), "no"]}),
    ],
)
def test_yaml_within_limits_is_read(text: str, value: Any) -> None:
    found = parse(text)
    assert value is None or found == value


def test_random_yaml_gives_values_or_errors() -> None:
    """No text makes PyYAML's own exceptions escape."""
    generator = random.Random(0)
    parts = [*"[]{},-&*?|>%#!'\"01ax", "1e", "&x", "*x", "<<", "...", "---", "!!int", "!!map", "!!seq", "\\ud8"]
    parts += ["\n", " ", ": ", "- ", "? ", "\t", "!!float ", "&x ", "*x "]
    whole = (REPOSITORY / "configs" / "recipes" / "nuclei.yaml").read_text()
    for number in range(3000):
        text = "".join(generator.choices(parts, k=generator.randint(1, 25)))
        if number % 30 == 0:
            place = generator.randrange(len(whole))
            text = whole[:place] + text + whole[place:]
        with suppress(HfVitSegError):
            parse(text)


@pytest.mark.parametrize("case", INVALID_JSON)
def test_json_beyond_limits_raises(tmp_path: Path, case: str) -> None:
    with pytest.raises(HfVitSegError) as error:
        parse_json(INVALID_JSON[case])
    assert_short(error)
    (tmp_path / "labels.json").write_text(INVALID_JSON[case])
    with pytest.raises(HfVitSegError, match=r"labels\.json"):
        read_json(tmp_path / "labels.json")
    with pytest.raises(ConversionError, match=r"labels\.json"):
        find_label_set(tmp_path / "labels.json")
    for kind, read in READERS.items():
        with pytest.raises(kind, match=r"labels\.json") as error:
            read(tmp_path / "labels.json")
        assert_short(error)
    (tmp_path / MANIFEST).write_text(INVALID_JSON[case])
    with pytest.raises(CheckpointError) as error:
        read_manifest(tmp_path)
    assert_short(error)
    assert FactsFile(tmp_path / "labels.json").known == {}
    with pytest.raises(RunLogError):
        parse_line(INVALID_JSON[case].encode(), tmp_path / "log", 1)


@pytest.mark.parametrize("case", SPECIAL)
def test_special_files_raise(tmp_path: Path, case: str) -> None:
    SPECIAL[case](tmp_path / "README.md")
    with pytest.raises(HfVitSegError) as error:
        card_metadata(tmp_path)
    assert str(tmp_path / "README.md") in str(error.value)
    assert_short(error)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_files_without_size_are_empty(tmp_path: Path) -> None:
    (tmp_path / "README.md").symlink_to("/proc/self/status")
    assert card_metadata(tmp_path) == {}


def test_large_text_raises(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 101)
    assert len(read_text(tmp_path / "a", max_bytes=101)) == 101
    with pytest.raises(HfVitSegError, match="101 bytes, expected at most 100"):
        read_text(tmp_path / "a", max_bytes=100)


def test_label_file_in_yaml_is_read(tmp_path: Path) -> None:
    (tmp_path / "labels.yaml").write_text("names: [a, no]\npalette: [[1, 2, 3], [4, 5, 6]]\n")
    (tmp_path / "labels.json").write_text(json.dumps({"names": ["a", "no"], "palette": [[1, 2, 3], [4, 5, 6]]}))
    for suffix in ("yaml", "json"):
        found = find_label_set(tmp_path / f"labels.{suffix}")
        assert (found.names, found.palette) == (("a", "no"), ((1, 2, 3), (4, 5, 6)))


@pytest.mark.parametrize("text", ["---\nlicense: mit\n---\n# A\n", "\ufeff---\r\nlicense: mit\r\n---\r\n# A\n"])
def test_card_is_split_into_metadata_and_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_bytes(text.encode())
    assert split_card(tmp_path / "README.md") == ({"license": "mit"}, "# A\n")


def test_card_without_metadata_is_text(tmp_path: Path) -> None:
    for text in ("# A\n---\nb\n---\n", "---\na: b---\n", ""):
        (tmp_path / "README.md").write_text(text)
        assert split_card(tmp_path / "README.md") == ({}, text)


@pytest.mark.parametrize("value", [5, True, {"a": 1}, [1, {}], "x" * 5000, None, [], "/home/me/x"])
def test_invalid_values_of_cards_are_dropped(value: Any) -> None:
    names = ("license", "license_name", "license_link", "base_model", "datasets")
    assert provenance_from(dict.fromkeys(names, value)).metadata() == {}
