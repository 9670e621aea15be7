"""What of the text behind a mark is the answer: markup, further sentences and remarks are cut off.

Everything here only makes a text shorter, so that an answer reads itself as itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile

from vprm_search.steps.phrases import LANGUAGES

_MAX_PASSES = 24

# --- where the answer stands behind its mark -----------------------------------------------------

_EMPTY_LINE = re.compile(r"[\s*_#:\uff1a]*(?:`+\w*|[-=_*~]{3,}|\\n)?[\s*_:\uff1a]*")
_WORD = re.compile(r"[^\W_]|[$\\]")
_ITEM = re.compile(
    r"[ \t]*(?:[-*\u2022]|\*{0,2}(?:[(\uff08]?(\d{1,2}|[a-h])(?:[.)\uff09]|\.\*\*)))[ \t]+(?=\S)"
)
_NUMBER = re.compile(r"(?<!\w)(\d{1,2}|[a-h])[.)\uff09]\*{0,2}[ \t]+$")
_LISTED = re.compile(  # no sentence ("Add 2 and 3.")
    r"[\s*_`]*(?:[-+\u2212(\[{]*[\d$\\\u221a\u03c0\u221e]|[^\W\d]\w{0,14}(?: \w{1,14}){0,2}"
    r"[*_]*\s?[=:\uff1a\u2248\u2208]|[^\W\d_]{1,14}(?:\.|(?:[ -][^\W\d_]{1,14}){0,2})[\s*_]*$)"
    r"[^\n]{0,60}$"
)
_EQUATION = re.compile(r"[\s$\\(*]*([A-Za-z](?:_?\{?\w\}?)?)\s?=\s?[^=\n]{1,40}")
_DISPLAY = {"\\[": "\\]", "$$": "$$"}
_OPEN_DISPLAY = re.compile(r"\\\[|\$\$|\\begin\{(align|equation|gather|multline)(\*?)\}")


Place = tuple[int, int]


def places_behind(text: str, start: int, stop: int) -> tuple[Place, ...]:
    r"""Return where the answer stands between a mark's end and `stop`: a line, or its display.

    Lines without a word ("**", a rule) and lines that introduce the next one ("The total is:") are
    passed over. Display mathematics opened on the line is taken to its end. A list of values below
    the mark has a place for each; there is none in a numbered list of sentences.
    """
    begin, end = start, start
    while end < stop:
        begin, found = end, text.find("\n", end, stop)
        end = stop if found < 0 else found
        line = text[begin:end]
        if _EMPTY_LINE.fullmatch(line):
            end += 1
            continue
        opening = _OPEN_DISPLAY.search(line)
        if opening is not None:
            mark = _DISPLAY.get(opening[0], f"\\end{{{opening[1]}{opening[2]}}}")
            closing = text.find(mark, begin + opening.end(), stop)
            return ((begin, max(end, closing + len(mark) if closing >= 0 else end)),)
        leads_in = line.rstrip(" \t\r*_").endswith((":", "\uff1a")) and _WORD.search(
            text, end, stop
        )
        if leads_in and not _TELLING.search(line[: _sentence_end(line) % len(line)]):
            end += 1
            continue
        return _list_at(text, begin, stop)
    return ((stop, stop),)


def number_before(text: str, begin: int) -> str:
    """Return the number or letter of the list's item at `begin`, as in "(1) 5", else ""."""
    item = _NUMBER.search(text[max(0, begin - 10) : begin])
    return f"({item[1]}) " if item else ""


def _list_at(text: str, begin: int, stop: int) -> tuple[Place, ...]:
    """Return the places of the values in the list whose first line begins at `begin`.

    Its lines have bullets, numbers or letters from the first one on, or are equations of different
    names. What is no list is one line.
    """
    places: list[Place] = []
    marks: list[str] = []
    end = begin
    while end < stop:
        at, found = end, text.find("\n", end, stop)
        end = stop if found < 0 else found
        mark, inner = _list_mark(text[at:end])
        if mark:
            if not marks and mark.isalnum() and mark not in "1a":
                break
            if marks and ((mark in marks and mark != "-") or ("=" in mark) != ("=" in marks[0])):
                break
            marks.append(mark)
            places.append((at + inner, end))
        elif text[at:end].strip():
            break
        end += 1
    if len(places) < 2 and (
        marks != ["-"] or text[begin - 1] != "\n"
    ):  # "1. The red bar", a choice
        found = text.find("\n", begin, stop)
        return ((begin, stop if found < 0 else found),)
    values = tuple(takewhile(lambda place: _LISTED.match(text[slice(*place)]), places))
    return values or (tuple(places[:1]) if "-" in marks else ((stop, stop),))


def _list_mark(line: str) -> tuple[str, int]:
    """Return what marks a list's line ("-", "1", "a", "x =", or "") and where its value begins."""
    if item := _ITEM.match(line):
        return item[1] or "-", item.end()
    equation = _EQUATION.fullmatch(line.rstrip(" .,;*$)\\"))
    return (f"{equation[1]} =" if equation else ""), 0


# --- the pieces of an answer ---------------------------------------------------------------------

_CONTROL = re.compile(
    r"<\|[^<>|\n]{1,40}\|>|<\uff5c[^<>\n]{1,40}\uff5c>|</?s>|<(?:eos|bos|end_of_turn|start_of_turn)>"
    r"|(?<=\S)\s?####|</?(?:final[_ -]?)?answer>|</conclusion>|\[/?INST\]|\\n(?![a-z])",
    re.IGNORECASE,
)
_JSON_FIELD = re.compile(r",\s*[\"']\w[\w ]{0,30}[\"']\s*:")
_PAIRED = re.compile(r"(\*\*|__|~~|`|(?<![\w*\\])[*_](?=\w))(?=\S)((?:(?!\1).)*?\S)\1(?![*_])")
_EMOJI = "\u2705\u2714\u2713\u2611\u2728\u2b50\u27a1\u274c\ufe0f\u200d\U0001f300-\U0001faff"
_NEWLINE_WRITTEN = re.compile(r"\A(?:\\n(?![a-z])\s?)+")
_LEADING = re.compile(rf"\A(?:[\s*_`~#{_EMOJI}]|[:\uff1a,]|=>|->|\u2192|=(?=\s)|\\[,;:! ]|\\quad)+")
_TRAILING = re.compile(
    rf"(?:[\s*`~{_EMOJI}]|(?<!_)_+|[:;,\uff0c\uff1b\uff1a\u3002\uff01\u3001\u0964\u06d4]"
    rf"|(?<!\.)\.(?!\.)|(?<![\d}}\w\\])!|\\\\|\\[,;: ]|\\quad)+$"
)
_WHOLE = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"\$\$([^$]+)\$\$",
        r"\$([^$]+)\$",
        r"\\\(((?:(?!\\\)).)+)\\\)",
        r"\\\[((?:(?!\\\]).)+)\\\]",
        r"\\begin\{(?:align|equation|gather|multline)\*?\}(.+?)\\end\{\w+\*?\}",
        r"\\(?:text|textbf|textrm|mathrm|mathbf|mathit|boxed|fbox)\s?\{([^{}]+)\}",
        r'"([^"]+)"',
        r"'([^']+)'",
        r"\u201c([^\u201c\u201d]+)\u201d",
        r"\u300c([^\u300c\u300d]+)\u300d",
        r"\u00ab\s?([^\u00ab\u00bb]+?)\s?\u00bb",
    )
)
_HALF_DAY = re.compile(r"\d\s?[ap]\.m$", re.IGNORECASE)
_OPEN_BOX = re.compile(r"\\(?:boxed|fbox)\s?\{")
_ENDINGS = re.compile(
    "|".join(
        rf"(?:(?<=\S)\s+|(?<=[^\x00-\x7f]))(?:{re.escape(ending)})$"
        if ending[0].isalpha() and ord(ending[0]) < 0x3000
        else rf"(?<=\S)\s?{re.escape(ending)}$"
        for language in LANGUAGES
        for ending in sorted(language.endings, key=len, reverse=True)
    ),
    re.IGNORECASE,
)
_ATOM = re.compile(
    r"\$(?![\s$])(?:[^$\n]){1,400}?(?<!\s)\$(?!\d)|\\\([^\n]{1,400}?\\\)|\\\[[^\n]{1,400}?\\\]"
)
_SENTENCE_END = re.compile(
    r"(?:(?<!\.)[.](?![.\w])|\.{2,3}(?=\s+[A-Z])|[!?](?=\s+[A-Z\"'(*\u2600-\U0001faff]|$))[\"'\u201d\u2019)*_]*(?=\s)"
    r"|[\u3002\uff01\uff1f\u0964\u06d4\u061f]"
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:mr|mrs|ms|dr|st|mt|vs|no|fig|eq|approx|ca|e\.g|i\.e|a\.m|p\.m|etc|cf|prof|jr|sr|u\.s)"
    r"|\s[A-Z])$",
    re.IGNORECASE,
)
_VERB = re.compile(
    r"\b(?:is|are|was|were|isn't|aren't|has|have|had|does|do|did|can|cannot|can't|will|would"
    r"|should|because|since|therefore|thus|hence|here|here's|this|that|these|explanation|reason\w*"
    r"|note|let|hope|es|est|ist|porque|weil|car|parce)\b|是|因为",
    re.IGNORECASE,
)
_CHOICE = re.compile(
    r"(?:(?:option|choice|letter)\s)?(?P<letter>\([A-J]\)|[A-J](?![\w'\u2019]))[.:)]*"
    r"(?P<mark>[.:,)\uff0c\uff0e]|(?<=\)))\s+(?P<rest>.+)",
    re.DOTALL | re.IGNORECASE,
)
_NAMED_CHOICE = re.compile(
    r".+?[,(]?\s?\b(?:which|this|that)?\s?(?:corresponds to|matches|is|i\.e\.,?)?\s?"
    r"(?:the )?\b(?:option|choice)\s(?P<letter>\(?[A-J]\)?)\)?[.!]?",
    re.DOTALL,
)
_LETTER_NAMED = re.compile(
    r"(?:(?:la|a|o|le|il|die|the)\s)?(?:option|choice|letter|letra|opción|opção|alternativa|lettre"
    r"|buchstabe|lettera|opzione|optie|вариант|选项|選項|選択肢)?\s?(?<![^\s(\u30a0-\u30ff\u3400-\u9fff])"
    r"(?P<letter>\([A-J]\)|(?-i:[A-J]))[.)]?",
    re.IGNORECASE,
)
_REMARK = re.compile(
    r"\s*(?:,\s|\s)(?:because|since|as (?:it|the|we|they|there|shown|expected|required|calculated)"
    r"|due to|based on|according to|given that|so that|porque|ya que|car|parce que|weil|da die"
    r"|потому что)\b"
    r"|\s*,\s(?:which|so|but|not|where|and (?:the|this|it|we) |hence|thus|therefore|making|meaning"
    r"|giving|obtained|denn|por lo que|donc|так как)\b"
    r"|(?<=\d),\sthe\s(?=[^\W\d_])|\sbeing\b"
    r"|\s*[(\[](?:since|because|as|see|from|by|using|or approximately|rounded)\b"
    r"|\s+[\u2014\u2013]\s+(?=[a-z])|\s+--\s+|[\uff0c,\s]*(?:因为|因為|理由)",
    re.IGNORECASE,
)
_TELLING = re.compile(r"\d|[$\\]|^\W*\(?[A-J]\)?\W*$|^(?:yes|no|true|false|none)\b", re.IGNORECASE)
_SPOKEN = re.compile(
    r"(?:the|there|it|this|so|therefore|thus|hence|they|he|she|each|in|we)\b[^.=$\\]{0,200}?"
    r"\b(?:is|are|was|were|equals|has|have|get)\s+(?:about\s|approximately\s|exactly\s)?(?P<value>.+)",
    re.IGNORECASE | re.DOTALL,
)
_SPOKEN_HAN = re.compile(
    r"[^\d$\\=:\uff1a]{1,60}?(?:是|为|為|有|等于|等於)"
    r"(?P<value>[-$\\]?\d.*)"
)
_VALUE = r"[-$\u20ac\u00a3]{0,2}\d"
_SPOKEN_COUNT = re.compile(
    rf"(?:[^.,=\\]{{1,60}}?\b(?:costs?|equals?|(?:is|are) equal to)"
    rf"|(?:[A-Z][a-z']+|he|she|it|they|we|you)(?:\s[a-z]+){{0,2}}?\s(?:will be|is|was|keeps?|gets?"
    rf"|has|have|needs?|travels?|makes?|pays?|earns?|takes?|runs?|drives?|sells?|saves?|receives?))"
    rf"\s(?P<value>{_VALUE}.*)",
    re.DOTALL,
)
_COUNT_SPOKEN = re.compile(
    rf"(?P<value>{_VALUE}[\d.,/]*%?\s[^\W\d_]+)\s(?:(?:is|are|was|were)\s)?(?:in|on|at|left in)\s"
    r"(?:the|an?|each|one|every|\d+)\s.*",
    re.DOTALL,
)
_COMES_TO = re.compile(
    r"[^,]*(?:\b(?:of|half|twice|times|plus|minus|divided|multiplied)\b|\d\s?[-+*/\u00d7x\u00f7]\s?[$\d])"
    rf"[^,]*,?\swhich\s(?:is|equals|gives|makes|comes to|is equal to)\s(?P<value>{_VALUE}.*)",
    re.DOTALL,
)
"""A sentence that counts ("6 apples cost $9"), and a computation with its result."""
_BOLD_VALUE = re.compile(
    r"[^*]{1,300}?\b(?:is|are|was|were|be|equals|of|es|est|ist)\s*:?\s*\*\*(?P<value>[^*]{1,200})\*\*"
    r"(?P<after>[^*]*)",
    re.DOTALL,
)


def answer_in(raw: str, *, prose: bool = True) -> str:
    """Return the answer in what stands behind a mark, "" if it says nothing; idempotent.

    Without `prose` the text is all answer (a box), and only its markup is cut.
    """
    text = raw
    for _ in range(_MAX_PASSES):
        shorter = _trimmed(text)
        if prose:
            shorter = _first_value(shorter)
        if shorter == text:
            break
        text = shorter
    return text


def pieces(raw: str) -> Iterator[str]:
    """Yield what may be a whole choice: all of a text, and its first sentence; without markup."""
    text = _trimmed(raw)
    yield text
    yield text[: _sentence_end(text)]


def _trimmed(text: str) -> str:
    """Cut off what is markup around an answer."""
    text = _NEWLINE_WRITTEN.sub("", " ".join(text.split()))
    text = _CONTROL.split(text, maxsplit=1)[0].strip()
    if not text.startswith(("{", "[")):
        text = _JSON_FIELD.split(text, maxsplit=1)[0]
    if "**" in text and (bold := _BOLD_VALUE.fullmatch(text)) and not bold["after"].strip(" .!,"):
        text = bold["value"]
    bare = _LEADING.sub("", _PAIRED.sub(r"\2", text))
    bare = _TRAILING.sub("", bare)
    for whole in _WHOLE:
        inside = whole.fullmatch(bare)
        if inside and not (inside[1].endswith("!") and bare[0] in "$\\"):
            bare = (
                re.sub(r"\s?&\s?", " ", inside[1]).strip()
                if "\\begin" in bare
                else inside[1].strip()
            )
    if (box := _OPEN_BOX.match(bare)) and bare.count("{") > bare.count("}"):
        bare = bare[box.end() :]
    bare = _balanced(bare)
    bare = f"{bare}." if _HALF_DAY.search(bare) else bare
    return bare if bare or not any(ord(c) > 0x2000 for c in text) else text.strip(" \t*_`")


def _balanced(text: str) -> str:
    """Cut off brackets and quotes at the ends that have no partner; [0, 5) has them."""
    more = sum(map(text.count, "([{")) - sum(map(text.count, ")]}"))
    if more < 0 and text[-1:] in tuple(")]}"):
        text = text[:-1].rstrip("\\")
    elif (more > 0 and text[:1] in tuple("([{")) or (more < 0 and text[:1] in tuple(")]}")):
        text = text[1:]
    elif text.count('"') % 2 and not re.search(r"\d'\s?\d+\"$", text):
        text = text[:-1] if text.endswith('"') else text[1:] if text.startswith('"') else text
    return text.strip()


def _first_value(text: str) -> str:
    """Cut off what follows the answer in words: further sentences, reasons, "in total"."""
    choice = _CHOICE.fullmatch(text)
    if choice and (choice["letter"].upper() == choice["letter"]):
        rest = choice["rest"]
        first = rest[: _sentence_end(rest)]
        remark = _REMARK.match(f", {first}")
        talks = bool(remark or _VERB.search(first)) or len(first.split()) > 12
        if talks:
            return choice["letter"]
        return text[choice.start("letter") : choice.start("rest")] + first
    text = text[: _sentence_end(text)]
    named = _NAMED_CHOICE.fullmatch(text)
    if named:
        return named["letter"].strip("()")
    for spoken in (_SPOKEN, _SPOKEN_HAN, _SPOKEN_COUNT, _COUNT_SPOKEN, _COMES_TO):
        said = spoken.fullmatch(text)
        if said and _TELLING.search(said["value"]) and not _VERB.search(said["value"]):
            text = said["value"]
    remark = _REMARK.search(text, 1)
    if remark and not _inside_atom(text, remark.start()):
        head = text[: remark.start()]
        if _TELLING.search(head) or remark[0].lstrip().startswith((",", "\uff0c")):
            text = head
    named = _LETTER_NAMED.fullmatch(text)
    text = named["letter"] if named else _ENDINGS.sub("", text)
    return text[:-1] if re.search(r"[\w)]!$", text) and "\\" not in text else text


def _inside_atom(text: str, place: int) -> bool:
    return any(atom.start() < place < atom.end() for atom in _ATOM.finditer(text))


def _sentence_end(text: str) -> int:
    """Return where the first sentence ends; full stops in mathematics and short forms end none."""
    atoms = [atom.span() for atom in _ATOM.finditer(text)]
    for end in _SENTENCE_END.finditer(text):
        place = end.start()
        if any(start < place < stop - 1 for start, stop in atoms):
            continue
        short = _ABBREVIATION.search(text[max(0, place - 8) : place])
        if end[0][0] == "." and short and text[:place].strip().lower() != "no":
            continue
        if text[:place].strip():
            return place
    return len(text)
