"""Identity: who a key is and what it may do, and the log that tells everybody when that changes.

Auth calls no other service. Routers and edges cache its answers and are told of every change.
"""
