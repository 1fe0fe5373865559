/* core.h: what every C file of the runtime may use: errors, small allocations, threads, limits.
 *
 * Invariants
 *   - Every heap allocation of lorarun goes through lr_alloc and friends (libraries that offer a hook for it get
 *     them). So leaks can be counted (lr_memory.host_objects), and a test can let each allocation fail in turn.
 *   - A function that fails has called lr_fail exactly once, where the values are known, and has undone its side effects. */
#ifndef LR_CORE_H
#define LR_CORE_H

#include "lr.h"
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>

#define LR_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))

/* Set the calling thread's error message and return `status`: return lr_fail(LR_EINVAL, "rows is %d, ...", rows); */
int lr_fail(int status, const char *fmt, ...) LR_PRINTF(2, 3);
/* The same, with the text of errno at the end, and the limit that may be the reason: "cannot write x: File too large (ulimit -f:
 * 1.0 MB)". Returns LR_ENOTFOUND for ENOENT and ENOTDIR, LR_ENOMEM for ENOMEM, else LR_EIO. limits.c */
int lr_fail_errno(const char *fmt, ...) LR_PRINTF(1, 2);

/* Copy text without anything that a terminal obeys (visible.c): at most cap - 1 bytes and a NUL. Returns the number of bytes.
 * one_line: line ends and tabs become spaces; else they stay. */
size_t lr_visible_copy(char *out, size_t cap, const char *text, size_t size, bool one_line);

/* malloc, calloc, realloc, strdup that are counted and that tests can make fail. NULL: lr_fail(LR_ENOMEM, ...) was called. */
void *lr_alloc(size_t size) __attribute__((malloc, alloc_size(1)));
void *lr_calloc(size_t count, size_t size) __attribute__((malloc, alloc_size(1, 2)));
void *lr_realloc(void *p, size_t size) __attribute__((alloc_size(2)));
char *lr_strdup(const char *s);
char *lr_strndup(const char *s, size_t n);
char *lr_format(const char *fmt, ...) LR_PRINTF(1, 2);
/* lr_free is public (lr.h). */
int64_t lr_host_objects(void); /* the number of such allocations that are alive */
/* Count an allocation that does not go through lr_alloc. True: a test wants it to fail. */
bool lr_memory_injected(void);

/* Start threads for parallel regions of n, unless they run already. Returns the number that can run, at most n. (libgomp by itself
 * would end the program where it cannot start a thread.) */
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
