/* error.c: the last error of each thread, the names and texts of statuses, the version. */
#include "core/core.h"
#include <stdio.h>
#include <string.h>

static _Thread_local char last_error[2048] = ""; /* nothing has failed */

int lr_fail(int status, const char *fmt, ...)
{
    char raw[sizeof last_error]; /* an argument may be the last error itself */
    va_list args;
    va_start(args, fmt);
    vsnprintf(raw, sizeof raw, fmt, args);
    va_end(args);
    (void)lr_visible_copy(last_error, sizeof last_error, raw, strlen(raw), true);
    return status;
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
