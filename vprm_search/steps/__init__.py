"""Cut a solution into steps, merge steps into groups, and make text safe to hash and to store.

A step is one paragraph: VisualPRM cuts a response at every `"\\n\\n"` and, when there are more than
`max_steps` of them, merges consecutive ones into equally large groups (arXiv 2503.10291, its public
pipeline). That cut, to the letter, is "exact"; `splitters` holds the others by name, `solution` the
rules around them (merging, limits), `blocks` what is not cut inside, `paragraphs` what a paragraph
is (a heading, a greeting, a list), and `structured` the steps of structured answers.
"""

from vprm_search.steps.solution import (
    DEFAULT_LIMITS,
    NO_LIMITS,
    REFERENCE_MAX_STEPS,
    REPLACEMENT,
    StepLimits,
    join_steps,
    merge_steps,
    normalise_text,
    split_solution,
    split_steps,
)
from vprm_search.steps.splitters import (
    SPLITTERS,
    STEP_SEPARATOR,
    Splitter,
    choose_splitter,
    split_at_blank_lines,
    splitter_of,
)
from vprm_search.steps.structured import json_object, structured_steps

__all__ = [
    "DEFAULT_LIMITS",
    "NO_LIMITS",
    "REFERENCE_MAX_STEPS",
    "REPLACEMENT",
    "SPLITTERS",
    "STEP_SEPARATOR",
    "Splitter",
    "StepLimits",
    "choose_splitter",
    "join_steps",
    "merge_steps",
    "normalise_text",
    "split_at_blank_lines",
    "split_solution",
    "split_steps",
    "splitter_of",
    "json_object",
    "structured_steps",
]
