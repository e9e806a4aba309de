"""Budgets over gRPC, the check of the ledger, and the loop that keeps both in order."""

# ruff: noqa: N802 - methods are named as the contract names them

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final, TypeAlias

import grpc

from onegate.common.v1.access_pass_pb2 import AccessPass
from onegate.usage.v1 import budget_service_pb2 as pb
from onegate.usage.v1 import (
    budget_service_pb2_grpc,
    ledger_service_pb2,
    ledger_service_pb2_grpc,
)
from onegate.usage.v1.budget_pb2 import BUDGET_SCOPE_PROJECT, Budget, BudgetFilter
from runtime.clock import Clock, Entropy, uuid7
from runtime.passes import Gate, check_covers
from runtime.rpc import require_operator
from runtime.secrets import Secret
from services.usage.ledger.budget_board import BudgetBoard
from services.usage.ledger.budget_store import BudgetStore
from services.usage.ledger.budgets import checked, wanted
from services.usage.ledger.check_store import LedgerCheck
from services.usage.reports import queries

_LOG = logging.getLogger(__name__)
_FAULTS_LOGGED: Final = 10

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class BudgetService(budget_service_pb2_grpc.BudgetServiceServicer):
    """Lets operators say who may spend how much, and routers know."""

    def __init__(
        self, store: BudgetStore, board: BudgetBoard, gate: Gate, ids: "BudgetIds"
    ) -> None:
        self._store = store
        self._board = board
        self._gate = gate
        self._ids = ids

    async def SetBudget(
        self, request: pb.SetBudgetRequest, context: Context
    ) -> pb.SetBudgetResponse:
        """Keeps a budget; the answer means that this process's watchers are being told."""
        access = self._gate.admit(context, writes=True)
        check_covers(access, request.budget.organization_id, _project_of(request.budget))
        budget = await self._store.put(checked(request.budget), self._ids.new())
        await self._refresh()
        return pb.SetBudgetResponse(budget=budget)

    async def ListBudgets(
        self, request: pb.ListBudgetsRequest, context: Context
    ) -> pb.ListBudgetsResponse:
        """A page of budgets, by id."""
        _check_filter(self._gate.admit(context), request.filter)
        count = queries.page_size_of(request.page_size)
        chosen = _text(request.filter)
        after = queries.place_of(request.page_token, chosen) or ""
        await self._refresh()
        budgets = self._board.book.budgets.values()
        found = sorted(
            (b for b in budgets if b.id > after and wanted(b, request.filter)), key=lambda b: b.id
        )
        page = found[:count]
        token = queries.token_of(page[-1].id, chosen) if len(found) > count else ""
        return pb.ListBudgetsResponse(budgets=page, next_page_token=token)

    async def DeleteBudget(
        self, request: pb.DeleteBudgetRequest, context: Context
    ) -> pb.DeleteBudgetResponse:
        """Ends a budget."""
        access = self._gate.admit(context, writes=True)
        if access is not None:
            await self._refresh()
            known = self._board.book.budgets.get(request.budget_id) or Budget()
            check_covers(access, known.organization_id, _project_of(known))
        budget = await self._store.end(request.budget_id, request.organization_id)
        await self._refresh()
        return pb.DeleteBudgetResponse(budget=budget)

    async def ListBalances(
        self, request: pb.ListBalancesRequest, context: Context
    ) -> pb.ListBalancesResponse:
        """A page of balances, by account."""
        _check_filter(self._gate.admit(context), request.filter)
        count = queries.page_size_of(request.page_size)
        chosen = f"{_text(request.filter)} {request.subject}"
        after = queries.place_of(request.page_token, chosen) or ""
        found = await self._store.balances(request.filter, request.subject, after, count + 1)
        page = found[:count]
        token = queries.token_of(page[-1][0], chosen) if len(found) > count else ""
        return pb.ListBalancesResponse(
            balances=[balance for _, balance in page], next_page_token=token
        )

    async def WatchBudgets(
        self, request: pb.WatchBudgetsRequest, _context: Context
    ) -> AsyncGenerator[pb.WatchBudgetsResponse, None]:
        """The budgets that need holds, then every change."""
        _LOG.info("%r watches budgets", request.watcher[:64])
        async with aclosing(self._board.watch()) as news:
            async for response in news:
                yield response

    async def _refresh(self) -> None:
        self._board.show(await self._store.load(self._board.book))


def _project_of(budget: Budget) -> str:
    """The project that a budget is about; empty for one of the whole organisation."""
    return budget.subject if budget.scope == BUDGET_SCOPE_PROJECT else budget.project_id


def _check_filter(access: AccessPass | None, chosen: BudgetFilter) -> None:
    """Raises SCOPE_MISSING when a pass does not cover all that is asked for."""
    about = chosen.subject if chosen.scope == BUDGET_SCOPE_PROJECT else chosen.project_id
    check_covers(access, chosen.organization_id, about)


class BudgetIds:
    """Makes ids of budgets, which grow with time."""

    def __init__(self, clock: Clock, entropy: Entropy) -> None:
        self._clock = clock
        self._entropy = entropy

    def new(self) -> str:
        """An id that nobody had before."""
        unix_ms = int(self._clock.now().timestamp() * 1000)
        return f"bud_{uuid7(unix_ms, self._entropy).replace('-', '')}"


class LedgerService(ledger_service_pb2_grpc.LedgerServiceServicer):
    """Checks the ledger."""

    def __init__(self, check: LedgerCheck, operator_token: Secret) -> None:
        self._check = check
        self._operator_token = operator_token
        self._busy = asyncio.Lock()

    async def VerifyLedger(
        self, request: ledger_service_pb2.VerifyLedgerRequest, context: Context
    ) -> ledger_service_pb2.VerifyLedgerResponse:
        """Compares everything; one at a time."""
        require_operator(context, self._operator_token.reveal())
        async with self._busy:
            found = await self._check.verify()
            alarm(found)
            if request.rebuild and found.faults:
                found.rebuilt = await self._check.rebuild()
                _LOG.warning("the balances of %d accounts were put right", found.rebuilt)
        return found


def alarm(found: ledger_service_pb2.VerifyLedgerResponse) -> None:
    """Says loudly what does not fit."""
    for fault in found.faults[:_FAULTS_LOGGED]:
        _LOG.critical(
            "the ledger does not fit: %s of %s is kept as %d and adds up to %d nano-USD",
            fault.what,
            fault.subject,
            fault.kept_nano_usd,
            fault.rebuilt_nano_usd,
        )


def _text(chosen: BudgetFilter) -> str:
    return chosen.SerializeToString(deterministic=True).hex()
