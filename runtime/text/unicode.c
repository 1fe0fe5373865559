/* unicode.c: UTF-8 checks, the table of character classes, lower case, normal forms on utf8proc.
 *
 * Most text needs no normalisation, and most of the rest needs it in a few places. So the text is scanned with one table look-up
 * per character. Runs that the form does not change are copied, and utf8proc sees only the stretches between them: from the last
 * character that starts a run to the next one that does. Characters newer than the reference's normal forms are "opaque": they
 * are copied, and what is before and after them is normalised as if the text ended there. */
#include "text/unicode.h"
#include <pthread.h>
#include <string.h>
#include <utf8proc.h>

uint16_t lr_char_classes[0x110000];

static void mark(const lr_range *ranges, size_t count, int class)
{
    for (size_t i = 0; i < count; i++)
        for (uint32_t c = ranges[i].first; c <= ranges[i].last; c++)
            lr_char_classes[c] = (uint16_t)(lr_char_classes[c] | class);
}

static void fill_classes(void)
{
    mark(lr_unicode_space, lr_unicode_space_count, LR_CHAR_SPACE);
    mark(lr_unicode_numeric, lr_unicode_numeric_count, LR_CHAR_NUMERIC);
    mark(lr_unicode_punctuation, lr_unicode_punctuation_count, LR_CHAR_PUNCTUATION);
    mark(lr_unicode_word, lr_unicode_word_count, LR_CHAR_WORD);
    mark(lr_unicode_control, lr_unicode_control_count, LR_CHAR_CONTROL);
    mark(lr_unicode_accent, lr_unicode_accent_count, LR_CHAR_ACCENT);
    mark(lr_unicode_mark, lr_unicode_mark_count, LR_CHAR_MARK);
    mark(lr_unicode_unstable, lr_unicode_unstable_count, LR_CHAR_UNSTABLE);
    mark(lr_unicode_opaque, lr_unicode_opaque_count, LR_CHAR_OPAQUE);
}

void lr_unicode_init(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, fill_classes);
}

uint32_t lr_char_lower(uint32_t c)
{
    if (c < 0x80)
        return c >= 'A' && c <= 'Z' ? c + 32 : c;
    for (size_t i = 0; i < lr_unicode_lower_count && lr_unicode_lower[i].first <= c; i++)
        if (c <= lr_unicode_lower[i].last)
            return (uint32_t)((int32_t)c + lr_unicode_lower[i].delta);
    return (uint32_t)utf8proc_tolower((utf8proc_int32_t)c);
}

/* ---- UTF-8 ---------------------------------------------------------------------------------------------------------- */
static const uint64_t HIGH_BITS = 0x8080808080808080u;

/* How many bytes from s on are ASCII, counted eight at a time, so up to seven too few. */
static size_t ascii_run(const char *s, size_t size)
{
    size_t i = 0;
    for (uint64_t word; i + sizeof word <= size; i += sizeof word) {
        memcpy(&word, s + i, sizeof word);
        if (word & HIGH_BITS)
            break;
    }
    return i;
}

bool lr_utf8_ascii(const char *s, size_t size)
{
    size_t i = ascii_run(s, size);
    if (i + 8 <= size)
        return false;
    while (i < size && (unsigned char)s[i] < 0x80)
        i++;
    return i == size;
}

size_t lr_utf8_check(const char *s, size_t size, bool *ascii)
{
    size_t i = 0;
    *ascii = true;
    while (i < size) {
        i += ascii_run(s + i, size - i);
        for (int k = 0; k < 8 && i < size; k++) { /* a few characters, then try whole words again */
            const size_t n = (size_t)lr_utf8_sequence(s + i, s + size);
            if (n == 0)
                return i;
            if (n > 1)
                *ascii = false;
            i += n;
        }
    }
    return size;
}

/* ---- growing strings ------------------------------------------------------------------------------------------------ */
int lr_string_reserve(lr_string *s, size_t more)
{
    return lr_reserve((void **)&s->data, &s->cap, s->size + more, 1);
}

int lr_string_append(lr_string *s, const char *data, size_t size)
{
    const int status = lr_string_reserve(s, size);
    if (status == LR_OK && size > 0) {
        memcpy(s->data + s->size, data, size);
        s->size += size;
    }
    return status;
}

int lr_string_append_char(lr_string *s, uint32_t c)
{
    const int status = lr_string_reserve(s, 4);
    if (status == LR_OK)
        s->size = (size_t)(lr_utf8_put(s->data + s->size, c) - s->data);
    return status;
}

void lr_string_free(lr_string *s)
{
    lr_free(s->data);
    *s = (lr_string){0};
}

/* ---- normal forms --------------------------------------------------------------------------------------------------- */
/* The lowest first byte of a character that the form may change: U+0300 for NFC, U+00C0 for NFD, U+00A0 for the others. */
static unsigned first_unstable_byte(lr_form form)
{
    return form == LR_NFC ? 0xCC : form == LR_NFD ? 0xC3 : 0xC2;
}

bool lr_unicode_is_normal(const char *s, size_t size, lr_form form)
{
    const unsigned limit = first_unstable_byte(form);
    unsigned highest = 0;
    for (size_t i = 0; i < size; i++) {
        const unsigned byte = (unsigned char)s[i];
        highest = byte > highest ? byte : highest;
    }
    return highest < limit;
}

static bool unstable(uint32_t c, lr_form form)
{
    return form == LR_NFC ? lr_char_is(c, LR_CHAR_UNSTABLE) : c >= 0x80;
}

static int normalize_stretch(lr_string *out, const char *s, size_t size, lr_form form, lr_code_points *work)
{
    if (size == 0)
        return LR_OK;
    const utf8proc_option_t options = UTF8PROC_STABLE |
                                      (form == LR_NFC || form == LR_NFKC ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                                      (form == LR_NFKC || form == LR_NFKD ? UTF8PROC_COMPAT : 0);
    utf8proc_ssize_t n;
    for (;;) {
        n = utf8proc_decompose((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)size, work->data,
                               (utf8proc_ssize_t)work->cap, options);
        if (n < 0)
            return lr_fail(LR_EINTERNAL, "utf8proc: %s", utf8proc_errmsg(n));
        if ((size_t)n <= work->cap)
            break;
        const int status = lr_reserve((void **)&work->data, &work->cap, (size_t)n, sizeof work->data[0]);
        if (status != LR_OK)
            return status;
    }
    n = utf8proc_normalize_utf32(work->data, n, options);
    if (n < 0)
        return lr_fail(LR_EINTERNAL, "utf8proc: %s", utf8proc_errmsg(n));
    const int status = lr_string_reserve(out, 4 * (size_t)n);
    if (status != LR_OK)
        return status;
    char *p = out->data + out->size;
    for (utf8proc_ssize_t i = 0; i < n; i++)
        p = lr_utf8_put(p, (uint32_t)work->data[i]);
    out->size = (size_t)(p - out->data);
    return LR_OK;
}

/* Normalise [s, end), copying opaque characters. */
static int normalize_around_opaque(lr_string *out, const char *s, const char *end, lr_form form, lr_code_points *work)
{
    const char *from = s;
    while (s < end) {
        const char *at = s;
        if (!lr_char_is(lr_utf8_next(&s), LR_CHAR_OPAQUE))
            continue;
        int status = normalize_stretch(out, from, (size_t)(at - from), form, work);
        if (status == LR_OK)
            status = lr_string_append(out, at, (size_t)(s - at));
        if (status != LR_OK)
            return status;
        from = s;
    }
    return normalize_stretch(out, from, (size_t)(end - from), form, work);
}

int lr_unicode_normalize(lr_string *out, const char *s, size_t size, lr_form form, lr_code_points *work)
{
    if (size == 0) /* s may be NULL */
        return LR_OK;
    const char *p = s, *const end = s + size;
    const char *copied = s, *starter = s; /* all before `copied` is in out; `starter` is the last stable character */
    while (p < end) {
        const char *at = p;
        if (!unstable(lr_utf8_next(&p), form)) {
            starter = at;
            continue;
        }
        const char *stop = p;
        while (p < end && unstable(lr_utf8_next(&p), form))
            stop = p;
        int status = lr_string_append(out, copied, (size_t)(starter - copied));
        if (status == LR_OK)
            status = normalize_around_opaque(out, starter, stop, form, work);
        if (status != LR_OK)
            return status;
        copied = starter = p = stop;
    }
    return lr_string_append(out, copied, (size_t)(end - copied));
}
