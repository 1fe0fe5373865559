/* limits.h: the system's limits, for the runtime; lr.h has what Lua uses (lr_limit, lr_group_file, lr_memory_left_by_group). */
#ifndef LR_LIMITS_H
#define LR_LIMITS_H

#include "core/core.h"

/* To be called first of all: a file that grows beyond its limit becomes an error instead of a signal, and malloc and the stacks
 * of threads keep to the limits. */
void lr_limits_prepare(void);

/* The limits that may be why a call failed with this errno: " (ulimit -v: 4.1 GB)", or "" where none that is set can be. */
typedef struct lr_because {
    char text[260];
} lr_because;
lr_because lr_limits_because(int code);

/* LR_EIO for a thread or a process that could not be started: the text of `code`, an errno, and the limits that may be why. */
int lr_limits_fail_start(const char *what, int code);

/* Bytes of addresses or data that this process may still take; INT64_MAX where they have no limit. */
int64_t lr_limits_left(int kind);

/* Where addresses or data are limited, tensors leave this many bytes of them to libraries: oneDNN ends the process where malloc
 * fails. */
#define LR_LIMITS_SPARE ((int64_t)64 << 20)

/* To be called before such a library is: LR_ENOMEM where not even half of those bytes are left. */
int lr_limits_spare(void);

/* LR_ENOMEM where a limit does not let tensors take this many bytes more: the call would fail or, by a control group's limit,
 * the kernel would kill the process that uses them. */
int lr_limits_allow(size_t bytes);

#endif
