"""Sections of docs/reliability.md, each written by one command."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from hf_vit_seg.atomic_io import write_text
from hf_vit_seg.hub.environment import describe_environment

from .sandbox import ACCEPTED, REFUSED, Outcomes

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
FAILURES, FIXED = "Failures of this run", "Found by this command and fixed"
PACKAGES = ("torch", "transformers", "safetensors", "numpy", "pillow", "tifffile", "imagecodecs", "av", "pyyaml")


def versions() -> str:
    """The versions that a result depends on, on one line."""
    found = describe_environment()
    packages = [f"{name} {found['packages'][name]}" for name in PACKAGES if name in found["packages"]]
    return ", ".join([f"hf_vit_seg {found['version']}", found["python"], *packages])


def command_text(arguments: str) -> str:
    """The command of a section, with date and versions."""
    return f"`python -m tests.reliability {arguments}`, {datetime.now(UTC):%Y-%m-%d}, {versions()}."


def bullet_list(title: str, entries: Sequence[str]) -> list[str]:
    """A list with its title, as one paragraph; nothing without entries."""
    return [f"{title}:\n\n" + "\n".join(f"- {each}" for each in entries)] if entries else []


def table_of(outcomes: Outcomes) -> str:
    """A row for each kind of case."""
    kinds = sorted({kind for kind, _ in outcomes.counts})
    rows = ["| kind | cases | accepted | refused | failures |", "| --- | ---: | ---: | ---: | ---: |"]
    for kind in kinds:
        total = sum(count for (name, _), count in outcomes.counts.items() if name == kind)
        accepted, refused = (outcomes.counts[kind, outcome] for outcome in (ACCEPTED, REFUSED))
        rows.append(f"| {kind} | {total:,} | {accepted:,} | {refused:,} | {total - accepted - refused:,} |")
    return "\n".join(rows)


def section(name: str, about: str, outcomes: Outcomes, seed: int, fixed: Sequence[str]) -> str:
    """The text of a section."""
    found = [f"case {each['case']}, {each['kind']}: {each['outcome']}" for each in outcomes.failures]
    lists = [*bullet_list(FAILURES, found), *bullet_list(FIXED, fixed)]
    command = command_text(f"{name} --cases {outcomes.total} --seed {seed}")
    return "\n\n".join([command, about, table_of(outcomes), *lists])


def write_section(name: str, title: str, text: str, page: Path = PAGE) -> None:
    """Replace the section of a command, or append it."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    block = f"{begin}\n## {title}\n\n{text}\n{end}"
    content = page.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    found = pattern.sub(lambda _: block, content) if begin in content else f"{content.rstrip()}\n\n{block}\n"
    write_text(page, found)
