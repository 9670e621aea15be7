"""What a guided model answers: the policy's own message, and what the search says of it."""

from __future__ import annotations

import base64
import json
import warnings
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from PIL import Image

from tests.guided.parts import Traces, by_words, calling, guided, in_turn
from tests.policy.models import RED
from vprm_search import BeamSearch, BestOfN, Budget, GuidedChatModel, MajorityVote, run_search
from vprm_search.errors import ConfigError, ImageError, InputError, SearchWarning
from vprm_search.guided.turns import question_so_far
from vprm_search.testing import ScriptedChatModel, ScriptedPolicy, ScriptedScorer, http_error

PNG = base64.b64encode(RED.png).decode()
FORMS: dict[str, dict[str, Any]] = {
    "standard": {"type": "image", "base64": PNG, "mime_type": "image/png"},
    "openai": {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
    "anthropic": {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": PNG},
    },
    "older": {
        "type": "image",
        "source_type": "base64",
        "data": PNG,
        "mime_type": "image/png",
    },
    "google": {"inline_data": {"mime_type": "image/png", "data": PNG}},
}


@settings(max_examples=25)
@given(st.lists(st.sampled_from([0.1, 0.35, 0.6, 0.85]), min_size=1, max_size=6))
def test_candidates_come_best_first_and_cost_is_counted_once(scores: list[float]) -> None:
    texts = [f"Step {n}.\n\nAnswer: {n}" for n in range(len(scores))]

    def score(request: Any) -> float:
        return scores[int(request.steps[0].split()[1].rstrip("."))]

    model = guided(*texts, scorer=ScriptedScorer(score))
    (generations,) = model.generate([[HumanMessage("Which?")]]).generations
    messages = [generation.message for generation in generations]
    told = [message.response_metadata["vprm"] for message in messages]
    assert sorted(str(message.text) for message in messages) == sorted(texts)
    assert [t["score"] for t in told] == sorted(scores, reverse=True)
    assert all(t["step_scores"] == [t["score"]] * 2 for t in told)
    first, *others = messages
    words = sum(len(text.split()) for text in texts)
    assert first.usage_metadata == {
        "input_tokens": len(texts),
        "output_tokens": words,
        "total_tokens": words + len(texts),
    }
    assert all(message.usage_metadata is None for message in others)


def test_it_is_the_search_of_run_search() -> None:
    texts = ["One.\n\nAnswer: 1", "Two.\n\nAnswer: 2", "Both.\n\nAnswer: 2"]
    parts = {"scorer": by_words(One=0.9), "strategy": BestOfN(3)}
    known = run_search("Which?", policy=ScriptedPolicy(texts), **parts)
    model = GuidedChatModel(policy=ScriptedPolicy(texts), **parts)
    message = model.invoke("Which?")
    told = message.response_metadata["vprm"]
    assert message.text == known.result.text
    expected = known.result.to_json(candidates=False)
    for same in ("answer", "score", "node", "ended_by", "fallback", "warning"):
        assert told[same] == expected[same]
    assert told["tree"] == known.tree.digest()


def test_the_policy_is_shown_the_very_messages_and_no_instruction() -> None:
    model = guided("good", "bad")
    messages = [
        SystemMessage("Answer in JSON."),
        HumanMessage([{"type": "text", "text": "What is this?"}, FORMS["openai"]], name="ada"),
    ]
    assert model.invoke(messages).content == "good"
    for call in model.policy.calls:
        assert list(call.messages) == messages
        assert call.options == {"stream": False}


@pytest.mark.parametrize("form", FORMS)
def test_the_reward_model_sees_pictures_in_any_form(form: str) -> None:
    model = guided("good", "bad")
    model.invoke([HumanMessage([FORMS[form], {"type": "text", "text": "What is this?"}])])
    for request in model.scorer.asked:
        assert [image.digest for image in request.images] == [RED.digest]
        assert request.problem.question == "What is this?"


@pytest.mark.parametrize("form", FORMS)
def test_candidate_runs_carry_no_copy_of_the_picture(form: str) -> None:
    model, traces = guided("good", "bad", "neither"), Traces()
    asked = HumanMessage([FORMS[form], {"type": "text", "text": "What is this?"}])
    model.invoke([asked], {"callbacks": [traces]})
    (run,) = traces.roots
    said = [json.dumps(r.inputs, default=str) + str(r.outputs) for r in (run, *run.child_runs)]
    assert [text.count(PNG) for text in said] == [1, 0, 0, 0]
    assert all(PNG in str(call.messages) for call in model.policy.calls)


def test_a_picture_given_by_address_is_never_fetched() -> None:
    model = guided("good")
    block = {"type": "image", "url": "http://127.0.0.1:9/secret.png"}
    with pytest.raises(ImageError, match="address"):
        model.invoke([HumanMessage([block, {"type": "text", "text": "What?"}])])


def test_the_message_is_the_policys_own() -> None:
    own = AIMessage(
        [{"type": "reasoning", "reasoning": "Hm."}, {"type": "text", "text": "good"}],
        additional_kwargs={"audio_was": "none"},
        response_metadata={"finish_reason": "stop", "model_name": "m", "logprobs": [1]},
    )
    message = guided(own, "bad").invoke("Why?")
    assert message.content == own.content
    assert message.additional_kwargs == own.additional_kwargs
    assert {k: v for k, v in message.response_metadata.items() if k != "vprm"} == (
        own.response_metadata
    )


def test_a_step_by_step_search_gives_the_text_of_its_path() -> None:
    def script(call: Any) -> str:
        so_far = call.text
        return "good.\n\nAnswer: 2" if "First good" in so_far else "First good."

    model = GuidedChatModel(
        policy=ScriptedChatModel(script),
        scorer=by_words(good=0.9),
        strategy=BeamSearch(width=1, expand=2),
    )
    message = model.invoke("How many?")
    assert message.text == "First good.\n\ngood.\n\nAnswer: 2" or message.text.startswith(
        "First good.\n\n"
    )
    assert message.response_metadata["vprm"]["usage"]["rounds"] > 1


# --- stop strings and limits ---


@pytest.mark.parametrize("given", ["call", "model", "bound"])
def test_stop_strings_reach_the_policy_and_end_the_answer(given: str) -> None:
    text = "It is good. STOP And more."
    if given == "call":
        message = guided(text).invoke("Why?", stop=["STOP"])
    elif given == "model":
        message = guided(text, stop=["STOP"]).invoke("Why?")
    else:
        policy = ScriptedChatModel([text]).bind(stop=["STOP"])
        message = guided(text, policy=policy).invoke("Why?")
    assert message.text.strip() == "It is good."


def test_a_stop_string_ends_a_path_that_grows_step_by_step() -> None:
    calls: list[Any] = []

    def script(call: Any) -> str:
        calls.append(call)
        return "First good.\n\nObservation: 3" if len(calls) == 1 else "Observation: 3"

    model = GuidedChatModel(
        policy=ScriptedChatModel(script),
        scorer=by_words(good=0.9),
        strategy=BeamSearch(width=1, expand=1),
    )
    message = model.invoke("How many?", stop=["Observation:"])
    assert message.text == "First good."
    assert all("Observation:" in call.stop for call in calls)


def test_the_users_blank_line_ends_the_answer_at_the_first_step() -> None:
    model = GuidedChatModel(
        policy=ScriptedChatModel("First good.\n\nSecond good.\n\nAnswer: 2"),
        scorer=by_words(good=0.9),
        strategy=BeamSearch(width=1, expand=1),
    )
    assert model.invoke("How many?", stop=["\n\n"]).text == "First good."


def test_arguments_of_a_call_are_the_policys() -> None:
    model = guided("good", temperature=0.3)
    model.invoke("Why?", temperature=0.9, top_k=3, max_tokens=7, seed=5)
    (call,) = model.policy.calls
    wanted = {"temperature": 0.9, "top_k": 3, "max_tokens": 7}
    assert {name: call.options[name] for name in wanted} == wanted


def test_an_answer_cut_by_the_limit_is_given_as_it_is_with_a_warning() -> None:
    model = guided("It is good and long", max_tokens=3)
    with pytest.warns(SearchWarning, match="no path finished"):
        message = model.invoke("Why?")
    assert message.text == "It is good"
    assert message.response_metadata["finish_reason"] == "length"
    assert message.response_metadata["vprm"]["fallback"] is True


def test_a_budget_ends_the_search_with_the_best_so_far() -> None:
    model = guided(*["good"] * 8, budget=Budget(candidates=3))
    with pytest.warns(SearchWarning, match="the budget cut the search"):
        told = model.invoke("Why?").response_metadata["vprm"]
    assert told["usage"]["candidates"] == 3


def test_equal_seeds_give_equal_answers_and_a_call_may_have_its_own() -> None:
    model = guided("good", "bad")
    first = model.invoke("Why?").response_metadata["vprm"]["node"]
    assert model.invoke("Why?").response_metadata["vprm"]["node"] == first
    assert model.invoke("Why?", seed=1).response_metadata["vprm"]["node"] != first


# --- when there is no answer ---


def test_when_every_call_fails_the_clients_own_error_is_raised() -> None:
    model = guided(http_error(400, "no such model"), http_error(400, "no such model"))
    with (
        pytest.warns(SearchWarning),
        pytest.raises(type(http_error(400)), match="no such model") as caught,
    ):
        model.invoke("Why?")
    assert "Every candidate of the search failed" in caught.value.__notes__[0]


def test_one_failed_call_costs_one_candidate() -> None:
    model = guided(http_error(400), "good", "bad")
    assert model.invoke("Why?").text == "good"


def test_a_refusal_of_all_candidates_is_the_answer_without_a_score() -> None:
    refused = AIMessage("", response_metadata={"finish_reason": "content_filter"})
    with pytest.warns(SearchWarning, match="filtered"):
        message = guided(refused, refused).invoke("Why?")
    assert message.response_metadata["finish_reason"] == "content_filter"
    assert message.response_metadata["vprm"]["score"] is None
    assert "filtered" in message.response_metadata["vprm"]["warning"]


def test_without_a_human_message_there_is_nothing_to_search_for() -> None:
    with pytest.raises(InputError, match="human message"):
        guided("good").invoke([SystemMessage("Be kind.")])


# --- parts ---


def test_wrong_parts_are_refused_when_the_model_is_made() -> None:
    policy, scorer = ScriptedChatModel("good"), by_words()
    with pytest.raises(ConfigError, match="must be a LangChain chat model"):
        GuidedChatModel(policy=3, scorer=scorer)
    with pytest.raises(ConfigError, match="strategy is the class BestOfN"):
        GuidedChatModel(policy=policy, scorer=scorer, strategy=BestOfN)
    with pytest.raises(ConfigError, match="scorer is None"):
        GuidedChatModel(policy=policy, strategy=BeamSearch(width=1, expand=2))
    with pytest.raises(ValueError, match="stratgy"):
        GuidedChatModel(policy=policy, scorer=scorer, stratgy=BestOfN(2))


def test_without_a_scorer_the_most_frequent_answer_is_chosen() -> None:
    texts = ["A.\n\nAnswer: 2", "B.\n\nAnswer: 3", "C.\n\nAnswer: 2"]
    policy = ScriptedChatModel(in_turn(texts))
    message = GuidedChatModel(policy=policy, strategy=BestOfN(3), selector=MajorityVote()).invoke(
        "How many?"
    )
    told = message.response_metadata["vprm"]
    assert told["answer"] == "2"
    assert told["votes"] == 2


def test_a_policy_of_ones_own_proposes_but_takes_no_arguments() -> None:
    policy = ScriptedPolicy(["good", "bad"])
    model = GuidedChatModel(policy=policy, scorer=by_words(good=0.9), strategy=BestOfN(2))
    assert model.invoke("Why?").text == "good"
    with pytest.raises(ConfigError, match="temperature"):
        model.invoke("Why?", temperature=1)
    with pytest.raises(ConfigError, match="bind_tools needs a policy that is a chat model"):
        model.bind_tools([])


def test_several_policies_are_named() -> None:
    policies = {"a": ScriptedChatModel("good"), "b": ScriptedChatModel("bad")}
    model = GuidedChatModel(policy=policies, scorer=by_words(good=0.9), strategy=BestOfN(2))
    assert model.invoke("Why?").text == "good"


# --- a conversation with tools ---


def test_the_reward_model_is_asked_with_what_tools_have_given() -> None:
    messages = [
        HumanMessage("What is 3 + 4?"),
        calling(a=3, b=4),
        ToolMessage("7", tool_call_id="1", name="add"),
    ]
    assert question_so_far(messages) == (
        "What is 3 + 4?\n\nWhat was done so far:\n"
        "I call the tool add with a = 3, b = 4.\nThe tool add gave: 7"
    )
    assert question_so_far(messages[:1]) == "What is 3 + 4?"
    model = guided("good", "bad")
    assert model.invoke(messages).text == "good"
    assert {r.problem.question for r in model.scorer.asked} == {question_so_far(messages)}


@given(st.lists(st.text(max_size=900), max_size=6))
def test_long_results_are_shown_by_their_beginnings_the_latest_ones(results: list[str]) -> None:
    messages: list[Any] = [HumanMessage("Which?")]
    for place, text in enumerate(results):
        messages += [calling(n=place), ToolMessage(text, tool_call_id="1", name="add")]
    said = question_so_far(messages).splitlines()
    assert said[0] == "Which?"
    assert sum(map(len, said)) <= 2_100
    if results:
        assert said[-1].startswith("The tool add gave: ")
        assert len(said[-1]) <= 320


def test_pictures_of_tools_are_seen_too() -> None:
    file = BytesIO()
    Image.new("RGB", (8, 8), "green").save(file, "PNG")
    block = {"type": "image", "base64": base64.b64encode(file.getvalue()).decode()}
    shown = ToolMessage([{**block, "mime_type": "image/png"}], tool_call_id="1", name="crop")
    asked = HumanMessage([FORMS["standard"], {"type": "text", "text": "What colour?"}])
    model = guided("good")
    model.invoke([asked, calling("crop", x=1), shown])
    assert all(len(request.images) == 2 for request in model.scorer.asked)


def test_nothing_warns_where_all_went_well() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(guided("good", "bad").invoke("Why?"), AIMessage)
        chunks = list(guided("good", "bad").stream("Why?"))
    assert all(isinstance(chunk, AIMessageChunk) for chunk in chunks)
