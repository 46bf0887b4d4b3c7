/* What the files of the add-on share. One struct vk_env an environment (the main thread, or a worker), nothing global but
 * the SIGBUS handler and its table of mappings. */
#ifndef VIRTKIT_H
#define VIRTKIT_H

#include <node_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct uv_loop_s;

/* Raised with every change of a function's signature or a table's layout; src/host/node/native/load.ts checks it. */
#define VK_VERSION 1

#define VK_MAX_REGIONS 1024
#define VK_MAX_RINGS 64
#define VK_MAX_TABLES 64
#define VK_MAX_WINDOWS 65536
#define VK_MAX_VECTORS 1024 /* IOV_MAX of Linux */
#define VK_MASK_WORDS (VK_MAX_REGIONS / 64)

/* A mapping. Its id is slot | generation << 10, so that an id of a region that is gone never names another one. */
struct vk_region {
  uint8_t *base; /* NULL: the slot is free */
  uint64_t length;
  uint64_t skew; /* bytes of the mapping before `base`, which need not begin on a page */
  uint64_t mapped;
  uint32_t generation;
  uint32_t in_flight; /* requests inside io_uring that touch it */
  bool writable;
  int guard; /* its row in the SIGBUS handler's table, or -1 */
  napi_ref *windows;
  uint32_t window_count;
};

/* The regions that a request touches. */
struct vk_region_mask {
  uint64_t words[VK_MASK_WORDS];
};

/* Columns that JavaScript fills; the memory belongs to the add-on, so C never asks for it again. See table.c. */
struct vk_table {
  uint8_t *memory; /* NULL: the slot is free */
  napi_ref buffer;
  uint32_t generation; /* of the id, slot | generation << 6 */
  uint32_t requests;
  uint32_t segments;
  double *position;
  double *length;
  double *segment_offset;
  int32_t *op;
  int32_t *fd;
  uint32_t *first;
  uint32_t *count;
  int32_t *flags;
  uint32_t *tag;
  int32_t *result;
  uint32_t *segment_region;
  uint32_t *segment_length;
};

enum vk_op { VK_OP_READ, VK_OP_WRITE, VK_OP_FSYNC, VK_OP_FALLOCATE };

struct vk_poll;
struct vk_ring;

struct vk_env {
  napi_env env;
  struct uv_loop_s *loop;
  napi_async_cleanup_hook_handle cleanup;
  bool ending;
  uint32_t open_polls;
  uint32_t next_poll;
  struct vk_poll *polls;
  struct vk_region regions[VK_MAX_REGIONS];
  struct vk_table tables[VK_MAX_TABLES];
  struct vk_ring *rings[VK_MAX_RINGS];
};

/* args.c: arguments and results. Each getter throws a TypeError and returns false when the value is not of its kind. */
struct vk_env *vk_begin(napi_env env, napi_callback_info info, size_t count, napi_value *argv);
bool vk_get_int(napi_env env, napi_value value, int32_t *out);
bool vk_get_uint(napi_env env, napi_value value, uint32_t *out);
bool vk_get_bool(napi_env env, napi_value value, bool *out);
/* A whole number from 0 to 2^53. */
bool vk_get_size(napi_env env, napi_value value, uint64_t *out);
bool vk_get_string(napi_env env, napi_value value, char *out, size_t capacity, size_t *length);
/* The `length` bytes from `offset` on of a Uint8Array. */
bool vk_get_bytes(napi_env env, napi_value value, napi_value offset, napi_value length, uint8_t **out, size_t *size);
bool vk_get_int32s(napi_env env, napi_value value, int32_t **out, size_t *count);
napi_value vk_number(napi_env env, double value);
/* The result of a system call: itself, or -errno when it is negative. */
napi_value vk_result(napi_env env, int64_t result);
napi_value vk_throw(napi_env env, const char *message);

struct vk_method {
  const char *name;
  napi_callback call;
};
bool vk_define(struct vk_env *state, napi_value exports, const struct vk_method *methods, size_t count);
#define VK_DEFINE(state, exports, methods) vk_define(state, exports, methods, sizeof(methods) / sizeof((methods)[0]))

/* memory.c, guard.c */
/* The region of an id that JavaScript gave, or NULL. */
struct vk_region *vk_region(struct vk_env *state, uint32_t id);
/* The address of [offset, offset + length) of a region, or NULL when it is not inside or must not be written. */
uint8_t *vk_region_at(struct vk_env *state, uint32_t id, double offset, uint32_t length, bool write);
void vk_regions_end(struct vk_env *state, bool leak);
int vk_guard_add(uint8_t *base, uint64_t length, uint64_t page);
void vk_guard_remove(int row);
bool vk_guard_lost(int row);

/* table.c */
struct vk_table *vk_table(struct vk_env *state, uint32_t id);
void vk_tables_end(struct vk_env *state);
/* A request's segments as vectors, and the regions that they lie in (`mask` may be NULL).
 * Returns their number; -EFAULT when one is outside, -EINVAL for a bad request, -ENOBUFS when there is no room. */
int vk_vectors(struct vk_env *state, const struct vk_table *table, uint32_t row, struct iovec *out, uint32_t room,
               struct vk_region_mask *mask);

/* uring.c */
/* Waits a bounded time for what is inside; false when something still is. */
bool vk_rings_end(struct vk_env *state);

/* poll.c */
void vk_polls_end(struct vk_env *state);

/* addon.c: called once the last poll handle of an environment that ends is closed. */
void vk_env_closed(struct vk_env *state);

bool vk_socket_init(struct vk_env *state, napi_value exports);
bool vk_memory_init(struct vk_env *state, napi_value exports);
bool vk_table_init(struct vk_env *state, napi_value exports);
bool vk_eventfd_init(struct vk_env *state, napi_value exports);
bool vk_poll_init(struct vk_env *state, napi_value exports);
bool vk_uring_init(struct vk_env *state, napi_value exports);
bool vk_file_init(struct vk_env *state, napi_value exports);
bool vk_tap_init(struct vk_env *state, napi_value exports);

#endif
