"""The model's driver against the model's device, in every combination of features."""

from __future__ import annotations

from itertools import product

import pytest

from virtring.spec.features import Feature

from .ends import LayoutKind
from .long_run import run_many_buffers
from .machine import run_ring_machine
from .model_ends import ModelDeviceEnd, ModelDriverEnd

COMBINATIONS = [
    event | indirect | order
    for event, indirect, order in product(
        (Feature(0), Feature.EVENT_IDX),
        (Feature(0), Feature.INDIRECT_DESC),
        (Feature(0), Feature.IN_ORDER),
    )
]
KINDS: tuple[LayoutKind, ...] = ("split", "packed")


def feature_names(features: Feature) -> str:
    return "+".join(feature.name or "" for feature in features) or "plain"


@pytest.mark.parametrize("features", COMBINATIONS, ids=feature_names)
@pytest.mark.parametrize("kind", KINDS)
def test_model_against_model(kind: LayoutKind, features: Feature) -> None:
    starts = (0, 65530) if kind == "split" else (0,)
    run_ring_machine(ModelDriverEnd, ModelDeviceEnd, kind, features, starts=starts)


@pytest.mark.parametrize("features", COMBINATIONS, ids=feature_names)
@pytest.mark.parametrize(
    ("kind", "num", "start"), [("split", 64, 65000), ("packed", 61, 0), ("packed", 64, 0)]
)
def test_wrap_in_every_combination(
    kind: LayoutKind, num: int, start: int, features: Feature
) -> None:
    run_many_buffers(
        ModelDriverEnd, ModelDeviceEnd, kind, num, features, total=1200, batch=27, start=start
    )


def test_more_buffers_than_an_index_has_values() -> None:
    features = Feature.EVENT_IDX | Feature.IN_ORDER
    run_many_buffers(
        ModelDriverEnd, ModelDeviceEnd, "split", 256, features, total=65536 + 256, batch=97
    )
