"""What payers are charged: agreements, credits, and prices worked out anew."""
