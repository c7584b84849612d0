"""Turns the equations of docstrings, such as `m ← b1·m + (1 − b1)·g`, into LaTeX.

A docstring writes its equations in plain Unicode within its sentences. `with_math` finds each longest piece of a
text that reads as an expression and replaces it; everything else stays text.
"""

import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

GREEK = dict(
    zip(
        "αβγδεζηθκλμνξπρστφχψωΓΔΘΛΞΠΣΦΨΩ",
        "alpha beta gamma delta varepsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau varphi chi psi "
        "omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega".split(),
        strict=True,
    )
)
ACCENTS = {"\u0302": "hat", "\u0304": "bar", "\u0303": "tilde", "\u0307": "dot"}
RELATIONS = {"=": "=", "←": r"\leftarrow", "≤": r"\le", "≥": r"\ge", "<": "<", ">": ">", "≈": r"\approx", "→": r"\to"}
RELATIONS |= {"∈": r"\in", "≠": r"\ne"}
SIGNS = {"+": "+", "−": "-", "±": r"\pm"}
PRODUCTS = {"·": r"\cdot ", "⊙": r"\odot ", "×": r"\times ", "⊗": r"\otimes ", "⊘": r"\oslash "}
RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ᵗᵏᵖⁿⁱᴴᵀᵃ", "0123456789+-tkpniHTa", strict=True))
LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ₜₖₙᵢⱼₚ", "0123456789+-tknijp", strict=True))
FENCES = {"‖": ("‖", r"\lVert ", r" \rVert"), "⟨": ("⟩", r"\langle ", r" \rangle")}
BRACKETS = {"(": (")", "(", ")"), "|": ("|", r"\lvert ", r" \rvert")} | FENCES
PREFIXES = {"∇": r"\nabla ", "Σ": r"\textstyle\sum ", "∂": r"\partial "}
FUNCTIONS = "sign max min log exp tanh sqrt mean clip orthogonalize qr eigh tr diag RMS root NS".split()
NAMED = {"max", "min", "log", "exp", "tanh"}
OPERATORS = set(RELATIONS) | set(SIGNS) | set(PRODUCTS) | {"/", "√", "^"}
EVIDENCE = set(RELATIONS) | set(SIGNS) | set(PRODUCTS) | set(RAISED) | set(LOWERED) | set(GREEK) | set("√‖|⟨^∇∞'")
NEVER_ALONE = {"a", "A", "I"}
"""Words that are a variable only within an equation."""

TOKEN = re.compile(
    rf"(?P<space>\s+)|(?P<number>\d+(?:\.\d+)?(?:e[-−]?\d+)?)|(?P<raised>[{''.join(RAISED)}]+)"
    rf"|(?P<lowered>[{''.join(LOWERED)}]+)|(?P<word>(?!Σ)[^\W\d_](?:[\w]|[\u0300-\u0307])*)|(?P<other>.)",
    re.DOTALL,
)


class Token(NamedTuple):
    """A piece of a text. `kind`: the group of `TOKEN`. `glued`: whether no space comes before it."""

    kind: str
    text: str
    start: int
    glued: bool


class Piece(NamedTuple):
    """A part of a text: `latex` if it is mathematics, and then whether it is a `relation`, such as an equation."""

    text: str
    latex: str | None = None
    relation: bool = False


def pieces(text: str, names: set[str]) -> list[Piece]:
    """Splits a text into words and mathematics.

    Args:
        text: a paragraph.
        names: the words that are variables: the arguments in reach.

    >>> [p.latex for p in pieces("Momentum: t ← g + decay·t.", {"decay"}) if p.latex]
    ['t \\\\leftarrow g + \\\\mathrm{decay} \\\\cdot t']
    """
    text = unicodedata.normalize("NFD", text)
    tokens = _tokens(text)
    found: list[Piece] = []
    i = plain = 0
    while i < len(tokens):
        end, latex, relation = Parser(tokens, names).whole(i)
        if latex is None:
            i += 1
            continue
        start, stop = tokens[i].start, tokens[end].start if end < len(tokens) else len(text)
        source = text[start:stop].rstrip()
        found += [Piece(_composed(text[plain:start])), Piece(_composed(source), latex, relation)]
        plain, i = start + len(source), end
    found.append(Piece(_composed(text[plain:])))
    return [piece for piece in found if piece.text]


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _tokens(text: str) -> list[Token]:
    """Returns the tokens of a text; subscripts count as letters in Unicode, so words are cut before them."""
    tokens, glued, at = [], False, 0
    while at < len(text):
        match = TOKEN.match(text, at)
        assert match is not None and match.lastgroup is not None
        kind, source = match.lastgroup, match.group()
        if kind == "word":
            cut = next((k for k, c in enumerate(source) if c in RAISED or c in LOWERED), len(source))
            source = source[:cut]
        if kind != "space":
            tokens.append(Token(kind, source, at, glued))
        glued, at = kind != "space", at + len(source)
    return tokens


class _NoMath(Exception):
    """What comes next is no expression."""


class Parser:
    """Reads one expression by recursive descent. Each method takes a position and returns the next one and LaTeX."""

    def __init__(self, tokens: list[Token], names: set[str]):
        self.tokens, self.names = tokens, names

    def whole(self, i: int) -> tuple[int, str | None, bool]:
        """Returns where the expression at i ends, its LaTeX, and whether it is a relation; None if it is a word."""
        if self.tokens[i].glued and i and self.tokens[i - 1].kind in ("word", "number"):
            return i, None, False
        before = self.tokens[i - 1].text if i else ""
        if before and (before in OPERATORS or self.tokens[i].glued and before in "-_'`\""):
            return i, None, False
        try:
            end, latex = self.relation(i)
        except _NoMath:
            return i, None, False
        run = self.tokens[i:end]
        after = self.tokens[end] if end < len(self.tokens) else None
        if after is not None and (after.text in OPERATORS or after.glued and after.text in '-_`"('):
            return i, None, False  # a part of an expression that cannot be read
        evidence = any(EVIDENCE & set(unicodedata.normalize("NFD", t.text)) or _is_accented(t.text) for t in run)
        letter = len(run) == 1 and len(run[0].text) == 1 and run[0].text.isalpha() and run[0].text not in NEVER_ALONE
        variable = any(t.kind == "word" for t in run)
        if not letter and not (evidence and variable):
            return i, None, False
        return end, latex, any(t.text in ("=", "←") for t in run)

    def text(self, i: int) -> str:
        return self.tokens[i].text if i < len(self.tokens) else ""

    def relation(self, i: int) -> tuple[int, str]:
        return self._joined(i, self.sum, RELATIONS)

    def sum(self, i: int) -> tuple[int, str]:
        if self.text(i) in SIGNS:
            end, latex = self._joined(i + 1, self.term, SIGNS)
            return end, SIGNS[self.text(i)] + latex
        return self._joined(i, self.term, SIGNS)

    def _joined(self, i: int, part: Callable, operators: dict[str, str]) -> tuple[int, str]:
        i, latex = part(i)
        while (sign := self.text(i)) in operators and sign:
            try:
                i, right = part(i + 1)
            except _NoMath:
                break
            latex = f"{latex} {operators[sign]} {right}"
        return i, latex

    def term(self, i: int) -> tuple[int, str]:
        """Reads products and quotients; what is left of a slash becomes the numerator."""
        i, latex = self.factor(i)
        while True:
            sign = self.text(i)
            try:
                if sign in PRODUCTS and sign:
                    i, right = self.factor(i + 1)
                    latex = f"{latex} {PRODUCTS[sign]}{right}"
                elif sign == "/":
                    i, right = self.factor(i + 1)
                    latex = rf"\frac{{{_bare(latex)}}}{{{_bare(right)}}}"
                elif sign and self.tokens[i].glued and sign not in "|‖":
                    i, right = self.factor(i)
                    latex = f"{latex} {right}"
                else:
                    return i, latex
            except _NoMath:
                return i, latex

    def factor(self, i: int) -> tuple[int, str]:
        i, latex = self.atom(i)
        while i < len(self.tokens) and (token := self.tokens[i]).glued:
            if token.kind == "raised":
                latex, i = f"{{{latex}}}^{{{''.join(RAISED[c] for c in token.text)}}}", i + 1
            elif token.kind == "lowered":
                latex, i = f"{{{latex}}}_{{{''.join(LOWERED[c] for c in token.text)}}}", i + 1
            elif token.text == "_" and self.text(i + 1).isalnum():
                latex, i = f"{{{latex}}}_{{{self.text(i + 1)}}}", i + 2
            elif token.text in ("∞", "*") and latex[-1] not in ")}":
                latex, i = (
                    f"{latex}{'_' if token.text == '∞' else '^'}{{{token.text}}}".replace("∞", r"\infty"),
                    i + 1,
                )
            elif token.text == "'" and self._is_letter(i - 1) and not self._letter_follows(i):
                latex, i = f"{latex}'", i + 1
            elif token.text == "^":
                i, right = self.factor(i + 1)
                latex = f"{{{latex}}}^{{{_bare(right)}}}"
            else:
                break
        return i, latex

    def _is_letter(self, i: int) -> bool:
        return len([c for c in self.tokens[i].text if c not in ACCENTS]) == 1

    def _letter_follows(self, i: int) -> bool:
        return i + 1 < len(self.tokens) and self.tokens[i + 1].glued and self.tokens[i + 1].kind == "word"

    def atom(self, i: int) -> tuple[int, str]:
        if i >= len(self.tokens):
            raise _NoMath
        kind, text = self.tokens[i][:2]
        if kind == "number":
            mantissa, _, exponent = text.replace("−", "-").partition("e")
            power = f"10^{{{exponent}}}"
            return i + 1, text if not exponent else power if mantissa == "1" else rf"{mantissa} \cdot {power}"
        if text == "∞":
            return i + 1, r"\infty"
        if text == "√":
            end, latex = self.factor(i + 1)
            return end, rf"\sqrt{{{_bare(latex)}}}"
        if text in PREFIXES:
            end, latex = self.factor(i + 1)
            return end, PREFIXES[text] + latex
        if text in BRACKETS:
            return self.bracket(i)
        if kind == "word":
            if text in FUNCTIONS and self.text(i + 1) == "(" and self.tokens[i + 1].glued:
                end, latex = self.bracket(i + 1)
                return end, (f"\\{text} " if text in NAMED else rf"\operatorname{{{text}}}") + latex
            return i + 1, self.variable(text)
        raise _NoMath

    def bracket(self, i: int) -> tuple[int, str]:
        """Reads what stands in parentheses or between bars, with commas."""
        close, left, right = BRACKETS[self.text(i)]
        i, latex = self.relation(i + 1)
        while self.text(i) == ",":
            i, more = self.relation(i + 1)
            latex = f"{latex}, {more}"
        if self.text(i) != close:
            raise _NoMath
        tall = r"\frac" in latex or r"\textstyle" in latex
        return i + 1, rf"\left{left.strip()} {latex} \right{right.strip()}" if tall else f"{left}{latex}{right}"

    def variable(self, word: str) -> str:
        """Returns LaTeX for a letter, a letter with an accent or digits, or the name of an argument."""
        letter, rest = word[0], word[1:]
        if letter not in GREEK and not letter.isascii():
            raise _NoMath
        latex = f"\\{GREEK[letter]}" if letter in GREEK else letter
        while rest and rest[0] in ACCENTS:
            latex, rest = rf"\{ACCENTS[rest[0]]}{{{latex}}}", rest[1:]
        if not rest:
            return latex
        if rest.isdigit():
            return f"{latex}_{{{rest}}}"
        if re.fullmatch(r"_[A-Za-z]{1,2}", rest):
            return f"{latex}_{{{rest[1:]}}}"
        if word in self.names and word.isascii():
            return rf"\mathrm{{{word}}}".replace("_", r"\_")
        raise _NoMath


def _is_accented(text: str) -> bool:
    return any(c in ACCENTS for c in text)


def _bare(latex: str) -> str:
    """Returns LaTeX without the parentheses around all of it, which a fraction or a root makes superfluous."""
    latex = re.sub(r"^\\left\((.*)\\right\)$", lambda m: m[0] if r"\right)" in m[1] else f"({m[1].strip()})", latex)
    if not (latex.startswith("(") and latex.endswith(")")):
        return latex
    depth = 0
    for at, c in enumerate(latex):
        depth += (c == "(") - (c == ")")
        if depth == 0 and at < len(latex) - 1:
            return latex
    return latex[1:-1]
