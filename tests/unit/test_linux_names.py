"""README's table of Linux names: complete, and every name is there as the table says it."""

import re
from pathlib import Path

import pytest

import virtring

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
TABLE = README.split("## Linux names", 1)[1].split("\n## ", 1)[0]
ROWS = re.findall(r"^\| `(\w+)` \| (none|`[^`]+`) \| (.*?) ?\|$", TABLE, re.M)

#: The functions that Linux's virtio_ring.c exports, of 6.12 and of what was added since.
EXPORTED = """
    virtio_max_dma_size virtqueue_add_sgs virtqueue_add_outbuf virtqueue_add_inbuf
    virtqueue_add_inbuf_ctx virtqueue_kick_prepare virtqueue_notify virtqueue_kick
    virtqueue_get_buf_ctx virtqueue_get_buf virtqueue_disable_cb virtqueue_enable_cb_prepare
    virtqueue_poll virtqueue_enable_cb virtqueue_enable_cb_delayed virtqueue_detach_unused_buf
    vring_interrupt vring_create_virtqueue virtqueue_resize virtqueue_set_dma_premapped
    vring_new_virtqueue vring_del_virtqueue vring_transport_features virtqueue_get_vring_size
    __virtqueue_break __virtqueue_unbreak virtqueue_is_broken virtio_break_device
    __virtio_unbreak_device virtqueue_get_desc_addr virtqueue_get_avail_addr
    virtqueue_get_used_addr virtqueue_get_vring virtqueue_dma_map_single_attrs
    virtqueue_dma_unmap_single_attrs virtqueue_dma_mapping_error virtqueue_dma_need_sync
    virtqueue_dma_sync_single_range_for_cpu virtqueue_dma_sync_single_range_for_device
    virtqueue_dma_dev virtqueue_reset virtqueue_add_outbuf_premapped
    virtqueue_add_inbuf_premapped virtqueue_map_single_attrs virtqueue_unmap_single_attrs
    virtqueue_map_mapping_error virtqueue_map_sync_single_range_for_cpu
    virtqueue_map_sync_single_range_for_device virtqueue_map_page_attrs virtqueue_unmap_page_attrs
    virtqueue_map_need_sync virtqueue_map_alloc_coherent virtqueue_map_free_coherent
"""


def test_the_table_is_complete() -> None:
    names = [linux for linux, _, _ in ROWS]
    assert len(names) == len(set(names)) == TABLE.count("\n| `")
    assert set(EXPORTED.split()) - set(names) == set()
    # Of the header beside it.
    assert set(names) - set(EXPORTED.split()) == {"vring_size"}


@pytest.mark.parametrize(("linux", "ours", "remark"), ROWS, ids=[row[0] for row in ROWS])
def test_name(linux: str, ours: str, remark: str) -> None:
    if ours == "none":
        assert remark, f"{linux} has no counterpart, and no reason is given"
        return
    path = ours.strip("`")
    thing: object = virtring
    for part in path.removesuffix("()").split("."):
        thing = getattr(thing, part)
    assert callable(thing) == path.endswith("()")
    assert getattr(thing, "__doc__", None), f"{path} has no docstring"
