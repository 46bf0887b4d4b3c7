// Both sides of a split virtqueue, with the checks that src/virtqueue/split-*.ts makes.
#include "ring.h"

typedef struct {
  memory_t *memory;
  uint32_t size, mask;
  uint8_t *desc;
  uint16_t *avail;
  uint16_t *used;
  const char *fault;
  uint16_t avail_index, used_index, published;
  uint32_t in_flight, free, free_head;
  int64_t *room;
  uint16_t *order;
  // driver
  uint16_t *next, *last, *taken;
  uint32_t *token;
} split_t;

static split_t split_new(memory_t *memory, uint64_t address, uint32_t size) {
  uint8_t *host = memory->regions[0].host + (address - memory->regions[0].base);
  split_t q = {.memory = memory, .size = size, .mask = size - 1, .free = size};
  q.desc = host;
  q.avail = (uint16_t *)(host + 16 * size);
  q.used = (uint16_t *)(host + ((16 * size + 6 + 2 * size + 3) & ~3u));
  q.room = take(size, 8);
  q.order = take(size, 2);
  q.next = take(size, 2);
  q.last = take(size, 2);
  q.taken = take(size, 2);
  q.token = take(size, 4);
  for (uint32_t i = 0; i < size; i++) {
    q.room[i] = IDLE;
    q.next[i] = (i + 1) & q.mask;
  }
  return q;
}

static uint32_t split_pop(split_t *q, batch_t *batch, uint32_t max) {
  if (q->fault) return 0;
  const uint32_t size = q->size, mask = q->mask;
  const uint16_t position = q->avail_index;
  const uint16_t ahead = LOAD_SC(&q->avail[1]) - position;
  if (ahead == 0) return 0;
  if (ahead > size) {
    q->fault = "index-jump";
    return 0;
  }
  uint32_t limit = ahead < max ? ahead : max;
  if (limit > batch->capacity - batch->count) limit = batch->capacity - batch->count;
  uint32_t count = 0, segments = batch->segments;
  uint64_t base = 0, end = 0;
  int region = 0;
  bool writable_region = false;
  for (; count < limit; count++) {
    const uint16_t head = LOAD(&q->avail[2 + ((position + count) & mask)]);
    if (head >= size || q->room[head] >= 0) {
      q->fault = head >= size ? "descriptor-index" : "duplicate";
      break;
    }
    const uint32_t chain = batch->count + count, first = segments;
    uint32_t index = head, descriptors = 1, readable = 0, writable = 0;
    uint64_t readable_bytes = 0, writable_bytes = 0;
    for (;;) {
      const uint8_t *d = q->desc + 16 * index;
      const uint64_t address = LOAD((uint64_t *)d);
      const uint32_t length = LOAD((uint32_t *)(d + 8));
      const uint32_t tail = LOAD((uint32_t *)(d + 12));
      if ((tail & INDIRECT) || length == 0 || segments >= MAX_SEGMENTS) {
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
      if (tail & WRITE) {
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
      if (!(tail & NEXT)) break;
      index = tail >> 16;
      if (index >= size || descriptors++ == size) {
        q->fault = "chain-length";
        break;
      }
    }
    if (!q->fault && readable_bytes + writable_bytes > CHAIN_MAX) q->fault = "chain-bytes";
    if (q->fault) {
      segments = first;
      break;
    }
    batch->readable[chain] = readable;
    batch->writable[chain] = writable;
    batch->readable_bytes[chain] = readable_bytes;
    batch->writable_bytes[chain] = writable_bytes;
    batch->id[chain] = head;
    batch->first[chain] = first;
    q->room[head] = writable_bytes;
    q->order[(position + count) & mask] = head;
  }
  batch->count += count;
  batch->segments = segments;
  q->avail_index = position + count;
  q->in_flight += count;
  return count;
}

static void split_push(split_t *q, uint16_t id, uint64_t written) {
  if (q->fault) return;
  if (id >= q->size || q->room[id] < 0 || written > (uint64_t)q->room[id]) abort();
  q->room[id] = IDLE;
  q->in_flight--;
  uint32_t *element = (uint32_t *)(q->used + 2) + 2 * (q->used_index & q->mask);
  STORE(&element[0], (uint32_t)id);
  STORE(&element[1], written < CHAIN_MAX ? (uint32_t)written : UINT32_MAX);
  q->used_index++;
}

static bool split_flush(split_t *q) {
  const uint16_t old = q->published, new = q->used_index;
  if (new == old || q->fault) return false;
  STORE_SC(&q->used[1], new);
  q->published = new;
  const uint16_t event = LOAD_SC(&q->avail[2 + q->size]);
  return (uint16_t)(new - event - 1) < (uint16_t)(new - old);
}

static bool split_enable_kicks(split_t *q) {
  if (q->fault) return false;
  STORE_SC(&q->used[2 + 4 * q->size], q->avail_index);
  return LOAD_SC(&q->avail[1]) != q->avail_index;
}

static bool split_add(split_t *q, const scatter_t *sg, uint32_t start, uint32_t out, uint32_t in, uint32_t token) {
  const uint32_t total = out + in;
  if (q->fault) return false;
  if (total > q->free || total < 1) return false;
  const uint32_t head = q->free_head;
  uint32_t index = head, last = head;
  uint64_t readable_bytes = 0, writable_bytes = 0;
  for (uint32_t i = 0; i < total; i++) {
    const uint64_t address = sg->address[start + i];
    const uint32_t length = sg->length[start + i];
    const uint32_t next = q->next[index];
    uint32_t tail = next << 16;
    if (i < out) readable_bytes += length;
    else {
      writable_bytes += length;
      tail |= WRITE;
    }
    if (i + 1 < total) tail |= NEXT;
    uint8_t *d = q->desc + 16 * index;
    STORE((uint64_t *)d, address);
    STORE((uint32_t *)(d + 8), length);
    STORE((uint32_t *)(d + 12), tail);
    last = index;
    index = next;
  }
  if (readable_bytes + writable_bytes > CHAIN_MAX) abort();
  q->free_head = index;
  q->last[head] = last;
  const uint16_t position = q->avail_index;
  const uint32_t slot = position & q->mask;
  STORE(&q->avail[2 + slot], (uint16_t)head);
  q->order[slot] = head;
  q->taken[head] = total;
  q->room[head] = -2 - (int64_t)writable_bytes;
  q->token[head] = token;
  q->free -= total;
  q->in_flight++;
  q->avail_index++;
  return true;
}

static bool split_publish(split_t *q) {
  const uint16_t old = q->published, new = q->avail_index;
  if (new == old || q->fault) return false;
  for (uint16_t position = old; position != new; position++) {
    const uint16_t head = q->order[position & q->mask];
    q->room[head] = -2 - q->room[head];
  }
  STORE_SC(&q->avail[1], new);
  q->published = new;
  const uint16_t event = LOAD_SC(&q->used[2 + 4 * q->size]);
  return (uint16_t)(new - event - 1) < (uint16_t)(new - old);
}

static uint32_t split_get(split_t *q, uint32_t *tokens, uint32_t *lengths, uint32_t max) {
  if (q->fault) return 0;
  const uint16_t from = q->used_index;
  const uint16_t ahead = LOAD_SC(&q->used[1]) - from;
  if (ahead == 0) return 0;
  if (ahead > q->in_flight - (uint16_t)(q->avail_index - q->published)) {
    q->fault = "index-jump";
    return 0;
  }
  const uint32_t limit = ahead < max ? ahead : max;
  uint32_t count = 0;
  for (; count < limit; count++) {
    const uint32_t *element = (uint32_t *)(q->used + 2) + 2 * ((from + count) & q->mask);
    const uint32_t id = LOAD(&element[0]), length = LOAD(&element[1]);
    if (id >= q->size) {
      q->fault = "descriptor-index";
      break;
    }
    const int64_t room = q->room[id];
    if (room < 0) {
      q->fault = "duplicate";
      break;
    }
    if (length > room) {
      q->fault = "used-length";
      break;
    }
    tokens[count] = q->token[id];
    lengths[count] = length;
    q->room[id] = IDLE;
    q->free += q->taken[id];
    q->next[q->last[id]] = q->free_head;
    q->free_head = id;
  }
  q->in_flight -= count;
  q->used_index = from + count;
  return count;
}

static bool split_enable_callbacks(split_t *q) {
  if (q->fault) return false;
  STORE_SC(&q->avail[2 + q->size], q->used_index);
  return LOAD_SC(&q->used[1]) != q->used_index;
}

// With EVENT_IDX the event indices stay behind: nothing to write.
static void split_disable_kicks(split_t *q) { (void)q; }
static void split_disable_callbacks(split_t *q) { (void)q; }
