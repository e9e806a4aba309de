"""Guards against change that nobody sees: what a call costs, counted and not timed."""
