/* error.c: the thread-local last error and the status tables. */
#include "core/core.h"
#include "core/limits.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char last_error[2048] = ""; /* nothing has failed */

static void set_error(const char *fmt, va_list args)
{
    char raw[sizeof last_error]; /* an argument may be the last error itself */
    vsnprintf(raw, sizeof raw, fmt, args);
    (void)lr_visible_copy(last_error, sizeof last_error, raw, strlen(raw), true);
}

int lr_fail(int status, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    set_error(fmt, args);
    va_end(args);
    return status;
}

int lr_fail_errno(const char *fmt, ...)
{
    const int code = errno;
    char reason[256] = "";
    if (code != EAGAIN) /* that of a socket has other reasons than that of a thread */
        lr_limits_reason(code, reason, sizeof reason);
    va_list args;
    va_start(args, fmt);
    set_error(fmt, args);
    va_end(args);
    const size_t used = strlen(last_error);
    snprintf(last_error + used, sizeof last_error - used, ": %s%s%s%s", strerror(code), *reason != 0 ? " (" : "",
             reason, *reason != 0 ? ")" : "");
    return code == ENOENT || code == ENOTDIR ? LR_ENOTFOUND : code == ENOMEM ? LR_ENOMEM : LR_EIO;
}

const char *lr_last_error(void)
{
    return last_error;
}

const char *lr_status_name(int code)
{
    switch (code) {
#define LR_STATUS(c, name, text)                                                                                       \
    case c:                                                                                                            \
        return #name;
#include "core/status.def"
#undef LR_STATUS
    default:
        return "UNKNOWN";
    }
}

const char *lr_status_text(int code)
{
    switch (code) {
#define LR_STATUS(c, name, text)                                                                                       \
    case c:                                                                                                            \
        return text;
#include "core/status.def"
#undef LR_STATUS
    default:
        return "unknown status";
    }
}

int lr_abi_version(void)
{
    return LR_ABI_VERSION;
}

const char *lr_version(void)
{
    return LR_VERSION;
}
