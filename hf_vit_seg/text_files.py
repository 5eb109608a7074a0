"""Read text, JSON and YAML files that may be untrusted: limited in size and depth, with one-sentence errors.

YAML is that of recipes, model cards and options: plain values of version 1.2. PyYAML follows version 1.1, in which `no`
is false, `1e-4` a string, `1:30` the number 90 and `010` the number 8. These occur in recipes (`precision: no`,
`learning_rate: 1e-4`). A duplicate key is an error.

The text may be untrusted. Length, number of values, depth and the growth by aliases are limited: a value takes
PyYAML up to 40 microseconds, nested aliases double a document at each level (the "billion laughs"), and an alias inside
its own anchor never ends.
"""

import json
import os
import re
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from hf_vit_seg.errors import MAX_MESSAGE_LENGTH, HfVitSegError, error_sentence

from .records import shorten

MAX_BYTES = 64 * 2**20  # the index of a checkpoint with 100,000 tensors has 10 MB
MAX_DEPTH = 50  # nested lists and objects
ANNOTATION_BYTES = 8 * 2**30  # limit of COCO files: COCO's own has 450 MB, that of Objects365 7 GB
SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """Read a UTF-8 file; HfVitSegError if it is not a regular file, is too large, or not UTF-8.

    No more than the size of the file is read: files below /proc have no size, and some never end.
    """
    try:
        with open(path, "rb", opener=open_without_waiting) as stream:
            facts = os.fstat(stream.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise HfVitSegError(f"'{path}' is not a regular file; replace it by a text file")
            if facts.st_size > max_bytes:
                raise HfVitSegError(f"'{path}' has {facts.st_size:,} bytes, expected at most {max_bytes:,}")
            content = stream.read(facts.st_size)
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise HfVitSegError(f"'{path}' is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise HfVitSegError(f"'{path}' cannot be read ({error.strerror or error})") from None


def open_without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe without a writer does not block."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def parse_json(text: str, unique_keys: bool = False) -> Any:
    """Parse JSON; HfVitSegError for invalid JSON, deep nesting, long numbers or half of a surrogate pair.

    With `unique_keys`, also for an object with a duplicate key, of which JSON keeps the last.
    """
    try:
        content = json.loads(text, object_pairs_hook=build_unique if unique_keys else None)
    except HfVitSegError:
        raise
    except json.JSONDecodeError as error:
        raise HfVitSegError(str(error)) from None
    except ValueError:  # raised by int()
        raise HfVitSegError("a number has more than 4,300 digits") from None
    except RecursionError:
        raise HfVitSegError(f"lists and objects are nested more than {MAX_DEPTH} levels deep") from None
    check_depth(content)
    if SURROGATE_ESCAPE.search(text):
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            invalid = error.object[error.start : error.end]
            raise HfVitSegError(f"a string contains {invalid!r}, half of a surrogate pair") from None
    return content


def build_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; HfVitSegError for a duplicate key."""
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise HfVitSegError(f"found the key {shorten(key)} twice, expected it once")
        mapping[key] = value
    return mapping


def check_depth(content: Any) -> None:
    """Raise HfVitSegError if lists and objects are nested deeper than MAX_DEPTH."""
    level, depth = [content] if isinstance(content, dict | list) else [], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise HfVitSegError(f"lists and objects are nested more than {MAX_DEPTH} levels deep")
        children = (child for value in level for child in (value.values() if isinstance(value, dict) else value))
        level = [child for child in children if isinstance(child, dict | list)]


def read_json(path: Path, max_bytes: int = MAX_BYTES, unique_keys: bool = False) -> Any:
    """Read a JSON file; HfVitSegError with its name if it cannot be read."""
    text = read_text(path, max_bytes)
    try:
        return parse_json(text, unique_keys)
    except HfVitSegError as error:
        raise HfVitSegError(f"'{path}' is not valid JSON ({error}); fix or remove it") from None


def read_json_object(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read a JSON file that contains an object."""
    content = read_json(path, max_bytes)
    if not isinstance(content, dict):
        raise HfVitSegError(f"'{path}' contains {shorten(content)}, expected a JSON object")
    return content


MAX_LENGTH = 500_000  # characters of a document
MAX_VALUES = 50_000  # scalars (keys too), lists and mappings: twice the names of ImageNet-21k
MAX_DEPTH = 50  # nested lists and mappings
MAX_GROWTH = 10  # length with every alias written out, relative to the document's
MAX_DIGITS = 100  # digits of a number
NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
INT = re.compile(r"^(?:[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+)$")
FLOAT = re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$|^[-+]?\.inf$|^\.nan$")
SURROGATE = re.compile("[\ud800-\udfff]")
OTHER_BREAK = re.compile(r"[\r\x85\u2028\u2029]")
PLAIN = (
    ("tag:yaml.org,2002:null", NULL, ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", BOOL, list("tTfF")),
    ("tag:yaml.org,2002:int", INT, list("-+0123456789")),
    ("tag:yaml.org,2002:float", FLOAT, list("-+0123456789.")),
)
PATTERNS = {tag: pattern for tag, pattern, _ in PLAIN}


class Loader(yaml.SafeLoader):
    """Loads plain values by the table above, strings, lists and mappings; other tags are rejected."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}
    yaml_constructors: dict[str | None, Any] = {None: yaml.SafeLoader.construct_undefined}

    def __init__(self, text: str):
        super().__init__(text)
        self.depth = 0
        self.values = 0
        self.lengths: dict[int, int] = {}  # size of each node with aliases expanded, by id
        self.max_length = MAX_GROWTH * (len(text) + 1)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node; ConstructorError if there are too many, it is too deep or too long, or contains itself."""
        event = self.peek_event()
        self.values += 1
        if self.values > MAX_VALUES:
            problem = f"the YAML has more than {MAX_VALUES:,} values; shorten it, or move lists to JSON files"
            raise yaml.constructor.ConstructorError(None, None, problem, event.start_mark)
        node = (
            self.compose_alias(event, index) if isinstance(event, yaml.AliasEvent) else self.compose_new(parent, index)
        )
        if node is not None and id(node) not in self.lengths:
            self.lengths[id(node)] = 1 + sum(self.lengths[id(child)] for child in children(node))
            if isinstance(node, yaml.ScalarNode):
                self.lengths[id(node)] += len(node.value)
            if self.lengths[id(node)] > self.max_length:
                problem = f"aliases make the document more than {MAX_GROWTH} times longer; write the values out"
                raise yaml.constructor.ConstructorError(None, None, problem, event.start_mark)
        return node

    def compose_alias(self, event: yaml.AliasEvent, index: Any) -> yaml.Node | None:
        """Return the node that an alias refers to; ConstructorError inside the anchor itself."""
        node = self.anchors.get(event.anchor)
        if node is not None and id(node) not in self.lengths:
            problem = f"the alias *{shorten(event.anchor)} is inside its own anchor"
            raise yaml.constructor.ConstructorError(None, None, problem, event.start_mark)
        return super().compose_node(None, index)

    def compose_new(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node that is not an alias."""
        if self.depth == MAX_DEPTH:
            problem = f"lists and mappings are nested more than {MAX_DEPTH} levels deep"
            raise yaml.constructor.ConstructorError(None, None, problem, self.peek_event().start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_scalar(self, node: yaml.Node) -> str:
        """Return the text of a scalar; ConstructorError for half of a surrogate pair, which cannot be written."""
        text = super().construct_scalar(node)  # type: ignore[arg-type]
        if not SURROGATE.search(text):
            return text
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            problem = f"{shorten(text)} contains half of a surrogate pair"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    def construct_plain(self, node: yaml.ScalarNode) -> Any:
        """Construct null, a boolean or a number; ConstructorError if an explicit tag is not that of the text."""
        text = self.construct_scalar(node)
        if not PATTERNS[node.tag].match(text):
            problem = f"{shorten(text)} is not of the type {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        if len(text) > MAX_DIGITS:
            problem = f"the number {shorten(text)} has {len(text)} characters, expected at most {MAX_DIGITS}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return yaml.SafeLoader.yaml_constructors[node.tag](self, node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Construct a mapping; ConstructorError for duplicate keys."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int):
                raise yaml.constructor.ConstructorError(
                    None, None, f"{shorten(key)} is not a valid key", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {shorten(key)}", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def children(node: yaml.Node) -> list[yaml.Node]:
    """Return the nodes in a list, or the keys and values of a mapping."""
    if isinstance(node, yaml.MappingNode):
        return [each for pair in node.value for each in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


class Dumper(yaml.SafeDumper):
    """Writes values that the loader reads back, with short lists on one line."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def ignore_aliases(self, data: Any) -> bool:
        """Disable anchors and aliases."""
        return True

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        """Write a list of plain values on one line, other lists with a line per entry."""
        plain = not any(isinstance(value, dict | list | tuple) for value in sequence)
        return super().represent_sequence(tag, sequence, flow_style=plain)

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Quote strings with line breaks other than \\n, which YAML would read as \\n or a space."""
        style = '"' if OTHER_BREAK.search(data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


for _tag, _pattern, _first in PLAIN:
    Loader.add_implicit_resolver(_tag, _pattern, _first)
    Dumper.add_implicit_resolver(_tag, _pattern, _first)
    Loader.add_constructor(_tag, Loader.construct_plain)
for _kind in ("str", "seq", "map"):
    Loader.add_constructor(
        f"tag:yaml.org,2002:{_kind}", yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{_kind}"]
    )
Dumper.add_representer(str, Dumper.represent_str)


def parse(text: str) -> Any:
    """Parse a document; HfVitSegError with the line for invalid YAML, or a document above the limits."""
    if len(text) > MAX_LENGTH:
        raise HfVitSegError(f"the YAML has {len(text):,} characters, expected at most {MAX_LENGTH:,}")
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise HfVitSegError(
            f"{line}{' '.join((error.problem or error.context or '').split())[:MAX_MESSAGE_LENGTH]}"
        ) from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise HfVitSegError(error_sentence(error)) from None


def dump(value: Any) -> str:
    """Format a value of plain Python types as YAML, keeping the order of keys."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


__all__ = ["ANNOTATION_BYTES", "MAX_BYTES", "parse_json", "read_json", "read_json_object", "read_text"]
