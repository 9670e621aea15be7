"""From a model's reply to a proposal: what it says, what it cost, where the step ends.

Why a reply ended is read by `chat.finish_reasons`. A reply that failed, or that holds something
else than text (tool calls, audio) and is not spoken for (`Speak`), is an error; one that does not
say why it ended is not taken for finished unless it states a final answer.

How a step's end is told from the solution's end, in this order:

1. the reply says so: a `stop_reason` (vLLM's and Anthropic's words), or, where the stop string was
   asked to be part of the output, whether the text ends in it;
2. otherwise the step ends the solution if and only if it holds a final answer (`is_final`).

A model that was *asked* to write one step and stop always falls under 2: that it stopped says
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from vprm_search.chat.finish_reasons import End, Ending, end_of
from vprm_search.images.messages import written_text
from vprm_search.policy.first_step import FirstStep, first_step
from vprm_search.policy.prompts import strip_echo
from vprm_search.steps import Splitter
from vprm_search.steps.blocks import ends_inside
from vprm_search.steps.splitters import split_paragraphs
from vprm_search.steps.thinking import put_thinking_aside
from vprm_search.types import Finish, Proposal, ProposeRequest

Speak = Callable[[AIMessage], str | None]
"""Returns the text by which a reply that is more than text (a tool call, a filled-in form) is
scored; None for a reply that is read as the text it is."""

_USAGE_NAMES = (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))


@dataclass(frozen=True, slots=True)
class ReadingRules:
    """How replies are read.

    `split` cuts a reply into steps where the separator is a blank line.
    `asked` is True when the model was asked for one step instead of continuing its own answer.
    `stopped` is True when the stop string was sent, and `suffix_tells` when the reply would end in
    it if it had ended the reply.
    """

    separator: str
    is_final: Callable[[str], bool]
    max_step_chars: int
    split: Splitter = split_paragraphs
    asked: bool = False
    stopped: bool = False
    suffix_tells: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a model: its text, and why it ended as far as the model says.

    `reason` is the provider's word for that; of a failed reply, what is wrong with it. `at` is the
    stop string that ended it, where the model says which. `thought` tells of thinking beside the
    text, which is no part of it. `message` is what the client gave.
    """

    text: str
    ending: Ending
    tokens: int | None = None
    reason: str = ""
    thought: bool = False
    at: str = ""
    message: AIMessage | None = None


@dataclass(frozen=True, slots=True)
class CallUsage:
    """The tokens of one call, all its answers together."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0


def read_replies(result: LLMResult, speak: Speak | None = None) -> list[Reply]:
    """Return the answers of the first (and only) prompt of `result`.

    What `speak` has a text for is a whole reply, cut if a limit ended it.
    """
    replies = []
    output = result.llm_output or {}
    for generation in result.generations[0] if result.generations else []:
        message = getattr(generation, "message", None)
        info = {**output, **(generation.generation_info or {})}
        text, lack = generation.text, ""
        if isinstance(message, AIMessage):
            info |= message.response_metadata
            # LangChain says what is true of all answers (the model's name) where there is only one.
            said = {**output, **message.response_metadata}
            message = message.model_copy(update={"response_metadata": said})
            text, lack = written_text(message)
        own = message if isinstance(message, AIMessage) else None
        end = end_of(info, own)
        spoken = None if own is None or speak is None else speak(own)
        called = own is not None and bool(own.tool_calls)  # which tables of ends call a failure
        if spoken is not None and (called or end.ending != "failed"):
            text = spoken
            end = End("length" if end.ending == "length" else "natural", end.reason)
        elif lack and end.ending != "failed":
            end = End("failed", lack)
        tokens = info.get("generated_tokens")
        known = tokens if isinstance(tokens, int) and tokens >= 0 else None
        thought = _thought(message)
        replies.append(Reply(text, end.ending, known, end.reason, thought, end.at, own))
    return replies


def _thought(message: Any) -> bool:
    """Tell whether a message has thinking beside its text, wherever its client puts that."""
    if not isinstance(message, AIMessage):
        return False
    extra, content = message.additional_kwargs, message.content
    usage: Mapping[str, Any] = message.usage_metadata or {}
    details = usage.get("output_token_details") or {}
    blocks = content if isinstance(content, list) else []
    kinds = {block.get("type") for block in blocks if isinstance(block, dict)}
    return bool(
        extra.get("reasoning_content")
        or extra.get("reasoning")
        or details.get("reasoning")
        or kinds & {"reasoning", "thinking", "redacted_thinking", "reasoning_content"}
    )


def read_usage(result: LLMResult) -> CallUsage:
    """Return what the whole call cost, from `usage_metadata`; zeros when the model does not say.

    OpenAI-compatible clients write the call's total on every answer, others the answer's own
    share: equal figures are taken for one total and counted once, different ones are added.
    """
    found: list[tuple[int, int, int]] = []
    for generation in result.generations[0] if result.generations else []:
        message = generation.message if isinstance(generation, ChatGeneration) else None
        usage = message.usage_metadata if isinstance(message, AIMessage) else None
        if usage is not None:
            inputs, outputs = int(usage["input_tokens"] or 0), int(usage["output_tokens"] or 0)
            cached = (usage.get("input_token_details") or {}).get("cache_read") or 0
            found.append((inputs, outputs, min(int(cached), inputs)))
    if not found:
        return _usage_of_output(result.llm_output)
    outputs = found[0][1] if len(set(found)) == 1 else sum(output for _, output, _ in found)
    return CallUsage(max(i for i, _, _ in found), outputs, max(cached for _, _, cached in found))


def _usage_of_output(output: Mapping[str, Any] | None) -> CallUsage:
    """Return the usage that clients without `usage_metadata` put into the output of a call."""
    told = (output or {}).get("token_usage") or (output or {}).get("usage")
    if not isinstance(told, Mapping):
        return CallUsage()
    counts = [told.get(new) or told.get(old) or 0 for new, old in _USAGE_NAMES]
    return CallUsage(*(count if isinstance(count, int) and count > 0 else 0 for count in counts))


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
    written = put_thinking_aside(reply.text)
    body = strip_echo(written, request.steps, rules.separator)
    if not body.strip() and not rules.asked and not _ended_itself(reply, rules):
        body = written  # a model that goes on by itself has said a step again: that is its step
    if request.until == "step" or not body.strip():  # a whole solution is scored to the letter
        body = body.strip()
    cut = reply.ending == "length" or (reply.ending == "unknown" and not rules.is_final(body))
    finish: Finish = "length" if cut else "stop"
    if not body:
        if reply.thought or written != reply.text:
            return _only_thought(reply)
        if request.steps and (_ended_itself(reply, rules) or _at_users_stop(reply, rules)):
            return "", "stop", ""  # the solution was complete with the step before
        return "", "error", "the model wrote nothing new"
    if request.until == "step":
        body, finish = _read_step(body, reply, request, rules)
        if not body:
            return "", "error", "the model wrote a greeting and no step"
        if len(body) > rules.max_step_chars:
            return body[: rules.max_step_chars], "length", ""
    return body, finish, ""


_OUT_OF_TOKENS = (
    "truncated: the model's thinking used up the tokens of its reply; allow it more "
    "(max_tokens_per_step, max_tokens_total) or switch its thinking off"
)


def _only_thought(reply: Reply) -> tuple[str, Finish, str]:
    if reply.ending == "length":
        return "", "length", _OUT_OF_TOKENS
    return "", "error", "the model wrote its thinking and nothing else"


def _read_step(
    body: str, reply: Reply, request: ProposeRequest, rules: ReadingRules
) -> tuple[str, Finish]:
    step = _first_step(body, request, rules)
    text = step.text
    if not step.followed:
        if reply.ending == "length":
            return text, "length"
        if _at_users_stop(reply, rules):
            return text, "stop"
        if reply.ending == "stop_string" or cut_by_suffix(reply, rules):
            return text, "step"
        if _ended_itself(reply, rules):
            return text, "stop"
    elif reply.ending == "length" and ends_inside(text):
        return body, "length"
    return text, "stop" if rules.is_final(text) else "step"


def _first_step(body: str, request: ProposeRequest, rules: ReadingRules) -> FirstStep:
    if rules.separator.strip():
        text, found, _ = body.partition(rules.separator)
        return FirstStep(text.strip(), followed=bool(found), is_ready=True)
    step = first_step(body, rules.split, asked=rules.asked)
    rest = strip_echo(step.text, request.steps, rules.separator).strip()
    if rest or not step.followed:
        return step
    at = body.find(step.text) + len(step.text)  # a step so far, repeated behind a greeting
    return first_step(
        strip_echo(body[at:], request.steps, rules.separator), rules.split, asked=True
    )


def cut_too_early(reply: Reply, request: ProposeRequest, rules: ReadingRules) -> bool:
    """Tell whether the stop string ended a reply before its step was written.

    It did if the reply is empty, a greeting, a heading, or stops within a formula.
    """
    if not rules.stopped or request.until == "end" or reply.ending in ("length", "failed"):
        return False
    if _at_users_stop(reply, rules):
        return False
    body = put_thinking_aside(reply.text).strip()
    if not body:  # as where a template trims the partial answer: the blank line comes first
        empty = not reply.text if rules.asked else bool(reply.text or not rules.suffix_tells)
        return reply.ending == "stop_string" or (reply.ending in ("stopped", "unknown") and empty)
    if _ended_itself(reply, rules) or rules.is_final(body):
        return False
    return not _first_step(body, request, rules).is_ready


def cut_by_suffix(reply: Reply, rules: ReadingRules) -> bool:
    """Tell whether the stop string, kept in the output, ended the reply."""
    return rules.suffix_tells and reply.text.endswith(rules.separator)


def _at_users_stop(reply: Reply, rules: ReadingRules) -> bool:
    """Tell whether a stop string of the user's ended the reply, where the model says which did."""
    return reply.ending == "stop_string" and reply.at not in ("", rules.separator)


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
    replies: Sequence[Reply],
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
            cached_tokens=usage.cached_tokens if place == 0 else 0,
            requests=requests if place == 0 else 0,
            error=error,
            unusable=bool(error),
            reply=reply.message,
        )
        for place, (reply, (text, finish, error), spent) in enumerate(
            zip(replies, readings, tokens, strict=True)
        )
    ]


def failed_proposals(
    count: int, error: str, requests: int, cause: Exception | None = None
) -> list[Proposal]:
    """Return `count` proposals of a call that failed, with the exception if there was one."""
    return [
        Proposal("", "error", requests=requests if place == 0 else 0, error=error, reply=cause)
        for place in range(count)
    ]
