"""Whether the process lives, and whether it can serve."""

from collections.abc import Mapping

from edge.endpoints.strict_json import encode


def alive_body() -> bytes:
    """``GET /healthz``: the process answers; that depends on no peer."""
    return encode({"status": "ok"})


def ready_body(checks: Mapping[str, bool]) -> bytes:
    """``GET /readyz``: each thing that serving needs, and whether it is there."""
    words = {name: "ok" if there else "missing" for name, there in checks.items()}
    return encode({"status": "ok" if all(checks.values()) else "not ready", "checks": words})
