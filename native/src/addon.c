/* Start and end of the add-on in one environment. */
#include "virtkit.h"

#include <stdlib.h>
#include <uv.h>

void vk_env_closed(struct vk_env *state) {
  bool drained = vk_rings_end(state);
  vk_tables_end(state);
  /* The kernel may still write where a request that did not end points to: such memory is given up, not given back. */
  vk_regions_end(state, !drained);
  napi_remove_async_cleanup_hook(state->cleanup);
  free(state);
}

/* Runs when the environment ends: a worker that is terminated with open poll handles would abort the process. */
static void on_cleanup(napi_async_cleanup_hook_handle handle, void *data) {
  struct vk_env *state = data;
  (void)handle;
  state->ending = true;
  vk_polls_end(state);
}

NAPI_MODULE_INIT() {
  struct vk_env *state = calloc(1, sizeof(*state));
  if (state == NULL) return vk_throw(env, "no memory for the add-on's state");
  state->env = env;
  if (napi_get_uv_event_loop(env, &state->loop) != napi_ok ||
      napi_add_async_cleanup_hook(env, on_cleanup, state, &state->cleanup) != napi_ok) {
    free(state);
    return vk_throw(env, "the add-on cannot reach the event loop");
  }
  bool ok = vk_socket_init(state, exports) && vk_memory_init(state, exports) && vk_table_init(state, exports) &&
            vk_eventfd_init(state, exports) && vk_poll_init(state, exports) && vk_uring_init(state, exports) &&
            vk_file_init(state, exports) && vk_tap_init(state, exports);
  if (!ok) return vk_throw(env, "the add-on's functions cannot be defined");
  napi_set_named_property(env, exports, "version", vk_number(env, VK_VERSION));
  return exports;
}
