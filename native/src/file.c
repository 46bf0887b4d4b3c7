/* What Node's fs lacks: holes, locks of an open file, opening below a folder. */
#include "virtkit.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* fileAllocate(fd, mode, offset, length) -> 0 */
static napi_value file_allocate(napi_env env, napi_callback_info info) {
  napi_value argv[4];
  int32_t fd;
  int32_t mode;
  uint64_t offset;
  uint64_t length;
  if (vk_begin(env, info, 4, argv) == NULL || !vk_get_int(env, argv[0], &fd) || !vk_get_int(env, argv[1], &mode) ||
      !vk_get_size(env, argv[2], &offset) || !vk_get_size(env, argv[3], &length))
    return NULL;
  return vk_result(env, fallocate(fd, mode, (off_t)offset, (off_t)length));
}

/* fileSeek(fd, offset, hole) -> where the next data, or the next hole, begins; -ENXIO after the last. Moves the file's position. */
static napi_value file_seek(napi_env env, napi_callback_info info) {
  napi_value argv[3];
  int32_t fd;
  uint64_t offset;
  bool hole;
  if (vk_begin(env, info, 3, argv) == NULL || !vk_get_int(env, argv[0], &fd) || !vk_get_size(env, argv[1], &offset) ||
      !vk_get_bool(env, argv[2], &hole))
    return NULL;
  return vk_result(env, lseek(fd, (off_t)offset, hole ? SEEK_HOLE : SEEK_DATA));
}

static bool lock_of(napi_env env, napi_value *argv, int32_t *fd, struct flock *lock) {
  static const short kinds[] = {F_UNLCK, F_RDLCK, F_WRLCK};
  uint32_t kind;
  uint64_t start;
  uint64_t length;
  if (!vk_get_int(env, argv[0], fd) || !vk_get_uint(env, argv[1], &kind) || !vk_get_size(env, argv[2], &start) ||
      !vk_get_size(env, argv[3], &length))
    return false;
  if (kind > 2) {
    vk_throw(env, "a lock is 0 (none), 1 (shared) or 2 (exclusive)");
    return false;
  }
  *lock = (struct flock){
      .l_type = kinds[kind], .l_whence = SEEK_SET, .l_start = (off_t)start, .l_len = (off_t)length};
  return true;
}

/* fileLock(fd, kind, start, length) -> 0; -EAGAIN when another open file holds what forbids it */
static napi_value file_lock(napi_env env, napi_callback_info info) {
  napi_value argv[4];
  int32_t fd;
  struct flock lock;
  if (vk_begin(env, info, 4, argv) == NULL || !lock_of(env, argv, &fd, &lock)) return NULL;
  return vk_result(env, fcntl(fd, F_OFD_SETLK, &lock));
}

/* fileLockTest(fd, kind, start, length) -> 0 when fileLock would succeed, 1 when not */
static napi_value file_lock_test(napi_env env, napi_callback_info info) {
  napi_value argv[4];
  int32_t fd;
  struct flock lock;
  if (vk_begin(env, info, 4, argv) == NULL || !lock_of(env, argv, &fd, &lock)) return NULL;
  int result = fcntl(fd, F_OFD_GETLK, &lock);
  return vk_result(env, result < 0 ? result : lock.l_type != F_UNLCK);
}

/* fileOpenAt(folder fd, path, path length, flags, mode, resolve) -> fd, by openat2(2) */
static napi_value file_open_at(napi_env env, napi_callback_info info) {
  napi_value argv[6];
  napi_value zero = vk_number(env, 0);
  char path[4096];
  uint8_t *bytes;
  size_t length;
  int32_t folder;
  uint32_t flags;
  uint32_t mode;
  uint32_t resolve;
  if (vk_begin(env, info, 6, argv) == NULL || !vk_get_int(env, argv[0], &folder) ||
      !vk_get_bytes(env, argv[1], zero, argv[2], &bytes, &length) || !vk_get_uint(env, argv[3], &flags) ||
      !vk_get_uint(env, argv[4], &mode) || !vk_get_uint(env, argv[5], &resolve))
    return NULL;
  if (length >= sizeof(path)) return vk_number(env, -ENAMETOOLONG);
  if (memchr(bytes, 0, length) != NULL) return vk_number(env, -EINVAL);
  memcpy(path, bytes, length);
  path[length] = '\0';
  struct open_how how = {.flags = flags | O_CLOEXEC, .mode = mode, .resolve = resolve};
  return vk_result(env, syscall(SYS_openat2, folder, path, &how, sizeof(how)));
}

bool vk_file_init(struct vk_env *state, napi_value exports) {
  static const struct vk_method methods[] = {{"fileAllocate", file_allocate},
                                             {"fileSeek", file_seek},
                                             {"fileLock", file_lock},
                                             {"fileLockTest", file_lock_test},
                                             {"fileOpenAt", file_open_at}};
  return VK_DEFINE(state, exports, methods);
}
