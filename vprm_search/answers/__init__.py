"""Read answers out of solutions, and decide which of them are the same."""

from vprm_search.answers.choices import choices_in, choices_of, with_choices
from vprm_search.answers.forms import STRICT, VOTING, Sameness
from vprm_search.answers.reading import (
    AnswerReading,
    answer_in_steps,
    extract_answer,
    has_final_answer,
    read_answer,
)
from vprm_search.answers.sameness import answer_classes, same_answer
from vprm_search.answers.statements import DEFAULT_FORMAT, AnswerFormat

__all__ = [
    "DEFAULT_FORMAT",
    "STRICT",
    "VOTING",
    "AnswerFormat",
    "AnswerReading",
    "Sameness",
    "answer_classes",
    "answer_in_steps",
    "choices_in",
    "choices_of",
    "extract_answer",
    "has_final_answer",
    "read_answer",
    "same_answer",
    "with_choices",
]
