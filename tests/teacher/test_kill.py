"""SIGKILL at random moments of `generate`: the same file results, and no answered request is sent twice."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.commands import stop_at_signals
from tests.teacher.fake_server import FakeServer
from tests.time_limits import HANGS_S

NUM_PAIRS = 400
NUM_KILLS = 20
IN_FLIGHT = 8


def command(root: Path, server: FakeServer) -> list[str]:
    return [
        *(sys.executable, "-m", "nlicot", "generate", "--root", str(root), "--split", "train", "--yes"),
        *("--backend", "openai", "--server_url", server.url, "--model", "teacher"),
        *("--concurrency", str(IN_FLIGHT)),
    ]


def make_root(folder: Path) -> Path:
    (folder / "original_data").mkdir(parents=True)
    rows = [f"p{n},This is pair number {n}.,Pair {n} follows.,{n % 2}" for n in range(NUM_PAIRS)]
    path = folder / "original_data" / "train.csv"
    path.write_text("\n".join(["id,premise,hypothesis,label", *rows]) + "\n")
    return folder


def output(root: Path) -> bytes:
    return (root / "original_thoughts" / "train.jsonl").read_bytes()


@pytest.mark.slow
def test_twenty_kills_change_nothing_and_cost_at_most_the_requests_in_flight(tmp_path: Path) -> None:
    whole, killed = make_root(tmp_path / "whole"), make_root(tmp_path / "killed")
    with FakeServer(keep_seen=False) as server:
        subprocess.run(command(whole, server), check=True, capture_output=True)

    chance = random.Random(0)
    in_flight_at_kills = 0
    with FakeServer(delay_s=0.05, keep_seen=False) as server:
        num_kills = 0
        while num_kills < NUM_KILLS:
            before, answered, asked = server.num_requests, set(server.answered), Counter(server.counts)
            with subprocess.Popen(
                command(killed, server), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            ) as process:
                # From the first request on, so that the kill hits the work and not the imports.
                wanted = before + chance.randint(1, NUM_PAIRS // NUM_KILLS)
                while server.num_requests < wanted and process.poll() is None:
                    time.sleep(0.001)
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(chance.uniform(0, 0.05))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            num_kills += 1
            in_flight_at_kills += IN_FLIGHT
            # Of what had been answered, only what was in flight at the last kill is asked again.
            assert sum(server.counts[key] > asked[key] for key in answered) <= IN_FLIGHT
        finished = subprocess.run(command(killed, server), check=True, capture_output=True, text=True)

        asked_twice = {key: num for key, num in server.counts.items() if num > 1}
        print(f"{num_kills} kills, {server.num_requests} requests, {len(asked_twice)} keys asked twice")
        assert len(server.counts) == NUM_PAIRS
        assert sum(num - 1 for num in asked_twice.values()) <= in_flight_at_kills
    assert "in flight, possibly billed" in finished.stderr
    assert output(killed) == output(whole)


@pytest.mark.slow
def test_ctrl_c_waits_for_requests_in_flight(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    with FakeServer(delay_s=0.5) as server:
        with subprocess.Popen(
            command(root, server), stderr=subprocess.PIPE, text=True, preexec_fn=stop_at_signals
        ) as process:
            while server.num_requests < 2 * IN_FLIGHT:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=HANGS_S)
        assert process.returncode == 130
        assert "run the same command to continue" in errors
        # Every request that was sent was also read to its end.
        assert sum(server.answered.values()) == server.num_requests < NUM_PAIRS

        server.delay_s = 0.0
        subprocess.run(command(root, server), check=True, capture_output=True)
        assert max(server.counts.values()) == 1


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    with (
        FakeServer(delay_s=0.2) as server,
        subprocess.Popen(
            command(root, server), stderr=subprocess.PIPE, text=True, preexec_fn=stop_at_signals
        ) as process,
    ):
        while not server.answered:  # the first request goes alone
            assert process.poll() is None
            time.sleep(0.001)
        server.delay_s = HANGS_S
        while server.in_flight < IN_FLIGHT:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        while "stopping after the requests in flight" not in (line := process.stderr.readline()):
            assert line, "it ended at the first signal"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=HANGS_S)
        assert process.returncode == 130
        assert "nlicot: stopped; at once: requests in flight" in errors
