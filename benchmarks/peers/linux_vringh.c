// SPDX-License-Identifier: BSD-3-Clause
/*
 * Times the device side of Linux's vringh.c in user space, one case a run.
 *
 * Linked with vringh.o of a kernel source, compiled with the headers of its tools/virtio. A driver
 * of a few lines makes the whole ring available; that is not timed. Timed is the device emptying
 * it: vringh_getdesc_kern and vringh_complete_kern for each chain, every segment checked.
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <linux/kernel.h>
#include <linux/virtio_ring.h>
#include <linux/virtio_config.h>
#include <linux/vringh.h>

#include "timing.h"

#define MAX_RING 32768
#define MAX_DESCRIPTORS 16
#define SEGMENT 64
#define PAGE 4096

/* The shims want these; nothing here is in user memory, and kmalloc is malloc. */
void *__kmalloc_fake, *__kfree_ignore_start, *__kfree_ignore_end;
void *__user_addr_min, *__user_addr_max;

struct bench {
	struct vringh vrh;
	struct vring ring;
	unsigned int size;
	unsigned int descriptors;
	unsigned int chains;
	unsigned int buffers;
	uint16_t avail_idx;
	char *data;
};

static void *pages(size_t size)
{
	void *p = aligned_alloc(PAGE, (size + PAGE - 1) / PAGE * PAGE);

	if (!p)
		fail("out of memory");
	memset(p, 0, (size + PAGE - 1) / PAGE * PAGE);
	return p;
}

/* Descriptors lie in ring order, as a fresh driver hands them out. */
static void open_ring(struct bench *b)
{
	unsigned int i, j, id;

	b->chains = b->size / b->descriptors;
	b->data = pages((size_t)b->size * SEGMENT);
	vring_init(&b->ring, b->size, pages(vring_size(b->size, PAGE)), PAGE);
	for (i = 0; i < b->chains; i++) {
		for (j = 0; j < b->descriptors; j++) {
			id = i * b->descriptors + j;
			b->ring.desc[id].addr = (uintptr_t)(b->data + (size_t)id * SEGMENT);
			b->ring.desc[id].len = SEGMENT;
			if (j + 1 < b->descriptors) {
				b->ring.desc[id].flags = VRING_DESC_F_NEXT;
				b->ring.desc[id].next = (uint16_t)(id + 1);
			}
		}
	}
	b->ring.avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
	if (vringh_init_kern(&b->vrh, 1ULL << VIRTIO_F_VERSION_1, b->size, true, b->ring.desc,
			     b->ring.avail, b->ring.used))
		fail("vringh_init_kern failed");
}

/* Chains never change, so the driver only lists their heads. */
static void fill(struct bench *b)
{
	unsigned int i;

	for (i = 0; i < b->chains; i++)
		b->ring.avail->ring[(uint16_t)(b->avail_idx + i) & (b->size - 1)] =
			(uint16_t)(i * b->descriptors);
	b->avail_idx += (uint16_t)b->chains;
	__atomic_store_n(&b->ring.avail->idx, b->avail_idx, __ATOMIC_RELEASE);
}

static void empty(struct bench *b)
{
	struct kvec readable[MAX_DESCRIPTORS], writable[1];
	struct vringh_kiov riov, wiov;
	unsigned int i, j;
	uint16_t head;

	vringh_kiov_init(&riov, readable, MAX_DESCRIPTORS);
	vringh_kiov_init(&wiov, writable, 1);
	for (i = 0; i < b->chains; i++) {
		if (vringh_getdesc_kern(&b->vrh, &riov, &wiov, &head, 0) != 1)
			fail("vringh_getdesc_kern found no chain");
		if (riov.used != b->descriptors || wiov.used != 0)
			fail("a chain of another length");
		for (j = 0; j < riov.used; j++)
			if (riov.iov[j].iov_base != b->data + (head + j) * (size_t)SEGMENT ||
			    riov.iov[j].iov_len != SEGMENT)
				fail("a segment of another address or length");
		if (vringh_complete_kern(&b->vrh, head, 0))
			fail("vringh_complete_kern failed");
	}
}

static double time_round(void *context)
{
	struct bench *b = context;
	unsigned int i, turns = (b->buffers + b->chains - 1) / b->chains;
	uint64_t start, total = 0;

	for (i = 0; i < turns; i++) {
		fill(b);
		start = now_ns();
		empty(b);
		total += now_ns() - start;
		if (b->ring.used->idx != b->avail_idx)
			fail("the used index is wrong");
	}
	return (double)total / ((double)turns * b->chains);
}

static _Noreturn void usage(void)
{
	fail("usage: linux_vringh [--size N] [--descriptors N] [--buffers N] [--rounds N] [--cpu N]");
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "size", required_argument, NULL, 's' },
		{ "descriptors", required_argument, NULL, 'd' },
		{ "buffers", required_argument, NULL, 'n' },
		{ "rounds", required_argument, NULL, 'R' },
		{ "cpu", required_argument, NULL, 'p' },
		{ NULL, 0, NULL, 0 },
	};
	static struct bench b = { .size = 256, .descriptors = 1, .buffers = 20000 };
	static double samples[MAX_ROUNDS];
	struct report report = {
		.peer = "linux-vringh", .ring = "split", .name = "device", .rounds = 10,
	};
	long cpu = -1;
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 's': b.size = (unsigned int)number(optarg, 2, MAX_RING); break;
		case 'd': b.descriptors = (unsigned int)number(optarg, 1, MAX_DESCRIPTORS); break;
		case 'n': b.buffers = (unsigned int)number(optarg, 1, 1L << 30); break;
		case 'R': report.rounds = (unsigned int)number(optarg, 1, MAX_ROUNDS); break;
		case 'p': cpu = number(optarg, 0, CPU_SETSIZE - 1); break;
		default: usage();
		}
	}
	if (optind != argc)
		usage();
	if (b.size & (b.size - 1))
		fail("--size: want a power of two");
	if (b.descriptors > b.size)
		fail("--descriptors: more than the ring has");
	pin_to(cpu);
	open_ring(&b);
	report.ring_size = b.size;
	report.descriptors = b.descriptors;
	report.batch = b.chains;
	report.preempted = take_samples(time_round, &b, samples, report.rounds);
	print_report(&report, samples);
	return 0;
}
