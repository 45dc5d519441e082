"""Decoding that forces what is known: the scaffold is fed, the thought generated, the label read.

A row generates its thought until the closing quote or the end of its token budget; then the scaffold is fed,
and p(entailment) is the softmax over the two label tokens. So every completion parses by construction.
The next prompts take the slots of finished rows.
"""

from __future__ import annotations

import copy
import hashlib
import os.path
import random
from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nlicot import completion
from nlicot.completion import Form, SegmentKind
from nlicot.evaluation.metrics import entails
from nlicot.model.fast.forward import Rows, load_forward
from nlicot.model.loaded_model import causal_lm, context_length
from nlicot.model.prompt_format import PromptFormat
from nlicot.prediction.grammar import Answer, Choice, FreeText, Row, Scaffold, Script, ThoughtGrammar
from nlicot.prediction.transformers_rows import TransformersRows
from nlicot.records import Prediction
from nlicot.settings import DecodingSettings

BATCH_SIZE, FAST_BATCH_SIZE = 64, 128
"""Rows decoded together by default: by transformers, on a GPU too, and by `model.fast.forward`."""

REFILL_BELOW = 0.75
"""Rows enter, or slots are given up, when fewer than this fraction of slots run."""

PREFILL_TOKENS = 1024
"""Maximum padded prompt tokens of one forward pass; more pushes activations out of the processor's caches."""

ARGMAX_BLOCK = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBatch:
    """Encoded prompts to decode together, with the ids of their pairs."""

    ids: list[str]
    prompts: Sequence[Sequence[int]]


class Engine(ABC):
    """A way to run a model: thoughts are generated and labels read, all other parts are fed.

    Args:
        scaffold: the ids of the labels, and those that end a thought.
        settings: how predictions are made.
    """

    context_length: int | None = None
    """The number of tokens that the base was trained for, if it is known here."""

    def __init__(self, prompt_format: PromptFormat, scaffold: Scaffold, settings: DecodingSettings) -> None:
        self.prompt_format = prompt_format
        self.scaffold = scaffold
        self.settings = settings

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """The number of rows decoded together."""

    @abstractmethod
    def label_probabilities(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[int, float]]:
        """Yield p(entailment) for each row of ids that is about to be followed by a label, with its index."""

    @abstractmethod
    def run(
        self, rows: Sequence[Sequence[int]], script: Script, num_samples: int
    ) -> Iterator[tuple[int, Answer]]:
        """Continue each row of ids by the script, `num_samples` times; yield answers with the row's index."""

    def decode(self, batch: PromptBatch, *, form: Form = Form.THOUGHT_FIRST) -> Iterator[Prediction]:
        """Yield one prediction for each prompt, in the order in which they finish."""
        if not batch.prompts:  # a rank that is left without any
            return
        opening, script = self._student_script(form)
        rows = [_joined(prompt, opening) for prompt in batch.prompts]
        if not form.thinks:
            for index, p_entailment in self.label_probabilities(rows):
                yield average([_vote(batch.ids[index], p_entailment, None, "label_only")], form=form)
            return
        num_votes = self.settings.votes if self.settings.temperature > 0 else 1
        votes: dict[int, list[Prediction]] = {}
        choices = [part for part in form.parts if part in (SegmentKind.DRAFT, SegmentKind.LABEL)]
        for index, answer in self.run(rows, script, num_votes):
            status = "closed" if answer.closed[0] else "truncated"
            p_of = dict(zip(choices, (p for _, p in answer.probabilities), strict=True))
            vote = _vote(
                batch.ids[index],
                p_of[SegmentKind.LABEL],
                answer.texts[0],
                status,
                p_of.get(SegmentKind.DRAFT),
            )
            votes.setdefault(index, []).append(vote)
            if len(votes[index]) == num_votes:
                yield average(votes.pop(index), form=form)

    def _student_script(self, form: Form) -> tuple[list[int], Script]:
        """Return what is fed before the first step of a completion, and its steps."""
        encode, labels = self.prompt_format.encode_segment, [[label] for label in self.scaffold.label_ids]
        opening, *rest = form.parts
        script: list[FreeText | Choice] = []
        for kind, text in zip(rest[::2], rest[1::2], strict=True):
            ids = encode(str(text), first=False)
            if kind is SegmentKind.THOUGHT:
                script.append(FreeText(closing_ids=ids, max_tokens=self.settings.max_thought_tokens))
            else:
                script.append(Choice(options=labels, following_ids=ids))
        return encode(str(opening), first=True), script

    def follow(
        self, prompts: Sequence[Sequence[int]], opening_ids: Sequence[int], script: Script
    ) -> list[Answer]:
        """Decode an answer to each prompt that begins with `opening_ids` and follows `script`."""
        rows = [_joined(prompt, opening_ids) for prompt in prompts]
        found = dict(self.run(rows, script, 1))
        return [found[index] for index in range(len(rows))]

    def generators(self, row: Sequence[int], num_samples: int) -> Iterator[random.Random]:
        """Yield the random numbers of each sample, seeded by the row's ids: it is the same in any batch."""
        seed = hashlib.sha256(repr(list(row)).encode()).hexdigest()
        for sample in range(num_samples):
            yield random.Random(f"{self.settings.seed}/{sample}/{seed}")

    def ids_before_label(self, thought: str | None, draft: int | None = None) -> list[int]:
        """Return the ids of a completion up to its label: after a draft and a thought, or without them."""
        ids: list[int] = []
        form = Form.THOUGHT_FIRST if draft is None else Form.DRAFT_FIRST
        for index, segment in enumerate(completion.segments(thought, 0, form, draft)):
            if segment.kind is SegmentKind.LABEL:
                break
            if segment.text:
                ids += self.prompt_format.encode_segment(segment.text, first=not index)
        return ids


class Decoder(Engine):
    """Decodes prompts with a causal language model of transformers, adapted or not, in eval mode."""

    def __init__(self, model: Any, prompt_format: PromptFormat, settings: DecodingSettings) -> None:
        self.model = causal_lm(model)
        self.context_length = context_length(self.model.config)
        self.forward = load_forward(self.model) if settings.fast else None
        self.device = self.model.lm_head.weight.device
        self.grammar = ThoughtGrammar(prompt_format, self.model.lm_head.weight.shape[0]).to(self.device)
        super().__init__(prompt_format, self.grammar, settings)

    @property
    def batch_size(self) -> int:
        """The number of rows decoded together."""
        return self.settings.batch_size or (BATCH_SIZE if self.forward is None else FAST_BATCH_SIZE)

    def with_settings(self, settings: DecodingSettings) -> Decoder:
        """Return a decoder of the same model with other settings; tables are shared."""
        other = copy.copy(self)
        other.settings = settings
        return other

    @torch.inference_mode()
    def label_probabilities(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[int, float]]:
        """Yield p(entailment) for each row of ids that is about to be followed by a label, with its index."""
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        states, suffixes = self._start(rows)
        for part in _cut(order, suffixes):
            hidden = states.encode([suffixes[index] for index in part])
            two = choice_probabilities(self.model.lm_head, hidden, self.grammar.label_ids)
            yield from zip(part, two[:, 1].tolist(), strict=True)

    @torch.inference_mode()
    def run(
        self, rows: Sequence[Sequence[int]], script: Script, num_samples: int
    ) -> Iterator[tuple[int, Answer]]:
        """Decode all rows, each at its own pace; yield an answer when one finishes.

        Each is encoded once, whatever the number of samples.
        """
        states, suffixes = self._start(rows)
        pending = deque(range(len(rows)))
        running = _Running(states, escaping=torch.zeros(0, dtype=torch.bool, device=self.device))
        while pending or running.num_left:
            if pending and running.num_left <= REFILL_BELOW * self.batch_size:
                num_entering = max(1, (self.batch_size - running.num_left) // num_samples)
                entering = [pending.popleft() for _ in range(min(num_entering, len(pending)))]
                for part in _cut(entering, suffixes):
                    running.enter(
                        [suffixes[index] for index in part],
                        [
                            row
                            for index in part
                            for row in self._rows(index, rows[index], script, num_samples)
                        ],
                    )
            elif running.num_left < REFILL_BELOW * len(running.rows):
                running.drop_finished()
            yield from self._step(running)

    def _start(self, rows: Sequence[Sequence[int]]) -> tuple[Rows | TransformersRows, list[Sequence[int]]]:
        """Encode the prefix that all rows share (instruction and definitions); return the rows without it."""
        first_and_last = [list(choose(rows, key=list)) for choose in (min, max)]
        common = os.path.commonprefix(first_and_last)  # noqa: RUF071 (of ids, not of a path)
        prefix_len = min(len(common), min(map(len, rows)) - 1) if len(rows) > 1 else 0
        suffixes = [row[prefix_len:] for row in rows]
        states = TransformersRows if self.forward is None else Rows
        return states(self.forward or self.model, rows[0][:prefix_len]), suffixes

    def _rows(self, index: int, prompt: Sequence[int], script: Script, num_samples: int) -> Iterator[Row]:
        for generator in self.generators(prompt, num_samples):
            yield Row(script=script, owner=index, generator=generator)

    def _step(self, running: _Running) -> Iterator[tuple[int, Answer]]:
        """Decode one token of each row; yield the answers of the rows that it finishes."""
        hidden = running.states.hidden
        closing = torch.tensor([row.closing_id for row in running.rows], device=self.device)
        generators = [row.generator for row in running.rows]
        chosen = self._choose(running.states.logits(), running.escaping, closing, generators)
        # After a backslash the same token (a quote and a comma, say) is part of the thought.
        closes = ((chosen == closing) & ~running.escaping).tolist()
        running.escaping = self.grammar.escaping_after(chosen, running.escaping)
        feed = chosen.tolist()
        for slot, row in enumerate(running.rows):
            if not row.done:
                probabilities = partial(choice_probabilities, self.model.lm_head, hidden[slot])
                feed[slot] = row.next_token(feed[slot], closes[slot], probabilities)
                if row.done:
                    yield row.owner, row.answer(self.prompt_format)
        if running.num_left:
            running.states.feed(torch.tensor(feed))
            # A field starts outside any escape, even if the previous one was cut off inside one.
            fresh = torch.tensor([not row.in_text for row in running.rows], device=self.device)
            running.escaping = running.escaping & ~fresh

    def _choose(
        self, logits: Tensor, escaping: Tensor, closing: Tensor, generators: Sequence[random.Random]
    ) -> Tensor:
        """Choose tokens `[B]` from logits `[B, V]`: the most likely, or sampled with each row's generator."""
        logits = self.grammar.constrain(logits, escaping, closing)
        if self.settings.temperature <= 0:
            return _argmax(logits)
        logits = logits.float()
        probabilities = (logits / self.settings.temperature).softmax(-1)
        if self.settings.top_p < 1:
            ordered, indices = probabilities.sort(-1, descending=True)
            outside = ordered.cumsum(-1) - ordered >= self.settings.top_p
            probabilities = probabilities.scatter(-1, indices, ordered.masked_fill(outside, 0.0))
        # Exponential race: a token arrives after an exponential time at the rate of its probability, and the
        # first to arrive is chosen. Comparing a uniform number with cumulative probabilities would let
        # rounding errors, and so the other rows of the batch, decide between unlikely tokens.
        generator = torch.Generator(probabilities.device)
        times = torch.empty_like(probabilities)
        for row, numbers in zip(times, generators, strict=True):
            row.exponential_(generator=generator.manual_seed(numbers.getrandbits(63)))
        return (probabilities / times).argmax(-1)


@dataclass(slots=True)
class _Running:
    """The rows slot by slot: their progress and the model's state; a finished row's slot goes to another."""

    states: Rows | TransformersRows
    escaping: Tensor  # [slots]: true if a backslash is open
    rows: list[Row] = field(default_factory=list)

    @property
    def num_left(self) -> int:
        return sum(not row.done for row in self.rows)

    def enter(self, suffixes: Sequence[Sequence[int]], rows: Sequence[Row]) -> None:
        """Put rows into the slots of finished ones and into new slots; several may share a suffix."""
        free = [slot for slot, row in enumerate(self.rows) if row.done][: len(rows)]
        slots = [*free, *range(len(self.rows), len(self.rows) + len(rows) - len(free))]
        self.states.enter(suffixes, slots)
        self.rows += rows[: len(rows) - len(free)]  # any rows, to lengthen the list
        for slot, row in zip(slots, rows, strict=True):
            self.rows[slot] = row
        self.escaping = functional.pad(self.escaping, [0, len(self.rows) - len(self.escaping)])
        self.escaping[slots] = False

    def drop_finished(self) -> None:
        kept = [slot for slot, row in enumerate(self.rows) if not row.done]
        self.rows = [self.rows[slot] for slot in kept]
        self.escaping = self.escaping[kept]
        self.states.keep(kept)


def _joined(prompt: Sequence[int], ids: Sequence[int]) -> array[int]:
    """Return the ids of both; in an array, which takes a tenth of a list's memory."""
    return array("i", [*prompt, *ids])


def _cut(indices: Sequence[int], rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Cut `indices` of rows into parts of at most `PREFILL_TOKENS` padded tokens, or of one row."""
    part: list[int] = []
    width = 0
    for index in indices:
        width = max(width, len(rows[index]))
        if part and width * (len(part) + 1) > PREFILL_TOKENS:
            yield part
            part, width = [], len(rows[index])
        part.append(index)
    if part:
        yield part


def _argmax(values: Tensor) -> Tensor:
    """Return `[B]`: where the first largest of each row of `[B, V]` is.

    torch's `argmax` is not vectorised on a CPU and takes ten times as long.
    """
    num_rows, size = values.shape
    if size % ARGMAX_BLOCK:
        return values.argmax(-1)
    blocks = values.view(num_rows, -1, ARGMAX_BLOCK)
    best = blocks.amax(-1).argmax(-1)
    inside = blocks[torch.arange(num_rows, device=values.device), best].argmax(-1)
    return best * ARGMAX_BLOCK + inside


def choice_probabilities(head: Any, hidden: Tensor, ids: Sequence[int]) -> Tensor:
    """Return the probabilities `[..., K]` of K tokens among each other, given hidden states `[..., H]`.

    In float32 whatever the model computes in: in bfloat16 two labels often have equal logits. No matrix
    product, because autocast would round its factors.
    """
    chosen = torch.tensor(ids, device=head.weight.device)
    logits = (hidden.float()[..., None, :] * head.weight[chosen].float()).sum(-1)
    if head.bias is not None:
        logits = logits + head.bias[chosen].float()
    probabilities: Tensor = logits.softmax(-1)
    return probabilities


def _vote(
    id_: str, p_entailment: float, thought_process: str | None, status: str, p_draft: float | None = None
) -> Prediction:
    return Prediction(
        id=id_,
        predicted_label=int(entails(p_entailment)),
        p_entailment=p_entailment,
        thought_process=thought_process,
        status=status,
        completion="",
        draft_label=None if p_draft is None else int(entails(p_draft)),
        draft_p_entailment=p_draft,
    )


def average(
    answers: Sequence[Prediction], weights: Sequence[float] | None = None, form: Form | None = None
) -> Prediction:
    """Average several answers to one pair: votes of one model, or predictions of an ensemble's members.

    The thought is that of the answer with the largest weight among those with a thought and the same label,
    else of the largest with a thought. Weights are equal by default; none is negative, not all are 0. The
    completion has the form `form`, by default that of this answer, with a draft only if each answer has one.
    """
    weights = weights or [1.0] * len(answers)
    mean = _weighted_mean([float(answer.p_entailment or 0.0) for answer in answers], weights)
    label = int(entails(mean))
    p_drafts = [answer.draft_p_entailment for answer in answers]
    p_draft = None if None in p_drafts else _weighted_mean([float(p or 0.0) for p in p_drafts], weights)
    draft_label = None if p_draft is None else int(entails(p_draft))
    by_weight = [answers[index] for index in sorted(range(len(answers)), key=lambda i: -weights[i])]
    thinking = [answer for answer in by_weight if answer.thought_process is not None]
    chosen = next((one for one in thinking if one.predicted_label == label), (thinking or by_weight)[0])
    form = form or completion.form_of(chosen.completion)
    if form is Form.DRAFT_FIRST and draft_label is None:
        form = Form.THOUGHT_FIRST
    num_agreeing = sum(answer.predicted_label == label for answer in answers)
    return replace(
        chosen,
        predicted_label=label,
        p_entailment=mean,
        completion=completion.render(chosen.thought_process, label, form, draft_label),
        agreement=num_agreeing / len(answers) if len(answers) > 1 else None,
        draft_label=draft_label,
        draft_p_entailment=p_draft,
    )


def _weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)


def by_length(
    ids: Sequence[str],
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> PromptBatch:
    """Sort prompts by length, longest first: little padding, and memory peaks at the start.

    Several ranks take batches in turn, so that no pair is decoded twice; this returns those of one rank.
    """
    order = sorted(range(len(ids)), key=lambda index: (-len(prompts[index]), index))
    mine = [index for place, index in enumerate(order) if place // batch_size % world_size == rank]
    return PromptBatch(ids=[ids[index] for index in mine], prompts=[prompts[index] for index in mine])
