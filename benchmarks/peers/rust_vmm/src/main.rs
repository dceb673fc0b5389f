// SPDX-License-Identifier: BSD-3-Clause
//! Times the device side of rust-vmm's virtio-queue (split ring), one case a run.
//!
//! A driver of a few lines makes the whole ring available; that is not timed. Timed is the device
//! emptying it:
//!
//! * `pop`     for each chain: pop_descriptor_chain, walk its descriptors, add_used
//! * `iter`    one iterator over all chains, walking each; then add_used for each head
//! * `slices`  as `pop`, and every descriptor's buffer is looked up in guest memory
//!
//! Only what virtio-queue 0.14 has too is used, so that older releases can be timed as well.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
// All of it, as the trait that has get_slice changed its name between releases.
use vm_memory::*;

const SEGMENT: u32 = 64;
const NEXT: u16 = 1;
const DESC: u64 = 0x1000;
/// Most rounds and descriptors that an argument may ask for.
const MAX_ROUNDS: usize = 1000;
const MAX_RING: u16 = 32768;
/// How often a round is run again that lost its core to another process.
const MAX_TRIES: usize = 20;
const WARM: Duration = Duration::from_millis(20);

fn fail(what: &str) -> ! {
    eprintln!("{what}");
    std::process::exit(1);
}

struct Options {
    case: String,
    size: u16,
    descriptors: u16,
    buffers: usize,
    rounds: usize,
    cpu: Option<usize>,
}

const USAGE: &str = "usage: rust_vmm [--case=pop|iter|slices] [--size=N] [--descriptors=N] \
                     [--buffers=N] [--rounds=N] [--cpu=N]";

fn options() -> Options {
    let mut o = Options {
        case: "pop".into(),
        size: 256,
        descriptors: 1,
        buffers: 20_000,
        rounds: 10,
        cpu: None,
    };
    for word in std::env::args().skip(1) {
        let (name, value) = word.split_once('=').unwrap_or_else(|| fail(USAGE));
        let number = || value.parse::<usize>().unwrap_or_else(|_| fail(USAGE));
        let small = || u16::try_from(number()).unwrap_or_else(|_| fail(USAGE));
        match name {
            "--case" => o.case = value.into(),
            "--size" => o.size = small(),
            "--descriptors" => o.descriptors = small(),
            "--buffers" => o.buffers = number(),
            "--rounds" => o.rounds = number(),
            "--cpu" => o.cpu = Some(number()),
            _ => fail(USAGE),
        }
    }
    if !o.size.is_power_of_two() || o.size > MAX_RING {
        fail("--size: want a power of two up to 32768");
    }
    if o.descriptors == 0 || o.descriptors > o.size {
        fail("--descriptors: want at least 1 and at most the ring's size");
    }
    if o.rounds == 0 || o.rounds > MAX_ROUNDS {
        fail("--rounds: want 1 to 1000");
    }
    o
}

fn pin_to(cpu: usize) {
    // SAFETY: a set of cores is plain bits, all zero when empty, and outlives the call.
    let pinned = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if cpu < libc::CPU_SETSIZE as usize {
            libc::CPU_SET(cpu, &mut set);
        }
        libc::sched_setaffinity(0, std::mem::size_of_val(&set), &set) == 0
    };
    if !pinned {
        fail("cannot pin to this cpu");
    }
}

fn preemptions() -> libc::c_long {
    // SAFETY: the structure is plain numbers and outlives the call.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &mut usage);
        usage.ru_nivcsw
    }
}

/// Ends the program unless the descriptor at `position` of the chain of `head` is what was written.
#[inline(always)]
fn check(data: u64, address: GuestAddress, len: u32, head: u16, position: u64) {
    let want = data + u64::from(SEGMENT) * (u64::from(head) + position);
    if address.0 != want || len != SEGMENT {
        fail("a segment of another address or length");
    }
}

struct Bench {
    mem: GuestMemoryMmap<()>,
    queue: Queue,
    avail: GuestAddress,
    used: GuestAddress,
    data: u64,
    size: u16,
    descriptors: u16,
    chains: u16,
    avail_idx: u16,
    heads: Vec<u16>,
}

impl Bench {
    /// Descriptors lie in ring order, as a fresh driver hands them out.
    fn new(size: u16, descriptors: u16) -> Self {
        let page = |n: u64| n.next_multiple_of(4096);
        let ring = u64::from(size);
        let avail = page(DESC + 16 * ring);
        let used = page(avail + 6 + 2 * ring);
        let data = page(used + 6 + 8 * ring);
        let end = page(data + u64::from(SEGMENT) * ring);
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), end as usize)])
            .unwrap_or_else(|_| fail("no guest memory"));
        let mut queue = Queue::new(size).unwrap_or_else(|_| fail("no queue"));
        queue.set_size(size);
        queue.set_desc_table_address(Some(DESC as u32), None);
        queue.set_avail_ring_address(Some(avail as u32), None);
        queue.set_used_ring_address(Some(used as u32), None);
        queue.set_ready(true);
        if !queue.is_valid(&mem) {
            fail("the queue is not valid");
        }
        let chains = size / descriptors;
        for id in 0..chains * descriptors {
            let last = (id + 1) % descriptors == 0;
            let address = data + u64::from(SEGMENT) * u64::from(id);
            let (flags, next) = if last { (0, 0) } else { (NEXT, id + 1) };
            let rest = u64::from(SEGMENT) | u64::from(flags) << 32 | u64::from(next) << 48;
            for (word, offset) in [(address, 0), (rest, 8)] {
                mem.write_obj(
                    word.to_le(),
                    GuestAddress(DESC + 16 * u64::from(id) + offset),
                )
                .unwrap_or_else(|_| fail("cannot write a descriptor"));
            }
        }
        Bench {
            mem,
            queue,
            avail: GuestAddress(avail),
            used: GuestAddress(used),
            data,
            size,
            descriptors,
            chains,
            avail_idx: 0,
            heads: Vec::with_capacity(usize::from(chains)),
        }
    }

    /// Chains never change, so the driver only lists their heads.
    fn fill(&mut self) {
        for i in 0..self.chains {
            let slot = u64::from(self.avail_idx.wrapping_add(i) % self.size);
            self.mem
                .write_obj(
                    i * self.descriptors,
                    GuestAddress(self.avail.0 + 4 + 2 * slot),
                )
                .unwrap_or_else(|_| fail("cannot write the available ring"));
        }
        self.avail_idx = self.avail_idx.wrapping_add(self.chains);
        self.mem
            .store(
                self.avail_idx,
                GuestAddress(self.avail.0 + 2),
                Ordering::Release,
            )
            .unwrap_or_else(|_| fail("cannot write the available index"));
    }

    #[inline(always)]
    fn empty_by_pop(&mut self, slices: bool) -> u16 {
        let (mem, data, descriptors) = (&self.mem, self.data, u64::from(self.descriptors));
        let mut done = 0;
        while let Some(chain) = self.queue.pop_descriptor_chain(mem) {
            let head = chain.head_index();
            let mut count = 0;
            for descriptor in chain {
                check(data, descriptor.addr(), descriptor.len(), head, count);
                if slices {
                    match mem.get_slice(descriptor.addr(), descriptor.len() as usize) {
                        Ok(slice) => {
                            std::hint::black_box(slice.ptr_guard().as_ptr());
                        }
                        Err(_) => fail("a segment outside guest memory"),
                    }
                }
                count += 1;
            }
            if count != descriptors {
                fail("a chain of another length");
            }
            if self.queue.add_used(mem, head, 0).is_err() {
                fail("add_used failed");
            }
            done += 1;
        }
        done
    }

    #[inline(always)]
    fn empty_by_iter(&mut self) -> u16 {
        let (mem, data, descriptors) = (&self.mem, self.data, u64::from(self.descriptors));
        self.heads.clear();
        let chains = self.queue.iter(mem).unwrap_or_else(|_| fail("no iterator"));
        for chain in chains {
            let head = chain.head_index();
            let mut count = 0;
            for descriptor in chain {
                check(data, descriptor.addr(), descriptor.len(), head, count);
                count += 1;
            }
            if count != descriptors {
                fail("a chain of another length");
            }
            self.heads.push(head);
        }
        for head in &self.heads {
            if self.queue.add_used(mem, *head, 0).is_err() {
                fail("add_used failed");
            }
        }
        self.heads.len() as u16
    }

    /// Nanoseconds a buffer, over as many full rings as `buffers` fill.
    fn round(&mut self, case: &str, buffers: usize) -> f64 {
        let turns = buffers.div_ceil(usize::from(self.chains)).max(1);
        let mut total = 0;
        for _ in 0..turns {
            self.fill();
            let start = Instant::now();
            let done = match case {
                "pop" => self.empty_by_pop(false),
                "slices" => self.empty_by_pop(true),
                "iter" => self.empty_by_iter(),
                _ => fail(USAGE),
            };
            total += start.elapsed().as_nanos();
            let idx: u16 = self
                .mem
                .load(GuestAddress(self.used.0 + 2), Ordering::Acquire)
                .unwrap_or_else(|_| fail("cannot read the used index"));
            if done != self.chains || idx != self.avail_idx {
                fail("not every chain was used");
            }
        }
        total as f64 / (turns * usize::from(self.chains)) as f64
    }
}

fn main() {
    let o = options();
    if let Some(cpu) = o.cpu {
        pin_to(cpu);
    }
    let mut bench = Bench::new(o.size, o.descriptors);
    // A core that was idle is slow at first.
    let start = Instant::now();
    while start.elapsed() < WARM {
        bench.round(&o.case, o.buffers);
    }
    let mut preempted = 0;
    let mut samples = Vec::with_capacity(o.rounds);
    for _ in 0..o.rounds {
        let mut ns = 0.0;
        // A round in which the kernel gave the core to somebody else measures them too.
        let alone = (0..MAX_TRIES).any(|_| {
            let before = preemptions();
            ns = bench.round(&o.case, o.buffers);
            preemptions() == before
        });
        preempted += usize::from(!alone);
        samples.push(ns);
    }
    let mut sorted = samples.clone();
    sorted.sort_by(f64::total_cmp);
    let median = (sorted[(o.rounds - 1) / 2] + sorted[o.rounds / 2]) / 2.0;
    let list: Vec<String> = samples.iter().map(|ns| format!("{ns:.3}")).collect();
    println!(
        "{{\"peer\": \"rust-vmm\", \"ring\": \"split\", \"ring_size\": {}, \"case\": \"{}\", \
         \"descriptors\": {}, \"batch\": {}, \"indirect\": false, \
         \"ns_per_buffer_median\": {median:.3}, \"ns_per_buffer_min\": {:.3}, \"rounds\": {}, \
         \"preempted\": {preempted}, \"samples\": [{}]}}",
        o.size,
        o.case,
        o.descriptors,
        bench.chains,
        sorted[0],
        o.rounds,
        list.join(", ")
    );
}
