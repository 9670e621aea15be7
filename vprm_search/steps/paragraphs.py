"""What a paragraph of a chat model's solution is: a heading, a greeting, a list, or a step.

The words are those that chat models use; what is not recognised is a step. A greeting holds neither
a number nor mathematics, so that nothing that was computed is ever taken for one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from vprm_search.steps.phrases import opening_mark

NOT_SEEN = "\u00ad\u180e\u200b-\u200d\u2060\ufeff"
"""Characters that take no room and are no white space for Python, as in a class of a pattern."""

_MOST_OF_A_HEADING = 120
_MOST_OF_A_GREETING = 300
LABEL = (
    r"(?:step|part|case|phase|stage|schritt|paso|passo|étape|etape|шаг|langkah)\s{0,2}#?\s{0,2}"
    r"(?:\d{1,3}[a-z]?|[a-h]|[ivx]{1,4}|one|two|three|four|five|six|seven|eight|nine|ten)(?!\w)"
    r"|(?:第\s?[\d一二三四五六七八九十]{1,3}\s?步|步骤\s?[\d一二三四五六七八九十]{1,3}"
    r"|ステップ\s?\d{1,3}|단계\s?\d{1,3}|\d{1,3}\s?단계)"
)
"""The number of a step, as in "Step 3", at the beginning of what it is matched with."""

_HASHES = re.compile(r"(#{1,6})[ \t]*(?P<text>\S.*?)[ \t#]*")
_UNDERLINED = re.compile(r"[^\n]{1,120}\n(=+|-{2,})[ \t]*")
_BOLD = re.compile(r"(?P<mark>\*\*|__)(?P<text>[^*_\n]+)(?P=mark)(?P<colon>[:\uff1a]?)")
_LABEL_ALONE = re.compile(
    rf"(?:{LABEL}|(?:(?:the|my|step[- ]by[- ]step)\s)?(?:solution|explanation|reasoning|analysis|"
    r"calculations?|given|proof|conclusion|result|(?:final\s)?answer|"
    r"解答|解|答案|分析|lösung|solución|solução|решение))\s?[:\uff1a.]",
    re.IGNORECASE,
)
_GRADED = re.compile(r"#{4}\s*[-+\u2212]?[$€£¥\\(]?[\d.](?!\d{0,2}[.)]\s)")  # GSM8K's "#### 5"
_RULE = re.compile(r"[ \t]*(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,}|[\u2014\u2500]{2,})")
_ITEM = re.compile(r"[ \t]*([-*+\u2022\u25cf\u25aa\u25e6\u2023\u2013]|\d{1,3}[.)])[ \t]+\S")
_BULLET = re.compile(r"[-*+\u2022\u25cf\u25aa\u25e6\u2023\u2013][ \t]+(?=\S)")
_ROW = re.compile(r"[ \t]*\|.*\|[ \t]*")


def heading_level(paragraph: str) -> int:
    """Return the level of a paragraph that is a heading and nothing else, 0 for any other.

    Markdown's are 1 to 6, a line in bold and a label alone ("Step 2:", "Solution:") 7. What states
    an answer ("#### 5", "**Answer: 7**") is no heading, nor is a sentence in bold.
    """
    text = paragraph.strip()
    if len(text) > _MOST_OF_A_HEADING or _GRADED.match(text):
        return 0
    if _UNDERLINED.fullmatch(text) and not _BULLET.match(text):
        return 1 if "=" in text.rpartition("\n")[2] else 2
    if "\n" in text:
        return 0
    if (hashes := _HASHES.fullmatch(text)) is not None:
        return 0 if _says_answer(hashes["text"].strip("*_ ")) else len(hashes[1])
    if (bold := _BOLD.fullmatch(text)) is not None:
        said = bold["text"].strip()
        sentence = said.endswith((".", "!", "?", "。", "！", "？")) and not _LABEL_ALONE.match(said)
        return 0 if sentence or re.search(r"[=$\\]", said) or _says_answer(said) else 7
    return 7 if _LABEL_ALONE.fullmatch(text) else 0


def _says_answer(text: str) -> bool:
    mark = opening_mark(text)
    return "\\boxed" in text or (mark is not None and bool(text[mark.end :].strip(" *_")))


def is_rule(paragraph: str) -> bool:
    """Tell whether a paragraph is a line drawn across the page, which says nothing."""
    return _RULE.fullmatch(paragraph.strip()) is not None


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a step: its last line, and the last one that is not indented."""

    last: str = ""
    outer: str = ""

    def after(self, lines: Iterable[str]) -> Tail:
        """Return the end of the step with these lines behind it."""
        last, outer = self.last, self.outer
        for line in lines:
            if line.strip():
                last = line.rstrip()
                outer = outer if line.startswith((" ", "\t")) else last
        return Tail(last, outer)

    def goes_on(self, line: str) -> bool:
        """Tell whether `line` belongs to the list or the table that a step ends with.

        A bulleted list and a table are one thing, and what is indented under an item is part of it.
        Numbered items are steps and not parts of one.
        """
        if _ROW.fullmatch(self.last) and _ROW.fullmatch(line.rstrip()):
            return True
        if line.startswith(("  ", "\t")):
            return _ITEM.match(self.outer) is not None
        bullet, other = _BULLET.match(self.outer), _BULLET.match(line)
        if bullet is None or other is None or is_rule(line):
            return False
        return re.match(LABEL, line[other.end() :].lstrip("*_ "), re.IGNORECASE) is None


# --- greetings ------------------------------------------------------------------------------------

_OPENERS = (
    r"(?:sure(?: thing)?|certainly|of course|absolutely|definitely|okay|ok|alright|all right|great|"
    r"good|perfect|excellent|hello|hi|hey|yes(?=,)|yeah(?=,)|no problem|got it|understood|"
    r"thank(?:s| you)(?: for (?:the|your|this|that) \w+)?|i understand|i see|my pleasure|gladly|"
    r"right(?=[,!.])|now(?=,)|so(?=,? here)|"
    r"as (?:you )?(?:requested|asked|instructed)|per your request|looking at the (?:image|picture))"
    r"(?: there| again| question| problem| one)?"
)
_OPENER = re.compile(
    rf"{_OPENERS}(?=[\s,.!:;\u2014\u2013-]|$)[\s,.!:;\u2014\u2013-]*", re.IGNORECASE
)
_STEPS = (
    r"(?:steps?|solution|answer|approach|breakdown|explanation|reasoning|continuation|plan|way|"
    r"response)"
)
_WHAT = (
    rf"(?:(?:the|this|that|a|an|my|your|our|one|just|only|exactly|very|first|second|third|next|final|"
    rf"last|following|possible|detailed|complete|short|brief|clear|simple|new|single|correct|"
    rf"step[- ]by[- ]step)\s){{0,6}}{_STEPS}(?!\w)"
)
_PROBLEM = (
    r"(?:this|the|your|that)(?: \w+){0,2} "
    r"(?:problem|question|puzzle|task|exercise|equation|image|one)"
)
_ANNOUNCEMENTS = (
    rf"(?:here|below|the following)(?:\s?['\u2019]s| is| are| comes| come)? {_WHAT}.*",
    rf"(?:this|that|these)(?:\s?['\u2019]s| is| are) {_WHAT}",
    r"here\s?(?:['\u2019]s| is| are) (?:how|what|the way) .*",
    r"here (?:goes|it goes|you go|we go|it is)",
    r"(?:let\s?['\u2019]?s|let us|let me) (?:see|dive (?:right )?in|jump (?:right )?in)",
    r"(?:let\s?['\u2019]?s|let us|let me) (?:first )?(?:look|take a (?:closer )?look) at "
    r"(?:the|this) (?:picture|image|figure|question|problem)(?: carefully| closely| first)?",
    r"continuing(?:,? (?:from|with|on) .{0,40}step.{0,20}| the (?:solution|reasoning|proof))?",
    r"(?=.*\b(?:first|second|third|next|following|last|step[- ]by|so far|as follows)\b)"
    rf"{_WHAT}(?: (?:of|for|in|to) (?:(?:solv|answer)\w* {_PROBLEM}|{_PROBLEM}|{_WHAT}))?"
    r"(?: is| are| would be| goes)?(?: as follows| so far)?",
    r"(?:now,? |so,? |then,? |first,? )?(?:let\s?['\u2019]?s|let us|let me|i\s?['\u2019]?ll|i will|"
    r"we\s?['\u2019]?ll|we will|we can|i can|i\s?['\u2019]?d be (?:happy|glad) to|"
    r"i would be (?:happy|glad) to|i\s?['\u2019]?m (?:happy|glad|here) to|"
    r"i am (?:happy|glad|here) to)"
    r"(?: \w+){0,4} "
    rf"(?:{_PROBLEM}|step[- ]by[- ]step|one step at a time|{_WHAT}|together|get started|begin|"
    r"start|continue|proceed|go on|(?:break|take) (?:it|this) down|through (?:this|it)|"
    r"this(?: out| one| down)?|it (?:down|out)|(?:you )?with that|help(?: you)?)"
    r"(?: (?:down|step[- ]by[- ]step|together|with that|carefully|now|first|for you|"
    r"one step at a time|from (?:here|the (?:start|beginning)|step \w+)|"
    rf"with {_WHAT}|in detail|into (?:\w+ ){{0,2}}(?:steps|parts|pieces)|"
    r"using the (?:given |provided )?(?:information|picture|image|data).{0,40}))*",
    rf"(?:in order )?to (?:solve|answer|tackle|work out|approach) {_PROBLEM}.*"
    r"(?:steps?|following|as follows|let\s?['\u2019]?s|we (?:need|have|can|will|should)).*",
    rf"to find {_WHAT},? (?:let\s?['\u2019]?s|we) .{{0,20}}\bstep[- ]by[- ]step",
    r"(?:great|good|nice|interesting|excellent) (?:question|problem|one|work|start)",
    r"(?:what a )?(?:happy|glad) to help(?: you)?(?: with (?:that|this))?",
)
_ANNOUNCEMENT = re.compile("|".join(f"(?:{one})" for one in _ANNOUNCEMENTS), re.IGNORECASE)
_ELSEWHERE = re.compile(
    r"[¡\s]*(?:当然|好的|没问题|可以|以下是|下面是|这是|もちろん|はい|わかりました|以下|물론|네|claro|"
    r"por supuesto|desde luego|vale|aquí|bien sûr|d['\u2019]accord|voici|natürlich|gerne|sicher|"
    r"hier ist|klar|certo|com certeza|ecco|конечно|хорошо|вот|tentu|baik|tabii|elbette|işte|zeker|"
    r"natuurlijk|hier is|oczywiście|oto|dĩ nhiên|tất nhiên|đây là|självklart|här är|jistě|"
    r"بالتأكيد|بالطبع|إليك|ज़रूर|बेशक|अवश्य)"
    r"(?!\w(?<![\u3040-\uffff]))",
    re.IGNORECASE,
)
_WILLING = re.compile(r"sure|certainly|of course|absolutely|definitely", re.IGNORECASE)
_BEGINNINGS = (
    re.compile(r"[^\n]{1,300}\n\s*"),
    re.compile(r"[^\n.!?:\uff1a\uff01\u3002]{1,150}[!:\uff01\uff1a.]+\s+"),
)
_MATHS = re.compile(r"\d|[=$\\<>^]|\b(?:equals?|plus|minus|times)\b")
_SENTENCE = re.compile(r"[^.!?:\u3002\uff01\uff1f\uff1a\n]+[.!?:\u3002\uff01\uff1f\uff1a\u2026]*")
_NUMBERED_STEP = re.compile(rf"(?:{LABEL})", re.IGNORECASE)


def is_greeting(paragraph: str) -> bool:
    """Tell whether a paragraph only greets or announces: "Sure! Here is the first step:"."""
    text = paragraph.strip().lstrip("#>*_ \t").replace("**", "").strip()
    text = re.sub(r"^[^\w¡]+|[\U0001f000-\U0001ffff\u2600-\u27bf\ufe0f]+", "", text).strip()
    if not text or len(text) > _MOST_OF_A_GREETING:
        return not text and bool(paragraph.strip(" \t\n#>*_")) and not _MATHS.search(paragraph)
    if _MATHS.search(_NUMBERED_STEP.sub("", text)):
        return False
    ending = text[-1] in ":\uff1a!\uff01\u2026"
    if _ELSEWHERE.match(text):
        return ending and len(text) <= 80
    if len(text) <= 6 and not ending and text.isalpha():
        return False  # one short word ("ok", "good") may be all there is to say
    if ending and _WILLING.match(text):
        return True
    return all(map(_says_nothing, _SENTENCE.findall(text)))


def _says_nothing(sentence: str) -> bool:
    """Tell whether a sentence is an opener ("Sure"), an announcement, or both."""
    text = sentence.strip(" \t\n.!?:;,\u2026\u2014\u2013-*_\"'()")
    while (opener := _OPENER.match(text)) is not None and opener.end():
        text = text[opener.end() :]
    return not text or _ANNOUNCEMENT.fullmatch(" ".join(text.split())) is not None


def without_greeting(paragraph: str) -> str:
    """Return a paragraph from where it says something, "" if it does not.

    Lines and sentences in front that only greet or announce are left out.
    """
    text = paragraph.strip()
    while text and not is_greeting(text):
        first = next((m for p in _BEGINNINGS if (m := p.match(text)) and _greets(m[0])), None)
        if first is None:
            return text
        text = text[first.end() :].strip()
    return ""


def _greets(beginning: str) -> bool:
    text = beginning.strip()
    one_word = "\n" not in beginning and re.fullmatch(r"[A-Za-z]+:", text)  # "Good: x is 3"
    return is_greeting(text) and not (one_word and not _WILLING.match(text))
