"""Prints the latency table: python -m kdnas.costs runs/latency.jsonl"""

import sys
from pathlib import Path

from kdnas.base.errors import ConfigError
from kdnas.costs.listing import list_latencies

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m kdnas.costs <table, as runs/latency.jsonl>")
    try:
        list_latencies(Path(sys.argv[1]))
    except ConfigError as error:
        sys.exit(f"error: {error}")
