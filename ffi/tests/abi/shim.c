/* An allocator that fails on request, to be preloaded: `shim_arm(first, last, mine)` lets the allocations
 * number `first` to `last` from then on fail, of all threads or of the calling one; `shim_disarm` ends that and
 * says how many there were. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static atomic_long seen, first_failing, last_failing;
static atomic_int armed; /* 1: all threads, 2: those with `own` */
static __thread int own __attribute__((tls_model("initial-exec")));

void shim_arm(long first, long last, int mine) {
  seen = 0;
  first_failing = first;
  last_failing = last;
  own = mine;
  armed = mine ? 2 : 1;
}

long shim_disarm(void) {
  armed = 0;
  own = 0;
  return seen;
}

static int fails(void) {
  int how = armed;
  if (how == 0 || (how == 2 && !own)) return 0;
  long number = atomic_fetch_add(&seen, 1) + 1;
  return number >= first_failing && number <= last_failing;
}

static void *refuse(void) {
  errno = ENOMEM;
  return NULL;
}

void *malloc(size_t n) { return fails() ? refuse() : __libc_malloc(n); }
void *calloc(size_t n, size_t size) { return fails() ? refuse() : __libc_calloc(n, size); }
void *realloc(void *at, size_t n) { return n && fails() ? refuse() : __libc_realloc(at, n); }
void *memalign(size_t align, size_t n) { return fails() ? refuse() : __libc_memalign(align, n); }
void *aligned_alloc(size_t align, size_t n) { return fails() ? refuse() : __libc_memalign(align, n); }
int posix_memalign(void **at, size_t align, size_t n) {
  void *found = fails() ? NULL : __libc_memalign(align, n);
  if (!found) return ENOMEM;
  *at = found;
  return 0;
}
