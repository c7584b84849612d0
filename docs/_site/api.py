"""Writes a page for each public name, and the pages that list them."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from functional_opt.core.slots import declared

from . import catalog, costs, facts, peers
from .catalog import Entry
from .docstring import Docstring, read
from .prose import blocks, equation, myst
from .signatures import parameters, signature

CODE = "```python\n{}\n```"
OPTIMIZERS = "Optimizers"
RULES = "the rule of each, without a learning rate"
SLOTS = {
    "signed": "means or sums of gradients",
    "unsigned": "never negative",
    "params": "params",
    "exact": "exact",
    "counter": "counter",
    "number": "number",
    "key": "random key",
    "states": "inner states",
}


def write(folder: Path) -> None:
    """Writes all pages below `api/`, and the table of costs in `choose.md`.

    Raises ValueError for a public name without a page.
    """
    found = catalog.entries()
    known = list(found.values())
    asked = [e.name for e in known if e.section == OPTIMIZERS and e.kind == "transformation" and e.row != RULES]
    with ThreadPoolExecutor(2) as pool:  # XLA compiles without Python's lock
        sent = dict(zip(asked, pool.map(facts.sent, asked), strict=True))
    grouped: dict[str, list[Entry]] = {}
    for entry in known:
        grouped.setdefault(entry.page, []).append(entry)
    texts = {}
    for page, here in grouped.items():
        alone = len(here) == 1 and not here[0].anchor
        texts[page] = single(here[0], sent.get(here[0].name)) if alone else shared(page, here)
    for path in catalog.MODULES:
        texts.setdefault(path, shared(path, []))
    texts["index"] = index()
    (folder / "api").mkdir(parents=True, exist_ok=True)
    for page, text in texts.items():
        # without a place in the table of contents, which every page shows: 300 entries would slow down all of them
        alone = "" if page == "index" or page in catalog.MODULES else "---\norphan: true\n---\n"
        (folder / "api" / f"{page}.md").write_text(alone + text)
    choose = folder / "choose.md"
    choose.write_text(choose.read_text().replace(costs.MARK, costs.table()))
    if missing := [name for name, entry in found.items() if not _is_shown(folder, entry)]:
        raise ValueError(f"no page shows {', '.join(missing)}")


def _is_shown(folder: Path, entry: Entry) -> bool:
    text = (folder / "api" / f"{entry.page}.md").read_text()
    return f"({entry.page}.{entry.anchor})=" in text if entry.anchor else f"\n# {_title(entry)}\n" in text


def _title(entry: Entry) -> str:
    return entry.name.replace("_", r"\_")


def single(entry: Entry, sent: str | None = None) -> str:
    """Returns the page of a name that has one of its own."""
    doc = read(entry.value)
    parts = [f"# {_title(entry)}", _way_back(entry), *_summary(doc, entry.name), *_text(doc, entry.name)]
    parts.append(CODE.format(signature(entry.name, entry.value)))
    if entry.kind == "transformation":
        parts.append(_facts(entry, sent))
    parts += _body(entry, doc, "##")
    return "\n\n".join(parts) + "\n"


def _way_back(entry: Entry) -> str:
    """Returns links to the lists that have the name."""
    if not entry.section:
        module = entry.name.rpartition(".")[0]
        return f"[API](index.md) › [{module}]({module}.md)"
    anchor = re.sub(r"[^\w -]", "", entry.section.lower()).replace(" ", "-")
    return f"[API](index.md) › [{entry.section}](index.md#{anchor}) › {entry.row}"


def shared(page: str, here: list[Entry]) -> str:
    """Returns a page with a section for each of several names: states, types, a module."""
    titles = {"states": "States", "types": "Types for annotations"}
    title = titles.get(page) or f"{page}: {catalog.MODULES[page]}"
    parts = [f"# {title}"]
    if page == "states":
        parts.append(
            "A state is a `NamedTuple`. The kind of a field says what it holds; `quantize_state`, checkpoints and "
            "`explain` read it. The names are those of Optax where it has the same algorithm."
        )
    if not here:
        names = sorted({e.name for e in catalog.entries().values() if _is_in(page, e)}, key=str.lower)
        parts.append("It has names that are in the package, too:")
        parts.append("\n".join(f"- {myst(f'`{name}`')}" for name in names))
    for entry in here:
        parts += [f"({page}.{entry.anchor})=\n## {_title(entry)}", *_entry(entry)]
    return "\n\n".join(parts) + "\n"


def _is_in(page: str, entry: Entry) -> bool:
    module = __import__("functional_opt")
    for part in page.split("."):
        module = getattr(module, part)
    return getattr(module, entry.name, None) is entry.value


def _entry(entry: Entry) -> list[str]:
    doc = read(entry.value)
    if entry.kind == "type":
        return [CODE.format(f"{entry.name} = {_short(entry.value)}")]
    parts = [*_summary(doc, entry.name), *_text(doc, entry.name)]
    if entry.kind != "state":
        parts.append(CODE.format(signature(entry.name.rsplit(".")[-1], entry.value)))
    elif fields := declared(entry.value):
        rows = "\n".join(f"| `{name}` | {SLOTS[slot.kind]} |" for name, slot in fields.items())
        parts.append(f"| field | kind |\n|---|---|\n{rows}")
    return [*parts, *_body(entry, doc, "###")]


def _short(x: Any) -> str:
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", str(x).replace("typing.", ""))


def _summary(doc: Docstring, here: str) -> list[str]:
    """Returns the first line, with its equation set apart."""
    split = equation(doc.summary)
    if split is None or "`" in doc.summary:
        return [myst(doc.summary, here=here)]
    before, latex, after = split
    parts = [myst(before.rstrip(":") + ("" if before.endswith(".") else ":"), here=here)] if before else []
    parts.append(f"$$\n{latex}\n$$")
    after = after.lstrip(".,; ").strip()
    return parts + ([myst(after[0].upper() + after[1:], here=here)] if after else [])


def _text(doc: Docstring, here: str) -> list[str]:
    return [_set_apart(text) if kind == "code" else blocks(text, here) for kind, text in doc.blocks]


def _set_apart(text: str) -> str:
    """Returns indented lines of a docstring: code, or equations."""
    if text.isascii():
        return CODE.format(text)
    return "\n".join(f"> {myst(line)}\\" for line in text.split("\n")).removesuffix("\\")


def _body(entry: Entry, doc: Docstring, heading: str) -> list[str]:
    parts = []
    arguments = _arguments(entry, doc)
    if arguments:
        parts += [f"{heading} Arguments", arguments] if heading == "##" else [arguments]
    parts += [myst(text, here=entry.name) for text in doc.raises]
    if doc.examples:
        parts += [f"{heading} Example"] if heading == "##" else []
        parts += [f"```pycon\n{example}\n```" for example in doc.examples]
    if doc.differs:
        parts += [f"{heading} Differences"] if heading == "##" else []
        parts += [blocks(text, entry.name) for text in doc.differs]
    if doc.papers:
        parts += [f"{heading} Paper"] if heading == "##" else []
        parts += [myst(text, math=False, here=entry.name) for text in doc.papers]
    return parts


def _arguments(entry: Entry, doc: Docstring) -> str:
    """Returns the arguments as a list of definitions."""
    items = []
    described = {name for args in doc.args for name in args.names}
    if entry.kind == "state" or entry.anchor and not described:
        return ""
    for p in parameters(entry.name, entry.value):
        facts_of_it = [f"{p.takes}" if p.takes else "", f"default `{p.default}`" if p.default else "required"]
        facts_of_it.append("structure: another value compiles again" if p.static else "")
        text = blocks(p.text[0].upper() + p.text[1:], entry.name) if p.text else ""
        where = f" ({myst(f'`{p.of}`')})" if p.of and p.text else ""
        words = myst(facts_of_it[0], math=False) if p.takes else ""
        head = "; ".join(x for x in (words, *facts_of_it[1:]) if x)
        lines = (f"*{head}*" if "`" not in head else head) + ("" if not text else f"\n\n{text}{where}")
        items.append(f"`{p.name}`\n: " + lines.replace("\n", "\n  "))
    return "\n\n".join(items)


def _facts(entry: Entry, sent: str | None) -> str:
    """Returns the table of facts of a transformation."""
    x = facts.facts_of(entry.name)
    rows = []
    size = f"{_number(x.state32)} of float32 params, {_number(x.state16)} of bfloat16 params"
    if x.with16 is not None and x.with16 != x.state32:
        size += f'; {_number(x.with16)} with `state_dtype="bfloat16"`'
    rows.append(("State, bytes a parameter", size))
    if x.slots:
        rows.append(("The state keeps", ", ".join(f"`{name}`" for name in x.slots)))
    kernel = " → ".join(f"`{name}`" for name in x.kernel)
    rows.append(("CPU kernel", f"yes: {kernel}" if x.kernel else "no; XLA compiles it"))
    traits = [word for word, is_so in (("preconditions", x.preconditions), ("clips", x.clips)) if is_so]
    if traits:
        rows.append(("Declares", ", ".join(traits)))
    if sent is not None:
        rows.append(("On a mesh, an update sends", sent))
    for library, theirs in peers.counterparts(entry.name).items():
        rows.append((library, f"`{theirs}`"))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    example = repr(x.example)
    note = (
        f"\n\nSizes are those of `{example}` for {x.params}."
        if (len(example) < 160 and "<" not in example and "`" not in example)
        else ""
    )
    return f":::{{table}}\n:class: facts\n\n| | |\n|---|---|\n{table}\n:::{note}"


def _number(x: float) -> str:
    return "none" if x == 0 else "under 0.01" if x < 0.01 else f"{x:.3g}"


def index() -> str:
    """Returns the page that lists all names by subject, as the inventory does."""
    parts = ["# API", "Every public name, by subject. The same list without the first lines is {doc}`../inventory`."]
    for section, rows in catalog.sections():
        parts.append(f"## {section}")
        for row, here in rows.items():
            lines = [f"| {myst(f'`{e.name}`')} | {_first(e)} |" for e in here]
            parts.append(f"### {row[:1].upper()}{row[1:]}\n\n| | |\n|---|---|\n" + "\n".join(lines))
    parts.append("## Keras")
    classes = [e for e in catalog.entries().values() if e.page.startswith("keras.") and not e.anchor]
    parts.append("| | |\n|---|---|\n" + "\n".join(f"| {myst(f'`{e.name}`')} | {_first(e)} |" for e in classes))
    parts.append("## Modules")
    parts.append("\n".join(f"- [{path}]({path}.md): {title}" for path, title in catalog.MODULES.items()))
    parts.append("- [States](states.md)\n- [Types for annotations](types.md)")
    parts.append("```{toctree}\n:hidden:\n\n" + "\n".join(catalog.MODULES) + "\n```")
    return "\n\n".join(parts) + "\n"


def _first(entry: Entry) -> str:
    line = read(entry.value).summary
    line = line if len(line) < 140 else line[:137] + "..."
    return myst(line, here=entry.name, math="..." not in line).replace("|", r"\|") if line else ""
