"""The ``onegate`` command: starts the processes and administers a running gateway from a
terminal.
"""
