"""The latency model: curves, anchors, fitting, files."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadpart_common.engines.base import EngineSetup
from loadpart_common.engines.registry import ENGINES
from loadpart_common.engines.synthetic.onnx_file import write_onnx
from loadpart_common.errors import SettingsError
from loadpart_common.formats.registry import format_of
from loadpart_common.latency.anchors import Anchors
from loadpart_common.latency.curves import Curves
from loadpart_common.latency.fitting import Sample, fit
from loadpart_common.latency.measurements import Measurements
from loadpart_common.latency.model import LatencyModel, shipped_model
from loadpart_common.latency.profile import Profile
from loadpart_common.machine import machine_name
from tests.test_graph import chain
from tests.toy import ToyEngine

if TYPE_CHECKING:
    from pathlib import Path

KEY = 3
CURVES = Curves(chain(10), shipped_model())


def test_measured_segments_fix_the_curve_and_the_model_fills_it() -> None:
    heads = CURVES.head_seconds({5: 0.5, 10: 2.0})
    assert heads[[0, 5, 10]] == pytest.approx([0, 0.5, 2.0])
    assert (np.diff(heads) >= 0).all()
    tails = CURVES.tail_seconds({0: 3.0, 8: 0.1})
    assert tails[[0, 8, 10]] == pytest.approx([3.0, 0.1, 0])
    assert (np.diff(tails) <= 0).all()


@given(st.dictionaries(st.integers(0, 10), st.floats(0, 100), max_size=6))
def test_curves_rise_whatever_was_measured(measured: dict[int, float]) -> None:
    assert (np.diff(CURVES.head_seconds(measured)) >= -1e-9).all()
    assert (np.diff(CURVES.tail_seconds(measured)) <= 1e-9).all()


def test_spread_cuts_share_the_seconds_out() -> None:
    cuts = CURVES.spread_cuts(5)
    assert cuts[0] == 0
    assert cuts[-1] == 10
    assert len(cuts) == 6


def test_what_costs_made_is_found_again() -> None:
    """A fit to samples of known costs, one in ten of which is an outlier, finds these costs again."""
    rng = np.random.default_rng(0)
    costs = {("segment", "calls"): 1e-4, ("Conv", "calls"): 1e-5, ("Conv", "flops"): 1e-11, ("Relu", "calls"): 2e-6}
    costs |= {("Relu", "input_bytes"): 1e-10, ("Relu", "output_bytes"): 2e-10}
    samples = []
    for index in range(300):
        amounts = {("segment", "calls"): 1.0, ("Conv", "calls"): float(rng.integers(0, 5))}
        amounts["Conv", "flops"] = amounts["Conv", "calls"] * 10 ** rng.uniform(6, 9)
        amounts["Relu", "calls"] = float(rng.integers(0, 5))
        for feature in ("input_bytes", "output_bytes"):
            amounts["Relu", feature] = amounts["Relu", "calls"] * 10 ** rng.uniform(4, 7)
        seconds = sum(costs[key] * amount for key, amount in amounts.items())
        samples.append(Sample(amounts, seconds * (5 if index % 10 == 0 else 1)))
    model = fit(samples, EngineSetup(ToyEngine, 1))
    for (family, feature), cost in costs.items():
        assert model.coefficients[family][feature] == pytest.approx(cost, rel=0.05), (family, feature)
    # Families without samples get the costs of the simple family that has some.
    assert model.coefficients["other"]["input_bytes"] == pytest.approx(1e-10, rel=0.05)


def test_a_model_survives_its_file_and_foreign_files_are_refused(tmp_path: Path) -> None:
    shipped = shipped_model()
    assert LatencyModel.from_json(shipped.to_json(), "x") == shipped
    measured = Profile({3: 0.1}, {0: 0.5})
    assert Profile.from_json(measured.to_json(), "x") == measured
    measurements = Measurements(EngineSetup(ToyEngine, 1), tmp_path)
    assert measurements.model() == shipped
    assert measurements.profile("abc") == Profile({}, {})
    measurements.save_profile("abc", measured)
    assert measurements.profile("abc") == measured
    assert Measurements(EngineSetup(ToyEngine, 2), tmp_path).profile("abc") == Profile({}, {})  # not for 2 threads
    measurements.save_model(shipped)
    if shipped.machine != machine_name():
        with pytest.raises(SettingsError, match="expected a model of"):
            measurements.model()
    document = json.loads(shipped.to_json())
    for text, complaint in (
        ("{", "is not a latency model"),
        ("[]", "is not a latency model"),
        (json.dumps(document | {"format": 99}), "expected latency model format 2, got 99"),
        (json.dumps(document | {"coefficients": {}}), "expected the families"),
        (shipped.to_json().replace('"calls": ', '"calls": -1'), "0 or more"),
    ):
        measurements.model_path.write_text(text)
        with pytest.raises(SettingsError, match=complaint):
            measurements.model()


def test_observations_correct_slowly_and_outliers_do_not_jerk() -> None:
    anchors = Anchors()
    assert not anchors.observe(KEY, 1.0)  # there is no anchor for this key yet
    anchors.measure(KEY, 1.0)
    anchors.observe(KEY, 1.2)
    assert anchors.seconds[KEY] == pytest.approx(1.0, rel=0.01)
    rng = np.random.default_rng(0)
    for _ in range(500):
        anchors.observe(KEY, 0.9 * (1 + rng.exponential(0.05)))
    assert anchors.seconds[KEY] == pytest.approx(0.9, rel=0.03)
    for _ in range(10_000):
        anchors.observe(KEY, 1.4)  # a lasting load must not count as the speed of the machine
    assert anchors.seconds[KEY] == pytest.approx(0.9, rel=0.03)
    for _ in range(10_000):
        anchors.observe(KEY, 1.2)
    assert anchors.seconds[KEY] == pytest.approx(1.2, rel=0.03)


def test_an_anchor_that_was_measured_on_a_busy_machine_comes_down() -> None:
    anchors = Anchors()
    anchors.measure(KEY, 2.0)
    for _ in range(10):
        anchors.observe(KEY, 1.0)
    assert anchors.seconds[KEY] == pytest.approx(1.0, rel=0.3)
    for _ in range(50):
        anchors.observe(KEY, 1.0)
    assert anchors.seconds[KEY] == pytest.approx(1.0, rel=0.03)


CALIBRATE = """
import sys
from pathlib import Path
from loadpart_common.engines.base import EngineSetup
from loadpart_common.engines.registry import ENGINES
from loadpart_common.engines.segment_cache import SegmentCache
from loadpart_common.latency.calibration import calibrate
from loadpart_common.latency.profile import measure_profile

cache = SegmentCache(EngineSetup(ENGINES[sys.argv[3]], 1).start())
steps = []
model = calibrate(cache, networks=5, on_progress=lambda done, total: steps.append((done, total)))
assert steps == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
network = cache.load(Path(sys.argv[2]), "mindir")
measured = measure_profile(cache, network, model)
cache.close()
Path(sys.argv[1], "model.json").write_text(model.to_json())
Path(sys.argv[1], "profile.json").write_text(measured.to_json())
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["mindspore", "onnxruntime", "openvino"])
def test_a_small_sweep_and_a_profile(exported: Path, tmp_path: Path, engine: str) -> None:
    """One network of each style is enough to fit all families that occur in the zoo."""
    arguments = [str(tmp_path), str(exported / "tiny" / "tiny.mindir"), engine]
    subprocess.run([sys.executable, "-W", "ignore", "-c", CALIBRATE, *arguments], check=True)
    model = LatencyModel.from_json((tmp_path / "model.json").read_text(), "model")
    assert {"convolution", "1x1 convolution", "grouped convolution", "matrix product", "pooling"} <= set(
        model.coefficients
    )
    assert model.segments > 20
    assert model.error < 0.5
    measured = Profile.from_json((tmp_path / "profile.json").read_text(), "profile")
    assert 0 in measured.tails
    assert all(0 < seconds < 1 for seconds in [*measured.heads.values(), *measured.tails.values()])


def test_a_seed_draws_the_same_network_for_every_engine(tmp_path: Path) -> None:
    """MindSpore's and the ONNX one: as many convolutions of the same work, and as many weights in products."""
    with_mindspore = """
        import sys
        from pathlib import Path
        from loadpart_common.engines.mindspore.zoo import export_synthetic
        for seed in range(5):
            export_synthetic(seed, Path(sys.argv[1]) / f"{seed}.mindir")
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(with_mindspore), str(tmp_path)]
    subprocess.run(command, check=True, timeout=60)
    for seed in range(5):
        work = []
        for path in (tmp_path / f"{seed}.mindir", write_onnx(seed, tmp_path)):
            model_format = format_of(path)
            assert model_format is not None
            with contextlib.closing(model_format.open(path)) as model:
                layers = [layer for layer in model.graph.layers if layer.family in {"convolution", "matrix product"}]
                work.append([(layer.flops, layer.outputs[0].concrete(1)) for layer in layers])
        assert work[0] == work[1]
        assert len(work[0]) > 4


@pytest.mark.parametrize("name", ["mindspore", "onnxruntime", "openvino"])
def test_a_latency_model_is_shipped_for_each_engine(name: str) -> None:
    model = shipped_model(EngineSetup(ENGINES[name], 1))
    assert model.engine.startswith(name)
    assert model.segments > 200
    assert model.error < 0.2
