// SPDX-License-Identifier: BSD-3-Clause
/*
 * Times Linux's virtio_ring.c in user space, one case a run.
 *
 * Linked with virtio_ring.o of a kernel source, compiled with the headers of its tools/virtio.
 * Everything here is in Linux's favour: the scatter list is made once, the device does the least
 * that a device can do and asks for no notification, and callbacks are off.
 *
 *   round    `batch` adds, one kick, one device step, `batch` get_buf; all of it is timed
 *   call     add_outbuf + kick_prepare, then get_buf, each over a ring full of buffers; the device
 *            step in between is not timed, so nothing has to be subtracted
 *   device   only that device step, for those who would rather subtract
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <linux/slab.h>

#include "timing.h"

#define MAX_RING 32768
#define MAX_DESCRIPTORS 16
#define PAGE 4096

/* Not declared by the shim headers. */
bool virtqueue_kick_prepare(struct virtqueue *vq);
const struct vring *virtqueue_get_vring(struct virtqueue *vq);
dma_addr_t virtqueue_get_desc_addr(struct virtqueue *vq);
dma_addr_t virtqueue_get_used_addr(struct virtqueue *vq);

/* The shims want these: no fake allocator, no pointer that kfree must leave alone. */
void *__kmalloc_fake, *__kfree_ignore_start, *__kfree_ignore_end;

/*
 * In the kernel a ring is page-aligned and zeroed; the shims give it plain malloc. The linker sends
 * malloc here (--wrap), so that Linux does not pay for descriptors that straddle cache lines.
 */
void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);

void *__wrap_malloc(size_t size)
{
	void *p;

	if (size < PAGE)
		return __real_malloc(size);
	size = (size + PAGE - 1) / PAGE * PAGE;
	p = aligned_alloc(PAGE, size);
	if (p)
		memset(p, 0, size);
	return p;
}

struct bench {
	struct virtqueue *vq;
	bool packed;
	bool indirect;
	unsigned int size;
	unsigned int descriptors;
	/* the device's side: split */
	struct vring split;
	uint16_t seen;
	/* the device's side: packed */
	struct vring_packed_desc *ring;
	unsigned int next;
	uint16_t wrap;
	/* what the driver adds */
	struct scatterlist sg[MAX_DESCRIPTORS];
	char *tokens;
	unsigned int token_add, token_get;
	/* what a round is */
	unsigned int batch;
	unsigned int full;
	unsigned int buffers;
};

static bool never_notify(struct virtqueue *vq)
{
	(void)vq;
	fail("a notification, although the device asked for none");
}

static void never_callback(struct virtqueue *vq)
{
	(void)vq;
	fail("a callback from a device that makes none");
}

static void device_split(struct bench *b)
{
	struct vring *r = &b->split;
	uint16_t idx = __atomic_load_n(&r->avail->idx, __ATOMIC_ACQUIRE);
	uint16_t mask = (uint16_t)(b->size - 1);

	while (b->seen != idx) {
		vring_used_elem_t *e = &r->used->ring[b->seen & mask];

		e->id = r->avail->ring[b->seen & mask];
		e->len = 0;
		b->seen++;
	}
	__atomic_store_n(&r->used->idx, idx, __ATOMIC_RELEASE);
}

/* Linux puts a chain's id into its last descriptor, so a device has to walk there. */
static void device_packed(struct bench *b)
{
	const uint16_t avail = 1u << VRING_PACKED_DESC_F_AVAIL, used = 1u << VRING_PACKED_DESC_F_USED;

	for (;;) {
		struct vring_packed_desc *head = &b->ring[b->next], *last = head;
		uint16_t flags = __atomic_load_n(&head->flags, __ATOMIC_ACQUIRE);
		unsigned int count = 1;

		if (!(flags & avail) != !b->wrap || !(flags & used) == !b->wrap)
			return;
		while (last->flags & VRING_DESC_F_NEXT) {
			count++;
			if (++last == b->ring + b->size)
				last = b->ring;
		}
		head->id = last->id;
		head->len = 0;
		__atomic_store_n(&head->flags, b->wrap ? avail | used : 0, __ATOMIC_RELEASE);
		b->next += count;
		if (b->next >= b->size) {
			b->next -= b->size;
			b->wrap ^= 1;
		}
	}
}

static inline void device_step(struct bench *b)
{
	if (b->packed)
		device_packed(b);
	else
		device_split(b);
}

static inline void add(struct bench *b)
{
	if (virtqueue_add_outbuf(b->vq, b->sg, b->descriptors, b->tokens + b->token_add, GFP_ATOMIC))
		fail("virtqueue_add_outbuf failed");
	b->token_add = (b->token_add + 1) & (b->size - 1);
}

static inline void get(struct bench *b)
{
	unsigned int len;

	if (virtqueue_get_buf(b->vq, &len) != b->tokens + b->token_get || len != 0)
		fail("virtqueue_get_buf gave another buffer back");
	b->token_get = (b->token_get + 1) & (b->size - 1);
}

static double time_round(void *context)
{
	struct bench *b = context;
	unsigned int i, j, batch = b->batch, batches = (b->buffers + batch - 1) / batch;
	uint64_t start = now_ns();

	for (i = 0; i < batches; i++) {
		for (j = 0; j < batch; j++)
			add(b);
		virtqueue_kick(b->vq);
		device_step(b);
		for (j = 0; j < batch; j++)
			get(b);
	}
	return (double)(now_ns() - start) / ((double)batches * batch);
}

static double time_apart(struct bench *b, bool device)
{
	unsigned int i, j, full = b->full, turns = (b->buffers + full - 1) / full;
	uint64_t calls = 0, steps = 0;

	for (i = 0; i < turns; i++) {
		uint64_t t0 = now_ns(), t1, t2;

		for (j = 0; j < full; j++) {
			add(b);
			if (virtqueue_kick_prepare(b->vq))
				fail("kick_prepare asks for a notification");
		}
		t1 = now_ns();
		device_step(b);
		t2 = now_ns();
		for (j = 0; j < full; j++)
			get(b);
		calls += (t1 - t0) + (now_ns() - t2);
		steps += t2 - t1;
	}
	return (double)(device ? steps : calls) / ((double)turns * full);
}

static double time_call(void *context)
{
	return time_apart(context, false);
}

static double time_device(void *context)
{
	return time_apart(context, true);
}

static void open_queue(struct bench *b)
{
	static struct virtio_device vdev;
	static char data[MAX_DESCRIPTORS][64];
	unsigned int i;

	vdev.features = 1ULL << VIRTIO_F_VERSION_1;
	if (b->packed)
		vdev.features |= 1ULL << VIRTIO_F_RING_PACKED;
	if (b->indirect)
		vdev.features |= 1ULL << VIRTIO_RING_F_INDIRECT_DESC;
	INIT_LIST_HEAD(&vdev.vqs);
	spin_lock_init(&vdev.vqs_list_lock);
	b->vq = vring_create_virtqueue(0, b->size, PAGE, &vdev, true, false, false, never_notify,
				       never_callback, "bench");
	if (!b->vq)
		fail("vring_create_virtqueue failed");
	virtqueue_disable_cb(b->vq);
	if (b->packed) {
		/* The device's event structure is all that get_used_addr points at. */
		struct vring_packed_desc_event *event =
			(void *)(uintptr_t)virtqueue_get_used_addr(b->vq);

		event->flags = VRING_PACKED_EVENT_FLAG_DISABLE;
		b->ring = (void *)(uintptr_t)virtqueue_get_desc_addr(b->vq);
		b->wrap = 1;
	} else {
		b->split = *virtqueue_get_vring(b->vq);
		b->split.used->flags = VRING_USED_F_NO_NOTIFY;
	}
	sg_init_table(b->sg, b->descriptors);
	for (i = 0; i < b->descriptors; i++)
		sg_set_buf(&b->sg[i], data[i], sizeof(data[i]));
	b->tokens = calloc(b->size, 1);
	if (!b->tokens)
		fail("out of memory");
}

static _Noreturn void usage(void)
{
	fail("usage: linux_ring [--ring split|packed] [--size N] [--descriptors N] [--indirect]\n"
	     "                  [--batch N] [--case round|call|device] [--buffers N] [--rounds N]\n"
	     "                  [--cpu N]");
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "ring", required_argument, NULL, 'r' },
		{ "size", required_argument, NULL, 's' },
		{ "descriptors", required_argument, NULL, 'd' },
		{ "indirect", no_argument, NULL, 'i' },
		{ "batch", required_argument, NULL, 'b' },
		{ "case", required_argument, NULL, 'c' },
		{ "buffers", required_argument, NULL, 'n' },
		{ "rounds", required_argument, NULL, 'R' },
		{ "cpu", required_argument, NULL, 'p' },
		{ NULL, 0, NULL, 0 },
	};
	static struct bench b = { .size = 256, .descriptors = 1, .batch = 1, .buffers = 20000 };
	static double samples[MAX_ROUNDS];
	struct report report = {
		.peer = "linux-ring", .ring = "split", .name = "round", .rounds = 10,
	};
	double (*round)(void *);
	long cpu = -1;
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'r': report.ring = optarg; break;
		case 's': b.size = (unsigned int)number(optarg, 2, MAX_RING); break;
		case 'd': b.descriptors = (unsigned int)number(optarg, 1, MAX_DESCRIPTORS); break;
		case 'i': b.indirect = true; break;
		case 'b': b.batch = (unsigned int)number(optarg, 1, MAX_RING); break;
		case 'c': report.name = optarg; break;
		case 'n': b.buffers = (unsigned int)number(optarg, 1, 1L << 30); break;
		case 'R': report.rounds = (unsigned int)number(optarg, 1, MAX_ROUNDS); break;
		case 'p': cpu = number(optarg, 0, CPU_SETSIZE - 1); break;
		default: usage();
		}
	}
	if (optind != argc || (strcmp(report.ring, "split") && strcmp(report.ring, "packed")))
		usage();
	if (b.size & (b.size - 1))
		fail("--size: want a power of two");
	/* A buffer of one descriptor never goes into a table, as in Linux. */
	b.full = b.indirect && b.descriptors > 1 ? b.size : b.size / b.descriptors;
	if (b.full == 0 || b.batch > b.full)
		fail("--batch: the ring has no room for so many buffers");
	if (!strcmp(report.name, "round"))
		round = time_round;
	else if (!strcmp(report.name, "call"))
		round = time_call;
	else if (!strcmp(report.name, "device"))
		round = time_device;
	else
		usage();
	b.packed = !strcmp(report.ring, "packed");
	report.ring_size = b.size;
	report.descriptors = b.descriptors;
	report.batch = b.batch;
	report.indirect = b.indirect;
	pin_to(cpu);
	open_queue(&b);

	report.preempted = take_samples(round, &b, samples, report.rounds);
	print_report(&report, samples);
	vring_del_virtqueue(b.vq);
	return 0;
}
