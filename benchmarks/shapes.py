"""Trees of params that the benchmarks update."""

Shapes = dict[str, tuple[int, ...]]


def transformer(layers: int = 12, width: int = 32, words: int = 1024, places: int = 128) -> Shapes:
    """Returns the shapes of a small transformer's weights, by path."""
    norm = {"scale": (width,), "offset": (width,)}
    block = {
        **{f"attention/{name}": (width, width) for name in ("query", "key", "value", "output")},
        **{"mlp/up/kernel": (width, 4 * width), "mlp/up/bias": (4 * width,)},
        **{"mlp/down/kernel": (4 * width, width), "mlp/down/bias": (width,)},
        **{f"{place}/{name}": shape for place in ("norm_1", "norm_2") for name, shape in norm.items()},
    }
    return {
        "embedding/words": (words, width),
        "embedding/places": (places, width),
        **{f"layer_{i}/{name}": shape for i in range(layers) for name, shape in block.items()},
        **{f"norm/{name}": shape for name, shape in norm.items()},
    }
