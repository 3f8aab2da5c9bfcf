"""What becomes of a client, its engine and its application when the process ends, forks, or gets a signal."""

from __future__ import annotations

import signal
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from loadpart_common.engines.base import EngineSetup
from loadpart_common.engines.executor import EngineExecutor
from loadpart_device import ClientClosedError, ModelError, OffloadClient, OffloadError
from tests.support import code, eventually, inputs_for, run_all
from tests.toy import ToyEngine

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.daemon import Daemon

IMAGE = np.zeros((1, 32, 32, 3), np.uint8)


def program(server: Daemon, cache: Path, rest: str, policy: str = "3") -> list[str]:
    """The command that runs a program with an image and a function that makes a client."""
    start = f"""
        import os, signal, sys, threading, time
        import numpy as np
        from loadpart_device import OffloadClient, OffloadError

        image = np.zeros((1, 32, 32, 3), np.uint8)

        def connect():
            return OffloadClient("{server.target}", "tiny", threads=1, cache="{cache}", policy={policy})
    """
    return code(textwrap.dedent(start) + textwrap.dedent(rest))


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    (ended,) = run_all(command)
    return ended


INFER_FOREVER = """
    client = connect()
    done = threading.Semaphore(0)
    def infer():
        try:
            while True:
                client.infer(image)
                done.release()
        except OffloadError:
            pass
    threads = [threading.Thread(target=infer, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        done.acquire()
"""

BUILD = """
    client = connect()
    client.infer(image)
    for cut in client.graph.cuts:
        client.policy = cut.index
"""


@pytest.mark.slow
def test_a_program_may_end_at_any_time_without_a_sound(mindspore_server: Daemon, mindspore_cache: Path) -> None:
    endings = {
        "client = connect()": (0, ""),
        "client = connect()\nraise ValueError('of the application')": (1, "ValueError: of the application\n"),
        INFER_FOREVER + "    sys.exit(3)": (3, ""),
        BUILD: (0, ""),
    }
    programs = [program(mindspore_server, mindspore_cache, ending) for ending in endings]
    for ended, ending, (returncode, message) in zip(run_all(*programs), endings, endings.values(), strict=True):
        assert ended.returncode == returncode, (ending, ended.stderr)
        assert ended.stderr.count("\n") <= 3, ended.stderr  # the application's own traceback
        assert ended.stderr.endswith(message), ended.stderr
        assert bool(ended.stderr) == bool(message), ended.stderr


FORK = """
    def attempt(function, *arguments):
        try:
            print(type(function(*arguments)).__name__)
        except OffloadError as error:
            print(type(error).__name__, str(error).partition(":")[0])

    def use_in_child():
        attempt(client.infer, image)
        attempt(client.wait_ready)
        attempt(client.network_changed)
        attempt(connect)
        client.close()
        client.__exit__()
        sys.stdout.flush()

    client = connect()
    client.infer(image)
    child = os.fork()
    if not child:
        use_in_child()
        sys.exit(7)
    print("exit code", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

    import multiprocessing
    process = multiprocessing.get_context("fork").Process(target=use_in_child)
    process.start()
    process.join()
    print("exit code", process.exitcode)
    attempt(client.infer, image)
    client.close()
    attempt(connect)
"""


@pytest.mark.parametrize("engine", ["toy", pytest.param("mindspore", marks=pytest.mark.slow)])
def test_a_client_does_not_survive_a_fork_and_the_parent_goes_on(request: pytest.FixtureRequest, engine: str) -> None:
    names = ("server", "cache") if engine == "toy" else ("mindspore_server", "mindspore_cache")
    ended = run(program(*map(request.getfixturevalue, names), FORK))
    in_child = [
        *["ClientClosedError clients do not survive a fork"] * 3,
        "SettingsError this process is a fork of one that had a client, and cannot have one",
    ]
    assert ended.stdout.splitlines() == [
        *in_child, "exit code 7", *in_child, "exit code 0", "Result", "OffloadClient",
    ], ended.stderr  # fmt: skip
    assert (ended.stderr, ended.returncode) == ("", 0)


def test_the_child_of_a_process_without_clients_may_make_one(server: Daemon, cache: Path) -> None:
    child = """
        child = os.fork()
        if not child:
            print(connect().infer(image).plan.location, flush=True)
            sys.exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        print(connect().infer(image).plan.location)
    """
    ended = run(program(server, cache, child))
    assert ended.stdout == "split\n0\nsplit\n", ended.stderr


@pytest.mark.slow
def test_an_application_may_have_used_mindspore_before(mindspore_server: Daemon, mindspore_cache: Path) -> None:
    used_before = """
        import logging
        import mindspore
        logging.basicConfig(level="WARNING", stream=sys.stdout, format="%(message)s")
        relu = lambda: print(mindspore.ops.relu(mindspore.Tensor([-1.0, 2.0])).asnumpy().sum())
        relu()
        with connect() as client:
            client.wait_ready()
            print(client.infer(image).plan.location)
            relu()
    """
    ended = run(program(mindspore_server, mindspore_cache, used_before))
    before, warning, *after = ended.stdout.splitlines()
    assert (before, after) == ("2.0", ["split", "2.0"])
    assert warning.startswith("MindSpore was used in this process before the engine was started: results may differ")
    assert (ended.stderr, ended.returncode) == ("", 0)


class BrokenEngine(ToyEngine):
    name = "broken"
    needs_own_thread = True

    def __init__(self, *_: object, **__: object) -> None:
        raise RuntimeError("of the engine")


class BrokenSharedEngine(BrokenEngine):
    name = "broken-shared"
    needs_own_thread = False


@pytest.mark.parametrize("engine", [BrokenEngine, BrokenSharedEngine])
def test_an_engine_that_cannot_start_tells_everyone(engine: type[BrokenEngine]) -> None:
    executor = EngineExecutor.acquire(EngineSetup(engine, 1), memory_limit_bytes=1 << 20)
    told: list[str] = []
    message = r"the engine broken.* does not start: RuntimeError\('of the engine'\)"
    executor.when_started(lambda: told.append("the start has ended"))
    calls: list[Callable[[], object]] = [
        lambda: executor.run(lambda _: None),
        lambda: executor.submit(lambda _: None).result(5),
    ]
    with ThreadPoolExecutor(4) as pool:
        for waiting in [pool.submit(call) for call in calls * 2]:
            with pytest.raises(ModelError, match=message):
                waiting.result(5)
    executor.release()
    assert told == ["the start has ended"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(f"loadpart-{engine.name}")]


@pytest.mark.slow
def test_signals_are_the_applications(mindspore_server: Daemon, mindspore_cache: Path) -> None:
    interrupted = """
        client = connect()
        inferences = 0
        def press():
            while inferences < 100:
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)
        try:
            client.infer(image)
            threading.Thread(target=press).start()
            while True:
                client.infer(image)
                inferences += 1
        except KeyboardInterrupt:
            print("interrupted")
        finally:
            print("finally", flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
    """
    handled = """
        signal.signal(signal.SIGTERM, lambda *_: print("handled"))
        signal.signal(signal.SIGINT, lambda *_: print("handled too"))
        with connect() as client:
            client.infer(image)
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
    """
    expected = {
        interrupted: ("interrupted\nfinally\n", -signal.SIGTERM),
        handled: ("handled\nhandled too\n", 0),
    }
    commands = [program(mindspore_server, mindspore_cache, each, "'local'") for each in expected]
    for ended, (output, returncode) in zip(run_all(*commands), expected.values(), strict=True):
        assert (ended.stdout, ended.stderr, ended.returncode) == (output, "", returncode)


@pytest.mark.parametrize(
    ("part", "method", "expected"),
    [
        ("_planner", "world", "ClientClosedError"),
        ("_local", "head", "ClientClosedError"),
        ("_fleet.first.connection", "start", "ClientClosedError"),
        ("_fleet.first", "reply_received", "split"),
    ],
    ids=["before the decision", "before the head", "before the request", "after the reply"],
)
def test_closing_within_an_inference(
    server: Daemon, cache: Path, tmp_path: Path, part: str, method: str, expected: str
) -> None:
    client = OffloadClient(
        server.target, "tiny", threads=1, cache=cache, policy=3, decision_log=tmp_path / "decisions.jsonl"
    )
    assert client.infer(IMAGE).plan.location == "split"
    owner: Any = client
    for name in part.split("."):
        owner = getattr(owner, name)
    original = getattr(owner, method)

    def close_first(*arguments: object, **options: object) -> object:
        client.close()
        return original(*arguments, **options)

    setattr(owner, method, close_first)
    try:
        got = client.infer(IMAGE).plan.location
    except OffloadError as error:
        got = type(error).__name__
    assert got == expected


@pytest.mark.parametrize("policy", ["local", "offload", 3])
def test_closing_while_other_threads_infer(server: Daemon, cache: Path, policy: str | int) -> None:
    for _ in range(5):
        client = OffloadClient(server.target, "tiny", threads=1, cache=cache, policy=policy)
        inputs = inputs_for(client.graph)
        inferred = threading.Semaphore(0)

        def infer_until_closed(client: OffloadClient, inputs: list[Any], inferred: threading.Semaphore) -> str:
            try:
                while True:
                    client.infer(*inputs)
                    inferred.release()
            except Exception as error:
                return type(error).__name__

        with ThreadPoolExecutor(4) as pool:
            threads = [pool.submit(infer_until_closed, client, inputs, inferred) for _ in range(4)]
            for _ in range(8):
                assert inferred.acquire(timeout=10)
            client.close()
            assert [thread.result(10) for thread in threads] == ["ClientClosedError"] * 4


def test_waiting_ends_when_the_client_is_closed(server: Daemon, cache: Path) -> None:
    client = OffloadClient(server.target, "tiny", threads=1, cache=cache, policy=3)
    hold, begun = threading.Event(), threading.Event()

    def occupy(_: object) -> None:
        begun.set()
        hold.wait(10)

    client._local._executor.submit(occupy)
    assert begun.wait(10)
    client.policy = 5
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.wait_ready)
        eventually(lambda: any(build._condition._waiters for build in client._local._builds), "waiting")
        closing = threading.Thread(target=client.close)
        closing.start()
        with pytest.raises(ClientClosedError, match="meanwhile"):
            waiting.result(10)
        hold.set()
        closing.join()
    with pytest.raises(ClientClosedError):
        client.policy = 3


def test_the_exit_waits_for_an_engine_that_starts() -> None:
    """Whatever it registers for the exit is then called, and nothing of it is left to run during the tear-down."""
    starting = """
        import atexit, sys, time
        from loadpart_common.engines.base import EngineSetup
        from loadpart_common.engines.executor import EngineExecutor
        from tests.toy import ToyEngine

        class SlowEngine(ToyEngine):
            name = "slow"
            needs_own_thread = True
            def __init__(self, *_, **__):
                time.sleep(0.5)
                atexit.register(print, "the engine's end")

        executor = EngineExecutor.acquire(EngineSetup(SlowEngine, 1), memory_limit_bytes=1 << 20)
        executor.when_started(lambda: atexit.register(print, "the user's end"))
        print("end of the program", flush=True)
    """
    ended = run([sys.executable, "-c", textwrap.dedent(starting)])
    assert ended.stdout.splitlines() == ["end of the program", "the user's end", "the engine's end"], ended.stderr
