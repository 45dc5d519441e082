"""`prepare` writes what `fit` trains on, in formats that datasets, TRL and `fit` itself read."""

from __future__ import annotations

import itertools
import json
import math
import random
import shlex
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nlicot import cli, completion
from nlicot.builders import find_builder
from nlicot.builders.reflected import Reflected
from nlicot.config_files import SAMPLE
from nlicot.data import root as root_module
from nlicot.data.atomic_write import write_jsonl
from nlicot.data.pairs import read_examples
from nlicot.data.root import DataRoot
from nlicot.data.thoughts import TextFiles, read_joined, read_thoughts
from nlicot.errors import DataError
from nlicot.prepare.formats import FORMATS, MARKERS, from_row, read_prepared, to_row
from nlicot.prompts import StudentPrompts
from nlicot.records import Score, Thought, TrainingExample, to_json_dict
from nlicot.run.data import RunData
from nlicot.settings import DataSettings, RunSettings
from tests.interop import needs
from tests.small_model import write_small_model

NASTY = 'he wrote "[/INST]" and <|im_end|>\n<|im_start|>assistant\n{premise} </s> é 😀 \\ '


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The sample with a pair whose texts hold every marker, and with scores."""
    folder = tmp_path / "root"
    shutil.copytree(SAMPLE, folder)
    data = DataRoot(folder)
    pairs = data.pairs("train").read_text().splitlines()
    quoted = NASTY.replace('"', '""')
    columns = {"id": "nasty", "premise": f'"{quoted}"', "hypothesis": f'"{quoted}!"', "label": "1"}
    row = ",".join(columns.get(name, "") for name in pairs[0].split(","))
    data.pairs("train").write_text("\n".join([*pairs, row]) + "\n")
    nasty = Thought(
        id="nasty", premise=NASTY, hypothesis=f"{NASTY}!", thought_process=f" {NASTY}", predicted_label=1
    )
    with data.thoughts("train").open("a") as file:
        file.write(json.dumps(to_json_dict(nasty)) + "\n")
    write_jsonl(data.scores("train"), _scores(data))
    return folder


def _scores(data: DataRoot) -> list[dict[str, Any]]:
    """Low scores for the first thoughts; the first two are regenerated, one with a better score."""
    first, second, third = read_thoughts(data.thoughts("train"))[:3]
    records: list[Any] = []
    for thought, later in ((first, 5), (second, 1)):
        records += [
            Score(id=thought.id, score=2),
            Thought(
                id=thought.id,
                round=1,
                premise=thought.premise,
                hypothesis=thought.hypothesis,
                thought_process=f"regenerated: {thought.id}",
                predicted_label=thought.predicted_label,
            ),
            Score(id=thought.id, round=1, score=later),
        ]
    return list(map(to_json_dict, [*records, Score(id=third.id, score=1)]))


def prepared(root: Path, *args: str, builder: str = "reflected", split: str = "train") -> Path:
    """The file that `prepare` wrote for one split."""
    assert cli.main(["prepare", "--root", str(root), "--split", split, "--builder", builder, *args]) == 0
    return root / "finetune" / f"{builder.rpartition('.')[2]}-{split}.jsonl"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def built_by_fit(root: Path, split: str = "train", **settings: Any) -> list[TrainingExample]:
    data = RunData(RunSettings(root=root, data=DataSettings(**settings)))
    data.read_for_fit()
    return data.built[split]


# ------------------------------------------------------------ what fit trains on


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("markers", MARKERS)
@pytest.mark.parametrize("builder", ["reflected", "label_only"])
def test_a_prepared_file_contains_exactly_the_training_examples_of_fit(
    root: Path, form: str, markers: str, builder: str
) -> None:
    path = prepared(root, "--format", form, "--prompt-format", markers, builder=builder)
    built = built_by_fit(root, builder=builder)
    assert read_prepared(path) == built
    assert [(row["id"], row["label"], row["source"]) for row in rows(path)] == [
        (example.id, example.label, example.source) for example in built
    ]


@pytest.mark.parametrize("form", FORMATS)
def test_fit_on_a_prepared_file_trains_on_the_same_content(
    root: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = prepared(root, "--format", form)
    printed = capsys.readouterr().out
    data = RunData(RunSettings(root=root))
    from_file = RunData(RunSettings(root=root, data=DataSettings(prepared=str(path))))
    for each in (data, from_file):
        each.read_for_fit()
    content = data.reports["train"].rpartition("; content ")[2]
    assert from_file.reports["train"].endswith(f"content {content}")
    assert f"content {content}" in printed
    assert f"train: reflected: {data.reports['train']}\n" in printed
    assert from_file.built == data.built


@pytest.fixture
def small_root(tmp_path: Path) -> Path:
    """Three pairs, two of them with soft labels, and two thoughts about each."""
    data = DataRoot(tmp_path)
    for split in ("train", "dev"):
        data.pairs(split).parent.mkdir(exist_ok=True)
        texts = [f"A {split} {n}.,It is {n}." for n in range(3)]
        lines = [f"p{n},{text},{n % 2},{'0.25' if n else ''}" for n, text in enumerate(texts)]
        header = "id,premise,hypothesis,label,p_entailment"
        data.pairs(split).write_text("\n".join([header, *lines]) + "\n")
        thoughts = [
            {"id": f"p{n}", "sample": sample, "thought_process": f"So {n}{sample}.", "predicted_label": n % 2}
            for n in range(3)
            for sample in range(2)
        ]
        for thought in thoughts:
            thought["premise"], thought["hypothesis"] = texts[int(str(thought["id"])[1:])].split(",")
        write_jsonl(data.thoughts(split), thoughts)
    return tmp_path


@pytest.mark.parametrize("args", [(), ("--shuffle_seed", "3")])
@pytest.mark.parametrize("builder", ["label_only", "label_first", "multitask"])
def test_soft_labels_and_samples_that_take_turns_are_those_of_fit(
    builder: str, args: tuple[str, ...], small_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = prepared(small_root, "--builder_args", "samples=all", *args, builder=builder)
    command = capsys.readouterr().out.split("next: python -m nlicot ")[1].splitlines()[0]
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main([*shlex.split(command), "--print_config"])
    assert "samples: all" in capsys.readouterr().out
    expected = built_by_fit(small_root, builder=find_builder(builder, {"samples": "all"}))
    found = read_prepared(path)
    assert sorted(map(str, found)) == sorted(map(str, expected))
    assert (found == expected) == (not args)
    starts = [index for index, each in enumerate(found) if not each.variant]
    assert all(len({one.id for one in found[a:b]}) == 1 for a, b in itertools.pairwise([*starts, len(found)]))
    data = RunData(RunSettings(root=small_root, data=DataSettings(prepared=str(path))))
    data.read_for_fit()
    assert data.soft_labels is not None
    assert data.soft_labels.num_pairs == 2


def test_definitions_given_as_flags_become_part_of_a_sentence(root: Path) -> None:
    path = prepared(root, "--definitions.entailment", "it \n follows.", "--limit=1")
    assert "Answer 1 if it follows, 0 if it does not." in path.read_text()


def test_dev_is_prepared_as_fit_builds_it(root: Path) -> None:
    assert read_prepared(prepared(root, split="dev")) == built_by_fit(root, "dev")


@pytest.mark.parametrize(
    ("args", "builder"),
    [
        (["min_score=2"], Reflected(min_score=2)),
        (["balance=true", "seed=3"], Reflected(balance=True, seed=3)),
        (["max_thought_words=62", "prefer=shortest"], Reflected(max_thought_words=62, prefer="shortest")),
    ],
)
def test_a_builders_arguments_choose_what_fit_would(root: Path, args: list[str], builder: Reflected) -> None:
    path = prepared(root, "--builder-args", *args)
    built = built_by_fit(root, builder=builder)
    assert read_prepared(path) == built
    assert 0 < len(built) <= 1160


def test_scores_and_regenerated_texts_are_used(root: Path) -> None:
    first, second, third = read_thoughts(DataRoot(root).thoughts("train"))[:3]
    everything = {example.id: example for example in read_prepared(prepared(root, builder="unmodified"))}
    assert '"thought_process": "regenerated: ' in everything[first.id].completion
    assert second.thought_process in everything[second.id].completion
    args = ["--overwrite", "--builder-args", "min_score=2"]
    kept = {example.id for example in read_prepared(prepared(root, *args, builder="unmodified"))}
    assert everything.keys() - kept == {third.id}


def test_a_users_own_builder_is_found_by_its_class_path(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "builders_for_prepare.py").write_text(
        "from nlicot.builders.base import Builder, Target\n"
        "class Short(Builder):\n"
        "    def __init__(self, words: int = 2, **selection):\n"
        "        super().__init__(**selection)\n"
        "        self.words = words\n"
        "    def target(self, example, thought, reflection):\n"
        "        steps = ' '.join(thought.thought_process.split()[:self.words])\n"
        "        return Target(thought_process=steps, label=thought.predicted_label, source='short')\n"
        "class Last(Short):\n"
        "    def build(self, *args, **options):\n"
        "        return super().build(*args, **options)[-2:]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = prepared(root, "--builder-args", "words=4", "balance=true", builder="builders_for_prepare.Short")
    examples = read_prepared(path)
    assert len(json.loads(examples[0].completion)["thought_process"].split()) == 4
    assert len(set(Counter(example.label for example in examples).values())) == 1
    assert "--data.builder builders_for_prepare.Short" in capsys.readouterr().out
    # One that overrides `build` sees all pairs at once, as in `fit`.
    path = prepared(root, builder="builders_for_prepare.Last")
    assert read_prepared(path) == built_by_fit(root, builder="builders_for_prepare.Last")
    assert len(rows(path)) == 2


def test_definitions_are_used_in_prompts_as_in_fit(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "definitions.yaml"
    file.write_text("entailment: it may be true.\nno_entailment: it cannot be\nrelation_map: {neutral: 1}\n")
    path = prepared(root, "--definitions", str(file), "--no-entailment", "it's out")
    (command,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    assert "Answer 1 if it may be true, 0 if it's out. " in rows(path)[0]["text"]
    words = shlex.split(command.removeprefix("next: python -m nlicot fit "))
    assert words == [
        *("--config", "configs/reflected.yaml", "--root", str(root), "--data.prepared", str(path)),
        *("--definitions.entailment", "it may be true", "--definitions.no_entailment", "it's out"),
    ]


def test_labels_that_are_words_are_read_by_the_map(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = DataRoot(tmp_path).pairs("train")
    pairs.parent.mkdir()
    pairs.write_text("premise,hypothesis,label\nP,H,yes\nQ,H,no\n")
    path = prepared(tmp_path, "--label-map", "yes=1,no=0", builder="label_only")
    assert [row["label"] for row in rows(path)] == [1, 0]
    assert "--label_map yes=1,no=0" in capsys.readouterr().out


# -------------------------------------------------------------- order and number


def test_shuffling_keeps_the_examples_and_changes_their_order_by_its_seed(root: Path) -> None:
    plain = rows(prepared(root))
    first, again, other = (
        rows(prepared(root, "--overwrite", "--shuffle-seed", seed)) for seed in ("1", "1", "2")
    )
    assert first == again != other != plain
    order = list(range(len(plain)))
    random.Random(1).shuffle(order)
    assert first == [plain[position] for position in order]


def test_a_limit_takes_the_first_ones_after_shuffling(root: Path) -> None:
    plain = rows(prepared(root))
    assert rows(prepared(root, "--overwrite", "--limit", "5")) == plain[:5]
    shuffled = rows(prepared(root, "--overwrite", "--shuffle-seed", "3"))
    assert rows(prepared(root, "--overwrite", "--shuffle-seed", "3", "--limit", "7")) == shuffled[:7]
    assert rows(prepared(root, "--overwrite", "--limit", "9999")) == plain


def test_balance_comes_before_shuffling_and_limit(root: Path) -> None:
    args = ["--builder-args", "balance=true", "--shuffle-seed", "3", "--limit", "6"]
    path = prepared(root, *args)
    balanced = built_by_fit(root, builder=Reflected(balance=True))
    order = list(range(len(balanced)))
    random.Random(3).shuffle(order)
    assert read_prepared(path) == [balanced[position] for position in order[:6]]


# ------------------------------------------------------------------- preferences


def preferences(root: Path, *args: str, builder: str = "reflected", split: str = "train") -> Path:
    """The file of preferences that `prepare` wrote for one split."""
    prepared(root, "--format", "preference", *args, builder=builder, split=split)
    return root / "finetune" / f"{builder}-preference-{split}.jsonl"


def prediction(
    pair: dict[str, Any], label: int, thought: str | None = "Mine.", **fields: Any
) -> dict[str, Any]:
    texts = {name: pair[name] for name in ("id", "premise", "hypothesis")}
    return {**texts, "predicted_label": label, "thought_process": thought, "status": "closed", **fields}


def test_a_wrong_thought_and_its_reflection_are_a_preference(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = preferences(root)
    found = rows(path)
    wrong = {row["id"]: row for row in sample_thoughts() if row["predicted_label"] != row["true_label"]}
    improved = {row["id"]: row for row in jsonl(DataRoot(SAMPLE).reflections("train"))}
    assert [row["id"] for row in found] == list(wrong) == list(improved)
    assert len(found) == 292
    for row in found:
        of_pair = wrong[row["id"]]
        prompt = StudentPrompts().render(of_pair["premise"], of_pair["hypothesis"])
        right = improved[row["id"]]["improved_thought_process"]
        assert row == {
            "prompt": f"[INST] {prompt}[/INST]",
            "chosen": f" {completion.render(right, of_pair['true_label'])}",
            "rejected": f" {completion.render(of_pair['thought_process'], of_pair['predicted_label'])}",
            "id": row["id"],
            "label": of_pair["true_label"],
            "source": "reflection",
            "rejected_source": "thought",
        }
    labels = Counter(row["label"] for row in found)
    printed = capsys.readouterr().out
    assert (
        "train: reflected: 292 preferences from 1161 pairs (chosen reflection: 292; rejected thought: 292; "
        f"label 0: {labels[0]}, label 1: {labels[1]}; 869 pairs have no wrong thought, 0 no right one; "
    ) in printed
    assert printed.endswith(f"train: wrote {path}\n")  # `fit` does not read it


def test_a_right_and_a_wrong_sample_are_a_preference(root: Path) -> None:
    right = [row for row in sample_thoughts() if row["predicted_label"] == row["true_label"]]
    first, second = right[10:12]  # the first ones have scores
    others = [
        {**first, "sample": 1, "thought_process": "Wrong.", "predicted_label": 1 - first["true_label"]},
        {**second, "sample": 1, "thought_process": "Right too."},
    ]
    with DataRoot(root).thoughts("train").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in others)
    found = {row["id"]: row for row in rows(preferences(root, builder="correct_only"))}
    (row,) = found.values()
    assert row["id"] == first["id"]
    assert first["thought_process"] in json.loads(row["chosen"])["thought_process"]
    assert json.loads(row["rejected"]) == {
        "thought_process": "Wrong.",
        "predicted_label": 1 - first["true_label"],
    }


def test_the_students_own_wrong_thoughts_come_first(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    right, wrong = (
        [row for row in sample_thoughts() if (row["predicted_label"] == row["true_label"]) is is_right]
        for is_right in (True, False)
    )
    predicted = [
        prediction(right[0], 1 - right[0]["true_label"]),
        prediction(right[1], right[1]["true_label"]),
        prediction(right[2], 1 - right[2]["true_label"], status="truncated"),
        prediction(right[3], 1 - right[3]["true_label"], thought=None, status="label_only"),
        prediction(right[4], 1 - right[4]["true_label"], agreement=0.0),
        prediction(wrong[0], 1 - wrong[0]["true_label"]),
    ]
    others = [prediction(right[1], 1 - right[1]["true_label"], thought="Mine, from another seed.")]
    paths = [tmp_path / f"{number}.jsonl" for number in range(2)]
    for path, content in zip(paths, (predicted, others), strict=True):
        write_jsonl(path, content)
    found = {row["id"]: row for row in rows(preferences(root, *(f"--predictions={path}" for path in paths)))}
    assert len(found) == 292 + 2
    assert caplog.messages[-1] == (
        f"{paths[0]}: left out 3 predictions (a label that no vote had: 1, cut off at its budget: 1, "
        "without a thought: 1)"
    )
    by_student = {id_: row for id_, row in found.items() if row["rejected_source"] == "prediction"}
    assert by_student.keys() == {right[0]["id"], right[1]["id"], wrong[0]["id"]}
    assert json.loads(by_student[right[1]["id"]]["rejected"])["thought_process"] == "Mine, from another seed."
    assert (by_student[right[0]["id"]]["source"], by_student[wrong[0]["id"]]["source"]) == (
        "thought",
        "reflection",
    )


def test_the_students_right_thought_is_chosen_if_the_teacher_has_none(root: Path, tmp_path: Path) -> None:
    wrong = next(row for row in sample_thoughts() if row["predicted_label"] != row["true_label"])
    path = tmp_path / "predictions.jsonl"
    write_jsonl(path, [prediction(wrong, wrong["true_label"])])
    (row,) = rows(preferences(root, f"--predictions={path}", builder="correct_only"))
    assert (row["id"], json.loads(row["chosen"])["thought_process"]) == (wrong["id"], "Mine.")
    assert json.loads(row["rejected"])["thought_process"] == wrong["thought_process"]


def test_preferences_have_the_form_of_their_builder(root: Path) -> None:
    for row in rows(preferences(root, "--prompt-format=chatml", "--limit=3", builder="label_first")):
        assert row["prompt"].endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert [list(json.loads(row[name])) for name in ("chosen", "rejected")] == [
            ["predicted_label", "thought_process"]
        ] * 2
    false = ["--builder_args", "false_drafts=1"]
    for row in rows(preferences(root, "--limit=3", *false, builder="draft_first")):
        chosen, rejected = (json.loads(row[name]) for name in ("chosen", "rejected"))
        assert list(chosen) == list(rejected) == ["draft_label", "thought_process", "predicted_label"]
        assert chosen["draft_label"] == rejected["draft_label"] == 1 - chosen["predicted_label"]
    found = rows(preferences(root, builder="multitask"))
    assert len(found) == 292
    assert all("thought_process" in json.loads(row["chosen"]) for row in found)


def test_datasets_loads_preferences(root: Path, tmp_path: Path) -> None:
    import datasets

    path = preferences(root)
    loaded = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert list(loaded) == rows(path)


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sample_thoughts() -> list[dict[str, Any]]:
    """The sample's thoughts, which have the true labels, too."""
    return jsonl(DataRoot(SAMPLE).thoughts("train"))


# ------------------------------------------------------------------------- forms


EXAMPLE = TrainingExample(id="a", prompt="P", completion='{"predicted_label": 1}', label=1, source="label")


def test_rows_contain_the_markers_of_their_format() -> None:
    rest = {"id": "a", "label": 1, "source": "label"}
    answer = EXAMPLE.completion
    chatml = "<|im_start|>user\nP<|im_end|>\n<|im_start|>assistant\n"
    found = {
        (form, name): to_row(EXAMPLE, form, markers) for form in FORMATS for name, markers in MARKERS.items()
    }
    turns = [{"role": "user", "content": "P"}, {"role": "assistant", "content": answer}]
    assert found == {
        ("text", "mistral"): {"text": f"[INST] P[/INST] {answer}", **rest},
        ("text", "chatml"): {"text": f"{chatml}{answer}", **rest},
        ("prompt-completion", "mistral"): {"prompt": "[INST] P[/INST]", "completion": f" {answer}", **rest},
        ("prompt-completion", "chatml"): {"prompt": chatml, "completion": answer, **rest},
        ("messages", "mistral"): {"messages": turns, **rest},
        ("messages", "chatml"): {"messages": turns, **rest},
    }


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", MARKERS)
@pytest.mark.parametrize(
    "prompt", ["P", "P ", "[INST] P[/INST]", f"{NASTY}", " \n[INST] ", "<s>[INST] x</s>"]
)
def test_every_format_reads_back_unchanged(tmp_path: Path, form: str, name: str, prompt: str) -> None:
    from nlicot.data.rows import read_rows

    example = TrainingExample(
        id="a", prompt=prompt, completion=completion.render(NASTY, 0), label=0, source="thought"
    )
    path = tmp_path / "one.jsonl"
    write_jsonl(path, [to_row(example, form, MARKERS[name])])
    (row,) = read_rows(path)
    assert from_row(row, default_id="") == example


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "P",
        [{"role": "user", "content": "P"}],
        [{"role": "system", "content": "S"}, {"role": "user", "content": "P"}],
        [{"role": "user", "content": "P"}, {"role": "user", "content": "C"}],
    ],
)
def test_messages_of_another_format_are_refused_with_their_line(tmp_path: Path, messages: object) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n")
    with pytest.raises(DataError) as raised:
        read_prepared(path)
    assert str(raised.value) == (
        f"{path}:1: found messages of another format, expected one turn of the user and one of the assistant"
    )


@pytest.mark.parametrize("form", FORMATS)
def test_datasets_loads_each_format(root: Path, tmp_path: Path, form: str) -> None:
    import datasets

    path = prepared(root, "--format", form)
    loaded = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    columns = {"text": ["text"], "prompt-completion": ["prompt", "completion"], "messages": ["messages"]}
    assert loaded.column_names == [*columns[form], "id", "label", "source"]
    assert list(loaded) == rows(path)


@pytest.mark.parametrize("form", ["text", "prompt-completion"])
def test_mistrals_tokenizer_puts_one_bos_in_front_and_reads_the_prompt_as_fit_does(
    tmp_path: Path, form: str
) -> None:
    import mistral_common
    from transformers import LlamaTokenizer

    from nlicot.model.prompt_format import MistralFormat

    pieces = Path(mistral_common.__file__).parent / "data" / "mistral_instruct_tokenizer_240323.model.v3"
    shutil.copy(pieces, tmp_path / "tokenizer.model")
    special = {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": ["[INST]", "[/INST]"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**special, "add_bos_token": True}))
    tokenizer = LlamaTokenizer.from_pretrained(tmp_path)
    ours, data = MistralFormat(), DataRoot(SAMPLE)
    files = TextFiles(thoughts=data.thoughts("train"), reflections=data.reflections("train"))
    joined = read_joined(read_examples(data.pairs("train")), files)
    for example in Reflected().build(joined.examples[:20], joined.thoughts, joined.reflections):
        row = to_row(example, form, MARKERS["mistral"])
        text = row.get("text") or row["prompt"] + row["completion"]
        ids = tokenizer(text + tokenizer.eos_token)["input_ids"]  # as TRL does
        prompt = ours.encode_prompt(example.prompt)
        assert ids[: len(prompt)] == prompt
        assert (ids.count(prompt[0]), ids.index(ours.eos_id)) == (1, len(ids) - 1)  # BOS comes first
        assert ours.decode_inner(ids[len(prompt) : -1]) == f" {example.completion}"  # a dummy prefix
        if form == "prompt-completion":
            assert tokenizer(row["prompt"])["input_ids"] == prompt


@pytest.mark.interop
@pytest.mark.slow
@needs("trl")
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("markers", MARKERS)
def test_trl_reads_each_format_and_trains_on_eos(root: Path, tmp_path: Path, form: str, markers: str) -> None:
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    folder = write_small_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    path = prepared(root, "--format", form, "--prompt-format", markers)
    loaded = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        processing_class=tokenizer,
        train_dataset=loaded,
        args=SFTConfig(
            output_dir=str(tmp_path / "out"),
            max_steps=1,
            per_device_train_batch_size=2,
            max_length=None,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
    )
    assert len(trainer.train_dataset) == len(loaded)
    for encoded, row in zip(trainer.train_dataset, rows(path), strict=True):
        ids = encoded["input_ids"]
        labels = encoded.get("labels", ids)
        ends = [at for at, label in enumerate(labels) if label == tokenizer.eos_token_id]
        assert ends, "EOS is not supervised"
        # After the last EOS the tokenizer's own template may add a line break, and nothing else.
        assert tokenizer.decode(ids[ends[-1] + 1 :]).strip() == ""
        assert tokenizer.decode(ids[: ends[-1]]).endswith(row_answer(row))
        if form == "prompt-completion":
            supervised = [label for label in labels if label != -100]
            assert tokenizer.decode(supervised) == row["completion"] + tokenizer.eos_token
    assert trainer.train().training_loss > 0


@pytest.mark.interop
@pytest.mark.slow
@needs("trl")
@pytest.mark.parametrize("markers", MARKERS)
def test_trl_trains_two_steps_on_preferences(root: Path, tmp_path: Path, markers: str) -> None:
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    folder = write_small_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    path = preferences(root, "--prompt-format", markers)
    loaded = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        processing_class=tokenizer,
        train_dataset=loaded,
        args=DPOConfig(
            output_dir=str(tmp_path / "out"),
            max_steps=2,
            per_device_train_batch_size=2,
            max_length=None,
            learning_rate=1e-3,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
    )
    assert len(trainer.train_dataset) == len(loaded)
    for encoded, row in zip(trainer.train_dataset, rows(path), strict=True):
        assert tokenizer.decode(encoded["prompt_ids"]) == row["prompt"]
        for name in ("chosen", "rejected"):
            assert tokenizer.decode(encoded[f"{name}_ids"]) == row[name] + tokenizer.eos_token
    trainer.train()
    first, second = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert first == pytest.approx(math.log(2), abs=1e-4)  # the model is still its own reference
    assert second != first


def row_answer(row: dict[str, Any]) -> str:
    """The end of a row's completion."""
    whole = row.get("text") or row.get("completion") or row["messages"][1]["content"]
    return str(whole)[-20:]


# -------------------------------------------------------------- the command itself


def test_without_a_root_the_sample_is_prepared_in_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "try"
    monkeypatch.setattr(root_module, "TRY_ROOT", copy)
    assert cli.main(["prepare"]) == 0
    printed = capsys.readouterr().out
    for split, num in (("train", 1160), ("dev", 220)):
        path = copy / "finetune" / f"reflected-{split}.jsonl"
        assert len(rows(path)) == num
        assert f"{split}: reflected: {num} examples from {num} pairs (" in printed
        assert f"\n{split}: wrote {path}\n" in printed
    assert not (SAMPLE / "finetune").exists()
    assert f"next: python -m nlicot fit --config configs/reflected.yaml --root {copy} " in printed


def test_a_split_without_thoughts_is_skipped_unless_it_is_named(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    DataRoot(root).thoughts("dev").unlink()
    assert cli.main(["prepare", "--root", str(root)]) == 0
    assert [path.name for path in (root / "finetune").iterdir()] == ["reflected-train.jsonl"]
    assert cli.main(["prepare", "--root", str(root), "--split", "dev"]) == 2
    assert f"nlicot: {DataRoot(root).thoughts('dev')}: no such file" in capsys.readouterr().err
    assert cli.main(["prepare", "--root", str(root), "--builder", "label_only"]) == 0
    assert len(rows(root / "finetune" / "label_only-dev.jsonl")) == 220


def test_a_finished_file_is_replaced_only_on_request(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = prepared(root)
    before = path.read_text()
    args = ["prepare", "--root", str(root), "--limit", "1"]
    assert cli.main(args) == 2
    assert f"{path} exists already; add --overwrite to replace it" in capsys.readouterr().err
    assert path.read_text() == before
    assert not (root / "finetune" / "reflected-dev.jsonl").exists()
    assert cli.main([*args, "--overwrite"]) == 0
    assert len(rows(path)) == 1


def test_another_path_is_for_one_split(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "elsewhere" / "mine.jsonl"
    assert cli.main(["prepare", "--root", str(root), "--out", str(out)]) == 2
    assert "--out: found one path for the splits train, dev, expected" in capsys.readouterr().err
    assert cli.main(["prepare", "--root", str(root), "--out", str(out), "--split", "dev"]) == 0
    assert len(rows(out)) == 220


def test_nothing_to_write_is_an_error_and_leaves_no_file(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["prepare", "--root", str(root), "--split", "train", "--builder-args=max_thought_words=1"]
    assert cli.main(args) == 2
    assert (
        f"{DataRoot(root).pairs('train')}: found nothing that the builder reflected can use"
        in capsys.readouterr().err
    )
    assert not (root / "finetune").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--builder", "refleted"], "--builder: found 'refleted', expected one of correct_only, reflected,"),
        (["--builder-args", "balance"], "--builder_args: found 'balance', expected NAME=VALUE"),
        (["--builder_args", "blance=true"], "--builder_args: found 'blance', expected some of balance,"),
        (["--builder_args=blance=true"], "--builder_args: found 'blance', expected some of balance,"),
        (["--builder_args=balance"], "--builder_args: found 'balance', expected NAME=VALUE"),
        (["--builder_args", "--limit=1"], "--builder_args needs NAME=VALUE"),
        (["--builder-args", "balance=so"], "--builder_args balance: found 'so', expected true or false"),
        (
            ["--builder_args", "min_score=true"],
            "--builder_args min_score: found 'True', expected a whole number",
        ),
        (
            ["--builder-args", "prefer=last"],
            "--builder: prefer: found 'last', expected 'first' or",
        ),
        (["--definitions", "nowhere.yaml"], "--definitions nowhere.yaml: cannot be read: No such file"),
        (["--definitions"], "--definitions needs a file name"),
        (["--definitions.entailment", " "], "definitions.entailment: found ' ', expected text that"),
        (["--no-entailment", ""], "definitions.no_entailment: found '', expected text that completes"),
        (["--limit", "0"], "--limit: found 0, expected a whole number, 1 or more"),
        (["--format", "tex"], "--format: found 'tex', expected one of text, prompt-completion, messages"),
    ],
)
def test_a_mistake_is_reported_in_one_line(
    root: Path, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["prepare", "--root", str(root), *args]) == 2
    assert f"nlicot: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected the keys entailment and no_entailment"),
        ("- a", "expected the keys entailment and no_entailment"),
        ("entailment: x", "found no text for no_entailment"),
        ("entailment: x\nno_entailment: 3", "found no text for no_entailment"),
        ("entailment: ' . '\nno_entailment: y", "found no text for entailment"),
        ("entailment: x\nnoentailment: y", "unknown key 'noentailment'; did you mean no_entailment?"),
    ],
)
def test_definitions_without_both_texts_are_refused(
    root: Path, tmp_path: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "definitions.yaml"
    file.write_text(content)
    assert cli.main(["prepare", "--root", str(root), "--definitions", str(file)]) == 2
    assert f"--definitions {file}: {message}" in capsys.readouterr().err


def test_settings_come_from_a_yaml_file_too(root: Path, tmp_path: Path) -> None:
    words, config = tmp_path / "words.yaml", tmp_path / "prepare.yaml"
    words.write_text("entailment: it fits\nno_entailment: it clashes\n")
    config.write_text(
        f"root: {root}\nsplit: [train]\nformat: messages\nshuffle_seed: null\ndefinitions: {words}\n"
        "builder_args:\n  balance: true\n  min_score: 2\n"
    )
    assert cli.main(["prepare", "--config", str(config), "--definitions.no_entailment", "it is out"]) == 0
    found = rows(root / "finetune" / "reflected-train.jsonl")
    assert "Answer 1 if it fits, 0 if it is out. " in found[0]["messages"][0]["content"]
    assert [row["id"] for row in found] == [
        example.id for example in built_by_fit(root, builder=Reflected(balance=True, min_score=2))
    ]


def test_prepare_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["prepare", "--help"])
    assert stop.value.code == 0
    assert "example: python -m nlicot prepare" in capsys.readouterr().out
