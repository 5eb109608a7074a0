"""`python -m tests.reliability NAME [--cases N] [--seed S] [--dry-run]`, in the root of the repository.

`licenses` writes NOTICE; each other command writes its section of docs/reliability.md.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from hf_vit_seg.atomic_io import write_text

from . import checkpoints, hub, images, kills, soak
from .licenses import NOTICE, notice
from .record import section, table_of, write_section
from .sandbox import Outcomes, run_cases

MODULES: dict[str, ModuleType] = {"checkpoints": checkpoints, "images": images}
WHOLE: dict[str, ModuleType] = {"hub": hub, "kills": kills, "soak": soak}  # without cases that are repeated one by one
CASES = {"checkpoints": 20_000, "images": 5_000}
SHOWN = 40


def run(name: str, count: int, seed: int, first: int = 0) -> Outcomes:
    """Run the cases of a command."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        cases: Any
        if name == "checkpoints":
            cases = checkpoints.Checkpoints(folder, seed)
            check = checkpoints.left_behind(cases.marker)
        else:
            cases, check = images.Images(seed), images.left_behind
        (folder / "cases").mkdir()
        return run_cases(cases, range(first, first + count), folder / "cases", check)


def main() -> int:
    """Run one command; the exit code is 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability")
    parser.add_argument("name", choices=sorted([*MODULES, *WHOLE, "licenses"]))
    parser.add_argument("--cases", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to repeat one")
    parser.add_argument("--dry-run", action="store_true", help="do not write docs/reliability.md")
    given = parser.parse_args()
    if given.name == "licenses":
        write_text(NOTICE, notice())
        return 0
    if given.name in WHOLE:
        own = WHOLE[given.name]
        with TemporaryDirectory() as folder:
            found = own.run(Path(folder), **({"kills": given.cases} if given.name == "kills" and given.cases else {}))
        print(own.section(found))
        if not given.dry_run:
            write_section(given.name, own.TITLE, own.section(found))
        return int(any(each.failed for each in found))
    module = MODULES[given.name]
    outcomes = run(given.name, given.cases or CASES[given.name], given.seed, given.first)
    print(table_of(outcomes))
    for failure in outcomes.failures[:SHOWN]:
        print(json.dumps(failure))
    if not given.dry_run:
        text = section(given.name, module.ABOUT, outcomes, given.seed, module.FIXED)
        write_section(given.name, module.TITLE, text)
    return int(bool(outcomes.failures))


if __name__ == "__main__":
    sys.exit(main())
