/* utf8.h: UTF-8 (RFC 3629) and hexadecimal digits, one character at a time. */
#ifndef LR_CORE_UTF8_H
#define LR_CORE_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Bytes of the sequence at `text`, 1 to 4; 0: it is malformed (overlong, a surrogate, beyond U+10FFFF) or cut off by `end`. */
static inline int lr_utf8_sequence(const char *text, const char *end)
{
    const unsigned char *p = (const unsigned char *)text;
    const ptrdiff_t room = end - text;
    if (p[0] < 0x80)
        return 1;
    if (p[0] < 0xC2 || p[0] > 0xF4 || room < 2 || (p[1] & 0xC0) != 0x80)
        return 0;
    if (p[0] < 0xE0)
        return 2;
    if (room < 3 || (p[2] & 0xC0) != 0x80)
        return 0;
    if (p[0] < 0xF0)
        return (p[0] == 0xE0 && p[1] < 0xA0) || (p[0] == 0xED && p[1] > 0x9F) ? 0 : 3;
    if (room < 4 || (p[3] & 0xC0) != 0x80)
        return 0;
    return (p[0] == 0xF0 && p[1] < 0x90) || (p[0] == 0xF4 && p[1] > 0x8F) ? 0 : 4;
}

/* Writes a code point that is no surrogate, at most 4 bytes; returns where it ends. */
static inline char *lr_utf8_put(char *out, uint32_t c)
{
    if (c < 0x80) {
        *out++ = (char)c;
    } else if (c < 0x800) {
        *out++ = (char)(0xC0 | c >> 6);
        *out++ = (char)(0x80 | (c & 63));
    } else if (c < 0x10000) {
        *out++ = (char)(0xE0 | c >> 12);
        *out++ = (char)(0x80 | (c >> 6 & 63));
        *out++ = (char)(0x80 | (c & 63));
    } else {
        *out++ = (char)(0xF0 | c >> 18);
        *out++ = (char)(0x80 | (c >> 12 & 63));
        *out++ = (char)(0x80 | (c >> 6 & 63));
        *out++ = (char)(0x80 | (c & 63));
    }
    return out;
}

/* The value of a hexadecimal digit, or -1. */
static inline int lr_hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* The value of the four hexadecimal digits at p, as in \uXXXX, or -1. */
static inline int lr_hex4(const char *p)
{
    int value = 0;
    for (int i = 0; i < 4; i++) {
        const int digit = lr_hex_digit(p[i]);
        if (digit < 0)
            return -1;
        value = value * 16 + digit;
    }
    return value;
}

#endif
