"""Chat models that judge: what a real one would do, without a server."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage

from vprm_search.testing import ScriptedChatModel

Answer = Callable[[str, int], Any]
"""(text of the last message, number of the call from 1) -> what the judge says."""


class TextJudge(ScriptedChatModel):
    """Says a text and knows nothing else."""

    bind_tools = BaseChatModel.bind_tools

    def __init__(self, answer: Answer, **fields: Any) -> None:
        super().__init__(
            lambda call: self.said(answer(call.messages[-1].text, call.number + 1), call.options),
            **fields,
        )

    def said(self, answer: Any, options: Any) -> Any:
        return answer

    @property
    def asked(self) -> list[str]:
        """The texts of the last messages."""
        return [call.messages[-1].text for call in self.calls]


class LogprobJudge(TextJudge):
    """Gives the probabilities of its last token, as OpenAI's models and vLLM do."""

    logprobs: bool | None = None
    top_logprobs: int | None = None

    def said(self, answer: Any, options: Any) -> Any:
        if not isinstance(answer, dict):
            return answer
        assert options["logprobs"] is True
        assert options["top_logprobs"] == 20
        tokens = [{"token": token, "logprob": math.log(p)} for token, p in answer.items()]
        content = [{**tokens[0], "top_logprobs": tokens}]
        return AIMessage(tokens[0]["token"], response_metadata={"logprobs": {"content": content}})


class StructuredJudge(TextJudge):
    """Calls the tool of structured output; its answer is True, False, or something broken."""

    bind_tools = ScriptedChatModel.bind_tools

    def said(self, answer: Any, options: Any) -> Any:
        if not isinstance(answer, bool):
            return answer
        verdict = {"reason": "so", "correct": answer}
        return AIMessage("", tool_calls=[{"name": "Verdict", "args": verdict, "id": "1"}])


def last_step(text: str) -> str:
    """Return what stands in the last fence."""
    key = re.findall(r"^FENCE ([0-9a-f]+) problem$", text, re.MULTILINE)[0]
    return re.findall(rf"FENCE {key} step \d+\n(.*?)\nFENCE {key} end", text, re.DOTALL)[-1]
