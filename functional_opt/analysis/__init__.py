"""Answers questions about a chain: what it costs, where each leaf goes, and what looks wrong."""
