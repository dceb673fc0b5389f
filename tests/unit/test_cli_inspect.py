"""``virtring inspect`` on a ring of this process, seen from another one."""

import json
import os

import pytest

from virtring import GuestMemory, Virtqueue, create_pair

from . import _cli


def arguments(memory: GuestMemory, driver: Virtqueue) -> list[str]:
    region = memory.regions[0]
    config = driver.config
    return [
        f"/proc/{os.getpid()}/fd/{region.region.fd}",
        *("--base", hex(region.guest_addr), "--size", str(config.size)),
        *("--desc", hex(config.desc), "--avail", hex(config.avail), "--used", hex(config.used)),
    ]


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_a_live_ring(ring: str) -> None:
    memory = GuestMemory.create(1 << 20)
    driver, device = create_pair(16, packed=ring == "packed", memory=memory)
    buffer = memory.view(memory.alloc(64), 64)
    for number in range(5):
        driver.add_outbuf([buffer], number)
        chain = device.next_chain()
        assert chain is not None
        chain.return_(0)
    driver.add_outbuf([buffer], "waiting")
    more = ["--packed", "--position", str(device.position)] if ring == "packed" else []
    before = memory.read(driver.desc_addr, 4096)
    shown = _cli.run("inspect", *arguments(memory, driver), *more)
    assert shown.returncode == 0, shown.stderr
    assert f"{ring} ring of 16, device side, running" in shown.stdout
    assert "1 available, not popped" in shown.stdout
    data = json.loads(_cli.run("inspect", *arguments(memory, driver), *more, "--json").stdout)
    assert (data["layout"], data["ready"], data["size"]) == (ring, 1, 16)
    assert any(row["len"] == 64 and row["state"] == "available" for row in data["descriptors"])
    # Nobody noticed: the ring is as it was, and goes on.
    assert memory.read(driver.desc_addr, 4096) == before
    chain = device.next_chain()
    assert chain is not None
    chain.return_(0)


def test_what_it_refuses() -> None:
    memory = GuestMemory.create(1 << 20)
    driver, _ = create_pair(16, memory=memory)
    good = arguments(memory, driver)
    for bad, code, text in (
        (["/nowhere", *good[1:]], 1, "/nowhere cannot be opened: No such file"),
        ([*good, "--packed"], 2, "give --position"),
        ([*good, "--size", "17"], 2, "a split ring takes a power of two"),
        ([*good, "--desc", "0x7fff0000"], 1, "desc area"),
        ([*good, "--desc", "here"], 2, "'here' is no number like 256 or 0x1000"),
        ([*good, "--offset", "0x7fff0000"], 1, "has no bytes from 0x7fff0000 on"),
        ([*good, "--offset", "1"], 2, "--offset 0x1 is no multiple of 0x1000"),
        (good[:-2], 2, "Missing option '--used'"),
    ):
        result = _cli.run("inspect", *bad)
        assert result.returncode == code, result.stderr
        assert text in result.stderr
        assert _cli.one_line(result.stderr), result.stderr
