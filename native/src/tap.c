/* Tap interfaces. */
#include "virtkit.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* tapOpen(name or "", flags, into: Uint8Array of 16) -> fd; the interface's name, ended by a zero, is written to `into` */
static napi_value tap_open(napi_env env, napi_callback_info info) {
  napi_value argv[3];
  napi_value zero = vk_number(env, 0);
  napi_value room = vk_number(env, IFNAMSIZ);
  struct ifreq request;
  size_t length;
  int32_t flags;
  uint8_t *into;
  size_t size;
  memset(&request, 0, sizeof(request));
  if (vk_begin(env, info, 3, argv) == NULL ||
      !vk_get_string(env, argv[0], request.ifr_name, sizeof(request.ifr_name), &length) ||
      !vk_get_int(env, argv[1], &flags) || !vk_get_bytes(env, argv[2], zero, room, &into, &size))
    return NULL;
  request.ifr_flags = (short)(flags | IFF_TAP | IFF_NO_PI);
  int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return vk_result(env, fd);
  if (ioctl(fd, TUNSETIFF, &request) < 0) {
    int error = errno;
    close(fd);
    return vk_number(env, -error);
  }
  memcpy(into, request.ifr_name, IFNAMSIZ);
  return vk_number(env, fd);
}

/* tapSetHeaderSize(fd, bytes) -> 0: of the virtio-net header before each frame, little-endian */
static napi_value tap_set_header_size(napi_env env, napi_callback_info info) {
  napi_value argv[2];
  int32_t fd;
  int32_t bytes;
  if (vk_begin(env, info, 2, argv) == NULL || !vk_get_int(env, argv[0], &fd) || !vk_get_int(env, argv[1], &bytes))
    return NULL;
  int little = 1;
  int result = ioctl(fd, TUNSETVNETHDRSZ, &bytes);
  if (result == 0 && ioctl(fd, TUNSETVNETLE, &little) < 0 && errno != EINVAL && errno != ENOTTY) result = -1;
  return vk_result(env, result);
}

/* tapSetOffload(fd, TUN_F_* bits) -> 0 */
static napi_value tap_set_offload(napi_env env, napi_callback_info info) {
  napi_value argv[2];
  int32_t fd;
  uint32_t flags;
  if (vk_begin(env, info, 2, argv) == NULL || !vk_get_int(env, argv[0], &fd) || !vk_get_uint(env, argv[1], &flags))
    return NULL;
  return vk_result(env, ioctl(fd, TUNSETOFFLOAD, (unsigned long)flags));
}

bool vk_tap_init(struct vk_env *state, napi_value exports) {
  static const struct vk_method methods[] = {
      {"tapOpen", tap_open}, {"tapSetHeaderSize", tap_set_header_size}, {"tapSetOffload", tap_set_offload}};
  return VK_DEFINE(state, exports, methods);
}
