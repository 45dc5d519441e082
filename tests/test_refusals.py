"""A mistake of the user ends a command with exit code 2, one line on stderr and no file written.

Each case is a command line in a folder with the files of `PROJECT` and its own; the message must contain its
text. No case needs a model. `pytest -s tests/test_refusals.py` prints the table of commands and messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest

from nlicot.cli import COMMANDS, main

HEADER = "id,premise,hypothesis,label\n"
PAIRS = HEADER + 'a,"Rain falls.",It is wet.,1\nb,"Sun, sun.",It is wet.,0\n'
DEV = HEADER + "c,Snow falls.,It is cold.,1\nd,Wind blows.,It is warm.,0\n"
THOUGHT = (
    '{"id": "a", "premise": "Rain falls.", "hypothesis": "It is wet.", '
    '"thought_process": "Rain is wet.", "predicted_label": 1}\n'
)
DEV_THOUGHT = (
    THOUGHT.replace('"a"', '"c"').replace("Rain falls", "Snow falls").replace("It is wet", "It is cold")
)
OTHER_THOUGHT = THOUGHT.replace("Rain is wet.", "It rains.")
WRONG = THOUGHT.replace(": 1}", ": 0}")
LOST_THOUGHT = THOUGHT.replace("Rain falls.", "Hail falls.")
REFLECTION = THOUGHT.replace(
    '"predicted_label": 1',
    '"true_label": 1, "error_analysis": "E.", "improved_thought_process": "I.", "reflected_label": 1',
)
SCORE = '{"id": "a", "score": 4}\n'
PREDICTION = '{"id": "a", "true_label": 1, "predicted_label": 1, "p_entailment": 0.9}\n'
TRAIN = "data/original_data/train.csv"
THOUGHTS = "data/original_thoughts/train.jsonl"
PROJECT = {
    TRAIN: PAIRS,
    "data/original_data/dev.csv": DEV,
    THOUGHTS: THOUGHT,
    "data/original_thoughts/dev.jsonl": DEV_THOUGHT,
    "checkpoints/one/config.yaml": "model:\n  base: bundled\ndata:\n  builder: correct_only\n",
    "checkpoints/one/best.ckpt": "no checkpoint",
    "checkpoints/two/config.yaml": "model:\n  base: bundled\ndata:\n  builder: correct_only\n",
    "checkpoints/two/best.ckpt": "no checkpoint",
    "checkpoints/bare/best.ckpt": "no checkpoint",
    "checkpoints/one/predictions/dev.jsonl": PREDICTION,
}
PROMPT = "user: '{premise} {hypothesis} 1 if {entailment}, 0 if {no_entailment}'\n"
NO_SCORES = "data/scored_thoughts/train.jsonl: found no such file, expected JSON lines of scores, which min_s"
BUILDER = "data: {builder: {class_path: nlicot.builders.reflected.Reflected, init_args: {prefer: last}}}"
LONG = "n" * 300
RUN = "--ckpt_path checkpoints/one/best.ckpt"
BOTH = f"{RUN} --ckpt_path checkpoints/two/best.ckpt"


class Case(NamedTuple):
    command: str
    line: str
    files: Mapping[str, str | bytes] = MappingProxyType({})
    writes: str = ""
    """A folder that the command may create before the refusal."""


def split(content: str | bytes, line: str, *, flags: str = "", name: str = "p.csv") -> Case:
    return Case(f"split {name} --out out {flags}", line, {name: content})


def prepare(flags: str, line: str, **files: str | bytes) -> Case:
    paths = {"thoughts": THOUGHTS, "reflections": "data/reflected_thoughts/train.jsonl"}
    paths |= {"scores": "data/scored_thoughts/train.jsonl", "definitions": "d.yaml"}
    return Case(f"prepare --root data {flags}", line, {paths[kind]: text for kind, text in files.items()})


def generate(flags: str, line: str, *, writes: str = "", **files: str) -> Case:
    named = {f"{name}.yaml": text for name, text in files.items()}
    return Case(f"generate --root data {flags}", line, named, writes)


def report(flags: str, line: str, predictions: str = PREDICTION) -> Case:
    return Case(f"report {flags}", line, {"two.jsonl": predictions})


SHARD = '{"shard": "1/2", "command": "generate", "work": "w", "num_records": 1, "num_failures": 0}\n'
SECOND = SHARD.replace("1/2", "2/2") + THOUGHT


def merge(line: str, second: str = SECOND, *, flags: str = "", **files: str) -> Case:
    shards = {"t.shard-1-of-2.jsonl": SHARD + THOUGHT, "t.shard-2-of-2.jsonl": second}
    return Case(f"merge-shards t.jsonl {flags}", line, {**shards, **files})


def others(content: str, line: str, flags: str = "") -> Case:
    return Case(f"report one --predictions p.csv {flags}", line, {"p.csv": content})


def soft(content: str, line: str, *, flags: str = "", builder: str = "label_only") -> Case:
    command = f"inspect --root data --data.builder {builder} --data.soft_labels s.jsonl {flags}"
    return Case(command, line, {"s.jsonl": content, "pool.csv": "premise,hypothesis\nP,H\n"})


def sweep(content: str, line: str, flags: str = "") -> Case:
    return Case(f"sweep s.yaml --root data --model.base bundled {flags}", line, {"s.yaml": content})


LORA = (
    '{"peft_type": "LORA", "r": 32, "lora_alpha": 64, "init_lora_weights": true, '
    '"target_modules": ["v_proj", "q_proj", "k_proj", "o_proj"], "base_model_name_or_path": "some/base"}'
)
NO_TENSORS = b"\x02" + bytes(7) + b"{}"


def start(line: str, config: str = LORA, weights: str = "adapter_model.safetensors") -> Case:
    files: dict[str, str | bytes] = {"p/adapter_config.json": config, f"p/{weights}": NO_TENSORS}
    return Case("fit --root data --model.base bundled --from p", line, files)


NUMBERS = {
    "a whole number, 1 or more": {
        "fit": "model.lora.r model.lora.alpha model.decoding.batch_size model.decoding.max_thought_tokens "
        "model.decoding.votes data.effective_batch data.micro_batch_tokens data.max_length data.limit_train "
        "data.limit_dev early_stopping.patience checkpoint.every_n_steps generated_metrics.num_pairs "
        "trainer.num_nodes trainer.check_val_every_n_epoch",
        "generate": "limit max_tokens",
        "prepare": "limit",
    },
    "a whole number, 0 or more": {
        "fit": "generated_metrics.every_n_epochs generated_metrics.num_texts trainer.min_epochs "
        "trainer.min_steps trainer.log_every_n_steps",
        "inspect": "num",
        "generate": "seed",
    },
    "a whole number, 1 or more, or -1 for no limit": {"fit": "trainer.max_epochs trainer.max_steps"},
    "a whole number from 0 to 4294967295": {"fit": "seed_everything model.decoding.seed"},
    "a whole number from 1 to 1000": {"generate": "concurrency samples"},
    "a number above 0": {
        "fit": "model.learning_rate model.max_grad_norm data.soft_label_temperature",
        "generate": "timeout requests_per_minute tokens_per_minute",
    },
    "a number, 0 or more": {
        "fit": "model.weight_decay model.decoding.temperature early_stopping.min_delta "
        "model.segment_weights.thought_weight model.segment_weights.final_thought_weight "
        "model.segment_weights.scaffold_weight model.segment_weights.label_weight",
        "generate": "budget temperature",
    },
    "a number from 0 to 1": {"fit": "model.warmup_ratio"},
    "a number between 0 and 1": {"split p.csv": "dev"},
    "a number from 0, below 1": {"fit": "model.lora.dropout"},
    "a number above 0, at most 1": {"fit": "model.decoding.top_p", "score": "top_p"},
}
"""Settings by the numbers that they may have."""
BAD_NUMBERS = {
    "1 or more": ("0", "1.5", ".inf"),
    "0 or more": ("-1", ".nan"),
    "no limit": ("0", "-2", "all"),
    "4294967295": ("-1", "4294967296", "x"),
    "to 1000": ("0", "1001", "1e9"),
    "above 0": ("0", "-1", "nan", ".nan", "1e400"),
    "to 1": ("-0.1", "2", "nan"),
    "and 1": ("0", "1", "-.inf"),
    "below 1": ("1", "-0.5", "half"),
    "at most 1": ("0", "1.1", ".nan"),
}
"""Numbers that must be refused, by the end of the words."""


def bad_numbers() -> Iterator[Case]:
    for words, settings in NUMBERS.items():
        values = next(values for end, values in BAD_NUMBERS.items() if words.endswith(end))
        for command, names in settings.items():
            for name in names.split():
                for value in values:
                    yield Case(f"{command} --{name}={value}", f"--{name}: found")


MISTYPED = {
    "split p.csv --ot x": "--out",
    "prepare --rot x": "--root",
    "inspect --nmu 3": "--num",
    "audit --jsn x": "--json",
    "generate --modle x": "--model",
    "reflect --buget 3": "--budget",
    "score --treshold 3": "--threshold",
    "fit --data.buidler x": "--data.builder",
    "fit --trainer.devics 1": "--trainer.devices",
    "validate --tune-treshold": "--tune_threshold",
    "test --ckpt x": "--ckpt_path",
    "predict --out x": "--output",
    "report one --htlm x": "--html",
}
"""Flags, and the nearest one that there is."""
EMPTY_PATHS = {
    **dict.fromkeys(("split p.csv", "prepare"), ("out",)),
    "audit": ("root", "json", "markdown", "train_pairs"),
    **dict.fromkeys(("generate", "reflect", "score"), ("root", "prompt", "prices", "export_journal")),
    **dict.fromkeys(("fit", "inspect", "validate", "test", "predict"), ("root",)),
    "report one": ("html", "card", "audit", "out"),
}
ADDRESSES = (
    "localhost:8000",
    "ftp://host",
    "http://",
    "http://host:99999",
    "http://u:p@host",
    "http://h/?k=v",
)


CASES = [
    Case("fti", "fti: unknown command; did you mean fit? available: split"),
    *(
        Case(command, f"--{command.split('--')[1].split()[0]}: unknown setting; did you mean {near}?")
        for command, near in MISTYPED.items()
    ),
    *(
        Case(f"{command} --{name}=", f"--{name}: found '', expected a path")
        for command, names in EMPTY_PATHS.items()
        for name in names
    ),
    *(
        Case(f"{command} stray", "found 'stray', expected flags such as --config FILE; see python -m nlicot")
        for command in COMMANDS
        if command not in ("split", "report", "export", "sweep", "merge-shards")
    ),
    *(
        Case(f"{command} --{switch} maybe", f"--{switch}: found 'maybe', expected true, false or no value")
        for command, switch in {
            **dict.fromkeys(("prepare", "audit"), "overwrite"),
            **dict.fromkeys(("generate", "reflect", "score"), "dry_run"),
            "fit": "preflight",
            "inspect": "json",
            "validate": "probe_thoughts",
        }.items()
    ),
    *(
        Case(f"{command} --backend openai --model m --server_url {address}", "--server_url: found ")
        for command in ("generate", "reflect", "score")
        for address in ADDRESSES
    ),
    generate(
        "--backend local --model bundled --server_url http://localhost:1", "asks a model in this proces"
    ),
    generate("--ids=", "--ids: found none, expected at least one name"),
    generate("--split=", "--split: found none, expected at least one name"),
    *(
        Case(f"{command} --shard {shard}", f"--shard: found '{shard}', expected I/N for part I of N, such as")
        for command in ("generate", "reflect", "score", f"predict {RUN}")
        for shard in ("0/2", "3/2", "2", "1/0")
    ),
    generate("--split train --dry_run --shard 1/9", "--shard 1/9: found 2 inputs, expected 9 or more; use"),
    Case(f"test {RUN} --shard 1/2", "--shard: unknown setting"),
    Case("fit --data x", "--data: found 'x', expected one of its settings: --data.NAME"),
    Case("fit --trainer.strategy fsdp", "--trainer.strategy: found 'fsdp', expected ddp; to share the base"),
    Case("fit --model.shard_base", "--model.shard_base: found --trainer.strategy auto, expected ddp and sev"),
    Case("fit --model.shard_base --trainer.strategy ddp", "found --generated_metrics.every_n_epochs 1, expe"),
    Case("fit --trainer.num_nodes 2", "--run: found none, expected a name: processes on several machines"),
    Case("fit --root", "--root: found no value, expected one"),
    Case("report --compare", "--compare: found no value, expected one"),
    Case(
        "fit --root data --data.builder label_only --model.base none", "--model.base: found no folder 'none'"
    ),
    # split
    Case("split none.csv --out out", "none.csv: no such file ("),
    Case("split", "pairs"),
    split(PAIRS, "p.xls: found the ending '.xls', expected .csv, .jsonl, .json, .tsv", name="p.xls"),
    split(PAIRS, 'a comma: read it with --delimiter ",")', name="p.txt"),
    split(PAIRS, "--sede: unknown setting; did you mean --seed?", flags="--sede 1"),
    split(PAIRS, "--seed: found 'x', expected a whole number", flags="--seed x"),
    split(PAIRS, "--dev: found '', expected a number", flags="--dev="),
    split(PAIRS, "c.yaml: not valid YAML", flags="--config c.yaml")._replace(files={"c.yaml": "[" * 9000}),
    Case(f"split {LONG}.csv --out out", "nnn.csv: cannot be read: File name too long"),
    Case(f"split pairs.csv --out {LONG}", "nnn...: File name too long", {"pairs.csv": PAIRS}),
    split(PAIRS, "--label_map: found 'yes=2', expected NAME=0, NAME=1 or", flags="--label_map yes=2"),
    split(PAIRS, "--label_map: found 'yes' twice", flags="--label_map yes=1,yes=0"),
    split("premise,hypothesis\nA.,B.\nC.,D.\n", "p.csv: found pairs without labels"),
    split(HEADER + "a,A.,B.,1\nb,A.,C.,0\n", "p.csv: found 1 different premises, expected 2 or more"),
    split("a;b\n1;2\n", "p.csv:1: found the columns 'a;b', expected premise and hypothesis too (the"),
    split(PAIRS, "--columns: found 'text=a', expected COLUMN=NAME for some", flags="--columns text=a"),
    split(PAIRS, "--delimiter: found ';;', expected one character, or tab", flags="--delimiter ;;"),
    split(PAIRS, "p.csv:1: found the columns", flags="--columns label=gold"),
    split(
        "premise,hypothesis\nA.,B.\n",
        "expected label too (--label_map needs one; give its name: --columns label=NAME)",
        flags="--label_map yes=1",
    ),
    split(HEADER + "a,A,B,-\nb,C,D,yes\n", "for example --label_map yes=1,-=skip)"),
    split(HEADER + "a,A,B,-1\nb,C,D,1\n", "for example --label_map 1=1,0=0,-1=skip)"),
    split(
        HEADER + "a,A,B,-\n",
        "skips, expected other pairs too (to read them without labels: --columns label= and no --label_map)",
        flags="--label_map yes=1,-=skip",
    ),
    split(PAIRS + HEADER, "p.csv:4: found the header again, expected a row (were two files joined?"),
    split("label,Label,premise,hypothesis\n1,0,A,B\n", "p.csv:1: found the columns 'label' and 'Label'"),
    split(PAIRS.encode("utf-16-le"), "p.csv: found UTF-16, expected UTF-8 (save the file as UTF-8)"),
    split(PAIRS.replace(",", ";"), "p.csv:1: found the columns 'id;premise;hypothesis;label', expected pr"),
    split(b"no gzip", "p.csv.gz: not a gzip file, or one that is cut off", name="p.csv.gz"),
    split(b"PAR1", "p.parquet: cannot be read as Parquet or Arrow: Parquet file size is 4", name="p.parquet"),
    split(b"x", "p.arrow: cannot be read as Parquet or Arrow: ", name="p.arrow"),
    split("<a><pair></a>", "p.xml:1: found invalid XML: mismatched tag, expected <pair>", name="p.xml"),
    split(
        '<!DOCTYPE a [<!ENTITY b "c">]>\n<a/>',
        "p.xml:1: found a declaration of the entity 'b', expected none (write its text instead)",
        name="p.xml",
    ),
    split(
        '{"label": 1, "label": 0}', "p.jsonl:1: found unusable JSON: the field 'label' twice", name="p.jsonl"
    ),
    split("premise,premise\n1,2\n", "p.csv:1: found the column 'premise' twice"),
    split(HEADER + "a,A, B,C,1\n", "p.csv:2: found 5 fields, expected 4 as in the header"),
    split(HEADER + 'a,"A" B,C,1\n', "p.csv:2: a CSV row that cannot be read"),
    split(HEADER.encode() + b"a,\xff,B,1\n", "p.csv:2: found the byte 0xff, expected UTF-8"),
    split(HEADER + "a,A,B,1\na,C,D,0\n", "p.csv:3: found the id 'a' again, after line 2"),
    split(HEADER + "a,A,B,yes\nb,C,D,no\n", "p.csv:2: found the labels 'yes', 'no', expected 0 or 1 (map"),
    split(HEADER + "a,A,B,1\nb,C,D,\n", "p.csv:3: found no label, expected one, as on line 2"),
    split(HEADER + "a,,B,1\n", "p.csv:2: found an empty premise, expected text"),
    split(HEADER, "p.csv: found no rows, expected a row for each pair"),
    split("", "p.csv: found no rows, expected a row for each pair"),
    split('{"premise": "A"', "p.jsonl:1: found invalid JSON", name="p.jsonl"),
    split("[1]", "p.json:1: found 1, expected a JSON object", name="p.json"),
    split('{"premise": 1, "hypothesis": "B"}', "p.jsonl:1: found premise 1, expected", name="p.jsonl"),
    split('{"premise": "\\u0000", "hypothesis": "B"}', "p.jsonl:1: found a NUL character", name="p.jsonl"),
    split('{"premise": "\\ud800", "hypothesis": "B"}', "found half a surrogate pair", name="p.jsonl"),
    Case("split p.csv --out out", "p.csv: cannot be read: Is a directory", {"p.csv/x": ""}),
    Case(
        "split pairs.csv --out out",
        "out/original_data/dev.csv exists already; add --overwrite",
        {"pairs.csv": PAIRS, "out/original_data/dev.csv": ""},
    ),
    split(PAIRS, "(labels are 0 and 1 already: leave --label_map out)", flags="--label_map yes=1,no=0"),
    split(HEADER + "a,A,B,1\nb,C,D,-1\n", "--label_map 1=1,0=0,-1=skip)", flags="--label_map=-1=skip"),
    split(PAIRS, "--columns: found 'a' for premise and for id", flags="--columns premise=a,id=a"),
    split(PAIRS, "p.csv:1: found the column 'hypothesis' as premise", flags="--columns premise=hypothesis"),
    split("premise,hypothesis,label,gold\nA,B,1,0\n", "p.csv:2: found '1' as label and '0' as gold"),
    Case(
        "split pairs.csv --out data --overwrite true",
        "data/original_data/dev.jsonl.gz exists already; a root has one file of each split",
        {"pairs.csv": PAIRS, "data/original_data/dev.jsonl.gz": ""},
    ),
    *(
        Case(
            f"{command} --root data",
            "data/original_data: found train.csv and train.jsonl, expected one file of train (move",
            {"data/original_data/train.jsonl": ""},
        )
        for command in ("prepare", "generate --dry_run", "audit", "fit --model.base bundled", "inspect")
    ),
    Case("split data/original_data/train.csv --out data", "would be replaced by its own split"),
    Case("split pairs.csv --out out", "cannot be written", {"pairs.csv": PAIRS, "out": ""}),
    # prepare
    prepare("--builder none", "--builder: found 'none', expected one of correct_only"),
    prepare("--builder pathlib.Path", "--builder: found 'pathlib.Path', which is not a Builder subclass"),
    prepare("--builder_args balance", "--builder_args: found 'balance', expected NAME=VALUE"),
    prepare("--builder_args", "--builder_args needs NAME=VALUE"),
    prepare("--builder_args {", "--builder_args: found '{', expected NAME=VALUE"),
    prepare("--builder_args colour=1", "--builder_args: found 'colour', expected some of"),
    prepare("--builder_args min_score=high", "--builder_args min_score: found 'high', expected a whole"),
    prepare("--builder_args prefer=last", "prefer"),
    prepare("--split train --builder_args min_score=4", NO_SCORES),
    Case(
        "fit --root data --config c.yaml",
        NO_SCORES,
        {"c.yaml": BUILDER.replace("prefer: last", "min_score: 4")},
    ),
    prepare("--builder_args min_score=9", "min_score: found 9, expected a whole number from 1 to 5"),
    prepare("--builder_args max_thought_words=0", "max_thought_words: found 0, expected a whole number, 1"),
    Case(
        "fit --config c.yaml",
        "max_thought_tokens: found -1, expected a whole number, 1 or more",
        {"c.yaml": BUILDER.replace("prefer: last", "max_thought_tokens: -1")},
    ),
    prepare(
        "--builder correct_only --split train --builder_args max_thought_tokens=9",
        "max_thought_tokens 9: cannot count tokens",
    ),
    prepare("--split train,dev --out p.jsonl", "--out: found one path for the splits train, dev"),
    prepare("--format xml", "--format: found 'xml', expected one of text, prompt-completion, messages, pref"),
    prepare("--format preference --builder label_only", "found the builder label_only, expected one with th"),
    prepare("--predictions p.jsonl", "--predictions: found --format text, expected --format preference"),
    prepare("--format preference --predictions p.jsonl", "--predictions: found one path for the splits tra"),
    prepare(
        "--format preference --split train --predictions p.jsonl --builder correct_only",
        "p.jsonl: no such file",
    ),
    prepare(
        "--format preference --split train --predictions p.jsonl --builder correct_only",
        "p.jsonl:1: thought of pair 'a' matches no pair",
    )._replace(files={"p.jsonl": LOST_THOUGHT}),
    prepare(
        "--format preference --split train --builder correct_only",
        "train.csv: found no pair with a right and a wrong thought, expected some; more samples",
    ),
    prepare("--definitions none.yaml", "--definitions none.yaml: cannot be read: No such file"),
    prepare("--definitions d.yaml", "found no text for no_entailment", definitions="entailment: it holds"),
    prepare("--definitions d.yaml", "d.yaml: expected the keys entailment", definitions="- 1"),
    prepare("--definitions d.yaml", "d.yaml:1: not valid YAML", definitions="a: b: c"),
    prepare("--definitions d.yaml", "d.yaml: not valid UTF-8", definitions=b"\xff"),
    prepare(
        "--definitions d.yaml",
        "unknown key 'entailmnt'; did you mean entailment?",
        definitions="entailmnt: it holds",
    ),
    prepare("--definitions.entailment .", "definitions.entailment: found '.', expected text that completes"),
    prepare("--split train", "train.csv: found nothing that the builder reflected can use", thoughts=WRONG),
    prepare("--split test", "test.csv: no such file ("),
    prepare("--split train", "train.jsonl: found no rows, expected a row for each thought", thoughts=""),
    prepare("--split train", "train.jsonl:1: thought of pair 'a' matches no pair", thoughts=LOST_THOUGHT),
    prepare(
        "--split train",
        "train.jsonl:2: found a different thought for pair 'a', sample 0, after that on line 1",
        thoughts=THOUGHT + OTHER_THOUGHT,
    ),
    prepare(
        "--split train",
        "train.jsonl:1: found no thought_process among",
        thoughts='{"premise": "Rain falls.", "hypothesis": "It is wet."}',
    ),
    prepare("--split train", "found a reflection on a correct thought", reflections=REFLECTION),
    prepare("--split train", "score of pair 'z' matches no pair", scores=SCORE.replace("a", "z", 1)),
    prepare("--split train", "found score 9, expected 1 to 5", scores=SCORE.replace("4", "9")),
    prepare("--split train", "after score 4, expected", scores=SCORE + SCORE.replace("4", "5")),
    prepare("--split train", "found a regenerated text of round 0", scores=THOUGHT),
    prepare("--split train", "found the fields 'id', expected a score", scores='{"id": "a"}'),
    prepare("--split train --out o", "o is a folder, expected")._replace(files={"o/x": ""}),
    prepare("--split train --out o/p.jsonl", ": o is a file, expected a folder")._replace(files={"o": ""}),
    prepare(f"--split train --out {LONG}.jsonl", "nnn...: File name too long; choose a shorter name"),
    # merge-shards
    Case("merge-shards", "output"),
    Case(
        "merge-shards t.jsonl", "t.jsonl: found no shards next to it, expected files such as t.shard-1-of-2"
    ),
    Case("merge-shards t.jsonl gone.jsonl", "gone.jsonl: no such file"),
    merge("t.jsonl: found 1 of 2 shards, expected 2/2 too (run", flags="t.shard-1-of-2.jsonl"),
    merge("t.shard-2-of-2.jsonl: found shard 1/2 again, expected it once: t.shard-1-of-2.jsonl has", SHARD),
    merge("found shard 2/3, expected one of 2 shards, as t.shard-1-of-2", SECOND.replace("2/2", "2/3")),
    merge("found a shard of `generate` with other pairs or settings", SECOND.replace('"w"', '"v"')),
    merge("expected those of t.shard-1-of-2.jsonl, by `generate`", SECOND.replace("generate", "score")),
    merge("t.shard-2-of-2.jsonl:1: found the fields 'id', 'premise', ", THOUGHT),
    merge("t.shard-2-of-2.jsonl:1: found the fields 'shard', 'command',", SECOND.replace("2/2", "3/2")),
    merge("t.shard-2-of-2.jsonl:1: found the fields (none), expected the first line of a file", ""),
    merge("t.shard-2-of-2.jsonl: found 2 records, expected 1, as its first line says", SECOND + THOUGHT),
    merge("t.shard-2-of-2.jsonl:2: found invalid JSON", SECOND[:-3]),
    merge("t.shard-2-of-2.failures.jsonl: no such file", SECOND.replace('failures": 0', 'failures": 1')),
    merge("t.jsonl exists already; add --overwrite", **{"t.jsonl": ""}),
    Case(
        "merge-shards s.jsonl s.jsonl",
        "s.jsonl: found it among its shards, expected the name of the whole file",
        {"s.jsonl": SHARD.replace("1/2", "1/1") + THOUGHT},
    ),
    # audit
    Case("audit --root data --json x --markdown ./x", "--json and --markdown: found one file for both"),
    Case("audit --root data --prompt none.txt", "--prompt none.txt: cannot be read"),
    Case("audit --train_thoughts t.jsonl", "found thoughts of train without its pairs", {"t.jsonl": ""}),
    Case("audit --train_pairs none.csv", "none.csv: no such file (it was given by --train_pairs)"),
    Case(
        "audit --root empty",
        "empty: found no pairs, expected one of empty/original_data/train.csv",
        {"empty/x": ""},
    ),
    Case("audit --root data --json x", "x exists already; add --overwrite", {"x": ""}),
    # generate, reflect, score
    generate("--model=", "--model: found none, expected the teacher's name"),
    generate("--backend openai", "--backend openai: found no --server_url"),
    generate("--backend mail", "--backend: found 'mail', expected one of mistral, openai"),
    generate("--overwrite", "--backend mistral: found no MISTRAL_API_KEY", writes="data"),
    generate("--ids z", "--ids: found z, expected ids of pairs in"),
    generate("--request_field a", "--request_field: found 'a', expected NAME=VALUE or NAME=null"),
    generate("--request_field n=2", "--request_field n: found '2', expected another field: --samples"),
    generate("--request_field b=1", "--request_field: found b, expected one that the mistralai SDK sends"),
    generate("--price 1", "--price: found"),
    generate("--price 1,x", "--price: found '1,x', expected INPUT,OUTPUT"),
    generate("--prices p.yaml", "--prices p.yaml: found no `models`", p="a: 1"),
    generate("--prices p.yaml", "unknown key 'model' (did you mean models?)", p="model: 1\nmodels: {}"),
    generate("--prices p.yaml", "m: found [1], expected two amounts", p="models: {m: [1]}"),
    generate("--prices p.yaml", "the alias n names 'o'", p="models: {m: [1, 1]}\naliases: {n: o}"),
    generate("--prices p.yaml", "found aliases [1], expected", p="models: {m: [1, 1]}\naliases: [1]"),
    generate("--prices p.yaml", "found batch_discount 2", p="models: {m: [1, 1]}\nbatch_discount: 2"),
    generate(
        "--backend openai --server_url http://localhost:1 --model m --budget 1 --overwrite",
        "--budget 1.0: the price of m is not known",
        writes="data",
    ),
    generate("--prompt p.yaml", "p.yaml: found [1], expected the keys system, user, definitions", p="[1]"),
    generate("--prompt p.yaml", "p.yaml:1: unknown key 'usr' (did you mean user?)", p="usr: x"),
    generate("--prompt p.yaml", "p.yaml: the key user is missing", p="system: x"),
    generate("--prompt p.yaml", "p.yaml:1: found user 1, expected text", p="user: 1"),
    generate("--prompt p.yaml", "p.yaml: {hypothesis} missing, expected in", p="user: '{premise}'"),
    generate(
        "--prompt p.yaml",
        "p.yaml:1: initial_generation has no placeholder {hypotesis}",
        p="user: '{premise} {hypothesis} {hypotesis}'",
    ),
    generate(
        "--prompt p.yaml --definitions d.yaml",
        "p.yaml: the label definitions would have no effect",
        p="user: '{premise} {hypothesis}'",
        d="entailment: a\nno_entailment: b",
    ),
    generate("--relation_map yes", "--relation_map: found 'yes', expected NAME=0, NAME=1 or"),
    generate("--relation_map entailment=1", "--relation_map: found {'entailment': 1}, expected 0 or 1"),
    generate(
        "--relation_map entailment=1,neutral=1,contradiction=0",
        "--relation_map: found it with --prompt_type initial_generation, expected relation",
    ),
    generate(
        "--definitions d.yaml",
        "d.yaml: relation_map: found {'a': 1}, expected 0 or 1 for each",
        d="entailment: a\nno_entailment: b\nrelation_map: {a: 1}",
    ),
    generate(
        "--config c.yaml",
        "--config c.yaml: generat: unknown section; did you mean generate?",
        c="generat: {}\nscore: {}",
    ),
    generate(
        "--config c.yaml",
        "--config c.yaml: generate: expected settings with values under it",
        c="generate: 1",
    ),
    generate(
        "--config c.yaml",
        "--config c.yaml: modle: unknown setting; did you mean --model?",
        c="generate: {modle: x}",
    ),
    generate("--export_journal j.jsonl", "--export_journal: found no journal data/journal/generate.sqlite"),
    Case(
        "generate --root data --dry_run",
        "generate.sqlite: not a journal (",
        {"data/journal/generate.sqlite": "not a journal " * 99},
        "data/journal",
    ),
    Case(
        "reflect --root data --split test",
        "test.jsonl: no such file (write it first: python",
        {"data/original_data/test.csv": PAIRS},
    ),
    Case("score --root data --rounds 11", "--rounds: found '11', expected one of 0, 1"),
    Case("score --root data --threshold 9", "--threshold: found '9', expected one of 1, 2"),
    # fit and inspect
    Case("fit --config label_only", "--config label_only: no such file (did you mean configs/label_only"),
    Case("fit --config none.yaml", "--config none.yaml: no such file (there"),
    Case("fit --config", "--config needs a file name"),
    Case("fit --config c.yaml", "--config c.yaml:1: not valid YAML", {"c.yaml": "a: b: c"}),
    Case("fit --config c.yaml", "--config c.yaml: expected keys with values", {"c.yaml": "- a"}),
    Case(
        "fit --config c.yaml",
        "--config c.yaml: data.buildr: unknown setting; did you mean --data.builder?",
        {"c.yaml": "data: {buildr: reflected}"},
    ),
    Case("fit --model.lora.rank 8", "--model.lora.rank: unknown setting"),
    Case("fit --model.learning_rate fast", "--model.learning_rate: found 'fast', expected a number"),
    Case("fit --model.quantization int8", "--model.quantization: found 'int8', expected one of nf4, none"),
    Case("fit --config c.yaml", "prefer: found 'last', expected 'first' or 'shortest'", {"c.yaml": BUILDER}),
    Case(
        "fit --config c.yaml",
        "--data.builder: Problem with given class_path 'nlicot.builders.reflected.Reflected': Option",
        {"c.yaml": BUILDER.replace("prefer", "favour")},
    ),
    Case("fit --checkpoint.mode best", "--checkpoint.mode: found 'best', expected"),
    Case("fit --data.builder none", "--data.builder: found 'none', expected one of correct_only"),
    Case("fit --data.prompts.thinking {premise}", "data.prompts.thinking: found {hypothesis} 0 times"),
    Case("fit --trainer.accumulate_grad_batches 2", "--trainer.accumulate_grad_batches: found 2, expected 1"),
    Case("fit --resume checkpoints/ne", "checkpoints/ne/config.yaml: no such file; did you mean"),
    Case("fit --resume one", "one/config.yaml: no such file; did you mean checkpoints/one?"),
    Case("fit --resume none", "none/config.yaml: no such file; runs that have one: none"),
    Case("fit --resume checkpoints/one/best.ckpt", "one/best.ckpt: found a file, expected the run's folder"),
    Case(
        "fit --resume checkpoints/one --model.learning_rate 1e-6 --early_stopping.patience 9",
        "; --model.learning_rate: found 1e-06, expected 0.0002 (leave these out, or start a new run)",
    ),
    Case("fit --from", "--start_from: found no value, expected one"),
    Case("fit --from=", "--from : found neither config.yaml nor adapter_config.json"),
    Case("fit --from none", "none/config.yaml: no such file; runs that have one: none"),
    Case("fit --from checkpoints/ne", "checkpoints/ne/config.yaml: no such file; did you mean checkpoints/o"),
    Case("fit --from data", "--from data: found neither config.yaml nor adapter_config.json, expected the"),
    Case(f"fit --from {LONG}", "nnn...: File name too long; choose a shorter name"),
    Case("fit --from checkpoints/one --model.lora.r 8", "--model.lora.r: found 8, expected 32 (give its"),
    Case(
        "fit --config c.yaml",
        "--from checkpoints/one is an adapter of another shape; --model.lora.alpha: found 8, expected 64",
        {"c.yaml": "{start_from: checkpoints/one, model: {lora: {alpha: 8}}}"},
    ),
    Case(
        "fit --root data --model.base bundled --from checkpoints/one",
        "--from checkpoints/one: not a checkpoint of nlicot, or damaged (",
    ),
    Case(
        "fit --from checkpoints/new",
        "--from checkpoints/new: found neither best.ckpt nor last.ckpt, expected one of them",
        {"checkpoints/new/config.yaml": "model: {base: bundled}"},
    ),
    start("--from p is an adapter of another base; --model.base: found bundled, expected some/base (give"),
    start("found no JSON object in adapter_config.json, expected the adapter's", "[]"),
    start("found no adapter_model.safetensors, expected adapter_model.safetensors", weights="x"),
    start("found adapter_model.bin, a pickle, which could run code, expected", weights="adapter_model.bin"),
    start("base_model_name_or_path is missing; add the base's", LORA.replace("some/base", "")),
    start('adapter_config.json: peft_type: found "IA3", expected LORA', LORA.replace("LORA", "IA3")),
    start("use_rslora: found true, expected false", LORA.replace("{", '{"use_rslora": true, ')),
    start("--model.lora.r: found 32, expected 8 (give its values", LORA.replace("32", "8")),
    Case("fit --run a/b", "--run a/b: expected the name of a folder, without '/'"),
    Case("fit --run ..", "--run ..: expected the name of a folder, without '/'"),
    Case(f"fit --run {LONG}", f"--run {LONG[:40]}...: expected the name of a folder, without '/' and of at"),
    Case("fit --run one", "--run one: a run of that name exists in checkpoints; choose another name"),
    Case("fit --checkpoints_root p.csv", "p.csv is a file, expected a folder", {"p.csv": ""}),
    Case("fit --checkpoints_root p.csv/in", "p.csv is a file, expected a folder", {"p.csv": ""}),
    Case(f"fit --checkpoints_root {LONG}", "nnn...: File name too long; choose a shorter name"),
    Case(f"fit --root {LONG}", "nnn...: File name too long; choose a shorter name"),
    Case(f"fit --resume {LONG}", "nnn...: File name too long; choose a shorter name"),
    Case("fit --trainer.limit_train_batches 0", "--trainer.limit_train_batches: found 0, expected 1 or more"),
    *(
        Case(f"fit --trainer.devices {value}", "--trainer.devices: found")
        for value in ("0", "-2", '{"a":1}', "x", "[]", "[0,0]", "100000", "0,0")
    ),
    *(
        Case(f"fit --trainer.{name} {value}", f"--trainer.{name}: found {value}, expected a number of batch")
        for name in ("limit_train_batches", "limit_val_batches", "overfit_batches")
        for value in ("-1", "1.5")
    ),
    *(
        Case(f"fit --trainer.val_check_interval {value}", "--trainer.val_check_interval: found")
        for value in ("0", "-1", "1.5", ".nan", "often", "00:00:30:00")
    ),
    *(
        Case(f"fit --trainer.overfit_batches {value}", f"found {value}, expected 0; use --data.limit_train")
        for value in ("2", "0.5")
    ),
    *(
        Case(f"fit {flags}", f"--trainer.max_epochs: found {found} without --trainer.max_steps, expected one")
        for flags, found in {
            "--trainer.max_epochs=-1": "-1",
            "--trainer.max_epochs null": "null",
            "--preflight --trainer.max_epochs null": "null",
            "--trainer.max_epochs null --trainer.max_time 00:01:00:00": "null",
        }.items()
    ),
    Case("fit --trainer.gradient_clip_val 1", "found 1, expected null; set --model.max_grad_norm instead"),
    Case(
        "fit --trainer.gradient_clip_algorithm value", "found value, expected null; the norm is clipped, at"
    ),
    Case("fit --trainer.logger false", "found False, expected null; a run has files of TensorBoard"),
    Case("fit --trainer.logger.class_path CSVLogger", "found an object, expected null; a run has files"),
    Case("fit --trainer.enable_checkpointing false", "expected null; a run has best.ckpt and last.ckpt"),
    Case("fit --trainer.enable_model_summary true", "found True, expected null; fit has no table of layers"),
    Case("fit --trainer.num_sanity_val_steps 2", "found 2, expected null; try a fit with --preflight true"),
    Case("fit --trainer.default_root_dir x", "found x, expected null; set --checkpoints_root and --run"),
    Case("fit --trainer.limit_test_batches 2", "found 2, expected null; name a file with fewer pairs"),
    *(
        Case(f"fit --trainer.precision {value}", f"found '{value}', expected one of bf16-mixed, 32-true, bf1")
        for value in ("8", "16-mixed", "16", "bf16-true", "16-true", "64-true", "transformer-engine")
    ),
    *(
        Case(f"fit --root data --trainer.{name} {value}", f"--trainer.{name}: Lightning refuses this: ")
        for name, value in {
            "accelerator": "tpu9",
            "strategy": "none",
            "max_time": "soon",
            "profiler": "none_such",
        }.items()
    ),
    Case("fit --root data --trainer.callbacks none", "--trainer.callbacks: found 'none', expected a list"),
    *(
        Case(
            "fit --model.segment_weights.label_weight 0 --model.segment_weights.scaffold_weight 0 "
            f"--model.segment_weights.{name} 0",
            "--model.segment_weights: found 0 for scaffold, label and thought in the same step, expected a",
        )
        for name in ("thought_weight", "final_thought_weight")
    ),
    Case("fit --model.lora.target_modules []", "--model.lora.target_modules: found [], expected names"),
    Case("fit --model.quantization int3", "--model.quantization: found 'int3', expected one of nf4, none"),
    Case("fit --model.dtype float64", "--model.dtype: found 'float64', expected one of auto, bfloat16, floa"),
    Case("fit --checkpoint.monitor loss", "--checkpoint.monitor: found 'loss', expected one of dev/loss"),
    Case("fit --early_stopping.monitor f1", "--early_stopping.monitor: found 'f1', expected one of dev/loss"),
    Case(
        "fit --checkpoint.monitor dev_generated/accuracy",
        "--checkpoint.mode: found min with --checkpoint.monitor dev_generated/accuracy, expected max",
    ),
    Case(
        "fit --early_stopping.mode max",
        "--early_stopping.mode: found max with --early_stopping.monitor dev/loss, expected min",
    ),
    Case(
        "fit --model.dtype float32 --trainer.precision bf16-mixed",
        "--trainer.precision: found bf16-mixed with a base in float32, expected 32-true; leave it out, or",
    ),
    Case("prepare --root ~no-such-user/data", "found a path that starts with ~ and a name, but no user"),
    Case(
        "generate --root data --prices p.yaml",
        "p.yaml: not valid YAML: day ",
        {"p.yaml": "as_of: 2026-11-31\n"},
    ),
    Case(
        "inspect --root data --data.builder label_only --model.base models/llama--7b",
        "--model.base: found 'models/llama--7b', which is no folder and no name that the hub allows",
    ),
    Case(
        "fit --root data --data.builder label_only --model.decoding.think true",
        "--model.decoding.think: found true, but the run was trained on label_only only",
    ),
    Case(
        "fit --root data --data.builder correct_only --model.decoding.votes 3 --model.decoding.temperature 0",
        "--votes 3: without a temperature all votes are the same (add --model.decoding.temperature 0.7)",
    ),
    Case(
        f"predict {RUN} --model.lora.alpha 9",
        "--model.lora.alpha: found 9, expected 5, with which the run was fitted; leave it out",
        {"checkpoints/one/config.yaml": "model: {base: bundled, lora: {alpha: 5}}\n"},
    ),
    Case("fit --run=", "--run : expected the name of a folder"),
    Case(
        "fit --config c.yaml",
        "--model.lora.r: found 0, expected a whole number, 1 or more",
        {"c.yaml": "model: {lora: {r: 0}}"},
    ),
    Case(
        "fit --config c.yaml", "--model.learning_rate: found inf", {"c.yaml": "model: {learning_rate: .inf}"}
    ),
    Case(
        "fit --checkpoint.monitor dev_generated/f1 --generated_metrics.every_n_epochs 0",
        "--checkpoint.monitor: found 'dev_generated/f1', which --generated_metrics.every_n_epochs 0 turns",
    ),
    Case("inspect --root data --split test", "--split: found 'test', expected one of train, dev"),
    Case("inspect --root data --data.builder correct_only --id z", "--id z: no such pair in train"),
    Case(
        "inspect --root data --data.builder correct_only --id b",
        "--id b: the builder CorrectOnly makes no training example of this pair",
    ),
    Case(
        "inspect --root data",
        "dev.csv:2: found pair 'a' of dev in train too (there 'a'), and 1 more",
        {"data/original_data/dev.csv": PAIRS},
    ),
    Case(
        "inspect --root data --data.train_pairs p.csv",
        "p.csv: found --data.train_pairs without",
        {"p.csv": PAIRS},
    ),
    Case("inspect --root data --data.train_scores s.jsonl", "s.jsonl: found no such file, expected"),
    Case(
        "inspect --root data --data.prepared p.jsonl",
        "p.jsonl:1: found a text of another format",
        {"p.jsonl": '{"text": "x"}'},
    ),
    Case(
        "inspect --root data --data.prepared p.jsonl",
        "p.jsonl:1: found messages of another format",
        {"p.jsonl": '{"messages": []}'},
    ),
    Case(
        "inspect --root data --data.prepared p.jsonl",
        "p.jsonl:1: found a completion that is not JSON",
        {"p.jsonl": '{"prompt": "x", "completion": "y"}'},
    ),
    Case(
        "inspect --root data --data.prepared p.jsonl",
        "p.jsonl: found no rows, expected a row",
        {"p.jsonl": ""},
    ),
    soft('{"id": "a", "p_entailment": 1.5}', "s.jsonl:1: found p_entailment 1.5, expected a probability of"),
    soft('{"id": "a", "p_entailment": NaN}', "s.jsonl:1: found p_entailment nan, expected a probability of"),
    soft('{"id": "a", "prediction": 1}', "s.jsonl:1: found no p_entailment among 'id', 'prediction', expect"),
    soft('{"id": "z", "p_entailment": 1}', "s.jsonl:1: the soft label of 'z' matches no training pair (give"),
    soft(
        '{"id": "a", "p_entailment": 1}\n{"id": "a", "p_entailment": 0}',
        "s.jsonl:2: found p_entailment 0.0 of pair 'a', after 1.0, expected one for each pair",
    ),
    soft("", "s.jsonl: found no rows, expected a row for each pair"),
    soft(
        '{"id": "a", "p_entailment": 1}',
        "train.csv: found soft labels that the builder correct_only makes no example of, expected label_onl",
        builder="correct_only",
    ),
    soft(
        '{"id": "a", "p_entailment": 1}',
        "--data.soft_labels: found it with --data.prepared, expected one of them",
        flags="--data.prepared p.jsonl",
    ),
    soft(
        '{"premise": "P", "hypothesis": "H", "p_entailment": 1}',
        "train.csv: found unlabelled pairs that the builder label_first makes no example of, expected label_",
        flags="--data.unlabelled_pairs pool.csv",
        builder="label_first",
    ),
    soft(
        '{"id": "a", "p_entailment": 1}',
        "pool.csv:2: found no soft label of pair 'pair-835f155d8c5d', expected one for each unlabelled pair",
        flags="--data.unlabelled_pairs pool.csv",
    ),
    soft(
        '{"premise": "P", "hypothesis": "H", "p_entailment": 1}',
        "--data.blind_test: found soft labels of 1 pairs of pool.csv, expected none; leave these pairs out o",
        flags="--data.unlabelled_pairs pool.csv --data.test_pairs pool.csv --data.blind_test",
    ),
    Case(
        "inspect --root data --data.builder label_only",
        "train.csv:2: found p_entailment '2', expected a probability of entailment from 0 to 1",
        {TRAIN: "id,premise,hypothesis,label,p_entailment\na,A,B,1,2\n"},
    ),
    # validate, test, predict
    Case("validate", "validate needs --ckpt_path checkpoints/RUN/best.ckpt"),
    Case("test --ckpt_path", "--ckpt_path: found no value"),
    Case("predict --ckpt_path none.ckpt", "--ckpt_path none.ckpt: no such file; checkpoints here: ch"),
    Case("predict --ckpt_path checkpoints/bare/best.ckpt", "checkpoints/bare/config.yaml: no such"),
    Case("predict --ckpt_path checkpoints/one", "one: found a folder, expected checkpoints/one/best.ckpt"),
    Case(
        "predict --ckpt_path checkpoints",
        "checkpoints: found a folder, expected checkpoints/bare/best.ckpt, checkpoints/one/best.ckpt, check",
    ),
    Case("predict --ckpt_path data", "data: found a folder, expected a file such as checkpoints/RUN/best"),
    Case(f"predict --ckpt_path {LONG}", "nnn...: File name too long; choose a shorter name"),
    Case(f"predict {RUN} --root data --split {LONG}", "nnn...: File name too long; choose a shorter name"),
    Case(
        "predict --ckpt_path checkpoints/bare/best.ckpt --root data --split dev",
        "--ckpt_path checkpoints/bare/best.ckpt: not a checkpoint of nlicot, or damaged (",
        {"checkpoints/bare/config.yaml": "trainer: {}"},
    ),
    Case(
        "predict --ckpt_path checkpoints/bare/best.ckpt",
        "config.yaml: data.bilder: unknown setting; did you mean --data.builder?",
        {"checkpoints/bare/config.yaml": "data: {bilder: reflected}"},
    ),
    Case(f"predict {RUN} --root data", "data/original_data/test.csv: no such file ("),
    Case(f"predict {RUN} --root data --split dev", f"{RUN}: not a checkpoint of nlicot, or dam"),
    Case(
        f"test {RUN} --root data",
        "found pairs without a label, expected a label for each pair (to predict",
        {"data/original_data/test.csv": "premise,hypothesis\nA,B\n"},
    ),
    Case(
        f"validate {RUN} --root data",
        "dev.csv:2: found pair 'a' of dev in train too",
        {"data/original_data/dev.csv": PAIRS},
    ),
    Case(f"predict {BOTH} --root data --split dev --weights 1", "--weights: found '1', expected 2"),
    *(
        Case(
            f"predict {RUN} --root data --split dev --weights={value}",
            f"--weights: found '{value}', expected 1",
        )
        for value in ("-1", "nan", "inf", "0", "x", "1,1")
    ),
    # report
    report("", "report: found no run, expected report RUN [RUN ...]"),
    report("--compare one", "--compare: found 1 run, expected two or more"),
    report("one one", "one: found it twice, expected different runs"),
    report("none", "none: found no such run"),
    report("two", "found no checkpoints/two/predictions/dev.jsonl, expected predictions"),
    report("one --split test", "(there are predictions of dev), expected predictions of test"),
    report("one two.jsonl --card c", "--card: found 2 runs, expected the one that the card describes"),
    report("two.jsonl --card c", "--card: found no config.yaml that belongs to two.jsonl"),
    report("one --json x --html ./x", "report: found one file named twice among x, x"),
    report("one --html two.jsonl/p.html", "two.jsonl is a file, expected a folder"),
    report(f"one --html {LONG}", "nnn...: File name too long; choose a shorter name"),
    report(LONG, "nnn...: File name too long; choose a shorter name"),
    report("one --html checkpoints", "checkpoints is a folder, expected the name of a file to write"),
    report("one --audit none.json", "none.json: cannot be read: No such file"),
    report("one --audit two.jsonl", "two.jsonl: found findings null, expected a list"),
    report("two.jsonl", "two.jsonl: found no predictions", ""),
    report("two.jsonl", "two.jsonl:2: found the id 'a' a second time", PREDICTION * 2),
    report("two.jsonl", "found p_entailment 2, expected a probability", PREDICTION.replace("0.9", "2")),
    report("two.jsonl", "found no true_label of 'a'", '{"id": "a", "predicted_label": 1}'),
    report("two.jsonl", "found a prediction without an id", '{"true_label": 1}'),
    report(
        "one two.jsonl",
        "two: found pair 'a' labelled 0 and labelled 1 in one",
        PREDICTION.replace('"true_label": 1', '"true_label": 0'),
    ),
    report("--compare one --card c --baselines", "--card: found 4 runs, expected the one that the card desc"),
    report("one --predictions", "--predictions: found no value, expected"),
    report("one --predictions none.csv", "none.csv: no such file ("),
    report("one --predictions checkpoints/one/predictions/dev.jsonl", "one: found it twice, expected"),
    report("one --train_pairs data/x.csv", "--train_pairs: found it without --baselines, expected both"),
    report("one --baselines", "dev.jsonl: found no texts, expected premise and hypothesis of each pair"),
    others("", "p.csv: found no predictions, expected one for each pair"),
    others(
        "prediction\n1\n", "p.csv:1: found the columns 'prediction', expected id, or premise and hypothesis"
    ),
    others(
        "id\na\n", "p.csv:1: found the columns 'id', expected predicted_label or p_entailment too (--colum"
    ),
    others("id;label\na;1\n", 'the delimiter seems to be a semicolon: read it with --delimiter ";")'),
    others("id,label\nz,1\n", "p.csv:2: found the id 'z', expected the id of a pair of one"),
    others("id,label\na,1\na,1\n", "p.csv:3: found a second prediction of pair 'a', expected one for each"),
    others(
        "id,label\na,yes\n", "p.csv:2: found label 'yes', expected 0 or 1 (map words to labels: --label_m"
    ),
    others("id,label\na,yes\n", "found label 'yes', expected one of no", "--label_map no=0"),
    others("id,p_entailment\na,2\n", "p.csv:2: found p_entailment '2', expected a probability of entailment"),
    others("id,probability\na,nan\n", "p.csv:2: found probability 'nan', expected a probability of entail"),
    others("id,pred\na,1\n", "found the columns 'id', 'pred', expected 'guess' too", "--columns label=guess"),
    others(
        "premise,hypothesis,label\nA,B,1\n", "p.csv:2: found the texts 'A' and 'B', expected those of anot"
    ),
    others("id,label,probability\na,1,0.2\n", "p.csv: found the true labels in the column label, expected"),
    # sweep
    Case("sweep", "sweep: found no file, expected sweep FILE.yaml"),
    Case("sweep none.yaml", "none.yaml: no such file (there is no YAML file in that folder)"),
    Case("sweep s.yaml stray", "found 'stray', expected flags such as --config FILE", {"s.yaml": ""}),
    sweep("", "s.yaml: experiments: expected a list such as `- name: labels`, each with settings"),
    sweep("experiments: [labels]", "s.yaml: experiments: expected a list such as `- name: labels`, each"),
    sweep("{name: a, experiments: [{name: a}]}", "s.yaml: name: found it outside of the experiments"),
    sweep("experiments: [{seeds: 1}]", "s.yaml: experiment 1: found no name, expected one such as `name: l"),
    sweep("experiments: [{name: a}, {name: a}]", "s.yaml: found two experiments named a, expected differe"),
    sweep("experiments: [{name: a/b}]", "s.yaml: a/b: --run a/b-0: expected the name of a folder, without"),
    sweep("experiments: [{name: a, seeds: x}]", "s.yaml: a: seeds: found 'x', expected a whole number from"),
    sweep("experiments: [{name: a, seeds: []}]", "s.yaml: a: seeds: found none, expected at least one"),
    sweep("experiments: [{name: a, seeds: [1, 1]}]", "s.yaml: a: seeds: found 1 twice, expected different"),
    sweep("experiments: [{name: a}]", "--seeds: found '-1', expected a whole number from 0", "--seeds=-1"),
    sweep("experiments: [{name: a, config: {b: c}}]", "s.yaml: a: config: expected a file of settings, or"),
    sweep("experiments: [{name: a, config: b.yaml}]", "s.yaml: a: --config b.yaml: no such file (there: s"),
    sweep("experiments: [{name: a, run: b}]", "s.yaml: a: run cannot be set for a sweep; it is the exper"),
    sweep("{seed_everything: 1, experiments: [{name: a}]}", "seed_everything cannot be set for a sweep; g"),
    sweep(
        "experiments: [{name: a}]", "a: resume cannot be set for a sweep; a sw", "--resume checkpoints/one"
    ),
    sweep("experiments: [{name: a, modle: {base: b}}]", "s.yaml: a: --modle.base: unknown setting; did you"),
    sweep("experiments: [{name: a, model.lora.r: 0}]", "s.yaml: a: --model.lora.r: found 0, expected a who"),
    sweep(
        "experiments: [{name: a}]", "a: --modle.base: unknown setting; did you mean --mo", "--modle.base x"
    ),
    sweep("experiments: [{name: a}]", "--only: found 'b', expected experiments; available: a", "--only b"),
    sweep("experiments: [{name: a}]", "--minutes: found 0, expected a number above 0", "--minutes 0"),
    sweep("experiments: [{name: a}]", "p/x: p is a file, expected a folder", "--out p/x")._replace(
        files={"s.yaml": "experiments: [{name: a, data.builder: label_only}]", "p": ""}
    ),
    sweep("experiments: [{name: a, from: a}]", "s.yaml: a: from: found a, expected an experiment above it;"),
    sweep("experiments: [{name: a, from: b}]", "a: from: found 'b', no file and no experiment above it; the"),
    sweep("experiments: [{name: ab}, {name: c, from: abc}]", "no experiment above it; did you mean ab?"),
    sweep(
        "experiments: [{name: a, seeds: [1, 2]}, {name: b, from: a, seeds: [2, 3]}]",
        "s.yaml: b: from: found the seed 3, expected one of a: 1, 2",
    ),
    sweep(
        "experiments: [{name: a}, {name: b, from: a, model.lora: {r: 8}}]",
        "s.yaml: b: --from a is an adapter of another shape; --model.lora.r: found 8, expected 32 (give",
    ),
    Case(
        "sweep s.yaml --root data",
        "s.yaml: b: --from a: --model.base: found other, expected bundled, its base; give both the sa",
        {"s.yaml": "experiments: [{name: a, model.base: bundled}, {name: b, from: a, model.base: other}]"},
    ),
    sweep(
        "experiments: [{name: a, data.builder: label_only}, {name: b, data.train_pairs: none.csv}]",
        "s.yaml: b: none.csv: no such file (",
    ),
    sweep(
        "experiments: [{name: a, data.builder: label_only}, {name: b, config: b.yaml}]",
        "s.yaml: b: found dev pairs (1 pairs, content ",
    )._replace(
        files={
            "s.yaml": "data.builder: label_only\nexperiments: [{name: a}, {name: b, data.limit_dev: 1}]",
        }
    ),
    sweep(
        "experiments: [{name: a, data.builder: label_only}]",
        "s.yaml: a: checkpoints/s/a-0: found no config.yaml, expected the folder of a run; move it away",
    )._replace(
        files={
            "s.yaml": "experiments: [{name: a, data.builder: label_only}]",
            "checkpoints/s/a-0/mine.txt": "",
        }
    ),
    # export
    Case("export", "export: found no run, expected export RUN --format peft|merged|gguf|gguf-adapter"),
    Case("export --format peft", "export: found no run, expected export RUN --format peft|merged|"),
    Case("export one", "export needs --format peft|merged|gguf|gguf-adapter"),
    Case("export one stray --format peft", "found 'stray', expected flags such as --config FILE"),
    Case("export one --format onnx", "--format: found 'onnx', expected one of peft, merged, gguf, gguf-adap"),
    Case("export one --format peft --dtype int8", "--dtype: found 'int8', expected one of auto, bfloat16"),
    Case("export one --format peft --check_pairs 0", "--check_pairs: found 0, expected a whole number, 1 or"),
    Case("export one --format peft --fource", "--fource: unknown setting; did you mean --force?"),
    Case("export one --format peft --out=", "--out: found '', expected a path"),
    Case(
        "export one --format peft --out data", "data exists already; name another folder (--out), or remove"
    ),
    Case(
        "export one --format peft --out pairs.csv/x",
        "--out pairs.csv/x: pairs.csv is a file, expected a f",
        {"pairs.csv": PAIRS},
    ),
    Case("export none --format peft", "export none: no such run; runs in checkpoints: bare, one, two"),
    Case("export bare --format peft", "checkpoints/bare/config.yaml: no such"),
    Case("export data --format peft", "data/best.ckpt: no such file"),
    Case("export one --format peft --unchecked", "one/best.ckpt: not a checkpoint of nlicot, or damaged ("),
    Case(
        "export checkpoints/one --format merged --root none",
        "none/original_data/dev.csv: no such file, and the export is checked on dev pairs (name others with",
    ),
    *bad_numbers(),
]


def test_every_refusal_is_one_line_with_exit_code_2_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("MISTRAL_API_KEY", raising=False)
    table, mistakes = [], []
    for number, case in enumerate(CASES):
        folder = tmp_path / str(number)
        write_files(folder, {**PROJECT, **case.files})
        monkeypatch.chdir(folder)
        before = written(case)
        code = main(case.command.split())
        error = capsys.readouterr().err
        table.append(f"{case.command[:70]:<70} {code} {error.strip()}")
        is_one_line = error.count("\n") == 1 and error.startswith("nlicot: ")
        if code != 2 or not is_one_line or case.line not in error or written(case) != before:
            mistakes.append(f"{table[-1]}\n    expected {case.line}")
    with capsys.disabled():
        print("", *table, f"{len(table)} commands, {len(mistakes)} mistakes", sep="\n")
    assert not mistakes, "\n".join(mistakes)
    assert len(table) >= 300
    assert {case.command.split()[0] for case in CASES} >= COMMANDS.keys()


def write_files(folder: Path, contents: Mapping[str, str | bytes]) -> None:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def written(case: Case) -> dict[Path, bytes]:
    files = [path for path in Path().rglob("*") if path.is_file()]
    ignored = [path for path in files if case.writes and path.is_relative_to(case.writes)]
    return {path: path.read_bytes() for path in files if path not in ignored}
