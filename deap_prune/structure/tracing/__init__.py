"""Tracing: a forward pass proposes which channels are coupled; a proof accepts or refuses each coupling."""
