"""The tiny policy behind the `Policy` seam, and the policy as a verifier."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from examples.tiny_models.references import LikelihoodRequest, step_likelihoods
from examples.tiny_models.tokenizer import policy_prompt
from tests.tiny.small_models import small_sampler, small_tokenizer
from vprm_search.images import normalise_image
from vprm_search.steps import STEP_SEPARATOR
from vprm_search.tiny.policy import TinyPolicy
from vprm_search.tiny.sampler import SampleRequest, pixel_values
from vprm_search.tiny.world import generate, render
from vprm_search.types import ImageData, Policy, Problem, ProposeRequest

PROBLEM = generate("tiles", "train", 5)
IMAGE = normalise_image(render(PROBLEM))


def request(steps: tuple[str, ...] = (), until: str = "step", count: int = 3) -> ProposeRequest:
    problem = Problem(PROBLEM.question, (IMAGE.digest,))
    return ProposeRequest(problem, steps, tuple(range(count)), until, (IMAGE,))  # type: ignore[arg-type]


def policy(temperature: float = 1.2) -> TinyPolicy:
    return TinyPolicy(small_sampler(), temperature=temperature, max_step_tokens=20)


async def test_proposes_what_the_sampler_samples() -> None:
    made = policy()
    assert isinstance(made, Policy)
    steps = ("Step 1: red = 3.", "Step 2: blue = 4.")
    (proposals,) = await made.propose([request(steps)])
    features = made.sampler.encode_images([render(PROBLEM)])
    (samples,) = made.sampler.sample(
        [
            SampleRequest(
                PROBLEM.question,
                (0, 1, 2),
                features,
                prefix=STEP_SEPARATOR.join(steps) + STEP_SEPARATOR,
                temperature=1.2,
                max_new_tokens=20,
                stop=(STEP_SEPARATOR,),
            )
        ]
    )
    assert [(p.text, p.finish, p.generated_tokens) for p in proposals] == [
        (s.text, s.finish, s.tokens) for s in samples
    ]
    assert [p.prompt_tokens > 0 for p in proposals] == [True, False, False]
    assert [p.requests for p in proposals] == [1, 0, 0]


async def test_heat_multiplies_the_temperature() -> None:
    hot = replace(request(), temperature_scale=1.5)
    (mine,) = await policy(0.8).propose([hot])
    (theirs,) = await policy(0.8 * 1.5).propose([request()])
    assert mine == theirs


async def test_a_request_answers_alike_in_any_company() -> None:
    made = policy()
    alone = (await made.propose([request(until="end")]))[0]
    company = await made.propose([request(("Step 1: red = 3.",)), request(until="end")])
    assert company[1] == alone


async def test_one_bad_request_costs_only_itself() -> None:
    broken = ImageData("sha256-" + "0" * 64, b"no picture")
    problem = Problem("What?", (broken.digest,))
    bad_image = ProposeRequest(problem, (), (1, 2), "step", (broken,))
    too_long = ProposeRequest(Problem("What? " * 900), (), (1,), "step")
    first, second, third = await policy().propose([bad_image, request(), too_long])
    assert [p.finish for p in first] == ["error", "error"]
    assert "image" in first[0].error
    assert third[0].finish == "error"
    assert "1024" in third[0].error
    assert all(p.finish != "error" for p in second)


async def test_pictures_of_another_size_are_brought_to_the_models() -> None:
    large = normalise_image(render(PROBLEM).resize((200, 130)))
    problem = Problem(PROBLEM.question, (large.digest,))
    (proposals,) = await policy().propose([ProposeRequest(problem, (), (1,), "step", (large,))])
    assert proposals[0].finish != "error"


@torch.inference_mode()
def test_likelihoods_equal_plain_forward_passes() -> None:
    sampler, tokenizer = small_sampler(), small_tokenizer()
    steps = PROBLEM.steps
    features = sampler.encode_images([render(PROBLEM)])
    found = step_likelihoods(
        sampler,
        [
            LikelihoodRequest(PROBLEM.question, steps[:1], features),
            LikelihoodRequest(PROBLEM.question, steps, features),
        ],
    )
    start = tokenizer.encode(policy_prompt(PROBLEM.question), add_special_tokens=False)
    text = policy_prompt(PROBLEM.question) + PROBLEM.solution
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    logits = sampler.model(input_ids=ids, pixel_values=pixel_values([render(PROBLEM)])).logits
    scores = logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    total = math.fsum(math.log(value) for value in found[1])
    assert total == pytest.approx(float(scores[len(start) - 1 :].sum()), abs=1e-3)
    # One step alone ends without its blank line ("." instead of ".\n\n"), so only the count agrees.
    assert [len(values) for values in found] == [1, len(steps)]
