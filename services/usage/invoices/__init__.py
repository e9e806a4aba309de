"""Invoices: exact sums, frozen documents, and their pages."""
