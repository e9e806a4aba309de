"""A table provider x feature of what was replayed, with the reason of everything that was not."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class FeatureTable:
    """Counts exchanges by feature; ``str()`` is the table."""

    name: str
    passed: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, exchange_id: str, features: Iterable[str], fault: str = "") -> None:
        """An exchange that was replayed, and what was wrong with it, if anything."""
        if fault:
            self.failed[exchange_id] = fault
        (self.failures if fault else self.passed).update(["all", *features])

    def skip(self, reason: str) -> None:
        """An exchange that does not apply."""
        self.skipped[reason] += 1

    def __str__(self) -> str:
        lines = [f"{self.name}: feature, passed, failed"]
        lines += [
            f"  {feature:34} {self.passed[feature]:5} {self.failures[feature]:5}"
            for feature in sorted(self.passed | self.failures)
        ]
        lines += [f"  not applicable: {count} x {why}" for why, count in self.skipped.items()]
        lines += [f"  FAILED {name}: {fault}" for name, fault in self.failed.items()]
        return "\n".join(lines)
