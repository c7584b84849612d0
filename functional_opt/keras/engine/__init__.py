"""Keeps variables, state and step of an optimizer, and runs compiled steps."""
