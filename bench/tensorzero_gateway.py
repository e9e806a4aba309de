"""Runs TensorZero's HTTP gateway from its wheel: ``python tensorzero_gateway.py CONFIG``; prints
its URL.

Runs under the peer's own interpreter, which has no module of this project.
"""

import signal
import sys

from tensorzero.tensorzero import _start_http_gateway

gateway = _start_http_gateway(
    config_file=sys.argv[1],
    clickhouse_url=None,
    postgres_url=None,
    valkey_url=None,
    async_setup=False,
)
print(gateway.base_url, flush=True)
signal.pause()
