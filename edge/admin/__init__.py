"""Administration over HTTP, as OpenAI's SDKs speak it: a table of routes to auth's methods.

Every module but ``endpoints.py`` is pure: JSON to message and message to JSON. The edge decides
nothing: the caller's own key goes along, and auth says what it may do.
"""
