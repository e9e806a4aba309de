"""What any process of the gateway needs, whichever service it runs: configuration, transport,
errors, clock.

Nothing here knows a provider, a policy or a price; services import this room, never the other way
round.
"""
