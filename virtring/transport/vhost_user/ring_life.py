"""The rings of a back end's session: starting and stopping them, their notifications."""

import logging
from collections.abc import Callable

from virtring.device import Device
from virtring.queue import DeviceQueue, QueueConfig
from virtring.spec.features import Feature
from virtring.transport.unix import ProtocolError
from virtring.transport.vhost_user.accounts import Accounts
from virtring.transport.vhost_user.memory import FrontEndMemory
from virtring.transport.vhost_user.vring import Vring

log = logging.getLogger(__name__)


class RingLife:
    """The device, the front end's memory and what it has said of each ring.

    ``watch(vring)`` is called when a ring's kicks are to be heard, ``unwatch(vring)`` before its
    kick descriptor is closed.
    """

    def __init__(
        self,
        device: Device,
        watch: Callable[[Vring], object],
        unwatch: Callable[[Vring], object],
    ) -> None:
        self.device = device
        self.watch = watch
        self.unwatch = unwatch
        self.memory = FrontEndMemory()
        self.accounts = Accounts()
        self.vrings = [Vring(i) for i in range(len(device.queues))]
        self.features = Feature(0)
        self.begun = False

    def interrupt(self, index: int) -> None:
        self.vrings[index].interrupt()

    def vring(self, index: int) -> Vring:
        if index >= len(self.vrings):
            raise ProtocolError(f"ring {index}; the device has {len(self.vrings)}")
        return self.vrings[index]

    def stopped_vring(self, index: int, what: str) -> Vring:
        vring = self.vring(index)
        if vring.started:
            raise ProtocolError(f"{what} of ring {index}, which is running")
        return vring

    def start(self, vring: Vring) -> None:
        if not vring.has_addresses or not vring.num:
            raise ProtocolError(f"ring {vring.index} is kicked before it has a size and addresses")
        if not self.begun:
            self.device.core.begin(int(self.features))
            self.begun = True
        find = self.memory.guest_address
        config = QueueConfig(
            vring.num,
            find(vring.desc),
            find(vring.avail),
            find(vring.used),
            self.features,
            vring.index,
            self.device.names[vring.index],
        )
        if config.packed and not vring.base >> 16:
            # DPDK's front end leaves out where the used position is: there it is the same, as
            # nothing is in flight in a ring that is stopped.
            vring.base |= vring.base << 16
        make = self.accounts.maker(vring)
        self.device.make_queue = make or DeviceQueue
        # A queue that keeps accounts knows from them where it was.
        self.device.start_queue(vring.index, config, vring.base if make is None else None)
        vring.started = True
        log.info(
            "ring %d (%s): %s, %d entries, from %#x on, features %s",
            vring.index,
            config.name,
            "packed" if config.packed else "split",
            config.size,
            vring.base,
            config.features.name,
        )

    def stop(self, vring: Vring) -> None:
        if vring.started:
            vring.base = vring.stopped = self.device.stop_queue(vring.index)
            vring.started = False
            self.show(vring)

    def show(self, vring: Vring) -> None:
        """Tell the device's core whether it may use the queue, as other transports' registers do.

        ``Device.wake`` goes by it.
        """
        config = self.device.core.queue_configs[vring.index]
        config.enabled = vring.started and vring.enabled

    def stop_all(self) -> None:
        for vring in self.vrings:
            self.stop(vring)

    def unmap(self) -> None:
        self.device.memory_changed()
        self.memory.unmap_removed()

    def update_log(self) -> None:
        for vring in self.vrings:
            self.accounts.update(self.device.queues[vring.index], vring.log)
