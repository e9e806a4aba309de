"""How large a call can be: an upper bound of its tokens and of its cost, and a guess at its tokens.

The bound must never be too small: a token is at least one byte of text, and media have maxima.
Pure.
"""

from collections.abc import Iterable
from typing import Final, Literal

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from onegate.usage.v1 import price_pb2

IMAGE_TOKENS_MAX: Final = 50_000
"""What one picture can cost at most, in tokens: gpt-4o-mini charges 2,833 and 5,667 for each of up
to 8 tiles (https://platform.openai.com/docs/guides/images-vision); no other model charges more."""
DOCUMENT_TOKENS_MAX: Final = 1_000_000
"""What one document or linked medium can cost at most: what fits into the largest windows."""
BYTES_PER_MEDIA_TOKEN: Final = 16
"""Sound and video have at least as many bytes for each token that they cost: the densest, speech at
6 kbit/s, has 23 at Gemini's 32 tokens a second (https://ai.google.dev/gemini-api/docs/audio)."""
MESSAGE_TOKENS: Final = 16
"""What the frame of a message or a tool may add beside its text."""
BYTES_PER_TOKEN: Final = 4
"""How many bytes of text a token has on average; for guesses, never for bounds."""
OUTPUT_TOKENS_MAX: Final = 2**31 - 1
"""Where output costs nothing, no cap is needed."""
OUTPUT_TOKENS_GUESS: Final = 1024
"""What an answer is taken for when nothing bounds it, where a rate limit needs a figure."""

_PER: Final = 1_000_000
_INPUT: Final = frozenset(
    {
        price_pb2.METER_INPUT_TOKENS,
        price_pb2.METER_CACHED_INPUT_TOKENS,
        price_pb2.METER_CACHE_WRITE_TOKENS,
        price_pb2.METER_CACHE_WRITE_1H_TOKENS,
        price_pb2.METER_INPUT_AUDIO_TOKENS,
        price_pb2.METER_INPUT_IMAGE_TOKENS,
        price_pb2.METER_CACHED_INPUT_AUDIO_TOKENS,
    }
)
_OUTPUT: Final = frozenset(
    {
        price_pb2.METER_OUTPUT_TOKENS,
        price_pb2.METER_REASONING_TOKENS,
        price_pb2.METER_OUTPUT_AUDIO_TOKENS,
        price_pb2.METER_OUTPUT_IMAGE_TOKENS,
    }
)

_RateMax = Literal[
    "input_rate_max_nano_usd", "output_rate_max_nano_usd", "request_rate_max_nano_usd"
]
_PRICED: Final[tuple[tuple[str, _RateMax, int], ...]] = (
    ("prompt", "input_rate_max_nano_usd", price_pb2.METER_INPUT_TOKENS),
    ("completion", "output_rate_max_nano_usd", price_pb2.METER_OUTPUT_TOKENS),
    ("request", "request_rate_max_nano_usd", price_pb2.METER_REQUESTS),
)
"""What a caller may bound, by whom it is said, and what is charged for it."""


def input_tokens_bound(request: chat_pb2.ChatRequest) -> int:
    """The input cannot have more tokens than this."""
    if request.HasField("native"):
        return request.native.input_tokens_bound or len(request.native.body)
    messages = sum(_message(message) for message in request.messages)
    tools = sum(tool.ByteSize() + MESSAGE_TOKENS for tool in request.tools)
    rest = len(request.response_format.schema) + len(request.extra_json)
    return messages + tools + rest + _parts(request.prediction) + MESSAGE_TOKENS


def input_tokens_within(request: chat_pb2.ChatRequest, context_max: int) -> int:
    """As :func:`input_tokens_bound`, for a model whose window is known: what fits into it is the
    most that can be charged, a linked document included. 0 for a window that is not known.
    """
    bound = input_tokens_bound(request)
    if not context_max or bound < min(context_max, DOCUMENT_TOKENS_MAX):
        return bound
    return context_max


def input_tokens_guess(request: chat_pb2.ChatRequest) -> int:
    """About how many tokens the input has."""
    bound = input_tokens_bound(request)
    if request.HasField("native"):
        bound = min(bound, len(request.native.body))
    return -(-bound // BYTES_PER_TOKEN)


def output_tokens_bound(request: chat_pb2.ChatRequest, model_max: int) -> int | None:
    """The output of all choices cannot have more tokens than this; ``None`` when nothing says.

    Args:
        request: the call.
        model_max: the model's own maximum for one choice; 0 when unknown.
    """
    most = request.output_tokens_max or model_max
    return most * max(request.choices, 1) if most > 0 else None


def tokens_guess(request: chat_pb2.ChatRequest) -> int:
    """About how many tokens the call will use, where a rate limit must set some aside."""
    output = output_tokens_bound(request, 0)
    return input_tokens_guess(request) + (OUTPUT_TOKENS_GUESS if output is None else output)


def exceeds(request: chat_pb2.ChatRequest, input_tokens: int, output_tokens: int) -> bool:
    """Whether a reported usage is beyond the bounds of its call."""
    output = output_tokens_bound(request, 0)
    if output is not None and output_tokens > output:
        return True
    # What the wire adds of its own is far from the length of the message that brought the call.
    return input_tokens > request.ByteSize() and input_tokens > input_tokens_bound(request)


def output_tokens_guess(request: chat_pb2.ChatRequest) -> int:
    """About how many tokens the output will have."""
    bound = output_tokens_bound(request, 0)
    guess = OUTPUT_TOKENS_GUESS * max(request.choices, 1)
    return guess if bound is None else min(bound, guess)


def output_tokens_for(
    request: chat_pb2.ChatRequest,
    sheet: price_pb2.PriceSheet,
    amount_nano_usd: int,
    context_max: int,
) -> int:
    """How many tokens each choice may have at most, so that :func:`cost_bound` stays within an
    amount; 0 when not even the input does.
    """
    fixed, rate = _charged(request, sheet, context_max)
    left = amount_nano_usd * _PER - fixed
    if left <= 0:
        return 0
    return OUTPUT_TOKENS_MAX if rate == 0 else left // rate // max(request.choices, 1)


def cost_bound(
    request: chat_pb2.ChatRequest,
    sheet: price_pb2.PriceSheet | None,
    model_max: int,
    context_max: int = 0,
) -> int | None:
    """The most that one attempt can cost, in nano-USD; ``None`` when nothing bounds it.

    Every token at the dearest rate that can apply to it, in any tier. A web search has no known
    number, so a call that may search where searches are charged has no bound. An answer fits into
    the window where its own maximum is not known.

    Args:
        request: the call.
        sheet: its price; ``None`` when nothing is charged.
        model_max: the model's most output tokens for one choice; 0 when unknown.
        context_max: its window, input and output together; 0 when unknown.
    """
    if sheet is None or sheet.free:
        return 0
    output = output_tokens_bound(request, model_max or context_max)
    searches = any(rate.meter == price_pb2.METER_WEB_SEARCHES for rate in sheet.rates)
    if output is None or (searches and _may_search(request)):
        return None
    fixed, rate = _charged(request, sheet, context_max)
    return -(-(fixed + output * rate) // _PER)


def _charged(
    request: chat_pb2.ChatRequest, sheet: price_pb2.PriceSheet, context_max: int
) -> tuple[int, int]:
    """The most that input and request cost, and the dearest rate of output, both in nano-USD times
    a million.
    """
    inputs = input_tokens_within(request, context_max)
    rates = [rate for rate in sheet.rates if rate.above_input_tokens < max(inputs, 1)]
    requests = _dearest(rates, frozenset({price_pb2.METER_REQUESTS}))
    return inputs * _dearest(rates, _INPUT) + requests, _dearest(rates, _OUTPUT)


def over_price(
    sheet: price_pb2.PriceSheet | None, wishes: chat_pb2.RoutingPreferences | None
) -> str:
    """What costs more than the caller wants to pay (``prompt``, ``completion``, ``request``), in
    any tier; empty when nothing does, or nothing is charged.
    """
    if wishes is None or sheet is None or sheet.free:
        return ""
    for name, field, meter in _PRICED:
        if wishes.HasField(field):
            most: int = getattr(wishes, field)
            if _dearest(sheet.rates, frozenset({meter})) > most:
                return name
    return ""


def _dearest(rates: Iterable[price_pb2.Rate], meters: frozenset[int]) -> int:
    found = [rate.nano_usd_per_million for rate in rates if rate.meter in meters]
    return max(found, default=0)


def _may_search(request: chat_pb2.ChatRequest) -> bool:
    if request.HasField("native"):
        return b"search" in request.native.body
    return bool(request.web_search_options_json) or any(
        tool.WhichOneof("tool") == "provider_json" for tool in request.tools
    )


def _message(message: content_pb2.Message) -> int:
    text = len(message.name.encode()) + len(message.extra_json)
    return text + _parts(message.parts) + MESSAGE_TOKENS


def _parts(parts: Iterable[content_pb2.Part]) -> int:
    return sum(_part(part) for part in parts)


def _part(part: content_pb2.Part) -> int:
    kind = part.WhichOneof("content")
    if kind == "image":
        return IMAGE_TOKENS_MAX + len(part.extra_json)
    if kind == "audio":
        return _medium(part.audio.source) + part.audio.ByteSize() - part.audio.source.ByteSize()
    if kind == "video":
        return _medium(part.video.source)
    if kind == "file":
        return max(DOCUMENT_TOKENS_MAX, part.ByteSize())
    if kind == "tool_result":
        result = part.tool_result
        return _parts(result.parts) + len(result.tool_call_id) + len(result.name) + MESSAGE_TOKENS
    return part.ByteSize()


def _medium(source: content_pb2.MediaSource) -> int:
    """Sound or video: bounded by its bytes, or not at all when it is elsewhere."""
    if source.WhichOneof("source") == "data":
        return len(source.data) // BYTES_PER_MEDIA_TOKEN + MESSAGE_TOKENS
    return DOCUMENT_TOKENS_MAX
