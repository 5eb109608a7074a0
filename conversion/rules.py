"""Rules: a table of rules converts the tensors of one format to another, and its inverse converts them back.

Every tensor matches exactly one rule, every rule that is not optional matches a tensor, every target is written once,
and tensors are dropped only by a rule with a reason.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from hf_vit_seg.errors import HfVitSegError, error_sentence

from .errors import ConversionError, UnsupportedCheckpoint, first_few
from .layouts import SAME, Layout, Sizes, Split
from .name_templates import Bindings, Template, collect_words, compile_template


@dataclass(frozen=True)
class Rule:
    """Converts tensors from source names to target names; without targets they are dropped, for a `reason`.

    An `alias` is an alternative name for the source of another rule: it is read but never written.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    layout: Layout = SAME
    optional: bool = False
    reason: str = ""
    alias: bool = False

    @property
    def source_templates(self) -> tuple[Template, ...]:
        """Patterns of the source names; placeholders that occur in a target have the same value there."""
        words = collect_words(self.sources + self.targets)
        return tuple(compile_template(name, words) for name in self.sources)

    @property
    def target_templates(self) -> tuple[Template, ...]:
        """Patterns of the target names, to render with the values matched in the source names."""
        words = collect_words(self.sources + self.targets)
        return tuple(compile_template(name, words) for name in self.targets)

    @property
    def inverse(self) -> "Rule":
        """The rule from targets to sources, for export to the source's format."""
        return replace(self, sources=self.targets, targets=self.sources, layout=self.layout.inverse)


def rename(source: str, target: str, layout: Layout = SAME, *, optional: bool = False) -> Rule:
    """Return a rule for one tensor that keeps its values, apart from `layout`."""
    return Rule((source,), (target,), layout, optional)


def split(source: str, targets: Sequence[str], layout: Layout | None = None, *, optional: bool = False) -> Rule:
    """Split a tensor, by default into equal parts along the first axis."""
    return Rule((source,), tuple(targets), layout or Split(len(targets)), optional)


def join(sources: Sequence[str], target: str, layout: Layout | None = None, *, optional: bool = False) -> Rule:
    """Join several tensors, by default along the first axis."""
    return Rule(tuple(sources), (target,), layout or Split(len(sources)).inverse, optional)


def drop(source: str, reason: str, *, optional: bool = False) -> Rule:
    """Drop a tensor that the target does not have. It is not restored on export."""
    return Rule((source,), (), optional=optional, reason=reason)


def optional(rule: Rule) -> Rule:
    """Make a rule optional: it need not match a tensor."""
    return replace(rule, optional=True)


def alias(rule: Rule) -> Rule:
    """Mark a rule as an alternative name, which some files use. It is not written on export."""
    return replace(rule, optional=True, alias=True)


def invert_rules(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Invert a table, without its drops and aliases."""
    return tuple(rule.inverse for rule in rules if rule.targets and not rule.alias)


@dataclass
class Translation:
    """The tensors by their new names, and the dropped names with reasons."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


@dataclass
class Match:
    """A rule with the values of its placeholders, and the tensors found so far by their index in the rule."""

    rule: Rule
    bindings: Bindings
    found: dict[int, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Return all source names of the rule."""
        return [template.render(self.bindings) for template in self.rule.source_templates]

    def targets(self) -> list[str]:
        """Return the target names of the rule."""
        return [template.render(self.bindings) for template in self.rule.target_templates]


def candidates(rules: Sequence[Rule], name: str) -> list[tuple[int, int, Bindings]]:
    """Return every (rule, index in the rule, placeholder values) that a name matches."""
    return [
        (number, index, bindings)
        for number, rule in enumerate(rules)
        for index, template in enumerate(rule.source_templates)
        if (bindings := template.match(name)) is not None
    ]


def matches(rules: Sequence[Rule], names: Iterable[str]) -> list[Match]:
    """Match every name to its rule; ConversionError for names without a rule, or with several."""
    groups: dict[tuple, Match] = {}
    unmatched = []
    for name in names:
        fitting = candidates(rules, name)
        if not fitting:
            unmatched.append(name)
            continue
        if len(fitting) > 1:
            raise ConversionError(f"the table has {len(fitting)} rules for '{name}', expected one")
        number, index, bindings = fitting[0]
        key = (number, *sorted(bindings.items()))
        groups.setdefault(key, Match(rules[number], bindings)).found[index] = name
    if unmatched:
        raise UnsupportedCheckpoint(
            f"the checkpoint has tensors that are not part of this format: {first_few(unmatched)}; remove them, or "
            "choose another source"
        )
    return list(groups.values())


def check_complete(rules: Sequence[Rule], matched: Sequence[Match]) -> None:
    """Raise ConversionError if a required rule has no match, or a rule has only some of its tensors."""
    missing = [name for match in matched for name in match.names() if name not in match.found.values()]
    used = {id(match.rule) for match in matched}
    missing += [name for rule in rules if not rule.optional and id(rule) not in used for name in rule.sources]
    if missing:
        raise ConversionError(
            f"the checkpoint lacks {first_few(missing)}; it is incomplete or has another format: get the complete "
            "file, or choose another source"
        )


def translate(rules: Sequence[Rule], tensors: Mapping[str, Tensor], sizes: Sizes | None = None) -> Translation:
    """Convert all tensors by a table of rules."""
    matched = matches(rules, tensors)
    check_complete(rules, matched)
    result = Translation()
    for match in matched:
        names, targets = match.names(), match.targets()
        if not targets:
            result.dropped.update(dict.fromkeys(names, match.rule.reason))
            continue
        try:
            written = match.rule.layout.apply(tuple(tensors[name] for name in names), sizes or {})
        except (HfVitSegError, RuntimeError, ValueError, IndexError) as error:  # shapes that do not fit
            raise ConversionError(
                f"{first_few(names)} cannot be converted to {first_few(targets)}: {error_sentence(error, short=True)}"
            ) from error
        for target, tensor in zip(targets, written, strict=True):
            if target in result.tensors:
                raise ConversionError(f"the table writes '{target}' twice")
            result.tensors[target] = tensor
    return result


def origin(rules: Sequence[Rule], target: str) -> str:
    """Return the source name of `target` in a table, or the target itself if no rule writes it."""
    back = invert_rules(rules)
    fitting = candidates(back, target)
    if not fitting:
        return target
    number, _, bindings = fitting[0]
    return ", ".join(template.render(bindings) for template in back[number].target_templates)
