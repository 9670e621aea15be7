"""Doubles for tests: a policy, a scorer and a chat model that do as they are told, and a proxy
that makes any HTTP server fail.

They are made for your tests and are what this package's own tests use. A double says what its
script says: a rule, a function of what was asked, or a list that is used up in order. Equal scripts
give equal runs: rules draw with `chance`, faults with a seed. `SyntheticWorld` (with its policy and
scorer) is a whole world of problems in which the truth is known.
"""

from vprm_search.compare.worlds import (
    ScoreNoise,
    SyntheticPolicy,
    SyntheticScorer,
    SyntheticWorld,
    WorldSettings,
)
from vprm_search.testing.chat_model import ChatCall, ScriptedChatModel, http_error
from vprm_search.testing.policy import ScriptedPolicy
from vprm_search.testing.proxy import (
    DEFAULT_FAULTS,
    Fault,
    FaultProxy,
    ProxiedRequest,
    SeededFaults,
)
from vprm_search.testing.scorer import NoisyScores, ScriptedScorer
from vprm_search.testing.script import chance

__all__ = [
    "DEFAULT_FAULTS",
    "ChatCall",
    "Fault",
    "FaultProxy",
    "NoisyScores",
    "ProxiedRequest",
    "ScoreNoise",
    "ScriptedChatModel",
    "ScriptedPolicy",
    "ScriptedScorer",
    "SeededFaults",
    "SyntheticPolicy",
    "SyntheticScorer",
    "SyntheticWorld",
    "WorldSettings",
    "chance",
    "http_error",
]
