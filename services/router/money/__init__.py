"""What a call may cost and did cost: prices, holds, the journal, and the way to usage."""
