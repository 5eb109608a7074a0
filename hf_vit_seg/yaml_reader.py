"""YAML as recipes are written: version 1.2's plain values, and no key twice.

PyYAML follows version 1.1, in which `no` is false, `1e-4` a text, `1:30` the number 90 and `010` the number 8. All of
these happen in recipes (`precision: no`, `learning_rate: 1e-4`). A key that stands twice is an error, not the last one.
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
    """Reads plain values by the table above."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping, whose keys are all different."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int):
                raise yaml.constructor.ConstructorError(None, None, f"{key} is no name", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """Writes what the loader reads back, short lists on one line."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def ignore_aliases(self, data: Any) -> bool:
        """Nothing is written as a reference to something above."""
        return True

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        """A list of plain values on one line, any other with a line per entry."""
        plain = not any(isinstance(value, dict | list | tuple) for value in sequence)
        return super().represent_sequence(tag, sequence, flow_style=plain)

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """A text, in double quotes if it breaks lines otherwise than by \\n, which YAML reads as \\n or a space."""
        style = '"' if OTHER_BREAK.search(data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


for _tag, _pattern, _first in PLAIN:
    Loader.add_implicit_resolver(_tag, _pattern, _first)
    Dumper.add_implicit_resolver(_tag, _pattern, _first)
Dumper.add_representer(str, Dumper.represent_str)


def parse(text: str) -> Any:
    """A document's value; ValueError tells the line of what is no YAML."""
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise HfVitSegError(f"{line}{error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise HfVitSegError(error_sentence(error)) from None


def text_of(value: Any) -> str:
    """A value of plain Python types as YAML, keys in their order."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
