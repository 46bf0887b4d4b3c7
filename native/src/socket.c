/* UNIX stream sockets that carry descriptors. Everything here returns at once: -EAGAIN instead of waiting. */
#include "virtkit.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* The kernel's limit a message (SCM_MAX_FD). */
#define MAX_DESCRIPTORS 253

static bool address_of(napi_env env, napi_value value, struct sockaddr_un *address, socklen_t *size) {
  size_t length;
  memset(address, 0, sizeof(*address));
  address->sun_family = AF_UNIX;
  if (!vk_get_string(env, value, address->sun_path, sizeof(address->sun_path), &length)) return false;
  /* A name that begins with NUL is abstract, and exactly as long as it is. */
  size_t end = length > 0 && address->sun_path[0] == '\0' ? length : length + 1;
  *size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + end);
  return true;
}

static int fail(int fd) {
  int error = errno;
  close(fd);
  errno = error;
  return -1;
}

/* socketListen(path, backlog) -> fd */
static napi_value socket_listen(napi_env env, napi_callback_info info) {
  napi_value argv[2];
  struct sockaddr_un address;
  socklen_t size;
  int32_t backlog;
  if (vk_begin(env, info, 2, argv) == NULL || !address_of(env, argv[0], &address, &size) ||
      !vk_get_int(env, argv[1], &backlog))
    return NULL;
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd >= 0 && (bind(fd, (struct sockaddr *)&address, size) < 0 || listen(fd, backlog) < 0)) fd = fail(fd);
  return vk_result(env, fd);
}

/* socketConnect(path) -> fd */
static napi_value socket_connect(napi_env env, napi_callback_info info) {
  napi_value argv[1];
  struct sockaddr_un address;
  socklen_t size;
  if (vk_begin(env, info, 1, argv) == NULL || !address_of(env, argv[0], &address, &size)) return NULL;
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd >= 0 && connect(fd, (struct sockaddr *)&address, size) < 0) fd = fail(fd);
  return vk_result(env, fd);
}

/* socketAccept(fd) -> fd */
static napi_value socket_accept(napi_env env, napi_callback_info info) {
  napi_value argv[1];
  int32_t fd;
  if (vk_begin(env, info, 1, argv) == NULL || !vk_get_int(env, argv[0], &fd)) return NULL;
  return vk_result(env, accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK));
}

/* socketPair(fds: Int32Array of 2) -> 0 */
static napi_value socket_pair(napi_env env, napi_callback_info info) {
  napi_value argv[1];
  int32_t *fds;
  size_t count;
  int pair[2];
  if (vk_begin(env, info, 1, argv) == NULL || !vk_get_int32s(env, argv[0], &fds, &count)) return NULL;
  if (count < 2) return vk_throw(env, "the descriptors of a pair need two places");
  int result = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair);
  if (result == 0) {
    fds[0] = pair[0];
    fds[1] = pair[1];
  }
  return vk_result(env, result);
}

/* socketSend(fd, bytes, offset, length, fds, fdCount) -> bytes sent. The descriptors go with the first byte. */
static napi_value socket_send(napi_env env, napi_callback_info info) {
  napi_value argv[6];
  int32_t fd;
  uint8_t *data;
  size_t size;
  int32_t *fds;
  size_t room;
  uint32_t count;
  if (vk_begin(env, info, 6, argv) == NULL || !vk_get_int(env, argv[0], &fd) ||
      !vk_get_bytes(env, argv[1], argv[2], argv[3], &data, &size) || !vk_get_int32s(env, argv[4], &fds, &room) ||
      !vk_get_uint(env, argv[5], &count))
    return NULL;
  if (count > room || count > MAX_DESCRIPTORS) return vk_throw(env, "more descriptors than a message may carry");
  union {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int) * MAX_DESCRIPTORS)];
  } control;
  struct iovec vector = {data, size};
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
  if (count > 0) {
    memset(&control, 0, sizeof(control));
    message.msg_control = &control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * count);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * count);
    memcpy(CMSG_DATA(header), fds, sizeof(int) * count);
  }
  return vk_result(env, sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL));
}

/* Moves the descriptors of a message to `into`; those that have no place there are closed. Returns how many came. */
static size_t take_descriptors(struct msghdr *message, int32_t *into, size_t room) {
  size_t came = 0;
  for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header != NULL; header = CMSG_NXTHDR(message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; i++, came++) {
      int fd;
      memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
      if (came < room) into[came] = fd;
      else close(fd);
    }
  }
  return came;
}

/* socketReceive(fd, bytes, offset, length, fds) -> bytes received, 0 at the end.
 * fds[0] becomes the number of descriptors that came, which follow it; more than have a place there close them all: -EMSGSIZE. */
static napi_value socket_receive(napi_env env, napi_callback_info info) {
  napi_value argv[5];
  int32_t fd;
  uint8_t *data;
  size_t size;
  int32_t *fds;
  size_t room;
  if (vk_begin(env, info, 5, argv) == NULL || !vk_get_int(env, argv[0], &fd) ||
      !vk_get_bytes(env, argv[1], argv[2], argv[3], &data, &size) || !vk_get_int32s(env, argv[4], &fds, &room))
    return NULL;
  if (room < 1) return vk_throw(env, "the descriptors' array has no place for their number");
  room -= 1;
  union {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int) * MAX_DESCRIPTORS)];
  } control;
  struct iovec vector = {data, size};
  struct msghdr message = {
      .msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
  fds[0] = 0;
  ssize_t received = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (received < 0) return vk_result(env, received);
  size_t came = take_descriptors(&message, fds + 1, room);
  if (came > room || (message.msg_flags & MSG_CTRUNC) != 0) {
    for (size_t i = 0; i < came && i < room; i++) close(fds[1 + i]);
    return vk_number(env, -EMSGSIZE);
  }
  fds[0] = (int32_t)came;
  return vk_number(env, (double)received);
}

/* duplicate(fd) -> fd */
static napi_value duplicate(napi_env env, napi_callback_info info) {
  napi_value argv[1];
  int32_t fd;
  if (vk_begin(env, info, 1, argv) == NULL || !vk_get_int(env, argv[0], &fd)) return NULL;
  return vk_result(env, fcntl(fd, F_DUPFD_CLOEXEC, 3));
}

/* closeDescriptor(fd) -> 0 */
static napi_value close_descriptor(napi_env env, napi_callback_info info) {
  napi_value argv[1];
  int32_t fd;
  if (vk_begin(env, info, 1, argv) == NULL || !vk_get_int(env, argv[0], &fd)) return NULL;
  return vk_result(env, close(fd));
}

bool vk_socket_init(struct vk_env *state, napi_value exports) {
  static const struct vk_method methods[] = {
      {"socketListen", socket_listen}, {"socketConnect", socket_connect},   {"socketAccept", socket_accept},
      {"socketPair", socket_pair},     {"socketSend", socket_send},         {"socketReceive", socket_receive},
      {"duplicate", duplicate},        {"closeDescriptor", close_descriptor},
  };
  return VK_DEFINE(state, exports, methods);
}
