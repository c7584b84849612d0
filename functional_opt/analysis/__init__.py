"""Questions about a chain: what it costs, where each leaf goes, what looks wrong."""
