"""The driver of the RPMsg device (Linux ``virtio_rpmsg_bus.c``)."""

import logging
from typing import ClassVar

from virtring.device import VirtioDevice, VirtioDeviceId, VirtioDriver
from virtring.queue import Virtqueue
from virtring.queue.notify import EventFd
from virtring.rpmsg.channel import RpmsgDriver
from virtring.rpmsg.ends import DriverBus
from virtring.rpmsg.pump import Pump
from virtring.rpmsg.wire import BUF_SIZE, SEND_TIMEOUT, RpmsgFeature
from virtring.spec.ids import DeviceID

log = logging.getLogger(__name__)


class VirtioRpmsg(VirtioDriver):
    """Binds devices of type 7; ``vdev.driver.bus`` is the :class:`DriverBus` of one.

    Messages are handed out by a thread of the driver's: callbacks run there. A subclass sets
    ``services``, the :class:`RpmsgDriver` objects for channels that devices announce; later ones
    come by ``bus.register_driver``. The other attributes are options of :class:`DriverBus`.

    After :meth:`restore` there is a new bus with the same drivers, and no channel.
    """

    name = "virtio_rpmsg_bus"
    id_table = (VirtioDeviceId(DeviceID.RPMSG),)
    feature_table = (RpmsgFeature.NS,)

    services: ClassVar[tuple[RpmsgDriver, ...]] = ()
    rx_buf_size: ClassVar[int] = BUF_SIZE
    tx_buf_size: ClassVar[int] = BUF_SIZE
    num_bufs: ClassVar[int | None] = None
    timeout: ClassVar[float | None] = SEND_TIMEOUT

    bus: DriverBus

    def __init__(self, vdev: VirtioDevice) -> None:
        super().__init__(vdev)
        self._drivers = list(self.services)

    def probe(self) -> None:
        """Two queues, all receive buffers posted; the device is told once it may use them."""
        # Interrupts only wake who waits: they may come to a thread that is in a call of ours.
        events = (EventFd(), EventFd())
        rvq, svq = self.vdev.find_vqs(
            [lambda _: events[0].signal(), lambda _: events[1].signal()], ["input", "output"]
        )
        assert isinstance(rvq, Virtqueue)
        assert isinstance(svq, Virtqueue)
        self.bus = DriverBus(
            rvq,
            svq,
            self.vdev.memory,
            int(self.vdev.features),
            rx_buf_size=self.rx_buf_size,
            tx_buf_size=self.tx_buf_size,
            num_bufs=self.num_bufs,
            rx_event=events[0],
            tx_event=events[1],
            timeout=self.timeout,
            kick=False,
        )
        for driver in self._drivers:
            self.bus.register_driver(driver)
        self._pump = Pump(self.bus, rvq.kick, lambda why: log.warning("%s", why))
        self.vdev.ready()
        self._pump.start()

    def remove(self) -> None:
        """Who waits gets QueueClosed; drivers lose their channels, nothing is announced."""
        self.bus.shut()
        self.vdev.reset()
        self._pump.join()
        self.vdev.config.del_vqs(self.vdev)

    def freeze(self) -> None:
        """As removal; the drivers are remembered."""
        self._drivers = list(self.bus.drivers)
        self.remove()
