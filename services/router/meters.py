"""What the router counts for operators: attempts, tokens, time to the first token, overruns."""

from typing import Final

from onegate.usage.v1 import usage_record_pb2
from runtime.metrics import Count, Durations, Metrics
from services.router.money.settlement import Attempt

_OUTCOMES: Final = {
    value: name.removeprefix("OUTCOME_").lower() for name, value in usage_record_pb2.Outcome.items()
}


class Meters:
    """The instruments, bound to the process's metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._cells: dict[
            tuple[str, usage_record_pb2.Outcome.ValueType], tuple[Count, Durations]
        ] = {}
        self._input = metrics.tokens.labelled("input")
        self._cached = metrics.tokens.labelled("cached")
        self._output = metrics.tokens.labelled("output")
        self._reasoning = metrics.tokens.labelled("reasoning")
        self._overruns = metrics.counter(
            "overruns", "Attempts that consumed more than their bound."
        ).labelled()
        self.in_flight = metrics.in_flight
        self._refusals = metrics.counter(
            "credential_refusals",
            "Times that a provider refused a credential that had worked before.",
            ("credential",),
        )

    def credential_refused(self, credential: str) -> None:
        """A provider refuses a credential, named ``provider`` or ``provider#credential``."""
        self._refusals.labelled(credential).add()

    def attempt(self, attempt: Attempt) -> None:
        """An attempt is settled."""
        name = (attempt.deployment.provider, attempt.outcome)
        cells = self._cells.get(name)
        if cells is None:
            cells = self._cells[name] = self._cells_of(*name)
        attempts, first_tokens = cells
        attempts.value += 1
        if attempt.first_token_us:
            first_tokens.observe(attempt.first_token_us / 1_000_000)
        tokens = attempt.tokens
        self._input.value += tokens.input_tokens
        self._output.value += tokens.output_tokens
        self._cached.value += tokens.cached_input_tokens
        self._reasoning.value += tokens.reasoning_tokens

    def _cells_of(
        self, provider: str, outcome: usage_record_pb2.Outcome.ValueType
    ) -> tuple[Count, Durations]:
        metrics = self._metrics
        return (
            metrics.attempts.labelled(provider, _OUTCOMES[outcome]),
            metrics.first_tokens.labelled(provider),
        )

    def overrun(self) -> None:
        """A provider reported more than the call's bound."""
        self._overruns.add()
