"""The one way out: connections to providers, and what may be sent over them."""
