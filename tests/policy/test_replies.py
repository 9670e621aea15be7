"""One step asked, more or less given: what real chat models reply, and the step that is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage

from tests.policy.models import Script, request
from vprm_search.policy import ChatModelPolicy, ModelCapabilities
from vprm_search.policy.replies import ReadingRules, Reply, read_proposal
from vprm_search.types import Proposal

CASES = json.loads((Path(__file__).parent / "replies.json").read_text())
PREFILL = ModelCapabilities(prefill="message")
SERVER = ModelCapabilities(prefill="server")
STEP = "The red bar is 3 and the blue bar is 4."


async def one(policy: ChatModelPolicy, *steps: str, **options: Any) -> Proposal:
    ((proposal,),) = await policy.propose([request(*steps, **options)])
    return proposal


def reply(text: str, **metadata: Any) -> Script:
    """Return a model that replies `text`, whatever stop strings it is given."""
    return Script(lambda *_, **__: AIMessage(text, response_metadata=metadata))


@pytest.mark.parametrize(
    "case",
    CASES,
    ids=lambda case: case["id"],
)
async def test_our_reduced_cases(case: dict[str, Any]) -> None:
    model = reply(case["reply"], **case["response_metadata"])
    policy = ChatModelPolicy(model, continuation=case["mode"])
    proposal = await one(policy, until=case["until"])
    expected = case["expected"]["text"].replace("(same)", case["reply"])
    assert (proposal.text, proposal.finish) == (expected, case["expected"]["finish"])


GREETINGS = [
    "Sure!",
    "Sure! Here is the first step:",
    "Sure, here's the next step:",
    "Certainly! Let's solve this step by step.",
    "Of course! I'd be happy to help you with that.",
    "Okay, let's break this down.",
    "Okay! Here is one step:",
    "Alright, let's work through this together.",
    "Great question!",
    "Great! Let's continue with the next step.",
    "Hello! I'd be happy to help you solve this problem.",
    "Here is the first step of the solution:",
    "Here's a step-by-step solution:",
    "Here's how we can approach this problem:",
    "Here's the first step in solving the problem:",
    "Let me solve this step by step.",
    "Let's get started!",
    "To solve this problem, we need to follow these steps:",
    "The next step is:",
    "Next step:",
    "The first step is as follows:",
    "**Sure!** Here's the first step:",
    "Sure thing! 😊",
    "Absolutely!\nHere is the next step:",
    "I understand. Let me continue.",
    "当然！以下是第一步：",
    "好的，这是第一步：",
    "Claro, aquí está el primer paso:",
    "Bien sûr ! Voici la première étape :",
    "Natürlich! Hier ist der erste Schritt:",
    "Solution so far:",
    "Thank you for the question! Let's begin.",
    "Okay, here goes:",
    "Here you go:",
    "Let's look at the picture carefully.",
    "Looking at the image, let me solve this step by step.",
    "To find the answer, let's go step by step.",
    "Let's dive in!",
    "Continuing from the previous step:",
    "I will continue from step 2.",
    "As requested, here's the next step only:",
    "Good question. Let's see.",
    "Right, so here is the first step:",
    "Now, the next step:",
    "Klar! Der erste Schritt:",
    "Zeker! Hier is de eerste stap:",
    "Oczywiście! Oto pierwszy krok:",
    "Självklart! Här är första steget:",
    "بالتأكيد! إليك الخطوة الأولى:",
]


@pytest.mark.parametrize("greeting", GREETINGS)
@pytest.mark.parametrize("between", ["\n\n", "\n \n", "\n"])
async def test_a_greeting_is_not_the_step(greeting: str, between: str) -> None:
    text = f"{greeting}{between}{STEP}\n\nThen we add them."
    assert (await one(ChatModelPolicy(reply(text)))).text == STEP


@pytest.mark.parametrize("greeting", GREETINGS)
async def test_a_greeting_at_which_a_server_stops_is_made_up_for(greeting: str) -> None:
    """The model is asked again without the stop string, and so from then on."""
    model = Script(lambda *_, **__: f"{greeting}\n\n{STEP}\n\nThen we add them.")
    policy = ChatModelPolicy(model)
    proposal = await one(policy)
    assert (proposal.text, proposal.finish, proposal.requests) == (STEP, "step", 2)
    assert (await one(policy)).requests == 1
    assert [call["stop"] for call in model.calls] == [["\n\n"], None, None]


STEPS = [
    "Okay, so the red bar is 3.",
    "Let's find the area of the red rectangle.",
    "Let us break the figure into two triangles.",
    "Sure enough, the red bar is taller.",
    "The first step is to read the red bar.",
    "First, we need to find the height of the red bar.",
    "Let x be the number of tiles.",
    "Good: the two bars are equal.",
    "Here the red bar is taller than the blue one.",
    "Next I will check whether the answer is plausible.",
    "The solution of the equation is the larger root.",
    "Let's count the red tiles in the image.",
    "We can use this to find the area of the triangle.",
    "好的，我们先看红色的条形。",
    "Let's look at the red bar: it is taller.",
    "Right angles are equal.",
    "Now, compare the bars.",
    "So it is red.",
    "Continuing this pattern, the next tile is red.",
    "To find the answer, we need to add the two bars.",
    "The solution set is empty.",
    "Yes.",
    "No.",
    "ok",
    "Step 1: look.",
    "**Red is 3.**",
    "#### 5",
    "\\[ x = 1 \\]",
    "- red is 3\n- blue is 4",
    "Step 2",
]


@pytest.mark.parametrize("text", STEPS)
@pytest.mark.parametrize("after", ["", "\n\nThen we go on."])
async def test_a_step_is_no_greeting(text: str, after: str) -> None:
    proposal = await one(ChatModelPolicy(reply(text + after)))
    assert (proposal.text, proposal.requests) == (text, 1)


@pytest.mark.parametrize(
    ("text", "step"),
    [
        (f"### Step 1\n\n{STEP}\n\n### Step 2\n\nAdd.", f"### Step 1\n\n{STEP}"),
        (f"### Step 1: Read the bars\n\n{STEP}", f"### Step 1: Read the bars\n\n{STEP}"),
        (f"**Step 1: Read**\n\n{STEP}\n\nMore.", f"**Step 1: Read**\n\n{STEP}"),
        (f"**Step 1: Read**\n{STEP}\n\nMore.", f"**Step 1: Read**\n{STEP}"),
        (f"Step 1:\n\n{STEP}\n\nMore.", f"Step 1:\n\n{STEP}"),
        (f"## Solution\n\n### Step 1\n\n{STEP}", f"## Solution\n\n### Step 1\n\n{STEP}"),
        (f"Sure!\n\n### Step 1\n\n{STEP}\n\nMore.", f"### Step 1\n\n{STEP}"),
        (f"---\n\n{STEP}\n\n---\n\nMore.", STEP),
        (f"\n\n\n{STEP}\n\nMore.", STEP),
        (f" \n\t\n{STEP}\n \nMore.", STEP),
        (f"{STEP}\r\n \r\nMore.", STEP),
        (f"Sure! Here is the first step: {STEP}", STEP),
        (f"Sure!\n{STEP}", STEP),
        ("We get\n\n\\[\n\nx\n\n\\]", "We get"),
        ("We get:\n\n\\[\n\nx = 1\n\n\\]\n\nMore.", "We get:\n\n\\[\n\nx = 1\n\n\\]"),
        ("\\[\n\nx = 1\n\n\\]\n\nMore.", "\\[\n\nx = 1\n\n\\]"),
        (f"<think>\n\nhm\n\n</think>\n\n{STEP}\n\nMore.", STEP),
        (f"hm, so\n\n</think>\n\n{STEP}", STEP),
        (f"Sure!\n\n<step>{STEP}</step>\n\nBye.", STEP),
        (f"<step>\n{STEP}", STEP),
        (json.dumps({"step": STEP}), STEP),
        (f"```json\n{json.dumps({'step': STEP, 'answer': None})}\n```", STEP),
        (json.dumps({"step": "Red is 3.", "answer": 7}), "Red is 3.\nAnswer: 7"),
        (f"{STEP}\n\nLet me know if you need the next step!", STEP),
    ],
)
async def test_the_step_in_a_reply(text: str, step: str) -> None:
    proposal = await one(ChatModelPolicy(reply(text)))
    assert proposal.text == step
    assert proposal.finish == ("stop" if "Answer" in step else "step")


@pytest.mark.parametrize("known", [PREFILL, ModelCapabilities()], ids=["prefill", "instruct"])
@pytest.mark.parametrize(
    "step", ["### Step 1\n\nRed is 3.", "We get:\n\n\\[ x \\]", "\\[\n\nx = 1\n\n\\]", "Red is 3."]
)
async def test_a_step_with_a_blank_line_is_not_lost_to_the_stop_string(
    known: ModelCapabilities, step: str
) -> None:
    model = Script(lambda *_, **__: f"{step}\n\nThen we add.")
    policy = ChatModelPolicy(model, capabilities=known)
    proposal = await one(policy, "before")
    assert proposal.text == step
    assert proposal.requests == (2 if "\n\n" in step else 1)
    again = await one(policy, "before")  # a model that goes on by itself is stopped again
    assert again.requests == (2 if "\n\n" in step and known is PREFILL else 1)


async def test_only_the_replies_that_were_cut_are_asked_for_again() -> None:
    def write(*_: Any, n: int, **__: Any) -> list[str]:
        texts = ["Red is 3.\n\nMore.", "\\[\n\nx\n\n\\]\n\nMore.", "Blue is 4.\n\nMore."]
        return texts if n == 3 else ["\\[\n\nx\n\n\\]\n\nMore."]

    model = Script(write)
    known = ModelCapabilities(many=True, seeds="call", prefill="message")
    (row,) = await ChatModelPolicy(model, capabilities=known).propose([request(n=3)])
    assert [p.text for p in row] == ["Red is 3.", "\\[\n\nx\n\n\\]", "Blue is 4."]
    assert [call["n"] for call in model.calls] == [3, 1]
    assert [call["seed"] for call in model.calls] == [100, 101]
    assert sum(p.requests for p in row) == 2


async def test_a_step_repeated_behind_a_greeting_is_not_the_next_one() -> None:
    text = "Sure! Here is the next step:\n\nRed is 3.\n\nBlue is 4.\n\nAnswer: 7"
    proposal = await one(ChatModelPolicy(reply(text)), "Red is 3.")
    assert proposal.text == "Blue is 4."


@pytest.mark.parametrize("until", ["step", "end"])
@pytest.mark.parametrize(
    "message",
    [
        AIMessage("<think>Let me see. Red"),
        AIMessage("", additional_kwargs={"reasoning_content": "Let me see. Red"}),
        AIMessage([{"type": "thinking", "thinking": "Let me see. Red"}]),
        AIMessage(
            "",
            usage_metadata={
                "input_tokens": 5,
                "output_tokens": 9,
                "total_tokens": 14,
                "output_token_details": {"reasoning": 9},
            },
        ),
    ],
)
async def test_thinking_that_used_up_the_tokens_is_truncated(
    until: Any, message: AIMessage
) -> None:
    message = message.model_copy(update={"response_metadata": {"finish_reason": "length"}})
    proposal = await one(ChatModelPolicy(Script(lambda *_, **__: message)), "x", until=until)
    assert (proposal.text, proposal.finish) == ("", "length")
    assert "thinking used up" in proposal.error


@pytest.mark.parametrize(
    ("text", "why"),
    [("<think>hm</think>", "thinking"), ("Sure!", "greeting"), ("Let's get started!", "greeting")],
)
async def test_a_reply_without_a_step_says_what_it_was(text: str, why: str) -> None:
    proposal = await one(ChatModelPolicy(reply(text, finish_reason="stop")))
    assert (proposal.text, proposal.finish) == ("", "error")
    assert why in proposal.error


async def test_a_formula_cut_by_the_token_limit_is_truncated_and_whole() -> None:
    text = "\\[\n\nx = 1\n\n+ 2"
    proposal = await one(ChatModelPolicy(reply(text, finish_reason="length")))
    assert (proposal.text, proposal.finish) == (text, "length")


@pytest.mark.parametrize(
    ("split", "step", "stop"),
    [
        ("blank-lines", "Step 1: a. Red.\nStep 2: b.", ["\n\n"]),
        ("numbered", "Step 1: a. Red.", None),
        ("lines", "Step 1: a. Red.", ["\n\n"]),
        ("sentences", "Step 1: a.", ["\n\n"]),
        ("tokens:3", "Step 1: a.", ["\n\n"]),
        ("auto", "Step 1: a. Red.", None),
    ],
)
async def test_steps_of_another_kind(split: str, step: str, stop: Any) -> None:
    model = Script(lambda *_, **__: "Step 1: a. Red.\nStep 2: b.\n\nMore.")
    proposal = await one(ChatModelPolicy(model, split=split, capabilities=PREFILL))
    assert proposal.text == step
    assert model.calls[0]["stop"] == stop


@given(
    st.lists(st.sampled_from(["Red is 3.", "So 3.", "- 3\n- 4"]), min_size=1, max_size=4), st.data()
)
def test_a_model_that_goes_on_may_say_a_step_again(steps: list[str], data: st.DataObject) -> None:
    """Small models do: it is a step like any other, and no lost candidate."""
    again = data.draw(st.sampled_from(steps))
    space = data.draw(st.sampled_from(["", "\n\n", " "]))
    rules = ReadingRules("\n\n", lambda text: False, 999, stopped=True, suffix_tells=True)
    said = Reply(f"{space}{again}\n\n", "stopped")
    assert read_proposal(said, request(*steps), rules) == (again, "step", "")
