"""The cost of 40,000 and of 10 million pairs on 1, 8 and 64 GPUs: arithmetic on measured points.

    python benchmarks/scaling.py                        (the tables of docs/scaling.md)
    python benchmarks/scaling.py --gpu_hour 2.10 --examples_per_s 60 --pairs 250000 --gpus 1 4
    python benchmarks/scaling.py --write                (puts the default tables into docs/scaling.md)

Points come from `benchmarks/results/` and from the constants below. docs/scaling.md explains the formula.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

from circumstances import PROJECT

PAGE = PROJECT / "docs" / "scaling.md"
EXAMPLES_PER_S = 36.0
"""Training, one H100, Mistral 7B's shape in NF4: `training.md`, "On a GPU" (8,440 tokens/s)."""
EXAMPLES_AT_ONCE = 17
"""Of 235 tokens, in the 4,096 tokens at once of that measurement."""
ADAPTER_BYTES = 4 * 32 * 32 * sum(4096 + out for out in (4096, 1024, 1024, 4096))
"""float32 gradients of LoRA with r = 32 on q, k, v and o, in 32 layers."""
GPUS_PER_MACHINE = 8
FORMS = {"thoughts": "predict-bfloat16", "labels": "predict-label-only"}
"""The files with the speed of predictions of each form."""
TEACHER = "mistral-small-2603"
TEACHER_TOKENS = (441, 125)
"""Prompt and completion of one answer: `generate --dry_run` on the sample; configs/teacher.yaml."""


def results(name: str) -> Any:
    """Return a file of measured figures."""
    return json.loads((PROJECT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def speed_of(name: str, figure: str) -> float:
    """Return a figure of nlicot's first run in a benchmark."""
    return float(results(name)["runs"]["nlicot"][0][figure])


def predictions_per_example(form: str) -> float:
    """Return how many pairs are predicted in the time of one training example, measured on a CPU."""
    return speed_of(FORMS[form], "pairs_per_s") / speed_of("train", "examples_per_s")


def reading_s(num_pairs: int) -> float:
    """Return the time in which each process reads pairs and thoughts, and builds its examples."""
    return num_pairs * float(results("prepare")["seconds_550k"]) / 550_000


def encoding_s(num_pairs: int) -> float:
    """Return the time of encoding them, once."""
    last = results("encoding")["table"][-1]
    return num_pairs * float(last["first_s"]) / float(last["examples"])


def efficiency(num_gpus: int, settings: argparse.Namespace) -> float:
    """Return the part of a step that is not spent on summing gradients over GPUs."""
    within = num_gpus <= GPUS_PER_MACHINE
    gigabytes_per_s = settings.gb_per_s_within if within else settings.gb_per_s_between
    sent = 2 * (num_gpus - 1) / num_gpus * ADAPTER_BYTES
    step_s = EXAMPLES_AT_ONCE / settings.examples_per_s
    return step_s / (step_s + sent / (gigabytes_per_s * 1e9))


def cost_rows(settings: argparse.Namespace) -> Iterator[list[str]]:
    """Yield a row for each number of pairs and of GPUs."""
    yield ["pairs", "GPUs", "efficiency", "`fit`", "", "`predict`, thoughts", "", "`predict`, labels", ""]
    for num_pairs in settings.pairs:
        epochs = settings.epochs or (5 if num_pairs < 1_000_000 else 1)
        for num_gpus in settings.gpus:
            share = efficiency(num_gpus, settings)
            rate, start_s = settings.examples_per_s * num_gpus, reading_s(num_pairs)
            rates = [rate * share / epochs, *(rate * predictions_per_example(form) for form in FORMS)]
            times = [start_s + num_pairs / each for each in rates]
            cells = [f"{num_pairs:,}, {epochs} epoch{'s'[: epochs > 1]}", str(num_gpus), f"{share:.0%}"]
            for seconds in times:
                cells += [_duration(seconds), f"${seconds / 3600 * num_gpus * settings.gpu_hour:,.2f}"]
            yield [cell.replace("%", " %") for cell in cells]


def check_rows() -> Iterator[list[str]]:
    """Yield measured points that the same arithmetic predicts from smaller ones."""
    yield ["point", "predicted from", "predicted", "measured", "off by"]
    growth = {(row["command"], row["pairs"]): row["figures"] for row in results("growth")["rows"]}
    for command in ("predict", "audit", "report"):
        small, middle, large = (growth[command, size]["seconds"][0] for size in (1000, 10_000, 100_000))
        predicted = middle + (middle - small) / 9_000 * 90_000
        yield _checked(f"`{command}` of 100,000 pairs", "1,000 and 10,000", predicted, large)
    table = {row["examples"]: row["first_s"] for row in results("encoding")["table"]}
    yield _checked("encoding 100,000 examples", "10,000", 10 * table[10_000], table[100_000])
    small, large = (results("prepare")[f"seconds_{size}"] for size in ("55k", "550k"))
    yield _checked("`prepare` of 550,000 pairs", "55,000", 10 * small, large)


def _checked(point: str, source: str, predicted: float, measured: float) -> list[str]:
    off = f"{predicted / measured - 1:+.0%}".replace("%", " %")
    return [point, source, f"{predicted:.0f} s", f"{measured:.0f} s", off]


def other_rows(settings: argparse.Namespace) -> Iterator[list[str]]:
    """Yield what does not depend on the number of GPUs."""
    from nlicot.teacher.engine.pricing import load_prices

    prices = load_prices()
    yield ["pairs", f"a thought each, {TEACHER}", "batch API", "reading, each process", "encoding, once"]
    for num_pairs in settings.pairs:
        dollars = num_pairs * prices.models[TEACHER].cost_usd(*TEACHER_TOKENS)
        times = [_duration(seconds(num_pairs)) for seconds in (reading_s, encoding_s)]
        yield [f"{num_pairs:,}", f"${dollars:,.0f}", f"${dollars * prices.batch_discount:,.0f}", *times]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def table(rows: Iterator[list[str]]) -> str:
    """Format rows as Markdown."""
    header, *body = rows
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def tables(settings: argparse.Namespace) -> dict[str, str]:
    """Return the tables by their names on the page."""
    found = {"cost": cost_rows(settings), "other": other_rows(settings), "check": check_rows()}
    return {name: table(rows) for name, rows in found.items()}


def with_tables(page: str, found: dict[str, str]) -> str:
    """Return the page with its tables replaced."""
    for name, text in found.items():
        start, end = f"<!-- {name}: ", "<!-- end -->"
        before, _, after = page.partition(start)
        mark, _, after = after.partition("\n")
        page = f"{before}{start}{mark}\n{text}\n{end}{after.partition(end)[2]}"
    return page


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; without arguments, the page's assumptions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--pairs", type=int, nargs="+", default=[40_000, 10_000_000])
    add("--gpus", type=int, nargs="+", default=[1, 8, 64])
    add("--epochs", type=int, help="by default 5, and 1 from a million pairs on")
    add("--examples_per_s", type=float, default=EXAMPLES_PER_S, help="that one GPU trains")
    add("--gpu_hour", type=float, default=3.0, help="dollars, an assumption")
    add("--gb_per_s_within", type=float, default=100.0, help="between GPUs of a machine, an assumption")
    add("--gb_per_s_between", type=float, default=10.0, help="between machines, an assumption")
    add("--write", action="store_true", help="write the tables into docs/scaling.md")
    return parser.parse_args(args)


def main() -> None:
    """Print the tables, or write them."""
    settings = parse()
    found = tables(settings)
    if settings.write:
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    else:
        print("\n\n".join(found.values()))


if __name__ == "__main__":
    main()
