"""Load one source from the command line and print the summary: python -m include.dlt_pipelines NAME."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from include.dlt_pipelines.load import find_source, load
from include.errors import PipelineError


def main(arguments: Sequence[str] | None = None) -> int:
    """Load one source; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m include.dlt_pipelines", description="Load a source.")
    parser.add_argument("source", help="its name, such as jaffle_shop")
    parser.add_argument("--max-rejected-rows", type=int, help="rejected rows of CSV files to tolerate")
    parser.add_argument("--full-refresh", action="store_true", help="reload an incremental source from scratch")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run_id = f"script__{datetime.now(UTC).isoformat(timespec='seconds')}"
    try:
        summary = load(find_source(options.source), run_id, options.max_rejected_rows, options.full_refresh)
    except PipelineError as error:
        print(error, file=sys.stderr)
        return 1
    counts = {"rows_loaded": summary.rows_loaded, "rows_rejected": summary.rows_rejected}
    print(json.dumps({**asdict(summary), **counts}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
