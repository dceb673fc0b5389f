"""What a device offers and what its driver chose, and what the driver did wrong."""

import logging
from collections import deque
from collections.abc import Callable
from threading import RLock

from virtring.spec.features import Feature
from virtring.spec.ids import DeviceID
from virtring.spec.status import Status

log = logging.getLogger(__name__)

#: Refusals that are remembered.
REMEMBERED = 64


class DeviceFeatures:
    """The feature bits of one device, and its status, which says whether they are final.

    device_features: bits 0 to 63 on offer; driver_features: what the driver wrote.
    """

    def __init__(
        self,
        device_id: DeviceID | int,
        device_features: int,
        accept_legacy: bool,
        validate_features: Callable[[Feature], bool],
    ) -> None:
        self.mutex = RLock()
        self.device_id = int(device_id)
        self.device_features = Feature(device_features)
        self.driver_features = Feature(0)
        self.accept_legacy = accept_legacy
        self.validate_features = validate_features
        self.status = Status(0)
        self.refusals: deque[str] = deque(maxlen=REMEMBERED)
        self.refused = 0

    def refuse(self, reason: str) -> None:
        """The driver did what it must not; remembered, logged, without effect."""
        self.refused += 1
        self.refusals.append(reason)
        log.debug("device %d: %s", self.device_id, reason)

    def features_fit(self, *, whole: bool = True) -> bool:
        """Can the device work with what the driver chose? Else it is refused.

        whole: are these all that were negotiated? Only then do they have to go together.
        """
        extra = int(self.driver_features) & ~int(self.device_features)
        if extra:
            self.refuse(f"features {extra:#x} were not offered")
        elif Feature.VERSION_1 not in self.driver_features and not self.accept_legacy:
            self.refuse("a driver without VERSION_1")
        elif (
            Feature.RING_PACKED in self.driver_features
            and Feature.VERSION_1 not in self.driver_features
        ):
            self.refuse("RING_PACKED without VERSION_1")
        elif whole and not self.validate_features(self.driver_features):
            self.refuse(f"features {int(self.driver_features):#x} do not go together")
        else:
            return True
        return False

    @property
    def negotiated(self) -> bool:
        """Are the features final?"""
        legacy = self.accept_legacy and Feature.VERSION_1 not in self.driver_features
        return Status.FEATURES_OK in self.status or legacy

    def set_features(self, features: int) -> None:
        """The driver writes its 64 feature bits; refused once FEATURES_OK is set."""
        with self.mutex:
            if Status.FEATURES_OK in self.status:
                self.refuse("features written after FEATURES_OK")
            else:
                self.driver_features = Feature(features & 0xFFFF_FFFF_FFFF_FFFF)

    def feature_word(self, select: int) -> int:
        """32 bits of the offer: word 0, 1; zero beyond."""
        return (int(self.device_features) >> 32 * select) & 0xFFFFFFFF if select < 2 else 0

    def driver_feature_word(self, select: int) -> int:
        """32 bits of what the driver wrote."""
        return (int(self.driver_features) >> 32 * select) & 0xFFFFFFFF if select < 2 else 0

    def set_feature_word(self, select: int, value: int) -> None:
        """The driver writes 32 of its feature bits."""
        if select >= 2:
            if value:
                self.refuse(f"features written to word {select}")
            return
        kept = int(self.driver_features) & ~(0xFFFFFFFF << 32 * select)
        self.set_features(kept | (value & 0xFFFFFFFF) << 32 * select)
