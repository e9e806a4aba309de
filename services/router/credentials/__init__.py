"""Providers as they are configured or kept, and the credentials that calls go out with."""
