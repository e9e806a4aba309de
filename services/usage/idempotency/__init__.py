"""Answers to calls with an idempotency key, kept sealed for their window."""
