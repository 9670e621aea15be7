"""Reward-guided search as a graph for LangGraph's server and Studio (models: `models.py`)."""

import asyncio
from functools import cache
from typing import Annotated, Any, Literal

from langchain_core.messages import AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime
from langgraph.types import interrupt
from models import load_models
from pydantic import BaseModel, Field
from typing_extensions import TypedDict  # typing's has no schema before Python 3.12

from vprm_search import Budget, DiskImageStore, create_search_graph
from vprm_search.compare.entrants import ENTRANTS
from vprm_search.errors import InputError
from vprm_search.images.messages import ImageIntake

STORE = DiskImageStore()
INTAKE = ImageIntake(STORE)


class Settings(BaseModel):
    """What a caller may choose; Studio shows it as a form."""

    strategy: Literal["auto", "best-of-n", "beam", "dvts", "rebase", "particles"] = Field(
        "auto", description="How to search; auto fits itself to reward model and time."
    )
    n: int = Field(16, ge=1, le=64, description="About how many solutions to try.")
    max_seconds: float = Field(300, gt=0, le=3600, description="Then the best answer so far.")
    ask_below: float = Field(
        0, ge=0, le=1, description="Ask a person about an answer whose score is lower; 0: never."
    )


class Request(TypedDict, total=False):
    """What is asked: a question with pictures as data URIs, or a conversation."""

    question: Annotated[str, Field(description="The problem, as text.")]
    images: Annotated[
        list[str],
        Field(
            description="Its pictures as data URIs (data:image/png;base64,…); nothing is fetched."
        ),
    ]
    messages: Annotated[
        list[AnyMessage],
        Field(description="Instead: a conversation whose last question is answered."),
        add_messages,
    ]


class Reply(TypedDict, total=False):
    """What was found."""

    answer: Annotated[str | None, Field(description="None where none was found.")]
    solution: Annotated[str, Field(description="The steps that lead to it.")]
    score: Annotated[float | None, Field(description="The reward model's, from 0 to 1.")]
    warning: Annotated[str, Field(description="Why to be careful with it; empty: no reason.")]


class State(Request, Reply):
    """Both, pictures by reference."""


def _data_uri(image: str) -> dict[str, Any]:
    if not image[:5].lower() == "data:":
        raise InputError("images are data URIs (data:image/png;base64,…); nothing is fetched")
    return {"type": "image_url", "image_url": {"url": image}}


def intake(state: State) -> dict[str, Any]:
    """Make a message of the question; pictures go into the store, references stay."""
    messages = list(state.get("messages") or [])
    if state.get("question"):
        blocks = [_data_uri(image) for image in state.get("images") or []]
        text = {"type": "text", "text": state["question"]}
        messages.append(HumanMessage(content=[*blocks, text]))
    if not messages:
        raise InputError("nothing is asked; give a question, or messages")
    return {"question": "", "images": [], "messages": INTAKE.references(messages)}


@cache
def _search(strategy: str, n: int, max_seconds: float) -> Any:
    policy, scorer = load_models()
    return create_search_graph(
        policy=policy,
        scorer=scorer,
        strategy=ENTRANTS[strategy].make(n),
        budget=Budget(seconds=max_seconds),
        image_store=STORE,
    ).compile()


async def search(
    state: State, runtime: Runtime[Settings], config: RunnableConfig
) -> dict[str, Any]:
    """Search, as a subgraph: its rounds are checkpoints, and are streamed."""
    chosen = runtime.context or Settings()
    # in a thread: the server refuses whatever blocks its event loop, and models are loaded here
    graph = await asyncio.to_thread(_search, chosen.strategy, chosen.n, chosen.max_seconds)
    found = await graph.ainvoke({"messages": state["messages"]}, config)
    result = found["search_result"]
    return {
        "messages": [found["messages"][-1]],
        "answer": result["answer"],
        "solution": result["text"],
        "score": result["score"],
        "warning": result["warning"],
    }


def review(state: State, runtime: Runtime[Settings]) -> dict[str, Any]:
    """Ask a person about an answer that the reward model does not trust."""
    least, score = (runtime.context or Settings()).ask_below, state.get("score")
    if not least or (score is not None and score >= least):
        return {}
    shown = {key: state.get(key) for key in ("answer", "solution", "score", "warning")}
    said = interrupt({**shown, "reply": "an answer of your own, or nothing to keep this one"})
    return {"answer": str(said)} if said else {}


builder = StateGraph(State, Settings, input_schema=Request, output_schema=Reply)
builder.add_node("intake", intake)
builder.add_node("search", search)
builder.add_node("review", review)
builder.add_edge(START, "intake")
builder.add_edge("intake", "search")
builder.add_edge("search", "review")
builder.add_edge("review", END)
graph = builder.compile(name="vprm-search")
