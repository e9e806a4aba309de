"""What a call costs, against fractions and a reading of the usage that goes the other way."""

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onegate.common.v1.token_usage_pb2 import ImageUsage, TokenUsage, UnitUsage, VideoUsage
from onegate.usage.v1 import price_pb2
from onegate.usage.v1.price_pb2 import PriceSheet, Rate
from runtime.money import COST_NANO_USD_MAX, Tariff, cost_nano_usd, counts_tokens, split

INPUT = price_pb2.METER_INPUT_TOKENS
CACHED = price_pb2.METER_CACHED_INPUT_TOKENS
WRITE = price_pb2.METER_CACHE_WRITE_TOKENS
WRITE_1H = price_pb2.METER_CACHE_WRITE_1H_TOKENS
AUDIO = price_pb2.METER_INPUT_AUDIO_TOKENS
CACHED_AUDIO = price_pb2.METER_CACHED_INPUT_AUDIO_TOKENS
IMAGE = price_pb2.METER_INPUT_IMAGE_TOKENS
OUTPUT = price_pb2.METER_OUTPUT_TOKENS
REASONING = price_pb2.METER_REASONING_TOKENS
OUT_AUDIO = price_pb2.METER_OUTPUT_AUDIO_TOKENS
OUT_IMAGE = price_pb2.METER_OUTPUT_IMAGE_TOKENS
SEARCHES = price_pb2.METER_WEB_SEARCHES
REQUESTS = price_pb2.METER_REQUESTS

INPUTS = (INPUT, CACHED, WRITE, WRITE_1H, AUDIO, CACHED_AUDIO, IMAGE)
OUTPUTS = (OUTPUT, REASONING, OUT_AUDIO, OUT_IMAGE)
METERS = (*INPUTS, *OUTPUTS, SEARCHES, REQUESTS)

Key = tuple[int, int, str]


def sheet(rates: dict[Key, int]) -> PriceSheet:
    return PriceSheet(
        rates=[
            Rate(
                meter=price_pb2.Meter.ValueType(meter),
                above_input_tokens=above,
                service_tier=tier,
                nano_usd_per_million=nano,
            )
            for (meter, above, tier), nano in rates.items()
        ]
    )


def flat(**rates: int) -> PriceSheet:
    """A sheet of base rates, in nano-USD for a million units."""
    return sheet({(price_pb2.Meter.Value(f"METER_{n}"), 0, ""): r for n, r in rates.items()})


def usage_of(cells: dict[int, int], tier: str = "") -> TokenUsage:
    """The usage that a provider reports for so many tokens of each kind."""
    return TokenUsage(
        input_tokens=sum(cells.get(meter, 0) for meter in INPUTS),
        cached_input_tokens=cells.get(CACHED, 0) + cells.get(CACHED_AUDIO, 0),
        cached_input_audio_tokens=cells.get(CACHED_AUDIO, 0),
        cache_write_tokens=cells.get(WRITE, 0),
        cache_write_1h_tokens=cells.get(WRITE_1H, 0),
        input_audio_tokens=cells.get(AUDIO, 0) + cells.get(CACHED_AUDIO, 0),
        input_image_tokens=cells.get(IMAGE, 0),
        output_tokens=sum(cells.get(meter, 0) for meter in OUTPUTS),
        reasoning_tokens=cells.get(REASONING, 0),
        output_audio_tokens=cells.get(OUT_AUDIO, 0),
        output_image_tokens=cells.get(OUT_IMAGE, 0),
        web_searches=cells.get(SEARCHES, 0),
        service_tier=tier,
    )


def reference(rates: dict[Key, int], cells: dict[int, int], tier: str) -> int:
    """The same, by another way: from tokens of a known kind up, in fractions of a USD."""
    input_tokens = sum(cells.get(meter, 0) for meter in INPUTS)

    def rate(meter: int) -> Fraction | None:
        for wanted in dict.fromkeys((tier, "")):
            steps = {
                above: nano for (m, above, t), nano in rates.items() if (m, t) == (meter, wanted)
            }
            applicable = [above for above in steps if above == 0 or input_tokens > above]
            if applicable:
                return Fraction(steps[max(applicable)], 10**9 * 10**6)
        return None

    def first(*meters: int) -> Fraction:
        return next((found for m in meters if (found := rate(m)) is not None), Fraction(0))

    chains: dict[int, tuple[int, ...]] = {
        CACHED: (CACHED, INPUT),
        WRITE: (WRITE, INPUT),
        WRITE_1H: (WRITE_1H, WRITE, INPUT),
        AUDIO: (AUDIO, INPUT),
        CACHED_AUDIO: (CACHED_AUDIO, AUDIO, CACHED, INPUT),
        IMAGE: (IMAGE, INPUT),
        REASONING: (REASONING, OUTPUT),
        OUT_AUDIO: (OUT_AUDIO, OUTPUT),
        OUT_IMAGE: (OUT_IMAGE, OUTPUT),
    }
    usd = sum((n * first(*chains.get(m, (m,))) for m, n in cells.items()), Fraction(0))
    if any(cells.values()):
        usd += first(REQUESTS)
    return ceil(usd * 10**9)


counts = st.integers(0, 2_000_000)
all_cells = st.dictionaries(
    st.sampled_from([m for m in METERS if m != REQUESTS]), counts, max_size=12
)
all_rates = st.dictionaries(
    st.tuples(
        st.sampled_from(METERS), st.sampled_from([0, 1000, 200_000]), st.sampled_from(["", "flex"])
    ),
    st.integers(0, 600_000_000_000),
    max_size=30,
)
any_usage = st.builds(
    TokenUsage,
    **{
        name: st.integers(-(2**63), 2**63 - 1) | st.integers(-10, 1000)
        for name in (
            "input_tokens",
            "cached_input_tokens",
            "cache_write_tokens",
            "cache_write_1h_tokens",
            "input_audio_tokens",
            "input_image_tokens",
            "cached_input_audio_tokens",
            "output_tokens",
            "reasoning_tokens",
            "output_audio_tokens",
            "output_image_tokens",
            "web_searches",
        )
    },
)


@given(all_rates, all_cells, st.sampled_from(["", "flex", "priority"]))
def test_the_cost_is_the_exact_sum_rounded_up_once(
    rates: dict[Key, int], cells: dict[int, int], tier: str
) -> None:
    assert cost_nano_usd(sheet(rates), usage_of(cells, tier)) == reference(rates, cells, tier)


texts = st.builds(
    TokenUsage,
    input_tokens=st.sampled_from([0, 1, 1000, 1001, 200_000, 200_001]) | counts,
    cached_input_tokens=st.integers(0, 1500),
    output_tokens=counts,
    reasoning_tokens=st.integers(0, 1500),
    service_tier=st.sampled_from(["", "flex", "priority"]),
)


@given(all_rates, st.lists(texts | any_usage, max_size=12), st.booleans())
def test_a_tariff_says_of_each_usage_what_its_sheet_says(
    rates: dict[Key, int], usages: list[TokenUsage], free: bool
) -> None:
    priced = sheet(rates)
    priced.free = free
    tariff = Tariff(priced)
    assert [tariff(usage) for usage in usages] == [cost_nano_usd(priced, u) for u in usages]


def test_a_tariff_remembers_no_tier_that_the_sheet_does_not_name() -> None:
    tariff = Tariff(sheet({(INPUT, 0, ""): 1_000_000, (INPUT, 0, "flex"): 500_000}))
    usages = [TokenUsage(input_tokens=2, service_tier=f"tier {n}") for n in range(50)]
    assert [tariff(usage) for usage in usages] == [2] * 50
    assert tariff(TokenUsage(input_tokens=2, service_tier="flex")) == 1
    assert tariff.tables == 2


@given(all_rates, any_usage)
def test_no_usage_however_absurd_costs_less_than_nothing_or_more_than_a_row_holds(
    rates: dict[Key, int], usage: TokenUsage
) -> None:
    assert 0 <= cost_nano_usd(sheet(rates), usage) <= COST_NANO_USD_MAX


@given(any_usage)
def test_every_token_is_under_one_meter_and_nothing_reported_is_lost(usage: TokenUsage) -> None:
    found = split(usage)
    assert all(count > 0 for count in found.values())
    cached = max(usage.cached_input_tokens, usage.cached_input_audio_tokens, 0)
    audio = max(usage.input_audio_tokens, usage.cached_input_audio_tokens, 0)
    assert sum(found.get(meter, 0) for meter in INPUTS) == max(
        usage.input_tokens,
        cached + max(usage.cache_write_tokens, 0) + max(usage.cache_write_1h_tokens, 0),
        audio + max(usage.input_image_tokens, 0),
    )
    parts = (usage.reasoning_tokens, usage.output_audio_tokens, usage.output_image_tokens)
    assert sum(found.get(meter, 0) for meter in OUTPUTS) == max(
        usage.output_tokens, sum(max(part, 0) for part in parts)
    )
    assert found.get(CACHED, 0) + found.get(CACHED_AUDIO, 0) >= usage.cached_input_tokens
    for meter, reported in (
        (CACHED_AUDIO, usage.cached_input_audio_tokens),
        (WRITE, usage.cache_write_tokens),
        (WRITE_1H, usage.cache_write_1h_tokens),
        (REASONING, usage.reasoning_tokens),
        (OUT_AUDIO, usage.output_audio_tokens),
        (OUT_IMAGE, usage.output_image_tokens),
        (SEARCHES, usage.web_searches),
    ):
        assert found.get(meter, 0) == max(reported, 0)


@given(all_rates, all_cells, st.randoms())
def test_the_order_of_the_rates_does_not_matter(
    rates: dict[Key, int], cells: dict[int, int], random: object
) -> None:
    entries = list(rates.items())
    random.shuffle(entries)  # type: ignore[attr-defined]
    usage = usage_of(cells, "flex")
    assert cost_nano_usd(sheet(dict(entries)), usage) == cost_nano_usd(sheet(rates), usage)


@pytest.mark.parametrize(
    ("usage", "nano"),
    [
        pytest.param(TokenUsage(input_tokens=100, cached_input_tokens=150), 150, id="cached"),
        pytest.param(
            TokenUsage(input_tokens=10, cached_input_tokens=8, cache_write_tokens=8), 48, id="both"
        ),
        pytest.param(TokenUsage(input_tokens=-5, output_tokens=-1), 0, id="negative"),
        pytest.param(TokenUsage(output_tokens=1, reasoning_tokens=3), 300, id="reasoning"),
        pytest.param(TokenUsage(cached_input_audio_tokens=7), 7, id="audio from nowhere"),
        pytest.param(TokenUsage(input_audio_tokens=7), 70, id="audio beyond the total"),
    ],
)
def test_parts_beyond_their_total_are_charged_in_full(usage: TokenUsage, nano: int) -> None:
    million = 1_000_000
    prices = flat(
        INPUT_TOKENS=10 * million,
        CACHED_INPUT_TOKENS=1 * million,
        CACHE_WRITE_TOKENS=5 * million,
        OUTPUT_TOKENS=100 * million,
    )
    assert cost_nano_usd(prices, usage) == nano


def test_images_that_may_be_cached_are_charged_for_what_the_cache_leaves() -> None:
    usage = TokenUsage(input_tokens=1000, cached_input_tokens=900, input_image_tokens=800)
    assert split(usage) == {CACHED: 900, IMAGE: 100}


def test_a_higher_tier_applies_to_the_whole_call_beyond_its_threshold() -> None:
    prices = sheet({(INPUT, 0, ""): 1_000_000, (INPUT, 200_000, ""): 2_000_000})
    assert cost_nano_usd(prices, TokenUsage(input_tokens=200_000)) == 200_000
    assert cost_nano_usd(prices, TokenUsage(input_tokens=200_001)) == 400_002


def test_cached_tokens_count_towards_the_threshold_of_a_tier() -> None:
    prices = sheet(
        {(INPUT, 0, ""): 1_000_000, (INPUT, 100, ""): 3_000_000, (CACHED, 0, ""): 1_000_000}
    )
    usage = TokenUsage(input_tokens=101, cached_input_tokens=100)
    assert cost_nano_usd(prices, usage) == 103


def test_a_service_tier_has_its_own_rates_and_else_the_standard_ones() -> None:
    prices = sheet(
        {(INPUT, 0, ""): 1_000_000, (INPUT, 0, "flex"): 500_000, (OUTPUT, 0, ""): 1_000_000}
    )
    usage = TokenUsage(input_tokens=10, output_tokens=10, service_tier="flex")
    assert cost_nano_usd(prices, usage) == 15
    usage.service_tier = "default"
    assert cost_nano_usd(prices, usage) == 20


def test_one_token_of_a_cheap_model_costs_one_nano_usd_not_none() -> None:
    assert cost_nano_usd(flat(INPUT_TOKENS=1), TokenUsage(input_tokens=1)) == 1


def test_an_explicit_zero_stays_zero_even_where_a_request_has_a_fee() -> None:
    prices = flat(REQUESTS=5_000_000_000_000, INPUT_TOKENS=1)
    assert cost_nano_usd(prices, TokenUsage()) == 0
    assert cost_nano_usd(prices, TokenUsage(input_tokens=1)) == 5_000_001


def test_a_free_sheet_costs_nothing_whatever_its_rates() -> None:
    prices = flat(INPUT_TOKENS=1_000_000)
    prices.free = True
    assert cost_nano_usd(prices, TokenUsage(input_tokens=10)) == 0


def test_a_meter_without_a_rate_anywhere_costs_nothing() -> None:
    assert cost_nano_usd(PriceSheet(), TokenUsage(input_tokens=5, web_searches=2)) == 0


SECONDS = {
    "input_audio_ms": price_pb2.METER_INPUT_AUDIO_SECONDS,
    "output_audio_ms": price_pb2.METER_OUTPUT_AUDIO_SECONDS,
    "input_video_ms": price_pb2.METER_INPUT_VIDEO_SECONDS,
}
WHOLE = {
    "input_characters": price_pb2.METER_INPUT_CHARACTERS,
    "output_characters": price_pb2.METER_OUTPUT_CHARACTERS,
    "pages": price_pb2.METER_PAGES,
    "searches": price_pb2.METER_SEARCHES,
}
IMAGES = price_pb2.METER_IMAGES
VIDEO = price_pb2.METER_OUTPUT_VIDEO_SECONDS
SIZES, QUALITIES, MODES = ("", "small", "large"), ("", "hd"), ("", "edit")

unit_rates = st.dictionaries(
    st.tuples(
        st.sampled_from([*SECONDS.values(), *WHOLE.values(), IMAGES, VIDEO, INPUT, REQUESTS]),
        st.sampled_from(["", "batch"]),
        st.sampled_from(MODES),
        st.sampled_from(SIZES),
        st.sampled_from(QUALITIES),
    ),
    st.integers(0, 10**12),
    max_size=25,
)
some_units = st.builds(
    UnitUsage,
    images=st.lists(
        st.builds(
            ImageUsage,
            size=st.sampled_from([*SIZES, "other"]),
            quality=st.sampled_from(QUALITIES),
            count=st.integers(-1, 50),
        ),
        max_size=3,
    ),
    output_videos=st.lists(
        st.builds(
            VideoUsage,
            size=st.sampled_from(SIZES),
            quality=st.sampled_from(QUALITIES),
            duration_ms=st.integers(-1, 10**6),
        ),
        max_size=2,
    ),
    mode=st.sampled_from(MODES),
    **{name: st.integers(-5, 10**7) for name in (*SECONDS, *WHOLE)},
)


def unit_reference(
    rates: dict[tuple[int, str, str, str, str], int], units: UnitUsage, tier: str, tokens: int
) -> int:
    """What units and plain input tokens cost, in fractions: each choice made from the best down."""

    def rate(meter: int, size: str = "", quality: str = "") -> Fraction:
        for t in dict.fromkeys((tier, "")):
            for m in dict.fromkeys((units.mode, "")):
                for s in dict.fromkeys((size, "")):
                    for q in dict.fromkeys((quality, "")):
                        if (meter, t, m, s, q) in rates:
                            return Fraction(rates[meter, t, m, s, q], 10**6)
        any_rate = [nano for key, nano in rates.items() if key[0] == meter]
        fallback = max(any_rate, default=0) if meter in (IMAGES, VIDEO) else 0
        return Fraction(fallback, 10**6)

    parts = [(Fraction(tokens), rate(INPUT))]
    for name, meter in SECONDS.items():
        parts.append((Fraction(max(getattr(units, name), 0), 1000), rate(meter)))
    for name, meter in WHOLE.items():
        parts.append((Fraction(max(getattr(units, name), 0)), rate(meter)))
    parts += [(Fraction(max(i.count, 0)), rate(IMAGES, i.size, i.quality)) for i in units.images]
    parts += [
        (Fraction(max(v.duration_ms, 0), 1000), rate(VIDEO, v.size, v.quality))
        for v in units.output_videos
    ]
    used = any(count for count, _ in parts)
    return ceil(sum(count * nano for count, nano in parts) + (rate(REQUESTS) if used else 0))


@given(unit_rates, some_units, st.sampled_from(["", "batch"]), st.integers(0, 5000))
def test_what_is_not_tokens_costs_the_exact_sum_rounded_up_once(
    rates: dict[tuple[int, str, str, str, str], int], units: UnitUsage, tier: str, tokens: int
) -> None:
    prices = PriceSheet(
        rates=[
            Rate(
                meter=price_pb2.Meter.ValueType(meter),
                service_tier=t,
                mode=mode,
                size=size,
                quality=quality,
                nano_usd_per_million=nano,
            )
            for (meter, t, mode, size, quality), nano in rates.items()
        ]
    )
    usage = TokenUsage(input_tokens=tokens, service_tier=tier, units=units)
    wanted = unit_reference(rates, units, tier, tokens)
    assert cost_nano_usd(prices, usage) == wanted
    tariff = Tariff(prices)
    assert [tariff(usage), tariff(usage)] == [wanted, wanted]


def test_a_picture_of_a_size_that_no_rate_names_is_charged_at_the_dearest() -> None:
    rates = [
        Rate(meter=IMAGES, size="small", nano_usd_per_million=2_000_000),
        Rate(meter=IMAGES, size="large", quality="hd", nano_usd_per_million=9_000_000),
    ]
    for size, nano in (("small", 2), ("large", 9), ("huge", 9)):
        units = UnitUsage(images=[ImageUsage(size=size, count=1)])
        assert cost_nano_usd(PriceSheet(rates=rates), TokenUsage(units=units)) == nano


def test_half_a_second_costs_half() -> None:
    rates = [Rate(meter=SECONDS["input_audio_ms"], nano_usd_per_million=100_000 * 10**6)]
    usage = TokenUsage(units=UnitUsage(input_audio_ms=1_500))
    assert cost_nano_usd(PriceSheet(rates=rates), usage) == 150_000


def test_only_a_sheet_that_prices_input_counts_tokens() -> None:
    assert counts_tokens(flat(INPUT_TOKENS=0))
    assert counts_tokens(PriceSheet(free=True))
    assert not counts_tokens(flat(IMAGES=1))
    assert not counts_tokens(sheet({(INPUT, 0, "flex"): 1}))
