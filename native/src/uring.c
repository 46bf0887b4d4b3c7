/* io_uring by its system calls. A batch is one submission; what is done at once is reaped right after it, and the event
 * descriptor only tells of the rest. */
#include "virtkit.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <linux/time_types.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef IORING_SETUP_COOP_TASKRUN
#define IORING_SETUP_COOP_TASKRUN (1U << 8)
#endif
#define NEEDED_FEATURES (IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE | IORING_FEAT_FAST_POLL)
#define MAX_ENTRIES 4096
#define END_ATTEMPTS 40
#define END_NANOSECONDS 50000000

/* A request between its submission and its completion. */
struct request {
  uint32_t tag;
  int32_t early; /* the result of one that never went to the kernel */
  struct vk_region_mask regions;
};

struct vk_ring {
  int fd;
  int eventfd;
  uint32_t entries;
  uint8_t *rings;
  size_t rings_size;
  struct io_uring_sqe *sqes;
  _Atomic uint32_t *sq_tail;
  uint32_t *sq_array;
  uint32_t sq_mask;
  _Atomic uint32_t *cq_head;
  _Atomic uint32_t *cq_tail;
  _Atomic uint32_t *cq_flags;
  struct io_uring_cqe *cqes;
  uint32_t cq_mask;
  struct request *requests;
  uint32_t *free_requests;
  uint32_t free_count;
  uint32_t *early;
  uint32_t early_count;
  struct iovec *vectors;
  uint32_t vector_count; /* of the submissions that the kernel has not taken yet */
  uint32_t pending;
  uint8_t *completions; /* columns: tag, result */
  napi_ref buffer;
};

#define VECTORS (4 * VK_MAX_VECTORS)

static uint32_t outstanding(const struct vk_ring *ring) { return ring->entries - ring->free_count; }

static void release(struct vk_ring *ring) {
  if (ring->sqes != NULL) munmap(ring->sqes, ring->entries * sizeof(struct io_uring_sqe));
  if (ring->rings != NULL) munmap(ring->rings, ring->rings_size);
  if (ring->eventfd >= 0) close(ring->eventfd);
  if (ring->fd >= 0) close(ring->fd);
  free(ring->requests);
  free(ring->free_requests);
  free(ring->early);
  free(ring->vectors);
  free(ring->completions);
  free(ring);
}

static int setup(uint32_t entries, struct io_uring_params *params) {
  uint32_t flags[] = {IORING_SETUP_COOP_TASKRUN, 0};
  int fd = -1;
  for (int i = 0; i < 2 && fd < 0; i++) {
    memset(params, 0, sizeof(*params));
    params->flags = flags[i] | IORING_SETUP_CLAMP;
    fd = (int)syscall(SYS_io_uring_setup, entries, params);
    if (fd < 0 && errno != EINVAL) return -errno;
  }
  if (fd < 0) return -errno;
  if ((params->features & NEEDED_FEATURES) == NEEDED_FEATURES && params->cq_off.flags != 0) return fd;
  close(fd);
  return -ENOSYS;
}

static int map_rings(struct vk_ring *ring, const struct io_uring_params *params) {
  size_t sq = params->sq_off.array + params->sq_entries * sizeof(uint32_t);
  size_t cq = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);
  int protection = PROT_READ | PROT_WRITE;
  int flags = MAP_SHARED | MAP_POPULATE;
  ring->rings_size = sq > cq ? sq : cq;
  void *rings = mmap(NULL, ring->rings_size, protection, flags, ring->fd, IORING_OFF_SQ_RING);
  if (rings == MAP_FAILED) return -errno;
  ring->rings = rings;
  void *sqes = mmap(NULL, ring->entries * sizeof(struct io_uring_sqe), protection, flags, ring->fd, IORING_OFF_SQES);
  if (sqes == MAP_FAILED) return -errno;
  ring->sqes = sqes;
  ring->sq_tail = (void *)(ring->rings + params->sq_off.tail);
  ring->sq_array = (void *)(ring->rings + params->sq_off.array);
  ring->sq_mask = params->sq_entries - 1;
  ring->cq_head = (void *)(ring->rings + params->cq_off.head);
  ring->cq_tail = (void *)(ring->rings + params->cq_off.tail);
  ring->cq_flags = (void *)(ring->rings + params->cq_off.flags);
  ring->cqes = (void *)(ring->rings + params->cq_off.cqes);
  ring->cq_mask = params->cq_entries - 1;
  for (uint32_t i = 0; i < params->sq_entries; i++) ring->sq_array[i] = i;
  return 0;
}

static int fill(struct vk_ring *ring, uint32_t entries) {
  struct io_uring_params params;
  ring->fd = setup(entries, &params);
  if (ring->fd < 0) return ring->fd;
  ring->entries = params.sq_entries;
  int result = map_rings(ring, &params);
  if (result < 0) return result;
  ring->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (ring->eventfd < 0 || syscall(SYS_io_uring_register, ring->fd, IORING_REGISTER_EVENTFD, &ring->eventfd, 1) < 0)
    return -errno;
  ring->requests = calloc(ring->entries, sizeof(struct request));
  ring->free_requests = calloc(ring->entries, sizeof(uint32_t));
  ring->early = calloc(ring->entries, sizeof(uint32_t));
  ring->vectors = calloc(VECTORS, sizeof(struct iovec));
  ring->completions = calloc(ring->entries, 2 * sizeof(uint32_t));
  if (!ring->requests || !ring->free_requests || !ring->early || !ring->vectors || !ring->completions) return -ENOMEM;
  for (uint32_t i = 0; i < ring->entries; i++) ring->free_requests[ring->free_count++] = i;
  return 0;
}

static struct vk_ring *ring_of(struct vk_env *state, uint32_t id) {
  return id < VK_MAX_RINGS ? state->rings[id] : NULL;
}

static struct vk_ring *begin(napi_env env, napi_callback_info info, size_t count, napi_value *argv,
                             struct vk_env **state) {
  uint32_t id;
  *state = vk_begin(env, info, count, argv);
  if (*state == NULL || !vk_get_uint(env, argv[0], &id)) return NULL;
  struct vk_ring *ring = ring_of(*state, id);
  if (ring == NULL) vk_throw(env, "no such ring");
  return ring;
}

/* uringCreate(entries) -> id; -ENOSYS, -EPERM and the like where io_uring is too old or not allowed */
static napi_value uring_create(napi_env env, napi_callback_info info) {
  napi_value argv[1];
  uint32_t entries;
  struct vk_env *state = vk_begin(env, info, 1, argv);
  if (state == NULL || !vk_get_uint(env, argv[0], &entries)) return NULL;
  if (entries == 0 || entries > MAX_ENTRIES) return vk_throw(env, "a ring has 1 to 4096 entries");
  uint32_t id = 0;
  while (id < VK_MAX_RINGS && state->rings[id] != NULL) id++;
  if (id == VK_MAX_RINGS) return vk_number(env, -ENOSPC);
  struct vk_ring *ring = calloc(1, sizeof(*ring));
  if (ring == NULL) return vk_number(env, -ENOMEM);
  ring->fd = -1;
  ring->eventfd = -1;
  int result = fill(ring, entries);
  if (result < 0) {
    release(ring);
    return vk_number(env, result);
  }
  napi_value buffer;
  if (napi_create_external_arraybuffer(env, ring->completions, ring->entries * 2 * sizeof(uint32_t), NULL, NULL,
                                       &buffer) != napi_ok ||
      napi_create_reference(env, buffer, 1, &ring->buffer) != napi_ok) {
    release(ring);
    return vk_throw(env, "this Node.js gives no ArrayBuffer over the add-on's memory");
  }
  state->rings[id] = ring;
  return vk_number(env, id);
}

/* uringBuffer(id) -> the ArrayBuffer of its completions */
static napi_value uring_buffer(napi_env env, napi_callback_info info) {
  napi_value argv[1];
  napi_value buffer;
  struct vk_env *state;
  struct vk_ring *ring = begin(env, info, 1, argv, &state);
  if (ring == NULL) return NULL;
  return napi_get_reference_value(env, ring->buffer, &buffer) == napi_ok ? buffer : NULL;
}

/* uringEventfd(id) -> fd, which stays the ring's */
static napi_value uring_eventfd(napi_env env, napi_callback_info info) {
  napi_value argv[1];
  struct vk_env *state;
  struct vk_ring *ring = begin(env, info, 1, argv, &state);
  return ring == NULL ? NULL : vk_number(env, ring->eventfd);
}

static void count_regions(struct vk_env *state, const struct vk_region_mask *mask, int by) {
  for (uint32_t word = 0; word < VK_MASK_WORDS; word++)
    for (uint64_t bits = mask->words[word]; bits != 0; bits &= bits - 1)
      state->regions[word * 64 + (uint32_t)__builtin_ctzll(bits)].in_flight += (uint32_t)by;
}

static void finish_early(struct vk_ring *ring, uint32_t request, int32_t result) {
  ring->requests[request].early = result;
  ring->early[ring->early_count++] = request;
}

/* Gives the pending submissions to the kernel. What it does not take is completed with its error. */
static void flush(struct vk_ring *ring) {
  while (ring->pending > 0) {
    long taken = syscall(SYS_io_uring_enter, ring->fd, ring->pending, 0, 0, NULL, 0);
    if (taken < 0 && errno == EINTR) continue;
    if (taken > 0) {
      ring->pending -= (uint32_t)taken;
      continue;
    }
    int error = taken < 0 ? errno : EAGAIN;
    uint32_t tail = atomic_load_explicit(ring->sq_tail, memory_order_relaxed) - ring->pending;
    for (uint32_t i = 0; i < ring->pending; i++)
      finish_early(ring, (uint32_t)ring->sqes[(tail + i) & ring->sq_mask].user_data, -error);
    atomic_store_explicit(ring->sq_tail, tail, memory_order_release);
    ring->pending = 0;
  }
  ring->vector_count = 0;
}

/* The event descriptor tells of nothing until uringArm. */
static void silence(struct vk_ring *ring) {
  atomic_fetch_or_explicit(ring->cq_flags, IORING_CQ_EVENTFD_DISABLED, memory_order_relaxed);
}

/* Writes the submission of one row. Returns 0, -ENOBUFS when the vectors are used up, or what is wrong with the row. */
static int prepare(struct vk_env *state, struct vk_ring *ring, const struct vk_table *table, uint32_t row,
                   struct io_uring_sqe *sqe, struct vk_region_mask *mask) {
  int op = table->op[row];
  memset(sqe, 0, sizeof(*sqe));
  sqe->fd = table->fd[row];
  if (op == VK_OP_READ || op == VK_OP_WRITE) {
    struct iovec *vectors = ring->vectors + ring->vector_count;
    int count = vk_vectors(state, table, row, vectors, VECTORS - ring->vector_count, mask);
    if (count < 0) return count;
    if (!(table->position[row] >= 0)) return -EINVAL;
    bool single = count == 1;
    if (op == VK_OP_READ) sqe->opcode = single ? IORING_OP_READ : IORING_OP_READV;
    else sqe->opcode = single ? IORING_OP_WRITE : IORING_OP_WRITEV;
    sqe->addr = single ? (uintptr_t)vectors->iov_base : (uintptr_t)vectors;
    sqe->len = single ? (uint32_t)vectors->iov_len : (uint32_t)count;
    sqe->off = (uint64_t)table->position[row];
    sqe->rw_flags = table->flags[row];
    if (!single) ring->vector_count += (uint32_t)count;
  } else if (op == VK_OP_FSYNC) {
    sqe->opcode = IORING_OP_FSYNC;
    sqe->fsync_flags = (uint32_t)table->flags[row];
  } else if (op == VK_OP_FALLOCATE) {
    if (!(table->position[row] >= 0) || !(table->length[row] >= 0)) return -EINVAL;
    sqe->opcode = IORING_OP_FALLOCATE;
    sqe->len = (uint32_t)table->flags[row];
    sqe->off = (uint64_t)table->position[row];
    sqe->addr = (uint64_t)table->length[row];
  } else return -EINVAL;
  return 0;
}

static void submit(struct vk_env *state, struct vk_ring *ring, const struct vk_table *table, uint32_t row) {
  uint32_t index = ring->free_requests[--ring->free_count];
  struct request *request = &ring->requests[index];
  uint32_t tail = atomic_load_explicit(ring->sq_tail, memory_order_relaxed);
  struct io_uring_sqe *sqe = &ring->sqes[tail & ring->sq_mask];
  request->tag = table->tag[row];
  memset(&request->regions, 0, sizeof(request->regions));
  int result = prepare(state, ring, table, row, sqe, &request->regions);
  if (result == -ENOBUFS) {
    flush(ring);
    tail = atomic_load_explicit(ring->sq_tail, memory_order_relaxed);
    sqe = &ring->sqes[tail & ring->sq_mask];
    result = prepare(state, ring, table, row, sqe, &request->regions);
  }
  count_regions(state, &request->regions, 1);
  if (result < 0) {
    finish_early(ring, index, result);
    return;
  }
  sqe->user_data = index;
  atomic_store_explicit(ring->sq_tail, tail + 1, memory_order_release);
  ring->pending++;
}

/* uringSubmit(id, table, first, count) -> requests taken, in order; fewer than `count` when the ring is full. The caller reaps next:
 * the event descriptor is silent. */
static napi_value uring_submit(napi_env env, napi_callback_info info) {
  napi_value argv[4];
  uint32_t table_id;
  uint32_t first;
  uint32_t count;
  struct vk_env *state;
  struct vk_ring *ring = begin(env, info, 4, argv, &state);
  if (ring == NULL || !vk_get_uint(env, argv[1], &table_id) || !vk_get_uint(env, argv[2], &first) ||
      !vk_get_uint(env, argv[3], &count))
    return NULL;
  struct vk_table *table = vk_table(state, table_id);
  if (table == NULL || first > table->requests || count > table->requests - first)
    return vk_throw(env, "no such requests");
  uint32_t taken = count < ring->free_count ? count : ring->free_count;
  silence(ring);
  for (uint32_t i = 0; i < taken; i++) submit(state, ring, table, first + i);
  flush(ring);
  return vk_number(env, taken);
}

static void complete(struct vk_env *state, struct vk_ring *ring, uint32_t index, int32_t result, uint32_t row) {
  struct request *request = &ring->requests[index];
  ((uint32_t *)ring->completions)[row] = request->tag;
  ((int32_t *)ring->completions)[ring->entries + row] = result;
  count_regions(state, &request->regions, -1);
  ring->free_requests[ring->free_count++] = index;
}

static uint32_t reap(struct vk_env *state, struct vk_ring *ring) {
  uint32_t count = 0;
  for (uint32_t i = 0; i < ring->early_count; i++)
    complete(state, ring, ring->early[i], ring->requests[ring->early[i]].early, count++);
  ring->early_count = 0;
  uint32_t head = atomic_load_explicit(ring->cq_head, memory_order_relaxed);
  uint32_t tail = atomic_load_explicit(ring->cq_tail, memory_order_acquire);
  for (; head != tail && count < ring->entries; head++) {
    const struct io_uring_cqe *cqe = &ring->cqes[head & ring->cq_mask];
    complete(state, ring, (uint32_t)cqe->user_data, cqe->res, count++);
  }
  atomic_store_explicit(ring->cq_head, head, memory_order_release);
  return count;
}

/* uringReap(id) -> completions written to its buffer; 0 only when there are none. Then uringArm. */
static napi_value uring_reap(napi_env env, napi_callback_info info) {
  napi_value argv[1];
  struct vk_env *state;
  struct vk_ring *ring = begin(env, info, 1, argv, &state);
  if (ring == NULL) return NULL;
  silence(ring);
  return vk_number(env, reap(state, ring));
}

/* uringArm(id) -> 1 when something is there to be reaped at once, else 0, and the event descriptor will tell */
static napi_value uring_arm(napi_env env, napi_callback_info info) {
  napi_value argv[1];
  struct vk_env *state;
  struct vk_ring *ring = begin(env, info, 1, argv, &state);
  if (ring == NULL) return NULL;
  atomic_fetch_and_explicit(ring->cq_flags, ~IORING_CQ_EVENTFD_DISABLED, memory_order_relaxed);
  /* The kernel looks at the flag after it moved the tail, we look at the tail after the flag: one of us sees the other. */
  atomic_thread_fence(memory_order_seq_cst);
  uint32_t head = atomic_load_explicit(ring->cq_head, memory_order_relaxed);
  uint32_t tail = atomic_load_explicit(ring->cq_tail, memory_order_acquire);
  return vk_number(env, head != tail || ring->early_count > 0);
}

/* uringOutstanding(id) -> requests that were taken and not reaped */
static napi_value uring_outstanding(napi_env env, napi_callback_info info) {
  napi_value argv[1];
  struct vk_env *state;
  struct vk_ring *ring = begin(env, info, 1, argv, &state);
  return ring == NULL ? NULL : vk_number(env, outstanding(ring));
}

/* uringClose(id) -> 0; -EBUSY while requests are outstanding */
static napi_value uring_close(napi_env env, napi_callback_info info) {
  napi_value argv[1];
  uint32_t id;
  napi_value buffer;
  struct vk_env *state;
  struct vk_ring *ring = begin(env, info, 1, argv, &state);
  if (ring == NULL || !vk_get_uint(env, argv[0], &id)) return NULL;
  if (outstanding(ring) > 0) return vk_number(env, -EBUSY);
  if (napi_get_reference_value(env, ring->buffer, &buffer) != napi_ok ||
      napi_detach_arraybuffer(env, buffer) != napi_ok)
    return vk_throw(env, "the memory of the ring cannot be taken back");
  napi_delete_reference(env, ring->buffer);
  state->rings[id] = NULL;
  release(ring);
  return vk_number(env, 0);
}

bool vk_rings_end(struct vk_env *state) {
  bool drained = true;
  for (uint32_t i = 0; i < VK_MAX_RINGS; i++) {
    struct vk_ring *ring = state->rings[i];
    if (ring == NULL) continue;
    reap(state, ring);
    struct __kernel_timespec wait = {.tv_nsec = END_NANOSECONDS};
    struct io_uring_getevents_arg argument = {.ts = (uintptr_t)&wait};
    uint32_t flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
    for (int attempt = 0; outstanding(ring) > 0 && attempt < END_ATTEMPTS; attempt++) {
      if (syscall(SYS_io_uring_enter, ring->fd, 0, 1, flags, &argument, sizeof(argument)) < 0 && errno == EINVAL) break;
      reap(state, ring);
    }
    drained = drained && outstanding(ring) == 0;
    release(ring);
    state->rings[i] = NULL;
  }
  return drained;
}

bool vk_uring_init(struct vk_env *state, napi_value exports) {
  static const struct vk_method methods[] = {
      {"uringCreate", uring_create}, {"uringBuffer", uring_buffer},           {"uringEventfd", uring_eventfd},
      {"uringSubmit", uring_submit}, {"uringReap", uring_reap},               {"uringArm", uring_arm},
      {"uringClose", uring_close},   {"uringOutstanding", uring_outstanding},
  };
  return VK_DEFINE(state, exports, methods);
}
