// The C peer of the ring bench: the same requests through the same checks. Usage: ring split|packed descriptors batch
#include "packed.h"
#include "split.h"

enum { SLOTS = 512, SLOT_BYTES = 8192, MEMORY_BYTES = 16 << 20, BUFFERS = 1 << 20, QUEUE_ADDRESS = 0x10000 };
enum { REQUESTS_A_LOOK = 16384 };
static const double ROUND_SECONDS = 0.25;

static uint64_t notifications, written;
static uint32_t slot;
static batch_t batch;
static scatter_t sg;
static uint32_t tokens[MAX_BATCH], lengths[MAX_BATCH];

#define SERVE(format)                                                                             \
  static uint64_t format##_serve(format##_t *driver, format##_t *device, uint32_t descriptors,    \
                                 uint32_t batch_size, uint64_t requests) {                        \
    uint64_t done = 0;                                                                            \
    while (done < requests) {                                                                     \
      for (uint32_t i = 0; i < batch_size; i++) {                                                 \
        if (!format##_add(driver, &sg, slot * 3, 1, descriptors - 1, slot)) abort();              \
        slot = (slot + 1) & (SLOTS - 1);                                                          \
      }                                                                                           \
      if (format##_publish(driver)) notifications++;                                              \
      do {                                                                                        \
        format##_disable_kicks(device);                                                           \
        for (;;) {                                                                                \
          batch.count = batch.segments = 0;                                                       \
          uint32_t count = format##_pop(device, &batch, MAX_BATCH);                               \
          if (count == 0) break;                                                                  \
          for (uint32_t c = 0; c < count; c++)                                                    \
            format##_push(device, batch.id[c], batch.writable_bytes[c]);                          \
          if (format##_flush(device)) notifications++;                                            \
        }                                                                                         \
      } while (format##_enable_kicks(device));                                                    \
      do {                                                                                        \
        format##_disable_callbacks(driver);                                                       \
        uint32_t count = format##_get(driver, tokens, lengths, MAX_BATCH);                        \
        for (uint32_t i = 0; i < count; i++) written += lengths[i] + tokens[i];                   \
        done += count;                                                                            \
      } while (format##_enable_callbacks(driver));                                                \
    }                                                                                             \
    return done;                                                                                  \
  }                                                                                               \
  static double format##_round(format##_t *driver, format##_t *device, uint32_t descriptors,      \
                               uint32_t batch_size) {                                             \
    double start = now(), spent;                                                                  \
    uint64_t done = 0;                                                                            \
    do {                                                                                          \
      done += format##_serve(driver, device, descriptors, batch_size, REQUESTS_A_LOOK);           \
      spent = now() - start;                                                                      \
    } while (spent < ROUND_SECONDS);                                                              \
    if (driver->fault || device->fault || notifications == 0) abort();                            \
    return done / spent / 1e6;                                                                    \
  }                                                                                               \
  static void format##_main(memory_t *memory, uint32_t descriptors, uint32_t batch_size) {        \
    format##_t driver = format##_new(memory, QUEUE_ADDRESS, QUEUE_SIZE);                          \
    format##_t device = format##_new(memory, QUEUE_ADDRESS, QUEUE_SIZE);                          \
    char line[64];                                                                                \
    format##_round(&driver, &device, descriptors, batch_size);                                    \
    while (fgets(line, sizeof line, stdin)) {                                                     \
      double value = format##_round(&driver, &device, descriptors, batch_size);                   \
      printf("%f %llu %llu\n", value, (unsigned long long)notifications, (unsigned long long)written); \
      fflush(stdout);                                                                             \
    }                                                                                             \
  }

SERVE(split)
SERVE(packed)

int main(int argc, char **argv) {
  static const uint32_t part[3] = {16, 4096, 1};
  if (argc != 4) return 2;
  region_t region = {.base = 0, .end = MEMORY_BYTES, .host = take(MEMORY_BYTES, 1)};
  memory_t memory = {.count = 1, .regions = &region};
  batch = batch_new();
  sg.address = take(SLOTS * 3, 8);
  sg.length = take(SLOTS * 3, 4);
  for (uint32_t s = 0; s < SLOTS; s++) {
    uint64_t address = BUFFERS + (uint64_t)s * SLOT_BYTES;
    for (uint32_t i = 0; i < 3; i++) {
      sg.address[s * 3 + i] = address;
      sg.length[s * 3 + i] = part[i];
      address += part[i];
    }
  }
  if (strcmp(argv[1], "split") == 0) split_main(&memory, atoi(argv[2]), atoi(argv[3]));
  else if (strcmp(argv[1], "packed") == 0) packed_main(&memory, atoi(argv[2]), atoi(argv[3]));
  else return 2;
  return 0;
}
