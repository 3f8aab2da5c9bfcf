"""What is special about MindSpore: its networks, its protobuf modules, its exit."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pytest

from loadpart_device import OffloadClient
from tests.networks import SERVABLE
from tests.support import inputs_for, run_program

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.daemon import Daemon


def run_code(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", SERVABLE)
def test_every_cut_gives_what_the_device_computes_alone(mindspore_server: Daemon, cache: Path, name: str) -> None:
    with OffloadClient(mindspore_server.target, name, threads=1, cache=cache, policy="local") as client:
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


@pytest.mark.parametrize(
    "imports",
    [
        "from loadpart_device import OffloadClient; import mindspore",
        "import mindspore; from loadpart_device import OffloadClient",
    ],
)
def test_an_application_may_import_mindspore_itself(mindspore_server: Daemon, cache: Path, imports: str) -> None:
    """Before the SDK and after it: two protobuf runtimes in a process crash the interpreter."""
    ended = run_code(f"""
        {imports}
        import numpy as np
        with OffloadClient("{mindspore_server.target}", "tiny", threads=1, cache="{cache}", policy=3) as client:
            print(client.infer(np.zeros((1, 32, 32, 3), np.uint8)).plan.location)
        print(mindspore.ops.relu(mindspore.Tensor([-1.0, 2.0])).asnumpy().sum())
    """)
    assert ended.stdout == "split\n2.0\n", ended.stderr
    assert ended.returncode == 0


@pytest.mark.parametrize("closing", ["client.close()", "pass", "raise SystemExit(3)"])
def test_a_program_ends_without_a_sound(mindspore_server: Daemon, cache: Path, closing: str) -> None:
    ended = run_code(f"""
        import numpy as np
        from loadpart_device import OffloadClient
        client = OffloadClient("{mindspore_server.target}", "tiny", threads=1, cache="{cache}", policy=3)
        print(client.infer(np.zeros((1, 32, 32, 3), np.uint8)).output.shape)
        {closing}
    """)
    assert ended.stdout == "(1, 10)\n"
    assert ended.stderr == ""
    assert ended.returncode == (3 if "SystemExit" in closing else 0)


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no network 'nothing' in the zoo: expected one of alexnet"),
        (["squeezenet", "--checkpoint", "/nonexistent.ckpt"], "no checkpoint at /nonexistent.ckpt"),
        (["squeezenet", "--checkpoint", __file__], "does not fit the network"),
    ],
)
def test_export_says_what_is_wrong(tmp_path: Path, arguments: list[str], message: str) -> None:
    ended = run_program("loadpart-edge", "export", *arguments, "--store", str(tmp_path))
    assert ended.returncode == 1
    assert message in ended.stderr
    assert list(tmp_path.iterdir()) == []
