"""The tables of billing: agreements, what they made of calls, credits, and what was drawn on them.

Rows are only ever inserted, except that a credit is marked when it is revoked.
"""

from typing import Final

from sqlalchemy import BigInteger, Column, Index, LargeBinary, MetaData, String, Table, Text
from sqlalchemy.schema import CreateIndex, CreateTable

from runtime.sql import Migration, NanoUsd, RowNumber

_METADATA = MetaData()


def _payer() -> tuple[Column[str], Column[str], Column[str]]:
    return (
        Column("organization_id", String(256), nullable=False),
        Column("project_id", String(256), nullable=False),
        Column("customer", Text, nullable=False),
    )


AGREEMENTS = Table(
    "billing_agreements",
    _METADATA,
    # Grows in the order of commits; the greatest is the revision of the whole book.
    Column("number", RowNumber, primary_key=True),
    Column("organization_id", String(256), nullable=False),
    # As the contract has it, without its id.
    Column("agreement", LargeBinary, nullable=False),
)

CHARGES = Table(
    "usage_charges",
    _METADATA,
    # Names it for ever: `<attempt>` for what its record was charged, `<attempt>/<n>` for what
    # changed later.
    Column("id", Text, primary_key=True),
    Column("attempt_id", String(36), nullable=False),
    *_payer(),
    Column("started_at_us", BigInteger, nullable=False),
    # The cost that an agreement covers, and what is charged beyond it; both may be below zero.
    Column("cost_nano_usd", BigInteger, nullable=False),
    Column("margin_nano_usd", BigInteger, nullable=False),
    Column("agreement_id", Text, nullable=False),
    Column("recorded_at_us", BigInteger, nullable=False),
)
"""What agreements made of attempts. An attempt without a row is charged what it costs."""

CREDITS = Table(
    "billing_credits",
    _METADATA,
    Column("number", RowNumber, primary_key=True),
    *_payer(),
    Column("description", Text, nullable=False),
    Column("amount_nano_usd", NanoUsd, nullable=False),
    Column("expires_at_us", BigInteger, nullable=True),
    Column("granted_at_us", BigInteger, nullable=False),
    Column("request_id", String(64), nullable=False, unique=True),
    Column("revoked_at_us", BigInteger, nullable=True),
)

DRAWS = Table(
    "billing_draws",
    _METADATA,
    Column("credit_number", BigInteger, primary_key=True, autoincrement=False),
    # The invoice that drew; of a credit note, which gives back, its own number.
    Column("issuer", String(32), primary_key=True),
    Column("invoice_number", String(64), primary_key=True),
    Column("amount_nano_usd", NanoUsd, nullable=False),
    Column("drawn_at_us", BigInteger, nullable=False),
)

_INDEXES: Final = (
    Index("usage_charges_by_payer", CHARGES.c.organization_id, CHARGES.c.started_at_us),
    Index("usage_charges_by_attempt", CHARGES.c.attempt_id),
    Index("billing_credits_by_payer", CREDITS.c.organization_id),
    Index("billing_draws_by_invoice", DRAWS.c.issuer, DRAWS.c.invoice_number),
)

MIGRATIONS: Final = (
    Migration(
        version=1,
        statements=(
            *map(CreateTable, (AGREEMENTS, CHARGES, CREDITS, DRAWS)),
            *map(CreateIndex, _INDEXES),
        ),
    ),
)
