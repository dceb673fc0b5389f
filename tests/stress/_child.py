"""The devices of the stress test; importable for a spawned process."""

from __future__ import annotations

import random
import zlib

from virtring import DeviceQueue, EventFd, Feature, GuestMemory, QueueConfig, wait_available
from virtring.queue import Batch, Chain
from virtring.queue.notify import Spin

WAIT = 30.0
#: Descriptors that a batch of the device takes for each chain.
PER_CHAIN = 8


def serve(
    memory: GuestMemory, config: QueueConfig, kick: EventFd, call: EventFd, count: int, burst: int
) -> None:
    """Answer ``count`` chains with their checksum and themselves backwards, in any order allowed.

    Looks at up to ``burst`` chains before it answers any.
    """
    device = DeviceQueue(memory, config, call=call)
    spin, rng = Spin(max_us=50), random.Random(count)
    done = 0
    while done < count:
        assert wait_available(device, kick, WAIT, spin), f"{done} of {count} chains came"
        chains: list[Chain] = []
        while len(chains) < burst and (chain := device.next_chain()) is not None:
            chains.append(chain)
        if Feature.IN_ORDER not in config.features:
            rng.shuffle(chains)
        for chain in chains:
            data = chain.read()
            answer = zlib.crc32(data).to_bytes(4, "little") + data[::-1]
            chain.write(answer[: chain.writable_bytes])
            chain.return_()
        done += len(chains)
        device.signal()
    device.close()


def serve_batches(
    memory: GuestMemory, config: QueueConfig, kick: EventFd, call: EventFd, count: int, burst: int
) -> None:
    """Answer ``count`` chains of one readable and one writable part, by batches, in place."""
    device = DeviceQueue(memory, config, call=call)
    batch = Batch(burst, burst * PER_CHAIN)
    spin = Spin(max_us=50)
    done = 0
    while done < count:
        assert wait_available(device, kick, WAIT, spin), f"{done} of {count} chains came"
        taken = device.pop(batch)
        for row in range(taken):
            first, behind = int(batch.offsets[row]), int(batch.offsets[row + 1])
            assert behind - first == 2
            data = memory.read(int(batch.addr[first]), int(batch.len[first]))
            answer = zlib.crc32(data).to_bytes(4, "little") + data[::-1]
            size = min(len(answer), int(batch.len[first + 1]))
            memory.write(int(batch.addr[first + 1]), answer[:size])
            batch.written[row] = size
        assert device.push(batch) == taken
        done += taken
        device.signal()
    device.close()
