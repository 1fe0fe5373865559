/* rows.c: decimal numbers and lists of names, for the readers of rows. */
#include "data/rows.h"
#include "io/json.h"
#include <math.h>
#include <string.h>

enum { DECIMAL_BYTES = 1024 };

static const char *digits(const char *p, const char *end)
{
    while (p < end && *p >= '0' && *p <= '9')
        p++;
    return p;
}

/* Numbers of at most 15 digits without an exponent, which nearly all are: one operation gives the exact result (Clinger 1990). */
static bool decimal_short(const char *p, const char *end, double *out)
{
    static const double powers[] = {1e0, 1e1, 1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                    1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15};
    const bool negative = p < end && *p == '-';
    int64_t mantissa = 0;
    int seen = 0, fraction = 0;
    bool point = false;
    for (p += negative || (p < end && *p == '+'); p < end; p++) {
        if (*p == '.') {
            point = true;
        } else if (*p >= '0' && *p <= '9') {
            mantissa = mantissa * 10 + (*p - '0');
            fraction += point;
            if (++seen > 15)
                return false;
        } else {
            return false;
        }
    }
    const double value = (double)mantissa / powers[fraction];
    *out = negative ? -value : value;
    return true;
}

bool lr_decimal(const char *text, int64_t size, double *out)
{
    const char *p = text, *end = text + size;
    p += p < end && (*p == '-' || *p == '+');
    const char *whole = p;
    p = digits(p, end);
    int64_t count = p - whole;
    if (p < end && *p == '.') {
        const char *fraction = p + 1;
        p = digits(fraction, end);
        count += p - fraction;
    }
    if (count == 0)
        return false;
    if (p < end && (*p == 'e' || *p == 'E')) {
        p++;
        p += p < end && (*p == '-' || *p == '+');
        const char *exponent = p;
        p = digits(p, end);
        if (p == exponent)
            return false;
    }
    if (p != end)
        return false;
    if (decimal_short(text, end, out))
        return true;
    char copy[DECIMAL_BYTES];
    if (size >= DECIMAL_BYTES)
        return false;
    memcpy(copy, text, (size_t)size);
    copy[size] = 0;
    const double value = lr_decimal_value(copy);
    if (!isfinite(value))
        return false;
    *out = value;
    return true;
}

void lr_name_append(char *list, size_t cap, const char *name, size_t size)
{
    const size_t used = strlen(list), separator = used > 0 ? 2 : 0, room = cap - used - 1;
    if (used >= 3 && strcmp(list + used - 3, "...") == 0)
        return;
    if (separator + size + sizeof ", ..." - 1 > room) {
        if (room >= 5)
            memcpy(list + used, separator ? ", ..." : "...", separator ? 6 : 4);
        return;
    }
    memcpy(list + used, ", ", separator);
    memcpy(list + used + separator, name, size);
    list[used + separator + size] = 0;
}
