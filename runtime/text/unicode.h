/* unicode.h: UTF-8, character classes and normal forms, as Hugging Face tokenizers sees them.
 *
 * Invariants
 *   - Every function but lr_utf8_check takes valid UTF-8 and makes valid UTF-8.
 *   - Classes come from unicode_tables.c, never from PCRE2, utf8proc or libc, whose versions differ: the same text gives the
 *     same ids on every machine. */
#ifndef LR_TEXT_UNICODE_H
#define LR_TEXT_UNICODE_H

#include "core/core.h"
#include "core/utf8.h"

typedef struct lr_range {
    uint32_t first, last;
} lr_range;
typedef struct lr_lower_range {
    uint32_t first, last;
    int32_t delta;
} lr_lower_range;
typedef struct lr_category_range {
    uint32_t first, last;
    char category[3];
} lr_category_range;

/* ---- unicode_tables.c: sorted ranges -------------------------------------------------------------------------------- */
extern const lr_range lr_unicode_space[], lr_unicode_numeric[], lr_unicode_punctuation[], lr_unicode_word[],
    lr_unicode_control[], lr_unicode_accent[], lr_unicode_mark[], lr_unicode_unstable[], lr_unicode_opaque[],
    lr_unicode_han[], lr_unicode_word_extra[];
extern const size_t lr_unicode_space_count, lr_unicode_numeric_count, lr_unicode_punctuation_count,
    lr_unicode_word_count, lr_unicode_control_count, lr_unicode_accent_count, lr_unicode_mark_count,
    lr_unicode_unstable_count, lr_unicode_opaque_count, lr_unicode_han_count, lr_unicode_word_extra_count;
extern const lr_lower_range lr_unicode_lower[];
extern const size_t lr_unicode_lower_count;
extern const lr_category_range lr_unicode_added[];
extern const size_t lr_unicode_added_count;

/* ---- classes -------------------------------------------------------------------------------------------------------- */
enum {
    LR_CHAR_SPACE = 1,
    LR_CHAR_NUMERIC = 2,
    LR_CHAR_PUNCTUATION = 4,
    LR_CHAR_WORD = 8,
    LR_CHAR_CONTROL = 16,   /* removed by clean_text */
    LR_CHAR_ACCENT = 32,    /* removed by BertNormalizer's strip_accents */
    LR_CHAR_MARK = 64,      /* removed by StripAccents */
    LR_CHAR_UNSTABLE = 128, /* NFC may change it, move it or join it to the one before */
    LR_CHAR_OPAQUE = 256    /* no normal form touches it */
};
extern uint16_t lr_char_classes[0x110000]; /* filled by lr_unicode_init */
void lr_unicode_init(void);                /* any thread, any number of times */

static inline bool lr_char_is(uint32_t c, int classes)
{
    return (lr_char_classes[c] & classes) != 0;
}
uint32_t lr_char_lower(uint32_t c); /* simple lower case; the caller takes care of U+0130 */

/* ---- UTF-8 ---------------------------------------------------------------------------------------------------------- */
/* The offset of the first byte that is not valid UTF-8, or size. *ascii: all bytes are below 0x80. */
size_t lr_utf8_check(const char *s, size_t size, bool *ascii);
bool lr_utf8_ascii(const char *s, size_t size);

/* The code point at *p; moves *p to the next one. */
static inline uint32_t lr_utf8_next(const char **p)
{
    const unsigned char *s = (const unsigned char *)*p;
    if (s[0] < 0x80) {
        *p += 1;
        return s[0];
    }
    if (s[0] < 0xE0) {
        *p += 2;
        return (uint32_t)(s[0] & 0x1F) << 6 | (s[1] & 0x3Fu);
    }
    if (s[0] < 0xF0) {
        *p += 3;
        return (uint32_t)(s[0] & 0x0F) << 12 | (uint32_t)(s[1] & 0x3F) << 6 | (s[2] & 0x3Fu);
    }
    *p += 4;
    return (uint32_t)(s[0] & 0x07) << 18 | (uint32_t)(s[1] & 0x3F) << 12 | (uint32_t)(s[2] & 0x3F) << 6 |
           (s[3] & 0x3Fu);
}

/* The start of the character that ends just before `end`; `end` is after `begin`. */
static inline const char *lr_utf8_previous(const char *begin, const char *end)
{
    do
        end--;
    while (end > begin && ((unsigned char)*end & 0xC0) == 0x80);
    return end;
}

/* ---- growing strings ------------------------------------------------------------------------------------------------ */
typedef struct lr_string {
    char *data;
    size_t size, cap;
} lr_string;
int lr_string_reserve(lr_string *s, size_t more);
int lr_string_append(lr_string *s, const char *data, size_t size);
int lr_string_append_char(lr_string *s, uint32_t c);
void lr_string_free(lr_string *s);

/* ---- normal forms --------------------------------------------------------------------------------------------------- */
typedef enum lr_form { LR_NFC, LR_NFD, LR_NFKC, LR_NFKD } lr_form;
typedef struct lr_code_points { /* working memory of lr_unicode_normalize */
    int32_t *data;
    size_t cap;
} lr_code_points;
/* true: `form` leaves the text as it is, as its bytes show. false: it may or may not change it. */
bool lr_unicode_is_normal(const char *s, size_t size, lr_form form);
/* Append the normal form of s to out. */
int lr_unicode_normalize(lr_string *out, const char *s, size_t size, lr_form form, lr_code_points *work);

#endif
