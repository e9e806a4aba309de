"""From the name a caller writes to an ordered plan of deployments, with reasons."""
