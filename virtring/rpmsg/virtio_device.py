"""The RPMsg device: the far end of Linux's ``virtio_rpmsg_bus`` behind any transport."""

from collections.abc import Sequence
from dataclasses import dataclass

from virtring.device import RING_OFFER, Device
from virtring.queue import DeviceQueue
from virtring.queue.notify import EventFd
from virtring.rpmsg.channel import RpmsgDriver
from virtring.rpmsg.ends import DeviceBus
from virtring.rpmsg.pump import Pump
from virtring.rpmsg.wire import BUF_SIZE, SEND_TIMEOUT, RpmsgFeature, check_buf_size
from virtring.spec.features import Feature
from virtring.spec.ids import DeviceID

#: The driver's receive queue, which we write to, and its send queue.
INPUT, OUTPUT = 0, 1
#: Not IN_ORDER: a buffer that a user holds would keep back all those behind it.
OFFER = RING_OFFER & ~Feature.IN_ORDER


@dataclass(frozen=True)
class Session:
    """From the driver's start to the next reset of the device or of a queue."""

    bus: DeviceBus
    pump: Pump
    #: By queue: what a kick signals.
    events: tuple[EventFd, EventFd]


class RpmsgDevice(Device):
    """Endpoints for a driver at the other side of a transport.

    services: announced when the driver is ready, each name a channel with that driver. drivers:
    serve channels that the driver announces. Both run in a thread of the device's. tx_buf_size,
    rx_buf_size, timeout: as for :class:`DeviceBus`. features: RpmsgFeature bits on offer.

    :attr:`bus` is there while a driver is. A reset, of the device or of one queue, ends it: who
    waits gets QueueClosed, channels and endpoints are gone. The next driver gets a new bus and the
    announcements again. Raises InvalidArgument for sizes that cannot be.

    Linux 6.1 takes announcements and messages in its interrupt. Over PCI that is a context which
    must not sleep, and creating a channel can: announce services without a device node, and best
    while the guest is idle.
    """

    device_id = DeviceID.RPMSG
    queue_names = ("input", "output")

    def __init__(
        self,
        services: Sequence[RpmsgDriver] = (),
        drivers: Sequence[RpmsgDriver] = (),
        *,
        features: int = RpmsgFeature.NS,
        ring_features: int = OFFER,
        queue_size: int = 256,
        rx_buf_size: int = BUF_SIZE,
        tx_buf_size: int = BUF_SIZE,
        timeout: float | None = SEND_TIMEOUT,
    ) -> None:
        self.rx_buf_size = check_buf_size(rx_buf_size, "rx_buf_size")
        self.tx_buf_size = check_buf_size(tx_buf_size, "tx_buf_size")
        super().__init__(features=features, ring_features=ring_features, queue_size=queue_size)
        self.services = tuple(services)
        self.drivers = tuple(drivers)
        self.timeout = timeout
        self._session: Session | None = None

    @property
    def bus(self) -> DeviceBus | None:
        """The bus of the driver that is there now."""
        session = self._session
        return None if session is None else session.bus

    def started(self, bus: DeviceBus) -> None:
        """A driver is there; called in the device's thread. Announces the services.

        Override it to bind endpoints and channels of your own.
        """
        for driver in self.services:
            for name in driver.names:
                bus.create_channel(name, announce=True, driver=driver)

    def ready(self, features: Feature) -> None:
        self._begin()

    def queue_started(self, index: int, queue: DeviceQueue) -> None:
        # Some transports say that the driver is ready before they have the queues.
        self._begin()

    def _begin(self) -> None:
        svq, rvq = self.queues
        if self._session is not None or svq is None or rvq is None or not self.core.running:
            return
        events = (EventFd(), EventFd())
        bus = DeviceBus(
            rvq,
            svq,
            self.memory,
            int(self.features),
            rx_buf_size=self.rx_buf_size,
            tx_buf_size=self.tx_buf_size,
            rx_event=events[OUTPUT],
            tx_event=events[INPUT],
            timeout=self.timeout,
        )
        for driver in self.drivers:
            bus.register_driver(driver)
        pump = Pump(bus, lambda: self.started(bus), self.needs_reset)
        self._session = Session(bus, pump, events)
        pump.start()

    def handle_queue(self, index: int, queue: DeviceQueue) -> None:
        session = self._session
        if session is not None:
            session.events[index].signal()

    def queue_stopped(self, index: int, queue: DeviceQueue) -> None:
        # Transports call this with the device's lock held, which those in the bus may wait for:
        # they find the queue closed, and the pump ends by itself.
        session, self._session = self._session, None
        if session is not None:
            session.bus.shut()
