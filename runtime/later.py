"""Libraries that few installations use: loaded when something of them is first asked for.

A library is imported at the top of a module, as everywhere. This is for those that weigh megabytes
and are at work only where something is configured or a caller asks for it: an idle gateway does
not pay for them. Types are lost, so that whoever uses one says what it gives.
"""

from importlib import import_module
from typing import Any


class Later:
    """Stands for a module: ``jwt = Later("jwt")``, then ``jwt.decode(…)``.

    Raises what importing the module raises, when something of it is first asked for.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._name), name)
