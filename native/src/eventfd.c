/* Event descriptors: kicks and calls. */
#include "virtkit.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* eventfdCreate(initial) -> fd */
static napi_value eventfd_create(napi_env env, napi_callback_info info) {
  napi_value argv[1];
  uint32_t initial;
  if (vk_begin(env, info, 1, argv) == NULL || !vk_get_uint(env, argv[0], &initial)) return NULL;
  return vk_result(env, eventfd(initial, EFD_CLOEXEC | EFD_NONBLOCK));
}

/* eventfdRead(fd) -> what was added since the last read */
static napi_value eventfd_take(napi_env env, napi_callback_info info) {
  napi_value argv[1];
  int32_t fd;
  uint64_t value = 0;
  if (vk_begin(env, info, 1, argv) == NULL || !vk_get_int(env, argv[0], &fd)) return NULL;
  ssize_t done = read(fd, &value, sizeof(value));
  if (done < 0) return vk_result(env, -1);
  return vk_number(env, done == sizeof(value) ? (double)value : 0);
}

/* eventfdWrite(fd, value) -> 0. A counter that is full has not been read yet, so its reader will wake anyway. */
static napi_value eventfd_add(napi_env env, napi_callback_info info) {
  napi_value argv[2];
  int32_t fd;
  uint32_t number;
  if (vk_begin(env, info, 2, argv) == NULL || !vk_get_int(env, argv[0], &fd) || !vk_get_uint(env, argv[1], &number))
    return NULL;
  uint64_t value = number;
  ssize_t done = write(fd, &value, sizeof(value));
  if (done < 0 && errno != EAGAIN) return vk_result(env, -1);
  return vk_number(env, 0);
}

bool vk_eventfd_init(struct vk_env *state, napi_value exports) {
  static const struct vk_method methods[] = {
      {"eventfdCreate", eventfd_create}, {"eventfdRead", eventfd_take}, {"eventfdWrite", eventfd_add}};
  return VK_DEFINE(state, exports, methods);
}
