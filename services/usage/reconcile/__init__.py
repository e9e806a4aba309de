"""Compares providers' bills with the records, and keeps what came of it."""
