"""Feature bits and status in words, for whoever follows a session in the log."""

from enum import IntFlag

from virtring.spec.balloon import BalloonFeature
from virtring.spec.blk import BlkFeature
from virtring.spec.console import ConsoleFeature
from virtring.spec.features import Feature
from virtring.spec.ids import DeviceID
from virtring.spec.net import NetFeature
from virtring.spec.rpmsg import RpmsgFeature

#: The bits that a device type gives its own meaning.
OF_DEVICE: dict[int, type[IntFlag]] = {
    DeviceID.BLOCK: BlkFeature,
    DeviceID.NET: NetFeature,
    DeviceID.CONSOLE: ConsoleFeature,
    DeviceID.BALLOON: BalloonFeature,
    DeviceID.RPMSG: RpmsgFeature,
}


def bits_in_words(bits: int, *kinds: type[IntFlag]) -> str:
    """Names of the bits, of the first kind that knows each; numbers for the others."""
    words = []
    for place in range(64):
        bit = 1 << place
        if bits & bit:
            known = (kind(bit).name for kind in kinds if bit in list(kind))
            words.append(next(known, None) or f"bit {place}")
    return " ".join(words) or "none"


def features_in_words(bits: int, device_id: int) -> str:
    """Virtio feature bits of a device of that kind."""
    kinds: list[type[IntFlag]] = [Feature]
    if device_id in OF_DEVICE:
        kinds.append(OF_DEVICE[device_id])
    return bits_in_words(bits, *kinds)
