"""The tables of invoices: documents, and what each of them bills of which period.

Rows are only ever inserted.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    exists,
)
from sqlalchemy.schema import CreateIndex, CreateTable

from runtime.sql import Migration, NanoUsd

_METADATA = MetaData()

INVOICES = Table(
    "invoices",
    _METADATA,
    Column("issuer", String(32), primary_key=True),
    Column("kind", Integer, primary_key=True, autoincrement=False),
    # From 1, without gaps.
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("number", String(64), nullable=False),
    Column("organization_id", String(256), nullable=False),
    Column("project_id", String(256), nullable=False),
    Column("customer", Text, nullable=False),
    Column("from_us", BigInteger, nullable=False),
    Column("before_us", BigInteger, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("total_minor", BigInteger, nullable=False),
    Column("usage_nano_usd", NanoUsd, nullable=False),
    # Of a credit note: the invoice that it corrects, and whether in whole.
    Column("credits_number", String(64), nullable=False),
    Column("whole", Boolean, nullable=False),
    Column("issued_at_us", BigInteger, nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("request_digest", LargeBinary(32), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("document", LargeBinary, nullable=False),
    UniqueConstraint("issuer", "number"),
    UniqueConstraint("issuer", "request_id"),
)

SHARES = Table(
    "invoice_shares",
    _METADATA,
    Column("issuer", String(32), primary_key=True),
    Column("number", String(64), primary_key=True),
    # Whose period the usage belongs to: the invoice itself, or an earlier one.
    Column("of_issuer", String(32), primary_key=True),
    Column("of_number", String(64), primary_key=True),
    Column("amount_nano_usd", NanoUsd, nullable=False),
    # The part of the amount that agreements cover, and what is charged beyond the amount.
    Column("covered_nano_usd", BigInteger, nullable=False),
    Column("margin_nano_usd", BigInteger, nullable=False),
)

_ADDED: Final = ("covered_nano_usd", "margin_nano_usd")
"""Columns of shares that the second migration added."""

_FIRST_SHARES: Final = Table(
    SHARES.name,
    MetaData(),
    *(
        Column(column.name, column.type, primary_key=column.primary_key, nullable=False)
        for column in SHARES.columns
        if column.name not in _ADDED
    ),
)

_I, _S = INVOICES.c, SHARES.c
_INDEXES: Final = (
    Index("invoices_by_organization", _I.organization_id, _I.before_us),
    Index("invoices_by_time", _I.issued_at_us),
    Index("invoices_by_credit", _I.issuer, _I.credits_number),
    Index("invoice_shares_of", _S.of_issuer, _S.of_number),
)

MIGRATIONS: Final = (
    Migration(
        version=1,
        statements=(*map(CreateTable, (INVOICES, _FIRST_SHARES)), *map(CreateIndex, _INDEXES)),
    ),
    Migration(
        version=2,
        statements=tuple(
            f"ALTER TABLE invoice_shares ADD COLUMN {name} BIGINT NOT NULL DEFAULT 0"
            for name in _ADDED
        ),
    ),
)

_NOTES = INVOICES.alias("notes")
WHOLE: Final = exists().where(
    _NOTES.c.issuer == _I.issuer, _NOTES.c.credits_number == _I.number, _NOTES.c.whole
)
"""Whether an invoice was credited in whole."""
