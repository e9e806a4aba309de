"""Money and counts: what models cost, what was used, and the sums over it.

A leaf: it calls nobody. Routers post finished attempts here and keep a pushed copy of the prices.
"""
