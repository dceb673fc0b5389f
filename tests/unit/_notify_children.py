"""What the notification tests run in other processes; importable for spawned children."""

import os
from multiprocessing.connection import Connection

from virtring import DeviceQueue, EventFd, GuestMemory, QueueConfig, wait_available


def echo(there: EventFd, back: EventFd, rounds: int) -> None:
    for _ in range(rounds):
        if not there.wait(20):
            return
        back.signal()


def receive_and_signal(asker: Connection) -> None:
    event: EventFd = asker.recv()
    event.signal()
    asker.send((os.getpid(), os.get_inheritable(event.fileno()), os.get_blocking(event.fileno())))
    asker.close()


def serve(
    memory: GuestMemory, config: QueueConfig, kick: EventFd, call: EventFd, count: int
) -> None:
    """Add 1 to the first byte of ``count`` buffers, sleeping whenever there is none."""
    device = DeviceQueue(memory, config, call=call)
    device.disable_notify()
    done = 0
    while done < count:
        if not wait_available(device, kick, 20):
            return
        while (chain := device.next_chain()) is not None:
            data = chain.read()
            chain.write(bytes([data[0] + 1 & 0xFF]))
            device.return_(chain)
            done += 1
        device.signal()
    device.close()
