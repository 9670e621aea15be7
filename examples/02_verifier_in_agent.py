"""An agent that tries again when the verifier doubts one of its steps.

The solver is an ordinary node that calls a chat model. The verifier judges its message against the
image and the question; below the threshold the agent is told which step looks wrong, and tries
again. With a model that follows instructions the feedback goes into the conversation; the tiny
policy knows no dialogue, so here it just draws again.

Run: python examples/02_verifier_in_agent.py
"""

from typing import Annotated, Any

from langchain_core.messages import AnyMessage
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.graph.state import CompiledStateGraph

from vprm_search import TransformersScorer, VerifierState, create_verifier_node, image_message
from vprm_search.tiny import TinyChatModel, generate, render, weights_path


class AgentState(VerifierState):
    """The conversation; the verdict is under `vprm`."""

    messages: Annotated[list[AnyMessage], add_messages]


def build_agent(threshold: float = 0.8, max_retries: int = 3) -> CompiledStateGraph:
    """Return solve → verify → (retry → solve)."""
    model = TinyChatModel(temperature=1.0)
    prm = TransformersScorer.from_pretrained(weights_path("prm"))
    verify = create_verifier_node(prm, threshold=threshold)

    def solve(state: AgentState) -> dict[str, Any]:
        failures = (state.get("vprm") or {}).get("failures", 0)
        # the question alone: the tiny policy would go on with its last answer
        return {"messages": [model.invoke(state["messages"][:1], seed=failures)]}

    def retry(state: AgentState) -> dict[str, Any]:
        print("retry:", verify.feedback(state["vprm"]))
        return {"messages": [verify.feedback_message(state["vprm"])]}

    graph = StateGraph(AgentState)
    graph.add_node("solve", solve)
    graph.add_node("verify", verify)
    graph.add_node("retry", retry)
    graph.add_edge(START, "solve")
    graph.add_edge("solve", "verify")
    graph.add_conditional_edges("verify", verify.route(on_fail="retry", max_retries=max_retries))
    graph.add_edge("retry", "solve")
    return graph.compile()


def main() -> dict[str, Any]:
    """Solve one problem with the agent; return the last verdict."""
    problem = generate("tiles", "test", 11)
    question = image_message(problem.question, render(problem))
    state = build_agent().invoke({"messages": [question]})
    verdict = state["vprm"]
    print(state["messages"][-1].text)
    print("verdict:", verdict["outcome"], verdict["score"], "expected answer:", problem.answer)
    return verdict


if __name__ == "__main__":
    main()
