/* Tables of requests: columns that JavaScript fills and C reads, so that a batch is one call. Also the calls that end at once. */
#include "virtkit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_ROWS 65536
#define SLOT_BITS 6
#define REQUEST_BYTES (2 * sizeof(double) + 7 * sizeof(int32_t))
#define SEGMENT_BYTES (sizeof(double) + 2 * sizeof(int32_t))

struct vk_table *vk_table(struct vk_env *state, uint32_t id) {
  struct vk_table *table = &state->tables[id & (VK_MAX_TABLES - 1)];
  return table->memory != NULL && table->generation == id >> SLOT_BITS ? table : NULL;
}

/* The columns in the order of src/host/node/native/table.ts: the eight-byte ones first. */
static void lay_out(struct vk_table *table) {
  uint8_t *next = table->memory;
  size_t requests = table->requests;
  size_t segments = table->segments;
#define COLUMN(field, rows)                      \
  table->field = (void *)next;                   \
  next += (rows) * sizeof(*table->field)
  COLUMN(position, requests);
  COLUMN(length, requests);
  COLUMN(segment_offset, segments);
  COLUMN(op, requests);
  COLUMN(fd, requests);
  COLUMN(first, requests);
  COLUMN(count, requests);
  COLUMN(flags, requests);
  COLUMN(tag, requests);
  COLUMN(result, requests);
  COLUMN(segment_region, segments);
  COLUMN(segment_length, segments);
#undef COLUMN
}

/* tableCreate(requests, segments) -> id */
static napi_value table_create(napi_env env, napi_callback_info info) {
  napi_value argv[2];
  struct vk_table table = {0};
  struct vk_env *state = vk_begin(env, info, 2, argv);
  if (state == NULL || !vk_get_uint(env, argv[0], &table.requests) || !vk_get_uint(env, argv[1], &table.segments))
    return NULL;
  if (table.requests == 0 || table.requests > MAX_ROWS || table.segments == 0 || table.segments > MAX_ROWS)
    return vk_throw(env, "a table has 1 to 65536 requests and as many segments");
  uint32_t id = 0;
  while (id < VK_MAX_TABLES && state->tables[id].memory != NULL) id++;
  if (id == VK_MAX_TABLES) return vk_number(env, -ENOSPC);
  size_t size = table.requests * REQUEST_BYTES + table.segments * SEGMENT_BYTES;
  table.memory = calloc(1, size);
  if (table.memory == NULL) return vk_number(env, -ENOMEM);
  napi_value buffer;
  if (napi_create_external_arraybuffer(env, table.memory, size, NULL, NULL, &buffer) != napi_ok ||
      napi_create_reference(env, buffer, 1, &table.buffer) != napi_ok) {
    free(table.memory);
    return vk_throw(env, "this Node.js gives no ArrayBuffer over the add-on's memory");
  }
  lay_out(&table);
  table.generation = state->tables[id].generation;
  state->tables[id] = table;
  return vk_number(env, id | table.generation << SLOT_BITS);
}

/* tableBuffer(id) -> the ArrayBuffer of its columns */
static napi_value table_buffer(napi_env env, napi_callback_info info) {
  napi_value argv[1];
  uint32_t id;
  napi_value buffer;
  struct vk_env *state = vk_begin(env, info, 1, argv);
  if (state == NULL || !vk_get_uint(env, argv[0], &id)) return NULL;
  struct vk_table *table = vk_table(state, id);
  if (table == NULL || napi_get_reference_value(env, table->buffer, &buffer) != napi_ok)
    return vk_throw(env, "no such table");
  return buffer;
}

/* tableDestroy(id) -> 0 */
static napi_value table_destroy(napi_env env, napi_callback_info info) {
  napi_value argv[1];
  uint32_t id;
  napi_value buffer;
  struct vk_env *state = vk_begin(env, info, 1, argv);
  if (state == NULL || !vk_get_uint(env, argv[0], &id)) return NULL;
  struct vk_table *table = vk_table(state, id);
  if (table == NULL) return vk_number(env, -ENOENT);
  if (napi_get_reference_value(env, table->buffer, &buffer) != napi_ok ||
      napi_detach_arraybuffer(env, buffer) != napi_ok)
    return vk_throw(env, "the memory of the table cannot be taken back");
  napi_delete_reference(env, table->buffer);
  free(table->memory);
  table->memory = NULL;
  table->generation = (table->generation + 1) & 0x1ffffff;
  return vk_number(env, 0);
}

int vk_vectors(struct vk_env *state, const struct vk_table *table, uint32_t row, struct iovec *out, uint32_t room,
               struct vk_region_mask *mask) {
  uint32_t first = table->first[row];
  uint32_t count = table->count[row];
  bool write = table->op[row] == VK_OP_READ; /* a read writes to memory */
  if (count == 0 || count > VK_MAX_VECTORS || first > table->segments || count > table->segments - first) return -EINVAL;
  if (count > room) return -ENOBUFS;
  for (uint32_t i = 0; i < count; i++) {
    uint32_t id = table->segment_region[first + i];
    uint32_t length = table->segment_length[first + i];
    uint8_t *at = vk_region_at(state, id, table->segment_offset[first + i], length, write);
    if (at == NULL) return -EFAULT;
    out[i] = (struct iovec){at, length};
    uint32_t slot = id & (VK_MAX_REGIONS - 1);
    if (mask != NULL) mask->words[slot / 64] |= (uint64_t)1 << (slot % 64);
  }
  return (int)count;
}

static int64_t run(struct vk_env *state, const struct vk_table *table, uint32_t row) {
  struct iovec vectors[VK_MAX_VECTORS];
  int fd = table->fd[row];
  int flags = table->flags[row];
  int op = table->op[row];
  int64_t done = -EINVAL;
  if (op == VK_OP_READ || op == VK_OP_WRITE) {
    int count = vk_vectors(state, table, row, vectors, VK_MAX_VECTORS, NULL);
    if (count < 0) return count;
    if (!(table->position[row] >= 0)) return -EINVAL;
    off_t position = (off_t)table->position[row];
    done = op == VK_OP_READ ? preadv2(fd, vectors, count, position, flags) : pwritev2(fd, vectors, count, position, flags);
  } else if (op == VK_OP_FSYNC) done = (flags & 1) != 0 ? fdatasync(fd) : fsync(fd);
  else if (op == VK_OP_FALLOCATE) done = fallocate(fd, flags, (off_t)table->position[row], (off_t)table->length[row]);
  else return done;
  return done < 0 ? -errno : done;
}

/* tableRun(id, first, count) -> requests whose result is negative. Each result is what the system call gave. */
static napi_value table_run(napi_env env, napi_callback_info info) {
  napi_value argv[3];
  uint32_t id;
  uint32_t first;
  uint32_t count;
  struct vk_env *state = vk_begin(env, info, 3, argv);
  if (state == NULL || !vk_get_uint(env, argv[0], &id) || !vk_get_uint(env, argv[1], &first) ||
      !vk_get_uint(env, argv[2], &count))
    return NULL;
  struct vk_table *table = vk_table(state, id);
  if (table == NULL || first > table->requests || count > table->requests - first)
    return vk_throw(env, "no such requests");
  uint32_t failed = 0;
  for (uint32_t row = first; row < first + count; row++) {
    int64_t done = run(state, table, row);
    table->result[row] = (int32_t)done;
    if (done < 0) failed++;
  }
  return vk_number(env, failed);
}

/* tableCopy(id, first segment, count, bytes, offset, length, to memory) -> bytes copied between the segments, one after the other, and
 * the Uint8Array; -EFAULT, with nothing copied, when a segment is not inside its region, -ENOBUFS when the array is too short. */
static napi_value table_copy(napi_env env, napi_callback_info info) {
  napi_value argv[7];
  uint32_t id;
  uint32_t first;
  uint32_t count;
  uint8_t *bytes;
  size_t size;
  bool to_memory;
  struct vk_env *state = vk_begin(env, info, 7, argv);
  if (state == NULL || !vk_get_uint(env, argv[0], &id) || !vk_get_uint(env, argv[1], &first) ||
      !vk_get_uint(env, argv[2], &count) || !vk_get_bytes(env, argv[3], argv[4], argv[5], &bytes, &size) ||
      !vk_get_bool(env, argv[6], &to_memory))
    return NULL;
  struct vk_table *table = vk_table(state, id);
  if (table == NULL || first > table->segments || count > table->segments - first)
    return vk_throw(env, "no such segments");
  uint64_t total = 0;
  for (uint32_t i = first; i < first + count; i++) {
    uint32_t length = table->segment_length[i];
    if (vk_region_at(state, table->segment_region[i], table->segment_offset[i], length, to_memory) == NULL)
      return vk_number(env, -EFAULT);
    total += length;
  }
  if (total > size) return vk_number(env, -ENOBUFS);
  for (uint32_t i = first; i < first + count; i++) {
    uint32_t length = table->segment_length[i];
    /* Looked up again: the copy before may have found its region lost, or (a window as the array) have changed this table. */
    uint8_t *at = vk_region_at(state, table->segment_region[i], table->segment_offset[i], length, to_memory);
    if (at == NULL || length > size) return vk_number(env, -EFAULT);
    if (to_memory) memmove(at, bytes, length);
    else memmove(bytes, at, length);
    bytes += length;
    size -= length;
  }
  return vk_number(env, (double)total);
}

void vk_tables_end(struct vk_env *state) {
  for (uint32_t i = 0; i < VK_MAX_TABLES; i++) free(state->tables[i].memory);
}

bool vk_table_init(struct vk_env *state, napi_value exports) {
  static const struct vk_method methods[] = {{"tableCreate", table_create},
                                             {"tableBuffer", table_buffer},
                                             {"tableDestroy", table_destroy},
                                             {"tableRun", table_run},
                                             {"tableCopy", table_copy}};
  return VK_DEFINE(state, exports, methods);
}
