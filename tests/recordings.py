"""Recorded provider traffic, read where it lies: beside the project, never in it."""

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(
    os.environ.get("ONEGATE_SHARED", Path(__file__).resolve().parent.parent.parent / "shared")
)
RECORDINGS = SHARED / "data" / "recordings"
SPECS = SHARED / "data" / "specs"

needs_recordings = pytest.mark.skipif(
    not RECORDINGS.is_dir(),
    reason="the recorded traffic lies beside the project and is absent here",
)
needs_specs = pytest.mark.skipif(
    not SPECS.is_dir(), reason="the API specifications lie beside the project and are absent here"
)


@functools.cache
def exchanges(provider: str = "", api: str = "") -> tuple[dict[str, Any], ...]:
    """All recorded exchanges of a provider and an API (see the recordings' README); empty when
    absent.
    """
    found = []
    for path in sorted(RECORDINGS.glob("*/*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                exchange = json.loads(line)
                if provider in ("", exchange["provider"]) and api in ("", exchange["api"]):
                    found.append(exchange)
    return tuple(found)
