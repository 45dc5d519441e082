"""The teacher's stages: the requests about each input, and how answers become records.

`generate` asks for a blind thought and a label: the true label is added to the answer afterwards. `reflect`
gives a stronger model the true label of a wrong thought; if it still answers the other one, the pair counts
as a failure. `score` asks a judge, and has texts that score low rewritten; every round is kept.
"""

from __future__ import annotations

import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

from nlicot.records import Example, Reflection, Score, Thought, to_json_dict
from nlicot.teacher.answers import SCHEMAS, NoValidAnswer, ask_until_valid
from nlicot.teacher.backends.base import Endpoint, Request
from nlicot.teacher.engine.journal import Outcome
from nlicot.teacher.engine.scheduler import Ask, Task
from nlicot.teacher.prompt import PromptType, TeacherPrompt

RELATION_MAP = {"entailment": 1, "neutral": 0, "contradiction": 0}
REGENERATION_TOKENS = 768
Text: TypeAlias = Thought | Reflection
Item = TypeVar("Item", bound=Example | Thought | Reflection)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSettings:
    """The models that a stage asks, and how.

    Args:
        next_models: asked in turn if the one before gave no valid answer.
        temperature, top_p: for sampling; None leaves them to the server.
        max_tokens: token budget of an answer.
        seed: seed of the requests, to which the sample's number is added; None sends none for sample 0.
    """

    model: str
    next_models: tuple[str, ...] = ()
    temperature: float | None = 0.3
    top_p: float | None = None
    max_tokens: int = 512
    seed: int | None = None

    def params(self, draw: int = 0) -> dict[str, Any]:
        """Return a request's parameters; another `draw` of the same question gets another seed."""
        seed = draw or None if self.seed is None else self.seed + draw
        named = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens}
        named |= {"random_seed": seed}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Stage(ABC, Generic[Item]):
    """A stage over its inputs; its questions and tasks are in the output's order.

    `prompts` are all that the stage may use; the first one asks each item's first question.
    """

    name: ClassVar[str]  # the command's
    endpoint: Endpoint
    settings: StageSettings
    prompts: Mapping[PromptType, TeacherPrompt]

    @property
    def first_prompt(self) -> TeacherPrompt:
        """The prompt of each item's first question."""
        return next(iter(self.prompts.values()))

    @property
    def models(self) -> list[str]:
        """All models that may be asked, each once."""
        return list(dict.fromkeys((self.settings.model, *self.settings.next_models)))

    @abstractmethod
    def questions(self) -> Iterator[tuple[Item, Request]]:
        """Yield each item with its first request; answers may lead to more."""

    @abstractmethod
    def _key_suffix(self, item: Item) -> str:
        """Return all that the item's outcome depends on besides the first request."""

    @abstractmethod
    async def _work(self, item: Item, request: Request, ask: Ask) -> Outcome:
        """Turn an item's answers into records; may raise `NoValidAnswer`."""

    def tasks(self) -> Iterator[Task]:
        """Yield one task per question."""
        for item, request in self.questions():
            run = functools.partial(self._outcome, item, request)
            yield Task(key=f"{request.key()}/{self._key_suffix(item)}", pair=item.id, run=run)

    async def _outcome(self, item: Item, request: Request, ask: Ask) -> Outcome:
        try:
            return await self._work(item, request, ask)
        except NoValidAnswer as error:
            # Stored in the journal: the answers were paid for, and only `--retry_failures` asks again.
            failure = error.failure(pair=item.id, stage=self.name)
            return Outcome(ok=False, correct=None, rows=[to_json_dict(failure)])

    def _request(self, prompt_type: PromptType, item: Example | Text, *, draw: int, **texts: str) -> Request:
        """Build a request about an item to the stage's model; `texts` fill more placeholders."""
        return Request(
            stage=self.name,
            backend=self.endpoint.name,
            server=self.endpoint.server,
            model=self.settings.model,
            messages=self.prompts[prompt_type].render(**_texts(item), **texts),
            params=self.settings.params(draw),
            schema=SCHEMAS[prompt_type],
            sample=draw,
        )

    async def _answer(self, ask: Ask, request: Request, kind: PromptType, **how: Any) -> dict[str, Any]:
        """Return the fields of a valid answer, with its `provenance`; `how` goes to `ask_until_valid`."""
        valid = await ask_until_valid(ask, request, kind, **{"next_models": self.settings.next_models, **how})
        return {**valid.answer.fields, "provenance": valid.provenance(self.prompts[kind].sha256)}


def _texts(item: Example | Text) -> dict[str, str]:
    """Return the texts for a prompt's placeholders; a blind prompt gets no label from an `Example`."""
    texts = {"premise": item.premise, "hypothesis": item.hypothesis}
    if isinstance(item, Example):
        return texts
    if isinstance(item, Thought):
        thought_process, label = item.thought_process, item.predicted_label
    else:
        thought_process, label = item.improved_thought_process, item.reflected_label
    texts |= {"thought_process": thought_process, "predicted_label": str(label)}
    return texts | {"true_label": "unknown" if item.true_label is None else str(item.true_label)}


def _finished(*records: Any, correct: bool | None = None) -> Outcome:
    return Outcome(ok=True, correct=correct, rows=[to_json_dict(record) for record in records])


@dataclass(frozen=True, kw_only=True)
class GenerateStage(Stage[Example]):
    """`generate` over pairs: `num_samples` thoughts for each.

    `relation_map` is the label of each relation, for the prompt `relation`.
    """

    name = "generate"
    examples: Sequence[Example]
    num_samples: int = 1
    relation_map: Mapping[str, int] | None = None

    @property
    def _label_of(self) -> Mapping[str, int]:
        is_used = self.first_prompt.type is PromptType.RELATION
        return (self.relation_map or RELATION_MAP) if is_used else {}

    def questions(self) -> Iterator[tuple[Example, Request]]:
        """Yield each pair, once per sample, with its question."""
        for example in self.examples:
            for sample in range(self.num_samples):
                yield example, self._request(self.first_prompt.type, example, draw=sample)

    def _key_suffix(self, item: Example) -> str:
        relations = json.dumps(self._label_of, sort_keys=True) if self._label_of else ""
        return f"{item.id}/{item.label}{relations}"

    async def _work(self, item: Example, request: Request, ask: Ask) -> Outcome:
        fields = await self._answer(ask, request, self.first_prompt.type)
        if self._label_of:
            fields["predicted_label"] = self._label_of[fields["relation"]]
        fields |= {"id": item.id, "premise": item.premise, "hypothesis": item.hypothesis}
        thought = Thought(sample=request.sample, true_label=item.label, **fields)
        return _finished(thought, correct=None if item.label is None else thought.correct)


@dataclass(frozen=True, kw_only=True)
class ReflectStage(Stage[Thought]):
    """`reflect` over thoughts; skips correct ones, and those without a true label."""

    name = "reflect"
    thoughts: Sequence[Thought]

    def questions(self) -> Iterator[tuple[Thought, Request]]:
        """Yield each wrong thought with the question about it."""
        for thought in self.thoughts:
            if thought.true_label is not None and not thought.correct:
                yield thought, self._request(PromptType.REFLECTION, thought, draw=thought.sample)

    def _key_suffix(self, item: Thought) -> str:
        return f"{item.id}/{item.sample}"

    async def _work(self, item: Thought, request: Request, ask: Ask) -> Outcome:
        fields = await self._answer(ask, request, PromptType.REFLECTION, true_label=item.true_label)
        copied = ("id", "sample", "premise", "hypothesis", "true_label", "thought_process")
        return _finished(Reflection(**{name: getattr(item, name) for name in copied}, **fields))


@dataclass(frozen=True, kw_only=True)
class ScoreStage(Stage[Text]):
    """`score` over thoughts and reflections.

    Args:
        threshold: a text with a lower score is rewritten.
        num_rounds: maximum number of rewrites; 0 only scores.
        regenerate_with: the model of round 1, of round 2 ...; the last one serves all later rounds.
    """

    name = "score"
    texts: Sequence[Text]
    threshold: int = 4
    num_rounds: int = 3
    regenerate_with: Sequence[str] = ()

    @property
    def models(self) -> list[str]:
        """All models that may be asked, the judges first."""
        writers = self.regenerate_with if self.num_rounds else ()
        return list(dict.fromkeys((*super().models, *writers)))

    def questions(self) -> Iterator[tuple[Text, Request]]:
        """Yield each text with the question for its score."""
        for text in self.texts:
            yield text, self._request(PromptType.SCORING, text, draw=text.sample)

    def _key_suffix(self, item: Text) -> str:
        writers = ",".join(self.regenerate_with)
        prompts = ",".join(self.prompts[kind].sha256[:16] for kind in sorted(self.prompts))
        input_ = f"{_target(item)}/{item.id}/{item.sample}"
        return f"{input_}/{self.threshold}/{self.num_rounds}/{writers}/{prompts}"

    async def _work(self, item: Text, request: Request, ask: Ask) -> Outcome:
        text, score = item, await self._score(item, request, 0, ask)
        records: list[Score | Text] = [score]
        try:
            for round_ in range(1, self.num_rounds + 1):
                if score.score >= self.threshold or not self.regenerate_with:
                    break
                text = await self._regenerate(text, score, round_, ask)
                records.append(text)
                request = self._request(PromptType.SCORING, text, draw=text.sample)
                score = await self._score(text, request, round_, ask)
                records.append(score)
        except NoValidAnswer:
            pass  # the rounds so far are better than none
        return _finished(*records)

    async def _score(self, text: Text, request: Request, round_: int, ask: Ask) -> Score:
        fields = await self._answer(ask, request, PromptType.SCORING)
        return Score(id=text.id, sample=text.sample, target=_target(text), round=round_, **fields)

    async def _regenerate(self, text: Text, score: Score, round_: int, ask: Ask) -> Text:
        """Return the text of the next round, by that round's model."""
        is_thought = isinstance(text, Thought)
        kind = PromptType.REGENERATION if is_thought else PromptType.REFLECTION_REGENERATION
        judged = {"score": str(score.score), "analysis": score.analysis}
        request = self._request(kind, text, draw=text.sample + round_, **judged)
        writer = self.regenerate_with[min(round_, len(self.regenerate_with)) - 1]
        params = {**request.params, "max_tokens": REGENERATION_TOKENS}
        request = replace(request, model=writer, params=params)
        if isinstance(text, Thought):
            fields = await self._answer(ask, request, kind, next_models=())
            # A relation would be that of the first thought.
            return replace(text, round=round_, relation=None, **fields)
        fields = await self._answer(ask, request, kind, next_models=(), true_label=text.true_label)
        return replace(text, round=round_, **fields)


def _target(text: Text) -> Any:
    return "thought" if isinstance(text, Thought) else "reflection"
