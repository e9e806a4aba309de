"""The settings of a command, from file, environment and flags. Imports no library of the command
line, so that a service's process holds none.
"""

from dataclasses import dataclass
from pathlib import Path

from runtime import config
from runtime.config import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFlags:
    """What the flags of ``up`` and ``serve`` say; ``None`` leaves it to file and environment."""

    host: str | None = None
    port: int | None = None
    data_dir: Path | None = None
    workers: int | None = None
    salvage: bool = False

    def overrides(self) -> dict[str, object]:
        """The flags as settings."""
        return {
            "edge.host": self.host,
            "edge.port": self.port,
            "data_dir": None if self.data_dir is None else str(self.data_dir),
            "workers": self.workers,
            "router.journal_salvage": self.salvage or None,
        }


def read_settings(
    config_file: Path | None, overrides: dict[str, object], *, calls_providers: bool = False
) -> Settings:
    """The settings with this machine's defaults filled in. Raises ``ConfigError``.

    Only who calls providers needs their credentials.
    """
    path = config_file
    if path is None and Path(config.DEFAULT_FILE).is_file():
        path = Path(config.DEFAULT_FILE)
    settings = config.load(path, config.environment(), overrides, check_credentials=calls_providers)
    return config.with_local_defaults(settings)
