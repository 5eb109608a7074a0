"""YAML for recipes: plain values of version 1.2, and no duplicate keys.

PyYAML follows version 1.1, in which `no` is false, `1e-4` a string, `1:30` the number 90 and `010` the number 8. These
occur in recipes (`precision: no`, `learning_rate: 1e-4`). A duplicate key is an error.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from hf_vit_seg.errors import HfVitSegError, error_sentence

NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
INT = re.compile(r"^(?:[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+)$")
FLOAT = re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$|^[-+]?\.inf$|^\.nan$")
OTHER_BREAK = re.compile(r"[\r\x85\u2028\u2029]")
PLAIN = (
    ("tag:yaml.org,2002:null", NULL, ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", BOOL, list("tTfF")),
    ("tag:yaml.org,2002:int", INT, list("-+0123456789")),
    ("tag:yaml.org,2002:float", FLOAT, list("-+0123456789.")),
)


class Loader(yaml.SafeLoader):
    """Loads plain values by the table above."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Construct a mapping; ConstructorError for duplicate keys."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int):
                raise yaml.constructor.ConstructorError(None, None, f"{key} is not a valid key", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key '{key}'", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """Writes values that the loader reads back, with short lists on one line."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def ignore_aliases(self, data: Any) -> bool:
        """Never write anchors and aliases."""
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
Dumper.add_representer(str, Dumper.represent_str)


def parse(text: str) -> Any:
    """Parse a document; ValueError with the line for invalid YAML."""
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise HfVitSegError(f"{line}{error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise HfVitSegError(error_sentence(error)) from None


def dump(value: Any) -> str:
    """Format a value of plain Python types as YAML, keeping the order of keys."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
