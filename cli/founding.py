"""Makes the first start's keys, in a process of its own so that the supervisor stays small.

``python -m cli.founding --data-dir …`` founds an empty store and prints its keys as one JSON
object, or ``null`` when there is one already. Takes the flags of ``onegate up``.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path

from cli.context import load
from runtime import telemetry
from runtime.clock import SystemClock, SystemEntropy
from services.auth.bootstrap import bootstrap


def main() -> None:
    """Founds the store that the flags name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir")
    parser.add_argument("--config", type=Path)
    flags, _ = parser.parse_known_args()
    settings = load(flags.config, {"data_dir": flags.data_dir})
    telemetry.configure_logging("auth", settings.telemetry)
    made = asyncio.run(bootstrap(settings, SystemClock(), SystemEntropy()))
    keys = None if made is None else {"admin_key": made.admin_key, "api_key": made.api_key}
    json.dump(keys, sys.stdout)


if __name__ == "__main__":
    main()
