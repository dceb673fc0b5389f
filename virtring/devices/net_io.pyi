from virtring.device.packets import Packets
from virtring.devices.net_packets import NetPackets
from virtring.memory.guest import GuestMemory
from virtring.queue.device import DeviceQueue

class NetPair(NetPackets):
    def put(
        self, memory: GuestMemory, queue: DeviceQueue, packets: Packets, start: int = 0
    ) -> int: ...
    def take(self, memory: GuestMemory, queue: DeviceQueue, packets: Packets) -> int: ...
    def echo(
        self, memory: GuestMemory, tx: DeviceQueue, rx: DeviceQueue, most: int, poll: float = 0.0
    ) -> int: ...
