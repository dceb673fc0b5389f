"""Which packets a network device lets through to its driver (virtio 1.4, 5.1.6.5.1 to 5.1.6.5.3).
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset

from virtring.errors import InvalidArgument

cdef enum:
    TABLE = 64
    VLANS = 4096
    TAGGED = 0x8100
    MIN_FRAME = 14
    GROUP = 1

cdef uint64_t BROADCAST = 0xFFFFFFFFFFFF


cdef inline uint64_t address(const uint8_t* p) noexcept nogil:
    cdef uint64_t mac = 0
    cdef int i
    for i in range(6):
        mac = mac << 8 | p[i]
    return mac


cdef bint listed(const uint64_t* table, int n, uint64_t mac) noexcept nogil:
    cdef int i
    if n < 0:
        return True
    for i in range(n):
        if table[i] == mac:
            return True
    return False


cdef class NetFilter:
    """The receive filter of a device: modes, the device's address, tables of addresses and VLANs.

    As after a reset it is promiscuous, until the driver says otherwise; a driver that knows no
    CTRL_RX gets everything. ``vlans_on``: was CTRL_VLAN negotiated? Tables hold 64 addresses;
    longer ones let all of their kind through.
    """

    def __init__(self, mac):
        self.set_mac(mac)
        self.reset()

    def reset(self) -> None:
        """Modes and tables as at the start; the address stays."""
        self.promisc = True
        self.allmulti = self.alluni = self.nomulti = self.nouni = self.nobcast = False
        self.vlans_on = False
        self.n_unicast = self.n_multicast = 0
        memset(self.vlan_bits, 0, sizeof(self.vlan_bits))

    def set_mac(self, mac) -> None:
        """The device's own address. Raises InvalidArgument unless it is 6 bytes."""
        if len(mac) != 6:
            raise InvalidArgument(f"a MAC address of {len(mac)} bytes; it has 6")
        self.mac = int.from_bytes(mac, "big")

    def set_table(self, unicast, multicast) -> None:
        """The addresses to let through, lists of 6 bytes each."""
        cdef int i
        self.n_unicast = -1 if len(unicast) > TABLE else len(unicast)
        for i in range(self.n_unicast):
            self.unicast[i] = int.from_bytes(unicast[i], "big")
        self.n_multicast = -1 if len(multicast) > TABLE else len(multicast)
        for i in range(self.n_multicast):
            self.multicast[i] = int.from_bytes(multicast[i], "big")

    def set_vlan(self, vlan, on) -> bool:
        """Let a VLAN through or not; False when there is no such number."""
        cdef unsigned int id
        cdef uint8_t bit
        if not 0 <= vlan < VLANS:
            return False
        id = vlan
        bit = <uint8_t>(1 << (id & 7))
        if on:
            self.vlan_bits[id >> 3] |= bit
        else:
            self.vlan_bits[id >> 3] &= <uint8_t>~bit
        return True

    def accepts_frame(self, frame) -> bool:
        """Does this Ethernet frame, a bytes-like object, go to the driver?"""
        cdef const uint8_t[::1] view = frame
        return view.shape[0] >= MIN_FRAME and self.accepts(&view[0], view.shape[0])

    cdef bint accepts(self, const uint8_t* frame, size_t size) noexcept nogil:
        """The same, of the first LOOK bytes, at least those of an Ethernet header."""
        cdef uint64_t mac
        cdef int vlan
        if self.promisc:
            return True
        if self.vlans_on and size >= LOOK and (frame[12] << 8 | frame[13]) == TAGGED:
            vlan = (frame[14] << 8 | frame[15]) & (VLANS - 1)
            if not self.vlan_bits[vlan >> 3] >> (vlan & 7) & 1:
                return False
        mac = address(frame)
        if mac == BROADCAST:
            return not self.nobcast
        if frame[0] & GROUP:
            if self.nomulti:
                return False
            return self.allmulti or listed(self.multicast, self.n_multicast, mac)
        if self.nouni:
            return False
        return self.alluni or mac == self.mac or listed(self.unicast, self.n_unicast, mac)
