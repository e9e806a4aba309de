"""Calls with an idempotency key: made once, answered as often as they come."""
