"""Run the benchmarks and write the report: python -m benchmarks [PART [OPTIONS]]."""

import importlib
import os
import signal
import sys
from types import FrameType

PARTS = (
    "load",
    "incremental",
    "publish",
    "readers",
    "transform",
    "models",
    "cost",
    "run",
    "ui",
    "targets",
    "sizes",
    "spark",
    "diff",
    "year",
)


def main(words: list[str]) -> int:
    from benchmarks import report

    signal.signal(signal.SIGTERM, _exit)
    chosen = words[:1] or list(PARTS)
    if chosen[0] not in (*PARTS, "report"):
        print(f"error: unknown part {chosen[0]!r}; choose from {', '.join(PARTS)}", file=sys.stderr)
        return 2
    for part in chosen:
        if part != "report":
            print(f"== {part}", flush=True)
            importlib.import_module(f"benchmarks.{part}").main(words[1:])
    report.main()
    return 0


def _exit(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)  # runs the finally clauses, which stop the children


if __name__ == "__main__":
    os.chdir(importlib.import_module("benchmarks.common").PROJECT)
    sys.exit(main(sys.argv[1:]))
