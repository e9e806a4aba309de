"""Auth's administrative methods, a module for each family of objects."""
