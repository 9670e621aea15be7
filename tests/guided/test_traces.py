"""What a call of a guided model sends to LangSmith and OpenTelemetry: no copy of its picture."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.tracers import LangChainTracer
from langsmith.run_helpers import get_tracing_context

from tests.graph.fakes import HashChatModel, HashScorer
from tests.graph.test_traces import PNG, images_of, pictures_in, traced, traced_by_opentelemetry
from vprm_search import BestOfN, GuidedChatModel
from vprm_search.images import image_message

ASKED = [image_message("How many?", PNG)]
WAYS = ["invoke", "ainvoke", "stream", "astream", "batch", "generate", "v2", "v3", "av3"]


def guided(**options: Any) -> tuple[HashChatModel, GuidedChatModel]:
    policy = HashChatModel()
    return policy, GuidedChatModel(
        policy=policy, scorer=HashScorer(), strategy=BestOfN(4), **options
    )


async def call(model: Any, way: str, *config: Any) -> None:
    if way == "invoke":
        model.invoke(ASKED, *config)
    elif way == "ainvoke":
        await model.ainvoke(ASKED, *config)
    elif way == "stream":
        list(model.stream(ASKED, *config))
    elif way == "astream":
        _ = [piece async for piece in model.astream(ASKED, *config)]
    elif way == "batch":
        model.batch([ASKED], *config)
    elif way == "generate":
        model.generate([ASKED])
    elif way == "v2":
        _ = [event async for event in model.astream_events(ASKED, *config, version="v2")]
    elif way == "v3":
        assert model.stream_events(ASKED, *config, version="v3").output.text
    else:
        stream = await model.astream_events(ASKED, *config, version="v3")
        assert (await stream.output).text


@pytest.mark.filterwarnings("ignore:.*is in beta")
@pytest.mark.parametrize("way", WAYS)
async def test_a_call_sends_no_picture_to_langsmith(way: str) -> None:
    policy, model = guided()
    with traced() as collector:
        await call(model, way)
    assert all(images_of(c.messages)[0].get("base64") for c in policy.calls)
    runs = {data["id"]: data for _, name, data in collector.parts() if not name}
    assert {run["name"] for run in runs.values()} == {"GuidedChatModel", "propose"}
    assert pictures_in(collector.text, PNG) == 0
    assert sum(map(len, collector.bodies)) < 1.2 * len(PNG)
    assert "vprm-image://" in collector.text


@pytest.mark.parametrize("given", ["to the call", "to the model"])
@pytest.mark.parametrize("way", ["invoke", "astream"])
async def test_nor_does_a_tracer_of_the_users_own_and_it_traces_once(given: str, way: str) -> None:
    with traced() as collector:
        tracer = LangChainTracer(client=get_tracing_context()["client"])
        policy, model = guided(callbacks=[tracer] if given == "to the model" else None)
        config: list[Any] = [{"callbacks": [tracer]}] if given == "to the call" else []
        await call(model, way, *config)
    begun = [d for _, name, d in collector.parts() if not name and d.get("run_type")]
    assert [run["name"] for run in begun].count("GuidedChatModel") <= 2  # begun and ended
    assert pictures_in(collector.text, PNG) == 0
    assert policy.calls


async def test_nor_goes_one_to_opentelemetry() -> None:
    with traced_by_opentelemetry() as spans:
        await call(guided()[1], "ainvoke")
    assert {name for name, _ in spans} == {"GuidedChatModel", "propose"}
    text = "".join(told for _, told in spans)
    assert pictures_in(text, PNG) == 0
    assert len(text) < 1.2 * len(PNG)
    assert "vprm-image://" in text
