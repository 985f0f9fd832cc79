"""Stop a run after each of its steps, resume it, and hold what comes of it against the run that wasn't stopped."""

import sys
import tempfile
from pathlib import Path

from runs import SMALL, VARIATIONS, differences, stopped_and_resumed, trained


def main() -> None:
    """Print a line for each kind of run; exit with 1 if anything differs."""
    failed = False
    for name, (typed, steps) in VARIATIONS.items():
        with tempfile.TemporaryDirectory() as directory:
            arguments = (*SMALL, *typed)
            whole = trained(Path(directory, "whole"), *arguments)
            stops = [(step,) for step in range(1, steps + 1)] + [(1, 2, 3)]
            same = 0
            for stop in stops:
                run = stopped_and_resumed(Path(directory, "-".join(map(str, stop))), arguments, *stop)
                found = differences(run, whole)
                same += not found
                if found:
                    print(f"{name}, stopped after {stop}: {len(found)} differences, as {found[0]}", file=sys.stderr)
            failed |= same < len(stops)
            print(f"{name:<50} {same} of {len(stops)} ended bitwise the same", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
