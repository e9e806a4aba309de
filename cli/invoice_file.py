"""Who sends invoices, who pays them, and what is the same on all of them: a TOML file."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.markup import escape

from cli.context import fail
from onegate.usage.v1.invoice_pb2 import InvoiceParty, InvoiceScope, InvoiceTerms

FILE_BYTES_MAX: Final = 1024 * 1024

_PARTY: Final = {"name": str, "address": list, "tax_id": str, "email": str}
_SELLER: Final = {**_PARTY, "payment": list}
_BUYER: Final = {**_PARTY, "organization": str, "project": str, "customer": str}
_TERMS: Final = {
    "issuer": str,
    "number_prefix": str,
    "credit_prefix": str,
    "currency": str,
    "margin_percent": str,
    "tax_name": str,
    "tax_percent": str,
    "due_days": int,
    "notes": list,
}
"""What may be said, and of which type. Percents are text: a binary fraction is no decimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceFile:
    """What the file says."""

    seller: InvoiceParty
    buyers: tuple[Mapping[str, Any], ...]
    terms: Mapping[str, Any]

    def usual(self, scope: InvoiceScope) -> InvoiceTerms:
        """The terms of an invoice about a scope, as far as the file says them. Ends the command
        when it does not say who pays.
        """
        fitting = [buyer for buyer in self.buyers if _fits(buyer, scope)]
        if not fitting:
            fail(escape("The file of invoices has no [[buyer]] for this: add one."))
        # Who is named by more of the three pays; the first of equals.
        buyer = max(fitting, key=lambda one: sum(bool(one.get(name)) for name, _ in _NAMES))
        made = InvoiceTerms(scope=scope, seller=self.seller, buyer=_party(buyer))
        for name, value in self.terms.items():
            if name == "notes":
                made.notes.extend(value)
            elif name != "credit_prefix":
                setattr(made, name, value)
        return made


_NAMES: Final = (
    ("organization", "organization_id"),
    ("project", "project_id"),
    ("customer", "customer"),
)


def read(path: Path) -> InvoiceFile:
    """The file. Ends the command, with one line, when it cannot be used."""
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
        if len(raw) > FILE_BYTES_MAX:
            fail(escape(f"{path} is larger than {FILE_BYTES_MAX} bytes."))
        found = tomllib.loads(raw.decode())
    except (OSError, ValueError) as error:
        fail(escape(f"{path} cannot be read: {error}"))
    for name in found.keys() - {"seller", "buyer", "invoice"}:
        fail(escape(f"{path}: {name} is not known; there are [seller], [[buyer]] and [invoice]."))
    seller, terms, buyers = found.get("seller"), found.get("invoice", {}), found.get("buyer", [])
    if not isinstance(seller, dict) or not isinstance(terms, dict) or not isinstance(buyers, list):
        fail(escape(f"{path}: write [seller], [invoice] and [[buyer]] tables; [seller] is needed."))
    _check(path, "[seller]", seller, _SELLER)
    _check(path, "[invoice]", terms, _TERMS)
    for buyer in buyers:
        _check(path, "[[buyer]]", buyer, _BUYER)
    return InvoiceFile(seller=_party(seller), buyers=tuple(buyers), terms=terms)


def _check(path: Path, where: str, table: Any, known: Mapping[str, type]) -> None:
    if not isinstance(table, dict):
        fail(escape(f"{path}: {where} must be a table."))
    for name, value in table.items():
        if name not in known:
            fail(escape(f"{path}: {where} has no {name}; it may have {', '.join(known)}."))
        kind = known[name]
        lines = kind is list and isinstance(value, list)
        if not (lines and all(isinstance(one, str) for one in value)) and (
            kind is list or type(value) is not kind
        ):
            words = {str: "text in quotes", list: "a list of texts", int: "a whole number"}
            fail(escape(f"{path}: {name} in {where} must be {words[kind]}."))


def _party(table: Mapping[str, Any]) -> InvoiceParty:
    names = ("name", "address", "tax_id", "email", "payment")
    made = InvoiceParty()
    for name in names:
        if name in ("address", "payment"):
            getattr(made, name).extend(table.get(name, []))
        else:
            setattr(made, name, table.get(name, ""))
    return made


def _fits(buyer: Mapping[str, Any], scope: InvoiceScope) -> bool:
    return all(buyer.get(name, "") in ("", getattr(scope, field)) for name, field in _NAMES)
