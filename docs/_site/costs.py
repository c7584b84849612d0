"""The table of costs in docs/choose.md: what is computed, beside what docs/comparison.md measured."""

import re

from . import facts
from .stage import DOCS

MARK = "```{optimizer-costs}\n```"
SHOWN = (
    "adamw sgd lion muon muonh schedule_free_adamw soap kl_soap mars lamb adafactor adan ademamix prodigy shampoo "
    "psgd_kron sm3 apollo_mini galore"
).split()


def measured() -> dict[str, str]:
    """Returns the validation losses of docs/comparison.md by optimizer.

    >>> measured()["muon"].startswith("2.")
    True
    """
    rows = re.findall(
        r"^\| (\w+)(?: \([a-z ]+\))? \| [\d.]+ \| ([\d.]+) ± ", (DOCS / "comparison.md").read_text(), re.M
    )
    if len(rows) != 11:
        raise ValueError(f"docs/comparison.md has {len(rows)} rows with a loss, not 11")
    return dict(rows)


def table() -> str:
    """Returns the table, those with a measured loss first."""
    losses = measured()
    lines = [
        "| optimizer | state, bytes a parameter | loss | sent on 4 devices (FSDP) | CPU kernel |",
        "|---|---|---|---|---|",
    ]
    for name in sorted(SHOWN, key=lambda name: losses.get(name, "9")):
        own = facts.facts_of(name)
        state, note = own.state32, ""
        if name == "sgd":
            state, note = facts.facts_of("trace").state32, " (momentum)"
        kernel = "yes" if own.kernel else ""
        cells = [f"[`{name}`](api/{name}.md){note}", f"{state:.3g}" if state >= 0.01 else "under 0.01"]
        lines.append(f"| {' | '.join([*cells, losses.get(name, ''), facts.sent(name) or 'not known', kernel])} |")
    return "\n".join(lines)
