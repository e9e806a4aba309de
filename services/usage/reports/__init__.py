"""Reports over what was used, and the cubes that make them quick."""
