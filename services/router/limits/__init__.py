"""May this call be made now: rules, rate limits alone or shared, and waiting for a turn."""
