"""Prompt formats: how prompts and completions become token ids, one class per kind of tokenizer.

`mistral` renders `<s>[INST] {prompt}[/INST]` with a tokenizer of `mistral_common`, so the ids are Mistral's
own; `chat` uses the chat template of the model's tokenizer. Both never read a control token from user text,
and encode a completion segment by segment. A tokenizer that changes a text of `PROBE` is refused when it is
loaded. A new format is a subclass of `PromptFormat` and one line in `PROMPT_FORMATS`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from nlicot import completion
from nlicot.completion import Form
from nlicot.errors import ModelError
from nlicot.model.base_model import BUNDLED, CONFIG_FILE, OTHER_BASE, bundled_file, is_unpacked, resolve

AUTO = "auto"
MISTRAL_V3_VOCABULARY, INST_ID = 32768, 3
MISTRAL_V3_MODELS = ("mistralai/Mistral-7B-v0.3", "mistralai/Mistral-7B-Instruct-v0.3")
"""Hub models whose tokenizer is part of the package `mistral_common`, so nothing is downloaded for it."""
TEKKEN = "tekken.json"
TOKENIZER_FILES = ("tokenizer*", TEKKEN, "special_tokens_map.json", "chat_template.jinja")
PROBE = (
    "Step 1: It's 0, not 1 ; \"so\" it does n't.",
    " a  b   c\t\\d\n\n e\r\n",
    "\U0001f600 \u6f22\u5b57 \u041f\u0440 e\u0301 \u00e9 \ufb01 \u00bd \uff21 a\u00a0b\u200b \x7f",
)
"""Texts with everything that tokenizers strip, merge, normalise or lack; each must decode to itself."""


class PromptFormat(ABC):
    """Encodes prompts and completion segments so that decoding returns the text byte for byte."""

    name: ClassVar[str]
    bos_id: int | None
    eos_id: int
    pad_id: int
    vocab_size: int
    special_ids: frozenset[int]  # control tokens, which a thought must not contain
    dummy_prefix: str = ""  # a completion decodes to this and its text
    fingerprint_text: str = 'Premise: "a  b"\n[INST] \U0001f600 e\u0301 </s> {"thought_process": "x\\n"}'

    @classmethod
    def fits(cls, folder: Path, config: Mapping[str, Any]) -> bool:
        """Decide by a model's folder and its `config.json` if `auto` selects this format."""
        return True

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        """Load the tokenizer from a model's folder; raises `ModelError` if it does not support the format."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each prompt, up to the start of the model's answer."""

    @abstractmethod
    def encode_segments(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of completion segments, none of them the first of its completion."""

    def encode_prompt(self, prompt: str) -> list[int]:
        """Return the ids of one prompt."""
        return self.encode_prompts([prompt])[0]

    def encode_segment(self, text: str, *, first: bool) -> list[int]:
        """Return the ids of one completion segment; only the `first` takes a tokenizer's dummy prefix."""
        return self.encode_segments([text])[0]

    def count_thought_tokens(self, thought: str) -> int:
        """Return the number of tokens of a thought inside a completion."""
        return len(self.encode_segment(completion.escape(thought), first=False))

    @abstractmethod
    def decode_inner(self, ids: Sequence[int]) -> str:
        """Return the text of ids from inside a completion, without removing a dummy prefix."""

    @abstractmethod
    def control_text(self, token: int) -> str:
        """Return the vocabulary's name of a control token, which `decode_inner` may omit."""

    @property
    @abstractmethod
    def chat_template(self) -> str:
        """The Jinja template by which other programs render a prompt as `encode_prompt` does."""

    @abstractmethod
    def save_tokenizer(self, folder: Path, *, base_folder: Path) -> None:
        """Write the files that `transformers.AutoTokenizer` reads, `chat_template` among them."""

    @cached_property
    def token_texts(self) -> list[str]:
        """Each id's text, to find tokens with a quote, a backslash or a line break."""
        return [self.decode_inner([token]) for token in range(self.vocab_size)]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the format's ids, stored in checkpoints and caches."""
        text = self.fingerprint_text
        ids = [self.encode_prompt(text), self.encode_segment(text, first=True), self.eos_id, self.vocab_size]
        return hashlib.sha256(json.dumps([self.name, ids]).encode()).hexdigest()

    def fault(self) -> str | None:
        """Describe a completion of `PROBE` that the ids do not spell byte for byte; None if there is none."""
        for form, thought in itertools.product(Form, ("", *PROBE, self.control_text(self.eos_id))):
            ids: list[int] = []
            for index, segment in enumerate(completion.segments(thought, 1, form)):
                ids += self.encode_segment(segment.text, first=not index)
            if self.special_ids.intersection(ids):
                return "reads control tokens from a text"
            text = completion.render(thought, 1, form)
            if fault := _changed(text, self.decode_inner(ids).removeprefix(self.dummy_prefix)):
                return fault
        if any(len(self.encode_segment(label, first=False)) != 1 for label in "01"):
            return "needs several tokens for a label"
        return None


def _changed(text: str, decoded: str) -> str | None:
    if decoded == text:
        return None
    equal = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(text, decoded, strict=False))
    start = max(0, sum(1 for _ in equal) - 8)
    return f"makes {decoded[start : start + 24]!r} of {text[start : start + 24]!r}"


class MistralFormat(PromptFormat):
    """Mistral's instruction format with Mistral's own tokenizer: a SentencePiece model or `tekken.json`.

    Without a file it is v3's SentencePiece model, which is part of `mistral_common`.
    """

    name = "mistral"

    def __init__(self, path: Path | None = None) -> None:
        from mistral_common.protocol.instruct.messages import UserMessage
        from mistral_common.protocol.instruct.request import ChatCompletionRequest
        from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

        tokenizer = MistralTokenizer.from_file(str(path)) if path else MistralTokenizer.v3()
        self._tokenizer = tokenizer.instruct_tokenizer.tokenizer
        self.bos_id, self.eos_id = self._tokenizer.bos_id, self._tokenizer.eos_id
        self.pad_id = self.eos_id  # Mistral has no padding token; masks follow lengths, so any id works
        self.vocab_size = self._tokenizer.n_words
        self.special_ids = frozenset(self._tokenizer.special_ids)
        self._model: Any = None  # with the dummy prefix of SentencePiece; Tekken has none
        self._without_prefix: Any = self._tokenizer
        if path is None or path.name != TEKKEN:
            self._use_sentencepiece(self._tokenizer._model)
        request: Any = ChatCompletionRequest(messages=[UserMessage(content="x")])
        ids = tokenizer.encode_chat_completion(request).tokens
        num_inside = len(self._tokenizer.encode("x", bos=False, eos=False))
        self._before_ids, self._after_ids = ids[: -num_inside - 1], ids[-1:]

    def _use_sentencepiece(self, model: Any) -> None:
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

        self._model, self.dummy_prefix = model, " "
        ids = range(self.vocab_size)
        self.special_ids = frozenset(each for each in ids if model.IsControl(each) or model.IsUnknown(each))
        plain = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
        plain.ParseFromString(model.serialized_model_proto())
        plain.normalizer_spec.add_dummy_prefix = False
        self._without_prefix = SentencePieceProcessor(model_proto=plain.SerializeToString())

    @classmethod
    def fits(cls, folder: Path, config: Mapping[str, Any]) -> bool:
        """Select folders with Mistral's tokenizer, unless their chat template has other markers."""
        if _mistral_file(folder) is None and not _has_v3_ids(folder, config):
            return False
        rendered = _rendered_by_template(folder)
        return rendered is None or "".join(rendered.split()) == "<s>[INST]x[/INST]"

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any]) -> MistralFormat:
        """Load the folder's `tekken.json` or `tokenizer.model.v*`, else v3's SentencePiece model."""
        path, num = _mistral_file(folder), _vocabulary(config)
        loaded = cls(path)
        if loaded.vocab_size > num or (path is None and loaded.vocab_size != num):
            raise ModelError(
                f"{folder}: found a vocabulary of {num} tokens, expected "
                f"{loaded.vocab_size} for the prompt format 'mistral' (use --model.prompt_format chat)"
            )
        return loaded

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """`<s>[INST] {prompt}[/INST]`; the space is the dummy prefix of the prompt's own encoding."""
        if self._model is None:
            encoded = self.encode_segments(prompts)
        else:
            encoded = self._model.encode(list(prompts), num_threads=-1)
        return [[*self._before_ids, *ids, *self._after_ids] for ids in encoded]

    def encode_segment(self, text: str, *, first: bool) -> list[int]:
        """SentencePiece puts a space before each text it encodes; only the first segment keeps it."""
        if first and self._model is not None:
            return list(self._model.encode(text))
        return self.encode_segments([text])[0]

    def encode_segments(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode the texts; SentencePiece does so on all cores."""
        if self._model is None:
            return [self._tokenizer.encode(text, bos=False, eos=False) for text in texts]
        return list(self._without_prefix.encode(list(texts), num_threads=-1))

    def decode_inner(self, ids: Sequence[int]) -> str:
        """Return the text without control tokens, a leading space included."""
        return str(self._without_prefix.decode([token for token in ids if token not in self.special_ids]))

    def control_text(self, token: int) -> str:
        """Return the piece's name."""
        return str(self._tokenizer.id_to_piece(token))

    @property
    def sentencepiece(self) -> Any:
        """The `SentencePieceProcessor`; None for Tekken."""
        return self._model

    @property
    def chat_template(self) -> str:
        """`<s>[INST] {prompt}[/INST]`; only SentencePiece has the space, the dummy prefix of the prompt."""
        before, after = ("".join(map(self.control_text, ids)) for ids in (self._before_ids, self._after_ids))
        return f"{{{{ '{before}{self.dummy_prefix}' + messages[0]['content'] + '{after}' }}}}"

    def save_tokenizer(self, folder: Path, *, base_folder: Path) -> None:
        """Copy the base's files, and add the template if they have none, as those of base models."""
        names = [path for pattern in TOKENIZER_FILES for path in base_folder.glob(pattern) if path.is_file()]
        if not any(path.name in ("tokenizer.json", "tokenizer.model") for path in names):
            raise ModelError(
                f"{base_folder}: found no tokenizer.json and no tokenizer.model, which transformers needs; "
                "copy them there from the model's page"
            )
        for path in names:
            shutil.copyfile(path, folder / path.name)
        if _rendered_by_template(folder) is None:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")


def _mistral_file(folder: Path) -> Path | None:
    """Return the tokenizer of `mistral_common` in a model's folder, the newest if there are several.

    A plain `tokenizer.model` may be anyone's, and v1 has no control tokens around a prompt.
    """
    if (folder / TEKKEN).is_file():
        return folder / TEKKEN
    versions = {
        int(found[1]): path
        for path in folder.glob("tokenizer.model.v*")
        if (found := re.fullmatch(r"tokenizer\.model\.v(\d+)(m\d+)?", path.name)) and int(found[1]) > 1
    }
    return versions[max(versions)] if versions else None


def _has_v3_ids(folder: Path, config: Mapping[str, Any]) -> bool:
    """Recognize the vocabulary of Mistral-7B-v0.3, not others of the same size."""
    kind, num = config.get("model_type"), config.get("vocab_size")
    if kind not in ("mistral", "mixtral") or num != MISTRAL_V3_VOCABULARY:
        return False
    if not (folder / "tokenizer.json").is_file():
        return True
    content = _read_json(folder / "tokenizer.json")
    vocabulary = content.get("model", {}).get("vocab")
    ids = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    ids |= {each["content"]: each["id"] for each in content.get("added_tokens", ())}
    return bool(ids.get("[INST]") == INST_ID)


def _rendered_by_template(folder: Path) -> str | None:
    """Render one question with the folder's chat template, without loading its tokenizer."""
    config = _read_json(folder / "tokenizer_config.json")
    jinja = folder / "chat_template.jinja"
    template = jinja.read_text(encoding="utf-8") if jinja.is_file() else config.get("chat_template")
    if isinstance(template, list):
        template = {each["name"]: each["template"] for each in template}.get("default")
    if not template:
        return None
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    names = {name: config.get(name) for name in ("bos_token", "eos_token")}
    tokens = {name: each["content"] if isinstance(each, dict) else each for name, each in names.items()}
    question = [{"role": "user", "content": "x"}]
    try:
        (rendered,), _ = render_jinja_template(
            [question], chat_template=template, add_generation_prompt=True, **tokens
        )
    except TemplateError:  # the chat format reports it
        return ""
    return str(rendered)


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


def _vocabulary(config: Mapping[str, Any]) -> int:
    """Return the number of a model's tokens, which a model of images and text has one level deeper."""
    return int(config.get("vocab_size") or config["text_config"]["vocab_size"])


class ChatFormat(PromptFormat):
    """The chat template of a Hugging Face tokenizer: one user turn and the start of the answer.

    Ids are those of the tokenizer itself if they spell every text of `PROBE`; else they are those of a copy
    without the steps that put a blank before each segment, or change characters.
    """

    name = "chat"

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise ModelError(
                "the model's tokenizer has no chat template; use a model that has one, "
                "or one with Mistral's v3 tokenizer (--model.prompt_format mistral)"
            )
        if tokenizer.eos_token_id is None:
            raise ModelError(f"the model's tokenizer has no eos_token, which ends an answer; {OTHER_BASE}")
        self.tokenizer = tokenizer
        self.bos_id, self.eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.pad_id = self.eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.vocab_size = len(tokenizer)
        added = {token for token, text in tokenizer.added_tokens_decoder.items() if text.special}
        self.special_ids = frozenset({*tokenizer.all_special_ids, *added})
        self._before, self._after, self._strips = self._template()
        self._lead = ""  # of each prompt: the end of the text before it
        self._exact: Any = None
        self._before_ids, self._after_ids = self._encode([self._before, self._after], control=True)
        if self.fault() and (exact := _exact_copy(tokenizer)):
            self._use(exact)

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any]) -> ChatFormat:
        """Load the folder's tokenizer."""
        from transformers import AutoTokenizer

        # With this option, transformers takes `tokenizer.json` and its template rather than `tekken.json`.
        options = {"fix_mistral_regex": True} if (folder / TEKKEN).is_file() else {}
        return cls(AutoTokenizer.from_pretrained(folder, **options))

    def _template(self) -> tuple[str, str, bool]:
        """Return the rendered text before and after a prompt, and whether the template strips prompts."""
        from jinja2 import TemplateError

        template = self.tokenizer.get_chat_template()
        if "strftime_now" in template:  # a prompt must have the same ids on every day
            template = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}" + template

        def rendered(prompt: str) -> str:
            options = {"tokenize": False, "add_generation_prompt": True, "chat_template": template}
            return str(self.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], **options))

        marker = "\x02prompt\x03"
        try:
            before, found, after = rendered(marker).partition(marker)
            strips = rendered(f" {marker} ") != f"{before} {marker} {after}"
        except TemplateError as error:
            raise ModelError(
                f"the model's chat template refuses a question: {error}; {OTHER_BASE}"
            ) from error
        if not found:
            raise ModelError(f"the model's chat template leaves the question out; {OTHER_BASE}")
        return before, after, strips

    def _use(self, exact: Any) -> None:
        """Encode everything with an exact copy of the tokenizer."""
        self._exact = exact
        before = self._before.rstrip(" ")
        self._lead = self._before[len(before) :]  # a piece may start with a space, but not end with one
        self._before_ids, self._after_ids = self._encode([before, self._after], control=True)
        # Earlier versions normalised texts: the same ids, unless a text was not in its normal form.
        if normalizer := self.tokenizer.backend_tokenizer.normalizer:
            text = normalizer.normalize_str(self.fingerprint_text)
            self.fingerprint_text = self.fingerprint_text if "\u2581" in text else text

    def fault(self) -> str | None:
        """Check prompts like completions: the rendered template must come back byte for byte."""
        num_markers = [*self._before_ids, *self._after_ids].count(self.eos_id)
        for prompt in (*PROBE, self.control_text(self.eos_id)):
            (ids,) = self.encode_prompts([prompt])
            if ids.count(self.eos_id) != num_markers:
                return "reads control tokens from a text"
            text = f"{self._before}{prompt.strip() if self._strips else prompt}{self._after}"
            if fault := _changed(text, self.decode_inner(ids)):
                return fault
        return super().fault()

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Encode the template's markers as control tokens, the prompts as plain text."""
        texts = [self._lead + (prompt.strip() if self._strips else prompt) for prompt in prompts]
        return [[*self._before_ids, *ids, *self._after_ids] for ids in self.encode_segments(texts)]

    def encode_segments(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode the texts on all cores."""
        return self._encode(texts, control=False)

    def _encode(self, texts: Sequence[str], *, control: bool) -> list[list[int]]:
        """Encode texts; `control` reads the names of control tokens as such."""
        if self._exact is None:
            options = {"split_special_tokens": not control, "return_attention_mask": False}
            return list(self.tokenizer(list(texts), add_special_tokens=False, **options)["input_ids"])
        self._exact.encode_special_tokens = not control
        return [each.ids for each in self._exact.encode_batch(list(texts), add_special_tokens=False)]

    def decode_inner(self, ids: Sequence[int]) -> str:
        """Return the text of all ids, control tokens included."""
        if self._exact is None:
            options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
            return str(self.tokenizer.decode(list(ids), **options))
        return str(self._exact.decode(list(ids), skip_special_tokens=False))

    def control_text(self, token: int) -> str:
        """Return the token's name."""
        return str(self.tokenizer.convert_ids_to_tokens(token))

    @property
    def chat_template(self) -> str:
        """The tokenizer's own."""
        return str(self.tokenizer.get_chat_template())

    def save_tokenizer(self, folder: Path, *, base_folder: Path) -> None:
        """Save the tokenizer."""
        try:
            self.tokenizer.save_pretrained(folder)
        except OSError:
            raise
        except Exception as error:  # the library `tokenizers` raises a bare one for a full disk
            if (code := re.search(r"os error (\d+)", str(error))) is None:
                raise
            raise OSError(int(code[1]), str(error)) from error


CHANGING_STEPS = (
    *("Prepend", "Strip", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled"),
    *("Lowercase", "StripAccents", "BertNormalizer"),
)
"""Steps of the library `tokenizers` that add, remove or change characters."""


def _exact_copy(tokenizer: Any) -> Any:
    """Return a fast tokenizer without the steps that change characters; it shares the vocabulary's memory."""
    from tokenizers import AddedToken, Tokenizer

    own = getattr(tokenizer, "backend_tokenizer", None)
    if own is None:
        return None
    content: dict[str, Any] = dict.fromkeys(("truncation", "padding", "post_processor"))
    content |= {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        part = getattr(own, name)
        content[name] = part and _without_changes(json.loads(part.__getstate__()))
    copy = Tokenizer.from_str(json.dumps(content))
    copy.model = own.model
    added = sorted(own.get_added_tokens_decoder().items())
    copy.add_tokens([AddedToken(each.content, normalized=False, special=each.special) for _, each in added])
    same_ids = all(copy.token_to_id(each.content) == token for token, each in added)
    return copy if same_ids else None


def _without_changes(step: dict[str, Any]) -> dict[str, Any] | None:
    spaces = {" ", "\u2581"}  # how SentencePiece writes a space
    if step["type"] in CHANGING_STEPS:
        return None
    if step["type"] == "Replace" and {step["pattern"].get("String"), step["content"]} != spaces:
        return None
    for name in ("normalizers", "pretokenizers", "decoders"):
        if name in step:
            step[name] = [kept for each in step[name] if (kept := _without_changes(each))]
    for name, value in (("prepend_scheme", "never"), ("add_prefix_space", False)):
        if name in step:
            step[name] = value
    return step


PROMPT_FORMATS: tuple[type[PromptFormat], ...] = (MistralFormat, ChatFormat)
"""All formats; `auto` selects the first one that fits."""


def load_prompt_format(folder: Path, name: str = AUTO) -> PromptFormat:
    """Load the prompt format of a model's folder: the one of that name, or for `auto` the first that fits."""
    with _loading(folder):
        config = _read_json(folder / CONFIG_FILE)
        for each in PROMPT_FORMATS:
            if each.name == name or (name == AUTO and each.fits(folder, config)):
                loaded = each.load(folder, config)
                if fault := _id_beyond(loaded, config) or loaded.fault():
                    raise ModelError(f"{folder}: the tokenizer {fault}; {OTHER_BASE}")
                return loaded
    *others, last = [AUTO, *(each.name for each in PROMPT_FORMATS)]
    raise ModelError(f"--model.prompt_format: found {name!r}, expected {', '.join(others)} or {last}")


def _id_beyond(loaded: PromptFormat, config: Mapping[str, Any]) -> str | None:
    highest = max(*loaded.encode_prompt(""), loaded.eos_id)
    num = int(config.get("vocab_size") or highest + 1)
    return f"uses the id {highest}, but the model has {num} tokens" if highest >= num else None


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # libraries raise anything here, Rust's a bare Exception
        reason = next(iter(str(error).strip().splitlines()), "")
        raise ModelError(
            f"{folder}: the tokenizer cannot be loaded ({type(error).__name__}: {reason}); {OTHER_BASE}"
        ) from error


def prompt_format_of_base(base: str, name: str = AUTO) -> PromptFormat:
    """Load the prompt format of a base without its weights, for commands that only look at tokens."""
    if base in MISTRAL_V3_MODELS and name in (AUTO, MistralFormat.name) and not Path(base).is_dir():
        return MistralFormat()
    if base == BUNDLED and name in (AUTO, ChatFormat.name) and not is_unpacked():
        from transformers import AutoTokenizer

        gguf_path = bundled_file()
        return ChatFormat(AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name))
    return load_prompt_format(resolve(base, weights=False).folder, name)
