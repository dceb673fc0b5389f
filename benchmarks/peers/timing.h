/* SPDX-License-Identifier: BSD-3-Clause */
/* What both C harnesses share: the clock, pinning, and the one JSON line that a run prints. */
#ifndef VIRTRING_PEERS_TIMING_H
#define VIRTRING_PEERS_TIMING_H

#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

#define MAX_ROUNDS 1000
/* How often a round is run again that lost its core to another process. */
#define MAX_TRIES 20
#define WARM_NS 20000000u

static inline uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline _Noreturn void fail(const char *what)
{
	fprintf(stderr, "%s\n", what);
	exit(1);
}

static inline void pin_to(long cpu)
{
	cpu_set_t set;

	if (cpu < 0)
		return;
	CPU_ZERO(&set);
	CPU_SET((unsigned int)cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set) != 0)
		fail("cannot pin to this cpu");
}

/* A whole number in low..high, or the program ends. */
static inline long number(const char *text, long low, long high)
{
	char *end;
	long value = strtol(text, &end, 0);

	if (*text == '\0' || *end != '\0' || value < low || value > high) {
		fprintf(stderr, "%s: want a number from %ld to %ld\n", text, low, high);
		exit(2);
	}
	return value;
}

static inline int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static inline long preemptions(void)
{
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	return usage.ru_nivcsw;
}

/*
 * Calls `round` to warm up, for WARM_NS at least, as a core that was idle is slow at first, and then
 * until there are `rounds` samples. A round in which the kernel gave the core to somebody else
 * measures them too, and is run again. Returns how many rounds never had the core to themselves and
 * were kept all the same.
 */
static inline unsigned int take_samples(double (*round)(void *), void *context, double *samples,
					unsigned int rounds)
{
	unsigned int i, tries, preempted = 0;
	uint64_t start = now_ns();

	do
		round(context);
	while (now_ns() - start < WARM_NS);
	for (i = 0; i < rounds; i++) {
		for (tries = 0; tries < MAX_TRIES; tries++) {
			long before = preemptions();

			samples[i] = round(context);
			if (preemptions() == before)
				break;
		}
		preempted += tries == MAX_TRIES;
	}
	return preempted;
}

/* `name` and `ring` are plain words; nothing in them needs escaping. */
struct report {
	const char *peer;
	const char *ring;
	const char *name;
	unsigned int ring_size;
	unsigned int descriptors;
	unsigned int batch;
	int indirect;
	unsigned int rounds;
	unsigned int preempted;
};

static inline void print_report(const struct report *r, const double *samples)
{
	unsigned int rounds = r->rounds;
	double sorted[MAX_ROUNDS];
	double median;
	unsigned int i;

	for (i = 0; i < rounds; i++)
		sorted[i] = samples[i];
	qsort(sorted, rounds, sizeof(sorted[0]), by_value);
	median = (sorted[(rounds - 1) / 2] + sorted[rounds / 2]) / 2;
	printf("{\"peer\": \"%s\", \"ring\": \"%s\", \"ring_size\": %u, \"case\": \"%s\", "
	       "\"descriptors\": %u, \"batch\": %u, \"indirect\": %s, "
	       "\"ns_per_buffer_median\": %.3f, \"ns_per_buffer_min\": %.3f, \"rounds\": %u, "
	       "\"preempted\": %u, \"samples\": [",
	       r->peer, r->ring, r->ring_size, r->name, r->descriptors, r->batch,
	       r->indirect ? "true" : "false", median, sorted[0], rounds, r->preempted);
	for (i = 0; i < rounds; i++)
		printf("%s%.3f", i ? ", " : "", samples[i]);
	printf("]}\n");
}

#endif
