"""JSON that people attach to a checkpoint."""

import json
from typing import Any

from ..config.words import short


def plain_json(extra: Any) -> Any:
    """Returns `extra` if JSON keeps it as it is. Raises TypeError or ValueError if not.

    >>> plain_json({"epoch": 3, "losses": [0.5, None]})
    {'epoch': 3, 'losses': [0.5, None]}
    >>> plain_json((1, 2))
    Traceback (most recent call last):
    ValueError: extra must be what JSON gives back: no tuples, and strings as keys; got (1, 2)
    """
    try:
        same = json.loads(json.dumps(extra, allow_nan=False)) == extra
    except (TypeError, ValueError, RecursionError) as e:
        raise (TypeError if isinstance(e, TypeError) else ValueError)(f"extra must be plain JSON: {e}") from e
    if not same:
        raise ValueError(f"extra must be what JSON gives back: no tuples, and strings as keys; got {short(extra)}")
    return extra
