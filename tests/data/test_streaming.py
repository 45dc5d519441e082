from __future__ import annotations

import csv
import json
import logging
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nlicot.data import pairs as pairs_module
from nlicot.data import streaming
from nlicot.data.root import read_examples
from nlicot.data.streaming import JoinedTexts, PairsFile, TextFiles, joined_chunks, read_joined
from nlicot.errors import DataError
from nlicot.records import Example, Reflection, Score, Thought, content_id, to_json_dict

PAIRS = [Example(id=f"p{i}", premise=f"P{i}", hypothesis="H", label=i % 2) for i in range(10)]


def thought(pair: Example, predicted_label: int | None = None, sample: int = 0, round: int = 0) -> Thought:
    """A thought of the pair, right unless another label is given."""
    assert pair.label is not None
    return Thought(
        id=pair.id,
        sample=sample,
        round=round,
        premise=pair.premise,
        hypothesis=pair.hypothesis,
        thought_process=f"thought {sample}.{round} of {pair.id}",
        predicted_label=pair.label if predicted_label is None else predicted_label,
        true_label=pair.label,
    )


def reflection(pair: Example, round: int = 0) -> Reflection:
    assert pair.label is not None
    return Reflection(
        id=pair.id,
        round=round,
        premise=pair.premise,
        hypothesis=pair.hypothesis,
        true_label=pair.label,
        thought_process="first",
        error_analysis="E",
        improved_thought_process=f"improved {round} of {pair.id}",
        reflected_label=pair.label,
    )


WRONG = PAIRS[::3]
THOUGHTS = [thought(pair, 1 - pair.label if pair in WRONG else None) for pair in PAIRS]  # type: ignore[operator]
REFLECTIONS = [reflection(pair) for pair in WRONG]
SCORED: list[Any] = [
    *(Score(id=pair.id, score=2 + (index % 3)) for index, pair in enumerate(PAIRS[:4])),
    thought(PAIRS[4], round=1),
    Score(id="p4", round=1, score=5),
    Score(id="p6", target="reflection", score=1),
    reflection(PAIRS[6], round=1),
    Score(id="p6", target="reflection", round=1, score=4),
]


def jsonl(path: Path, records: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(to_json_dict(record)) + "\n" for record in records))
    return path


def pairs_csv(folder: Path, pairs: Sequence[Example] = PAIRS) -> Path:
    path = folder / "train.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "premise", "hypothesis", "label"])
        rows.writerows([pair.id, pair.premise, pair.hypothesis, pair.label] for pair in pairs)
    return path


def files(
    folder: Path,
    thoughts: Sequence[Any] = THOUGHTS,
    reflections: Sequence[Any] = REFLECTIONS,
    scored: Sequence[Any] = SCORED,
) -> TextFiles:
    return TextFiles(
        thoughts=jsonl(folder / "thoughts.jsonl", thoughts),
        reflections=jsonl(folder / "reflections.jsonl", reflections),
        scores=jsonl(folder / "scores.jsonl", scored),
    )


def put_together(parts: Sequence[JoinedTexts]) -> JoinedTexts:
    return JoinedTexts(
        examples=[each for part in parts for each in part.examples],
        thoughts=[each for part in parts for each in part.thoughts],
        reflections=[each for part in parts for each in part.reflections],
        scores=[each for part in parts for each in part.scores],
    )


def in_any_order(joined: JoinedTexts) -> tuple[set[Any], ...]:
    """Provenances hold dictionaries, which have no hash: the texts' representations have."""
    kinds = (joined.examples, joined.thoughts, joined.reflections, joined.scores)
    return tuple(set(map(repr, kind)) for kind in kinds)


# -------------------------------------------------------------------- PairsFile


def test_a_pairs_file_gives_its_pairs_as_often_as_asked(tmp_path: Path) -> None:
    file = PairsFile(pairs_csv(tmp_path))
    assert (list(file), list(file), len(file), file.is_labelled) == (PAIRS, PAIRS, 10, True)
    assert [line for line, _ in file.numbered()] == list(range(2, 12))


def test_a_pairs_file_reads_its_labels_through_the_map(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("premise,hypothesis,label\nP,H,yes\nQ,H,no\n")
    assert [pair.label for pair in PairsFile(path, label_map={"yes": 1, "no": 0})] == [1, 0]
    with pytest.raises(DataError, match="found the labels 'yes', 'no', expected 0 or 1"):
        PairsFile(path)


def test_unlabelled_pairs_are_known_as_such(tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    path.write_text("premise,hypothesis\nP,H\n")
    assert not PairsFile(path).is_labelled


def test_a_change_between_two_walks_is_an_error(tmp_path: Path) -> None:
    file = PairsFile(pairs_csv(tmp_path))
    list(file)
    pairs_csv(tmp_path, PAIRS[:-1])
    with pytest.raises(DataError) as raised:
        list(file)
    assert str(raised.value) == (
        f"{file.path}: found another content than a moment ago, "
        "expected a file that stays as it is while a command works on it"
    )
    file.path.unlink()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        list(file)


def test_two_ids_that_are_alike_on_one_line_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    row = {"id": "a", "premise": "P", "hypothesis": "H"}
    path.write_text(json.dumps([row, row]))
    with pytest.raises(DataError, match=r"pairs\.json:1: found the id 'a' again, after line 1, expected"):
        PairsFile(path)


def test_ids_made_from_content_stay_apart_from_all_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = content_id("P", "H")
    path = tmp_path / "train.csv"
    # The first row's made id is a given one further below, and so is the first free number.
    path.write_text(f"id,premise,hypothesis\n,P,H\n,P,H\n{base},Q,H\n{base}-2,R,H\n,S,H\n,S,H\n")
    with caplog.at_level(logging.INFO, logger=pairs_module.__name__):
        ids = [pair.id for pair in PairsFile(path)]
    other = content_id("S", "H")
    assert ids == [f"{base}-3", f"{base}-4", base, f"{base}-2", other, f"{other}-2"]
    assert caplog.messages == [f"{path}: 2 pairs come more than once and were kept"]


def test_many_mixed_ids_come_out_as_naming_them_one_by_one_would(tmp_path: Path) -> None:
    chosen = random.Random(0)
    rows = [(chosen.choice(["", f"own-{i}"]), f"P{chosen.randrange(40)}") for i in range(300)]
    path = tmp_path / "train.csv"
    path.write_text("id,premise,hypothesis\n" + "".join(f"{id},{premise},H\n" for id, premise in rows))
    taken = {id for id, _ in rows if id}
    expected = []
    for id, premise in rows:
        base, number = content_id(premise, "H"), 1
        name = id or base
        while not id and name in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(name)
        expected.append(name)
    assert [pair.id for pair in PairsFile(path)] == expected
    assert [pair.id for pair in read_examples(path)] == expected


# ---------------------------------------------------------------- joined_chunks


@pytest.mark.parametrize("size", [1, 2, 3, 10, 100])
def test_chunks_together_are_what_reading_the_whole_gives(
    tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    texts = files(tmp_path)
    with caplog.at_level(logging.INFO, logger=streaming.__name__):
        parts = list(joined_chunks(PairsFile(pairs_csv(tmp_path)), texts, size=size))
    assert [len(part.examples) for part in parts][:-1] == [size] * (len(parts) - 1)
    assert len(parts) == -(-len(PAIRS) // size)
    together, whole = put_together(parts), read_joined(PAIRS, texts)
    assert in_any_order(together) == in_any_order(whole)
    assert together.examples == PAIRS
    assert [each for each in together.thoughts if not each.round] == THOUGHTS
    assert caplog.messages == []


def test_every_kind_of_text_is_read(tmp_path: Path) -> None:
    joined = read_joined(PAIRS, files(tmp_path))
    assert joined.thoughts == [*THOUGHTS, thought(PAIRS[4], round=1)]
    assert joined.reflections == [*REFLECTIONS, reflection(PAIRS[6], round=1)]
    assert joined.scores == [record for record in SCORED if isinstance(record, Score)]


def test_a_chunk_holds_its_own_pairs_texts_and_no_others(tmp_path: Path) -> None:
    two_samples = [thought(pair, sample=sample) for pair in PAIRS[2:7] for sample in (1, 0)]
    parts = list(joined_chunks(PAIRS, TextFiles(thoughts=jsonl(tmp_path / "t.jsonl", two_samples)), size=4))
    assert [[each.id for each in part.thoughts] for part in parts] == [
        ["p2", "p2", "p3", "p3"],
        ["p4", "p4", "p5", "p5", "p6", "p6"],
        [],
    ]


def test_pairs_alone_come_in_chunks_too() -> None:
    parts = list(joined_chunks(PAIRS, TextFiles(), size=6))
    assert [(len(part.examples), part.thoughts, part.scores) for part in parts] == [(6, [], ()), (4, [], ())]


@pytest.mark.parametrize("kind", ["thoughts", "reflections", "scored"])
def test_a_file_in_another_order_is_read_whole(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    records = {"thoughts": THOUGHTS, "reflections": REFLECTIONS, "scored": SCORED[:4]}
    texts = files(tmp_path, **{**records, kind: list(reversed(records[kind]))})
    with caplog.at_level(logging.INFO, logger=streaming.__name__):
        (part,) = joined_chunks(PairsFile(pairs_csv(tmp_path)), texts, size=3)
    assert part == read_joined(PAIRS, texts)
    name = {"scored": "scores"}.get(kind, kind)
    assert caplog.messages == [
        f"{tmp_path / name}.jsonl: not in the pairs' order, so the files are read whole"
    ]


def test_order_within_a_chunk_does_not_matter(tmp_path: Path) -> None:
    texts = TextFiles(thoughts=jsonl(tmp_path / "t.jsonl", list(reversed(THOUGHTS))))
    (part,) = joined_chunks(PAIRS, texts, size=10)
    assert part.thoughts == list(reversed(THOUGHTS))
    assert len(list(joined_chunks(PAIRS[:9], TextFiles(), size=3))) == 3


def test_texts_with_ids_of_another_numbering_find_their_pairs_by_content(tmp_path: Path) -> None:
    # The numbers are ids of pairs too, but of other ones: each thought's own text decides.
    renumbered = [{**to_json_dict(each), "id": f"p{9 - index}"} for index, each in enumerate(THOUGHTS)]
    path = tmp_path / "thoughts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in reversed(renumbered)))
    (part,) = joined_chunks(PAIRS, TextFiles(thoughts=path), size=3)
    assert part.thoughts == list(reversed(THOUGHTS))


def test_texts_without_ids_are_in_step_where_the_pairs_have_none(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("premise,hypothesis,label\n" + "".join(f"P{i},H,{i % 2}\n" for i in range(5)))
    fixed = {"hypothesis": "H", "thought_process": "T", "predicted_label": 1}
    rows = [{"premise": f"P{i}", **fixed} for i in range(5)]
    path = tmp_path / "thoughts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = list(joined_chunks(PairsFile(pairs), TextFiles(thoughts=path), size=2))
    assert [[each.premise for each in part.thoughts] for part in parts] == [
        ["P0", "P1"],
        ["P2", "P3"],
        ["P4"],
    ]


def test_a_text_of_no_pair_is_an_error_with_its_line(tmp_path: Path) -> None:
    stranger = Example(id="z", premise="Z", hypothesis="H", label=0)
    texts = TextFiles(thoughts=jsonl(tmp_path / "t.jsonl", [*THOUGHTS[:2], thought(stranger)]))
    with pytest.raises(DataError, match=r"t\.jsonl:3: found a thought of pair 'z', which is not among"):
        list(joined_chunks(PAIRS, texts, size=2))


def test_a_broken_line_is_an_error_before_the_first_chunk(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "t.jsonl", THOUGHTS)
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(DataError, match=r"t\.jsonl:11: found no JSON"):
        next(joined_chunks(PAIRS, TextFiles(thoughts=path), size=2))


def test_a_thoughts_file_without_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.jsonl: found no rows, expected a thought on each line"):
        next(joined_chunks(PAIRS, TextFiles(thoughts=jsonl(tmp_path / "t.jsonl", []))))


def test_what_joining_dropped_is_told_once_for_the_whole_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mislabelled = [{**to_json_dict(each), "true_label": 1 - each.true_label} for each in THOUGHTS]  # type: ignore[operator]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n{json.dumps(row)}\n" for row in mislabelled))
    wrong = [{**to_json_dict(each), "reflected_label": 1 - each.reflected_label} for each in REFLECTIONS]
    reflections = tmp_path / "r.jsonl"
    reflections.write_text("".join(json.dumps(row) + "\n" for row in wrong))
    with caplog.at_level(logging.INFO, logger="nlicot"):
        parts = list(joined_chunks(PAIRS, TextFiles(thoughts=path, reflections=reflections), size=2))
    assert put_together(parts).thoughts == THOUGHTS
    assert caplog.messages == [
        f"{path}: dropped 10 identical repetitions",
        f"{path}: 20 true labels differ from their pairs'; took the pairs'",
        f"{reflections}: skipped 4 reflections that miss the true label",
    ]


# -------------------------------------------------------------------- TextFiles


def test_files_are_taken_as_far_as_they_are_there(tmp_path: Path) -> None:
    thoughts, reflections, scores = (tmp_path / name for name in ("t.jsonl", "r.jsonl", "s.jsonl"))
    assert TextFiles.found(thoughts, reflections, scores, needed=()) == TextFiles()
    missing = TextFiles.found(thoughts, reflections, scores, needed={thoughts})
    assert missing == TextFiles(thoughts=thoughts)
    with pytest.raises(DataError, match=r"t\.jsonl: no such file"):
        read_joined(PAIRS, missing)
    thoughts.touch()
    scores.touch()
    found = TextFiles.found(thoughts, reflections, scores, needed={scores})
    assert found == TextFiles(thoughts=thoughts, scores=scores)
    with pytest.raises(DataError, match=r"r\.jsonl: found no such file, expected JSON lines of reflections"):
        TextFiles.found(thoughts, reflections, scores, needed={reflections})


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a process's peak is not told here")
def test_memory_does_not_grow_with_the_number_of_pairs(tmp_path: Path) -> None:
    peaks_kb = []
    for num in (10_000, 50_000):
        pairs = [Example(id=f"p{i}", premise=f"P{i}" * 20, hypothesis="H", label=i % 2) for i in range(num)]
        folder = tmp_path / f"{num}"
        folder.mkdir()
        path, thoughts = (
            pairs_csv(folder, pairs),
            jsonl(folder / "t.jsonl", [thought(pair) for pair in pairs]),
        )
        code = (
            "import re; from pathlib import Path; from nlicot.data.streaming import *\n"
            f"files = TextFiles(thoughts=Path({str(thoughts)!r}))\n"
            f"chunks = joined_chunks(PairsFile(Path({str(path)!r})), files)\n"
            "print(sum(len(chunk.thoughts) for chunk in chunks))\n"
            "print(re.search(r'VmHWM:\\s*(\\d+) kB', Path('/proc/self/status').read_text())[1])"
        )
        finished = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        num_read, peak_kb = map(int, finished.stdout.split())
        assert num_read == num
        peaks_kb.append(peak_kb)
    assert peaks_kb[1] - peaks_kb[0] < 8 * 1024
