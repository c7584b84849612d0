"""Named arrays and their manifest in one file of the safetensors format.

The format is 8 bytes with the header's length, the header (JSON: for each array its dtype, shape and place), and the
arrays one after another. It is written and read here, so that the facade can save without another library, and so
that every error names the array. The `safetensors` library reads these files, too.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import jax
import numpy as np

from ..config.words import short
from .replaced import replaced
from .stored import DTYPES, bytes_of, checksum_of_text
from .text import plain_json

KINDS = {
    **{"bool": "BOOL", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"},
    **{f"{long}int{bits}": f"{short}{bits}" for long, short in (("", "I"), ("u", "U")) for bits in (8, 16, 32, 64)},
    **{"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"},
}
"""The names of dtypes in the format. Other arrays are stored as ones of these: see `_as_kind`."""
META, OURS, OURS_CHECKSUM = "__metadata__", "functional_opt", "functional_opt.checksum"


def write(path: str | os.PathLike, arrays: Mapping[str, Any], manifest: dict[str, Any], extra: Any = None) -> None:
    """Writes arrays, the manifest and `extra`, which must be plain JSON, to a file that is complete or not there.

    Raises TypeError or ValueError, with the old file as it was, for an `extra` that JSON would change, and for an
    array of which this process has only a part.
    """
    said = json.dumps({"manifest": manifest, "extra": plain_json(extra)}, allow_nan=False)
    header: dict[str, Any] = {META: {OURS: said, OURS_CHECKSUM: checksum_of_text(said)}}
    end = 0
    for name, x in arrays.items():
        if name == META:
            raise ValueError(f"no array may be called {META!r}, which safetensors files reserve; rename the param")
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            raise ValueError(
                f"this process has only a part of {name!r}; save with functional_opt.interop.orbax, where every "
                "process writes its parts"
            )
        kind, shape, size = _as_kind(x.dtype, x.shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replaced(path) as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for x in arrays.values():
            f.write(bytes_of(x).data)


def read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], Any, Any]:
    """Returns the arrays, the manifest and `extra`. Raises ValueError for a file that `write` did not complete."""
    with open(path, "rb") as f:
        try:
            return _read(f, os.fstat(f.fileno()).st_size)
        except ValueError as e:
            raise ValueError(f"{os.fspath(path)!r} is not a complete checkpoint: {e}") from e


def _read(f: BinaryIO, size: int) -> tuple[dict[str, np.ndarray], Any, Any]:
    length = int.from_bytes(f.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError(f"it has {size} bytes, fewer than its header says; it is truncated or of another kind")
    header = _parsed(f.read(length), "its header")
    meta = header.pop(META, None) if isinstance(header, dict) else None
    if not isinstance(meta, dict) or not isinstance(meta.get(OURS), str):
        raise ValueError("it has no manifest of functional_opt; another program wrote it")
    if checksum_of_text(meta[OURS]) != meta.get(OURS_CHECKSUM):
        raise ValueError("its manifest is damaged: it does not match its checksum")
    said = _parsed(meta[OURS].encode(), "its manifest")
    manifest = said.get("manifest") if isinstance(said, dict) else None
    entries = manifest.get("arrays") if isinstance(manifest, dict) else None
    if not isinstance(entries, dict):
        raise ValueError("its manifest lists no arrays")
    places = _places(header, entries, size - 8 - length)
    arrays = {}
    for name, (start, dtype, shape, nbytes) in places.items():
        f.seek(8 + length + start)
        data = np.fromfile(f, np.uint8, nbytes)
        if data.size != nbytes:
            raise ValueError(f"the array {name!r} is truncated")
        arrays[name] = data.view(dtype).reshape(shape)
    return arrays, manifest, said.get("extra")


def _places(header: dict[str, Any], entries: dict[str, Any], size: int) -> dict[str, tuple]:
    """Returns the start, dtype, shape and size of each array, as the header and the manifest say alike."""
    places, end = {}, 0
    for name in entries:
        if name not in header:
            raise ValueError(f"the array {name!r} is missing")
    for name, said in header.items():
        if name not in entries:
            raise ValueError(f"the array {name!r} is not in the manifest")
        dtype, shape = (entries[name].get(k) if isinstance(entries[name], dict) else None for k in ("dtype", "shape"))
        if not isinstance(dtype, str) or dtype not in DTYPES or not isinstance(shape, list):
            raise ValueError(f"the manifest's entry of {name!r} has no dtype and shape, got {short(entries[name])}")
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"the manifest's entry of {name!r} has the shape {short(shape)}")
        kind, stored_shape, nbytes = _as_kind(DTYPES[dtype], shape)
        expected = {"dtype": kind, "shape": stored_shape, "data_offsets": [end, end + nbytes]}
        if said != expected:
            raise ValueError(f"the array {name!r} is {short(said)} in the file, but the manifest says {expected}")
        if end + nbytes > size:
            raise ValueError(f"the array {name!r} is truncated: {size} bytes of data are left")
        places[name] = (end, DTYPES[dtype], shape, nbytes)
        end += nbytes
    if end != size:
        raise ValueError(f"it has {size - end} bytes after the last array")
    return places


def _as_kind(dtype: Any, shape: Any) -> tuple[str, list[int], int]:
    """Returns an array's dtype and shape in the file, and its bytes.

    Complex numbers become pairs of floats on a last axis, 4-bit integers and rarer 8-bit floats become bytes.
    """
    dtype, shape = np.dtype(dtype), [int(n) for n in shape]
    size = dtype.itemsize
    for n in shape:  # Python's integers do not overflow
        size *= n
    if dtype.kind == "c":
        return f"F{dtype.itemsize * 4}", [*shape, 2], size
    return KINDS.get(dtype.name, "U8"), shape, size


def _parsed(text: bytes, what: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key stands there twice")
        return found

    try:
        return json.loads(text.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{what} is not JSON: {str(e):.100}") from e
