"""Reads and writes prices in the format of ``genai-prices``' own data file. Pure.

The format is the package's (https://github.com/pydantic/genai-prices, ``prices/new_data/v2``): an
array of providers, each with its models, how their names are matched, and their prices. What is
written here is the part of it that a price needs, with decimals as text, so that none is rounded.
The package has a reader of its own, which no public name leads to; this one refuses what it does
not know instead of passing it by: a condition that is not understood would be a wrong price.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, time
from decimal import Decimal, InvalidOperation
from typing import Any, Final, TypeAlias, assert_never

from genai_prices import types

Constraint: TypeAlias = types.StartDateConstraint | types.TimeOfDateConstraint

_DEPTH_MAX: Final = 20
_TEXTS: Final[Mapping[str, type[Any]]] = {
    "starts_with": types.ClauseStartsWith,
    "ends_with": types.ClauseEndsWith,
    "contains": types.ClauseContains,
    "equals": types.ClauseEquals,
}


def providers_of(document: object) -> list[types.Provider]:
    """The providers of a file, parsed with ``parse_float=Decimal``.

    Raises ``ValueError`` for what is no such file, and says where.
    """
    return [_provider(_object(row, "a provider")) for row in _list(document, "the file")]


def document_of(providers: Iterable[types.Provider]) -> list[dict[str, Any]]:
    """The same providers as :func:`providers_of` would read them."""
    return [
        _told(
            id=provider.id,
            name=provider.name,
            fallback_model_providers=provider.fallback_model_providers,
            models=[_model_row(model) for model in provider.models],
        )
        for provider in providers
    ]


def _provider(row: Mapping[str, Any]) -> types.Provider:
    name = _text(row.get("id"), "a provider's id")
    lenders = row.get("fallback_model_providers")
    return types.Provider(
        id=name,
        name=str(row.get("name") or name),
        api_pattern="",
        fallback_model_providers=None if lenders is None else [str(one) for one in lenders],
        models=[
            _model(_object(model, f"a model of {name}"), name)
            for model in _list(row.get("models"), f"the models of {name}")
        ],
    )


def _model(row: Mapping[str, Any], provider: str) -> types.ModelInfo:
    name = _text(row.get("id"), f"the id of a model of {provider}")
    where = f"{provider}/{name}"
    prices = row.get("prices")
    variants = row.get("price_variants") or ()
    return types.ModelInfo(
        id=name,
        match=_clause(row.get("match"), where, _DEPTH_MAX),
        name=None if row.get("name") is None else str(row["name"]),
        context_window=_count(row.get("context_window"), where),
        deprecated=bool(row.get("deprecated")),
        prices=[_conditional(_object(one, where), where) for one in prices]
        if isinstance(prices, list)
        else _prices(prices, where),
        price_variants=[_variant(_object(one, where), where) for one in variants] or None,
    )


def _conditional(row: Mapping[str, Any], where: str) -> types.ConditionalPrice:
    return types.ConditionalPrice(
        constraint=_constraint(row.get("constraint"), where),
        prices=_prices(row.get("prices"), where),
    )


def _variant(row: Mapping[str, Any], where: str) -> types.PriceVariant:
    return types.PriceVariant(
        when=dict(_object(row.get("when"), where)),
        prices=_prices(row.get("prices"), where),
        constraint=_constraint(row.get("constraint"), where),
    )


def _constraint(row: object, where: str) -> Constraint | None:
    if row is None:
        return None
    fields = {k: v for k, v in _object(row, where).items() if k != "type"}
    try:
        if fields.keys() == {"start_date"}:
            return types.StartDateConstraint(start_date=date.fromisoformat(fields["start_date"]))
        if fields.keys() == {"start_time", "end_time"}:
            return types.TimeOfDateConstraint(
                start_time=time.fromisoformat(fields["start_time"]),
                end_time=time.fromisoformat(fields["end_time"]),
            )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} has a condition that is no date or time: {error}") from None
    raise ValueError(f"{where} has a condition that is not known here: {sorted(fields)}")


def _prices(row: object, where: str) -> types.ModelPrice:
    prices = types.ModelPrice()
    for key, value in _object(row, where).items():
        if value is not None:
            setattr(prices, key, _price(value, f"{where}: {key}"))
    return prices


def _price(value: object, where: str) -> Decimal | types.TieredPrices:
    if not isinstance(value, Mapping):
        return _decimal(value, where)
    return types.TieredPrices(
        base=_decimal(value.get("base"), where),
        tiers=[
            types.Tier(
                start=_count(_object(tier, where).get("start"), where) or 0,
                price=_decimal(tier.get("price"), where),
            )
            for tier in _list(value.get("tiers"), where)
        ],
    )


def _decimal(value: object, where: str) -> Decimal:
    """An amount of USD, not below zero. A float has been rounded already, so it is refused."""
    if isinstance(value, str | int | Decimal) and not isinstance(value, bool):
        try:
            amount = Decimal(value)
        except InvalidOperation:
            amount = Decimal("NaN")
        if amount.is_finite() and amount >= 0:
            return amount
    raise ValueError(f"{where} is no amount of USD: {value!r}")


def _clause(row: object, where: str, depth: int) -> Any:
    """How a name is matched."""
    fields = _object(row, f"the match of {where}")
    if len(fields) != 1 or not depth:
        raise ValueError(f"{where} has a match that is not known here: {sorted(fields)}")
    ((key, value),) = fields.items()
    if key in ("or", "and"):
        clauses = [_clause(one, where, depth - 1) for one in _list(value, f"the match of {where}")]
        return types.ClauseOr(or_=clauses) if key == "or" else types.ClauseAnd(and_=clauses)
    text = _text(value, f"the match of {where}")
    if key in _TEXTS:
        return _TEXTS[key](text)
    if key == "regex":
        try:
            re.compile(text)
        except re.error as error:
            raise ValueError(f"{where} has a pattern that is none: {error}") from None
        return types.ClauseRegex(text)
    raise ValueError(f"{where} has a match that is not known here: {key}")


def _model_row(model: types.ModelInfo) -> dict[str, Any]:
    prices = model.prices
    return _told(
        id=model.id,
        match=_clause_row(model.match),
        name=model.name,
        context_window=model.context_window,
        deprecated=model.deprecated or None,
        prices=_prices_row(prices)
        if isinstance(prices, types.ModelPrice)
        else [
            _told(constraint=_constraint_row(one.constraint), prices=_prices_row(one.prices))
            for one in prices
        ],
        price_variants=[
            _told(
                when=one.when,
                prices=_prices_row(one.prices),
                constraint=_constraint_row(one.constraint),
            )
            for one in model.price_variants or ()
        ]
        or None,
    )


def _prices_row(prices: types.ModelPrice) -> dict[str, Any]:
    return {
        key: {
            "base": str(price.base),
            "tiers": [{"start": tier.start, "price": str(tier.price)} for tier in price.tiers],
        }
        if isinstance(price, types.TieredPrices)
        else str(price)
        for key, price in vars(prices).items()
        if price is not None
    }


def _constraint_row(constraint: Constraint | None) -> dict[str, str] | None:
    match constraint:
        case types.StartDateConstraint(start_date=day):
            return {"start_date": day.isoformat()}
        case types.TimeOfDateConstraint(start_time=start, end_time=end):
            return {"start_time": start.isoformat(), "end_time": end.isoformat()}
        case None:
            return None
        case _:
            assert_never(constraint)


def _clause_row(clause: Any) -> dict[str, Any]:
    match clause:
        case types.ClauseOr(or_=clauses):
            return {"or": [_clause_row(one) for one in clauses]}
        case types.ClauseAnd(and_=clauses):
            return {"and": [_clause_row(one) for one in clauses]}
        case _:
            return dict(vars(clause))


def _told(**fields: Any) -> dict[str, Any]:
    """The fields that have a value."""
    return {key: value for key, value in fields.items() if value is not None}


def _object(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is no object")  # noqa: TRY004 - the file is wrong
    return value


def _list(value: object, where: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{where} is no list")  # noqa: TRY004 - the file is wrong
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where} is no text")
    return value


def _count(value: object, where: str) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{where} has a count that is none: {value!r}")
    return value
