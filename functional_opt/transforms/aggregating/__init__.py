"""Aggregation of gradients over devices and over examples."""
