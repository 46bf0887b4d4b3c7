/* Arguments from JavaScript and results back to it. */
#include "virtkit.h"

#include <errno.h>
#include <math.h>

napi_value vk_throw(napi_env env, const char *message) {
  napi_throw_type_error(env, "ERR_VIRTKIT_NATIVE_ARGUMENT", message);
  return NULL;
}

struct vk_env *vk_begin(napi_env env, napi_callback_info info, size_t count, napi_value *argv) {
  void *state = NULL;
  size_t given = count;
  if (napi_get_cb_info(env, info, &given, argv, NULL, &state) != napi_ok || given < count) {
    vk_throw(env, "too few arguments");
    return NULL;
  }
  return state;
}

static bool get_whole(napi_env env, napi_value value, double low, double high, double *out) {
  if (napi_get_value_double(env, value, out) == napi_ok && *out >= low && *out <= high && *out == floor(*out)) return true;
  vk_throw(env, "an argument is not a whole number in its range");
  return false;
}

bool vk_get_int(napi_env env, napi_value value, int32_t *out) {
  double number;
  if (!get_whole(env, value, INT32_MIN, INT32_MAX, &number)) return false;
  *out = (int32_t)number;
  return true;
}

bool vk_get_uint(napi_env env, napi_value value, uint32_t *out) {
  double number;
  if (!get_whole(env, value, 0, UINT32_MAX, &number)) return false;
  *out = (uint32_t)number;
  return true;
}

bool vk_get_size(napi_env env, napi_value value, uint64_t *out) {
  double number;
  if (!get_whole(env, value, 0, 9007199254740992.0, &number)) return false;
  *out = (uint64_t)number;
  return true;
}

bool vk_get_bool(napi_env env, napi_value value, bool *out) {
  if (napi_get_value_bool(env, value, out) == napi_ok) return true;
  vk_throw(env, "an argument is not a boolean");
  return false;
}

bool vk_get_string(napi_env env, napi_value value, char *out, size_t capacity, size_t *length) {
  size_t needed = 0;
  if (napi_get_value_string_utf8(env, value, NULL, 0, &needed) != napi_ok || needed >= capacity) {
    vk_throw(env, "an argument is not a string, or is too long");
    return false;
  }
  return napi_get_value_string_utf8(env, value, out, capacity, length) == napi_ok;
}

bool vk_get_bytes(napi_env env, napi_value value, napi_value offset, napi_value length, uint8_t **out, size_t *size) {
  napi_typedarray_type type;
  size_t total;
  void *data;
  uint64_t from;
  uint64_t bytes;
  if (!vk_get_size(env, offset, &from) || !vk_get_size(env, length, &bytes)) return false;
  if (napi_get_typedarray_info(env, value, &type, &total, &data, NULL, NULL) != napi_ok || type != napi_uint8_array ||
      from > total || bytes > total - from) {
    vk_throw(env, "the bytes are not inside a Uint8Array");
    return false;
  }
  *out = bytes == 0 ? (uint8_t *)"" : (uint8_t *)data + from;
  *size = (size_t)bytes;
  return true;
}

bool vk_get_int32s(napi_env env, napi_value value, int32_t **out, size_t *count) {
  napi_typedarray_type type;
  void *data;
  if (napi_get_typedarray_info(env, value, &type, count, &data, NULL, NULL) != napi_ok || type != napi_int32_array) {
    vk_throw(env, "an argument is not an Int32Array");
    return false;
  }
  *out = data;
  return true;
}

napi_value vk_number(napi_env env, double value) {
  napi_value result = NULL;
  napi_create_double(env, value, &result);
  return result;
}

napi_value vk_result(napi_env env, int64_t result) { return vk_number(env, (double)(result < 0 ? -errno : result)); }

bool vk_define(struct vk_env *state, napi_value exports, const struct vk_method *methods, size_t count) {
  for (size_t i = 0; i < count; i++) {
    napi_property_descriptor property = {
        .utf8name = methods[i].name, .method = methods[i].call, .attributes = napi_enumerable, .data = state};
    if (napi_define_properties(state->env, exports, 1, &property) != napi_ok) return false;
  }
  return true;
}
