"""Feed every parser of strangers' bytes what chance makes of honest bytes (`make fuzz`).

    python -m tools.fuzz_parsers [--seconds 600] [--seed 1] [--target NAME] [--count N] [--out fuzz-out]
    python -m tools.fuzz_parsers --target NAME --input FILE

Each target of `targets.py` may raise the errors that it declares. Any other exception, a crash, half a GiB of memory or
20 s of a processor for one input is a finding: its bytes are kept in a file, which the second form feeds again. The
same seed draws the same inputs. The exit status is 1 if anything was found.
"""

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.fuzz_parsers.play import Finding, feed, inputs, play
from tools.fuzz_parsers.targets import TARGETS

#: Inputs of one fork.
BATCH = 200


def main(argv: Sequence[str]) -> int:
    """Feed the targets in turns until the time is over, or each has had its inputs."""
    args = _read(argv)
    if args.input is not None:
        return _repeat(args.target, args.input)
    found = 0
    counts = dict.fromkeys(args.target or TARGETS, 0)
    for name, numbers in _turns(tuple(counts), args):
        for finding in play(name, args.seed, numbers):
            found += 1
            _keep(finding, args.out)
        counts[name] = numbers.stop
    for name, count in counts.items():
        print(f"{name:28} {count:9,} inputs")
    print(f"seed {args.seed}: {found} findings")
    return int(found > 0)


def _turns(names: Sequence[str], args: argparse.Namespace) -> Iterator[tuple[str, range]]:
    until = time.monotonic() + args.seconds
    first = 0
    while args.count is None or first < args.count:
        last = first + BATCH if args.count is None else min(first + BATCH, args.count)
        for name in names:
            if args.count is None and time.monotonic() >= until:
                return
            yield name, range(first, last)
        first = last


def _keep(finding: Finding, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9]+", "-", finding.target)
    path = directory / f"{name}-{finding.seed}-{finding.number}.input"
    ((_, content),) = inputs(finding.target, finding.seed, range(finding.number, finding.number + 1))
    path.write_bytes(content)
    again = f"python -m tools.fuzz_parsers --target '{finding.target}' --input {path}"
    print(f"{finding.target}, seed {finding.seed}, input {finding.number}:\n{finding.what}\n  {again}\n", flush=True)


def _repeat(names: Sequence[str], path: Path) -> int:
    """Feed one file in this very process, where a debugger can follow."""
    (name,) = names
    with tempfile.TemporaryDirectory() as scratch:
        what = feed(TARGETS[name], path.read_bytes(), Path(scratch) / "input")
    print(what or f"{name} takes {path}, or refuses it as it should")
    return int(bool(what))


def _read(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fuzz_parsers", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600, help="begin no turn after so many (default 600)")
    parser.add_argument("--seed", type=int, default=1, help="what is drawn (default 1)")
    parser.add_argument("--target", action="append", choices=tuple(TARGETS), help="only this one; may be repeated")
    parser.add_argument("--count", type=int, help="so many inputs for each target, whatever time it takes")
    parser.add_argument("--input", type=Path, help="feed one target this file alone")
    parser.add_argument("--out", type=lambda text: Path(text).absolute(), default=Path("fuzz-out").absolute())
    args = parser.parse_args(argv)
    if args.input is not None and len(args.target or ()) != 1:
        parser.error("--input needs one --target")
    return args


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
