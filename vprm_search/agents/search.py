"""`create_agent_search`: reward-guided search over whole trajectories of an agent that exists.

The loop is the search graph's (`graph/loop.py`), with the agent as its policy: a child is what the
agent's model says next, and before a path goes on its tools are run.

    START → ingest → plan ── expand ──► act ──► propose → score ──► plan …
                       │                 ▲ │
                       │                 └─┴─ ask   (a person)
                       └─ finish ► answer → clear → END
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast, get_args, get_type_hints

from langchain_core.messages import BaseMessage, RemoveMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from langgraph.channels import BinaryOperatorAggregate
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import get_runtime
from langgraph.types import Overwrite
from typing_extensions import TypedDict

from vprm_search import ids
from vprm_search.agents.acting import Actor, Acts, ToolPolicy, answer_to
from vprm_search.agents.branches import (
    Agent,
    Branches,
    Seams,
    in_threads,
    last_said,
    pending_calls,
)
from vprm_search.agents.light_saver import light_message, light_saver
from vprm_search.agents.policy import AgentPolicy, PicturedScorer, Round, pictures_shown, this_round
from vprm_search.agents.turns import StepOf, turn_as_step
from vprm_search.answers import extract_answer
from vprm_search.budget import Budget
from vprm_search.chat.tracing import held
from vprm_search.errors import ConfigError, SearchWarning
from vprm_search.graph.loop import Loop
from vprm_search.graph.nodes import (
    TRACED,
    Node,
    SearchNodes,
    State,
    Update,
    answer_message,
    unstreamed,
)
from vprm_search.graph.parts import SearchRules, as_scorer
from vprm_search.graph.questions import QuestionOf, question_in_context
from vprm_search.graph.search_graph import RETRY, SearchGraph
from vprm_search.graph.session import ScoredRounds
from vprm_search.graph.state import channels, tree_of_state
from vprm_search.images.messages import ImageIntake, restore_images
from vprm_search.images.store import DiskImageStore, ImageStore
from vprm_search.search.beam import BeamSearch
from vprm_search.search.outcome import OnNoAnswer
from vprm_search.search.plan import Strategy
from vprm_search.search.selectors import BestScore, Selector
from vprm_search.tree import SearchTree
from vprm_search.types import (
    NodeId,
    StepScorer,
)

_ROOT = "root"


def create_agent_search(
    agent: Agent,
    *,
    scorer: StepScorer,
    strategy: Strategy | None = None,
    selector: Selector | None = None,
    budget: Budget | None = None,
    tools: ToolPolicy = "execute",
    safe_tools: Collection[str] = (),
    step_of: StepOf = turn_as_step,
    model_nodes: Sequence[str] = (),
    tool_nodes: Sequence[str] = (),
    image_store: ImageStore | None = None,
    run_seed: int = 0,
    on_no_answer: OnNoAnswer = "best_truncated",
    extract: Callable[[str], str | None] = extract_answer,
    question_of: QuestionOf | None = None,
) -> SearchGraph:
    """Return a graph that takes what `agent` takes and answers with its best trajectory.

    Each step of the search is one turn of the agent: what its model says and which tools it calls,
    scored *before* they run. The strategy keeps the best; only their tools are run, equal calls of
    several branches once. The answer is the winner's messages and its other output channels, as if
    the agent had taken that way at once; the tree is beside them (`tree_of_state`), and the last
    message's `response_metadata["vprm"]` has its score and the usage.

    Every branch has all channels of the agent's state to itself (files, to-dos, …); the agent's
    `store`, and what its tools do outside, all share. The branches are threads of the graph's
    checkpointer, written at every seam and removed at the end. So a killed search goes on
    (`invoke(None, config)`) with no recorded result of a tool produced again; a call that was under
    way, and may have had its effect, is run again only if its tool is in `safe_tools`, and else a
    person is asked. Neither the branches nor the graph's own state hold pictures in the
    checkpointer: the agent gets them from `image_store`.

    People are asked by interrupts of `{"key", "type", …}`. Types: "interrupt" (the agent's own,
    with its "value"; asked for branches that were chosen only), "pause" (the agent's own
    breakpoint), "tool_call" (`tools="ask"`) and "call_in_doubt" (under way at a crash). The last
    two are answered by "run", "skip", or `{"result": text}`.

    Args:
        agent: any compiled graph that has its conversation under "messages" and nodes for model and
            tools: of `create_agent`, `create_deep_agent`, or your own.
        scorer: what gives each step P('+').
        strategy: which paths to go on with, step by step: `BeamSearch`, `BestFirst`,
            `ParticleFilter`, `REBASE`, `DVTS` or `MCTS`. Default: `BeamSearch(width=2, expand=3)`.
        selector: which finished path is the answer. Default: `BestScore()`.
        budget: limits that end the search with the best answer so far. Default: none.
        tools: whether to "execute" the tools of chosen branches, only the "safe" ones (the agent is
            told that others were not run), or to "ask" a person about those that are not.
        safe_tools: names of tools that may be run again without harm. Default: none.
        step_of: writes a turn as a step. It must tell different calls apart: siblings with the same
            text are one. Default: `turn_as_step`.
        model_nodes: the agent's nodes that call its model. Default: "model", "agent", "llm",
            "chatbot" and "call_model", as far as they are there.
        tool_nodes: the agent's nodes that run tools. Default: its `ToolNode`s.
        image_store: where pictures are kept. Default: `DiskImageStore()`.
        run_seed: names the nodes of the tree; the agent's model draws as it is set to.
        on_no_answer: when no path finished, take the best unfinished one ("best_truncated") or
            raise `NoAnswerError` ("error").
        extract: reads the final answer out of a path's text, for votes. Default: `extract_answer`.
        question_of: makes the question that the reward model is shown. Default: as
            `create_search_graph` does it.

    Raises:
        ConfigError: the agent's nodes are not found, its state has no "messages", or an option is
            out of range; and while it runs, a strategy that asks for whole solutions.
    """
    if tools not in get_args(ToolPolicy):
        raise ConfigError(f'tools is {tools!r}; give "execute", "safe" or "ask"')
    if isinstance(safe_tools, str):
        raise ConfigError(f"safe_tools is the text {safe_tools!r}; give a list of names")
    if not isinstance(agent, CompiledStateGraph):
        raise ConfigError(f"agent is {type(agent).__name__}; give a compiled graph")
    if "messages" not in agent.channels:
        raise ConfigError("the agent's state has no key 'messages'")
    seams = Seams.of(agent, model_nodes, tool_nodes)
    limits = _Budget(**(budget or Budget()).model_dump())
    chosen = strategy or BeamSearch(width=2, expand=3)
    rules = SearchRules(chosen, selector or BestScore(), limits, extract=extract)
    policy = AgentPolicy(step_of)
    loop = Loop(
        policy,
        PicturedScorer(as_scorer(scorer, rules)),
        rules,
        on_no_answer=on_no_answer,
        scored=ScoredRounds(),
    )
    intake = ImageIntake(DiskImageStore() if image_store is None else image_store)
    nodes = AgentNodes(
        loop,
        intake,
        agent=agent,
        seams=seams,
        actor=Actor(tools, frozenset(safe_tools)),
        run_seed=run_seed,
        question_of=question_of or question_in_context,
    )
    graph = SearchGraph(_schema(agent), agent.builder.context_schema, nodes)
    for name, node in nodes.runnables().items():
        graph.add_node(
            name, node, input_schema=graph.state_schema, retry_policy=RETRY, trace_policy=TRACED
        )
    graph.add_edge(START, "ingest")
    graph.add_edge("ingest", "plan")
    graph.add_conditional_edges("plan", _after_plan, {"act": "act", "answer": "answer"})
    graph.add_conditional_edges("act", _after_act, {"ask": "ask", "propose": "propose"})
    graph.add_edge("ask", "act")
    graph.add_edge("propose", "score")
    graph.add_edge("score", "plan")
    graph.add_edge("answer", "clear")
    graph.add_edge("clear", END)
    return graph


class _Budget(Budget):
    """A budget that asks for no whole rest of a path: their tools would run before any score."""

    def affords(self, *args: Any, **kwargs: Any) -> bool:
        """Say that there is enough for the steps that are planned."""
        return True

    def paths_affordable(self, *args: Any, **kwargs: Any) -> float | None:
        """Say that the number of paths is not limited."""
        return None


class AgentChannels(TypedDict, total=False):
    """What a search over trajectories adds to those keys that every search has.

    `agent_run` begins the names of its branches, `agent_questions` are open ones to people,
    `agent_acts` what is known of tools, `agent_pictures` the pictures that a step is judged with,
    by node, where they are more than the question's.
    """

    agent_run: str
    agent_questions: list[Any]
    agent_acts: dict[str, Any]
    agent_pictures: dict[str, list[str]]


def _schema(agent: Agent) -> type[Any]:
    """Return the state of the search: the agent's input and output, and the search's own keys."""
    builder = agent.builder
    hints = get_type_hints(builder.state_schema, include_extras=True)
    shown = {
        **get_type_hints(builder.input_schema, include_extras=True),
        **get_type_hints(builder.output_schema, include_extras=True),
    }
    own = {key: hints.get(key, kind) for key, kind in shown.items()}
    keys = {**own, **channels(), **get_type_hints(AgentChannels)}
    return cast("type[Any]", TypedDict("AgentSearchState", keys, total=False))  # type: ignore[operator]


def _after_plan(state: Mapping[str, Any]) -> str:
    return "answer" if state["search_plan"]["finish"] else "act"


def _after_act(state: Mapping[str, Any]) -> str:
    return "ask" if state.get("agent_questions") else "propose"


# --- the nodes -----------------------------------------------------------------------------------


class AgentNodes(SearchNodes):
    """The nodes of a search over trajectories."""

    def __init__(
        self,
        loop: Loop,
        intake: ImageIntake,
        *,
        agent: Agent,
        seams: Seams,
        actor: Actor,
        **own: Any,
    ) -> None:
        super().__init__(loop, intake, **own)
        self._agent, self._seams, self._actor = agent, seams, actor
        self._scratch: dict[str, InMemorySaver] = {}

    def runnables(self) -> dict[str, Node]:
        """Return the nodes by name."""
        phases = {
            "ingest": self._ingest,
            "plan": self._plan,
            "act": self._act,
            "ask": self._ask,
            "propose": self._propose,
            "score": self._score,
            "answer": self._conclude,
            "clear": self._clear,
        }
        return {name: _AgentNode(cast("Any", phase)) for name, phase in phases.items()}

    async def _ingest(self, state: State) -> Any:
        """Read the question, and start the agent up to its first model call."""
        update, told = await super()._ingest(state)
        run = uuid.uuid4().hex
        wanted = get_type_hints(self._agent.builder.input_schema)
        given = {key: state[key] for key in wanted if key in state}
        given["messages"] = await asyncio.to_thread(
            restore_images, state.get("messages") or [], self.intake
        )
        await self._branches(run).run(_ROOT, given)
        own = {
            "agent_run": run,
            "agent_questions": [],
            "agent_acts": asdict(Acts()),
            "agent_pictures": {},
        }
        return update | own, told

    async def _act(self, state: State) -> Any:
        """Run the tools of the branches that go on; find out what a person has to be asked."""
        gap, began = self._clocks.gap(), time.monotonic()
        job = self._job(state, gap=gap)
        acts = Acts(**{key: dict(value) for key, value in state["agent_acts"].items()})
        names = list(dict.fromkeys(_branch(job.tree, e.node) for e in job.plan.expand))
        branches = self._branches(state["agent_run"])
        questions = await self._actor.act(branches, names, acts)
        update = self._update(state, job, [], began)
        return update | {"agent_questions": questions, "agent_acts": asdict(acts)}, []

    def _ask(self, state: State) -> Any:
        """Ask people; nothing else happens here, so nothing is repeated when they answer."""
        answers = {question["key"]: answer_to(question) for question in state["agent_questions"]}
        acts = state["agent_acts"]
        acts = {**acts, "answers": {**acts["answers"], **answers}}
        return {"agent_acts": acts, "agent_questions": []}, []

    async def _propose(self, state: State) -> Any:
        """Let the agent's model speak once more in a branch for every child of this round."""
        gap, began = self._clocks.gap(), time.monotonic()
        job = self._job(state, gap=gap)
        parents = {
            ids.child_seed(e.node, e.first_index): _branch(job.tree, e.node)
            for e in job.plan.expand
        }
        with self._round(state, parents) as now, unstreamed():
            ((records, told),) = await self.loop.propose([job])
        own = list(job.tree.problem.images)
        new = {
            record.id: now.pictures[record.seed]
            for record in records
            if now.pictures.get(record.seed, own) != own
        }
        pictures = {"agent_pictures": {**state["agent_pictures"], **new}} if new else {}
        return self._update(state, job, records, began) | pictures, told

    async def _score(self, state: State) -> Any:
        """Score all new turns of this round in one batch."""
        tree = self._job(state).tree
        shown = {tree.steps(node): seen for node, seen in state["agent_pictures"].items()}
        with held(pictures_shown, shown), self._round(state, {}):
            return await super()._score(state)

    async def _conclude(self, state: State) -> Any:
        """Choose the winner and give its messages and channels."""
        job = self._job(state)
        result, told = self.loop.conclude(job)
        if result.warning:
            warnings.warn(result.warning, SearchWarning, stacklevel=1)
        branches = self._branches(state["agent_run"])
        metadata = {**result.to_json(candidates=False), "tree": job.tree.digest()}
        values: dict[str, Any] = {}
        if result.node is not None:
            values = dict((await branches.state(_branch(job.tree, result.node))).values)
        name = f"vprm-{ids.digest(job.tree.root_id, state['agent_run'])[:12].hex()}"
        update = self._won(state, values)
        said = update["messages"]
        if result.fallback or not said or not isinstance(said[-1], BaseMessage):
            said.append(answer_message(result, name, metadata))
        else:
            place = last_said(said)
            told_of = {k: v for k, v in metadata.items() if k != "text"}
            if place is not None:
                spoken = said[place]
                known = {**spoken.response_metadata, "vprm": told_of}
                said[place] = spoken.model_copy(update={"response_metadata": known})
        return update | {"search_result": result.to_json(candidates=self._candidates)}, told

    async def _clear(self, state: State) -> Any:
        """Remove the branches, now that the winner's messages are stored."""
        names = [_ROOT, *(str(record.seed) for record in tree_of_state(state) if record.seed)]
        await self._branches(state["agent_run"]).remove(names)
        self._scratch.pop(state["agent_run"], None)
        return {}, []

    def _won(self, state: State, values: Mapping[str, Any]) -> Update:
        """Return the winner's channels as an update of the search's state."""
        given, kept = list(state["messages"]), list(values.get("messages") or [])
        place = last_said(kept)
        if place is not None and pending_calls(kept):  # unfinished: what was not run was not said
            kept = kept[:place]
        light: list[Any] = [light_message(message, self.intake) for message in kept]
        if [m.id for m in light[: len(given)]] == [m.id for m in given]:
            light = light[len(given) :]
        elif light:  # the agent shortened its conversation
            light = [RemoveMessage(id=REMOVE_ALL_MESSAGES), *light]
        update: Update = {"messages": light}
        for key in get_type_hints(self._agent.builder.output_schema):
            if key != "messages" and key in values:
                reduced = isinstance(
                    self._agent.channels.get(key), BinaryOperatorAggregate | DeltaChannel
                )
                update[key] = Overwrite(values[key]) if reduced else values[key]
        return update

    @contextlib.contextmanager
    def _round(self, state: State, parents: Mapping[int, str]) -> Iterator[Round]:
        failed = state["agent_acts"]["failed"]
        now = Round(self._branches(state["agent_run"]), parents, failed, self.intake)
        with held(this_round, now):
            yield now

    def _branches(self, run: str) -> Branches:
        """Return the branches of a run, in the saver of the graph that is running."""
        known = dict(ensure_config().get("configurable") or {})
        saver = known.get("__pregel_checkpointer")
        if not saver:
            saver = self._scratch.setdefault(run, InMemorySaver())
        saver = light_saver(saver, self.intake)
        runtime = get_runtime()
        kept = {"checkpointer": saver, "store": self._agent.store or runtime.store}
        own = {
            key: value
            for key, value in known.items()
            if not key.startswith(("__", "checkpoint_")) and key != "thread_id"
        }
        prefix = f"{known.get('thread_id', 'vprm')}/{run}"
        agent = self._agent.copy(update=kept)
        return Branches(agent, saver, self._seams, prefix, runtime.context, own)


class _AgentNode(Node):
    """A phase that drives the agent the way the graph was called: in threads, or in this loop."""

    def invoke(self, input: State, config: RunnableConfig | None = None, **kwargs: Any) -> Update:
        """Run the phase."""
        with held(in_threads, True):
            return super().invoke(input, config, **kwargs)


def _branch(tree: SearchTree, node: NodeId) -> str:
    """Return the name of the branch that a node of the tree is."""
    return str(tree[node].seed) if tree[node].parent is not None else _ROOT
