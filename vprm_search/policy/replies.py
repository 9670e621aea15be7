"""From a model's reply to a proposal: what it says, what it cost, where the step ends.

Why a reply ended is read by `chat.finish_reasons`. A reply that failed, or that holds something
else than text (tool calls, audio), is an error; one that does not say why it ended is not taken
for finished unless it states a final answer.

How a step's end is told from the solution's end, in this order:

1. the reply says so: a `stop_reason` (vLLM's and Anthropic's words), or, where the stop string was
   asked to be part of the output, whether the text ends in it;
2. otherwise the step ends the solution if and only if it holds a final answer (`is_final`).

A model that was *asked* to write one step and stop always falls under 2: that it stopped says
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from vprm_search.answers import AnswerFormat, extract_answer
from vprm_search.chat.finish_reasons import End, Ending, end_of
from vprm_search.images.messages import written_text
from vprm_search.policy.prompts import strip_echo
from vprm_search.types import Finish, Proposal, ProposeRequest

_EXPLICIT = AnswerFormat(order=("boxed", "marker"))


def has_final_answer(text: str) -> bool:
    """Tell whether `text` states a final answer ("Answer: …" or a box)."""
    return extract_answer(text, _EXPLICIT) is not None


@dataclass(frozen=True, slots=True)
class ReadingRules:
    """How replies are read.

    `asked` is True when the model was asked for one step instead of continuing its own answer.
    `stopped` is True when the stop string was sent, and `suffix_tells` when the reply would end in
    it if it had ended the reply.
    """

    separator: str
    is_final: Callable[[str], bool]
    max_step_chars: int
    asked: bool = False
    stopped: bool = False
    suffix_tells: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a model: its text, and why it ended as far as the model says.

    `reason` is the provider's word for that; of a failed reply, what is wrong with it.
    """

    text: str
    ending: Ending
    tokens: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CallUsage:
    """The tokens of one call, all its answers together."""

    prompt_tokens: int = 0
    generated_tokens: int = 0


def read_replies(result: LLMResult) -> list[Reply]:
    """Return the answers of the first (and only) prompt of `result`."""
    replies = []
    output = result.llm_output or {}
    for generation in result.generations[0] if result.generations else []:
        message = getattr(generation, "message", None)
        info = {**output, **(generation.generation_info or {})}
        text, lack = generation.text, ""
        if isinstance(message, AIMessage):
            info |= message.response_metadata
            text, lack = written_text(message)
        end = end_of(info, message if isinstance(message, AIMessage) else None)
        if lack and end.ending != "failed":
            end = End("failed", lack)
        tokens = info.get("generated_tokens")
        known = tokens if isinstance(tokens, int) and tokens >= 0 else None
        replies.append(Reply(text, end.ending, known, end.reason))
    return replies


def read_usage(result: LLMResult) -> CallUsage:
    """Return what the whole call cost, from `usage_metadata`; zeros when the model does not say.

    OpenAI-compatible clients write the call's total on every answer, others the answer's own
    share: equal figures are taken for one total and counted once, different ones are added.
    """
    found: list[tuple[int, int]] = []
    for generation in result.generations[0] if result.generations else []:
        message = generation.message if isinstance(generation, ChatGeneration) else None
        usage = message.usage_metadata if isinstance(message, AIMessage) else None
        if usage is not None:
            found.append((usage["input_tokens"], usage["output_tokens"]))
    if not found:
        return CallUsage()
    outputs = found[0][1] if len(set(found)) == 1 else sum(output for _, output in found)
    return CallUsage(max(inputs for inputs, _ in found), outputs)


def share_tokens(replies: Sequence[Reply], total: int) -> list[int]:
    """Split the generated tokens of a call among its answers; the sum is exactly `total`.

    Counts the model gave are used if they add up; else the split follows the lengths of the texts.
    """
    known = [reply.tokens for reply in replies if reply.tokens is not None]
    if len(known) == len(replies) and sum(known) == total:
        return known
    weights = [len(reply.text) + 1 for reply in replies]
    whole, done, shares = sum(weights), 0, []
    passed = 0
    for weight in weights:
        passed += weight
        share = total * passed // whole - done
        done += share
        shares.append(share)
    return shares


def read_proposal(
    reply: Reply, request: ProposeRequest, rules: ReadingRules
) -> tuple[str, Finish, str]:
    """Return the text, the finish and the error (or "") of one answer to `request`."""
    if reply.ending == "failed":
        return "", "error", reply.reason
    body = strip_echo(reply.text, request.steps, rules.separator)
    if request.until == "step" or not body.strip():  # a whole solution is scored to the letter
        body = body.strip()
    cut = reply.ending == "length" or (reply.ending == "unknown" and not rules.is_final(body))
    finish: Finish = "length" if cut else "stop"
    if not body:
        if request.steps and _ended_itself(reply, rules):
            return "", "stop", ""  # the solution was complete with the step before
        return "", "error", "the model wrote nothing new"
    if request.until == "step":
        body, finish = _read_step(body, reply, rules)
        if len(body) > rules.max_step_chars:
            return body[: rules.max_step_chars], "length", ""
    return body, finish, ""


def _read_step(body: str, reply: Reply, rules: ReadingRules) -> tuple[str, Finish]:
    text, found, _ = body.partition(rules.separator)
    text = text.strip()
    if not found:
        if reply.ending == "length":
            return text, "length"
        if reply.ending == "stop_string" or cut_by_suffix(reply, rules):
            return text, "step"
        if _ended_itself(reply, rules):
            return text, "stop"
    return text, "stop" if rules.is_final(text) else "step"


def cut_by_suffix(reply: Reply, rules: ReadingRules) -> bool:
    """Tell whether the stop string, kept in the output, ended the reply."""
    return rules.suffix_tells and reply.text.endswith(rules.separator)


def _ended_itself(reply: Reply, rules: ReadingRules) -> bool:
    """Tell whether the model ended its answer, as far as that can be known."""
    if rules.asked:  # it was asked to stop, so that it did says nothing
        return False
    if reply.ending != "stopped":
        return reply.ending == "natural"
    if rules.suffix_tells:
        return not cut_by_suffix(reply, rules)
    return not rules.stopped


def as_proposals(
    readings: Sequence[tuple[str, Finish, str]],
    tokens: Sequence[int],
    usage: CallUsage,
    requests: int,
) -> list[Proposal]:
    """Return the proposals of one call; its prompt and its requests are counted on the first."""
    return [
        Proposal(
            text=text,
            finish=finish,
            generated_tokens=spent,
            prompt_tokens=usage.prompt_tokens if place == 0 else 0,
            requests=requests if place == 0 else 0,
            error=error,
            unusable=bool(error),
        )
        for place, ((text, finish, error), spent) in enumerate(zip(readings, tokens, strict=True))
    ]


def failed_proposals(count: int, error: str, requests: int) -> list[Proposal]:
    """Return `count` proposals of a call that failed."""
    return [
        Proposal("", "error", requests=requests if place == 0 else 0, error=error)
        for place in range(count)
    ]
