"""Pictures stay out of the state, whatever way they come in."""

from __future__ import annotations

import base64
import json
import logging
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.store.memory import InMemoryStore

from tests.benchmarks.framework import Clock, InstantPolicy, InstantScorer
from tests.graph.fakes import QUESTION, HashChatModel, HashScorer, asked, noisy_png
from vprm_search.budget import Budget
from vprm_search.errors import ImageError, SearchWarning
from vprm_search.graph import (
    create_search_graph,
    tree_of_state,
)
from vprm_search.images import (
    DiskImageStore,
    ImageIntake,
    LangGraphImageStore,
    MemoryImageStore,
    normalise_image,
    reference_images,
    restore_images,
)
from vprm_search.search import BeamSearch, BestOfN
from vprm_search.types import ImageData

PNG = noisy_png(64)
B64 = base64.b64encode(PNG).decode()
URI = f"data:image/png;base64,{B64}"
DIGEST = normalise_image(PNG).digest
THREAD: Any = {"configurable": {"thread_id": "one"}}

BLOCKS: dict[str, dict[str, Any]] = {
    "standard": {"type": "image", "base64": B64, "mime_type": "image/png"},
    "data-uri": {"type": "image", "url": URI},
    "openai": {"type": "image_url", "image_url": {"url": URI}},
    "openai-text": {"type": "image_url", "image_url": URI},
    "responses": {"type": "input_image", "image_url": URI},
    "anthropic": {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": B64},
    },
    "older": {"type": "image", "source_type": "base64", "data": B64, "mime_type": "image/png"},
}


def compiled(store: Any, saver: Any, **options: Any) -> Any:
    given = {"policy": HashChatModel(), "scorer": HashScorer(), **options}
    return create_search_graph(image_store=store, **given).compile(checkpointer=saver)


def stored(path: Path) -> bytes:
    """Return everything a SQLite saver holds, every value of every table."""
    with sqlite3.connect(path) as database:
        tables = [
            row[0] for row in database.execute("select name from sqlite_master where type='table'")
        ]
        rows = [row for table in tables for row in database.execute(f"select * from {table}")]
    return b"\n".join(v if isinstance(v, bytes) else str(v).encode() for row in rows for v in row)


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_format_of_a_picture_becomes_the_same_reference(kind: str) -> None:
    store = MemoryImageStore()
    scorer = HashScorer()
    app = compiled(store, InMemorySaver(), scorer=scorer, strategy=BestOfN(2))
    content = [{"type": "text", "text": QUESTION}, BLOCKS[kind]]
    state = app.invoke({"messages": [HumanMessage(content)]}, THREAD)
    reference = {"type": "image", "url": f"vprm-image://{DIGEST}"}
    assert state["messages"][0].content == [{"type": "text", "text": QUESTION}, reference]
    assert state["search_problem"] == {"question": QUESTION, "images": [DIGEST], "system": ""}
    assert {tuple(i.digest for i in r.images) for r in scorer.asked} == {(DIGEST,)}
    assert store.get(DIGEST).png == normalise_image(PNG).png


def test_the_policy_sees_the_normalised_picture() -> None:
    model = HashChatModel()
    app = compiled(MemoryImageStore(), None, policy=model, strategy=BestOfN(2))
    app.invoke(asked(png=PNG))
    assert model.calls[0].images == (normalise_image(PNG),)
    shown = model.calls[0].messages[0].content[0]
    assert isinstance(shown, dict)
    assert base64.b64decode(shown["base64"]) == normalise_image(PNG).png


@pytest.mark.parametrize("messages", [
    ("user", QUESTION),
    {"role": "user", "content": [{"type": "text", "text": QUESTION}, BLOCKS["openai"]]},
    QUESTION,
    [{"role": "system", "content": "Be brief."}, ("user", QUESTION)],
], ids=["tuple", "dict", "text", "list"])  # fmt: skip
def test_messages_come_in_every_form_langchain_takes(messages: Any) -> None:
    given = messages if isinstance(messages, list) else [messages]
    app = compiled(MemoryImageStore(), InMemorySaver(), strategy=BestOfN(2))
    state = app.invoke({"messages": given}, THREAD)
    assert state["search_problem"]["question"] == QUESTION
    assert isinstance(state["messages"][-1], AIMessage)


def test_other_messages_keep_their_blocks_ids_and_names() -> None:
    tool = ToolMessage(
        [{"type": "text", "text": "found"}, BLOCKS["openai"]], tool_call_id="t", id="2"
    )
    plain = HumanMessage([{"type": "text", "text": "no picture"}], id="3", name="ann")
    store = MemoryImageStore()
    first, second = reference_images([tool, plain], ImageIntake(store).name_image)
    assert (first.id, first.type, first.tool_call_id) == ("2", "tool", "t")
    assert first.content == [
        {"type": "text", "text": "found"},
        {"type": "image", "url": f"vprm-image://{DIGEST}"},
    ]
    assert second is plain
    again: list[BaseMessage] = reference_images([first], ImageIntake(store).name_image)
    assert again[0].content == first.content


def test_images_may_live_in_langgraphs_own_store() -> None:
    inner = InMemoryStore()
    app = compiled(LangGraphImageStore(inner), InMemorySaver(), strategy=BestOfN(2))
    state = app.invoke(asked(png=PNG), THREAD)
    assert state["search_problem"]["images"] == [DIGEST]
    another = LangGraphImageStore(inner)  # as another process would open it
    image = normalise_image(PNG)
    assert another.get(DIGEST) == image
    assert another.put(image) == DIGEST
    assert len(inner.search(("vprm-search", "images"))) == 1
    with pytest.raises(ImageError, match="not in the LangGraph store"):
        another.get("sha256-" + "0" * 64)
    with pytest.raises(ImageError, match="damaged"):
        another.put(ImageData("sha256-" + "0" * 64, image.png))
    for value in ({"png": "@"}, {}, {"png": base64.b64encode(noisy_png(40)).decode()}):
        inner.put(("vprm-search", "images"), DIGEST, value)
        with pytest.raises(ImageError, match="damaged"):
            another.get(DIGEST)


def test_references_are_turned_back_for_a_model_that_needs_the_picture() -> None:
    store = MemoryImageStore()
    given = [
        HumanMessage([{"type": "text", "text": "?"}, BLOCKS["openai"]], id="1"),
        AIMessage("2"),
    ]
    light = reference_images(given, ImageIntake(store).name_image)
    human, ai = restore_images(light, store)
    assert (human.id, human.content[0]) == ("1", {"type": "text", "text": "?"})
    assert base64.b64decode(human.content[1]["base64"]) == normalise_image(PNG).png
    assert ai.content == "2"
    assert reference_images([human], ImageIntake(MemoryImageStore()).name_image)[0] == light[0]
    with pytest.raises(ImageError, match=DIGEST):
        restore_images(light, MemoryImageStore())


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "url": "https://example.test/cat.png"},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "image", "file_id": "file-1"},
        {"type": "image", "base64": "bm90IGFuIGltYWdl", "mime_type": "image/png"},
    ],
    ids=["url", "file", "id", "broken"],
)
def test_a_picture_that_cannot_be_used_is_refused_before_anything_is_stored(
    block: dict[str, Any],
) -> None:
    saver = InMemorySaver()
    app = compiled(MemoryImageStore(), saver)
    with pytest.raises(ImageError):
        app.invoke({"messages": [HumanMessage([block, {"type": "text", "text": "?"}])]}, THREAD)
    assert list(saver.list(THREAD)) == []


def test_a_missing_picture_is_named_when_a_search_goes_on_without_its_store(tmp_path: Path) -> None:
    saver = InMemorySaver()
    first = create_search_graph(
        policy=HashChatModel(), scorer=HashScorer(), image_store=DiskImageStore(tmp_path)
    ).compile(checkpointer=saver, interrupt_before=["propose"])
    first.invoke(asked(png=PNG), THREAD)
    with pytest.raises(ImageError, match=f"{DIGEST}.*store the search was started with"):
        compiled(MemoryImageStore(), saver).invoke(None, THREAD)
    state = compiled(DiskImageStore(tmp_path), saver).invoke(None, THREAD)
    assert state["search_result"]["text"]


@pytest.mark.parametrize("strategy", [BestOfN(8), BeamSearch()], ids=["best-of-8", "beam"])
async def test_a_search_over_a_megabyte_leaves_a_small_file(strategy: Any, tmp_path: Path) -> None:
    png = noisy_png(600)
    assert len(png) > 1_000_000
    encoded = base64.b64encode(png)[1000:1040]
    sizes = []
    with SqliteSaver.from_conn_string(str(tmp_path / "sync.sqlite")) as saver:
        app = compiled(DiskImageStore(tmp_path / "i"), saver, strategy=strategy)
        app.invoke(asked(png=png), THREAD, durability="sync")
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "async.sqlite")) as asaver:
        app = compiled(DiskImageStore(tmp_path / "i"), asaver, strategy=strategy)
        async for _ in app.astream(asked(png=png), THREAD, stream_mode="updates"):
            pass
    for path in (tmp_path / "sync.sqlite", tmp_path / "async.sqlite"):
        data = stored(path)
        assert b"vprm-image://sha256-" in data
        assert encoded not in data
        assert png[1000:1030] not in data
        sizes.append(path.stat().st_size)
    assert len(sizes) == 2
    assert max(sizes) < 400_000


@pytest.mark.parametrize("saver", ["memory", "sqlite"])
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_a_search_of_twenty_rounds_leaves_less_than_a_megabyte(
    saver: str, durability: Any, tmp_path: Path
) -> None:
    """At 64 candidates a round."""
    path = tmp_path / "state.sqlite"
    with SqliteSaver.from_conn_string(str(path)) as sqlite:
        kept: Any = sqlite if saver == "sqlite" else InMemorySaver()
        app = create_search_graph(
            policy=InstantPolicy(Clock()),
            scorer=InstantScorer(),
            strategy=BeamSearch(width=8, expand=8, stop=None, refill=0),
            budget=Budget(rounds=20),
            image_store=DiskImageStore(tmp_path / "i"),
        ).compile(checkpointer=kept)
        with pytest.warns(SearchWarning, match="no path finished"):
            state = app.invoke(asked(png=noisy_png(600)), THREAD, durability=durability)
        sqlite.conn.execute("pragma wal_checkpoint(truncate)")
    assert len(state["search_nodes"]) == 20 * 64 + 1
    assert len(json.dumps({k: v for k, v in state.items() if k != "messages"})) < 700_000
    assert (path.stat().st_size if saver == "sqlite" else bytes_in(kept)) < 1_000_000


def bytes_in(saver: InMemorySaver) -> int:
    """Return how many bytes a saver in memory holds, keys left out."""
    blobs = [blob for _, blob in saver.blobs.values()]
    writes = [one[2][1] for many in saver.writes.values() for one in many.values()]
    kept = [c for spaces in saver.storage.values() for t in spaces.values() for c in t.values()]
    return sum(map(len, blobs + writes)) + sum(len(c[0][1]) + len(c[1][1]) for c in kept)


def test_a_conversation_grows_with_its_questions_and_not_with_their_square(tmp_path: Path) -> None:
    path, sizes = tmp_path / "state.sqlite", []
    with SqliteSaver.from_conn_string(str(path)) as saver:
        app = compiled(DiskImageStore(tmp_path / "i"), saver, strategy=BestOfN(8))
        for number in range(24):
            text = HumanMessage(f"And how many tiles have the number {number}?")
            given = {"messages": [text]} if number else asked(png=noisy_png(600))
            state = app.invoke(given, THREAD)
            assert len(json.dumps(state["messages"][-1].response_metadata)) < 1000
            saver.conn.execute("pragma wal_checkpoint(truncate)")
            sizes.append(path.stat().st_size)
    assert len(state["messages"]) == 48
    assert sizes[23] - sizes[11] < 1.2 * (sizes[11] - sizes[0])
    assert max(sizes) < 2_000_000


@pytest.mark.parametrize("how", ["invoke", "batch", "abatch", "events", "stream"])
async def test_no_way_in_stores_the_picture_first(how: str) -> None:
    saver = InMemorySaver()
    app = compiled(MemoryImageStore(), saver, strategy=BestOfN(2))
    given = asked(png=PNG)
    if how == "invoke":
        app.invoke(given, THREAD)
    elif how == "batch":
        app.batch([given], THREAD)
    elif how == "abatch":
        await app.abatch([given], THREAD)
    elif how == "events":
        _ = [event async for event in app.astream_events(given, THREAD, version="v2")]
    else:
        _ = list(app.stream(given, THREAD, stream_mode="debug"))
    held = repr([(c.checkpoint, c.pending_writes) for c in saver.list(THREAD)])
    assert "vprm-image://" in held
    assert "base64" not in held
    assert given == asked(png=PNG)  # the caller's own messages are left alone


@pytest.mark.parametrize("way", ["node", "transformer", "chain"])
async def test_an_intake_moves_pictures_out_of_a_parents_state(way: str) -> None:
    store = MemoryImageStore()
    intake = ImageIntake(store)
    parent = StateGraph(MessagesState)
    names = ["intake", "first", "search", "last"]
    parent.add_node("intake", intake if way == "node" else lambda state: {})
    parent.add_node("first", lambda state: {})
    parent.add_node("search", compiled(store, None, strategy=BestOfN(2)))
    parent.add_node("last", lambda state: {})
    for before, after in zip([START, *names], [*names, END], strict=True):
        parent.add_edge(before, after)
    saver = InMemorySaver()
    app = parent.compile(checkpointer=saver)
    given = {"messages": [AIMessage("Hello."), *asked(png=PNG)["messages"]]}
    if way == "node":
        state = app.invoke(given, THREAD)
        await app.ainvoke(given, {"configurable": {"thread_id": "async"}})
    elif way == "transformer":
        state = app.invoke(intake.lighten(given), THREAD)
    else:
        state = await (RunnableLambda(intake.lighten) | app).ainvoke(given, THREAD)
    assert [m.type for m in state["messages"]] == ["ai", "human", "ai"]
    assert state["messages"][1].content[0]["url"] == f"vprm-image://{DIGEST}"
    heavy = {
        saved.metadata["step"]
        for saved in saver.list(THREAD)  # those of the search, too
        if "base64" in repr(saved.checkpoint)
    }
    assert heavy == ({-1, 0} if way == "node" else set())
    assert given["messages"][1] == asked(png=PNG)["messages"][0]


@pytest.mark.parametrize("given", [{}, {"messages": []}, None, "text", {"other": 1}])
def test_an_intake_lets_through_what_holds_no_messages(given: Any) -> None:
    assert ImageIntake(MemoryImageStore()).lighten(given) is given


def test_pictures_added_behind_the_graphs_back_are_taken_out_at_once() -> None:
    app = compiled(MemoryImageStore(), InMemorySaver(), strategy=BestOfN(2))
    app.update_state(THREAD, asked(png=PNG), as_node="__start__")
    state = app.invoke(None, THREAD)
    assert state["messages"][0].content[0]["url"] == f"vprm-image://{DIGEST}"
    assert state["messages"][0].id == "question"
    assert len(state["messages"]) == 2


def test_no_checkpoint_of_any_kind_holds_a_picture(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    saver = InMemorySaver()
    app = compiled(MemoryImageStore(), saver, strategy=BeamSearch(width=2, expand=2))
    app.invoke(asked(png=PNG), THREAD)
    app.invoke({"messages": [HumanMessage("And the blue ones?")]}, THREAD)
    serializer = JsonPlusSerializer()
    checkpoints = list(saver.list(THREAD))
    assert len(checkpoints) > 20
    for checkpoint in checkpoints:
        for value in (checkpoint.checkpoint, checkpoint.pending_writes, checkpoint.metadata):
            data = serializer.dumps_typed(value)[1]
            assert B64[500:540].encode() not in data
            assert PNG[500:530] not in data
    assert tree_of_state(app.get_state(THREAD).values).problem.images == (DIGEST,)
    assert B64[500:540] not in caplog.text
