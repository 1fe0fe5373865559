/* limits.h: what the runtime asks of the system's limits; lr.h has what Lua asks (lr_limit, lr_group_file, lr_memory_left_by_group). */
#ifndef LR_LIMITS_H
#define LR_LIMITS_H

#include "core/core.h"

/* The first thing a program does: a file that grows beyond its limit is an error and no signal; malloc and the stack fit limits. */
void lr_limits_prepare(void);

/* Why the system may have refused with this errno: " (ulimit -v: 4.1 GB)", or "" where no limit that is set has to do with it. */
typedef struct lr_because {
    char text[260];
} lr_because;
lr_because lr_limits_because(int code);

/* LR_EIO with the text of `code`, which a call gave that starts a thread or a process, and its limits. */
int lr_limits_fail_start(const char *what, int code);

/* What is left to this process of its addresses or data; INT64_MAX where they have no limit. */
int64_t lr_limits_left(int kind);

/* Bytes of addresses and data that tensors leave to libraries where these have a limit: oneDNN ends the process where malloc fails. */
#define LR_LIMITS_SPARE ((int64_t)64 << 20)

/* LR_ENOMEM where there is such a limit and not even half of that is left: before a call of such a library. */
int lr_limits_spare(void);

/* LR_ENOMEM where tensors may not have so many bytes more: the call would fail, or, where it is a control group that has no more, the
 * kernel would kill who uses them. */
int lr_limits_allow(size_t bytes);

#endif
