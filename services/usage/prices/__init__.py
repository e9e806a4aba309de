"""What models cost and what they can do: shipped, and set by operators."""
