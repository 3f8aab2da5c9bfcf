"""How far answers are from those of the exact engine, for every plan, on the user's own pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from loadpart_common.errors import InputError, UnavailableError
from loadpart_device.allowed_codecs import LEAST_PICTURES, MeasuredPlan
from loadpart_device.images import load_crops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from loadpart_common.planning.plan import PlanKey
    from loadpart_common.tensors import Array
    from loadpart_device.client import OffloadClient

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class PlanAccuracy:
    """How far the outputs of a plan are from those of the exact engine.

    Attributes:
        plan: The plan.
        location: Where it computes: `local`, `split` or `offload`.
        exact: Whether its outputs are those of the device's own engine, as this is set up, to the last bit.
        mean_error: Largest difference of an output, as a share of the largest output, mean over the pictures.
        worst_error: The same, of the worst picture.
        agreement: Share of the pictures for which the highest score is that of the same class.
        pictures: How many there were, parts of pictures counted one by one.
    """

    plan: PlanKey
    location: str
    exact: bool
    mean_error: float
    worst_error: float
    agreement: float
    pictures: int

    @property
    def measured(self) -> MeasuredPlan:
        """What decisions go by."""
        return MeasuredPlan(
            self.plan.cut, self.plan.codec, self.mean_error, self.worst_error, self.agreement, self.pictures
        )


def pictures_in(paths: Sequence[Path]) -> list[Path]:
    """The image files in folders and among files.

    Raises:
        InputError: There are none.
    """
    found = [path for each in paths for path in (sorted(each.iterdir()) if each.is_dir() else [each])]
    chosen = [path for path in found if path in paths or path.suffix.lower() in _SUFFIXES]
    if not chosen:
        raise InputError(
            f"no pictures in {', '.join(map(str, paths))}: expected files that end in .jpg, .png or the like"
        )
    return chosen


def usual_crops(pictures: int) -> int:
    """How often each of some pictures has to count for a measurement to say something about others."""
    return max(1, -(-LEAST_PICTURES // pictures))


def measure_accuracy(
    client: OffloadClient,
    reference: OffloadClient,
    pictures: Sequence[Path],
    crops: int,
    on_progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Iterator[PlanAccuracy]:
    """Runs every plan that can win on every picture and on parts of it.

    Args:
        client: The client whose plans are run; it must not hedge, or its answers are not all of the plan.
        reference: A client that computes by itself, exactly.
        pictures: Image files.
        crops: How often each picture counts: once as a whole, and then random parts of it.
        on_progress: Called with the inferences that are done and those of all.

    Raises:
        InputError: A file is no image, or the network does not take images.
        UnavailableError: The server did not answer.
    """
    spec = client.graph.inputs[0]
    images = [image for picture in pictures for image in load_crops(picture, spec, crops)]
    expected = [reference.infer(image).outputs for image in images]
    keys = client.winning_plans
    for number, key in enumerate(keys):
        client.policy = "local" if key.is_local else f"{key.cut}:{key.codec}"
        errors, same, results = [], 0, []
        for place, (image, wanted) in enumerate(zip(images, expected, strict=True)):
            result = client.infer(image)
            if (result.plan.cut, result.plan.codec) != key:
                raise UnavailableError(f"the plan {key} was not run: {result.plan.reason}")
            errors.append(_error(result.outputs, wanted))
            same += int(result.output.argmax() == wanted[0].argmax())
            results.append(result)
            on_progress(number * len(images) + place + 1, len(keys) * len(images))
        exact = all(result.plan.exact for result in results)
        location = results[0].plan.location
        yield PlanAccuracy(key, location, exact, float(np.mean(errors)), max(errors), same / len(images), len(images))


def _error(got: Sequence[Array], wanted: Sequence[Array]) -> float:
    """Largest difference of an output, as a share of the largest; infinite where one is no number."""
    difference = max(
        float(np.abs(one.astype(np.float64) - other).max()) for one, other in zip(got, wanted, strict=True)
    )
    largest = max(float(np.abs(other).max()) for other in wanted)
    share = difference / largest if largest else difference
    return share if np.isfinite(share) else float("inf")
