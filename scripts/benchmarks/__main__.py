"""The command line of the benchmarks."""

import argparse
from importlib import import_module
from pathlib import Path

from scripts.benchmarks.runner import write_json

BENCHMARKS = {
    "decode": "scripts.benchmarks.decode",
    "early_exit": "scripts.benchmarks.early_exit",
    "extract": "scripts.benchmarks.extract",
    "load": "scripts.benchmarks.load",
    "models": "scripts.benchmarks.models",
    "rgtp_vitdet": "scripts.benchmarks.rgtp_vitdet",
    "rgtp_vivit": "scripts.benchmarks.rgtp_vivit",
    "sta": "scripts.benchmarks.sta",
    "taps": "scripts.benchmarks.taps",
}
"""Name -> module with `run(rounds=...) -> (ratios, machine)`, and further figures as a third if it has such.

A module may say with `ROUNDS` how many it measures unless asked otherwise.
"""


def main() -> None:
    """Run one benchmark, print its table and write its numbers."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure our side against others.")
    parser.add_argument("name", nargs="?", choices=sorted(BENCHMARKS), help="which; without it, they are listed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write ratios and machine to FILE")
    parser.add_argument("--rounds", type=int, help="measured rounds after the warm-up (7; of models 2)")
    arguments = parser.parse_args()
    if arguments.name is None:
        print("\n".join(sorted(BENCHMARKS)))
        return
    module = import_module(BENCHMARKS[arguments.name])
    rounds = getattr(module, "ROUNDS", 7) if arguments.rounds is None else arguments.rounds
    if rounds < 1:
        parser.error(f"--rounds must be at least 1, got {rounds}")
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        parser.error(f"--json: no folder {arguments.json.absolute().parent}")
    ratios, machine, *further = module.run(rounds=rounds)
    if arguments.json is not None:
        write_json(arguments.json, ratios=ratios, machine=machine, measured=further[0] if further else None)


if __name__ == "__main__":
    main()
