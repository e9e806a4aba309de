"""How long usage is kept, and in which parts of a table."""
