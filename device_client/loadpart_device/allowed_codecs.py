"""Which codecs an application allows, and what measurements allow of those that change answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from loadpart_common.codecs.registry import CODECS
from loadpart_common.errors import SettingsError
from loadpart_common.files import cache_folder, write_atomically
from loadpart_common.latency.documents import reading_document, write_document
from loadpart_common.planning.plan import DEFAULT_CODEC, PlanKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

LEAST_PICTURES = 200
"""Pictures, crops counted one by one, from which on a measurement says something about other pictures."""

_ERROR_MARGIN = 1.25
"""Times the largest measured error: pictures that were not measured may be a little worse."""


@dataclass(frozen=True)
class MeasuredPlan:
    """What a plan does to the answers, measured against the exact engine on a user's pictures.

    Attributes:
        cut: Layers on the device.
        codec: Codec of the tensors that cross.
        mean_error: Largest difference of an output, as a share of the largest output, mean over the pictures.
        worst_error: The same, of the worst picture.
        agreement: Share of the pictures for which the highest score is that of the same class.
        pictures: How many there were.
    """

    cut: int
    codec: str
    mean_error: float
    worst_error: float
    agreement: float
    pictures: int

    @property
    def expected_agreement(self) -> float:
        """Share of other pictures for which the class will be the same, by Laplace's rule of succession."""
        return (self.agreement * self.pictures + 1) / (self.pictures + 2)


def default_accuracy_folder() -> Path:
    """Where measurements are kept unless something else is asked for."""
    return cache_folder("accuracy")


def accuracy_path(folder: Path, digest: str) -> Path:
    """The file with what was measured of a model."""
    return folder / f"{digest}.json"


def save_measured(folder: Path, digest: str, measured: Iterable[MeasuredPlan]) -> Path:
    """Keeps what was measured of a model instead of what there was; gives the file.

    Raises:
        SettingsError: It cannot be written.
    """
    path = accuracy_path(folder, digest)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write_document({"plans": [asdict(plan) for plan in measured]}).encode())
    except OSError as error:
        raise SettingsError(f"accuracy_folder: cannot write {path}: {error.strerror}") from error
    return path


def read_measured(folder: Path, digest: str) -> list[MeasuredPlan]:
    """What was measured of a model; nothing where nothing was.

    Raises:
        SettingsError: The file is damaged.
    """
    path = accuracy_path(folder, digest)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    with reading_document("measurement of accuracy", text, path, "measure") as document:
        return [MeasuredPlan(**plan) for plan in document["plans"]]


class AllowedCodecs:
    """The plans that may be chosen, by their codecs.

    Attributes:
        names: Names of the codecs that may be used at all.
        reply: Name of the codec of answers.
        is_bounded: Whether only as much may change as measurements vouch for.
    """

    def __init__(
        self,
        names: Sequence[str] | None = None,
        *,
        max_error: float | None = None,
        min_agreement: float | None = None,
        reply: str = DEFAULT_CODEC,
    ) -> None:
        """Makes a choice; with a bound nothing that loses anything is allowed until `measured` was called.

        Args:
            names: Codecs that may be used; None for all that change nothing, or with a bound for all.
            max_error: The most that an output may differ, as a share of the largest output; None for no bound.
            min_agreement: The least share of answers that must name the same class; None for no bound.
            reply: Codec of answers.

        Raises:
            SettingsError: A codec is unknown, or a bound is none.
        """
        self._max_error = _share("max_error", max_error)
        self._min_agreement = _share("min_agreement", min_agreement)
        self.is_bounded = max_error is not None or min_agreement is not None
        if names is None:
            names = [name for name in CODECS if self.is_bounded or CODECS[name].is_lossless]
        self.names = tuple(dict.fromkeys(_codec_name("codecs", name) for name in names))
        self.reply = _codec_name("reply_codec", reply)
        self._measured: dict[PlanKey, MeasuredPlan] = {}

    def measured(self, plans: Iterable[MeasuredPlan]) -> None:
        """Takes in what was measured of the model."""
        self._measured = {PlanKey(plan.cut, plan.codec): plan for plan in plans}

    def allows(self, plan: PlanKey) -> bool:
        """Whether a plan may be chosen: a bound allows only what measurements say is within it."""
        if plan.is_local or plan.codec == DEFAULT_CODEC:
            return True
        if plan.codec not in self.names:
            return False
        if CODECS[plan.codec].is_lossless or not self.is_bounded:
            return True
        measured = self._measured.get(plan)
        if measured is None or measured.pictures < LEAST_PICTURES:
            return False
        is_near = self._max_error is None or measured.worst_error * _ERROR_MARGIN <= self._max_error
        return is_near and (self._min_agreement is None or measured.expected_agreement >= self._min_agreement)


def _codec_name(field: str, name: str) -> str:
    try:
        return CODECS[name].name
    except SettingsError:
        raise SettingsError(f"{field}: expected some of {', '.join(CODECS)}, got {name!r}") from None


def _share(field: str, value: float | None) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1):
        raise SettingsError(f"{field}: expected a number from 0 to 1, got {value!r}")
    return value
