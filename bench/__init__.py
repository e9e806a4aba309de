"""Benchmarks: the gateway against a direct call and against its peers, all in one run on one
machine.
"""
