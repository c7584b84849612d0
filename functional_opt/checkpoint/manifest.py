"""The manifest of named arrays: plain JSON that says what each array is, and the config of the transformation."""

import importlib.metadata
import json
import re
from typing import Any, NamedTuple

import jax

from ..config import to_config
from ..config.depth import refuse_depth
from ..config.words import short
from .stored import DTYPES, IMPLEMENTATIONS, Form, checksum_of_text

FORMAT, VERSION = "functional_opt.checkpoint", 1
KEYS = {"format", "version", "versions", "config", "no_config", "containers", "arrays", "checksum"}
FACTS = {"role", "slot", "rule", "path", "part", "shape", "dtype", "key", "weak", "checksum"}


class Fact(NamedTuple):
    """What the manifest says of one array. `slot`, `rule`, `path` and `part` are those of `Entry`."""

    role: str
    slot: str
    rule: str
    path: str | None
    part: str
    form: Form
    checksum: str | None

    @property
    def key(self) -> tuple[str, str | None, str]:
        return self.slot, self.path, self.part

    def as_json(self) -> dict[str, Any]:
        shape, dtype, key, weak = self.form
        facts = {"role": self.role, "slot": self.slot, "rule": self.rule, "path": self.path, "part": self.part}
        facts = {name: x for name, x in facts.items() if x not in ("", None)}
        form = (
            {"shape": list(shape), "dtype": dtype} | ({"key": key} if key else {}) | ({"weak": True} if weak else {})
        )
        return facts | form | {"checksum": self.checksum}


def config_of(tx: Any) -> tuple[Any, str | None]:
    """Returns the config of a transformation and None, or None and the reason why it has none."""
    try:
        return to_config(tx), None
    except (TypeError, ValueError) as e:
        return None, str(e)


def make_manifest(config: Any, no_config: str | None, containers: Any, facts: dict[str, Fact]) -> dict[str, Any]:
    """Returns the manifest. `no_config` says why the config is None, if it is."""
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "versions": {"functional_opt": _own_version(), "jax": jax.__version__},
        "config": config,
        "no_config": no_config,
        "containers": containers,
        "arrays": {name: fact.as_json() for name, fact in facts.items()},
    }
    refuse_depth("the manifest", manifest)
    return manifest | {"checksum": checksum_of_text(_canonical(manifest))}


def _own_version() -> str:
    try:
        return importlib.metadata.version("functional_opt")
    except importlib.metadata.PackageNotFoundError:  # a source tree on the path
        return "unknown"


def _canonical(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False)


def read_manifest(manifest: Any) -> dict[str, Fact]:
    """Returns what a manifest says of each array. Raises ValueError for one that `make_manifest` did not make."""
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"the manifest must be a dict with the format {FORMAT!r}, got {short(manifest)}")
    version = manifest.get("version")
    if version != VERSION or isinstance(version, bool):
        raise ValueError(
            f"the manifest has version {short(version)}; this library reads version {VERSION}: load it with the "
            f"functional_opt that wrote it ({short(manifest.get('versions'))})"
        )
    refuse_depth("the manifest", manifest)
    if manifest.keys() != KEYS or not isinstance(manifest["arrays"], dict):
        raise ValueError(f"the manifest must have the keys {sorted(KEYS)}, got {short(sorted(map(str, manifest)))}")
    facts = {name: _fact(name, said) for name, said in manifest["arrays"].items()}
    if len({fact.key for fact in facts.values()}) < len(facts):
        raise ValueError("the manifest has the same slot and path twice")
    try:
        text = _canonical({key: x for key, x in manifest.items() if key != "checksum"})
    except (TypeError, ValueError) as e:
        raise ValueError(f"the manifest must be plain JSON: {e}") from e
    if checksum_of_text(text) != manifest["checksum"]:
        raise ValueError(
            "the manifest does not match its checksum: it is damaged or was edited. To use another transformation, "
            "pass tx= instead of editing the config"
        )
    return facts


def _fact(name: Any, said: Any) -> Fact:
    def refuse(what: str) -> ValueError:
        return ValueError(f"the manifest's entry of {short(name)} {what}, got {short(said)}")

    if not isinstance(name, str) or not isinstance(said, dict) or not said.keys() <= FACTS:
        raise refuse(f"must be a dict with the keys {sorted(FACTS)}")
    role, dtype, shape, key = (said.get(k) for k in ("role", "dtype", "shape", "key"))
    if role not in ("param", "slot") or (role == "slot") != bool(said.get("slot")):
        raise refuse("must have the role 'param', or the role 'slot' and a slot")
    if not all(isinstance(said.get(k, ""), str) for k in ("slot", "rule", "path", "part")):
        raise refuse("must have strings for slot, rule, path and part")
    if role == "param" and "path" not in said:
        raise refuse("must have a path")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise refuse("must have a shape, a list of lengths")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise refuse(f"must have one of the dtypes {', '.join(DTYPES)}")
    if key is not None and (key not in IMPLEMENTATIONS or dtype != "uint32" or not shape):
        raise refuse(f"must have uint32 data and one of {', '.join(IMPLEMENTATIONS)} as the kind of a key")
    weak = said.get("weak", False)
    if not isinstance(weak, bool) or (weak and (shape or key)):
        raise refuse("may only be weak if it is a scalar")
    checksum = said.get("checksum")
    if checksum is not None and not (isinstance(checksum, str) and re.fullmatch("crc32:[0-9a-f]{8}", checksum)):
        raise refuse("must have a checksum, such as crc32:00000000, or None")
    places = (said.get("slot", ""), said.get("rule", ""), said.get("path"), said.get("part", ""))
    return Fact(role, *places, Form(tuple(shape), dtype, key, weak), checksum)
