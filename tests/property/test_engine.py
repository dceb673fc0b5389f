"""The engine's two sides against the model's and each other, in every combination of features."""

from __future__ import annotations

import os

import pytest

from virtring.spec.features import Feature

from .ends import DeviceFactory, DriverFactory, LayoutKind
from .engine_ends import (
    EngineBatchDeviceEnd,
    EngineBatchDriverEnd,
    EngineDeviceEnd,
    EngineDriverEnd,
)
from .long_run import run_many_buffers
from .machine import run_ring_machine
from .model_ends import ModelDeviceEnd, ModelDriverEnd
from .test_model import COMBINATIONS, KINDS, feature_names

#: Raise it for a longer search.
EXAMPLES = int(os.environ.get("RING_EXAMPLES", "5"))

Pair = tuple[DriverFactory, DeviceFactory]
PAIRS: dict[str, Pair] = {
    "driver": (EngineDriverEnd, ModelDeviceEnd),
    "batch driver": (EngineBatchDriverEnd, ModelDeviceEnd),
    "device": (ModelDriverEnd, EngineDeviceEnd),
    "batch device": (ModelDriverEnd, EngineBatchDeviceEnd),
    "both": (EngineDriverEnd, EngineBatchDeviceEnd),
    "both batch": (EngineBatchDriverEnd, EngineDeviceEnd),
}
every_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
every_combination = pytest.mark.parametrize("features", COMBINATIONS, ids=feature_names)


@every_pair
@every_combination
@pytest.mark.parametrize("kind", KINDS)
def test_engine(kind: LayoutKind, features: Feature, pair: Pair) -> None:
    run_ring_machine(*pair, kind, features, max_examples=EXAMPLES, steps=60)


@every_pair
@pytest.mark.parametrize("features", [Feature(0), COMBINATIONS[-1]], ids=feature_names)
def test_engine_near_the_end_of_the_index(features: Feature, pair: Pair) -> None:
    # A multiple of the ring's size: with IN_ORDER the next head is 0 again.
    starts = (65520,)
    run_ring_machine(
        *pair, "split", features, sizes=(8, 16), starts=starts, max_examples=EXAMPLES, steps=60
    )


@every_pair
@every_combination
@pytest.mark.parametrize(
    ("kind", "num", "start"), [("split", 64, 65536 - 64), ("packed", 61, 0), ("packed", 64, 0)]
)
def test_engine_wraps(
    kind: LayoutKind, num: int, start: int, features: Feature, pair: Pair
) -> None:
    run_many_buffers(*pair, kind, num, features, total=300, batch=27, start=start)


@pytest.mark.parametrize("features", [Feature.EVENT_IDX, COMBINATIONS[-1]], ids=feature_names)
@pytest.mark.parametrize(("kind", "num"), [("split", 256), ("packed", 255)])
def test_more_buffers_than_an_index_has_values(
    kind: LayoutKind, num: int, features: Feature
) -> None:
    run_many_buffers(
        EngineBatchDriverEnd, EngineBatchDeviceEnd, kind, num, features,
        total=65536 + 2 * num, batch=97,
    )  # fmt: skip
