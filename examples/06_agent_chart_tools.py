"""Chart questions for an agent with two tools: alone, with the middleware, and with a search.

An agent looks at a bar chart, crops the bars that a question names, and calculates with what it
read. Three ways to run it are compared: the plain agent, `ProcessRewardMiddleware` (best of 4 at
every model call), and `create_agent_search` (a beam over trajectories). The reward model is the
packaged PRM, which sees the chart.

The caller is **simulated**: the packaged policy cannot call tools, so a random caller with stated
error rates stands in for a model. It knows the right values and makes mistakes: with 15 % it reads
a bar as one of the others, with 10 % it is off by one; with 5 % it takes a wrong operation. Nothing
here says how well a real model would do.

How calls are written for the PRM, which knows the sentences of its world ("Step 3: 4 + 3 = 7."):
`crop(label="red = 4")` is "Step 1: red = 4."; `calculator(3, "+", 4)` is what it will answer, "Step
3: 3 + 4 = 7.", with " Answer: 7" if it is the question's last operation. The last message, which
repeats the number, is no step of its own.

Run: python examples/06_agent_chart_tools.py [problems]
"""

import base64
import functools
import io
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain.agents import create_agent
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from PIL import Image
from pydantic import PrivateAttr

from vprm_search import (
    BeamSearch,
    ProcessRewardMiddleware,
    TransformersScorer,
    create_agent_search,
    image_message,
)
from vprm_search.tiny import generate, render, weights_path
from vprm_search.tiny.world import (
    CELL,
    TinyProblem,
    answer_suffix,
    apply_operator,
    arithmetic_step,
    in_range,
    reading_step,
)
from vprm_search.types import ScoreRequest, ScoreResult

WRONG_BAR, OFF_BY_ONE, WRONG_OPERATION = 0.15, 0.10, 0.05
COUNTS = {"tool runs": 0, "scored steps": 0}


def build_tools(problem: TinyProblem) -> list[Any]:
    """Return the crop tool for the problem's chart, and the calculator."""
    chart = render(problem)

    @tool
    def crop(left: int, width: int, label: str) -> list[Any]:
        """Cut a column out of the chart; `label` says what is seen there, like "red = 4"."""
        COUNTS["tool runs"] += 1
        piece = chart.crop((left, 0, left + width, chart.height)).resize((64, 64), Image.NEAREST)
        buffer = io.BytesIO()
        piece.save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        return [{"type": "image", "base64": data, "mime_type": "image/png"}]

    @tool
    def calculator(left: int, operator: str, right: int) -> str:
        """Calculate with two whole numbers; the operator is +, - or x."""
        COUNTS["tool runs"] += 1
        return str(apply_operator(left, operator, right))

    return [crop, calculator]


class SimulatedCaller(BaseChatModel):
    """A stochastic caller with stated error rates: a simulation, not a model."""

    problem: Any
    seed: int
    calls: int = 0
    _random: random.Random = PrivateAttr()

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self._random = random.Random(self.seed)  # noqa: S311 (a simulation)

    @property
    def _llm_type(self) -> str:
        return "simulated-caller"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        """Take any tools: it knows those of this example."""
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self.calls += 1
        message = self._next(messages)
        words = len(str(message.content).split()) + 4 * len(message.tool_calls)
        message.usage_metadata = {
            "input_tokens": 0,
            "output_tokens": words,
            "total_tokens": words,
        }
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _next(self, messages: Sequence[BaseMessage]) -> AIMessage:
        """Crop the next bar, calculate with what was read, or say the result."""
        problem, said = self.problem, [c for m in messages for c in getattr(m, "tool_calls", ())]
        read = [int(c["args"]["label"].split()[-1]) for c in said if c["name"] == "crop"]
        done = [str(m.text) for m in messages if isinstance(m, ToolMessage) and m.text]
        if len(done) == len(problem.operators):
            return AIMessage(f"Answer: {done[-1]}")
        if len(read) < 2 or len(read) < len(done) + 2:
            return self._crop(problem.operands[len(read)], len(said))
        left = int(done[-1]) if done else read[0]
        operator = problem.operators[len(done)]
        fits = [o for o in "+-x" if in_range(apply_operator(left, o, read[-1]))]
        if self._random.random() < WRONG_OPERATION and fits:
            operator = self._random.choice(fits)
        args = {"left": left, "operator": operator, "right": read[-1]}
        return self._call("calculator", args, len(said))

    def _crop(self, name: str, number: int) -> AIMessage:
        values = dict(zip(self.problem.names, self.problem.values, strict=True))
        bar, value, drawn = name, values[name], self._random.random()
        if drawn < WRONG_BAR:
            bar = self._random.choice([other for other in values if other != name])
            value = values[bar]
        elif drawn < WRONG_BAR + OFF_BY_ONE:
            value = max(1, min(9, value + self._random.choice([-1, 1])))
        left = CELL * self.problem.names.index(bar)
        args = {"left": left, "width": CELL, "label": f"{name} = {value}"}
        return self._call("crop", args, number)

    def _call(self, name: str, args: dict[str, Any], number: int) -> AIMessage:
        return AIMessage("", tool_calls=[{"name": name, "args": args, "id": f"call-{number}"}])


def written(problem: TinyProblem, messages: Sequence[BaseMessage]) -> str:
    """Write the last message's call as a sentence of the tiny world (see above)."""
    said = [c for m in messages for c in getattr(m, "tool_calls", ())]
    last = messages[-1]
    if not isinstance(last, AIMessage) or not last.tool_calls:
        return ""
    args, number = last.tool_calls[0]["args"], len(said)
    if last.tool_calls[0]["name"] == "crop":
        name, _, value = args["label"].partition(" = ")
        return reading_step(number, name, int(value))
    result = apply_operator(args["left"], args["operator"], args["right"])
    step = arithmetic_step(number, args["left"], args["operator"], args["right"], result)
    whole = number == 2 * len(problem.operators) + 1
    return step + answer_suffix(result) if whole else step


@dataclass
class ChartScorer:
    """The packaged PRM, shown the chart alone: it has never seen a crop. Counts what it scores."""

    prm: TransformersScorer

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Score the requests with their first picture."""
        COUNTS["scored steps"] += len(requests)
        return await self.prm.score([_first_picture(request) for request in requests])


def _first_picture(request: ScoreRequest) -> ScoreRequest:
    problem = replace(request.problem, images=request.problem.images[:1])
    return replace(request, problem=problem, images=request.images[:1])


def solve(way: str, problem: TinyProblem, prm: ChartScorer, seed: int) -> tuple[str, int]:
    """Ask the agent in one of the three ways; return its answer and how often its model spoke."""
    caller = SimulatedCaller(problem=problem, seed=seed)
    step_of = functools.partial(written, problem)
    best_of = ProcessRewardMiddleware(prm, n=4, step_of=step_of)
    agent: Any = create_agent(
        caller, build_tools(problem), middleware=[best_of] if way == "middleware" else []
    )
    if way == "search":
        agent = create_agent_search(
            agent,
            scorer=prm,
            strategy=BeamSearch(width=2, expand=3, refill=0),
            safe_tools=["crop", "calculator"],
            step_of=step_of,
        ).compile(checkpointer=InMemorySaver())
    question = image_message(problem.question, render(problem))
    state = agent.invoke({"messages": [question]}, {"configurable": {"thread_id": problem.id}})
    return str(state["messages"][-1].text).removeprefix("Answer: "), caller.calls


def main(problems: int = 100) -> dict[str, tuple[float, ...]]:
    """Compare the three ways on the first test problems; return what the table shows.

    "scored" counts paths given to the reward model; all costs are means over the problems.
    """
    prm = ChartScorer(TransformersScorer.from_pretrained(weights_path("prm")))
    asked = [generate("bars", "test", index) for index in range(problems)]
    print(f"{problems} bar charts; a simulated caller: {WRONG_BAR:.0%} wrong bar, ", end="")
    print(f"{OFF_BY_ONE:.0%} off by one, {WRONG_OPERATION:.0%} wrong operation")
    print("| way | right | model calls | tool runs | scored | CPU ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    table: dict[str, tuple[float, ...]] = {}
    for way in ("plain agent", "middleware", "search"):
        COUNTS.update(dict.fromkeys(COUNTS, 0))
        began, right, calls = time.process_time(), 0, 0
        for number, problem in enumerate(asked):
            answer, spoken = solve(way, problem, prm, seed=number)
            right, calls = right + (answer == problem.answer), calls + spoken
        milliseconds = 1000 * (time.process_time() - began)
        row = (right, calls, COUNTS["tool runs"], COUNTS["scored steps"], milliseconds)
        table[way] = tuple(value / problems for value in row)
        share, *costs = table[way]
        print(f"| {way} | {share:.0%} |", " | ".join(f"{cost:.1f}" for cost in costs), "|")
    return table


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
