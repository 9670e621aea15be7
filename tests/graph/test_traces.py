"""What a search sends to LangSmith or OpenTelemetry: no copy of the picture, and no key."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompt_values import ChatPromptValue
from langchain_core.prompts import ChatPromptTemplate
from langgraph.types import Command, Send
from langsmith import Client
from langsmith.run_helpers import tracing_context
from pydantic import Field

from tests.graph.fakes import QUESTION, HashChatModel, HashScorer, asked, noisy_png
from tests.json_server import Asked, Reply, json_server
from vprm_search.chat.tracing import pictures_aside, without_pictures_in_traces
from vprm_search.graph import create_search_graph, tree_of_state, without_pictures
from vprm_search.images import image_message
from vprm_search.images.store import MemoryImageStore
from vprm_search.scoring.judge_scorer import JudgeScorer
from vprm_search.search import BeamSearch, BestOfN
from vprm_search.testing import ScriptedChatModel

LARGE = noisy_png(452)  # 0.6 MB
PNG = noisy_png(150)
BEAM = BeamSearch(width=2, expand=2, stop=None)
KEY = "sk-" + "7e5t" * 10


class Collector:
    """A LangSmith server that keeps what it is sent."""

    def __init__(self) -> None:
        self.bytes_sent = 0
        self.bodies: list[bytes] = []

    def rule(self, asked: Asked) -> Reply:
        if asked.method == "GET":
            flags = {"zstd_compression_enabled": True}
            batch = {
                "use_multipart_endpoint": True,
                "size_limit": 100,
                "size_limit_bytes": 20_000_000,
                "scale_up_qsize_trigger": 1000,
                "scale_up_nthreads_limit": 16,
                "scale_down_nempty_trigger": 4,
            }
            return Reply({"version": "1", "batch_ingest_config": batch, "instance_flags": flags})
        assert asked.path == "/runs/multipart"
        self.bytes_sent += len(asked.data)
        data = asked.data
        if asked.headers.get("content-encoding") == "zstd":
            data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        self.bodies.append(data)
        return Reply({})

    @property
    def text(self) -> str:
        return b"".join(self.bodies).decode()

    def parts(self) -> list[tuple[str, str, Any]]:
        """Return the parts of all runs: (id of the run, name of the part or "", its JSON)."""
        found = []
        for body in self.bodies:
            for part in body.split(b"Content-Disposition: form-data; name=")[1:]:
                head, _, data = part.partition(b"\r\n\r\n")
                run, _, name = head.split(b'"')[1].decode().partition(".")[2].partition(".")
                found.append((run, name, json.loads(data.rpartition(b"\r\n--")[0] or data)))
        return found

    def fields(self) -> list[tuple[str, Any]]:
        """Return the parts of all runs: (name of the part, its JSON)."""
        return [(name, data) for _, name, data in self.parts()]


@contextmanager
def traced(**options: Any) -> Iterator[Collector]:
    collector = Collector()
    with json_server(collector.rule) as address:
        client = Client(api_url=address, api_key="lsv2_pt_none", **options)
        with tracing_context(enabled=True, client=client):
            yield collector
        client.flush()
        client.close()


@contextmanager
def traced_by_opentelemetry(**options: Any) -> Iterator[list[tuple[str, str]]]:
    """Give the spans' (name, attributes), once the block has ended."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    client = Client(
        tracing_mode="otel", otel_tracer_provider=provider, api_key="lsv2_pt_none", **options
    )
    told: list[tuple[str, str]] = []
    with tracing_context(enabled=True, client=client):
        yield told
    client.flush()
    client.close()
    for span in spans.get_finished_spans():
        told.append((span.name, json.dumps(dict(span.attributes or {}), default=str)))


def pictures_in(text: str, png: bytes = PNG) -> int:
    """Count the copies of a picture's middle, however it is cut off from what stands before."""
    encoded = base64.b64encode(png).decode()
    return text.count(encoded[3000:3200]) + text.count("iVBORw0KGgo")


def app(**options: Any) -> Any:
    given = {"policy": HashChatModel(), "scorer": HashScorer(), "strategy": BEAM, **options}
    return create_search_graph(image_store=MemoryImageStore(), **given).compile()


@pytest.mark.parametrize("way", ["invoke", "astream", "chain"])
async def test_a_search_sends_less_than_its_picture_to_langsmith(way: str) -> None:
    policy = HashChatModel(max_steps=14)
    graph = app(policy=policy)
    png = LARGE if way == "invoke" else PNG
    with traced() as collector:
        if way == "invoke":
            state = graph.invoke(asked(png=png))
        elif way == "astream":
            parts = [p async for p in graph.astream(asked(png=PNG), stream_mode="values")]
            state = parts[-1]
        else:
            chain = ChatPromptTemplate.from_messages([("system", "Look."), ("placeholder", "{m}")])
            state = await (chain | graph).ainvoke({"m": asked(png=PNG)["messages"]})
    assert tree_of_state(state).rounds >= 10
    assert len(policy.calls) > 20
    assert all(len(images_of(call.messages)) == 1 for call in policy.calls)
    assert not any("url" in block for call in policy.calls for block in images_of(call.messages))
    if way == "chain":  # a prompt that holds the picture is a run of its own: not the search's
        assert pictures_in(collector.text) > 0
        return
    assert pictures_in(collector.text, png) == 0
    if way == "invoke":
        assert sum(map(len, collector.bodies)) < 1.2 * len(png)
        assert collector.bytes_sent < 0.2 * len(png)
    (digest,) = state["search_problem"]["images"]
    assert collector.text.count(f"vprm-image://{digest}") > 20


def test_the_trace_grows_with_the_search_and_not_with_its_square() -> None:
    sizes = []
    for steps in (10, 20):
        model = HashChatModel(max_steps=steps)
        model = model.model_copy(update={"spread": 10_000})
        with traced() as collector:
            state = app(policy=model).invoke(asked())
        sizes.append(sum(map(len, collector.bodies)) / len(tree_of_state(state)))
    assert sizes[1] < 1.25 * sizes[0]


async def test_opentelemetry_gets_no_picture() -> None:
    policy = HashChatModel(max_steps=14)
    with traced_by_opentelemetry() as spans:
        await app(policy=policy).ainvoke(asked(png=LARGE))
    told = [text for _, text in spans]
    assert len([name for name, _ in spans if name == "propose"]) > 30
    assert sum(map(len, told)) < 1.2 * len(LARGE)
    assert pictures_in("".join(told), LARGE) == 0
    assert any("gen_ai.prompt" in text and "vprm-image://" in text for text in told)


def verdict(call: Any) -> AIMessage | str:
    if call.options.get("tools"):
        args = {"reason": "seen", "correct": True}
        return AIMessage("", tool_calls=[{"name": "Verdict", "args": args, "id": "1"}])
    return "Verdict: yes"


@pytest.mark.parametrize("mode", ["verdict", "text"])
def test_a_judge_sees_the_picture_and_its_traces_do_not(mode: Any) -> None:
    judge = ScriptedChatModel(verdict)
    scorer = JudgeScorer(judge, mode=mode)
    with traced() as collector:
        state = app(scorer=scorer, strategy=BestOfN(2)).invoke(asked(png=PNG))
    assert state["search_result"]["score"] == 1.0
    assert judge.calls
    assert all(pictures_in(repr(call.messages)) for call in judge.calls)
    assert pictures_in(collector.text) == 0


def test_pictures_of_a_conversation_stay_out_too() -> None:
    policy = HashChatModel()
    blocks = [{"type": "image_url", "image_url": {"url": data_uri(PNG)}}]
    said = [
        SystemMessage("Look."),
        image_message("And this?", PNG),
        AIMessage("", tool_calls=[{"name": "crop", "args": {}, "id": "1"}]),
        ToolMessage(blocks, tool_call_id="1"),
        HumanMessage(QUESTION),
    ]
    with traced() as collector:
        app(policy=policy, strategy=BestOfN(2)).invoke({"messages": said})
    assert all(len(images_of(call.messages)) == 2 for call in policy.calls)
    assert pictures_in(collector.text) == 0


def test_no_key_is_in_a_trace() -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    reply = {
        "id": "1",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "Answer: 3"},
            }
        ],
    }
    seen: list[str] = []

    def rule(asked: Asked) -> Reply:
        seen.append(json.dumps(dict(asked.headers)))
        return Reply(reply)

    with json_server(rule) as address, traced() as collector:
        model = langchain_openai.ChatOpenAI(
            model="m", base_url=address, api_key=KEY, default_headers={"X-Other": "abracadabra"}
        )
        bound = model.bind(extra_headers={"X-Third": "open sesame"})
        judge = JudgeScorer(model, mode="text")
        app(policy=bound, scorer=judge, strategy=BestOfN(2)).invoke(asked(png=PNG))
    secrets = (KEY, "abracadabra", "open sesame")
    assert all(any(secret in headers for headers in seen) for secret in secrets)
    assert [secret for secret in secrets if secret in collector.text] == []
    assert pictures_in(collector.text) == 0


# --- a rule for tracers of runs that are not ours ------------------------------------------------

SMALL = noisy_png(16)
ENCODED = base64.b64encode(SMALL).decode()
SHAPES: list[Any] = [
    {"type": "image", "base64": ENCODED, "mime_type": "image/png"},
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{ENCODED}"}},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ENCODED}},
    {"inline_data": {"mime_type": "image/png", "data": ENCODED}},
    f"![chart](data:image/gif;base64,{ENCODED})",
    ENCODED,
    HumanMessage([{"type": "image", "base64": ENCODED, "mime_type": "image/png"}]),
    HumanMessage(f"see {ENCODED}"),
    ToolMessage("done", tool_call_id="1", artifact={"shown": f"data:image/png;base64,{ENCODED}"}),
    ChatPromptValue(messages=[image_message("How many?", SMALL)]),
    Command(update={"messages": [image_message("How many?", SMALL)]}),
    Send("node", {"picture": ENCODED}),
]
PLAIN = (
    st.none() | st.booleans() | st.integers() | st.text() | st.just({"type": "text", "text": "a"})
)


@given(
    st.recursive(
        st.sampled_from(SHAPES) | PLAIN,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=8,
    )
)
def test_the_rule_leaves_no_picture_and_all_else(told: Any) -> None:
    light = without_pictures(told)
    assert ENCODED[100:200] not in repr(light)
    if ENCODED[100:200] not in repr(told):
        assert light == told
    assert without_pictures(light) == light


# --- the view of a model -------------------------------------------------------------------------


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def images_of(messages: list[BaseMessage]) -> list[Any]:
    blocks = [b for m in messages if isinstance(m.content, list) for b in m.content]
    return [b for b in blocks if isinstance(b, dict) and "image" in b["type"]]


class Counting(BaseChatModel):
    """A user's model: synchronous, with a counter of its own."""

    count: int = 0
    seen: list[Any] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "counting"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        self.count += 1
        self.seen.append((messages, threading.current_thread()))
        return ChatResult(generations=[ChatGeneration(message=AIMessage("yes"))])


async def test_the_view_is_the_model_and_only_it_takes_references() -> None:
    model = Counting()
    view = without_pictures_in_traces(model)
    assert isinstance(view, Counting)
    assert repr(view) == repr(model)
    assert type(view).__name__ == "Counting"
    assert without_pictures_in_traces(view) is view
    marked = {"type": "image", "base64": "AAAA", "mime_type": "image/png", "cache_control": {}}
    blocks: list[Any] = [{k: marked[k] for k in ("type", "base64", "mime_type")}, marked]
    blocks += [{"type": "image_url", "image_url": {"url": data_uri(b"x")}}, "text"]
    messages: list[BaseMessage] = [HumanMessage(blocks), AIMessage("no picture")]
    with pictures_aside(view, messages) as light:
        assert "base64" not in repr(light)
        view.invoke(light)
        await view.ainvoke(light)
        assert len({block["url"] for block in images_of(light)}) == 3
    assert model.count == view.count == 2
    for shown, _ in model.seen:
        assert shown == messages
    with pictures_aside(model, messages) as whole:
        assert whole is messages


def test_the_view_can_do_what_the_model_can() -> None:
    for model in (Counting(), ScriptedChatModel("yes"), HashChatModel()):
        kind, view = type(model), type(without_pictures_in_traces(model))
        for name in ("_stream", "_astream", "_agenerate", "bind_tools", "with_structured_output"):
            base = getattr(BaseChatModel, name)
            assert (getattr(view, name) is base) == (getattr(kind, name) is base), name


class Opaque(Counting):
    """Does LangChain's part of a call itself, so nothing could be put back below it."""

    def generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        return super().generate(messages, *args, **kwargs)


def test_a_model_that_does_the_whole_call_itself_is_given_the_pictures() -> None:
    model = Opaque()
    assert without_pictures_in_traces(model) is model
    messages: list[BaseMessage] = [image_message("How many?", noisy_png(8))]
    with pictures_aside(model, messages) as given:
        assert given is messages
