"""Name templates, with which one rule matches many tensors.

`{stage}` is an integer, `{stage+1}` the same integer counted from one, `{3-level}` counted backwards from three, and
`{p:weight|bias}` one of the words. A placeholder has the same value in all templates of a rule, so the words need to
be listed only once.
"""

import re
from dataclasses import dataclass
from functools import cache

from hf_vit_seg.errors import HfVitSegError

Bindings = dict[str, int | str]
Words = tuple[tuple[str, str], ...]

PLACEHOLDER = re.compile(r"\{(?:(\d+)-)?([a-z_]\w*)(?:([+-])(\d+))?(?::([^{}]+))?\}")
INDEX = r"(0|[1-9]\d{0,3})"  # a layer or stage; code counts up to it


@dataclass(frozen=True)
class Placeholder:
    """A number, written as `offset + sign * number`, or a word out of `words`."""

    name: str
    sign: int = 1
    offset: int = 0
    words: str = ""

    @property
    def regex(self) -> str:
        """The regular expression of its values."""
        return f"({'|'.join(map(re.escape, self.words.split('|')))})" if self.words else INDEX

    def read(self, text: str) -> int | str:
        """Parse a value."""
        return text if self.words else self.sign * (int(text) - self.offset)

    def write(self, value: int | str) -> str:
        """Format a value."""
        return value if isinstance(value, str) else str(self.sign * value + self.offset)


@dataclass(frozen=True)
class Template:
    """A compiled name template: `literals` and `placeholders` alternate, literals at both ends."""

    literals: tuple[str, ...]
    placeholders: tuple[Placeholder, ...]
    regex: re.Pattern[str]

    def match(self, name: str) -> Bindings | None:
        """Return the values of the placeholders if the name matches."""
        match = self.regex.fullmatch(name)
        if match is None:
            return None
        bindings: Bindings = {}
        for placeholder, text in zip(self.placeholders, match.groups(), strict=True):
            value = placeholder.read(text)
            if (isinstance(value, int) and value < 0) or bindings.setdefault(placeholder.name, value) != value:
                return None
        return bindings

    def render(self, bindings: Bindings) -> str:
        """Format the name with these values."""
        written = [p.write(bindings[p.name]) for p in self.placeholders]
        return "".join(part for pair in zip(self.literals, [*written, ""], strict=True) for part in pair)


def collect_words(templates: tuple[str, ...]) -> Words:
    """Collect the words of the placeholders in several templates."""
    words = {m[2]: m[5] for template in templates for m in PLACEHOLDER.finditer(template) if m[5]}
    return tuple(sorted(words.items()))


@cache
def compile_template(template: str, words: Words) -> Template:
    """Parse a template; `words` are those listed in any template of the rule."""
    listed = dict(words)
    placeholders = tuple(
        Placeholder(
            name=m[2],
            sign=-1 if m[1] else 1,
            offset=int(m[1] or 0) + int(f"{m[3] or ''}{m[4] or 0}"),
            words=listed.get(m[2], ""),
        )
        for m in PLACEHOLDER.finditer(template)
    )
    literals = tuple(PLACEHOLDER.sub("\0", template).split("\0"))
    if any(brace in literal for literal in literals for brace in "{}"):
        raise HfVitSegError(f"name template '{template}' has an invalid placeholder")
    middles = [re.escape(literal) for literal in literals]
    pattern = middles[0] + "".join(p.regex + m for p, m in zip(placeholders, middles[1:], strict=True))
    return Template(literals, placeholders, re.compile(pattern))
