"""Constants of the standard's device and transport chapters against numbers written out here."""

from enum import IntEnum, IntFlag

import numpy as np
import pytest

from virtring.spec import balloon, blk, console, ids, mmio, net, pci, rng, rpmsg, status
from virtring.spec.features import Feature


def offsets(dtype: np.dtype[np.void]) -> dict[str, int]:
    assert dtype.fields is not None
    return {name: field[1] for name, field in dtype.fields.items()}


def numbers(words: str) -> dict[str, int]:
    """``"a=1 b=0x2"`` as a dictionary."""
    return {name: int(number, 0) for name, number in (word.split("=") for word in words.split())}


def bit_numbers(flags: type[IntFlag]) -> dict[str, int]:
    assert all(flag.bit_count() == 1 for flag in flags)
    return {str(flag.name): flag.bit_length() - 1 for flag in flags}


def values(enum: type[IntEnum]) -> dict[str, int]:
    return {name: int(member) for name, member in enum.__members__.items()}


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (pci.PCI_CAP, 16),
        (pci.PCI_CAP64, 24),
        (pci.PCI_NOTIFY_CAP, 20),
        (pci.PCI_CFG_CAP, 20),
        (pci.PCI_VNDR_DATA, 6),
        (pci.COMMON_CFG, 64),
        (pci.MSIX_ENTRY, 16),
        (net.NET_CONFIG, 28),
        (net.NET_HDR_V1, 12),
        (net.NET_HDR_V1_HASH, 20),
        (net.NET_CTRL_HDR, 2),
        (blk.BLK_CONFIG, 96),
        (blk.BLK_REQ, 16),
        (blk.BLK_DISCARD_WRITE_ZEROES, 16),
        (blk.BLK_LIFETIME, 6),
        (blk.BLK_ZONE_REPORT, 64),
        (blk.BLK_ZONE_DESCRIPTOR, 64),
        (console.CONSOLE_CONFIG, 12),
        (console.CONSOLE_CONTROL, 8),
        (console.CONSOLE_RESIZE, 4),
        (balloon.BALLOON_CONFIG, 16),
        (balloon.BALLOON_PFN, 4),
        (balloon.BALLOON_STAT, 10),
        (rpmsg.RPMSG_HDR, 16),
        (rpmsg.RPMSG_NS_MSG, 40),
    ],
)
def test_sizes(dtype: np.dtype[np.void], size: int) -> None:
    assert dtype.itemsize == size
    # no field is big-endian
    assert dtype.newbyteorder("<") == dtype


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (
            pci.PCI_CAP,
            "cap_vndr=0 cap_next=1 cap_len=2 cfg_type=3 bar=4 id=5 padding=6 offset=8 length=12",
        ),
        (pci.PCI_CAP64, "cap=0 offset_hi=16 length_hi=20"),
        (pci.PCI_NOTIFY_CAP, "cap=0 notify_off_multiplier=16"),
        (pci.PCI_CFG_CAP, "cap=0 pci_cfg_data=16"),
        (pci.PCI_VNDR_DATA, "cap_vndr=0 cap_next=1 cap_len=2 cfg_type=3 vendor_id=4"),
        (pci.MSIX_ENTRY, "addr_lo=0 addr_hi=4 data=8 vector_ctrl=12"),
        (
            net.NET_CONFIG,
            "mac=0 status=6 max_virtqueue_pairs=8 mtu=10 speed=12 duplex=16 rss_max_key_size=17"
            " rss_max_indirection_table_length=18 supported_hash_types=20"
            " supported_tunnel_types=24",
        ),
        (
            net.NET_HDR_V1,
            "flags=0 gso_type=1 hdr_len=2 gso_size=4 csum_start=6 csum_offset=8 num_buffers=10",
        ),
        (net.NET_HDR_V1_HASH, "hdr=0 hash_value=12 hash_report=16 padding=18"),
        (
            blk.BLK_CONFIG,
            "capacity=0 size_max=8 seg_max=12 geometry=16 blk_size=20 topology=24 writeback=32"
            " unused0=33 num_queues=34 max_discard_sectors=36 max_discard_seg=40"
            " discard_sector_alignment=44 max_write_zeroes_sectors=48 max_write_zeroes_seg=52"
            " write_zeroes_may_unmap=56 unused1=57 max_secure_erase_sectors=60"
            " max_secure_erase_seg=64 secure_erase_sector_alignment=68 zoned=72",
        ),
        (blk.BLK_REQ, "type=0 reserved=4 sector=8"),
        (blk.BLK_DISCARD_WRITE_ZEROES, "sector=0 num_sectors=8 flags=12"),
        (blk.BLK_ZONE_DESCRIPTOR, "z_cap=0 z_start=8 z_wp=16 z_type=24 z_state=25 reserved=26"),
        (console.CONSOLE_CONFIG, "cols=0 rows=2 max_nr_ports=4 emerg_wr=8"),
        (console.CONSOLE_CONTROL, "id=0 event=4 value=6"),
        (balloon.BALLOON_CONFIG, "num_pages=0 actual=4 free_page_hint_cmd_id=8 poison_val=12"),
        (balloon.BALLOON_STAT, "tag=0 val=2"),
        (rpmsg.RPMSG_HDR, "src=0 dst=4 reserved=8 len=12 flags=14"),
        (rpmsg.RPMSG_NS_MSG, "name=0 addr=32 flags=36"),
    ],
)
def test_offsets(dtype: np.dtype[np.void], expected: str) -> None:
    assert offsets(dtype) == numbers(expected)


def test_common_registers_are_the_fields_of_the_structure() -> None:
    assert values(pci.CommonReg) == {k.upper(): v for k, v in offsets(pci.COMMON_CFG).items()}
    assert [int(reg) for reg in pci.CommonReg] == [
        *(0, 4, 8, 12, 16, 18, 20, 21, 22, 24, 26, 28, 30, 32, 40, 48, 56, 58, 60, 62)
    ]


def test_mmio_registers() -> None:
    assert [int(reg) for reg in mmio.MmioReg] == [
        *(0x00, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x20, 0x24, 0x30, 0x34, 0x38, 0x44, 0x50),
        *(0x60, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xA0, 0xA4, 0xAC, 0xB0, 0xB4, 0xB8),
        *(0xBC, 0xC0, 0xFC, 0x100),
    ]
    assert mmio.MMIO_MAGIC.to_bytes(4, "little") == b"virt"
    assert mmio.MMIO_VERSION == 2
    assert bit_numbers(mmio.MmioInterrupt) == {"VRING": 0, "CONFIG": 1}


def test_pci_numbers() -> None:
    assert {name: value for name, value in values(pci.PciReg).items() if "BAR" in name} == {
        f"BAR{n}": 0x10 + 4 * n for n in range(6)
    }
    assert (pci.PciReg.SUBSYSTEM_VENDOR_ID, pci.PciReg.SUBSYSTEM_ID) == (0x2C, 0x2E)
    assert (pci.PciReg.CAPABILITY_LIST, pci.PciReg.INTERRUPT_PIN) == (0x34, 0x3D)
    assert (pci.PciReg.VENDOR_ID, pci.PciReg.DEVICE_ID, pci.PciReg.REVISION_ID) == (0, 2, 8)
    assert values(pci.CfgType) == numbers(
        "COMMON=1 NOTIFY=2 ISR=3 DEVICE=4 PCI=5 SHARED_MEMORY=8 VENDOR=9"
    )
    assert bit_numbers(pci.IsrStatus) == {"QUEUE": 0, "CONFIG": 1}
    assert bit_numbers(pci.PciStatus) == {"INTERRUPT": 3, "CAP_LIST": 4}
    assert bit_numbers(pci.PciCommand) == {"IO": 0, "MEMORY": 1, "MASTER": 2, "INTX_DISABLE": 10}
    assert values(pci.PciCapID) == {"VNDR": 9, "EXP": 0x10, "MSIX": 0x11}
    assert (pci.PCI_VENDOR_ID, pci.MSI_NO_VECTOR) == (0x1AF4, 0xFFFF)


def test_device_ids() -> None:
    assert {int(d) for d in ids.DeviceID} == set(range(1, 50)) - {14, 15}
    some = {"NET": 1, "BLOCK": 2, "CONSOLE": 3, "RNG": 4, "BALLOON": 5, "RPMSG": 7, "SCSI": 8}
    some |= {"GPU": 16, "INPUT": 18, "VSOCK": 19, "FS": 26, "GPIO": 41, "SPI": 45, "MEDIA": 48}
    assert some.items() <= values(ids.DeviceID).items()
    assert {d.name: pci_id for d, pci_id in ids.TRANSITIONAL_PCI_ID.items()} == numbers(
        "NET=0x1000 BLOCK=0x1001 BALLOON=0x1002 CONSOLE=0x1003 SCSI=0x1004 RNG=0x1005 P9=0x1009"
    )
    # every device has a PCI id of the range
    assert pci.PCI_DEVICE_ID_BASE + max(ids.DeviceID) <= pci.PCI_DEVICE_ID_LAST


def test_status_bits() -> None:
    assert {str(bit.name): int(bit) for bit in status.Status} == numbers(
        "ACKNOWLEDGE=1 DRIVER=2 DRIVER_OK=4 FEATURES_OK=8 SUSPEND=16 NEEDS_RESET=64 FAILED=128"
    )


def test_transport_feature_bits() -> None:
    assert bit_numbers(Feature) == numbers(
        "NOTIFY_ON_EMPTY=24 ANY_LAYOUT=27 INDIRECT_DESC=28 EVENT_IDX=29 VERSION_1=32"
        " ACCESS_PLATFORM=33 RING_PACKED=34 IN_ORDER=35 ORDER_PLATFORM=36 SR_IOV=37"
        " NOTIFICATION_DATA=38 NOTIF_CONFIG_DATA=39 RING_RESET=40 ADMIN_VQ=41 SUSPEND=43"
    )


def test_device_feature_bits() -> None:
    # the bits of each device that the standard leaves out
    assert set(bit_numbers(net.NetFeature).values()) == (
        set(range(24)) - {4} | {41, 42} | set(range(50, 71)) - {58}
    )
    assert set(bit_numbers(blk.BlkFeature).values()) == set(range(18)) - {3, 8}
    assert list(bit_numbers(console.ConsoleFeature).values()) == [0, 1, 2]
    assert list(bit_numbers(balloon.BalloonFeature).values()) == [0, 1, 2, 3, 4, 5]
    assert list(bit_numbers(rpmsg.RpmsgFeature).values()) == [0]
    some = {"CSUM": 0, "MAC": 5, "MRG_RXBUF": 15, "CTRL_VQ": 17, "MQ": 22, "HASH_REPORT": 57}
    assert some.items() <= bit_numbers(net.NetFeature).items()
    more = {"SEG_MAX": 2, "RO": 5, "FLUSH": 9, "MQ": 12, "DISCARD": 13, "ZONED": 17}
    assert more.items() <= bit_numbers(blk.BlkFeature).items()
    assert not set(bit_numbers(net.NetFeature).values()) & set(bit_numbers(Feature).values()) - {
        Feature.ADMIN_VQ.bit_length() - 1  # the legacy GUEST_RSC4 is the same bit
    }


def test_requests() -> None:
    assert (blk.BlkType.IN, blk.BlkType.OUT, blk.BlkType.FLUSH, blk.BlkType.GET_ID) == (0, 1, 4, 8)
    assert (blk.BlkType.DISCARD, blk.BlkType.WRITE_ZEROES, blk.BlkType.SECURE_ERASE) == (11, 13, 14)
    assert list(blk.BlkStatus) == [0, 1, 2, 3, 4, 5, 6]
    assert list(net.NetCtrl) == list(range(10))
    assert list(net.NetGso) == [0, 1, 3, 4, 5, 0x20, 0x40, 0x80]
    assert list(console.ConsoleEvent) == list(range(8))
    assert list(console.ConsoleQueue) == [0, 1, 2, 3]
    assert list(balloon.BalloonStat) == list(range(10))
    assert list(balloon.BalloonQueue) == [0, 1, 2, 3, 4]
    assert list(rng.RngQueue) == [0]
    assert list(rpmsg.RpmsgNs) == [0, 1]
    assert (rpmsg.RPMSG_NS_ADDR, rpmsg.RPMSG_ADDR_ANY) == (53, 0xFFFFFFFF)
