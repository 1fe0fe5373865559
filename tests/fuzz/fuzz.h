/* fuzz.h: what the fuzzers share.
 *
 * Each fuzz_X.c is a program of libFuzzer: LLVMFuzzerTestOneInput gets bytes, and whatever they are, nothing may crash, hang,
 * leak or break a rule that MUST names. Inputs that once did are in seeds/X, which every run tries first. */
#ifndef LR_FUZZ_H
#define LR_FUZZ_H

#include "core/core.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: not so: %s (last error: %s)\n", __FILE__, __LINE__, #condition, lr_last_error());  \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

/* A copy that ends with the last byte, so that AddressSanitizer sees a read past it. */
static inline char *fuzz_copy(const uint8_t *data, size_t size)
{
    char *copy = malloc(size > 0 ? size : 1);
    MUST(copy != NULL);
    memcpy(copy, data, size);
    return copy;
}

/* A copy with a NUL after it; the data may also contain NULs. */
static inline char *fuzz_string(const uint8_t *data, size_t size)
{
    char *copy = malloc(size + 1);
    MUST(copy != NULL);
    memcpy(copy, data, size);
    copy[size] = 0;
    return copy;
}

/* The path of a file, in the working folder, that holds these bytes until the next call. suffix: of its name. */
static char fuzz_path[64];

static inline void fuzz_remove(void)
{
    remove(fuzz_path);
}

static inline const char *fuzz_file(const char *suffix, const uint8_t *data, size_t size)
{
    static int fd = -1;
    if (fd < 0) {
        snprintf(fuzz_path, sizeof fuzz_path, "input-XXXXXX%s", suffix);
        fd = mkstemps(fuzz_path, (int)strlen(suffix));
        MUST(fd >= 0 && atexit(fuzz_remove) == 0);
    }
    MUST(ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size);
    return fuzz_path;
}

/* The number of small allocations: it must be the same after an input as before. */
static inline int64_t fuzz_objects(void)
{
    lr_memory m;
    MUST(lr_memory_stats(LR_CPU, &m) == LR_OK);
    return m.host_objects;
}

/* The input in two parts: before and after the first byte 0xFF, which UTF-8 never has. */
static inline const uint8_t *fuzz_split(const uint8_t *data, size_t size, size_t *first, size_t *second)
{
    const uint8_t *mark = size > 0 ? memchr(data, 0xFF, size) : NULL;
    *first = mark != NULL ? (size_t)(mark - data) : size;
    *second = mark != NULL ? size - *first - 1 : 0;
    return mark != NULL ? mark + 1 : data + size;
}

#endif
