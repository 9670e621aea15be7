"""The models and graders that `vprm-search evaluate` was given by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vprm_search.cli import options
from vprm_search.errors import ConfigError

if TYPE_CHECKING:
    from vprm_search.evaluate.candidates import Sampling
    from vprm_search.evaluate.grading import Grading
    from vprm_search.evaluate.scoring import Critic
    from vprm_search.evaluate.stages import Stages
    from vprm_search.evaluate.tiles import Tiling
    from vprm_search.types import Policy, StepScorer


def policy_of(name: str, base_url: str | None, sampling: Sampling) -> Policy:
    """Return the policy `name`, asked as the settings say. Raises as `options.chat_model`."""
    from vprm_search.policy.chat_model_policy import ChatModelPolicy

    model = options.chat_model(name, base_url, sampling.temperature)
    bound: dict[str, object] = {"logprobs": True} if sampling.likelihood else {}
    if sampling.top_p < 1:
        bound["top_p"] = sampling.top_p
    model = model.bind(**bound) if bound else model
    instruction = "" if sampling.prompt.text else None  # else the policy's own
    return ChatModelPolicy(model, max_tokens_total=sampling.max_tokens, instruction=instruction)


@dataclass(slots=True)
class Models:
    """Loads what scores and judges; a model that is asked for twice is read once.

    Args:
        place: where reward models run.
        tiles: how models in this process are shown pictures, None for as their checkpoints say.
        judge_url: server of the judges.
    """

    place: options.ScorerPlace
    tiles: Tiling | None
    judge_url: str | None
    _made: dict[str, Callable[..., StepScorer]] = field(default_factory=dict)

    def maker(self, name: str) -> Callable[..., StepScorer]:
        """Return what makes scorers that have kept nothing."""
        from vprm_search.evaluate.tiles import TiledScorer

        served, rule = name.startswith(options.VLLM), self.tiles
        if name not in self._made:
            tokenizer = self.place.scorer_tokenizer if served else None
            self._made[name] = options.scorer_maker(
                name, self.place.device, api_key=self.place.scorer_api_key, tokenizer=tokenizer
            )
        make = self._made[name]
        if served or rule is None:
            return make
        return lambda **told: TiledScorer(lambda most: make(max_tiles=most, **told), rule)

    def critics(
        self, scorer: str | None, orm: str | None, judge: str | None, max_steps: int
    ) -> list[Critic]:
        """Return the critics that were asked for."""
        from vprm_search.evaluate.scoring import Critic

        critics = []
        for critic, name in (("prm", scorer), ("orm", orm)):
            if name:
                made = self.maker(name)(prefix_cache_bytes=0)  # a problem is scored in one call
                kind = "steps" if critic == "prm" else "whole"
                critics.append(Critic(critic, made, name, kind, max_steps))  # type: ignore[arg-type]
        if judge:
            from vprm_search.scoring.judge_scorer import PROMPT_VERSION, JudgeScorer

            model = options.chat_model(judge, self.judge_url, 0.0)
            named = f"{judge}, prompt {PROMPT_VERSION}"  # wherever it is served
            critics.append(Critic("judge", JudgeScorer(model, identity=named), judge, "whole"))
        return critics

    def for_searches(self, scorer: str) -> tuple[Critic, Callable[[], StepScorer]]:
        """Return a scorer as a critic, and what makes scorers of it that have kept nothing."""
        from vprm_search.evaluate.scoring import Critic

        make = self.maker(scorer)
        return Critic("prm", make(), scorer), make

    def graders(self, stages: Stages, name: str | None, judge: str | None) -> list[Grading]:
        """Return a rule, the set's own by default, and a chat model that judges, if one is named.

        Raises `ConfigError` for a rule that is not known.
        """
        from vprm_search.datasets.graders import GRADERS, grader_of
        from vprm_search.evaluate.grading import VERDICTS, ByJudge, ByRule

        if name is not None and name not in GRADERS:
            raise ConfigError(f"--grader {name!r}: one of {', '.join(GRADERS)}")
        graders: list[Grading] = [ByRule(grader_of(name or stages.problems.name))]
        if judge is not None:
            from vprm_search.datasets.answer_judge import AnswerJudge

            model = options.chat_model(judge, self.judge_url, 0.0)
            record = stages.folder.path / VERDICTS
            graders.append(ByJudge(AnswerJudge(model, name=judge, record=record), judge))
        return graders
