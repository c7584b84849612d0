"""Mutants: small mistakes put into the library on purpose, each of which a test must notice."""
