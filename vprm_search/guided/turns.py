"""What one call of a guided model is searched for, and the messages that come of it.

A call may end in a text, in tool calls, or in a filled-in form (structured output). What is no text
is spoken for the reward model: a call as a sentence (`chat.tool_calls`), a form as what its fields
say (`structured_steps`). Candidates are compared as what they are: calls as calls, forms by the
answer they state or else as a whole. Such a call is searched for whole turns: half a tool call can
be neither scored nor continued.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_function
from langsmith.run_helpers import tracing_context

from vprm_search import ids
from vprm_search.chat.failures import one_line
from vprm_search.chat.tool_calls import calls_key, render_tool_calls
from vprm_search.errors import ConfigError
from vprm_search.graph.questions import asked_message, message_text, question_in_context
from vprm_search.images.messages import written_text
from vprm_search.policy.chat_model_policy import ChatModelPolicy
from vprm_search.search import BestOfN, Strategy
from vprm_search.steps import STEP_SEPARATOR, json_object, normalise_text, structured_steps
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId, Policy, Problem, Proposal, ProposeRequest

_TOOLS = ("tools", "functions", "toolConfig")
_FORMS = (
    "response_format",  # OpenAI, Mistral, Groq, …
    "format",  # Ollama
    "response_schema",  # Google
    "response_json_schema",
    "output_format",  # Anthropic
    "output_config",
)
_MOST_CALLED = 10_000  # sentences kept until their searches have ended
_MOST_OF_A_LINE = 300
_MOST_SO_FAR = 2_000


@dataclass(frozen=True, slots=True)
class Turn:
    """How the replies to calls with these arguments are read.

    Args:
        arguments: the arguments of the call, those bound to the policy's model included.
        extract: reads the final answer out of a text.
        reader: reads what a form says out of a message, or raises; None where nobody does.
    """

    arguments: Mapping[str, Any]
    extract: Callable[[str], str | None]
    reader: Runnable[Any, Any] | None = None
    _called: dict[str, str] = field(default_factory=dict)

    @property
    def is_form(self) -> bool:
        """Whether the model has to fill in a form: JSON of a schema, or the one tool it has."""
        tools, choice = self.arguments.get("tools"), self.arguments.get("tool_choice")
        forced = choice not in (None, "auto", "none", {"type": "auto"}, {"type": "none"})
        one_tool = isinstance(tools, Sequence) and len(tools) == 1 and forced
        return one_tool or any(self.arguments.get(name) for name in _FORMS)

    @property
    def is_whole(self) -> bool:
        """Whether a candidate is a whole reply, whatever the strategy."""
        return self.is_form or any(self.arguments.get(name) for name in _TOOLS)

    @property
    def stops(self) -> tuple[str, ...]:
        """The user's stop strings, which cut no form."""
        if self.is_form:
            return ()
        given = self.arguments.get("stop") or ()
        return (given,) if isinstance(given, str) else tuple(given)

    def lack(self, message: AIMessage) -> str:
        """Return why a reply does not fill in the form, "" if it does or there is none."""
        if self.reader is None:
            return ""
        with tracing_context(enabled=False):  # no run of anybody's
            try:
                read = self.reader.invoke(message, {"callbacks": []})
            except Exception as error:
                return one_line(f"the reply does not fill in the form: {error}")
        return "" if read is not None else "the reply does not fill in the form"

    def completed(self, message: AIMessage) -> AIMessage:
        """Return a reply with what OpenAI's client says of the first of several only.

        That is what it has read of a form, and the name of the model where the call names another
        than the client.
        """
        named, said = self.arguments.get("model"), message.response_metadata.get("model_name")
        if named and said and str(named) not in said:
            metadata = {**message.response_metadata, "model_name": str(named)}
            message = message.model_copy(update={"response_metadata": metadata})
        form = self.arguments.get("response_format")
        if not isinstance(form, type) or "parsed" in message.additional_kwargs:
            return message
        fields = json_object(str(message.text))
        extra = {**message.additional_kwargs, "parsed": fields}
        return message.model_copy(update={"additional_kwargs": extra}) if fields else message

    def speak(self, message: AIMessage) -> str | None:
        """Return the text by which a reply is scored; None if it is a text."""
        text, _ = written_text(message)
        calls = message.tool_calls
        fields = None
        if self.is_form:
            fields = calls[0]["args"] if len(calls) == 1 else None if calls else json_object(text)
        if fields and (steps := structured_steps(fields)):
            return STEP_SEPARATOR.join(steps)
        if not calls:
            return None
        said = normalise_text(render_tool_calls(message))
        self._called[said] = f"call-{ids.digest(calls_key(message)).hex()[:24]}"
        while len(self._called) > _MOST_CALLED:
            self._called.pop(next(iter(self._called)), None)
        return f"{text.strip()}{STEP_SEPARATOR}{said}" if text.strip() else said

    def answer_of(self, text: str) -> str | None:
        """Return the answer of a candidate's text: equal ones are the same answer in a vote.

        Sentences of calls are no answers that could be read: `call-` and a digest stands for them.
        """
        called = self._called.get(text.rpartition(STEP_SEPARATOR)[2])
        if called is not None:
            return called
        answer = self.extract(text)
        if answer is None and self.is_form:
            return f"form-{ids.digest(text).hex()[:24]}"
        return answer

    def policy(self, policy: Any, arguments: Mapping[str, Any]) -> Policy:
        """Return a policy whose calls carry `arguments`, and whose replies are spoken for.

        A chat model is asked for nothing but what its messages say, and keeps its own limit of
        tokens. Raises `ConfigError` for arguments to a policy that takes none.
        """
        own: Policy = policy
        if not isinstance(policy, Policy):
            own = ChatModelPolicy(policy, instruction="", max_tokens_total=None)
        if isinstance(own, ChatModelPolicy):
            return own.bind(speak=self.speak, **_for_many(arguments))
        if arguments:
            raise ConfigError(
                f"the policy is {type(own).__name__}, which takes no arguments of a call, and "
                f"there are {sorted(arguments)}; leave them out, or give a chat model"
            )
        return own

    def strategy(self, strategy: Strategy, problem: Problem) -> Strategy:
        """Return the strategy itself; for whole replies, as many samples as it begins with."""
        if not self.is_whole or isinstance(strategy, BestOfN):
            return strategy
        return BestOfN(max(1, strategy.plan(SearchTree(problem)).count))


@dataclass(frozen=True, slots=True)
class WholeReplies:
    """A policy that is asked for whole replies only: none of them can be gone on with."""

    policy: Policy
    continues: bool = False

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        """Ask the policy."""
        return await self.policy.propose(requests)


def _for_many(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments by which OpenAI's client leaves reading a form to us.

    A form given as a class it reads itself: the first of several replies only, and one reply that
    does not fit it costs all.
    """
    form = arguments.get("response_format")
    if not isinstance(form, type):
        return dict(arguments)
    function = convert_to_openai_function(form, strict=True)
    schema = {"name": function["name"], "schema": function["parameters"], "strict": True}
    return {**arguments, "response_format": {"type": "json_schema", "json_schema": schema}}


# --- what the policy gave ------------------------------------------------------------------------


class KeptReplies:
    """A policy whose replies are kept, as they came; implements `Policy`.

    A reply that does not fill in the form it was asked for is no candidate; the user's stop strings
    end a solution wherever they stand in it.

    Args:
        policy: what proposes.
        turn: how replies are read.
    """

    def __init__(self, policy: Policy, turn: Turn) -> None:
        self._policy = policy
        self._turn = turn
        self._stops = turn.stops
        self._replies: dict[int, tuple[Any, bool]] = {}

    @property
    def batches(self) -> bool:
        """Whether one call with many requests is computed faster than many calls."""
        return bool(getattr(self._policy, "batches", True))

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        """Ask the policy; keep what its client gave by the seed of the child."""
        answers = await self._policy.propose(requests)
        found = []
        for request, answer in zip(requests, answers, strict=True):
            read = [self._read(proposal) for proposal in answer]
            for seed, proposal in zip(request.seeds, read, strict=False):
                self._replies[seed] = proposal.reply, request.until == "end"
            found.append(read)
        return found

    def _read(self, proposal: Proposal) -> Proposal:
        """Return a proposal as the turn takes it."""
        reply = proposal.reply
        if isinstance(reply, AIMessage):
            reply = self._turn.completed(reply)
            lack = "" if proposal.error else self._turn.lack(reply)
            proposal = replace(proposal, reply=reply)
            if lack:
                return replace(proposal, text="", finish="error", error=lack, unusable=True)
        return proposal if _calls(reply) else self._stopped(proposal)

    def _stopped(self, proposal: Proposal) -> Proposal:
        """Return a proposal that ends before the first of the user's stop strings."""
        places = [at for at in map(proposal.text.find, self._stops) if at >= 0]
        if places:
            return replace(proposal, text=proposal.text[: min(places)].rstrip(), finish="stop")
        if proposal.finish == "step" and any(s in STEP_SEPARATOR for s in self._stops):
            return replace(proposal, finish="stop")
        return proposal

    def message(self, tree: SearchTree, node: NodeId) -> AIMessage:
        """Return the message of a path: the client's own if one reply wrote it all.

        Of a path of several replies it has the text of all and the rest of the last one.
        """
        seeds: list[int] = []
        record = tree[node]
        while record.parent is not None:
            seeds += [record.seed] if record.seed in self._replies else []
            record = tree[record.parent]
        text = STEP_SEPARATOR.join(tree.steps(node))
        last, whole = self._replies[seeds[0]] if seeds else (None, False)
        if not isinstance(last, AIMessage):
            return AIMessage(text)
        if whole and len(seeds) == 1 and not self._holds_stop(last):
            return last
        return AIMessage(text, response_metadata=last.response_metadata)

    def _holds_stop(self, message: AIMessage) -> bool:
        return not _calls(message) and any(stop in str(message.text) for stop in self._stops)

    def unusable(self) -> AIMessage | None:
        """Return the first reply that came, where none was a candidate: a refusal, for example."""
        found = (reply for reply, _ in self._replies.values() if isinstance(reply, AIMessage))
        return next(found, None)

    def error(self) -> Exception | None:
        """Return the last error of the client."""
        found = [reply for reply, _ in self._replies.values() if isinstance(reply, Exception)]
        return found[-1] if found else None


def _calls(reply: Any) -> bool:
    return isinstance(reply, AIMessage) and bool(reply.tool_calls)


# --- what the reward model is asked --------------------------------------------------------------


def question_so_far(messages: Sequence[BaseMessage]) -> str:
    """Return the question of a conversation, with what tools were asked since and what they gave.

    That is `question_in_context`, and below it the calls as sentences and the results, one line
    each: of a result its first 300 characters, the latest lines up to 2,000 characters. So the
    reward model can tell whether an answer follows from them. Raises what `question_in_context`
    raises.
    """
    question = question_in_context(messages)
    asked = asked_message(messages)
    place = next(i for i, message in enumerate(messages) if message is asked)
    lines: list[str] = []
    for message in messages[place + 1 :]:
        if isinstance(message, AIMessage):
            lines += render_tool_calls(message).splitlines()
        elif isinstance(message, ToolMessage):
            said = " ".join(normalise_text(message_text(message)).split()) or "(no text)"
            cut = f"{said[:_MOST_OF_A_LINE]}…" if len(said) > _MOST_OF_A_LINE else said
            lines.append(f"The tool {message.name or 'called'} gave: {cut}")
    while sum(map(len, lines)) > _MOST_SO_FAR:
        lines.pop(0)
    return "\n".join([question, "", "What was done so far:", *lines]) if lines else question
