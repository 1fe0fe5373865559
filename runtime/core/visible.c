/* visible.c: text from files and from others, made safe to show on a terminal.
 *
 * A name or a text can contain what a terminal obeys: escape sequences that colour, erase, rename the window or send an answer
 * as if it was typed, their one-byte forms (C1), and marks that change the direction of the text after them. Each is written as
 * its number; letters of all languages stay. */
#include "core/core.h"
#include "core/utf8.h"
#include <stdio.h>
#include <string.h>

/* The code point at p and its number of bytes; -1 and 1 where it is not UTF-8. */
static int32_t decode(const unsigned char *p, const unsigned char *end, int *bytes)
{
    const int n = lr_utf8_sequence((const char *)p, (const char *)end);
    int32_t c = n <= 1 ? *p : *p & (0xFF >> (n + 1));
    for (int i = 1; i < n; i++)
        c = c << 6 | (p[i] & 0x3F);
    *bytes = n > 0 ? n : 1;
    return n > 0 ? c : -1;
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
