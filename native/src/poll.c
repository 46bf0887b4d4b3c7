/* Descriptors on the environment's event loop. */
#include "virtkit.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
#include <uv.h>

struct vk_poll {
  uv_poll_t handle;
  struct vk_env *state;
  struct vk_poll *next;
  struct vk_poll **link; /* what points to this one */
  napi_ref callback;
  napi_async_context context;
  uint32_t id;
  int fd;
  bool drain;
  bool calling;
  bool stopped;
};

static void on_closed(uv_handle_t *handle) {
  struct vk_poll *poll = handle->data;
  struct vk_env *state = poll->state;
  free(poll);
  state->open_polls--;
  if (state->ending && state->open_polls == 0) vk_env_closed(state);
}

static void close_poll(struct vk_poll *poll) {
  *poll->link = poll->next;
  if (poll->next != NULL) poll->next->link = poll->link;
  uv_poll_stop(&poll->handle);
  uv_close((uv_handle_t *)&poll->handle, on_closed);
}

static void free_handles(napi_env env, struct vk_poll *poll) {
  if (poll->callback != NULL) napi_delete_reference(env, poll->callback);
  if (poll->context != NULL) napi_async_destroy(env, poll->context);
}

static void call(struct vk_poll *poll, int events) {
  napi_env env = poll->state->env;
  napi_handle_scope scope;
  if (napi_open_handle_scope(env, &scope) != napi_ok) return;
  napi_value callback;
  napi_value self;
  napi_value argument = vk_number(env, events);
  if (napi_get_reference_value(env, poll->callback, &callback) == napi_ok && napi_get_global(env, &self) == napi_ok) {
    poll->calling = true;
    napi_status status = napi_make_callback(env, poll->context, self, callback, 1, &argument, NULL);
    poll->calling = false;
    napi_value error;
    bool pending = false;
    if (status == napi_pending_exception && napi_is_exception_pending(env, &pending) == napi_ok && pending &&
        napi_get_and_clear_last_exception(env, &error) == napi_ok)
      napi_fatal_exception(env, error);
    /* The callback stopped its own poll, whose context was in use until now. */
    if (poll->stopped) free_handles(env, poll);
  }
  napi_close_handle_scope(env, scope);
}

static void on_poll(uv_poll_t *handle, int status, int events) {
  struct vk_poll *poll = handle->data;
  if (poll->state->ending) return;
  if (status == 0 && poll->drain && (events & UV_READABLE) != 0) {
    uint64_t value;
    ssize_t done = read(poll->fd, &value, sizeof(value));
    if (done < 0 && errno == EAGAIN) return;
    /* Its end or a failure: the callback is told, instead of being woken by it for ever. */
    if (done <= 0) status = done == 0 ? -EPIPE : -errno;
  }
  if (status < 0) uv_poll_stop(handle);
  call(poll, status < 0 ? status : events);
}

static struct vk_poll *find(struct vk_env *state, uint32_t id) {
  struct vk_poll *poll = state->polls;
  while (poll != NULL && poll->id != id) poll = poll->next;
  return poll;
}

static bool prepare(struct vk_env *state, struct vk_poll *poll, napi_value callback) {
  napi_env env = state->env;
  napi_value name;
  napi_valuetype type;
  return napi_typeof(env, callback, &type) == napi_ok && type == napi_function &&
         napi_create_reference(env, callback, 1, &poll->callback) == napi_ok &&
         napi_create_string_utf8(env, "virtkit.poll", NAPI_AUTO_LENGTH, &name) == napi_ok &&
         napi_async_init(env, NULL, name, &poll->context) == napi_ok;
}

/* pollStart(fd, events, drain, callback(events or -errno)) -> id */
static napi_value poll_start(napi_env env, napi_callback_info info) {
  napi_value argv[4];
  int32_t fd;
  int32_t events;
  bool drain;
  struct vk_env *state = vk_begin(env, info, 4, argv);
  if (state == NULL || !vk_get_int(env, argv[0], &fd) || !vk_get_int(env, argv[1], &events) ||
      !vk_get_bool(env, argv[2], &drain))
    return NULL;
  struct vk_poll *poll = calloc(1, sizeof(*poll));
  if (poll == NULL || !prepare(state, poll, argv[3])) {
    if (poll != NULL) free_handles(env, poll);
    free(poll);
    return vk_throw(env, "the callback of a poll is not a function");
  }
  int status = uv_poll_init(state->loop, &poll->handle, fd);
  if (status < 0) {
    free_handles(env, poll);
    free(poll);
    return vk_number(env, status);
  }
  poll->handle.data = poll;
  poll->state = state;
  poll->id = ++state->next_poll;
  poll->fd = fd;
  poll->drain = drain;
  poll->next = state->polls;
  poll->link = &state->polls;
  if (poll->next != NULL) poll->next->link = &poll->next;
  state->polls = poll;
  state->open_polls++;
  status = uv_poll_start(&poll->handle, events, on_poll);
  if (status < 0) {
    free_handles(env, poll);
    close_poll(poll);
    return vk_number(env, status);
  }
  return vk_number(env, poll->id);
}

/* pollChange(id, events) -> 0; with no events it rests. */
static napi_value poll_change(napi_env env, napi_callback_info info) {
  napi_value argv[2];
  uint32_t id;
  int32_t events;
  struct vk_env *state = vk_begin(env, info, 2, argv);
  if (state == NULL || !vk_get_uint(env, argv[0], &id) || !vk_get_int(env, argv[1], &events)) return NULL;
  struct vk_poll *poll = find(state, id);
  if (poll == NULL) return vk_number(env, -ENOENT);
  return vk_number(env, events == 0 ? uv_poll_stop(&poll->handle) : uv_poll_start(&poll->handle, events, on_poll));
}

/* pollKeepAlive(id, yes) -> 0: whether the program runs on for it. */
static napi_value poll_keep_alive(napi_env env, napi_callback_info info) {
  napi_value argv[2];
  uint32_t id;
  bool yes;
  struct vk_env *state = vk_begin(env, info, 2, argv);
  if (state == NULL || !vk_get_uint(env, argv[0], &id) || !vk_get_bool(env, argv[1], &yes)) return NULL;
  struct vk_poll *poll = find(state, id);
  if (poll == NULL) return vk_number(env, -ENOENT);
  if (yes) uv_ref((uv_handle_t *)&poll->handle);
  else uv_unref((uv_handle_t *)&poll->handle);
  return vk_number(env, 0);
}

/* pollStop(id) -> 0. The descriptor may be closed right after it. */
static napi_value poll_stop(napi_env env, napi_callback_info info) {
  napi_value argv[1];
  uint32_t id;
  struct vk_env *state = vk_begin(env, info, 1, argv);
  if (state == NULL || !vk_get_uint(env, argv[0], &id)) return NULL;
  struct vk_poll *poll = find(state, id);
  if (poll == NULL) return vk_number(env, -ENOENT);
  poll->stopped = true;
  if (!poll->calling) free_handles(env, poll);
  close_poll(poll);
  return vk_number(env, 0);
}

void vk_polls_end(struct vk_env *state) {
  if (state->open_polls == 0) {
    vk_env_closed(state);
    return;
  }
  /* Node deletes the references and contexts with the environment. */
  while (state->polls != NULL) close_poll(state->polls);
}

bool vk_poll_init(struct vk_env *state, napi_value exports) {
  static const struct vk_method methods[] = {{"pollStart", poll_start},
                                             {"pollChange", poll_change},
                                             {"pollKeepAlive", poll_keep_alive},
                                             {"pollStop", poll_stop}};
  return VK_DEFINE(state, exports, methods);
}
