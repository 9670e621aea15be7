"""The policy and the reward model that both the graph and the OpenAI routes use.

Without settings they are the packaged tiny models. `POLICY_URL`, `POLICY_MODEL`, `POLICY_KEY` name
an OpenAI-compatible server, `SCORER_URL` a served reward model (`vprm-search serve`).
"""

import os
from functools import cache
from typing import Any


@cache
def load_models() -> tuple[Any, Any]:
    """Return the policy and the scorer."""
    if "POLICY_URL" not in os.environ:
        from vprm_search import TransformersScorer
        from vprm_search.tiny.chat_model import TinyChatModel
        from vprm_search.tiny.weights import weights_path

        return TinyChatModel(), TransformersScorer.from_pretrained(weights_path("prm"))
    from langchain_openai import ChatOpenAI

    from vprm_search import VllmScorer

    policy = ChatOpenAI(
        model=os.environ.get("POLICY_MODEL", "policy"),
        base_url=os.environ["POLICY_URL"],
        api_key=os.environ.get("POLICY_KEY", "none"),
        max_retries=0,
    )
    return policy, VllmScorer(os.environ["SCORER_URL"])
