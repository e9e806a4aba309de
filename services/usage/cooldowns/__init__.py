"""Providers that asked one router for quiet: passed on to all routers, kept for as long as it
holds.
"""
