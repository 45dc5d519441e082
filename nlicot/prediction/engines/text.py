"""Follow a script with an engine that returns texts and probabilities of tokens, not logits.

A text ends where its closing literal begins, then the literal is fed as in training. So an answer parses by
construction here too; but nothing keeps the model from ending a text with another token than in training.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from nlicot import completion
from nlicot.errors import ModelError
from nlicot.prediction.decoding import Engine
from nlicot.prediction.grammar import Answer, Choice, FreeText, Scaffold, Script, string_start
from nlicot.settings import PredictionSettings

if TYPE_CHECKING:
    from nlicot.prediction.predictor import Member


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest:
    """Ids to continue, with at most `max_tokens`, up to the text `stop`; `seed` is that of sampling."""

    ids: list[int]
    max_tokens: int
    stop: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedText:
    """A text without `stop`; `is_closed` if `stop` ended it."""

    text: str
    is_closed: bool


@dataclass(slots=True, kw_only=True)
class _Draft:
    """A row's ids so far, and what its answer has."""

    index: int
    ids: list[int]
    generator: random.Random
    answer: Answer = field(default_factory=lambda: Answer(texts=[], closed=[], choices=[], probabilities=[]))


class TextEngine(Engine):
    """An engine that is asked for the texts, then for the choices, of a batch of rows."""

    def __init__(self, member: Member, settings: PredictionSettings) -> None:
        prompt_format = member.resolved.prompt_format
        super().__init__(prompt_format, Scaffold(prompt_format), member.settings.decoding)

    @abstractmethod
    def generate(self, requests: Sequence[TextRequest]) -> list[GeneratedText]:
        """Continue each request's ids, with the settings' temperature and `top_p`."""

    @abstractmethod
    def log_probabilities(
        self, rows: Sequence[Sequence[int]], ids: Sequence[int]
    ) -> list[Mapping[int, float]]:
        """Return log-probabilities of the token after each row: of `ids`, or of likelier tokens only."""

    def label_probabilities(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[int, float]]:
        """Yield p(entailment) for each row of ids that is about to be followed by a label, with its index."""
        options = [[label] for label in self.scaffold.label_ids]
        for index, answer in self.run(rows, (Choice(options=options),), 1):
            yield index, answer.probabilities[0][1]

    def run(
        self, rows: Sequence[Sequence[int]], script: Script, num_samples: int
    ) -> Iterator[tuple[int, Answer]]:
        """Continue the rows batch by batch, all rows of a batch step by step."""
        drafts = [
            _Draft(index=index, ids=list(row), generator=generator)
            for index, row in enumerate(rows)
            for generator in self.generators(row, num_samples)
        ]
        for start in range(0, len(drafts), self.batch_size):
            batch = drafts[start : start + self.batch_size]
            for step in script:
                if isinstance(step, FreeText):
                    self._write(batch, step)
                else:
                    self._choose(batch, step)
            yield from ((draft.index, draft.answer) for draft in batch)

    def _write(self, batch: Sequence[_Draft], step: FreeText) -> None:
        stop = self.prompt_format.decode_inner(step.closing_ids).rstrip()
        texts = self.generate(
            [
                TextRequest(
                    ids=draft.ids,
                    max_tokens=step.max_tokens,
                    stop=stop,
                    seed=draft.generator.getrandbits(31),
                )
                for draft in batch
            ]
        )
        for draft, found in zip(batch, texts, strict=True):
            inside = string_start(found.text)
            has_quote = found.text[len(inside) :].startswith('"')  # closed by another token than in training
            text = completion.unescape(inside)
            draft.answer.texts.append(text)
            draft.answer.closed.append(has_quote or (found.is_closed and inside == found.text))
            if text:
                draft.ids += self.prompt_format.encode_segment(completion.escape(text), first=False)
            draft.ids += step.closing_ids

    def _choose(self, batch: Sequence[_Draft], step: Choice) -> None:
        found = self.log_probabilities([draft.ids for draft in batch], step.first_ids)
        for draft, each in zip(batch, found, strict=True):
            probabilities = probabilities_among(each, step.first_ids)
            best = step.choose(probabilities)
            draft.answer.probabilities.append(probabilities)
            draft.answer.choices.append(best)
            draft.ids += [*step.options[best], *step.following_ids]


def probabilities_among(listed: Mapping[int, float], ids: Sequence[int]) -> list[float]:
    """Return the probabilities of tokens among each other, given log-probabilities of the likeliest tokens.

    A token that is not listed is at most as likely as the least likely that is: that is taken for it.

    >>> probabilities_among({5: -1.0, 7: -1.0, 9: -30.0}, [5, 7])
    [0.5, 0.5]

    Raises:
        ModelError: none of the tokens is listed.
    """
    if not listed.keys() & set(ids):
        raise ModelError(
            "the model has neither label among its likeliest next tokens: it is another one than the run's"
        )
    least = min(listed.values())
    values = torch.tensor([listed.get(token, least) for token in ids], dtype=torch.float64)
    found: list[float] = values.softmax(0).tolist()
    return found
