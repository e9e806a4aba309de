"""Columns that mean the same in every database."""

from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import BigInteger, Integer, TypeDecorator
from sqlalchemy.engine.interfaces import Dialect

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_INT64_MAX: Final = 2**63 - 1


def unix_micros(moment: datetime) -> int:
    """Whole microseconds since 1970 UTC, exactly. Raises ``ValueError`` for a naive time."""
    if moment.tzinfo is None:
        raise ValueError("A stored time needs its time zone.")
    return (moment - _EPOCH) // _MICROSECOND


class Timestamp(TypeDecorator[datetime]):
    """A moment, kept as whole microseconds since 1970 UTC: exact, ordered, the same everywhere."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """A time with its zone becomes a number."""
        del dialect
        return None if value is None else unix_micros(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """A number becomes a time in UTC."""
        del dialect
        return None if value is None else _EPOCH + value * _MICROSECOND


class NanoUsd(TypeDecorator[int]):
    """Money as a whole number of nano-USD. A float is refused rather than rounded."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:
        """Raises ``TypeError`` for what is not an int, ``ValueError`` beyond 64 bits."""
        del dialect
        if value is None:
            return None
        if type(value) is not int:
            raise TypeError("Money is a whole number of nano-USD, never a float.")
        if abs(value) > _INT64_MAX:
            raise ValueError("This amount of nano-USD does not fit into 64 bits.")
        return value


RowNumber = BigInteger().with_variant(Integer(), "sqlite")
"""A 64-bit number that the database counts up itself; SQLite does so for INTEGER keys only."""
