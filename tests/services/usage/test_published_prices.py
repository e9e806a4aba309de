"""Spot checks: prices that ship, against the figures that vendors publish.

The figures are in ``published.py``, each with its source. A row that fails after an update of the
price source is a question for a person: either the vendor changed its price, and the row is to be
renewed from the page, or the source is wrong.
"""

from datetime import UTC, datetime
from decimal import Decimal
from urllib.parse import urlsplit

import pytest

from onegate.usage.v1 import price_pb2
from services.usage.prices import seed
from tests.services.usage.published import DOCUMENT, PUBLISHED, Published, document

CATALOGUE = seed.catalogue()

METERS = (
    price_pb2.METER_INPUT_TOKENS,
    price_pb2.METER_CACHED_INPUT_TOKENS,
    price_pb2.METER_OUTPUT_TOKENS,
    price_pb2.METER_CACHE_WRITE_TOKENS,
    price_pb2.METER_CACHE_WRITE_1H_TOKENS,
)


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda row: row.model)
def test_what_ships_is_what_the_vendor_publishes(published: Published) -> None:
    kind, _, name = published.model.partition("/")
    on = published.on
    sheet = CATALOGUE.price_for(kind, name, datetime(on.year, on.month, on.day, 12, tzinfo=UTC))
    assert sheet is not None
    base = {
        rate.meter: Decimal(rate.nano_usd_per_million) / 10**9
        for rate in sheet.rates
        if not rate.above_input_tokens and not rate.service_tier
    }
    told = {
        meter: Decimal(figure)
        for meter, figure in zip(METERS, published.usd.split(), strict=False)
        if figure != "-"
    }
    assert {meter: base.get(meter) for meter in told} == told


def test_fifty_prices_of_fourteen_vendors_are_checked_and_each_says_where_it_is_from() -> None:
    assert len({row.model for row in PUBLISHED}) == len(PUBLISHED) >= 50
    assert len({row.model.partition("/")[0] for row in PUBLISHED}) >= 14
    for row in PUBLISHED:
        for url in filter(None, (row.page, row.quoted)):
            assert urlsplit(url).scheme == "https"


def test_the_document_says_the_same() -> None:
    assert DOCUMENT.read_text("utf-8") == document(), "run python -m tests.services.usage.published"
