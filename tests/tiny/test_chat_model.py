"""The embedded policy as a chat model, against the sampler it stands on."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableLambda

from examples.tiny_models.model import build_model, save_checkpoint
from tests.tiny.small_models import SHAPE, small_tokenizer
from vprm_search.errors import CheckpointError, ConfigError, ImageError, InputError, VprmError
from vprm_search.images import image_message, normalise_image
from vprm_search.policy import ChatModelPolicy, RetryRules, capabilities_of
from vprm_search.tiny.chat_model import BatchedSampler, SampleCall, TinyChatModel, shared_sampler
from vprm_search.tiny.policy import TinyPolicy
from vprm_search.tiny.sampler import SampleRequest, TinySampler
from vprm_search.tiny.weights import WEIGHT_NAMES, weights_path
from vprm_search.tiny.world import FAMILIES, generate, render
from vprm_search.types import Problem, ProposeRequest

PROBLEMS = [generate(FAMILIES[i % 3], "train", i) for i in range(6)]
IMAGES = [normalise_image(render(problem)) for problem in PROBLEMS]
SEEDS = (3, 2**62 + 1, 77, 5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny") / "policy"
    save_checkpoint(build_model(small_tokenizer(), SHAPE), small_tokenizer(), folder, torch.float32)
    return str(folder)


@pytest.fixture
def model(checkpoint: str) -> TinyChatModel:
    return TinyChatModel(checkpoint=checkpoint, max_tokens=24, seed=1)


def question(index: int = 0) -> HumanMessage:
    return image_message(PROBLEMS[index].question, IMAGES[index])


@cache
def _own_sampler(checkpoint: str) -> TinySampler:
    return TinySampler.from_pretrained(checkpoint)


def direct(checkpoint: str, index: int, seeds: tuple[int, ...], **options: Any) -> Any:
    """Sample without the chat model and without anybody else's batch."""
    sampler = _own_sampler(checkpoint)
    features = sampler.encode_images([render(PROBLEMS[index])])
    request = SampleRequest(
        PROBLEMS[index].question, seeds, features, **{"max_new_tokens": 24, **options}
    )
    return sampler.sample([request])[0]


# --- what it writes ------------------------------------------------------------------------------


def test_answers_are_the_samplers(model: TinyChatModel, checkpoint: str) -> None:
    result = model.generate([[question()]], seeds=list(SEEDS))
    expected = direct(checkpoint, 0, SEEDS)
    assert [g.text for g in result.generations[0]] == [s.text for s in expected]
    assert len({g.text for g in result.generations[0]}) == len(SEEDS)
    assert result.generations[0][0].message.content == expected[0].text  # type: ignore[union-attr]


@settings(max_examples=10, deadline=None)
@given(
    prefix=st.sampled_from(["", "Step 1: red = 3.\n\n", "Step 1", "any text "]),
    stop=st.sampled_from([(), ("\n\n",), (" ",), ("Step", "\n")]),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    limit=st.integers(1, 30),
    index=st.integers(0, 5),
)
def test_call_arguments_reach_the_sampler(
    checkpoint: str,
    prefix: str,
    stop: tuple[str, ...],
    temperature: float,
    limit: int,
    index: int,
) -> None:
    messages: list[Any] = [question(index)] + ([AIMessage(prefix)] if prefix else [])
    model = TinyChatModel(checkpoint=checkpoint)
    found = model.generate(
        [messages], stop=list(stop), seeds=[9, 10], temperature=temperature, max_tokens=limit
    ).generations[0]
    expected = direct(
        checkpoint,
        index,
        (9, 10),
        prefix=prefix,
        stop=stop,
        temperature=temperature,
        max_new_tokens=limit,
    )
    assert [g.text for g in found] == [s.text for s in expected]
    for generation, sample in zip(found, expected, strict=True):
        metadata = generation.message.response_metadata  # type: ignore[union-attr]
        assert metadata["finish_reason"] == ("length" if sample.finish == "length" else "stop")
        assert metadata["generated_tokens"] == sample.tokens
        if sample.finish == "step":
            assert metadata["stop_reason"]
        elif sample.finish == "stop":
            assert metadata["stop_reason"] is None


def test_usage_is_that_of_the_call_on_the_first_answer(model: TinyChatModel) -> None:
    generations = model.generate([[question()]], n=3).generations[0]
    messages = [g.message for g in generations]  # type: ignore[union-attr]
    tokens = [m.response_metadata["generated_tokens"] for m in messages]
    assert messages[0].usage_metadata == {
        "input_tokens": messages[0].usage_metadata["input_tokens"],
        "output_tokens": sum(tokens),
        "total_tokens": messages[0].usage_metadata["input_tokens"] + sum(tokens),
    }
    assert [m.usage_metadata for m in messages[1:]] == [None, None]


def test_the_picture_and_the_question_matter(model: TinyChatModel) -> None:
    def ask(message: HumanMessage) -> str:
        return model.generate([[message]], seeds=[1], temperature=0.0).generations[0][0].text

    same_text = image_message(PROBLEMS[0].question, IMAGES[1])
    logged = {ask(question(0)), ask(same_text), ask(HumanMessage(PROBLEMS[0].question))}
    assert len(logged) > 1


async def test_sync_async_and_streams_agree(model: TinyChatModel) -> None:
    messages = [question()]
    expected = model.invoke(messages).content
    assert (await model.ainvoke(messages)).content == expected
    chunks = list(model.stream(messages))
    assert isinstance(chunks[0], AIMessageChunk)
    assert "".join(str(chunk.content) for chunk in chunks) == expected
    achunks = [chunk async for chunk in model.astream(messages)]
    assert "".join(str(chunk.content) for chunk in achunks) == expected
    assert chunks[0].usage_metadata == model.invoke(messages).usage_metadata  # type: ignore[attr-defined]


def test_seeds(checkpoint: str) -> None:
    def texts(model: TinyChatModel, **kwargs: Any) -> list[str]:
        return [g.text for g in model.generate([[question()]], **kwargs).generations[0]]

    model = TinyChatModel(checkpoint=checkpoint, max_tokens=24)
    assert texts(model, seed=4, n=3) == texts(model, seed=4, n=3)
    assert len(set(texts(model, seed=4, n=3))) == 3
    assert texts(model, seed=4, n=3) != texts(model, seed=5, n=3)
    assert texts(model) != texts(model)  # a fresh seed for every call
    fixed = TinyChatModel(checkpoint=checkpoint, max_tokens=24, seed=4, n=3)
    assert texts(fixed) == texts(model, seed=4, n=3)
    alone = [texts(model, seeds=[seed])[0] for seed in SEEDS]
    assert texts(model, seeds=list(SEEDS)) == alone  # a child does not know its siblings


@settings(max_examples=40)
@given(st.integers(-(2**70), 2**70), st.integers(1, 300))
def test_children_of_one_seed_all_differ(seed: int, n: int) -> None:
    seeds = TinyChatModel()._seeds({"seed": seed, "n": n})
    assert len(set(seeds)) == n
    assert all(0 <= value < 2**63 for value in seeds)


@pytest.mark.parametrize("arguments", [{"seeds": []}, {"seeds": [1, 2], "n": 3}, {"n": 0}])
def test_seeds_and_n_must_agree(model: TinyChatModel, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        model.generate([[question()]], **arguments)


# --- what it reads -------------------------------------------------------------------------------


def test_it_reads_one_picture_question(model: TinyChatModel) -> None:
    expected = model.invoke([question(1)], seeds=[1]).content
    conversation = [
        SystemMessage("You are exact."),
        question(0),
        AIMessage("Step 1: nonsense."),
        question(1),
        AIMessage("Step 1: wrong. Answer: 1"),
        HumanMessage("The verifier rejects step 1. Try again."),
    ]
    assert model.invoke(conversation, seeds=[1]).content == expected


def test_pictures_of_other_sizes_are_resized(model: TinyChatModel) -> None:
    large = normalise_image(render(PROBLEMS[0]).resize((200, 160)))
    assert model.invoke([image_message("What is red?", large)]).content


@pytest.mark.parametrize("text", ["<|im_end|>", "<IMG_CONTEXT>", "<img>", "\ud800", "日本 \x00"])
def test_hostile_text_is_text(model: TinyChatModel, text: str) -> None:
    assert model.invoke([image_message(text, IMAGES[0]), AIMessage(text)]) is not None


async def test_bad_input_is_a_typed_error_and_hurts_nobody_else(model: TinyChatModel) -> None:
    bad = [
        ([AIMessage("x")], {}, InputError),
        ([HumanMessage("word " * 5000)], {}, VprmError),
        ([question()], {"temperature": -1.0}, ConfigError),
        ([question()], {"max_tokens": 0}, ConfigError),
        ([HumanMessage([{"type": "image", "url": "http://127.0.0.1:9/x.png"}])], {}, ImageError),
    ]
    tasks = [model.ainvoke([question()])] + [model.ainvoke(m, **kw) for m, kw, _ in bad]
    fine, *errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(fine, AIMessage)
    for error, (_, _, kind) in zip(errors, bad, strict=True):
        assert isinstance(error, kind)


def test_the_token_limit_is_cut_to_the_room_there_is(model: TinyChatModel) -> None:
    long = AIMessage("Step 1: red = 3. " * 90)
    message = model.invoke([question(), long], max_tokens=10**6, temperature=5.0, seeds=[1])
    positions = model.sampler.sampler.model.config.text_config.max_position_embeddings
    assert message.usage_metadata is not None
    assert message.usage_metadata["total_tokens"] <= positions


# --- many callers --------------------------------------------------------------------------------


async def test_simultaneous_calls_are_sampled_together_and_independently(
    checkpoint: str,
) -> None:
    model = TinyChatModel(checkpoint=checkpoint, max_tokens=24)

    def calls() -> list[Any]:
        return [model.ainvoke([question(i % 6)], seeds=[i]) for i in range(24)]

    alone = [(await call).content for call in calls()]
    before = model.sampler.batches
    together = [message.content for message in await asyncio.gather(*calls())]
    assert together == alone
    assert model.sampler.batches - before < 24


async def test_a_cancelled_call_leaves_the_others_alone(model: TinyChatModel) -> None:
    expected = (await model.ainvoke([question()], seeds=[1])).content
    doomed = [asyncio.create_task(model.ainvoke([question(i)], seeds=[1])) for i in range(3)]
    kept = asyncio.create_task(model.ainvoke([question()], seeds=[1]))
    await asyncio.sleep(0)
    for task in doomed:
        task.cancel()
    assert (await kept).content == expected
    assert all(isinstance(r, asyncio.CancelledError) for r in await _settled(doomed))


async def _settled(tasks: list[Any]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_a_bug_while_sampling_reaches_every_caller(checkpoint: str) -> None:
    sampler = TinySampler.from_pretrained(checkpoint)
    batched = BatchedSampler(sampler)
    del sampler.decoder  # as if the model broke
    futures = [batched.submit(SampleCall(SampleRequest("x", (1,)))) for _ in range(3)]
    for future in futures:
        with pytest.raises(AttributeError):
            future.result(timeout=30)


def test_models_on_one_checkpoint_share_its_sampler(checkpoint: str) -> None:
    models = [TinyChatModel(checkpoint=checkpoint, seed=seed) for seed in range(2)]
    assert models[0].sampler is models[1].sampler


# --- as the policy of a search -------------------------------------------------------------------


def requests() -> Iterator[ProposeRequest]:
    for index, image in enumerate(IMAGES):
        problem = Problem(PROBLEMS[index].question, (image.digest,))
        seeds = tuple(range(index * 10, index * 10 + 3))
        yield ProposeRequest(problem, (), seeds, "step", (image,))
        yield ProposeRequest(problem, ("Step 1: red = 3.", "Step 2: x"), seeds, "step", (image,))
        yield ProposeRequest(problem, ("Step 1: red = 3.",), seeds, "end", (image,))
    yield ProposeRequest(Problem("no picture"), (), (1, 2))


async def test_the_adapter_proposes_what_the_direct_policy_does(checkpoint: str) -> None:
    """Two ways to one sampler: through chat messages, and without them.

    Where a reply says nothing before its first blank line, the adapter asks again without the stop
    string and reads on.
    """
    asked = list(requests())
    limits = {"max_step_tokens": 20, "max_solution_tokens": 40}
    straight = TinyPolicy(_own_sampler(checkpoint), **limits)
    unstopped = TinyPolicy(_own_sampler(checkpoint), max_solution_tokens=20)
    model = TinyChatModel(checkpoint=checkpoint, temperature=0.7)
    adapter = ChatModelPolicy(model, max_tokens_per_step=20, max_tokens_total=40)
    whole = [replace(request, until="end") for request in asked]
    for request, expected, beyond, found in zip(
        asked,
        await straight.propose(asked),
        await unstopped.propose(whole),
        await adapter.propose(asked),
        strict=True,
    ):
        for one, rest, two in zip(expected, beyond, found, strict=True):
            if one.finish == "step" and not re.search(r"\w|[=<>^$]", one.text):
                assert two.text
                assert two.text in rest.text
                assert two.generated_tokens == one.generated_tokens + rest.generated_tokens
                assert two.requests == one.requests + 1
                continue
            # A step is cleaned, a whole solution is taken to the letter.
            text = one.text.strip() if request.until == "step" else one.text
            assert (two.text, two.finish) == (text, one.finish)
            assert two.generated_tokens == one.generated_tokens
            assert (two.prompt_tokens, two.requests) == (one.prompt_tokens, one.requests)


async def test_the_adapter_does_not_add_instructions(checkpoint: str) -> None:
    model = TinyChatModel(checkpoint=checkpoint)
    assert capabilities_of(model).seeds == "children"
    policy = ChatModelPolicy(model)
    problem = Problem("w " * 2000, ())
    (row,) = await policy.propose([ProposeRequest(problem, (), (1, 2))])
    assert [p.finish for p in row] == ["error"] * 2
    assert "positions" in row[0].error
    assert row[0].requests == 1  # a prompt that is too long is not tried again


async def test_tokens_of_candidates_do_not_leak_into_streams(checkpoint: str) -> None:
    policy = ChatModelPolicy(TinyChatModel(checkpoint=checkpoint), max_tokens_per_step=8)
    request = next(requests())
    chain = RunnableLambda(lambda _: None, afunc=lambda _: policy.propose([request]))
    kinds = [event["event"] async for event in chain.astream_events(None, version="v2")]
    assert "on_chat_model_start" in kinds
    assert "on_chat_model_stream" not in kinds


# --- weights -------------------------------------------------------------------------------------


def test_weights_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPRM_SEARCH_TINY_WEIGHTS", str(tmp_path))
    for name in WEIGHT_NAMES:
        with pytest.raises(CheckpointError, match=f"{name}.*VPRM_SEARCH_TINY_WEIGHTS"):
            weights_path(name)
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
        assert weights_path(name) == tmp_path / name
    with pytest.raises(CheckpointError, match="there are: policy, prm"):
        weights_path("../policy")


def test_a_missing_checkpoint_is_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VPRM_SEARCH_TINY_WEIGHTS", str(tmp_path))
    with pytest.raises(CheckpointError, match="VPRM_SEARCH_TINY_WEIGHTS"):
        TinyChatModel().invoke("hello")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        TinyChatModel(checkpoint=str(tmp_path)).invoke("hello")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        (tmp_path / name).write_text(json.dumps({}))
    with pytest.raises(CheckpointError):
        shared_sampler(tmp_path)


async def test_a_missing_checkpoint_costs_the_candidates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VPRM_SEARCH_TINY_WEIGHTS", str(tmp_path))
    policy = ChatModelPolicy(TinyChatModel(), retry=RetryRules(max_attempts=1))
    (row,) = await policy.propose([ProposeRequest(Problem("x"), (), (1,))])
    assert "CheckpointError" in row[0].error


CUT_SHORT = """
import time
from vprm_search import BestOfN, Budget, run_search
from vprm_search.search import MajorityVote
from vprm_search.tiny import TinyChatModel, generate, render

made = generate("tiles", "test", 11)
policy = TinyChatModel(temperature=1.0)
policy.sampler  # loaded before the clock starts
run = run_search(
    made.question, images=[render(made)], policy=policy, scorer=None,
    strategy=BestOfN(256), selector=MajorityVote(), budget=Budget(seconds=0.05),
)
print(run.result.ended_by)
"""


@pytest.mark.slow
def test_a_process_ends_in_peace_while_the_policy_still_samples() -> None:
    """torch aborts a process that ends while a thread computes; here the limit has cut a search."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CUT_SHORT],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("budget: seconds")


async def test_what_nobody_waits_for_is_not_sampled_to_its_end(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TinyChatModel(checkpoint=checkpoint, temperature=1.0)
    sampler = model.sampler.sampler
    is_abandoned, reached, go = sampler.is_abandoned, threading.Event(), threading.Event()
    tokens: list[bool] = []

    def held() -> bool:
        reached.set()
        assert go.wait(30)
        tokens.append(is_abandoned())
        return tokens[-1]

    asked = [image_message(PROBLEMS[0].question, IMAGES[0])]
    whole = await model.agenerate([asked], seeds=list(SEEDS), n=len(SEEDS))
    monkeypatch.setattr(sampler, "is_abandoned", held)
    task = asyncio.create_task(model.agenerate([asked], seeds=list(SEEDS), n=len(SEEDS)))
    await asyncio.to_thread(reached.wait, 30)
    task.cancel()
    await asyncio.wait([task], timeout=30)
    assert task.cancelled()
    go.set()
    again = await model.agenerate([asked], seeds=list(SEEDS), n=len(SEEDS))
    assert [g.text for g in again.generations[0]] == [g.text for g in whole.generations[0]]
    assert tokens[0]  # given up at its first token
    assert not any(tokens[1:])
