"""The ledger: budgets, accounts, holds, and transactions that sum to zero."""
