"""LangChain's own tests for chat models, on a search over a loopback OpenAI server.

All of them run that need no network but this machine's; a picture that one fetches is put in place
of the download. Those that are left out test what the client itself has not: PDF, audio, video.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx
import pytest
from langchain_openai import ChatOpenAI
from PIL import Image

pytest.importorskip("langchain_tests")

from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from tests.guided.tool_server import serving
from vprm_search import BestOfN, GuidedChatModel
from vprm_search.testing import ScriptedScorer


def words(body: dict[str, Any], child: int) -> str:
    return f"Hello, you asked something ({child}).\n\nIt is fine.\n\nAnswer: {child % 2}"


def picture(url: str, **_: Any) -> httpx.Response:
    file = BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, "PNG")
    return httpx.Response(200, content=file.getvalue(), request=httpx.Request("GET", url))


def parts(url: str) -> dict[str, Any]:
    """Return how a guided model is made: eight requests fewer than with one for each candidate."""
    policy = ChatOpenAI(model="served", base_url=url, api_key="none", max_retries=0)
    scorer = ScriptedScorer(lambda request: 0.2 if "4" in request.steps[-1] else 0.7)
    return {"policy": policy, "scorer": scorer, "strategy": BestOfN(3)}


class Guided:
    """What both suites are told of the model."""

    url = "http://127.0.0.1:9/v1"

    @property
    def chat_model_class(self) -> type[GuidedChatModel]:
        return GuidedChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return parts(type(self).url)

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "another"


class TestUnits(Guided, ChatModelUnitTests):
    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        """Those of an answer; a time limit, repeats and the key are the policy client's."""
        own = super().standard_chat_model_params
        return {name: own[name] for name in ("temperature", "max_tokens", "stop")}


class TestCalls(Guided, ChatModelIntegrationTests):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _served(cls) -> Iterator[None]:
        with serving(words) as server:
            cls.url = server.url
            yield

    @pytest.fixture(autouse=True)
    def _no_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(httpx, "get", picture)
