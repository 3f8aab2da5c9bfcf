"""A device with several servers: which one it chooses, what it does when one fails, and those that come and go."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from benchmarks.daemon import daemon, metric

from loadpart_common.errors import ModelMismatchError, ModelNotFoundError, SettingsError
from loadpart_common.planning.plan import PlanKey, Point
from loadpart_common.planning.plans import Plans
from loadpart_common.wire.credentials import NO_CREDENTIALS, Credentials
from loadpart_common.wire.endpoint import Endpoint
from loadpart_device import OffloadClient
from loadpart_device.deciding.policies import LoadAware, make_policy
from loadpart_device.deciding.state import EdgeState, Resumed, World
from loadpart_device.edges.fleet import Fleet
from loadpart_device.edges.link import LinkReading
from loadpart_device.edges.load import ServerLoad
from loadpart_device.edges.names import is_name, resolve
from loadpart_device.edges.probe_budget import ProbeBudget
from loadpart_device.settings import load_settings, parse_servers
from tests.support import Clock, eventually, inputs_for, run_here
from tests.test_graph import chain
from tests.toy_networks import NETWORKS, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.daemon import Daemon

NOBODY = "127.0.0.1:1"
LINK, IDLE = LinkReading(0.001, 1e-9), ServerLoad(1.0, 0.0)
LOCAL = PlanKey(5)
PLANS = Plans(
    [Point(PlanKey(0, "raw"), 0.0, 1000, 0.02), Point(PlanKey(2, "raw"), 0.04, 500, 0.01), Point(LOCAL, 0.1, 0, 0.0)]
)


def world(*edges: tuple[str, LinkReading | None, ServerLoad | None, str | None]) -> World:
    return World(tuple(EdgeState(name, PLANS, *state) for name, *state in edges), 1.0, LOCAL, 40)


# Settings and names


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        ("a:1", ["a:1"]),
        ("a:1, b:2,a:1", ["a:1", "b:2"]),
        (["a:1", "b:2,c:3"], ["a:1", "b:2", "c:3"]),
        (("dns:///edge.site:50051",), ["dns:///edge.site:50051"]),
    ],
)
def test_servers_are_named_in_any_usual_way(given: Any, targets: list[str]) -> None:
    assert [endpoint.target for endpoint in parse_servers(given, NO_CREDENTIALS)] == targets


def test_an_endpoint_keeps_its_own_credentials(tmp_path: Path) -> None:
    own, common = Credentials(ca=tmp_path / "ca"), Credentials(tls=True)
    found = parse_servers([Endpoint("a:1", own), "b:2"], common)
    assert [endpoint.credentials for endpoint in found] == [own, common]


@pytest.mark.parametrize("given", ["", ",", [], ["a:1", ""][1:], "edge", ["a:1", "b"], [1], 3])
def test_what_is_no_server_is_refused(given: Any) -> None:
    with pytest.raises(SettingsError, match=r"^server: expected"):
        parse_servers(given, NO_CREDENTIALS)


def test_servers_come_from_environment_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "device.toml"
    config.write_text('model = "tiny"\nserver = ["a:1", "b:2"]\n', encoding="utf-8")
    assert [str(each) for each in load_settings({}, config).server] == ["a:1", "b:2"]
    monkeypatch.setenv("LOADPART_DEVICE_SERVER", "c:3,d:4")
    assert [str(each) for each in load_settings({}, config).server] == ["c:3", "d:4"]
    assert [str(each) for each in load_settings({"server": ["e:5"]}, config).server] == ["e:5"]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("dns:///edge.site:50051", True), ("dns:edge.site:50051", True), ("edge.site:50051", False),
        ("dns://8.8.8.8/edge.site:50051", False), ("unix:/run/edge.sock", False),
    ],
)  # fmt: skip
def test_only_names_without_a_name_server_are_followed(target: str, expected: bool) -> None:
    assert is_name(Endpoint(target)) is expected


def test_each_address_behind_a_name_is_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(host: str, port: int, **_: Any) -> list[Any]:
        assert (host, port) == ("edge.site", 50051)
        found = [(socket.AF_INET, (address, port)) for address in ("10.0.0.2", "10.0.0.1", "10.0.0.2")]
        return [(family, 1, 6, "", address) for family, address in [*found, (socket.AF_INET6, ("fd00::1", port, 0, 0))]]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    found = resolve(Endpoint("dns:///edge.site:50051", Credentials(tls=True)))
    assert [each.target for each in found] == ["10.0.0.2:50051", "10.0.0.1:50051"], "one family, each once, in order"
    assert {each.credentials.server_name for each in found} == {"edge.site"}
    named = resolve(Endpoint("dns:///edge.site:50051", Credentials(tls=True, server_name="other")))
    assert {each.credentials.server_name for each in named} == {"other"}


# Decisions


def test_a_plan_of_the_applications_goes_to_the_server_that_answers_first() -> None:
    busy, idle = ("busy", LINK, ServerLoad(3.0, 0.1), None), ("idle", LINK, IDLE, None)
    unknown, gone = ("unknown", None, None, None), ("gone", LINK, IDLE, "it failed")
    policy = make_policy("offload", chain(5))
    assert policy.choose(world(busy, idle), 1).chosen.edge == "idle"
    assert policy.choose(world(unknown, busy), 1).chosen.edge == "busy"
    assert policy.choose(world(gone, unknown), 1).chosen.edge == "unknown"
    assert policy.choose(world(gone), 1).chosen.plan == LOCAL


@pytest.mark.parametrize("policy", ["load-aware", "offload", 2])
def test_after_a_failure_the_first_to_answer_goes_on(policy: str | int) -> None:
    there, slow = ("there", LINK, IDLE, None), ("slow", LINK, ServerLoad(30.0, 1.0), None)
    chooser = make_policy(policy, chain(5))
    plan = PlanKey(2, "raw") if policy == 2 else PlanKey(0, "raw")
    resumed = Resumed(plan.cut, PLANS.points[PLANS.position(plan) or 0].device_seconds, 0.05)
    again = chooser.choose_again(world(there, slow, ("failed", LINK, IDLE, None)), 1, resumed, {"failed"})
    assert again is not None
    assert again.chosen.edge == "there"
    assert again.predicted_seconds is not None
    assert again.predicted_seconds < 0.03, "the head has been run"
    assert chooser.choose_again(world(slow), 1, resumed, {"failed"}) is None, "the device is quicker"
    assert chooser.choose_again(world(there), 1, resumed._replace(finish_seconds=0.001), {"failed"}) is None
    assert chooser.choose_again(world(there), 1, resumed, {"failed", "there"}) is None


def test_the_head_that_has_run_makes_its_cut_the_better_one() -> None:
    slow_link = ("there", LinkReading(0.001, 1e-5), IDLE, None)
    for has_run, expected in ((0, 0), (2, 2)):
        head = 0.04 if has_run else 0.0
        again = LoadAware().choose_again(world(slow_link), 1, Resumed(has_run, head, 1.0), ())
        assert again is not None
        assert again.chosen.plan.cut == expected


def test_many_devices_do_not_swing_between_servers() -> None:
    """Of 400 devices on one server, no more may go to an idle one at once than it could serve."""
    clock = Clock()
    fleet = [LoadAware(random.Random(seed), clock) for seed in range(400)]
    here, there = ServerLoad(1.0, 0.05, devices=400), ServerLoad(1.0, 0.0, devices=1)
    only = world(("here", LINK, ServerLoad(1.0, 0.0, devices=400), None))
    assert {policy.choose(only, 1).chosen.edge for policy in fleet} == {"here"}
    clock.now += 1
    both = world(("here", LINK, here, None), ("there", LINK, there, None))
    moved = sum(policy.choose(both, 1).chosen.edge == "there" for policy in fleet)
    assert moved == pytest.approx(50, abs=25), "as many as it could serve in a second"


# The servers themselves


def test_servers_behind_a_name_come_and_go() -> None:
    behind = {"dns:///site:1": ["127.0.0.1:1", "127.0.0.1:2"], "dns:///other:1": ["127.0.0.1:2"]}
    changes, broken = [], threading.Event()

    def answer(endpoint: Endpoint) -> list[Endpoint]:
        if broken.is_set():
            raise OSError("the name server is down")
        return [Endpoint(target) for target in behind[endpoint.target]]

    names = [Endpoint("127.0.0.1:9"), *map(Endpoint, behind)]
    with contextlib.closing(Fleet(names, timeout_seconds=5, resolve=answer, period_seconds=0.02)) as fleet:
        there = lambda: [edge.name for edge in fleet]  # noqa: E731
        assert there() == ["127.0.0.1:9", "127.0.0.1:1", "127.0.0.1:2"], "each once"
        kept, left = fleet["127.0.0.1:2"], fleet["127.0.0.1:1"]
        fleet.start(lambda: changes.append(there()))
        behind["dns:///site:1"] = ["127.0.0.1:3"]
        eventually(lambda: there() == ["127.0.0.1:9", "127.0.0.1:3", "127.0.0.1:2"], "the change")
        eventually(lambda: bool(changes), "a word of it")
        assert fleet["127.0.0.1:2"] is kept
        assert fleet["127.0.0.1:1"] is left, "an inference may still be there"
        broken.set()
        fleet.network_changed()
        behind["dns:///site:1"] = []
        assert there() == ["127.0.0.1:9", "127.0.0.1:3", "127.0.0.1:2"], "a name server that is down proves nothing"
        broken.clear()
        eventually(lambda: there() == ["127.0.0.1:9", "127.0.0.1:2"], "the end of it")


def test_a_name_that_cannot_be_resolved_in_time_is_waited_for_in_the_background() -> None:
    known = threading.Event()

    def answer(_: Endpoint) -> list[Endpoint]:
        known.wait()
        return [Endpoint("127.0.0.1:1")]

    endpoints = [Endpoint("dns:///site:1")]
    with contextlib.closing(Fleet(endpoints, timeout_seconds=0.05, resolve=answer, period_seconds=0.02)) as fleet:
        assert fleet.first is None
        assert fleet.refusal is None
        fleet.start()
        known.set()
        eventually(lambda: fleet.first is not None, "the server")


def test_probes_to_several_servers_take_turns() -> None:
    budget, inside, most = ProbeBudget(), [0], [0]

    def probe() -> None:
        with budget.turn():
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            threading.Event().wait(0.01)
            inside[0] -= 1

    threads = [threading.Thread(target=probe) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


# With real daemons


@pytest.fixture
def pair(store: Path) -> Iterator[tuple[Daemon, Daemon]]:
    arguments = ("--store", str(store), "--threads", "1", "--models", "tiny,two")
    with daemon(*arguments) as first, daemon(*arguments) as second:
        yield first, second


@pytest.fixture
def connect(cache: Path) -> Callable[..., OffloadClient]:
    def make(target: Any, **options: Any) -> OffloadClient:
        return OffloadClient(target, "tiny", **{"threads": 1, "cache": cache, "hedge": False} | options)

    return make


def kill(running: Daemon) -> None:
    running.process.kill()
    running.process.wait()


def test_one_server_takes_the_place_of_another(pair: tuple[Daemon, Daemon], connect: Any) -> None:
    first, second = pair
    with connect([first.target, second.target], policy=3, metrics_listen="127.0.0.1:0") as client:
        assert client.wait_ready()
        inputs = inputs_for(client.graph)
        eventually(lambda: all(state.link for state in client.servers), "both links")
        expected = client.infer(*inputs)
        chosen = expected.plan.server
        dying, other = (first, second) if chosen == first.target else (second, first)
        os.kill(dying.process.pid, signal.SIGSTOP)  # what is sent to it is lost
        taken: list[Any] = []
        waiting = threading.Thread(target=lambda: taken.append(client.infer(*inputs)))
        waiting.start()
        kill(dying)
        waiting.join(20)
        (result,) = taken
        assert result.plan.server in (other.target, ""), result.plan.reason
        for _ in range(20):
            result = client.infer(*inputs)
            np.testing.assert_array_equal(result.output, expected.output)
        assert (result.plan.server, result.plan.cut) == (other.target, 3)
        states = {state.edge: state for state in client.servers}
        assert states[dying.target].unavailable is not None
        assert states[other.target].unavailable is None
        address = f"http://{client.metrics_address}/metrics"
        assert metric(address, "loadpart_device_server_usable", server=dying.target) == 0
        assert metric(address, "loadpart_device_server_usable", server=other.target) == 1
        assert metric(address, "loadpart_device_plans_total", server=other.target) >= 20


def test_a_failure_is_made_good_by_another_server(pair: tuple[Daemon, Daemon], connect: Any) -> None:
    """The server that is asked first refuses; the other one goes on from the head's output."""
    first, second = pair
    with connect([first.target, second.target], policy=3) as client:
        assert client.wait_ready()
        eventually(lambda: all(state.link for state in client.servers), "both links")
        inputs = inputs_for(client.graph)
        expected = client.infer(*inputs)
        client._local._head_seconds = client._local._head_seconds * 1000  # it would take itself too long
        refused = client._fleet[expected.plan.server].connection
        real = refused.start

        def refuse(*_: Any) -> Any:
            refused.start = real
            raise ModelNotFoundError("there is no such model")

        refused.start = refuse
        result = client.infer(*inputs)
        assert not result.resumed
        assert {expected.plan.server, result.plan.server} == {first.target, second.target}
        assert "since" in result.plan.reason
        assert "there is no such model" in result.plan.reason
        np.testing.assert_array_equal(result.output, expected.output)


def test_only_servers_with_the_devices_file_count(pair: tuple[Daemon, Daemon], tmp_path: Path, connect: Any) -> None:
    other = tmp_path / "other"
    write("tiny", other, NETWORKS["two"])
    with daemon("--store", str(other), "--threads", "1", "--models", "tiny") as foreign:
        with connect([pair[0].target, foreign.target]) as client:
            assert client.wait_ready()
            eventually(lambda: client._fleet[foreign.target].is_foreign, "the list of its models")
            state = {each.edge: each for each in client.servers}[foreign.target]
            assert state.unavailable is not None
            assert "holds another file as model 'tiny'" in state.unavailable
            client.policy = "offload"
            assert {client.infer(*inputs_for(client.graph)).plan.server for _ in range(5)} == {pair[0].target}
            kill(pair[0])
            eventually(lambda: client.infer(*inputs_for(client.graph)).plan.location == "local", "that it goes alone")
            reason = client.infer(*inputs_for(client.graph)).plan.reason
            assert "holds another file" in reason
            assert pair[0].target in reason
        with connect([foreign.target], policy="offload", cache=tmp_path / "cache") as client:
            client._planner._digest = client._runner._digest = "0" * 64  # as if it had fetched another file before
            for _ in range(3):
                with pytest.raises(ModelMismatchError):
                    client.infer(*inputs_for(client.graph))


def test_any_server_has_the_model(pair: tuple[Daemon, Daemon], tmp_path: Path, connect: Any) -> None:
    with connect([NOBODY, pair[1].target], cache=tmp_path / "one", connect_timeout=30.0) as client:
        assert client.wait_ready()
        assert client.infer(*inputs_for(client.graph)).plan.location in ("local", "split", "offload")
    with pytest.raises(ModelNotFoundError, match="serves no model 'nothing'"):
        OffloadClient([pair[0].target, pair[1].target], "nothing", cache=tmp_path / "two")
    with pytest.raises(ModelNotFoundError, match="cannot be asked"):
        OffloadClient([NOBODY, "127.0.0.1:2"], "tiny", cache=tmp_path / "two", connect_timeout=0.2)
    with pytest.raises(ModelNotFoundError, match="no name leads to a server"):
        OffloadClient("dns:///nowhere.invalid:1", "tiny", cache=tmp_path / "two", connect_timeout=5.0)


def test_the_command_line_knows_servers(pair: tuple[Daemon, Daemon], cache: Path) -> None:
    servers = [argument for running in pair for argument in ("--server", running.target)]
    done = run_here("loadpart-device", "plan", *servers, "--model", "tiny", "--cache", str(cache), "--json")
    assert done.returncode == 0, done.stderr
    assert all(running.target in done.stdout for running in pair)
    assert done.stdout.count('"chosen": true') == 1
    table = run_here("loadpart-device", "plan", *servers, "--model", "tiny", "--cache", str(cache), "--bandwidth", "8")
    assert table.returncode == 0, table.stderr
    assert all(running.target in table.stdout for running in pair)
    wrong = run_here("loadpart-device", "plan", "--server", "a:1", "--server", "edge", "--model", "tiny")
    assert wrong.returncode != 0
    assert "server: expected HOST:PORT" in wrong.stderr
