/* core.h: what every C file of the runtime may use: errors, small allocations, threads, limits.
 *
 * Invariants
 *   - Every heap allocation of lorarun goes through lr_alloc and friends (libraries below get them as hooks where they offer
 *     one). That makes leaks countable (lr_memory.host_objects) and lets a test fail each allocation in turn.
 *   - A function that fails has called lr_fail exactly once, at the place that knows the values, and undone its side effects. */
#ifndef LR_CORE_H
#define LR_CORE_H

#include "lr.h"
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>

#define LR_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))

/* Record the calling thread's error message and return `status`: return lr_fail(LR_EINVAL, "rows is %d, ...", rows); */
int lr_fail(int status, const char *fmt, ...) LR_PRINTF(2, 3);
/* The same with the text of errno at the end, and the limit that may have to do with it: "cannot write x: File too large (ulimit -f:
 * 1.0 MB)". ENOENT becomes LR_ENOTFOUND and ENOMEM LR_ENOMEM, whatever else LR_EIO. */
int lr_fail_errno(const char *fmt, ...) LR_PRINTF(1, 2);

/* Copy text so that a terminal obeys nothing in it (visible.c), at most cap - 1 bytes and a NUL; returns how many. one_line: line ends
 * and tabs become spaces, else they stay. */
size_t lr_visible_copy(char *out, size_t cap, const char *text, size_t size, bool one_line);

/* malloc, calloc, realloc, strdup that count and can be made to fail. NULL means lr_fail(LR_ENOMEM, ...) was called. */
void *lr_alloc(size_t size) __attribute__((malloc, alloc_size(1)));
void *lr_calloc(size_t count, size_t size) __attribute__((malloc, alloc_size(1, 2)));
void *lr_realloc(void *p, size_t size) __attribute__((alloc_size(2)));
char *lr_strdup(const char *s);
char *lr_strndup(const char *s, size_t n);
char *lr_format(const char *fmt, ...) LR_PRINTF(1, 2);
/* lr_free is public (lr.h). */
int64_t lr_host_objects(void); /* how many of these there are now */
/* Counts an allocation that does not go through lr_alloc; true where a test wants it to fail. */
bool lr_memory_injected(void);

/* Start threads for parallel regions of n where they do not run already. Returns how many there can be, n or fewer: libgomp ends the
 * program where it cannot start one. */
int lr_threads_ensure(int n);

/* pthread_create with all signals but SIGBUS blocked in the new thread, so that they reach the main one. */
int lr_thread_start(pthread_t *thread, void *(*run)(void *), void *context);

/* Grow a dynamic array so that it holds at least `need` elements: *cap elements of `size` bytes at *p. */
int lr_reserve(void **p, size_t *cap, size_t need, size_t size);

static inline int64_t lr_min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}
static inline int64_t lr_max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

#define LR_COUNT_OF(a) (sizeof(a) / sizeof((a)[0]))

#endif
