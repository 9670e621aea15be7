"""Every common chat client as a policy: the real client against a double of its provider.

`make test-clients` runs these where all packages of `requirements.txt` are installed; elsewhere
those of the missing ones are skipped.
"""

from __future__ import annotations

import base64
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from langchain.chat_models import base as chat_models
from langchain_core.runnables import RunnableLambda

from tests.clients.clients import CLIENTS, Client
from tests.clients.secure import authority_file
from tests.clients.servers import GENERATED, PROMPT, Body, Provider, providing
from tests.policy.models import RED, request
from vprm_search.errors import ClientWarning
from vprm_search.policy import ChatModelPolicy, RetryRules
from vprm_search.types import Proposal, Until

pytestmark = pytest.mark.slow

PAGE = Path(__file__).resolve().parents[2] / "docs" / "policies.md"
QUICK = RetryRules(max_attempts=1)


@pytest.fixture(params=CLIENTS, ids=[client.name for client in CLIENTS])
def client(request: pytest.FixtureRequest) -> Client:
    found: Client = request.param
    return found


@pytest.fixture
def provider(client: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    # Nothing is fetched from the hub, and this client takes any address for the hub's.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    if client.name == "ChatOpenAI, OpenAI":
        monkeypatch.setattr("vprm_search.chat.capabilities._OPENAI_HOSTS", ("127.0.0.1",))
    if client.by != "http":
        pytest.importorskip("trustme")
        monkeypatch.setenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", str(authority_file()))
    pytest.importorskip(client.path.rpartition(".")[0])
    with providing(client.keys, client.by) as provider:
        monkeypatch.setenv("PERPLEXITY_BASE_URL", provider.url)
        monkeypatch.setenv("ANTHROPIC_BEDROCK_BASE_URL", provider.url)
        yield provider


@dataclass(frozen=True)
class Told:
    """What a call was, and what came of it."""

    proposals: list[Proposal]
    body: Body
    said: list[str]

    @property
    def text(self) -> str:
        return json.dumps(self.body)


async def ask(client: Client, provider: Provider, *, n: int = 1, until: Until = "step") -> Told:
    policy = ChatModelPolicy(client.make(provider.url), max_tokens_per_step=64, retry=QUICK)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (row,) = await policy.propose([request("Red is 2.", n=n, images=(RED,), until=until)])
    said = [str(w.message) for w in caught if issubclass(w.category, ClientWarning)]
    return Told(row, provider.bodies[-1], said)


async def test_a_step_about_a_picture(client: Client, provider: Provider) -> None:
    """Nothing is sent that the provider does not document, and nothing is lost on the way."""
    told = await ask(client, provider, n=2)
    assert [(p.text, p.error) for p in told.proposals] == [("Red is 3.", "")] * 2
    assert told.said == []
    assert base64.b64encode(RED.png).decode() in told.text
    assert "64" in str(limits(told.body))
    assert len(provider.bodies) == (1 if told.body.get("n") == 2 else 2)
    streamed = bool(told.body.get("stream"))
    assert streamed is (client.name == "ChatOllama")  # which always streams, to itself


def limits(body: Body) -> list[Any]:
    inner = [body.get(key) or {} for key in ("generationConfig", "options", "inferenceConfig")]
    names = "max_tokens max_completion_tokens max_output_tokens maxOutputTokens num_predict"
    names += " maxTokens"
    return [part.get(name) for part in (body, *inner) for name in names.split()]


async def test_ends_are_told_apart(client: Client, provider: Provider) -> None:
    told = bool(client.length)
    whole = (await ask(client, provider, until="end")).proposals[0]
    assert whole.finish == ("stop" if told else "length")  # what is not told is no end
    if not told:
        provider.text = "Red is 3. Answer: 3"
        assert (await ask(client, provider, until="end")).proposals[0].finish == "stop"
        return
    provider.reason = client.length
    (cut,) = (await ask(client, provider, until="end")).proposals
    assert (cut.text, cut.finish) == ("Red is 3.", "length")
    provider.reason = client.filtered
    (filtered,) = (await ask(client, provider, until="end")).proposals
    assert (filtered.text, filtered.finish) == ("", "error")
    assert filtered.error


async def test_usage_is_the_providers(client: Client, provider: Provider) -> None:
    told = await ask(client, provider, n=2)
    calls = len(provider.bodies)
    assert sum(p.prompt_tokens for p in told.proposals) == PROMPT * calls
    assert sum(p.generated_tokens for p in told.proposals) == GENERATED * 2
    assert sum(p.requests for p in told.proposals) == calls


async def test_a_streaming_caller_changes_nothing(client: Client, provider: Provider) -> None:
    found: list[Told] = []

    async def run(_: Any) -> None:
        found.append(await ask(client, provider, n=2))

    chain = RunnableLambda(lambda _: None, afunc=run)
    async for _ in chain.astream_events(None, version="v2"):
        pass
    assert [p.text for p in found[0].proposals] == ["Red is 3."] * 2


async def test_a_scale_reaches_the_temperature(client: Client, provider: Provider) -> None:
    if client.name in ("ChatOpenAI, Responses API", "ChatAnthropicVertex"):
        pytest.skip("gpt-5 has no temperature, and Anthropic's client 2 takes none from Google's")
    policy = ChatModelPolicy(client.make(provider.url, temperature=0.4), retry=QUICK)
    await policy.propose([replace(request(), temperature_scale=2.0)])
    assert "0.8" in json.dumps(provider.bodies[-1])


def test_every_class_that_init_chat_model_makes_is_one_of_them() -> None:
    known = {client.path.rpartition(".")[2] for client in CLIENTS}
    assert {kind for _, kind, _ in chat_models._BUILTIN_PROVIDERS.values()} <= known


# --- the table of the page -----------------------------------------------------------------------


async def row_of(client: Client, provider: Provider) -> list[str]:
    """Return what the table of docs/policies.md says of a client, as its double saw it."""
    told = await ask(client, provider, n=2)
    body, text = told.body, told.text
    turns = body.get("messages") or body.get("contents") or body.get("input") or []
    marks = "cache_control" in text or "cachePoint" in text
    provider.thinking = "Let me see."
    thought = (await ask(client, provider)).proposals[0]
    provider.thinking = ""
    provider.reason = client.length
    cut = (await ask(client, provider, until="end")).proposals[0]
    cached = sum(p.cached_tokens for p in told.proposals)
    return [
        client.name,
        "yes" if base64.b64encode(RED.png).decode() in text else "no",
        "yes" if json.dumps("\n\n") in text else "cut here",
        "yes" if body.get("n") == 2 else "one a call",
        "yes" if {100, 101} & set(_numbers(body)) else "no",
        "yes" if turns and turns[-1].get("role") in ("assistant", "model") else "no",
        f"`{client.length}`" if client.length and cut.finish == "length" else "not told",
        "with remembered tokens" if cached else "yes" if told.proposals[0].prompt_tokens else "no",
        "marked" if marks else "by the provider",
        "put aside" if thought.text == "Red is 3." else "in the text",
    ]


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _numbers(inner)
    elif isinstance(value, int):
        yield value


HEAD = ["client", "images", "stop", "n", "seed", "prefill", "cut: its word", "usage"]
HEAD += ["prompt cache", "thinking"]


async def test_the_page_says_what_is_so(client: Client, provider: Provider) -> None:
    """`WRITE_DOCS=1 make test-clients PYTEST_ARGS="-n 0"` writes the table anew."""
    line = "| " + " | ".join(await row_of(client, provider)) + " |"
    page = PAGE.read_text(encoding="utf-8")
    if os.environ.get("WRITE_DOCS"):
        rows = [old for old in page.splitlines() if old.startswith(f"| {client.name} |")]
        end = "\n<!-- end"
        old, new = (rows[0], line) if rows else (end, f"\n{line}{end}")
        page = page.replace(old, new, 1)
        PAGE.write_text(page, encoding="utf-8")
    assert line in page
    assert "| " + " | ".join(HEAD) + " |" in page
