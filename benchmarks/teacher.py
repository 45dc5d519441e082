"""The teacher pipeline's rate compared with bare HTTP loops, and the time that resuming takes.

    .venv/bin/python benchmarks/teacher.py [--quick] [--json FILE]

A server on loopback (`tests/teacher/fake_server.py`, in its own process) answers every request after 50 ms.
The bare loops send the same bodies, with `httpx2` or Mistral's SDK, 64 at once, with the same timeout and
number of connections, and discard the answers; ours journals each request and answer, parses it, counts
tokens and cost, and keeps a tally. Ours begins with the list of models and with one request by itself, which
finds out the form of structured output: 2 % of the time here. Interleaved repeats, medians and ranges; the
processor's time is that of the client. Then: the proportion of an allowed rate that is used, and the time to
process a journal of 100,000 answers again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from nlicot.records import Example, Usage  # noqa: E402
from nlicot.teacher.backends.base import Reply, connect, endpoint  # noqa: E402
from nlicot.teacher.engine.journal import Journal  # noqa: E402
from nlicot.teacher.engine.scheduler import Phase, RunSettings, run_phases  # noqa: E402
from nlicot.teacher.prompt import PromptType, load_prompt  # noqa: E402
from nlicot.teacher.stages import GenerateStage, StageSettings  # noqa: E402

IN_FLIGHT = 64
DELAY_S = 0.05
MODEL = "teacher"
NUM_REQUESTS = 3000
TIMEOUT_S = 60
ALLOWED_PER_MINUTE = 3000


@contextlib.contextmanager
def server(*flags: str) -> Iterator[str]:
    """Start a server that answers after `DELAY_S`, and yield its address."""
    command = [sys.executable, "-m", "tests.teacher.fake_server", "--delay", str(DELAY_S), *flags]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().split()[-1])
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def pairs(num: int) -> Iterator[Example]:
    """Generate pairs of realistic length."""
    for number in range(num):
        yield Example(
            id=f"pair-{number}",
            premise=f"At stall {number} a vendor sold {number % 7 + 2} baskets of plums before it rained.",
            hypothesis=f"Somebody sold fruit at stall {number}.",
            label=number % 2,
        )


def stage_over(num: int, backend: str, url: str) -> GenerateStage:
    """Return the stage `generate` over `num` pairs."""
    return GenerateStage(
        examples=list(pairs(num)),
        endpoint=endpoint(backend, url),
        settings=StageSettings(model=MODEL),
        prompts={PromptType.INITIAL_GENERATION: load_prompt(PromptType.INITIAL_GENERATION)},
    )


def ours(num: int, backend: str, url: str, **settings: Any) -> float:
    """Return the seconds for `num` pairs through the whole pipeline."""
    stage = stage_over(num, backend, url)
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "generate.sqlite") as journal:
        options = {"timeout_s": TIMEOUT_S, "concurrency": IN_FLIGHT, "journal_folder": Path(folder)}
        connected = connect(backend, url, send_key=True, **options)
        report = run_phases(
            [Phase(tasks=stage.tasks)],
            stage="generate",
            backend=connected,
            models=[MODEL],
            journal=journal,
            settings=RunSettings(concurrency=IN_FLIGHT, **settings),
        )
        assert report.tally.num_finished == num, report.tally
        assert report.tally.num_failed == 0, report.tally
        return report.duration_s


def bare_http(num: int, url: str) -> float:
    """Return the seconds for the same bodies through an `httpx2` loop."""
    import httpx2

    bodies = [_body(request) for _, request, _ in stage_over(num, "openai", url).questions()]

    async def run() -> float:
        limits = httpx2.Limits(max_connections=IN_FLIGHT, max_keepalive_connections=IN_FLIGHT)
        async with httpx2.AsyncClient(limits=limits, timeout=TIMEOUT_S) as client:

            async def send(body: dict[str, Any]) -> None:
                answer = await client.post(f"{url}/v1/chat/completions", json=body)
                assert answer.json()["choices"][0]["message"]["content"]

            return await _through(bodies, send)

    return asyncio.run(run())


def bare_sdk(num: int, url: str) -> float:
    """Return the seconds for the same requests through a loop over the `mistralai` SDK."""
    from mistralai.client import Mistral

    bodies = [_body(request) for _, request, _ in stage_over(num, "mistral", url).questions()]

    async def run() -> float:
        import httpx2

        limits = httpx2.Limits(max_connections=IN_FLIGHT, max_keepalive_connections=IN_FLIGHT)
        async with httpx2.AsyncClient(limits=limits, timeout=TIMEOUT_S, follow_redirects=True) as http:
            client = Mistral(api_key="none", server_url=url, async_client=http)

            async def send(body: dict[str, Any]) -> None:
                answer = await client.chat.complete_async(**body)
                assert answer.choices[0].message

            return await _through(bodies, send)

    return asyncio.run(run())


async def _through(bodies: list[dict[str, Any]], send: Callable[[dict[str, Any]], Any]) -> float:
    waiting = iter(bodies)

    async def work() -> None:
        for body in waiting:
            await send(body)

    started = time.monotonic()
    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
    return time.monotonic() - started


def _body(request: Any) -> dict[str, Any]:
    return {
        "model": request.model,
        "messages": [dataclasses.asdict(message) for message in request.messages],
        "temperature": request.params["temperature"],
        "max_tokens": request.params["max_tokens"],
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": request.schema.name,
                "schema": request.schema.schema,
                "strict": True,
            },
        },
    }


def limited(seconds: float) -> dict[str, float]:
    """Return the proportion of an allowed rate that is used, and the number of 429s."""
    num = int(ALLOWED_PER_MINUTE / 60 * seconds)
    with server("--requests-per-minute", str(ALLOWED_PER_MINUTE)) as url:
        took = ours(num, "openai", url, requests_per_minute=ALLOWED_PER_MINUTE)
        num_429 = _statistics(url)["num_429"]
    # The last answer comes a delay after the last request was allowed.
    return {"used_rate": num / (took - DELAY_S) / (ALLOWED_PER_MINUTE / 60), "num_429": num_429}


def _statistics(url: str) -> dict[str, Any]:
    import httpx2

    found: dict[str, Any] = httpx2.get(f"{url}/statistics").json()
    return found


def resuming(num: int) -> dict[str, float]:
    """Return the seconds to process a journal of `num` answers again: resumed, and parsing all again."""
    content = json.dumps({"thought_process": "Plums are fruit. So it follows.", "predicted_label": 1})
    reply = Reply(
        text=content,
        finish_reason="stop",
        usage=Usage(prompt_tokens=200, completion_tokens=40),
        raw=json.dumps({"choices": [{"message": {"content": content}}], "created": 0}),
    )
    url = "http://127.0.0.1:9"
    stage = stage_over(num, "openai", url)
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "generate.sqlite") as journal:
        for _, request, _ in stage.questions():
            journal.save_reply(request.key(), reply, 0.0)
        took = {}
        for name in ("parsing", "resuming"):
            started = time.monotonic()
            asyncio.run(_run_through(stage, journal, num))
            took[name] = time.monotonic() - started
        return took


async def _run_through(stage: GenerateStage, journal: Journal, num: int) -> None:
    from nlicot.teacher.engine.pricing import Budget
    from nlicot.teacher.engine.rate_limiter import RateLimiter
    from nlicot.teacher.engine.scheduler import Scheduler

    backend: Any = endpoint("openai", "http://127.0.0.1:9")  # nothing is asked of it
    scheduler = Scheduler(backend, journal, RateLimiter(IN_FLIGHT), Budget(prices={}), stage="generate")
    await scheduler.run(stage.tasks())
    assert scheduler.tally.num_finished == num
    assert scheduler.tally.num_requests == 0


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a contestant."""

    seconds: float
    cpu_s: float


def interleaved(num: int, repeats: int) -> dict[str, list[Run]]:
    """Return the runs of each contestant, measured in turn."""
    os.environ["MISTRAL_API_KEY"] = "none"
    runs: dict[str, list[Run]] = {"bare http": [], "openai": [], "bare sdk": [], "mistral": []}
    with server() as url:
        contestants: dict[str, Callable[[], float]] = {
            "bare http": lambda: bare_http(num, url),
            "openai": lambda: ours(num, "openai", url),
            "bare sdk": lambda: bare_sdk(num, url),
            "mistral": lambda: ours(num, "mistral", url),
        }
        for contestant in contestants.values():
            contestant()  # imports, connections, the server's warm-up
        for _ in range(repeats):
            for name, contestant in contestants.items():
                started = time.process_time()
                seconds = contestant()
                runs[name].append(Run(seconds, time.process_time() - started))
    return runs


def main() -> None:
    """Measure, print a table, and write JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 repeats instead of 7")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    num, repeats = NUM_REQUESTS, 3 if options.quick else 7

    runs = interleaved(num, repeats)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("httpx2", "mistralai"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}")
    print(f"{num} requests, {IN_FLIGHT} in flight, answers after {DELAY_S * 1000:.0f} ms, {repeats} repeats")
    print(f"{'':<12}{'median s':>10}{'range s':>16}{'requests/s':>12}{'CPU ms/request':>16}")
    result: dict[str, Any] = {}
    for name, found in runs.items():
        seconds = [run.seconds for run in found]
        median, cpu_ms = (
            statistics.median(seconds),
            1000 * statistics.median(run.cpu_s for run in found) / num,
        )
        range_s = f"{min(seconds):.2f}-{max(seconds):.2f}"
        print(f"{name:<12}{median:>10.2f}{range_s:>16}{num / median:>12.0f}{cpu_ms:>16.2f}")
        result[f"{name.replace(' ', '_')}_cpu_ms"] = cpu_ms
    for name, bare in {"openai": "bare http", "mistral": "bare sdk"}.items():
        rates = [b.seconds / own.seconds for b, own in zip(runs[bare], runs[name], strict=True)]
        result[f"{name}_rate_of_bare"] = statistics.median(rates)
        result[f"{name}_rate_of_bare_low"], result[f"{name}_rate_of_bare_high"] = min(rates), max(rates)
    allowed = limited(10 if options.quick else 30)
    result["limited_used_rate"], result["limited_num_429"] = allowed["used_rate"], allowed["num_429"]
    took = resuming(100_000)
    result["resume_100k_s"], result["parse_100k_s"] = took["resuming"], took["parsing"]
    for name, value in result.items():
        print(f"{name:<24}{value:.3f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
