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

from . import checkpoints, demo, faults, guided, hub, images, kills, soak
from .licenses import NOTICE, notice
from .record import section, table_of, write_section
from .sandbox import Outcomes, run_cases

MODULES: dict[str, ModuleType] = {"checkpoints": checkpoints, "images": images}
# Commands whose cases cannot be repeated one by one.
WHOLE: dict[str, ModuleType] = {
    "demo": demo,
    "faults": faults,
    "guided": guided,
    "hub": hub,
    "kills": kills,
    "soak": soak,
}
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
    arguments = parser.parse_args()
    if arguments.name == "licenses":
        write_text(NOTICE, notice())
        return 0
    if arguments.name in WHOLE:
        module = WHOLE[arguments.name]
        options = {"kills": arguments.cases} if arguments.name == "kills" and arguments.cases else {}
        with TemporaryDirectory() as folder:
            results = module.run(Path(folder), **options)
        print(module.section(results))
        if not arguments.dry_run:
            write_section(arguments.name, module.TITLE, module.section(results))
        return int(any(result.failed for result in results))
    module = MODULES[arguments.name]
    outcomes = run(arguments.name, arguments.cases or CASES[arguments.name], arguments.seed, arguments.first)
    print(table_of(outcomes))
    for failure in outcomes.failures[:SHOWN]:
        print(json.dumps(failure))
    if not arguments.dry_run:
        text = section(arguments.name, module.ABOUT, outcomes, arguments.seed, module.FIXED)
        write_section(arguments.name, module.TITLE, text)
    return int(bool(outcomes.failures))


if __name__ == "__main__":
    sys.exit(main())
