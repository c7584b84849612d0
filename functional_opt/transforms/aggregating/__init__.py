"""Aggregation over space: devices and examples."""
