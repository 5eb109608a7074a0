"""Name templates: how a rule speaks of many tensors at once.

`{stage}` stands for a whole number, `{stage+1}` for the same number counted from one, `{3-level}` for it
counted backwards from three, and `{p:weight|bias}` for one of the words. A placeholder means the same in all
templates of a rule, so the words need to be listed only once.
"""

import re
from dataclasses import dataclass
from functools import cache

from hf_vit_seg.errors import HfVitSegError

Bindings = dict[str, int | str]
Words = tuple[tuple[str, str], ...]

PLACEHOLDER = re.compile(r"\{(?:(\d+)-)?([a-z_]\w*)(?:([+-])(\d+))?(?::([^{}]+))?\}")
INDEX = r"(0|[1-9]\d*)"


@dataclass(frozen=True)
class Placeholder:
    """A number, written as `offset + sign * number`, or a word out of `words`."""

    name: str
    sign: int = 1
    offset: int = 0
    words: str = ""

    @property
    def regex(self) -> str:
        """What may stand in its place."""
        return f"({'|'.join(map(re.escape, self.words.split('|')))})" if self.words else INDEX

    def read(self, text: str) -> int | str:
        """The value that was written as `text`."""
        return text if self.words else self.sign * (int(text) - self.offset)

    def write(self, value: int | str) -> str:
        """How the value is written."""
        return value if isinstance(value, str) else str(self.sign * value + self.offset)


@dataclass(frozen=True)
class Template:
    """A compiled name template: `literals` and `placeholders` alternate, literals at both ends."""

    literals: tuple[str, ...]
    placeholders: tuple[Placeholder, ...]
    regex: re.Pattern[str]

    def match(self, name: str) -> Bindings | None:
        """The values of the placeholders if the whole name fits."""
        found = self.regex.fullmatch(name)
        if found is None:
            return None
        bindings: Bindings = {}
        for placeholder, text in zip(self.placeholders, found.groups(), strict=True):
            value = placeholder.read(text)
            if (isinstance(value, int) and value < 0) or bindings.setdefault(placeholder.name, value) != value:
                return None
        return bindings

    def render(self, bindings: Bindings) -> str:
        """The name for these values."""
        written = [p.write(bindings[p.name]) for p in self.placeholders]
        return "".join(part for pair in zip(self.literals, [*written, ""], strict=True) for part in pair)


def words_of(templates: tuple[str, ...]) -> Words:
    """The words that the placeholders of some templates may be, by placeholder."""
    found = {m[2]: m[5] for template in templates for m in PLACEHOLDER.finditer(template) if m[5]}
    return tuple(sorted(found.items()))


@cache
def compiled(template: str, words: Words) -> Template:
    """Read a template; `words` are those that another template of the rule lists."""
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
        raise HfVitSegError(f"name template '{template}' has a placeholder that cannot be read")
    middles = [re.escape(literal) for literal in literals]
    pattern = middles[0] + "".join(p.regex + m for p, m in zip(placeholders, middles[1:], strict=True))
    return Template(literals, placeholders, re.compile(pattern))
