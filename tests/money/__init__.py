"""The proofs about money: models, histories, kills."""
