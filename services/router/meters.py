"""What the router counts for operators: attempts, tokens, time to the first token, overruns."""

from typing import Final

from onegate.usage.v1 import usage_record_pb2
from runtime.metrics import Metrics

_OUTCOMES: Final = {
    value: name.removeprefix("OUTCOME_").lower() for name, value in usage_record_pb2.Outcome.items()
}


class Meters:
    """The instruments, bound to the process's metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._input = metrics.tokens.labelled("input")
        self._cached = metrics.tokens.labelled("cached")
        self._output = metrics.tokens.labelled("output")
        self._reasoning = metrics.tokens.labelled("reasoning")
        self._overruns = metrics.counter(
            "overruns", "Attempts that consumed more than their bound."
        ).labelled()
        self.in_flight = metrics.in_flight

    def attempt(self, record: usage_record_pb2.UsageRecord) -> None:
        """An attempt is settled."""
        self._metrics.attempts.labelled(record.provider, _OUTCOMES[record.outcome]).add()
        if record.first_token_us:
            seconds = record.first_token_us / 1_000_000
            self._metrics.first_tokens.labelled(record.provider).observe(seconds)
        tokens = record.tokens
        self._input.add(tokens.input_tokens)
        self._output.add(tokens.output_tokens)
        if tokens.cached_input_tokens:
            self._cached.add(tokens.cached_input_tokens)
        if tokens.reasoning_tokens:
            self._reasoning.add(tokens.reasoning_tokens)

    def overrun(self) -> None:
        """A provider reported more than the call's bound."""
        self._overruns.add()
