"""Follow a script with an engine that returns texts and probabilities of tokens, not logits.

A text ends where its closing literal begins, then the literal is fed as in training. So an answer parses by
construction here too; but nothing keeps the model from ending a text with another token than in training.
"""

from __future__ import annotations

import itertools
import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from nlicot import completion
from nlicot.errors import ModelError
from nlicot.model.prompt_format import PromptFormat
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
class PartialAnswer:
    """A row's ids so far, and what its answer has."""

    index: int
    ids: list[int]
    generator: random.Random
    prompt_format: PromptFormat
    answer: Answer = field(default_factory=lambda: Answer(texts=[], closed=[], choices=[], probabilities=[]))

    def text_request(self, step: FreeText) -> TextRequest:
        """Ask for the text of a step."""
        return TextRequest(
            ids=list(self.ids),
            max_tokens=step.max_tokens,
            stop=self.prompt_format.decode_inner(step.closing_ids).rstrip(),
            seed=self.generator.getrandbits(31),
        )

    def add_text(self, step: FreeText, found: GeneratedText) -> None:
        """Add a text, up to where it would end a JSON string, and what is fed after it."""
        inside = string_start(found.text)
        has_quote = found.text[len(inside) :].startswith('"')  # closed by another token than in training
        text = completion.unescape(inside)
        self.answer.texts.append(text)
        self.answer.closed.append(has_quote or (found.is_closed and inside == found.text))
        if text:
            self.ids += self.prompt_format.encode_segment(completion.escape(text), first=False)
        self.ids += step.closing_ids

    def add_choice(self, step: Choice, listed: Mapping[int, float]) -> None:
        """Add a choice, and what is fed after it."""
        probabilities = probabilities_among(listed, step.first_ids)
        best = step.choose(probabilities)
        self.answer.probabilities.append(probabilities)
        self.answer.choices.append(best)
        self.ids += [*step.options[best], *step.following_ids]


class TextEngine(Engine):
    """An engine that writes texts and rates tokens, but shows no logits."""

    def __init__(self, member: Member, settings: PredictionSettings) -> None:
        prompt_format = member.resolved.prompt_format
        super().__init__(prompt_format, Scaffold(prompt_format), member.settings.decoding)

    def label_probabilities(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[int, float]]:
        """Yield p(entailment) for each row of ids that is about to be followed by a label, with its index."""
        options = [[label] for label in self.scaffold.label_ids]
        for index, answer in self.run(rows, (Choice(options=options),), 1):
            yield index, answer.probabilities[0][1]

    def partial_answers(self, rows: Sequence[Sequence[int]], num_samples: int) -> Iterator[PartialAnswer]:
        """Yield an empty answer for each sample of each row."""
        for index, row in enumerate(rows):
            for generator in self.generators(row, num_samples):
                yield PartialAnswer(
                    index=index, ids=list(row), generator=generator, prompt_format=self.prompt_format
                )


class BatchEngine(TextEngine):
    """A text engine that answers a batch of requests together."""

    @abstractmethod
    def generate(self, requests: Sequence[TextRequest]) -> list[GeneratedText]:
        """Continue each request's ids, with the settings' temperature and `top_p`."""

    @abstractmethod
    def log_probabilities(
        self, rows: Sequence[Sequence[int]], ids: Sequence[int]
    ) -> list[Mapping[int, float]]:
        """Return log-probabilities of the token after each row: of `ids`, or of likelier tokens only."""

    def run(
        self, rows: Sequence[Sequence[int]], script: Script, num_samples: int
    ) -> Iterator[tuple[int, Answer]]:
        """Continue the rows batch by batch, all rows of a batch step by step."""
        left = self.partial_answers(rows, num_samples)
        while batch := list(itertools.islice(left, self.batch_size)):
            for step in script:
                if isinstance(step, FreeText):
                    texts = self.generate([partial.text_request(step) for partial in batch])
                    for partial, text in zip(batch, texts, strict=True):
                        partial.add_text(step, text)
                else:
                    found = self.log_probabilities([partial.ids for partial in batch], step.first_ids)
                    for partial, listed in zip(batch, found, strict=True):
                        partial.add_choice(step, listed)
            yield from ((partial.index, partial.answer) for partial in batch)


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
