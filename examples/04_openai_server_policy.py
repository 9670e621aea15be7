"""A policy on your own OpenAI-compatible server (vLLM, SGLang, …), scored in this process.

Set OPENAI_BASE_URL (for example http://127.0.0.1:8000/v1), POLICY_MODEL, IMAGE and QUESTION, and
PRM to the folder of a native InternVL reward model (left out: the tiny one). Without
OPENAI_BASE_URL the graph is only built and drawn.

Run: python examples/04_openai_server_policy.py
"""

import os

from langchain_openai import ChatOpenAI

from vprm_search import (
    BeamSearch,
    Budget,
    ChatModelPolicy,
    TransformersScorer,
    create_search_graph,
    image_message,
)
from vprm_search.graph import CompiledSearchGraph
from vprm_search.tiny import weights_path


def build() -> CompiledSearchGraph:
    """Return the search graph around a served policy."""
    model = ChatOpenAI(
        model=os.environ.get("POLICY_MODEL", "OpenGVLab/InternVL3-8B"),
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
        temperature=0.7,
        max_retries=0,  # the policy adapter retries, and a call that fails costs one candidate
    )
    return create_search_graph(
        policy=ChatModelPolicy(model, max_tokens_per_step=256, max_concurrency=8),
        scorer=TransformersScorer.from_pretrained(os.environ.get("PRM") or weights_path("prm")),
        strategy=BeamSearch(width=4, expand=4, max_depth=16),
        budget=Budget(generated_tokens=20_000, seconds=300),
    ).compile()


def main() -> None:
    """Ask the served model, or draw the graph if there is no server."""
    graph = build()
    if "OPENAI_BASE_URL" not in os.environ:
        print(graph.get_graph().draw_mermaid())
        print("Set OPENAI_BASE_URL to search with a served policy.")
        return
    question = image_message(os.environ["QUESTION"], os.environ["IMAGE"])
    answer = graph.invoke({"messages": [question]})["messages"][-1]
    print(answer.text)
    print(answer.response_metadata["vprm"]["usage"])


if __name__ == "__main__":
    main()
