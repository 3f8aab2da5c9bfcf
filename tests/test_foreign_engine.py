"""A format and an engine from a plugin, served by a real daemon, without MindSpore in any process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests import toy
from tests.support import RawClient
from tests.toy_networks import NETWORKS

if TYPE_CHECKING:
    from benchmarks.daemon import Daemon


def test_it_is_small() -> None:
    assert len(Path(toy.__file__).read_text(encoding="utf-8").splitlines()) < 150
    assert len(toy.FAMILIES) == 3


def test_every_cut_is_exact_and_mindspore_is_nowhere(server: Daemon, cache: Path) -> None:
    code = f"""
        import sys
        import numpy as np
        from loadpart_device import OffloadClient
        from tests.support import inputs_for

        settings = dict(threads=1, hedge=False, cache={str(cache)!r})
        for name in {list(NETWORKS)}:
            with OffloadClient("{server.target}", name, policy="local", **settings) as client:
                inputs = inputs_for(client.graph, client.graph.smallest_batch)
                expected = client.infer(*inputs).outputs
                for cut in client.graph.cuts[:-1]:
                    client.policy = cut.index
                    result = client.infer(*inputs)
                    assert result.plan.location == ("split" if cut.index else "offload"), result.plan.reason
                    for got, want in zip(result.outputs, expected, strict=True):
                        np.testing.assert_array_equal(got, want)
                    print(name, cut.index)
        assert "mindspore" not in sys.modules
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == 12 + 4 + 3 + 4
    daemon = psutil.Process(server.process.pid)
    for process in (daemon, *daemon.children(recursive=True)):
        assert "mindspore" not in Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8")
    assert len(daemon.children()) == 1, "the daemon has one worker"


def test_the_server_names_format_and_engine(server: Daemon) -> None:
    with RawClient(server.target) as raw:
        assert {(info.format, info.engine) for info in raw.models().values()} == {("toy", "toy 1, 1 thread")}


def test_a_plugin_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "x.toy").write_text("{}")
    ended = subprocess.run(
        [sys.executable, "-m", "loadpart_edge", "models", "--store", str(tmp_path)],
        env=os.environ | {"LOADPART_PLUGINS": "nothing.at_all"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "LOADPART_PLUGINS: cannot import 'nothing.at_all'" in ended.stderr
