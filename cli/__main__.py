"""The entry of the ``onegate`` command: a service runs without the libraries of the command line,
which would cost each of its processes 15 MB.
"""

import importlib
import sys


def main() -> None:
    """Runs the command."""
    if sys.argv[1:2] == ["serve"]:
        importlib.import_module("cli.serve").main(sys.argv[2:])
    else:
        importlib.import_module("cli.main").main()


if __name__ == "__main__":
    main()
