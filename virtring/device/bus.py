"""The bus on which devices and drivers find each other (Linux ``drivers/virtio/virtio.c``)."""

from virtring.device.driver import VirtioDriver
from virtring.device.virtio_device import VirtioDevice
from virtring.errors import FeaturesRejected, InvalidArgument, WrongState
from virtring.spec.status import Status


class VirtioBus:
    """Binds every device to the first registered driver that matches its id."""

    def __init__(self) -> None:
        self.devices: list[VirtioDevice] = []
        self.drivers: list[type[VirtioDriver]] = []
        self._next_index = 0

    def register_driver(self, driver: type[VirtioDriver]) -> None:
        """Add a driver and bind it to the devices that have none (``register_virtio_driver``).

        What a probe raises is raised here, once all devices were tried.
        """
        if not driver.id_table:
            raise InvalidArgument(f"{driver.__name__} has no id_table")
        if driver in self.drivers:
            raise InvalidArgument(f"{driver.__name__} is registered already")
        self.drivers.append(driver)
        failure: Exception | None = None
        for vdev in self.devices:
            if vdev.driver is None and driver.matches(vdev.id):
                try:
                    self.bind(vdev, driver)
                except Exception as error:
                    failure = failure or error
        if failure is not None:
            raise failure

    def unregister_driver(self, driver: type[VirtioDriver]) -> None:
        """Take a driver away from all its devices (``unregister_virtio_driver``).

        What a removal raises is raised here, once all devices were tried.
        """
        if driver not in self.drivers:
            raise InvalidArgument(f"{driver.__name__} is not registered")
        bound = [vdev for vdev in self.devices if type(vdev.driver) is driver]
        for vdev in bound:
            quiet(vdev)
        self.drivers.remove(driver)
        failure: Exception | None = None
        for vdev in bound:
            if type(vdev.driver) is driver:
                try:
                    self.unbind(vdev)
                except Exception as error:
                    failure = failure or error
        if failure is not None:
            raise failure

    def register_device(self, vdev: VirtioDevice) -> None:
        """Add a device, reset and acknowledged, and bind its driver (``register_virtio_device``).

        What the probe raises is raised here; the device is on the bus all the same, unbound.
        """
        if vdev in self.devices:
            raise InvalidArgument(f"{vdev!r} is registered already")
        vdev.index = self._next_index
        vdev.config_disable()
        # Whatever a driver before us did, the device begins anew.
        vdev.reset()
        vdev.add_status(Status.ACKNOWLEDGE)
        self._next_index += 1
        self.devices.append(vdev)
        for driver in self.drivers:
            if driver.matches(vdev.id):
                self.bind(vdev, driver)
                return

    def unregister_device(self, vdev: VirtioDevice) -> None:
        """Take a device from the bus; its driver is removed (``unregister_virtio_device``)."""
        if vdev not in self.devices:
            raise InvalidArgument(f"{vdev!r} is not on this bus")
        quiet(vdev)
        try:
            if vdev.driver is not None:
                self.unbind(vdev)
        finally:
            self.devices.remove(vdev)

    def bind(self, vdev: VirtioDevice, driver: type[VirtioDriver]) -> None:
        """Negotiate and probe (``virtio_dev_probe``). The status ends FAILED if that fails."""
        if vdev.driver is not None:
            raise WrongState(f"{vdev!r} has a driver already")
        if vdev.config.get_status(vdev) != Status.ACKNOWLEDGE:
            # A driver before us failed: only a reset cures that.
            self._restart(vdev)
        bound = driver(vdev)
        vdev.driver = bound
        try:
            vdev.add_status(Status.DRIVER)
            negotiate(vdev, bound)
            bound.probe()
            if Status.DRIVER_OK not in vdev.config.get_status(vdev):
                vdev.ready()
            bound.scan()
        except BaseException:
            self._fail(vdev)
            vdev.driver = None
            raise
        vdev.config_enable()

    def unbind(self, vdev: VirtioDevice) -> None:
        """Remove the driver of a device (``virtio_dev_remove``); it stays acknowledged.

        Whatever ``remove`` raises is raised, WrongState if it leaves the device running; the
        device is reset and without driver all the same.
        """
        driver = vdev.driver
        if driver is None:
            raise WrongState(f"{vdev!r} has no driver")
        quiet(vdev)
        try:
            driver.remove()
            status = vdev.config.get_status(vdev)
            if status:
                raise WrongState(f"{type(driver).__name__}.remove left the device with {status!r}")
        finally:
            self._restart(vdev)
            vdev.driver = None

    def _restart(self, vdev: VirtioDevice) -> None:
        """Reset and acknowledge, with no queue left."""
        if vdev.config.get_status(vdev):
            vdev.reset()
        vdev.config.del_vqs(vdev)
        vdev.add_status(Status.ACKNOWLEDGE)

    def _fail(self, vdev: VirtioDevice) -> None:
        """The driver has given up. Its queues go, once the device does not use them any more."""
        if vdev.vqs:
            vdev.reset()
            vdev.config.del_vqs(vdev)
            vdev.add_status(Status.ACKNOWLEDGE | Status.DRIVER)
        vdev.add_status(Status.FAILED)

    def freeze(self, vdev: VirtioDevice) -> None:
        """Put a device to rest (``virtio_device_freeze``)."""
        quiet(vdev)
        vdev.failed = Status.FAILED in vdev.config.get_status(vdev)
        if vdev.driver is not None:
            vdev.driver.freeze()

    def restore(self, vdev: VirtioDevice) -> None:
        """Wake a device that was put to rest (``virtio_device_restore``)."""
        vdev.reset()
        vdev.add_status(Status.ACKNOWLEDGE)
        if vdev.failed:
            # It had failed before it slept: waking does not mend it.
            vdev.add_status(Status.FAILED)
        driver = vdev.driver
        if driver is None:
            return
        try:
            vdev.add_status(Status.DRIVER)
            negotiate(vdev, driver)
            driver.restore()
            if Status.DRIVER_OK not in vdev.config.get_status(vdev):
                vdev.ready()
        except BaseException:
            self._fail(vdev)
            raise
        vdev.config_enable()


def quiet(vdev: VirtioDevice) -> None:
    """No change of the configuration reaches the driver any more; WrongState in a callback."""
    # First of all, so that nothing is changed when it is refused.
    vdev.config.synchronize_cbs(vdev)
    vdev.config_disable()
    # And for one that came in between.
    vdev.config.synchronize_cbs(vdev)


def negotiate(vdev: VirtioDevice, driver: VirtioDriver) -> None:
    """Agree on features, driver side: offer, choice, validation, FEATURES_OK."""
    offered = vdev.config.get_features(vdev)
    vdev.features = driver.choose(offered)
    driver.validate()
    extra = int(vdev.features) & ~offered
    if extra:
        raise FeaturesRejected(f"{type(driver).__name__} chose {extra:#x}, which was not offered")
    vdev.config.finalize_features(vdev)
    vdev.features_ok()
