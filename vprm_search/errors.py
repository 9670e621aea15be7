"""Every error the library raises on purpose.

    VprmError
    ├── InputError            a value given by the caller cannot be used
    │   ├── ImageError        an image is too large, broken, or not an image
    │   ├── ConfigError       an option is out of range or two options contradict each other
    │   └── RecordError       a stored tree or record is damaged or from another search
    ├── PolicyError           the policy model could not propose a step
    ├── ScorerError           the process reward model could not score
    │   ├── PromptTooLongError    a prompt does not fit into the model's context
    │   └── ModelChangedError     a scoring server serves another model than before
    ├── SearchError           a search ended without a usable answer
    │   └── NoAnswerError     no path finished (see ``on_no_answer``)
    ├── CheckpointError       a model directory is missing, incomplete or unsafe
    └── MissingDependencyError  an optional extra is not installed

`SearchWarning` is no error: a search has an answer, or none, and says why to be careful with it.
`ClientWarning` is none either: a chat client is asked in another way than it was.
A message says what happened, to which item, the limit and the value, and what to do.
"""

from __future__ import annotations

import importlib
from typing import Any


class VprmError(Exception):
    """Base of all errors of this package."""


class InputError(VprmError, ValueError):
    """A value given by the caller cannot be used."""


class ImageError(InputError):
    """An image is too large, broken, of an unsupported kind, or not allowed."""


class ConfigError(InputError):
    """An option is out of range, or two options contradict each other."""


class RecordError(InputError):
    """A stored tree or node record is damaged or belongs to another search."""


class PolicyError(VprmError):
    """The policy model could not propose a step."""


class ScorerError(VprmError):
    """The process reward model could not score a request."""


class PromptTooLongError(ScorerError):
    """A problem with its solution does not fit into the scorer's context."""


class ModelChangedError(ScorerError):
    """A scoring server serves another model than before; their scores must not be mixed."""


class SearchError(VprmError):
    """A search ended without a usable answer."""


class NoAnswerError(SearchError):
    """No path finished and the configuration asks for an error in that case."""


class SearchWarning(UserWarning):
    """A search was cut by a limit, no path finished, or most calls failed; see its text."""


class ClientWarning(UserWarning):
    """A chat client or its server does not take what it is asked with; see its text."""


class CheckpointError(VprmError):
    """A model directory is missing, incomplete, or not safe to load."""


class MissingDependencyError(VprmError, ImportError):
    """An optional dependency is needed for this feature but not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is needed for this feature but is not installed; "
            f"install it with: pip install 'vprm-search[{extra}]'"
        )
        self.package = package
        self.extra = extra


def need(library: str, extra: str, package: str = "") -> Any:
    """Import a library that an extra brings, and return it.

    Raises `MissingDependencyError` if it is missing, which names `package` where its name to
    install is another one.
    """
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(package or library, extra) from error
