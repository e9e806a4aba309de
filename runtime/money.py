"""What a call costs: whole nano-USD, exact, rounded up once.

Every figure is an integer: counts of units times nano-USD for a million units, summed, then one
division that rounds up. The result therefore never depends on the order of the sum, and is never
below what the vendor charges.

Pure: messages in, a number out.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from onegate.common.v1.token_usage_pb2 import TokenUsage, UnitUsage
from onegate.usage.v1 import price_pb2
from onegate.usage.v1.price_pb2 import PriceSheet

NANO_PER_USD: Final = 1_000_000_000
COST_NANO_USD_MAX: Final = 2**63 - 1
"""What a ledger row can hold, about nine billion dollars. A usage that would cost more is absurd;
it is charged this much rather than lost to an overflow.
"""

_PER: Final = 1_000_000
_MS: Final = 1_000

_ENCLOSING: Final[Mapping[int, tuple[int, ...]]] = {
    price_pb2.METER_CACHED_INPUT_TOKENS: (price_pb2.METER_INPUT_TOKENS,),
    price_pb2.METER_CACHE_WRITE_TOKENS: (price_pb2.METER_INPUT_TOKENS,),
    price_pb2.METER_CACHE_WRITE_1H_TOKENS: (
        price_pb2.METER_CACHE_WRITE_TOKENS,
        price_pb2.METER_INPUT_TOKENS,
    ),
    price_pb2.METER_INPUT_AUDIO_TOKENS: (price_pb2.METER_INPUT_TOKENS,),
    price_pb2.METER_INPUT_IMAGE_TOKENS: (price_pb2.METER_INPUT_TOKENS,),
    # A vendor that names an audio rate and no rate for cached audio gives no discount on it.
    price_pb2.METER_CACHED_INPUT_AUDIO_TOKENS: (
        price_pb2.METER_INPUT_AUDIO_TOKENS,
        price_pb2.METER_CACHED_INPUT_TOKENS,
        price_pb2.METER_INPUT_TOKENS,
    ),
    price_pb2.METER_REASONING_TOKENS: (price_pb2.METER_OUTPUT_TOKENS,),
    price_pb2.METER_OUTPUT_AUDIO_TOKENS: (price_pb2.METER_OUTPUT_TOKENS,),
    price_pb2.METER_OUTPUT_IMAGE_TOKENS: (price_pb2.METER_OUTPUT_TOKENS,),
}
"""Whose rate a meter without one of its own is charged at: the first that has one."""


def usd(nano_usd: int) -> str:
    """Nano-USD as a plain decimal in USD, every digit exact: ``1250`` gives ``0.00000125``."""
    whole, nano = divmod(nano_usd, NANO_PER_USD)
    return f"{whole}.{nano:09d}".rstrip("0").rstrip(".")


def cost_nano_usd(sheet: PriceSheet, tokens: TokenUsage) -> int:
    """What ``tokens`` cost at ``sheet``, in nano-USD, rounded up; from 0 to
    ``COST_NANO_USD_MAX``.

    - Each token is charged once, as :func:`split` says, at its own meter's rate or else at the
      enclosing meter's.
    - Among a meter's rates, those of the usage's ``service_tier`` go before the standard ones;
      then the one with the greatest ``above_input_tokens`` below the call's input tokens applies,
      to the whole call (https://ai.google.dev/gemini-api/docs/pricing,
      https://platform.openai.com/docs/pricing).
    - Pictures, seconds, characters, pages and searches count beside the tokens; a part of a
      second exactly. A rate for a size, a quality or a mode applies to that alone and goes before
      one for any; a picture or video that no rate fits is charged at the meter's dearest.
    - The fee for a request is due once when anything was consumed: an explicit zero stays zero.
    - A meter for which neither it nor an enclosing one has a rate costs nothing; who makes a
      sheet sees to it that this is what the vendor says.
    """
    if sheet.free:
        return 0
    counts = split(tokens)
    units = tokens.units if tokens.HasField("units") else None
    call = _Call(
        input_tokens=sum(count for meter, count in counts.items() if meter in _INPUT),
        service_tier=tokens.service_tier,
        mode="" if units is None else units.mode,
    )
    rates = _rates(sheet, call)
    total, used = _of_tokens(rates, counts), bool(counts)
    if units is not None:
        fine = [*_of_units(rates, units), *_of_media(sheet, call, units)]
        # A thousandth of what a token costs is the common measure of seconds and all else.
        total, used = total * _MS + sum(cost for cost, _ in fine), used or any(n for _, n in fine)
        per = _PER * _MS
        total += rates.get(price_pb2.METER_REQUESTS, 0) * _MS * used
    else:
        per = _PER
        total += rates.get(price_pb2.METER_REQUESTS, 0) * used
    return min(-(-total // per), COST_NANO_USD_MAX)


def counts_tokens(sheet: PriceSheet) -> bool:
    """Whether a sheet says what text costs, so that nothing of a chat is free by mistake."""
    return sheet.free or any(
        rate.meter == price_pb2.METER_INPUT_TOKENS
        and not (rate.above_input_tokens or rate.service_tier or rate.mode)
        for rate in sheet.rates
    )


class _Call(NamedTuple):
    """What chooses among the rates of a meter."""

    input_tokens: int
    service_tier: str
    mode: str = ""


class Tariff:
    """A sheet made ready for many usages; says what :func:`cost_nano_usd` says of each.

    Nearly all usages are text: input, some of it cached, and output, some of it reasoning. For
    these the four rates are looked up once for each tier (3 µs instead of 11). All others go the
    long way, tokens with rates that are looked up once as well. The sheet must not change any more.
    """

    __slots__ = ("_sheet", "_tables", "_thresholds", "_tiers", "_units")

    def __init__(self, sheet: PriceSheet) -> None:
        self._sheet = sheet
        self._tables: dict[tuple[str, int], _TextRates] | None = None
        self._thresholds: list[int] = []
        self._tiers: frozenset[str] = frozenset()
        # Whether the sheet prices more than tokens; taken for granted until it is read.
        self._units = True

    def __call__(self, tokens: TokenUsage) -> int:
        """In nano-USD."""
        entry, output = tokens.input_tokens, tokens.output_tokens
        cached, reasoning = tokens.cached_input_tokens, tokens.reasoning_tokens
        if (
            not 0 <= cached <= entry
            or not 0 <= reasoning <= output
            or not (entry or output)
            or tokens.cache_write_tokens
            or tokens.cache_write_1h_tokens
            or tokens.input_audio_tokens
            or tokens.cached_input_audio_tokens
            or tokens.input_image_tokens
            or tokens.output_audio_tokens
            or tokens.output_image_tokens
            or tokens.web_searches
            or (self._units and tokens.HasField("units"))
        ):
            return self._long(tokens)
        request, fresh_rate, cached_rate, output_rate, reasoning_rate, _ = self._rates(
            entry, tokens.service_tier
        )
        total = (
            request
            + (entry - cached) * fresh_rate
            + cached * cached_rate
            + (output - reasoning) * output_rate
            + reasoning * reasoning_rate
        )
        cost = -(-total // _PER)
        if cost > COST_NANO_USD_MAX:
            return COST_NANO_USD_MAX
        return cost

    def _long(self, tokens: TokenUsage) -> int:
        if tokens.HasField("units"):
            return cost_nano_usd(self._sheet, tokens)
        counts = split(tokens)
        if not counts:
            return 0
        input_tokens = sum(count for meter, count in counts.items() if meter in _INPUT)
        rates = self._rates(input_tokens, tokens.service_tier)[5]
        total = rates.get(price_pb2.METER_REQUESTS, 0) + _of_tokens(rates, counts)
        return min(-(-total // _PER), COST_NANO_USD_MAX)

    @property
    def tables(self) -> int:
        """How many tiers are remembered."""
        return len(self._tables or ())

    def _rates(self, input_tokens: int, service_tier: str) -> "_TextRates":
        """Of a request and of a million tokens of each kind: fresh, cached, output, reasoning; and
        of every meter.
        """
        tables = self._tables
        if tables is None:
            rates = self._sheet.rates
            self._thresholds = sorted({rate.above_input_tokens for rate in rates} - {0})
            self._tiers = frozenset(rate.service_tier for rate in rates)
            self._units = any(rate.meter in _UNIT_METERS or rate.mode for rate in rates)
            self._tables = tables = {}
        # What providers call their tiers is theirs: only those with a price are remembered.
        tier = service_tier if service_tier in self._tiers else ""
        place = (tier, bisect_left(self._thresholds, input_tokens))
        found = tables.get(place)
        if found is None:
            found = tables[place] = _text_rates(self._sheet, input_tokens, tier)
        return found


_TextRates = tuple[int, int, int, int, int, Mapping[int, int]]


def _text_rates(sheet: PriceSheet, input_tokens: int, service_tier: str) -> _TextRates:
    if sheet.free:
        return 0, 0, 0, 0, 0, {}
    rates = _rates(sheet, _Call(input_tokens, service_tier))
    return (
        rates.get(price_pb2.METER_REQUESTS, 0),
        _rate(rates, price_pb2.METER_INPUT_TOKENS),
        _rate(rates, price_pb2.METER_CACHED_INPUT_TOKENS),
        _rate(rates, price_pb2.METER_OUTPUT_TOKENS),
        _rate(rates, price_pb2.METER_REASONING_TOKENS),
        rates,
    )


def _of_tokens(rates: Mapping[int, int], counts: Mapping[int, int]) -> int:
    return sum(count * _rate(rates, meter) for meter, count in counts.items())


_UNITS: Final = (
    ("input_audio_ms", price_pb2.METER_INPUT_AUDIO_SECONDS, 1),
    ("output_audio_ms", price_pb2.METER_OUTPUT_AUDIO_SECONDS, 1),
    ("input_video_ms", price_pb2.METER_INPUT_VIDEO_SECONDS, 1),
    ("input_characters", price_pb2.METER_INPUT_CHARACTERS, _MS),
    ("output_characters", price_pb2.METER_OUTPUT_CHARACTERS, _MS),
    ("pages", price_pb2.METER_PAGES, _MS),
    ("searches", price_pb2.METER_SEARCHES, _MS),
)
"""Which field is charged at which meter, and how many thousandths of the meter's unit it counts."""

_UNIT_METERS: Final = frozenset(
    {
        price_pb2.METER_IMAGES,
        price_pb2.METER_OUTPUT_VIDEO_SECONDS,
        *(meter for _, meter, _ in _UNITS),
    }
)
"""The meters of what is not counted in tokens."""


def _of_units(rates: Mapping[int, int], units: UnitUsage) -> Iterator[tuple[int, int]]:
    """What each kind of unit costs, in nano-USD times a thousand million, and how many it is."""
    for field, meter, factor in _UNITS:
        count = max(getattr(units, field), 0)
        yield count * factor * rates.get(meter, 0), count


def _of_media(sheet: PriceSheet, call: _Call, units: UnitUsage) -> Iterator[tuple[int, int]]:
    """The same of pictures and videos, each by its own size and quality."""
    for image in units.images:
        rate = _media_rate(sheet, call, price_pb2.METER_IMAGES, (image.size, image.quality))
        count = max(image.count, 0)
        yield count * _MS * rate, count
    for video in units.output_videos:
        looks = (video.size, video.quality)
        rate = _media_rate(sheet, call, price_pb2.METER_OUTPUT_VIDEO_SECONDS, looks)
        duration_ms = max(video.duration_ms, 0)
        yield duration_ms * rate, duration_ms


def _media_rate(sheet: PriceSheet, call: _Call, meter: int, looks: tuple[str, str]) -> int:
    rate = _rates(sheet, call, looks).get(meter)
    if rate is None:
        found = (one.nano_usd_per_million for one in sheet.rates if one.meter == meter)
        rate = max(found, default=0)
    return rate


def _rate(rates: Mapping[int, int], meter: int) -> int:
    """The meter's own rate, or that of the first enclosing one that has one."""
    rate = rates.get(meter)
    if rate is None:
        rate = next((rates[m] for m in _ENCLOSING.get(meter, ()) if m in rates), 0)
    return rate


def split(tokens: TokenUsage) -> dict[int, int]:
    """``tokens`` by meter: every token under exactly one, no meter with 0.

    A ``TokenUsage`` names totals and, among them, parts. What is absurd is read so that nothing
    reported goes uncharged and nothing is charged twice:

    - a negative count is 0;
    - cached audio is cached and is audio: both are at least as much;
    - a total below the sum of its parts is raised to it, where the parts exclude each other:
      cached and written to a cache; audio and image; reasoning, audio and image of the output;
    - audio or images may be cached tokens as well, and providers seldom say which. What the
      caches leave of the total is taken for audio first, then for images, then for text.
    """
    counts = {**_split_input(tokens), **_split_output(tokens)}
    counts[price_pb2.METER_WEB_SEARCHES] = tokens.web_searches
    return {meter: count for meter, count in counts.items() if count > 0}


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
"""The meters that make up a call's input, which chooses the tier."""


def _split_input(tokens: TokenUsage) -> dict[int, int]:
    cached_audio = max(tokens.cached_input_audio_tokens, 0)
    cached = max(tokens.cached_input_tokens, cached_audio)
    written = max(tokens.cache_write_tokens, 0)
    written_1h = max(tokens.cache_write_1h_tokens, 0)
    audio = max(tokens.input_audio_tokens, cached_audio)
    images = max(tokens.input_image_tokens, 0)
    caches = cached + written + written_1h
    total = max(tokens.input_tokens, caches, audio + images)
    fresh = total - caches
    fresh_audio = min(audio - cached_audio, fresh)
    fresh_images = min(images, fresh - fresh_audio)
    return {
        price_pb2.METER_INPUT_TOKENS: fresh - fresh_audio - fresh_images,
        price_pb2.METER_CACHED_INPUT_TOKENS: cached - cached_audio,
        price_pb2.METER_CACHED_INPUT_AUDIO_TOKENS: cached_audio,
        price_pb2.METER_CACHE_WRITE_TOKENS: written,
        price_pb2.METER_CACHE_WRITE_1H_TOKENS: written_1h,
        price_pb2.METER_INPUT_AUDIO_TOKENS: fresh_audio,
        price_pb2.METER_INPUT_IMAGE_TOKENS: fresh_images,
    }


def _split_output(tokens: TokenUsage) -> dict[int, int]:
    reasoning = max(tokens.reasoning_tokens, 0)
    audio = max(tokens.output_audio_tokens, 0)
    images = max(tokens.output_image_tokens, 0)
    parts = reasoning + audio + images
    return {
        price_pb2.METER_OUTPUT_TOKENS: max(tokens.output_tokens, parts) - parts,
        price_pb2.METER_REASONING_TOKENS: reasoning,
        price_pb2.METER_OUTPUT_AUDIO_TOKENS: audio,
        price_pb2.METER_OUTPUT_IMAGE_TOKENS: images,
    }


def _rates(sheet: PriceSheet, call: _Call, looks: tuple[str, str] = ("", "")) -> dict[int, int]:
    """The one rate of each meter that applies to a call, in nano-USD for a million units; of
    pictures and videos, to those of one size and quality.
    """
    found: dict[int, _Candidate] = {}
    for rate in sheet.rates:
        tier, mode, above = rate.service_tier, rate.mode, rate.above_input_tokens
        size, quality = rate.size, rate.quality
        if (
            (tier and tier != call.service_tier)
            or (mode and mode != call.mode)
            or (above and call.input_tokens <= above)
            or (size and size != looks[0])
            or (quality and quality != looks[1])
        ):
            continue
        exact = (bool(tier), bool(mode), bool(size), bool(quality))
        # Of two rates that say the same, the dearer wins: the result must not depend on order.
        candidate = (exact, above, rate.nano_usd_per_million)
        meter = rate.meter
        if meter not in found or candidate > found[meter]:
            found[meter] = candidate
    return {meter: rate for meter, (_, _, rate) in found.items()}


_Candidate = tuple[tuple[bool, bool, bool, bool], int, int]
