"""Behaviour that only MindSpore has: its networks, its protobuf modules, its exit."""

from __future__ import annotations

import json
import signal
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
from benchmarks.daemon import BIN

from loadpart_device import OffloadClient
from tests.networks import SERVABLE
from tests.support import RawClient, code, inputs_for, run_all, run_program

if TYPE_CHECKING:
    from benchmarks.daemon import Daemon


@pytest.mark.parametrize("name", SERVABLE)
def test_every_cut_gives_what_the_device_computes_alone(
    mindspore_server: Daemon, mindspore_cache: Path, name: str
) -> None:
    with OffloadClient(
        mindspore_server.target, name, threads=1, hedge=False, cache=mindspore_cache, policy="local"
    ) as client:
        inputs = inputs_for(client.graph, client.graph.smallest_batch)
        expected = client.infer(*inputs)
        assert expected.plan.location == "local"
        for cut in client.graph.cuts:
            client.policy = cut.index
            result = client.infer(*inputs)
            last = client.graph.layer_count
            where = "local" if cut.index == last else "offload" if cut.index == 0 else "split"
            assert (result.plan.cut, result.plan.location) == (cut.index, where)
            for got, want in zip(result.outputs, expected.outputs, strict=True):
                np.testing.assert_array_equal(got, want)


def test_the_workers_are_confined(mindspore_server: Daemon) -> None:
    """With all of MindSpore's threads, and it still did what the other tests of this file ask for."""
    for worker in psutil.Process(mindspore_server.process.pid).children():
        threads = list(Path(f"/proc/{worker.pid}/task").iterdir())
        assert len(threads) > 1
        assert all("\nSeccomp:\t2\n" in (thread / "status").read_text() for thread in threads)


def test_a_worker_goes_on_ignoring_signals_after_its_engine_has_run(mindspore_server: Daemon) -> None:
    with RawClient(mindspore_server.target) as client:
        client.infer([np.zeros((1, 32, 32, 3), np.uint8)], model="tiny", digest=client.models()["tiny"].digest, cut=0)
    workers = psutil.Process(mindspore_server.process.pid).children()
    assert workers
    for worker in workers:
        lines = Path(f"/proc/{worker.pid}/status").read_text(encoding="ascii").splitlines()
        status = dict(line.split(":", 1) for line in lines)
        for number in (signal.SIGINT, signal.SIGTERM):
            assert int(status["SigIgn"], 16) >> (number - 1) & 1, f"{number.name} is no longer ignored"


@pytest.mark.slow
def test_an_application_may_import_mindspore_itself(mindspore_server: Daemon, mindspore_cache: Path) -> None:
    """It may do so before or after importing the SDK; two protobuf runtimes in one process would crash it."""
    program = f"""
        import numpy as np
        settings = dict(threads=1, hedge=False, cache="{mindspore_cache}", policy=3)
        with OffloadClient("{mindspore_server.target}", "tiny", **settings) as client:
            print(client.infer(np.zeros((1, 32, 32, 3), np.uint8)).plan.location)
        print(mindspore.ops.relu(mindspore.Tensor([-1.0, 2.0])).asnumpy().sum())
    """
    imports = ["from loadpart_device import OffloadClient", "import mindspore"]
    for ended in run_all(*(code("\n".join([*order, textwrap.dedent(program)])) for order in (imports, imports[::-1]))):
        assert ended.stdout == "split\n2.0\n", ended.stderr
        assert ended.returncode == 0


@pytest.mark.slow
def test_a_program_ends_without_a_sound(mindspore_server: Daemon, mindspore_cache: Path) -> None:
    program = f"""
        import numpy as np
        from loadpart_device import OffloadClient
        settings = dict(threads=1, hedge=False, cache="{mindspore_cache}", policy=3)
        client = OffloadClient("{mindspore_server.target}", "tiny", **settings)
        print(client.infer(np.zeros((1, 32, 32, 3), np.uint8)).output.shape)
    """
    endings = {"client.close()": 0, "pass": 0, "raise SystemExit(3)": 3}
    programs = [code(textwrap.dedent(program) + ending) for ending in endings]
    for ended, returncode in zip(run_all(*programs), endings.values(), strict=True):
        assert ended.stdout == "(1, 10)\n"
        assert ended.stderr == ""
        assert ended.returncode == returncode


def test_export_writes_a_network_that_can_be_served(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"thing {i}" for i in range(1000)))
    ended = run_program(
        "loadpart-edge", "export", "squeezenet", "--store", str(tmp_path / "store"), "--labels", str(labels)
    )
    assert ended.returncode == 0, ended.stderr
    manifest = json.loads((tmp_path / "store" / "squeezenet" / "manifest.json").read_text())
    assert manifest["labels"][999] == "thing 999"
    assert "GFLOP" in run_program("loadpart-edge", "models", "--store", str(tmp_path / "store")).stdout


def test_export_says_what_is_wrong(tmp_path: Path) -> None:
    cases = {
        ("nothing",): "no network 'nothing' in the zoo: expected one of alexnet",
        ("squeezenet", "--checkpoint", "/nonexistent.ckpt"): "no checkpoint at /nonexistent.ckpt",
        ("squeezenet", "--checkpoint", __file__): "does not fit the network",
    }
    export = [str(BIN / "loadpart-edge"), "export", "--store", str(tmp_path)]
    for ended, message in zip(run_all(*([*export, *case] for case in cases)), cases.values(), strict=True):
        assert ended.returncode == 1
        assert message in ended.stderr
    assert list(tmp_path.iterdir()) == []
