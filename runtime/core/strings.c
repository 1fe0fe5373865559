/* strings.c: strings in memory of lr_alloc. */
#include "core/core.h"
#include <stdio.h>
#include <string.h>

char *lr_strndup(const char *s, size_t n)
{
    char *p = lr_alloc(n + 1);
    if (p != NULL) {
        memcpy(p, s, n);
        p[n] = 0;
    }
    return p;
}

char *lr_strdup(const char *s)
{
    return lr_strndup(s, strlen(s));
}

char *lr_format(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    const int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    char *p = n < 0 ? NULL : lr_alloc((size_t)n + 1);
    if (p != NULL) {
        va_start(args, fmt);
        vsnprintf(p, (size_t)n + 1, fmt, args);
        va_end(args);
    }
    return p;
}

int lr_text_visible(const char *text, int64_t size, char **out)
{
    const size_t cap = 4 * (size_t)size + 1;
    char *visible = lr_alloc(cap);
    if (visible == NULL)
        return LR_ENOMEM;
    (void)lr_visible_copy(visible, cap, text, (size_t)size, false);
    *out = visible;
    return LR_OK;
}
