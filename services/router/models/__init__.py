"""Which models exist here, and who may see them."""
