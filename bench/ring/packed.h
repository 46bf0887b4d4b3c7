// Both sides of a packed virtqueue, with the checks that src/virtqueue/packed-*.ts makes. Where TypeScript needs a
// scan and a fence to order plain loads, C has acquire loads, which cost nothing on x86.
#include "ring.h"

#define LOAD_ACQUIRE(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
enum { EVENT_DISABLE = 1, EVENT_DESC = 2 };

typedef struct {
  uint64_t address;
  uint32_t length;
  uint32_t tail;  // buffer id, then flags in the upper half
} packed_desc_t;

typedef struct {
  memory_t *memory;
  uint32_t size;
  packed_desc_t *desc;
  uint32_t *driver_event, *device_event;
  const char *fault;
  uint32_t avail_index, used_index, published_index;
  uint32_t avail_bits;
  uint32_t used_bits;
  bool published_wrap;
  uint32_t staged, held;
  uint32_t in_flight, descriptors, free, free_id;
  bool off;
  int64_t *room;
  uint16_t *taken, *order, *next, *fresh;
  uint32_t order_next;
  uint32_t fresh_count;
  uint32_t *token;
} packed_t;

static const uint32_t P_AVAIL = (uint32_t)AVAIL << 16, P_BOTH = (uint32_t)(AVAIL | USED) << 16;
static const uint32_t P_NEXT = NEXT << 16, P_WRITE = WRITE << 16, P_INDIRECT = INDIRECT << 16;

static packed_t packed_new(memory_t *memory, uint64_t address, uint32_t size) {
  uint8_t *host = memory->regions[0].host + (address - memory->regions[0].base);
  packed_t q = {.memory = memory, .size = size, .free = size, .avail_bits = P_AVAIL, .used_bits = P_BOTH};
  q.desc = (packed_desc_t *)host;
  q.driver_event = (uint32_t *)(host + 16 * size);
  q.device_event = q.driver_event + 1;
  q.room = take(size, 8);
  q.taken = take(size, 2);
  q.order = take(size, 2);
  q.next = take(size, 2);
  q.fresh = take(size, 2);
  q.token = take(size, 4);
  q.published_wrap = true;
  for (uint32_t i = 0; i < size; i++) {
    q.room[i] = IDLE;
    q.next[i] = (i + 1) % size;
  }
  return q;
}

static bool packed_crossed(const packed_t *q, uint32_t word, uint32_t index, bool wrap, uint32_t moved) {
  const uint32_t flags = (word >> 16) & 3;
  if (flags == EVENT_DISABLE) return false;
  if (flags != EVENT_DESC) return true;
  uint32_t event = word & 0x7fff;
  if (((word >> 15) & 1) != wrap) event -= q->size;
  return (uint16_t)(index - event - 1) < moved;
}

static bool packed_available(packed_t *q) {
  if (q->fault) return false;
  const uint32_t tail = LOAD_SC(&q->desc[q->avail_index].tail);
  if ((tail & P_BOTH) == q->avail_bits) return true;
  if ((tail & P_BOTH) == (q->avail_bits == P_AVAIL ? P_BOTH : 0)) q->fault = "flags";
  return false;
}

static uint32_t packed_pop(packed_t *q, batch_t *batch, uint32_t max) {
  if (!packed_available(q)) return 0;
  const uint32_t size = q->size;
  uint32_t limit = max < batch->capacity - batch->count ? max : batch->capacity - batch->count;
  uint32_t count = 0, segments = batch->segments, position = q->avail_index, position_bits = q->avail_bits;
  uint64_t base = 0, end = 0;
  int region = 0;
  bool writable_region = false;
  for (; count < limit; count++) {
    const uint32_t chain = batch->count + count, first = segments;
    uint32_t index = position, bits = position_bits, links = 0, readable = 0, writable = 0;
    uint64_t readable_bytes = 0, writable_bytes = 0;
    uint32_t tail = LOAD_ACQUIRE(&q->desc[index].tail);
    if ((tail & P_BOTH) != bits) break;
    for (;;) {
      const uint64_t address = LOAD(&q->desc[index].address);
      const uint32_t length = LOAD(&q->desc[index].length);
      if ((tail & P_BOTH) != bits) {
        q->fault = "flags";
        break;
      }
      if ((tail & P_INDIRECT) || length == 0 || segments >= MAX_SEGMENTS) {
        q->fault = "not measured here";
        break;
      }
      if (!(address >= base && address < end && length <= end - address)) {
        region = locate(q->memory, address, length);
        if (region < 0) {
          q->fault = "buffer-address";
          break;
        }
        base = q->memory->regions[region].base;
        end = q->memory->regions[region].end;
        writable_region = !q->memory->regions[region].read_only;
      }
      if (tail & P_WRITE) {
        if (!writable_region) {
          q->fault = "buffer-address";
          break;
        }
        writable++;
        writable_bytes += length;
      } else {
        if (writable != 0) {
          q->fault = "order";
          break;
        }
        readable++;
        readable_bytes += length;
      }
      batch->region[segments] = region;
      batch->offset[segments] = address - base;
      batch->length[segments] = length;
      segments++;
      links++;
      if (++index == size) {
        index = 0;
        bits ^= P_BOTH;
      }
      if (q->descriptors + links > size) {
        q->fault = "index-jump";
        break;
      }
      if (!(tail & P_NEXT)) break;
      tail = LOAD(&q->desc[index].tail);
    }
    const uint32_t id = tail & 0xffff;
    if (!q->fault && readable_bytes + writable_bytes > CHAIN_MAX) q->fault = "chain-bytes";
    if (!q->fault && (id >= size || q->room[id] >= 0)) q->fault = "duplicate";
    if (q->fault) {
      segments = first;
      break;
    }
    batch->readable[chain] = readable;
    batch->writable[chain] = writable;
    batch->readable_bytes[chain] = readable_bytes;
    batch->writable_bytes[chain] = writable_bytes;
    batch->id[chain] = id;
    batch->first[chain] = first;
    q->room[id] = writable_bytes;
    q->taken[id] = links;
    q->order[q->order_next] = id;
    if (++q->order_next == size) q->order_next = 0;
    q->descriptors += links;
    position = index;
    position_bits = bits;
  }
  batch->count += count;
  batch->segments = segments;
  q->avail_index = position;
  q->avail_bits = position_bits;
  q->in_flight += count;
  return count;
}

static void packed_push(packed_t *q, uint16_t id, uint64_t written) {
  if (q->fault) return;
  if (id >= q->size || q->room[id] < 0 || written > (uint64_t)q->room[id]) abort();
  packed_desc_t *d = &q->desc[q->used_index];
  uint32_t tail = id | q->used_bits;
  if (written > 0) tail |= P_WRITE;
  STORE(&d->length, written < CHAIN_MAX ? (uint32_t)written : UINT32_MAX);
  if (q->staged == 0) q->held = tail;
  else STORE(&d->tail, tail);
  const uint32_t links = q->taken[id];
  q->room[id] = IDLE;
  q->in_flight--;
  q->staged += links;
  q->used_index += links;
  if (q->used_index >= q->size) {
    q->used_index -= q->size;
    q->used_bits ^= P_BOTH;
  }
}

static bool packed_flush(packed_t *q) {
  const uint32_t staged = q->staged;
  if (staged == 0 || q->fault) return false;
  STORE_SC(&q->desc[q->published_index].tail, q->held);
  q->staged = 0;
  q->descriptors -= staged;
  q->published_index = q->used_index;
  return packed_crossed(q, LOAD_SC(q->driver_event), q->used_index, q->used_bits != 0, staged);
}

static void packed_disable_kicks(packed_t *q) {
  if (q->off || q->fault) return;
  q->off = true;
  STORE_SC(q->device_event, EVENT_DISABLE << 16);
}

static bool packed_enable_kicks(packed_t *q) {
  if (q->fault) return false;
  STORE_SC(q->device_event, EVENT_DESC << 16 | (q->avail_bits == P_AVAIL) << 15 | q->avail_index);
  q->off = false;
  return packed_available(q);
}

static bool packed_add(packed_t *q, const scatter_t *sg, uint32_t start, uint32_t out, uint32_t in, uint32_t token) {
  const uint32_t total = out + in, size = q->size;
  if (q->fault) return false;
  if (total > q->free || total < 1) return false;
  const uint32_t id = q->free_id;
  uint32_t index = q->avail_index, bits = q->avail_bits;
  uint64_t readable_bytes = 0, writable_bytes = 0;
  bool hold = q->staged == 0;
  for (uint32_t i = 0; i < total; i++) {
    const uint32_t length = sg->length[start + i];
    uint32_t tail = bits | id;
    if (i < out) readable_bytes += length;
    else {
      writable_bytes += length;
      tail |= P_WRITE;
    }
    if (i + 1 < total) tail |= P_NEXT;
    STORE(&q->desc[index].address, sg->address[start + i]);
    STORE(&q->desc[index].length, length);
    if (hold) {
      q->held = tail;
      hold = false;
    } else STORE(&q->desc[index].tail, tail);
    if (++index == size) {
      index = 0;
      bits ^= P_BOTH;
    }
  }
  if (readable_bytes + writable_bytes > CHAIN_MAX) abort();
  q->avail_index = index;
  q->avail_bits = bits;
  q->free_id = q->next[id];
  q->taken[id] = total;
  q->room[id] = -2 - (int64_t)writable_bytes;
  q->token[id] = token;
  q->fresh[q->fresh_count++] = id;
  q->staged += total;
  q->free -= total;
  q->in_flight++;
  return true;
}

static bool packed_publish(packed_t *q) {
  const uint32_t staged = q->staged;
  if (staged == 0 || q->fault) return false;
  for (uint32_t i = 0; i < q->fresh_count; i++) q->room[q->fresh[i]] = -2 - q->room[q->fresh[i]];
  q->fresh_count = 0;
  STORE_SC(&q->desc[q->published_index].tail, q->held);
  q->staged = 0;
  q->published_index = q->avail_index;
  q->published_wrap = q->avail_bits == P_AVAIL;
  return packed_crossed(q, LOAD_SC(q->device_event), q->published_index, q->published_wrap, staged);
}

static bool packed_used_waits(packed_t *q) {
  return !q->fault && (LOAD_SC(&q->desc[q->used_index].tail) & P_BOTH) == q->used_bits;
}

static uint32_t packed_get(packed_t *q, uint32_t *tokens, uint32_t *lengths, uint32_t max) {
  if (!packed_used_waits(q)) return 0;
  uint32_t index = q->used_index, bits = q->used_bits, count = 0;
  for (; count < max; count++) {
    const uint32_t tail = LOAD_ACQUIRE(&q->desc[index].tail);
    if ((tail & P_BOTH) != bits) break;
    const uint32_t id = tail & 0xffff;
    if (id >= q->size) {
      q->fault = "descriptor-index";
      break;
    }
    const int64_t room = q->room[id];
    if (room < 0) {
      q->fault = "duplicate";
      break;
    }
    uint32_t length = LOAD(&q->desc[index].length);
    if (length > room) {
      if (tail & P_WRITE) {
        q->fault = "used-length";
        break;
      }
      length = 0;
    }
    tokens[count] = q->token[id];
    lengths[count] = length;
    q->room[id] = IDLE;
    q->next[id] = q->free_id;
    q->free_id = id;
    q->free += q->taken[id];
    index += q->taken[id];
    if (index >= q->size) {
      index -= q->size;
      bits ^= P_BOTH;
    }
  }
  q->in_flight -= count;
  q->used_index = index;
  q->used_bits = bits;
  return count;
}

static void packed_disable_callbacks(packed_t *q) {
  if (q->off || q->fault) return;
  q->off = true;
  STORE_SC(q->driver_event, EVENT_DISABLE << 16);
}

static bool packed_enable_callbacks(packed_t *q) {
  if (q->fault) return false;
  STORE_SC(q->driver_event, EVENT_DESC << 16 | (q->used_bits == P_BOTH) << 15 | q->used_index);
  q->off = false;
  return packed_used_waits(q);
}
