r"""One plain spelling for the markup of answers; what it means is read by `answers.forms`.

`tidy_answer` knows Unicode (digits of all scripts, full-width and superscript characters, dashes,
Greek), Markdown, quotes, LaTeX cosmetics (`\left`, `\text{}`, `\dfrac`, spacing, `$`), grouped
digits (1,234 · 10,\!080 · 1 234 567 · 1.234.567 · 1.234,56) and phrases before an answer. Case is
kept: `R^2-r^2` needs it.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from vprm_search.steps import normalise_text

MAX_ANSWER_CHARS = 1_000
_MAX_PASSES = 50

_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma "
    "tau upsilon phi chi psi omega"
)
_GREEK = _GREEK_NAMES.split()
_SYMBOL_TABLE = r"""
∞: infty ; ≤: le leq leqslant ; ≥: ge geq geqslant ; ≠: ne neq ; ∈: in ; ∪: cup ; ∩: cap
±: pm ; ∓: mp ; *: cdot times ast ; /: div ; <: lt ; >: gt ; ∅: emptyset varnothing
∖: setminus backslash ; …: ldots dots cdots ; °: degree ; ∘: circ ; :: colon
|: mid lvert rvert vert ; →: to rightarrow ; ≈: approx simeq ; \{: lbrace ; \}: rbrace
[: lbrack ; ]: rbrack ; ': prime ; \frac: dfrac tfrac cfrac ; \binom: dbinom tbinom
€: euro ; £: pounds ; $: textdollar ; %: percent ; \mathbb{R}: Reals ; ε: varepsilon
(: langle ; ): rangle
θ: vartheta ; φ: varphi ; \arctan: arctg ; \tan: tg ; \cot: ctg
⇒: implies Rightarrow ; ⇔: iff Leftrightarrow
"""
_SYMBOLS = {
    f"\\{name}": symbol.strip()
    for symbol, _, names in (entry.rpartition(": ") for entry in re.split(r" ; |\n", _SYMBOL_TABLE))
    for name in names.split()
}
_SYMBOLS |= dict.fromkeys((r"\lor", r"\vee"), " ∨ ") | dict.fromkeys((r"\quad", r"\qquad"), " ")
_SYMBOLS |= dict.fromkeys((r"\land", r"\wedge"), " ∧ ")
for _size, _written in (("SMALL", str.lower), ("CAPITAL", str.capitalize)):
    for _name in _GREEK:
        _letter = _name.upper().replace("LAMBDA", "LAMDA")
        _SYMBOLS[f"\\{_written(_name)}"] = unicodedata.lookup(f"GREEK {_size} LETTER {_letter}")
_SILENT_NAMES = (
    "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr displaystyle "
    "textstyle scriptstyle limits nolimits mathstrut middle rm bf it ensuremath phantom"
)
_SILENT = frozenset(_SILENT_NAMES.split())

_BOX = re.compile(
    r"\\(?:text(?:rm|bf|it|sf|tt|sc|normal|md|up)?|math(?:rm|bf|it|sf|tt|normal|ord|op)|[mhf]box"
    r"|operatorname\*?|boxed|emph|underline|bm|boldsymbol|bold|mathbb(?=\s?\{[^RNZQC]))\s?\{"
)
_CHARACTERS = str.maketrans(
    dict.fromkeys("\u2212\u2012\u2013\u2014\u2010\u2011\u2015\ufe63\uff0d", "-")
    | dict.fromkeys("\u2018\u2019\u2032\u00b4\u02bc\uff07", "'")
    | dict.fromkeys("\u201c\u201d\u2033\u201e\u201f\u00ab\u00bb\uff02\u300c\u300d", '"')
    | dict.fromkeys("\u00d7\u00b7\u22c5\u2217\u2219\u2715\u2062", "*")
    | dict.fromkeys("\u00f7\u2044\u2215", "/")
    | dict.fromkeys("\u00a0\u2009\u202f\u2007\u2008\u2006", "\u2009")  # blanks inside numbers
    | {"\u3002": ".", "\uff61": ".", "\u060c": ",", "\u066c": ",", "\u066b": ".", "\u066a": "%"}
    | {"\u3001": ", ", "\uff0c": ", ", "\u061b": ";", "\u2236": ":", "\u00ba": "°", "\u02da": "°"}
    | {"\u00b5": "μ", "\u2126": "Ω", "\u2264": "≤", "\u2265": "≥", "\u2a7d": "≤", "\u2a7e": "≥"}
    | {"\u221e": "∞", "\u2205": "∅", "\u221a": r"\sqrt", "\u2026": "…", "\u22ef": "…"}
    | {"\u211d": r"\mathbb{R}", "\u27e8": "(", "\u27e9": ")", "\u2329": "(", "\u232a": ")"}
    | {"\u2228": " ∨ ", "\u2227": " ∧ ", "\u2192": "→", "\u2216": "∖"}
    | {"\u00a2": " cent ", "\u2245": "≈"}
    | {chr(0x2074 + n): f"^{{{4 + n}}}" for n in range(6)}
)  # fmt: skip
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ", "0123456789-n", strict=True))
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ⁺]+")
_COMMAND = re.compile(r"\\([A-Za-z]+)\*?")

_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<=[0-9]),\\! ?(?=[0-9]{3}(?![0-9]))|(?<=[0-9])\{ ?, ?\}(?=[0-9]{3}(?![0-9]))", ""),
        (r"(?<=[0-9])\{ ?, ?\}(?=[0-9])", "."),
        (r"(?<=[0-9])(?:\\,|\\ |\u2009)(?=[0-9]{3}(?![0-9]))", ""),
        (r"(?<!\\)\\!", ""),
        (r"(?<!\\)\\[,;:> ~]|(?<!\\)~|\u2009", " "),
        (r"\\([%$#&_€£])", r"\1"),
        (r"(?<!\\)\\[()]|(?<!\\)\\\[(?![0-9.]+(?:pt|em|ex|mm)\])|(?<!\\)\\\]", " "),
        (r"\^\s*(?:\{\s*[∘°]\s*\}|[∘°])", "°"),
        (r"∘(?=[CF]\b)|∘$", "°"),
        (r"(?<![\\A-Za-z])(?:sqrt|√)(?=\s?[({\[0-9a-z])", r"\\sqrt"),
        (r"(?<![\\A-Za-z])[pP]i(?![A-Za-z])", "π"),
        (r"(?<=\S)\*\*(?=[-+0-9a-z({])", "^"),
        (r"(?<=[0-9]) ?[xX] ?(?=10 ?\^)", "*"),
        (r"\{ ?([0-9A-Za-z+]{1,9}) ?\\choose ?([0-9A-Za-z+]{1,9}) ?\}", r"\\binom{\1}{\2}"),
        (r"\\dot ?\{([0-9])\}(?:([0-9]*)\\dot ?\{([0-9])\})?", r"\\overline{\1\2\3}"),
        (r"\\mathbb ?([RNZQC])(?![A-Za-z])", r"\\mathbb{\1}"),
        (r"<=|=<", "≤"),
        (r">=", "≥"),
        (r"!=(?!=)|=/=", "≠"),
        (r"\+/-|\+-", "±"),
        (r"\binfinity\b", "∞"),
        (r"\b(?:oo)\b", "∞"),
        (r"\.\.\.+", "…"),
        (r" +(?=\^)|(?<=\^) +", ""),
        (r"(?<=\s)([ap])\.\s?m\.?(?![A-Za-z])", r"\1m"),
    )
)
_GROUPED = tuple(
    re.compile(rf"(?<![0-9.,]){pattern}(?![0-9]|[.,][0-9])")
    for pattern in (
        r"(?P<w>[0-9]{1,3}(?:,[0-9]{3})+)(?P<f>\.[0-9]+)?",  # 1,234,567.8
        r"(?P<w>[0-9]{1,3}(?:\.[0-9]{3}){2,})(?:,(?P<d>[0-9]+))?",  # 1.234.567 or 1.234.567,8
        r"(?P<w>[0-9]{1,3}\.[0-9]{3}),(?P<d>[0-9]{1,2}|[0-9]{4,})",  # 1.234,56
        r"(?P<w>[0-9]{1,3}(?:'[0-9]{3})+)(?P<f>\.[0-9]+)?",  # 1'234.5
        r"(?P<w>[0-9]{1,3}(?: [0-9]{3}){2,})(?P<f>\.[0-9]+)?",  # 1 234 567
        r"(?P<w>[0-9]{1,3}(?: [0-9]{3})+),(?P<d>[0-9]{1,2}|[0-9]{4,})",  # 1 234,56
        r"(?P<w>[0-9]{1,3} 0[0-9]{2})(?P<f>\.[0-9]+)?",  # 10 080: nobody writes the number 080
        r"(?<=₹)(?P<w>[0-9]{1,2}(?:,[0-9]{2})*,[0-9]{3})(?P<f>\.[0-9]+)?",  # lakhs and crores
    )
)
_WRAPPERS = ("**", "__", "```", "`", "*", '"', "'", "$$")
_PREFIX = re.compile(
    r"(?:(?:(?:the |my |our )?(?:final |correct )?answers?(?: is| are|:| =)|approximately|approx\.?"
    r"|about|roughly|around|exactly|thus|hence|therefore|so|i\.e\.|circa|≈|=|:|⇒|∴)(?![A-Za-z]),?"
    r"|the |(?:point|coordinates) (?=\())"
    r"\s*(?=\S)",
    re.IGNORECASE,
)
_PICTOGRAPH = "[\u2600-\u26ff\u2700-\u27bf\U0001f000-\U0001faff\ufe0f]"
_EMOJI = re.compile(rf"^(?:{_PICTOGRAPH}\s*)+(?=\S)|(?<=\S)(?:\s*{_PICTOGRAPH})+$")


@lru_cache(maxsize=4096)
def tidy_answer(text: str) -> str:
    """Return the plain spelling of an answer; idempotent, and "" for an empty answer.

    An answer longer than `MAX_ANSWER_CHARS` is only folded (case and white space), which bounds
    the work for hostile input.
    """
    text = " ".join(normalise_text(text).split(" "))
    if len(text) > MAX_ANSWER_CHARS:
        return fold(" ".join(text.split()))
    for _ in range(_MAX_PASSES):
        rewritten = _one_pass(text)
        if rewritten == text or len(rewritten) > 2 * MAX_ANSWER_CHARS:
            return rewritten
        text = rewritten
    return text


def fold(text: str) -> str:
    """Fold case and composition; `fold(fold(x)) == fold(x)`."""
    for _ in range(3):
        text = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
    return text


def _one_pass(text: str) -> str:
    if not text.isascii():
        text = _plain_characters(text)
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z]{2})", lambda _: "\\", text)  # escaped twice: \\\\frac
    text = _COMMAND.sub(_plain_command, text)
    text = _strip_dollars(text)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = _without_boxes(text)
    text = _unwrap(" ".join(text.split()))
    for pattern in _GROUPED:
        text = pattern.sub(_ungroup, text)
    while (prefix := _PREFIX.match(text)) is not None:
        text = text[prefix.end() :]
    return text


def _plain_characters(text: str) -> str:
    for sign, root in (("√", r"\sqrt"), ("∛", r"\sqrt[3]"), ("∜", r"\sqrt[4]")):
        text = re.sub(rf"{sign}\s?([0-9]+(?:\.[0-9]+)?)", rf"\{root}{{\1}}", text)
    text = _EMOJI.sub("", text.translate(_CHARACTERS))
    text = _SUPERSCRIPT.sub(
        lambda run: "^{" + "".join(_SUPERSCRIPTS.get(c, "") for c in run[0]) + "}", text
    )
    return unicodedata.normalize("NFC", "".join(map(_plain_character, text)))


def _plain_character(character: str) -> str:
    if character.isascii() or character in "°…∖→\u2009":
        return character
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    kind = unicodedata.category(character)
    if kind == "Cf":
        return ""
    compatible = unicodedata.normalize("NFKC", character)
    if kind == "No" and "\u2044" in compatible:
        return " " + compatible.replace("\u2044", "/")
    if 0x2080 <= ord(character) <= 0x2089:
        return f"_{compatible}"
    return compatible.translate(_CHARACTERS)


def _plain_command(match: re.Match[str]) -> str:
    if match[1] in _SILENT:
        return (
            " " if match.end() < len(match.string) and match.string[match.end()].isalnum() else ""
        )
    return _SYMBOLS.get(match[0], match[0])


def _without_boxes(text: str) -> str:
    r"""Drop `\text{…}`, `\mathrm{…}`, `\boxed{…}` around what they hold, innermost last."""
    at = 0
    while (match := _BOX.search(text, at)) is not None:
        at, level = match.end(), 1
        while at < len(text) and level:
            level += {"{": 1, "}": -1}.get(text[at], 0) if text[at - 1] != "\\" else 0
            at += 1
        if level:
            return text
        text = f"{text[: match.start()]} {text[match.end() : at - 1]} {text[at:]}"
        at = match.start()
    return text


def _strip_dollars(text: str) -> str:
    """Drop `$` where they come in pairs (maths mode); a single one is a currency sign."""
    dollars = [match.start() for match in re.finditer(r"(?<!\\)\$", text)]
    if not dollars or len(dollars) % 2:
        return text
    amounts = re.findall(
        r"(?<!\\)\$\s?[0-9][0-9.,]*(?=\s*(?:$|[-,;/*`}_)\"'\\]|to\b|and\b|or\b))", text
    )
    if len(amounts) == len(dollars) and not text.endswith("$"):
        return text  # "$5, $6" is two prices
    return re.sub(r"(?<!\\)\$", " ", text)


def _unwrap(text: str) -> str:
    """Drop Markdown and quotes around the answer, and the full stop behind it."""
    text = text.strip().rstrip(" .;,")
    text = re.sub(r"(?<=[^\W\d_]{2})!+$", "", text)  # "Blue!", but 3! and n! are factorials
    for mark in _WRAPPERS:
        inner = text[len(mark) : -len(mark)]
        if inner and text.startswith(mark) and text.endswith(mark) and mark not in inner:
            return inner.strip()
    return text


def _ungroup(match: re.Match[str]) -> str:
    found = match.groupdict()
    whole = re.sub(r"[^0-9]", "", found["w"])
    around = match.string[match.start() - 1 : match.start()], match.string[match.end() :][:1]
    if found["w"].startswith("0") or (around[0] in tuple("([{") and around[1] in tuple(")]}\\")):
        return match[0]  # (100,200) is a point
    return whole + (found.get("f") or "") + (f".{found['d']}" if found.get("d") else "")


# --- pieces of a tidy answer ----------------------------------------------------------------------


def split_list(text: str) -> list[str]:
    """Split at commas that stand in no bracket."""
    items, level, start = [], 0, 0
    for at, character in enumerate(text):
        if character in "([{":
            level += 1
        elif character in ")]}":
            level -= 1
        elif character == "," and level <= 0:
            items.append(text[start:at])
            start = at + 1
    return [*items, text[start:]]


def balanced(text: str) -> bool:
    """Whether every bracket closes; (0, 1] is closed too."""
    level = 0
    for character in text:
        level += (character in "([{") - (character in ")]}")
        if level < 0:
            return False
    return level == 0


def one_bracket(text: str) -> bool:
    """Whether the first bracket closes at the end."""
    return balanced(text) and all(not balanced(text[:at]) for at in range(1, len(text)))


def squeezed(text: str) -> str:
    """Fold case and drop the blanks and braces that mean nothing; Δ stays apart from δ."""
    parts = re.split(r"(\\[A-Za-z]+|(?<!\w)[Α-Ω](?!\w))", text)
    text = "".join(part if i % 2 else fold(part) for i, part in enumerate(parts))
    text = re.sub(
        r"\{ ?(\w) ?\}", r"\1", re.sub(r" +(?=\\)|(\\[A-Za-z]+) +(?![A-Za-z])", r"\1", text)
    )
    return re.sub(
        r"\s*([-+*/=<>^_()\[\]{}|,:;&…∪∩∈∖∨∧]|\\\\)\s*", r"\1", " ".join(text.split())
    ).strip()
