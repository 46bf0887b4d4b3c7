// Shared by the C peers of the ring bench: guest memory of several regions, batches of chains, the clock and the
// conversation with bench/ring/index.ts ("go" on standard input, requests per second on standard output).
#ifndef RING_H
#define RING_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { NEXT = 1, WRITE = 2, INDIRECT = 4, AVAIL = 1 << 7, USED = 1 << 15 };
enum { QUEUE_SIZE = 1024, MAX_BATCH = 256, MAX_SEGMENTS = MAX_BATCH * 4 };
static const int64_t IDLE = -1;
static const uint64_t CHAIN_MAX = 1ull << 32;

#define LOAD(p) __atomic_load_n(p, __ATOMIC_RELAXED)
#define STORE(p, v) __atomic_store_n(p, v, __ATOMIC_RELAXED)
#define LOAD_SC(p) __atomic_load_n(p, __ATOMIC_SEQ_CST)
#define STORE_SC(p, v) __atomic_store_n(p, v, __ATOMIC_SEQ_CST)

typedef struct {
  uint64_t base, end;
  uint8_t *host;
  bool read_only;
} region_t;

typedef struct {
  int count;
  region_t *regions;
} memory_t;

typedef struct {
  uint32_t count, segments, capacity;
  uint16_t *id;
  uint32_t *first, *readable, *writable;
  uint64_t *readable_bytes, *writable_bytes;
  uint16_t *region;
  uint32_t *offset, *length;
} batch_t;

typedef struct {
  uint64_t *address;
  uint32_t *length;
} scatter_t;

static void *take(size_t count, size_t size) {
  void *p = calloc(count, size);
  if (p == NULL) abort();
  return p;
}

static int locate(const memory_t *memory, uint64_t address, uint64_t length) {
  int low = 0, high = memory->count - 1;
  while (low <= high) {
    int middle = (low + high) / 2;
    const region_t *r = &memory->regions[middle];
    if (address < r->base) high = middle - 1;
    else if (address >= r->end) low = middle + 1;
    else return length <= r->end - address ? middle : -1;
  }
  return -1;
}

static batch_t batch_new(void) {
  batch_t b = {.capacity = MAX_BATCH};
  b.id = take(MAX_BATCH, 2);
  b.first = take(MAX_BATCH, 4);
  b.readable = take(MAX_BATCH, 4);
  b.writable = take(MAX_BATCH, 4);
  b.readable_bytes = take(MAX_BATCH, 8);
  b.writable_bytes = take(MAX_BATCH, 8);
  b.region = take(MAX_SEGMENTS, 2);
  b.offset = take(MAX_SEGMENTS, 4);
  b.length = take(MAX_SEGMENTS, 4);
  return b;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

#endif
