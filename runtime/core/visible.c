/* visible.c: text of files and of other people as a terminal may show it.
 *
 * A name or a text can hold what a terminal obeys: escape sequences that colour, erase, rename the window or answer as if typed,
 * their one-byte relatives (C1), and marks that turn the direction of what follows. Each is written as its number; letters of all
 * languages stay. */
#include "core/core.h"
#include <stdio.h>
#include <string.h>

/* The code point at p and its bytes, or -1 and 1 where there is no UTF-8 (RFC 3629). */
static int32_t decode(const unsigned char *p, const unsigned char *end, int *bytes)
{
    static const int32_t LEAST[] = {0, 0, 0x80, 0x800, 0x10000};
    const int n = *p < 0x80 ? 1 : *p < 0xC2 ? 0 : *p < 0xE0 ? 2 : *p < 0xF0 ? 3 : *p < 0xF5 ? 4 : 0;
    int32_t c = n == 1 ? *p : *p & (0xFF >> (n + 1));
    *bytes = 1;
    if (n == 0 || end - p < n)
        return -1;
    for (int i = 1; i < n; i++) {
        if ((p[i] & 0xC0) != 0x80)
            return -1;
        c = c << 6 | (p[i] & 0x3F);
    }
    if (c < LEAST[n] || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000))
        return -1;
    *bytes = n;
    return c;
}

static bool is_obeyed(int32_t c)
{
    return c < 0x20 || (c >= 0x7F && c < 0xA0) || c == 0x061C || c == 0x200E || c == 0x200F ||
           (c >= 0x2028 && c <= 0x202E) || (c >= 0x2066 && c <= 0x2069);
}

size_t lr_visible_copy(char *out, size_t cap, const char *text, size_t size, bool one_line)
{
    const unsigned char *p = (const unsigned char *)text, *const end = p + size;
    size_t used = 0;
    while (p < end) {
        int bytes;
        char as[16];
        const int32_t c = decode(p, end, &bytes);
        if (c == '\n' || c == '\t' || (c == '\r' && one_line))
            (void)snprintf(as, sizeof as, "%c", one_line ? ' ' : (char)c);
        else if (c < 0 || (c < 0x80 && is_obeyed(c)))
            (void)snprintf(as, sizeof as, "\\x%02x", *p);
        else if (is_obeyed(c))
            (void)snprintf(as, sizeof as, "\\u%04x", (unsigned)c);
        else
            (void)snprintf(as, sizeof as, "%.*s", bytes, (const char *)p);
        const size_t n = strlen(as);
        if (used + n >= cap)
            break;
        memcpy(out + used, as, n);
        used += n;
        p += bytes;
    }
    out[used] = 0;
    return used;
}
