/* A peer that shrinks a memory file makes our next access to the hole a SIGBUS. The handler puts zeroed memory of our own there
 * and marks the mapping as lost: its session ends, the process does not. */
#include "virtkit.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>

#define ROWS 8192

/* Read by the handler without a lock: `start` is written last when a row is taken, and first when it is given back. */
static struct {
  atomic_uintptr_t start;
  atomic_uintptr_t end;
  atomic_uintptr_t page;
  atomic_bool lost;
} rows[ROWS];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool installed;
static int used;
static struct sigaction previous;

static bool repair(uintptr_t address) {
  for (int i = 0; i < ROWS; i++) {
    uintptr_t start = atomic_load(&rows[i].start);
    uintptr_t end = atomic_load(&rows[i].end);
    if (start == 0 || address < start || address >= end) continue;
    /* All from here to the end: one mapping for the hole, not one a page. */
    uintptr_t from = address & ~(atomic_load(&rows[i].page) - 1);
    void *place = mmap((void *)from, end - from, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    if (place == MAP_FAILED) return false;
    atomic_store(&rows[i].lost, true);
    return true;
  }
  return false;
}

static void on_sigbus(int number, siginfo_t *info, void *context) {
  if (info->si_code > 0 && repair((uintptr_t)info->si_addr)) return;
  if ((previous.sa_flags & SA_SIGINFO) != 0 && previous.sa_sigaction != NULL) previous.sa_sigaction(number, info, context);
  else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) previous.sa_handler(number);
  else {
    /* Not ours and nobody else's. Back at the same instruction it ends the process as it would have without us. */
    signal(number, SIG_DFL);
    if (info->si_code <= 0) raise(number);
  }
}

static bool install(void) {
  struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  sigemptyset(&action.sa_mask);
  return sigaction(SIGBUS, &action, &previous) == 0;
}

int vk_guard_add(uint8_t *base, uint64_t length, uint64_t page) {
  int row = -1;
  pthread_mutex_lock(&lock);
  if (!installed) installed = install();
  if (installed && used < ROWS) {
    row = 0;
    while (atomic_load(&rows[row].start) != 0) row++;
    used++;
    atomic_store(&rows[row].lost, false);
    atomic_store(&rows[row].page, page);
    atomic_store(&rows[row].end, (uintptr_t)base + length);
    atomic_store(&rows[row].start, (uintptr_t)base);
  }
  pthread_mutex_unlock(&lock);
  return row;
}

void vk_guard_remove(int row) {
  if (row < 0) return;
  pthread_mutex_lock(&lock);
  atomic_store(&rows[row].start, 0);
  used--;
  pthread_mutex_unlock(&lock);
}

bool vk_guard_lost(int row) { return row >= 0 && atomic_load_explicit(&rows[row].lost, memory_order_relaxed); }
