"""Tests of the provider modules."""
