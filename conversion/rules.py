"""Rules: a table of them turns tensors of one format into another's, and read backwards turns them back.

Every tensor is matched by exactly one rule, every rule that is not optional matches something, every target
is written once, and what is dropped is dropped by a rule that says why.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from hf_vit_seg.errors import HfVitSegError

from .errors import ConversionError, first_few
from .layouts import SAME, Layout, Sizes, Split
from .names import Bindings, Template, compiled, words_of


@dataclass(frozen=True)
class Rule:
    """Tensors of some names become tensors of others; without targets they are dropped, for a `reason`.

    An `alias` is another spelling of what a further rule of the table says: it is read and never written.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    layout: Layout = SAME
    optional: bool = False
    reason: str = ""
    alias: bool = False

    @property
    def source_templates(self) -> tuple[Template, ...]:
        """The compiled names on the left."""
        words = words_of(self.sources + self.targets)
        return tuple(compiled(name, words) for name in self.sources)

    @property
    def target_templates(self) -> tuple[Template, ...]:
        """The compiled names on the right."""
        words = words_of(self.sources + self.targets)
        return tuple(compiled(name, words) for name in self.targets)

    @property
    def inverted(self) -> "Rule":
        """The rule that leads back."""
        return replace(self, sources=self.targets, targets=self.sources, layout=self.layout.inverted)


def rename(source: str, target: str, layout: Layout = SAME, *, optional: bool = False) -> Rule:
    """One tensor becomes one tensor."""
    return Rule((source,), (target,), layout, optional)


def split(source: str, targets: Sequence[str], layout: Layout | None = None, *, optional: bool = False) -> Rule:
    """One tensor becomes several: in equal parts along the first axis unless a layout says otherwise."""
    return Rule((source,), tuple(targets), layout or Split(len(targets)), optional)


def join(sources: Sequence[str], target: str, layout: Layout | None = None, *, optional: bool = False) -> Rule:
    """Several tensors become one: behind one another along the first axis unless a layout says otherwise."""
    return Rule(tuple(sources), (target,), layout or Split(len(sources)).inverted, optional)


def drop(source: str, reason: str, *, optional: bool = False) -> Rule:
    """A tensor that has no place in the target. Nothing is written for it on the way back."""
    return Rule((source,), (), optional=optional, reason=reason)


def optional(rule: Rule) -> Rule:
    """A rule that need not match anything."""
    return replace(rule, optional=True)


def alias(rule: Rule) -> Rule:
    """Another spelling, which some files have instead of the usual one. It is not written on the way back."""
    return replace(rule, optional=True, alias=True)


def inverted(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The table read backwards, without its drops and aliases."""
    return tuple(rule.inverted for rule in rules if rule.targets and not rule.alias)


@dataclass
class Translation:
    """The tensors by their new names, and the names that were dropped with the reason."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


@dataclass
class Match:
    """A rule with the values of its placeholders, and the tensors found so far by their place in the rule."""

    rule: Rule
    bindings: Bindings
    found: dict[int, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        """The names that the rule takes, found or not."""
        return [template.render(self.bindings) for template in self.rule.source_templates]

    def targets(self) -> list[str]:
        """The names that the rule writes."""
        return [template.render(self.bindings) for template in self.rule.target_templates]


def candidates(rules: Sequence[Rule], name: str) -> list[tuple[int, int, Bindings]]:
    """Every (rule, place in the rule, placeholder values) that a name fits."""
    return [
        (number, place, bindings)
        for number, rule in enumerate(rules)
        for place, template in enumerate(rule.source_templates)
        if (bindings := template.match(name)) is not None
    ]


def matches(rules: Sequence[Rule], names: Iterable[str]) -> list[Match]:
    """Give every name to its rule; names without a rule, and names with two, are errors."""
    groups: dict[tuple, Match] = {}
    unmatched = []
    for name in names:
        fitting = candidates(rules, name)
        if not fitting:
            unmatched.append(name)
            continue
        if len(fitting) > 1:
            raise ConversionError(f"the table has {len(fitting)} rules for '{name}'; it must have one")
        number, place, bindings = fitting[0]
        key = (number, *sorted(bindings.items()))
        groups.setdefault(key, Match(rules[number], bindings)).found[place] = name
    if unmatched:
        raise ConversionError(
            f"the checkpoint has tensors that this format does not know: {first_few(unmatched)}; remove "
            "them if they are not part of the model, or name another source"
        )
    return list(groups.values())


def check_complete(rules: Sequence[Rule], found: Sequence[Match]) -> None:
    """Refuse a table of which a rule matched nothing, and rules that lack some of their tensors."""
    missing = [name for match in found for name in match.names() if name not in match.found.values()]
    used = {id(match.rule) for match in found}
    missing += [name for rule in rules if not rule.optional and id(rule) not in used for name in rule.sources]
    if missing:
        raise ConversionError(
            f"the checkpoint lacks {first_few(missing)}; it is incomplete or of another kind: get the "
            "whole file, or name another source"
        )


def translate(rules: Sequence[Rule], tensors: Mapping[str, Tensor], sizes: Sizes | None = None) -> Translation:
    """Carry all tensors through a table of rules."""
    found = matches(rules, tensors)
    check_complete(rules, found)
    result = Translation()
    for match in found:
        names, targets = match.names(), match.targets()
        if not targets:
            result.dropped.update(dict.fromkeys(names, match.rule.reason))
            continue
        try:
            written = match.rule.layout.apply(tuple(tensors[name] for name in names), sizes or {})
        except HfVitSegError as error:
            raise ConversionError(f"{first_few(names)} cannot become {first_few(targets)}: {error}") from error
        for target, tensor in zip(targets, written, strict=True):
            if target in result.tensors:
                raise ConversionError(f"the table writes '{target}' twice")
            result.tensors[target] = tensor
    return result


def origin(rules: Sequence[Rule], target: str) -> str:
    """The name from which a table writes `target`; the target itself if it does not."""
    back = inverted(rules)
    fitting = candidates(back, target)
    if not fitting:
        return target
    number, _, bindings = fitting[0]
    return ", ".join(template.render(bindings) for template in back[number].target_templates)
