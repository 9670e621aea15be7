"""How a problem of a set is put to the policy: the four prompts of the paper's runs, or your own.

Reward models are shown what the policy was shown, so a prompt is a part of the question. The
wording is ours; what it asks for, and where the question stands in it, is as published: `en` and
`en_v2` are those of VisualPRM's data (v1.0 and v1.1), `cot` is VLMEvalKit's. A file may
hold any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from vprm_search.errors import ConfigError
from vprm_search.types import Problem

QUESTION = "{question}"
_IMAGE = "<image>"
_BOXED = (
    "Work it out step by step and look at everything that matters before you answer. Do not go "
    "over the same step again and again. End with one line of this form, without the quotes: "
    "'Answer: \\boxed{%s}', where %s is %s."
)
_FINAL = _BOXED % ("$FINAL_ANSWER", "$FINAL_ANSWER", "your final answer")
_LETTER = _BOXED % ("$LETTER", "$LETTER", "the letter of your choice")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a question is put into.

    Args:
        name: its name, or that of the file it was read from.
        text: with "{question}" once, where the question goes; "" for the question alone, to which
            the policy adds what it asks of a chat model by itself.
        for_choices: in place of `text` where a problem has choices; "" for the same.
    """

    name: str
    text: str = ""
    for_choices: str = ""

    def put(self, problem: Problem) -> Problem:
        """Return the problem as it is asked. A single picture comes first, without its mark."""
        text = self.for_choices if problem.choices and self.for_choices else self.text
        if not text:
            return problem
        question = problem.question
        if len(problem.images) == 1 and question.count(_IMAGE) == 1:
            question = question.replace(_IMAGE, "").strip()  # shown first, as one without a mark
        return replace(problem, question=text.replace(QUESTION, question))


PROMPTS: Mapping[str, Prompt] = MappingProxyType(
    {
        prompt.name: prompt
        for prompt in (
            Prompt("plain"),
            Prompt(
                "en",
                "Answer the question below. Reason step by step first; when you know the answer, "
                f"write it as 'Final answer: ...'.\n\nQuestion:\n\n{QUESTION}",
            ),
            Prompt("en_v2", f"{QUESTION}\nAnswer the question above. {_FINAL}"),
            Prompt(
                "cot",
                f"{QUESTION}\nAnswer the question above. {_FINAL}",
                f"{QUESTION}\nAnswer the multiple-choice question above. {_LETTER}",
            ),
        )
    }
)
"""The prompts by name."""


def prompt_of(name: str) -> Prompt:
    """Return a prompt by its name, or from a text file. Raises `ConfigError` for neither."""
    if name in PROMPTS:
        return PROMPTS[name]
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"prompt {name!r}: neither a file that can be read nor one of {', '.join(PROMPTS)}"
        ) from error
    if text.count(QUESTION) != 1:
        raise ConfigError(f"{path}: a prompt holds {QUESTION} once, where the question goes")
    return Prompt(path.name, text)
