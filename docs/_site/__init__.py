"""Builds the documentation: `python -m docs._site` writes it into out/docs."""
