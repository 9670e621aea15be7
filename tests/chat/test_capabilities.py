"""What is believed about a model, from its class and its address."""

from __future__ import annotations

import pytest
from langchain_openai import AzureChatOpenAI, ChatOpenAI
from pydantic import SecretStr

from tests.policy.models import Script
from vprm_search.chat.capabilities import (
    HOSTED,
    OPEN_SERVER,
    OPENAI,
    OPENAI_REASONING,
    UNKNOWN_MODEL,
)
from vprm_search.policy import ModelCapabilities, capabilities_of

KEY = SecretStr("EMPTY")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (None, OPENAI),
        ("https://api.openai.com/v1", OPENAI),
        ("https://eu.api.openai.com/v1", OPENAI),
        ("http://127.0.0.1:8000/v1", OPEN_SERVER),
        ("http://[::1]:8000/v1", OPEN_SERVER),
        ("https://gpu.example.org/v1", OPEN_SERVER),
        ("https://notopenai.com.example.org/v1", OPEN_SERVER),
        ("https://openrouter.ai/api/v1", HOSTED),
        ("https://api.groq.com/openai/v1", HOSTED),
        ("https://api.deepseek.com", HOSTED),
    ],
)
def test_openai_clients_by_address(
    address: str | None, expected: ModelCapabilities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_BASE", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert capabilities_of(ChatOpenAI(model="m", api_key=KEY, base_url=address)) == expected


def test_the_address_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
    assert capabilities_of(ChatOpenAI(model="m", api_key=KEY)) == OPEN_SERVER


@pytest.mark.parametrize("name", ["o1", "o3-mini", "gpt-5", "gpt-5-mini"])
def test_reasoning_models_take_no_stop_strings(name: str) -> None:
    model = ChatOpenAI(model=name, api_key=KEY, base_url="https://api.openai.com/v1")
    assert capabilities_of(model) == OPENAI_REASONING


def test_azure_is_openai() -> None:
    model = AzureChatOpenAI(
        azure_endpoint="https://x.openai.azure.com", api_key=KEY, api_version="1", model="gpt-4o"
    )
    assert capabilities_of(model) == OPENAI


def _like(module: str, **options: str) -> Script:
    """A model whose class claims to come from `module`, which need not be installed."""
    kind = type("Model", (Script,), {"__module__": f"{module}.chat_models"})
    model: Script = kind(lambda *_: "")
    for name, value in options.items():
        object.__setattr__(model, name, value)
    return model


@pytest.mark.parametrize(
    ("name", "prefill"),
    [
        ("claude-3-5-sonnet-latest", "message"),
        ("claude-3-haiku-20240307", "message"),
        ("claude-sonnet-4-20250514", "message"),
        ("claude-opus-4-5", "message"),
        ("claude-sonnet-4-5-20250929", "message"),
        ("claude-opus-4-6", "none"),
        ("claude-sonnet-5", "none"),
    ],
)
def test_claude_by_name(name: str, prefill: str) -> None:
    known = capabilities_of(_like("langchain_anthropic", model=name))
    assert (known.prefill, known.stop) == (prefill, "non_blank")


def test_ollama_and_unknown_models() -> None:
    assert capabilities_of(_like("langchain_ollama")).prefill == "message"
    assert capabilities_of(Script(lambda *_: "")) == UNKNOWN_MODEL


def test_a_models_own_word_counts() -> None:
    known = ModelCapabilities(prefill="message", seeds="children")

    class Own(Script):
        @property
        def policy_capabilities(self) -> ModelCapabilities:
            return known

    assert capabilities_of(Own(lambda *_: "")) is known
