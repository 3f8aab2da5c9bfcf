"""The command lines and the packages, as a user sees them."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from loadpart_common.errors import InputError
from loadpart_common.tensors import TensorSpec
from loadpart_device.images import load_images
from tests.support import run_here, run_program

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.daemon import Daemon


def device(command: str, server: Daemon, cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_here(
        "loadpart-device", command, "--server", server.target, "--model", "tiny", "--cache", str(cache),
        "--threads", "1", *arguments,
    )  # fmt: skip


def infer(server: Daemon, cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return device("infer", server, cache, *arguments)


def test_infer_prints_classes_plan_and_times(server: Daemon, cache: Path, photograph: Path) -> None:
    ended = infer(server, cache, "--image", str(photograph), "--policy", "offload")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert "photograph.png: tiny says" in ended.stdout
    assert ended.stdout.count("class ") == 5
    assert "plan: offload - policy offload" in ended.stdout
    assert "network" in ended.stdout


def test_infer_prints_json_for_programs(server: Daemon, cache: Path, photograph: Path) -> None:
    images = ("--image", str(photograph), "--image", str(photograph))
    ended = infer(server, cache, *images, "--policy", "4", "--repeat", "3", "--json")
    assert ended.returncode == 0, ended.stderr
    documents = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(documents) == 3
    for document in documents:
        assert document["plan"]["cut"] == 4
        assert document["plan"]["location"] == "split"
        assert len(document["images"]) == 2
        first, second = document["images"]
        assert first["top"] == second["top"]
        assert sum(entry["probability"] for entry in first["top"]) <= 1.0001
        assert document["timings"]["total"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "/nonexistent.jpg"], "no image file at /nonexistent.jpg"),
        (["--image", __file__], "is not an image that can be read"),
        (["--image", "PHOTO", "--policy", "clever"], "policy: expected one of load-aware"),
        (["--image", "PHOTO", "--policy", "99"], "cut 99 is out of range"),
        (["--image", "PHOTO", "--model", "nothing"], "serves no model 'nothing'"),
        (["--image", "PHOTO", "--deadline", "-1"], "deadline: expected a number above 0, got -1.0"),
        (["--image", "PHOTO", "--config", "/nonexistent.toml"], "no settings file at /nonexistent.toml"),
    ],
)
def test_wrong_use_is_one_line_on_stderr(
    server: Daemon, cache: Path, photograph: Path, arguments: list[str], message: str
) -> None:
    ended = infer(server, cache, *[str(photograph) if each == "PHOTO" else each for each in arguments])
    assert ended.returncode == 1
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""


def test_settings_come_from_flags_then_environment_then_file(
    server: Daemon, cache: Path, photograph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "device.toml"
    config.write_text(
        f'server = "{server.target}"\nmodel = "tiny"\npolicy = "offload"\ncache = "{cache}"\nthreads = 1\n'
    )
    base = ("loadpart-device", "infer", "--image", str(photograph), "--config", str(config), "--json")

    def plan(*arguments: str) -> str:
        ended = run_here(*base, *arguments)
        assert ended.returncode == 0, ended.stderr
        return str(json.loads(ended.stdout)["plan"]["reason"])

    assert plan() == "policy offload"
    monkeypatch.setenv("LOADPART_DEVICE_POLICY", "local")
    assert plan() == "policy local"
    assert plan("--policy", "2") == "policy cut 2"
    config.write_text("colour = 3\n")
    ended = run_here(*base)
    assert ended.returncode == 1
    assert "unknown setting 'colour'" in ended.stderr


@pytest.mark.parametrize("program", ["loadpart-edge", "loadpart-device"])
def test_help_teaches(program: str) -> None:
    ended = run_program(program, "--help")
    assert ended.returncode == 0
    command = "serve" if program == "loadpart-edge" else "infer"
    assert command in ended.stdout
    assert "--" in run_here(program, command, "--help").stdout


def test_models_are_listed(store: Path) -> None:
    ended = run_here("loadpart-edge", "models", "--store", str(store))
    assert ended.returncode == 0
    assert "tiny" in ended.stdout


def test_importing_the_sdk_loads_nothing_heavy() -> None:
    code = """
        import sys, loadpart_device
        heavy = {"mindspore", "loadpart_edge", "matplotlib", "scipy", "PIL", "typer", "rich", "pydantic"}
        print(sorted(heavy & set(sys.modules)))
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout.strip() == "[]"


def test_images_are_cut_to_the_middle(tmp_path: Path) -> None:
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 100:200] = 255
    path = tmp_path / "wide.png"
    Image.fromarray(pixels).save(path)
    (batch,) = load_images([path], TensorSpec("image", "uint8", (-1, 32, 32, 3)))
    assert batch.shape == (32, 32, 3)
    assert batch.mean() > 250
    with pytest.raises(InputError, match=r"the model takes float32\[N, 4\], not images"):
        load_images([path], TensorSpec("x", "float32", (-1, 4)))


def test_a_damaged_image_is_refused(tmp_path: Path, photograph: Path) -> None:
    path = tmp_path / "damaged.png"
    path.write_bytes(photograph.read_bytes()[:200])
    with pytest.raises(InputError, match=r"damaged\.png cannot be decoded"):
        load_images([path], TensorSpec("image", "uint8", (-1, 32, 32, 3)))


def plan(server: Daemon, cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return device("plan", server, cache, *arguments)


def test_plan_explains_a_link_and_a_load(server: Daemon, cache: Path, tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    ended = plan(server, cache, "--bandwidth", "8", "--load", "2", "--all", "--plot", str(picture))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("<- chosen") == 1
    assert "8 Mbit/s, round trip 1 ms, server slow-down 2, backlog 0 ms" in ended.stdout
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 1000
    ended = plan(server, cache, "--bandwidth", "8", "--load", "2", "--all", "--json")
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    chosen = min(rows, key=lambda row: row["total_seconds"])
    assert [row for row in rows if row["chosen"]] == [chosen]
    assert chosen["can_win"]
    parts = ("device_seconds", "network_seconds", "queue_seconds", "server_seconds")
    assert all(sum(row[part] for part in parts) == pytest.approx(row["total_seconds"]) for row in rows)


def test_plan_measures_the_link_when_it_is_not_told(server: Daemon, cache: Path) -> None:
    ended = plan(server, cache)
    assert ended.returncode == 0, ended.stderr
    assert "Mbit/s, round trip" in ended.stdout
    assert f"tails as {server.target} says" in ended.stdout


def test_plan_without_a_server_needs_a_bandwidth(server: Daemon, cache: Path) -> None:
    assert plan(server, cache, "--bandwidth", "8").returncode == 0  # fetches the model
    nobody = ("--server", "127.0.0.1:1", "--connect-timeout", "0.2")
    ended = run_here("loadpart-device", "plan", *nobody, "--model", "tiny", "--cache", cache)
    assert ended.returncode == 1
    assert "bandwidth: expected Mbit/s, since the link cannot be measured" in ended.stderr
    ended = run_here("loadpart-device", "plan", *nobody, "--model", "tiny", "--cache", cache, "--bandwidth", "8")
    assert ended.returncode == 0, ended.stderr
    assert "no server is there" in ended.stdout


@pytest.mark.parametrize("flag", ["--bandwidth", "--load", "--device-slow-down"])
def test_plan_refuses_what_is_no_state(server: Daemon, cache: Path, flag: str) -> None:
    ended = plan(server, cache, flag, "-1")
    assert ended.returncode == 1
    assert f"{flag[2:]}: expected a number above 0, got -1" in ended.stderr


def test_accuracy_compares_every_plan_with_the_exact_engine(server: Daemon, cache: Path, photograph: Path) -> None:
    photograph.with_name("notes.txt").write_text("no picture")
    common = ("--crops", "2", "--codecs", "webp-lossless,jpeg-75")
    ended = device("accuracy", server, cache, "--images", str(photograph.parent), "--json", *common)
    assert ended.returncode == 0, ended.stderr
    rows = {row.pop("plan"): row for row in map(json.loads, ended.stdout.splitlines())}
    assert {row["location"] for row in rows.values()} >= {"local", "offload"}
    for plan, row in rows.items():
        is_exact = "jpeg" not in plan
        assert (row["worst_error"] == 0.0, row["exact"]) == (is_exact, is_exact)
    assert all(rows[plan]["agreement"] == 1.0 for plan in ("local", "cut 0", "cut 0, webp-lossless"))
    assert "cut 0, jpeg-75" in rows
    table = device("accuracy", server, cache, "--images", str(photograph), *common)
    assert "over 1 picture(s), each 2 time(s)" in table.stdout
    assert "too few pictures" in table.stderr
    assert "compared with toy 1, 1 thread" in table.stdout


def test_accuracy_needs_pictures(server: Daemon, cache: Path, tmp_path: Path) -> None:
    ended = device("accuracy", server, cache, "--images", str(tmp_path))
    assert ended.returncode == 1
    assert "no pictures in" in ended.stderr


def test_decisions_are_logged_and_made_again(server: Daemon, cache: Path, photograph: Path, tmp_path: Path) -> None:
    log = tmp_path / "decisions.jsonl"
    ended = infer(server, cache, "--image", str(photograph), "--repeat", "5", "--decision-log", str(log), "--json")
    assert ended.returncode == 0, ended.stderr
    cuts = [json.loads(line)["plan"]["cut"] for line in ended.stdout.splitlines()]
    assert [json.loads(line)["chosen"][1][0] for line in log.read_text().splitlines()] == cuts
    ended = run_here("loadpart-device", "replay", str(log))
    assert ended.returncode == 0, ended.stderr
    assert "5 decisions; made again from what was known, 5 are the same" in ended.stdout
    ended = run_here("loadpart-device", "replay", str(log), "--policy", "bandwidth-only", "--json")
    assert sum(json.loads(line)["again"] for line in ended.stdout.splitlines()) == 5
    ended = run_here("loadpart-device", "replay", str(log), "--policy", "local")
    assert "policy: expected one of load-aware" in ended.stderr
    log.write_text(log.read_text() + "{}\n")
    ended = run_here("loadpart-device", "replay", str(log))
    assert ended.returncode == 1
    assert "line 6: expected a decision of format 2" in ended.stderr


def test_the_latency_model_in_use_is_shown(tmp_path: Path) -> None:
    for program in ("loadpart-device", "loadpart-edge"):
        ended = run_here(program, "calibrate", "--show", "--threads", "1", "--latency-folder", str(tmp_path))
        assert ended.returncode == 0, ended.stderr
        assert "grouped" in ended.stdout
        assert "shipped with the software" in ended.stdout


def test_a_profile_is_measured_and_kept(server: Daemon, cache: Path, store: Path, tmp_path: Path) -> None:
    folder = ("--threads", "1", "--latency-folder", str(tmp_path))
    device = ("--server", server.target, "--model", "tiny", "--cache", str(cache))
    for command in (
        ("loadpart-device", "profile", *device),
        ("loadpart-edge", "profile", "tiny", "--store", str(store)),
    ):
        ended = run_here(*command, *folder)
        assert ended.returncode == 0, ended.stderr
        assert "after layer" in ended.stdout
        (kept,) = tmp_path.glob("*.json")
        assert kept.name in ended.stdout.replace("\n", "")
        kept.write_text("{")
        ended = run_here("loadpart-device", "plan", *device, "--bandwidth", "8", *folder)
        assert ended.returncode == 1
        assert "is not a profile" in ended.stderr
        kept.unlink()
