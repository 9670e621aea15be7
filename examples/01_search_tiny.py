"""Search for the answer to one rendered problem, and watch the rounds go by.

Run: python examples/01_search_tiny.py
"""

from vprm_search import (
    BeamSearch,
    Budget,
    Pruning,
    SearchTree,
    TransformersScorer,
    create_search_graph,
    image_message,
    tree_of_state,
)
from vprm_search.tiny import TinyChatModel, generate, render, weights_path


def search() -> SearchTree:
    """Search, print what happens, and return the tree."""
    graph = create_search_graph(
        policy=TinyChatModel(temperature=1.0),
        scorer=TransformersScorer.from_pretrained(weights_path("prm")),
        strategy=BeamSearch(width=2, expand=4, pruning=Pruning(below=0.2)),
        budget=Budget(candidates=120),
    ).compile()
    problem = generate("tiles", "test", 3)
    question = image_message(problem.question, render(problem))
    print(problem.question, "expected:", problem.answer)

    state = {}
    for mode, chunk in graph.stream({"messages": [question]}, stream_mode=["custom", "values"]):
        if mode == "values":
            state = chunk
        elif chunk["event"] == "scored":
            best = max(chunk["nodes"], key=lambda node: node["score"] or 0.0)
            print(
                f"round {chunk['round']}: {len(chunk['nodes'])} steps, best P('+')", best["score"]
            )
        elif chunk["event"] == "pruned":
            print("  put aside:", ", ".join(sorted({n["reason"][:40] for n in chunk["nodes"]})))

    answer = state["messages"][-1]
    print(answer.text)
    print(answer.usage_metadata)
    return tree_of_state(state)


if __name__ == "__main__":
    search()
