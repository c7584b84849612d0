"""Checkpoints in one file: other programs read them, a kill leaves a complete one, and damage is refused."""

import json
import os
import pathlib
import random
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo
from functional_opt.checkpoint.replaced import replaced
from functional_opt.interop.safetensors import load, save

from ..helpers import make_params, structs
from ..interop.helpers import advance
from .test_arrays import assert_same_bits

KILLS = int(os.environ.get("FUNCTIONAL_OPT_KILLS", "20"))
DAMAGED = int(os.environ.get("FUNCTIONAL_OPT_DAMAGED_FILES", "500"))


def trained():
    tx, params = fo.adamw(fo.linear_schedule(0.1, 0.0, 10)), make_params()
    return tx, *advance(tx, params, tx.init(params), range(2))


def test_round_trip(tmp_path):
    tx, params, state = trained()
    path = tmp_path / "run.safetensors"
    save(path, tx, params, state, extra={"epoch": 3, "losses": [0.5, None]})
    same, *both, extra = load(path)
    assert same == tx and extra == {"epoch": 3, "losses": [0.5, None]}
    assert_same_bits(both, [params, state])
    assert [x.name for x in tmp_path.iterdir()] == [path.name]
    assert_same_bits(load(path, tx, structs(params))[1:3], (params, state))
    save(str(path), tx, params, state)
    assert load(str(path))[-1] is None


def test_kinds_of_arrays(tmp_path):
    names = "bool int8 uint16 int4 float16 bfloat16 float8_e4m3fn float8_e4m3b11fnuz complex64".split()
    params = {name: jnp.arange(4).astype(name) for name in names}
    params |= {"scalar": jnp.asarray(1 + 2j), "empty": jnp.ones((0, 3), "complex64"), "key": jax.random.key(1)}
    save(tmp_path / "a", fo.chain(), params, ())
    assert_same_bits(load(tmp_path / "a")[1], params)


def test_other_programs_read_it(tmp_path):
    """The safetensors library, the arrays and the metadata."""
    library = pytest.importorskip("safetensors.flax")
    tx, params, state = trained()
    save(path := tmp_path / "a", tx, params, state)
    read = library.load_file(path)
    arrays, _ = fo.to_arrays(tx, params, state)
    assert_same_bits(read, dict(arrays))
    with pytest.importorskip("safetensors").safe_open(path, "np") as f:
        said = json.loads(f.metadata()["functional_opt"])
    assert said["manifest"]["arrays"]["scale#nu"]["path"] == "scale"


def test_files_of_others_are_refused(tmp_path):
    library = pytest.importorskip("safetensors.flax")
    library.save_file({"w": jnp.ones(2)}, path := tmp_path / "a")
    with pytest.raises(ValueError, match="no manifest of functional_opt; another program wrote it"):
        load(path)
    for data in (b"", b"abc", b"\x80\x04K\x01.", os.urandom(300), b"\0" * 100):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is not a complete checkpoint"):
            load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")


@pytest.mark.parametrize(
    "extra", [(1, 2), {1: 2}, float("nan"), {"x": object()}, {"x": [np.float32(1)]}, {"x": b"bytes"}]
)
def test_extra_that_json_would_change(tmp_path, extra):
    tx, params, state = trained()
    save(path := tmp_path / "a", tx, params, state, extra=1)
    with pytest.raises((TypeError, ValueError), match="extra must be"):
        save(path, tx, params, state, extra=extra)
    assert load(path)[-1] == 1 and os.listdir(tmp_path) == ["a"]


def test_an_error_leaves_the_old_file(tmp_path):
    (path := tmp_path / "a").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replaced(path) as f:
        f.write(b"new")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]
    (tmp_path / "link").symlink_to(path)
    with replaced(tmp_path / "link") as f:
        f.write(b"new")
    assert path.read_bytes() == b"new" and (tmp_path / "link").is_symlink()
    with replaced(path) as f, pytest.raises(BlockingIOError, match="another process"), replaced(path):
        pass
    with pytest.raises(ValueError, match="no array may be called '__metadata__'"):
        save(path, fo.chain(), {"__metadata__": jnp.ones(1)}, ())


SAVER = """
import os, random, signal, sys, time
import jax.numpy as jnp, numpy as np
import functional_opt as fo
from functional_opt.checkpoint.files import read, write

def checkpoint(i):
    params = {"w": jnp.full(300_000, float(i)), "b": jnp.full(10, float(i))}
    arrays, manifest = fo.to_arrays(fo.trace(0.9), params, fo.trace(0.9).init(params))
    return {name: np.array(x) for name, x in arrays.items()}, manifest

path, kills, moments = sys.argv[1], int(sys.argv[2]), random.Random(0)
ready = [checkpoint(i) for i in range(8)]
write(path, *ready[0], extra=0)
for _ in range(kills):
    before = read(path)[2]
    told, tell = os.pipe()
    if not (saver := os.fork()):  # uses NumPy and files only
        for n in range(before + 1, 1_000_000):
            write(path, *ready[n % 8], extra=n)
            os.write(tell, b".")
    os.close(tell)
    os.read(told, 1)
    time.sleep(0.03 * moments.random())
    os.kill(saver, signal.SIGKILL)
    os.waitpid(saver, 0)
    done = before + 1 + len(os.read(told, 1_000_000))  # saves that returned
    os.close(told)
    arrays, manifest, n = read(path)
    _, params, _ = fo.from_arrays(arrays, manifest)
    assert done <= n <= done + 1, (done, n)
    assert {float(x) for w in params.values() for x in np.unique(w)} == {float(n % 8)}, n
    print("complete", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the savers are forks")
def test_kills(tmp_path):
    """SIGKILL at random moments: the file is complete, and it is the last save that returned or the next one."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SAVER, str(tmp_path / "a"), str(KILLS)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["complete"] * KILLS


def bits_flipped(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def header_edited(data, rng):
    """A header that is JSON and has another number, name or order in it, with its length put right."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    name, other = rng.sample(names, 2)
    edit = rng.randrange(5)
    if edit == 0:
        header[name], header[other] = header[other], header[name]
    elif edit == 1:
        header[name]["data_offsets"] = [rng.choice([-1, 0, 4, 10**18]), rng.choice([0, 8, 2**63])]
    elif edit == 2:
        header[name]["shape"] = rng.choice([[], [10**12, 10**12], [-4], ["4"], None, [[[]]]])
    elif edit == 3:
        header[name]["dtype"] = rng.choice(["O", "F64", "BF16", "F8", 3, None])
    else:
        del header[name]
    if header == json.loads(data[8 : 8 + length]):
        return data
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def bytes_swapped(data, rng):
    """Two stretches of the data exchanged."""
    start = 8 + int.from_bytes(data[:8], "little")
    n = rng.choice([1, 4, 16])
    i, j = (rng.randrange(start, len(data) - n) for _ in range(2))
    i, j = min(i, j), max(i, j)
    return data[:i] + data[j : j + n] + data[i + n : j] + data[i : i + n] + data[j + n :] if j >= i + n else data


DAMAGES = [
    bits_flipped,
    bits_flipped,
    header_edited,
    bytes_swapped,
    lambda data, rng: data[: rng.randrange(len(data))],
    lambda data, rng: data + os.urandom(rng.randrange(1, 20)),
    lambda data, rng: data[: (i := rng.randrange(len(data)))] + b"\0" * (len(data) - i),
    lambda data, rng: rng.choice([0, 7, 2**40, 2**63]).to_bytes(8, "little") + data[8:],
]


def test_damaged_files(tmp_path):
    """None is used, whatever the damage; every one is refused with ValueError."""
    tx, params, state = trained()
    save(path := tmp_path / "a", tx, params, state)
    whole, rng = path.read_bytes(), random.Random(1)
    refused = 0
    for _ in range(DAMAGED):
        data = rng.choice(DAMAGES)(whole, rng)
        if data == whole:
            continue
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is not a complete checkpoint|the array|the manifest"):
            load(path)
        refused += 1
    assert refused > 0.9 * DAMAGED


def test_nothing_in_a_file_is_executed():
    """No module of the package imports pickle or calls what could run a file's text."""
    for path in pathlib.Path(fo.checkpoint.__file__).parent.glob("*.py"):
        text = path.read_text()
        assert not any(word in text for word in ("pickle", "eval(", "exec(", "import_module", "np.load"))
