"""The teacher's stages: the requests about each input, and how answers become records.

`generate` asks for a blind thought and a label: the true label is added to the answer afterwards. `reflect`
gives a stronger model the true label of a wrong thought; if it still answers the other one, the pair counts
as a failure. `score` asks a judge, and has texts that score low rewritten; every round is kept.

`generate_thoughts`, `reflect_on` and `score_texts` do what the commands do, without files, for notebooks:

    result = generate_thoughts(examples, backend=backend, settings=settings, journal="thoughts.sqlite")
    result.records, result.failures

Their `options` are the keyword arguments of `run_stage` and the fields of the stage.
"""

import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

from nlicot.data.rows import Row
from nlicot.data.shards import ShardOfWork
from nlicot.data.thoughts import Scored, reflection_from, scored_from, text_sha256, thought_from
from nlicot.records import Example, Failure, Reflection, Score, Thought, to_json_dict
from nlicot.teacher.answers import SCHEMAS, NoValidAnswer, ask_until_valid
from nlicot.teacher.backends.base import Backend, Endpoint, Request, runs_jobs
from nlicot.teacher.engine import scheduler
from nlicot.teacher.engine.journal import Journal, Outcome
from nlicot.teacher.engine.scheduler import Ask, Task
from nlicot.teacher.prompt import STAGE_PROMPTS, PromptType, TeacherPrompt, load_prompt

RELATION_MAP = {"entailment": 1, "neutral": 0, "contradiction": 0}
REGENERATION_TOKENS = 768
"""Tokens of a rewrite, at least."""
Text: TypeAlias = Thought | Reflection
Item = TypeVar("Item", bound=Example | Thought | Reflection)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSettings:
    """The models that a stage asks, and how.

    Each of `next_models` is asked if the one before gave no valid answer. The server chooses values that are
    None. The sample's number is added to `seed`; None sends none for sample 0. `request_fields` are laid over
    the body of each request; None removes one.
    """

    model: str
    next_models: tuple[str, ...] = ()
    temperature: float | None = 0.3
    top_p: float | None = None
    max_tokens: int = 512
    seed: int | None = None
    request_fields: Mapping[str, Any] = field(default_factory=dict)

    def params(self, draw: int = 0) -> dict[str, Any]:
        """Return a request's parameters; another `draw` of the same question gets another seed."""
        seed = draw or None if self.seed is None else self.seed + draw
        named = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens}
        named |= {"random_seed": seed}
        removed = [name for name, value in self.request_fields.items() if value is None]
        return {name: value for name, value in named.items() if value is not None and name not in removed}


@dataclass(frozen=True, kw_only=True)
class Stage(ABC, Generic[Item]):
    """A stage over its inputs, in the output's order; the first of its prompts asks the first question.

    `part` describes the inputs if they are those of one shard.
    """

    name: ClassVar[str]
    endpoint: Endpoint
    settings: StageSettings
    prompts: Mapping[PromptType, TeacherPrompt]
    part: ShardOfWork | None = None

    @property
    def first_prompt(self) -> TeacherPrompt:
        """The prompt of each item's first question."""
        return next(iter(self.prompts.values()))

    @property
    def models(self) -> list[str]:
        """All models that may be asked, each once."""
        return list(dict.fromkeys((self.settings.model, *self.settings.next_models)))

    @abstractmethod
    def questions(self) -> Iterator[tuple[Item, Request, str]]:
        """Yield each item, its first request, and what else its outcome depends on, for the journal's key."""

    @abstractmethod
    async def _work(self, item: Item, request: Request, ask: Ask) -> Outcome:
        """Turn an item's answers into records; may raise `NoValidAnswer`."""

    def tasks(self) -> Iterator[Task]:
        """Yield one task per question."""
        for item, request, suffix in self.questions():
            run = functools.partial(self._outcome, item, request)
            yield Task(key=task_key(request, suffix), pair=item.id, run=run)

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
            fields=self.settings.request_fields,
        )

    async def _answer(self, ask: Ask, request: Request, kind: PromptType, **how: Any) -> dict[str, Any]:
        """Return the fields of a valid answer, with its `provenance`; `how` goes to `ask_until_valid`."""
        how = {"next_models": self.settings.next_models, "note_read": ask.note_read, **how}
        valid = await ask_until_valid(ask, request, kind, **how)
        return {**valid.answer.fields, "provenance": valid.provenance(self.prompts[kind].sha256)}


def task_key(request: Request, suffix: str) -> str:
    """Return the key of an outcome in the journal; `suffix` is what it depends on besides the request."""
    return f"{request.key()}/{suffix}"


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
    """`generate` over pairs; `relation_map` gives the labels of relations, for the prompt `relation`."""

    name = "generate"
    examples: Sequence[Example]
    num_samples: int = 1
    relation_map: Mapping[str, int] | None = None

    @property
    def _label_of(self) -> Mapping[str, int]:
        return (self.relation_map or RELATION_MAP) if self.first_prompt.type is PromptType.RELATION else {}

    def questions(self) -> Iterator[tuple[Example, Request, str]]:
        """Yield each pair once per sample."""
        relations = json.dumps(self._label_of, sort_keys=True) if self._label_of else ""
        for item in self.examples:
            for sample in range(self.num_samples):
                request = self._request(self.first_prompt.type, item, draw=sample)
                yield item, request, f"{item.id}/{item.label}{relations}"

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

    def questions(self) -> Iterator[tuple[Thought, Request, str]]:
        """Yield each wrong thought."""
        for item in self.thoughts:
            if item.true_label is not None and not item.correct:
                request = self._request(PromptType.REFLECTION, item, draw=item.sample)
                yield item, request, f"{item.id}/{item.sample}"

    async def _work(self, item: Thought, request: Request, ask: Ask) -> Outcome:
        fields = await self._answer(ask, request, PromptType.REFLECTION, true_label=item.true_label)
        copied = ("id", "sample", "premise", "hypothesis", "true_label", "thought_process")
        return _finished(Reflection(**{name: getattr(item, name) for name in copied}, **fields))


@dataclass(frozen=True, kw_only=True)
class ScoreStage(Stage[Text]):
    """`score` over thoughts and reflections; texts that score below `threshold` are rewritten.

    `regenerate_with` are the models of round 1, of round 2 ...; the last one serves all later rounds.
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

    def questions(self) -> Iterator[tuple[Text, Request, str]]:
        """Yield each text, to be scored."""
        prompts = ",".join(self.prompts[kind].sha256[:16] for kind in sorted(self.prompts))
        suffix = f"{self.threshold}/{self.num_rounds}/{','.join(self.regenerate_with)}/{prompts}"
        for item in self.texts:
            request = self._request(PromptType.SCORING, item, draw=item.sample)
            yield item, request, f"{_target(item)}/{item.id}/{item.sample}/{suffix}"

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
        fields["text_sha256"] = text_sha256(_texts(text)["thought_process"])
        return Score(id=text.id, sample=text.sample, target=_target(text), round=round_, **fields)

    async def _regenerate(self, text: Text, score: Score, round_: int, ask: Ask) -> Text:
        """Return the text of the next round, by that round's model."""
        if isinstance(text, Thought):
            kind, true_label = PromptType.REGENERATION, None
            text = replace(text, relation=None)  # it would be that of the first thought
        else:
            kind, true_label = PromptType.REFLECTION_REGENERATION, text.true_label
        judged = {"score": str(score.score), "analysis": score.analysis}
        request = self._request(kind, text, draw=text.sample + round_, **judged)
        writer = self.regenerate_with[min(round_, len(self.regenerate_with)) - 1]
        params = request.params
        if "max_tokens" in params:
            params = {**params, "max_tokens": max(REGENERATION_TOKENS, params["max_tokens"])}
        request = replace(request, model=writer, params=params)
        try:
            fields = await self._answer(ask, request, kind, next_models=(), true_label=true_label)
        except NoValidAnswer as error:
            ask.note_set_aside(request, error.failure(pair=text.id, stage=self.name))
            raise
        return replace(text, round=round_, **fields)


def _target(text: Text) -> Any:
    return "thought" if isinstance(text, Thought) else "reflection"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult(Generic[T]):
    """A stage's records, in the order of its inputs, and its failures."""

    records: list[T]
    failures: list[Failure]
    report: scheduler.RunReport


def generate_thoughts(examples: Sequence[Example], **options: Any) -> StageResult[Thought]:
    """Ask for a blind thought and a label for each pair."""
    return run_stage(GenerateStage, thought_from, examples=examples, **options)


def reflect_on(thoughts: Sequence[Thought], **options: Any) -> StageResult[Reflection]:
    """Ask for a reflection on each wrong thought; skip correct ones."""
    return run_stage(ReflectStage, reflection_from, thoughts=thoughts, **options)


def score_texts(texts: Sequence[Text], **options: Any) -> StageResult[Scored]:
    """Ask a judge to score each text, and rewrite those that score low; the records hold every round."""
    return run_stage(ScoreStage, scored_from, texts=texts, **options)


def run_stage(
    stage_class: type[Stage[Any]],
    record_from: Callable[[Row], T],
    *,
    backend: Backend,
    settings: StageSettings,
    journal: Path | str,
    prompts: Sequence[TeacherPrompt] = (),
    run: scheduler.RunSettings | None = None,
    **inputs: Any,
) -> StageResult[T]:
    """Run a stage, and read its records.

    `journal` is a file that stores every answer: with the same one, nothing is paid for twice. `prompts`
    replace the default ones of their types. Raises `StoppedEarly` if the run ended early.
    """
    given = {prompt.type: prompt for prompt in prompts}
    defaults = {kind: load_prompt(kind) for kind in STAGE_PROMPTS[stage_class.name]}
    endpoint = Endpoint(name=backend.name, server=backend.server)
    stage = stage_class(endpoint=endpoint, settings=settings, prompts=given | defaults | given, **inputs)
    interrupted_are_paid = not runs_jobs(backend)
    with Journal(Path(journal), job=stage.name, interrupted_are_paid=interrupted_are_paid) as opened:
        report = scheduler.run_phases(
            [scheduler.Phase(tasks=stage.tasks)],
            stage=stage.name,
            backend=backend,
            models=stage.models,
            journal=opened,
            settings=run or scheduler.RunSettings(),
        )
        found = list(scheduler.outcomes(opened, stage.tasks(), report.tally))
    records = [record_from(row) for outcome in found if outcome.ok for row in scheduler.rows_of(outcome)]
    failures = [scheduler.failure_of(outcome) for outcome in found if not outcome.ok]
    return StageResult(records=records, failures=failures, report=report)
