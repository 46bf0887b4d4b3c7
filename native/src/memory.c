/* Memory files and mappings. JavaScript names a mapping by its id and never sees an address. */
#include "virtkit.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define SLOT_BITS 10
#define MAX_WINDOW 0x100000000ULL

/* memfdCreate(name, size, seals) -> fd */
static napi_value memfd_make(napi_env env, napi_callback_info info) {
  napi_value argv[3];
  char name[128];
  size_t length;
  uint64_t size;
  int32_t seals;
  if (vk_begin(env, info, 3, argv) == NULL || !vk_get_string(env, argv[0], name, sizeof(name), &length) ||
      !vk_get_size(env, argv[1], &size) || !vk_get_int(env, argv[2], &seals))
    return NULL;
  int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return vk_result(env, fd);
  if (ftruncate(fd, (off_t)size) < 0 || (seals != 0 && fcntl(fd, F_ADD_SEALS, seals) < 0)) {
    int error = errno;
    close(fd);
    return vk_number(env, -error);
  }
  return vk_number(env, fd);
}

/* fileSeals(fd) -> F_SEAL_* bits; -EINVAL for a file that knows none */
static napi_value file_seals(napi_env env, napi_callback_info info) {
  napi_value argv[1];
  int32_t fd;
  if (vk_begin(env, info, 1, argv) == NULL || !vk_get_int(env, argv[0], &fd)) return NULL;
  return vk_result(env, fcntl(fd, F_GET_SEALS));
}

struct vk_region *vk_region(struct vk_env *state, uint32_t id) {
  struct vk_region *region = &state->regions[id & (VK_MAX_REGIONS - 1)];
  return region->base != NULL && region->generation == id >> SLOT_BITS ? region : NULL;
}

uint8_t *vk_region_at(struct vk_env *state, uint32_t id, double offset, uint32_t length, bool write) {
  struct vk_region *region = vk_region(state, id);
  if (region == NULL || (write && !region->writable) || vk_guard_lost(region->guard)) return NULL;
  /* Written so that NaN is nowhere; a region is smaller than 2^53 bytes. */
  if (!(offset >= 0 && offset <= (double)region->length)) return NULL;
  uint64_t start = (uint64_t)offset;
  return length <= region->length - start ? region->base + start : NULL;
}

/* The page size behind a descriptor, and whether the file holds all of [offset, offset + length). */
static int64_t page_of(int fd, uint64_t offset, uint64_t length) {
  struct stat status;
  struct statfs system;
  if (fstat(fd, &status) < 0 || fstatfs(fd, &system) < 0) return -errno;
  if (S_ISREG(status.st_mode) && (offset > (uint64_t)status.st_size || length > (uint64_t)status.st_size - offset))
    return -EOVERFLOW;
  return system.f_type == HUGETLBFS_MAGIC ? (int64_t)system.f_bsize : sysconf(_SC_PAGESIZE);
}

static int map(struct vk_region *region, int fd, uint64_t offset, uint64_t length, bool writable) {
  int64_t page = fd < 0 ? sysconf(_SC_PAGESIZE) : page_of(fd, offset, length);
  if (page < 0) return (int)page;
  uint64_t size = (uint64_t)page;
  uint64_t skew = offset % size;
  uint64_t mapped = (skew + length + size - 1) / size * size;
  int protection = PROT_READ | (writable ? PROT_WRITE : 0);
  int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  uint8_t *base = mmap(NULL, mapped, protection, flags, fd, (off_t)(offset - skew));
  if (base == MAP_FAILED) return -errno;
  int guard = fd < 0 ? -1 : vk_guard_add(base, mapped, size);
  if (fd >= 0 && guard < 0) {
    munmap(base, mapped);
    return -ENOSPC;
  }
  *region = (struct vk_region){.base = base + skew,
                               .length = length,
                               .skew = skew,
                               .mapped = mapped,
                               .generation = region->generation,
                               .writable = writable,
                               .guard = guard};
  return 0;
}

/* regionMap(fd or -1, offset, length, writable) -> id; -EOVERFLOW when the file is shorter than that */
static napi_value region_map(napi_env env, napi_callback_info info) {
  napi_value argv[4];
  int32_t fd;
  uint64_t offset;
  uint64_t length;
  bool writable;
  struct vk_env *state = vk_begin(env, info, 4, argv);
  if (state == NULL || !vk_get_int(env, argv[0], &fd) || !vk_get_size(env, argv[1], &offset) ||
      !vk_get_size(env, argv[2], &length) || !vk_get_bool(env, argv[3], &writable))
    return NULL;
  if (length == 0) return vk_number(env, -EINVAL);
  uint32_t slot = 0;
  while (slot < VK_MAX_REGIONS && state->regions[slot].base != NULL) slot++;
  if (slot == VK_MAX_REGIONS) return vk_number(env, -ENOSPC);
  struct vk_region *region = &state->regions[slot];
  int result = map(region, fd < 0 ? -1 : fd, offset, length, writable);
  return vk_number(env, result < 0 ? result : (double)(slot | region->generation << SLOT_BITS));
}

/* regionWindow(id, offset, length) -> ArrayBuffer over that part; it becomes empty with regionUnmap */
static napi_value region_window(napi_env env, napi_callback_info info) {
  napi_value argv[3];
  uint32_t id;
  uint64_t offset;
  uint64_t length;
  napi_value buffer;
  struct vk_env *state = vk_begin(env, info, 3, argv);
  if (state == NULL || !vk_get_uint(env, argv[0], &id) || !vk_get_size(env, argv[1], &offset) ||
      !vk_get_size(env, argv[2], &length))
    return NULL;
  struct vk_region *region = vk_region(state, id);
  if (region == NULL || length == 0 || length > MAX_WINDOW || offset > region->length || length > region->length - offset)
    return vk_throw(env, "a window must lie inside a mapped region and hold at most 2^32 bytes");
  if (!region->writable) return vk_throw(env, "a read-only region has no window, because JavaScript could write to it");
  napi_ref *windows = realloc(region->windows, (region->window_count + 1) * sizeof(napi_ref));
  if (windows == NULL) return vk_throw(env, "no memory for a window");
  region->windows = windows;
  napi_status status =
      napi_create_external_arraybuffer(env, region->base + offset, (size_t)length, NULL, NULL, &buffer);
  if (status != napi_ok || napi_create_reference(env, buffer, 1, &windows[region->window_count]) != napi_ok) {
    bool pending = false;
    napi_is_exception_pending(env, &pending);
    return pending ? NULL : vk_throw(env, "this Node.js gives no ArrayBuffer over mapped memory");
  }
  region->window_count++;
  return buffer;
}

static void unmap(struct vk_region *region) {
  vk_guard_remove(region->guard);
  munmap(region->base - region->skew, region->mapped);
  free(region->windows);
  region->windows = NULL;
  region->base = NULL;
  region->generation = (region->generation + 1) & 0x1fffff;
}

/* regionUnmap(id) -> 0; -EBUSY while a request inside io_uring points to it */
static napi_value region_unmap(napi_env env, napi_callback_info info) {
  napi_value argv[1];
  uint32_t id;
  struct vk_env *state = vk_begin(env, info, 1, argv);
  if (state == NULL || !vk_get_uint(env, argv[0], &id)) return NULL;
  struct vk_region *region = vk_region(state, id);
  if (region == NULL) return vk_number(env, -ENOENT);
  if (region->in_flight > 0) return vk_number(env, -EBUSY);
  for (uint32_t i = 0; i < region->window_count; i++) {
    napi_value buffer;
    if (napi_get_reference_value(env, region->windows[i], &buffer) != napi_ok ||
        napi_detach_arraybuffer(env, buffer) != napi_ok)
      return vk_throw(env, "a window of the region cannot be taken back");
  }
  for (uint32_t i = 0; i < region->window_count; i++) napi_delete_reference(env, region->windows[i]);
  unmap(region);
  return vk_number(env, 0);
}

/* regionLost(id) -> 1 once the file was found shorter than the mapping */
static napi_value region_lost(napi_env env, napi_callback_info info) {
  napi_value argv[1];
  uint32_t id;
  struct vk_env *state = vk_begin(env, info, 1, argv);
  if (state == NULL || !vk_get_uint(env, argv[0], &id)) return NULL;
  struct vk_region *region = vk_region(state, id);
  return vk_number(env, region == NULL ? -ENOENT : vk_guard_lost(region->guard));
}

void vk_regions_end(struct vk_env *state, bool leak) {
  for (uint32_t i = 0; i < VK_MAX_REGIONS; i++) {
    struct vk_region *region = &state->regions[i];
    if (region->base != NULL && !(leak && region->in_flight > 0)) unmap(region);
  }
}

bool vk_memory_init(struct vk_env *state, napi_value exports) {
  static const struct vk_method methods[] = {
      {"memfdCreate", memfd_make},      {"fileSeals", file_seals},     {"regionMap", region_map},
      {"regionWindow", region_window}, {"regionUnmap", region_unmap}, {"regionLost", region_lost},
  };
  return VK_DEFINE(state, exports, methods);
}
