/* pattern.c: rewrites a regular expression of the Oniguruma library (Ruby's syntax), which Hugging Face tokenizers
 * uses, so that PCRE2 matches the same text.
 *
 * The two agree on most of the syntax. They differ in what \s, \w, \d, \h and \v mean, in the version of Unicode that \p{..}
 * follows, in (?m), and in rarer constructs. So classes are spelt out: \s becomes the ranges of White_Space, \p{L} becomes PCRE2's
 * \p{L} and the letters assigned since. What PCRE2 has no equivalent for, or no tokenizer is known to use, is refused by name.
 *
 * The same rewriting for characters below 0x80 alone gives a second pattern, which PCRE2 can run over bytes. */
#include "text/text.h"
#include <stdio.h>
#include <string.h>
#include <utf8proc.h>

typedef enum set_kind { SET_NONE, SET_SPACE, SET_WORD, SET_DIGIT, SET_HEX, SET_HAN, SET_CATEGORY } set_kind;
typedef struct element { /* what one escape or character stands for */
    set_kind set;        /* SET_NONE: the character c */
    bool negated;
    char category[3];
    uint32_t c;
} element;
typedef struct translation {
    lr_string *out;
    const lr_place *at;
    const char *start, *p, *end;
    bool ascii;
} translation;

static const char NEVER[] = "(?:(?!))", ANY[] = "(?s:.)";

static int refuse(const translation *t, const char *what)
{
    return lr_spec_unsupported(t->at, "the pattern \"%.200s\" has %s, which lorarun does not read", t->start, what);
}

static int put(translation *t, const char *s)
{
    return lr_string_append(t->out, s, strlen(s));
}

/* A range of characters inside brackets; for ASCII, the part below 0x80. */
static int put_range(translation *t, uint32_t first, uint32_t last)
{
    char text[32];
    if (t->ascii && first > 0x7F)
        return LR_OK;
    if (t->ascii && last > 0x7F)
        last = 0x7F;
    snprintf(text, sizeof text, first == last ? "\\x{%X}" : "\\x{%X}-\\x{%X}", first, last);
    return put(t, text);
}

static int put_ranges(translation *t, const lr_range *ranges, size_t count)
{
    int status = LR_OK;
    for (size_t i = 0; i < count && status == LR_OK; i++)
        status = put_range(t, ranges[i].first, ranges[i].last);
    return status;
}

static bool category_has(const char *group, const char *category)
{
    return group[0] == category[0] && (group[1] == 0 || group[1] == category[1]);
}

static int put_category(translation *t, const char *category)
{
    int status = LR_OK;
    if (t->ascii) {
        for (uint32_t c = 0; c < 0x80 && status == LR_OK; c++) {
            uint32_t last = c;
            if (!category_has(category, utf8proc_category_string((utf8proc_int32_t)c)))
                continue;
            while (last < 0x7F && category_has(category, utf8proc_category_string((utf8proc_int32_t)last + 1)))
                last++;
            status = put_range(t, c, last);
            c = last;
        }
        return status;
    }
    char text[8];
    snprintf(text, sizeof text, "\\p{%s}", category);
    status = put(t, text);
    for (size_t i = 0; i < lr_unicode_added_count && status == LR_OK; i++)
        if (category_has(category, lr_unicode_added[i].category))
            status = put_range(t, lr_unicode_added[i].first, lr_unicode_added[i].last);
    return status;
}

/* The members of a set, negated or not, for use inside brackets. */
static int put_members(translation *t, const element *e)
{
    static const char *const word_categories[] = {"L", "M", "Nd", "Nl", "Pc"};
    int status = LR_OK;
    switch (e->set) {
    case SET_SPACE:
        return put_ranges(t, lr_unicode_space, lr_unicode_space_count);
    case SET_HAN:
        return put_ranges(t, lr_unicode_han, lr_unicode_han_count);
    case SET_DIGIT:
        return put_category(t, "Nd");
    case SET_HEX:
        return put(t, "0-9A-Fa-f");
    case SET_WORD:
        for (size_t i = 0; i < LR_COUNT_OF(word_categories) && status == LR_OK; i++)
            status = put_category(t, word_categories[i]);
        return status == LR_OK ? put_ranges(t, lr_unicode_word_extra, lr_unicode_word_extra_count) : status;
    case SET_CATEGORY:
        return put_category(t, e->category);
    case SET_NONE:
        break;
    }
    return put_range(t, e->c, e->c);
}

/* [members] or [^members]; there may be no members. */
static int put_brackets(translation *t, bool negated, const char *members, size_t size)
{
    if (size == 0)
        return put(t, negated ? ANY : NEVER);
    int status = put(t, negated ? "[^" : "[");
    if (status == LR_OK)
        status = lr_string_append(t->out, members, size);
    return status == LR_OK ? put(t, "]") : status;
}

/* U+1171E moved from Mn to Mc in Unicode 16, the only such move since 14. An older PCRE2 has it in Mn: it must not count. */
static bool counts_one_too_many(const translation *t, const element *e)
{
    return !t->ascii && e->set == SET_CATEGORY && strcmp(e->category, "Mn") == 0;
}

static int put_element(translation *t, const element *e)
{
    lr_string members = {0};
    translation inner = *t;
    inner.out = &members;
    const bool correct = counts_one_too_many(t, e);
    int status = put_members(&inner, e);
    if (status == LR_OK && correct)
        status = put(t, e->negated ? "(?:\\x{1171E}|" : "(?:(?!\\x{1171E})");
    if (status == LR_OK)
        status = put_brackets(t, e->negated, members.data, members.size);
    if (status == LR_OK && correct)
        status = put(t, ")");
    lr_string_free(&members);
    return status;
}

/* \b and \B. PCRE2 has other word characters, so look at both sides. */
static int put_boundary(translation *t, bool negated)
{
    const element word = {SET_WORD, false, "", 0};
    const char *const parts[] = {"(?:(?<=", negated ? ")(?=" : ")(?!", ")|(?<!", negated ? ")(?!" : ")(?=", "))"};
    int status = LR_OK;
    for (size_t i = 0; i < LR_COUNT_OF(parts) && status == LR_OK; i++) {
        status = put(t, parts[i]);
        if (status == LR_OK && i + 1 < LR_COUNT_OF(parts))
            status = put_element(t, &word);
    }
    return status;
}

/* ---- escapes -------------------------------------------------------------------------------------------------------- */
static int read_hex(translation *t, int least, int most, uint32_t *value)
{
    int digits = 0;
    *value = 0;
    for (; t->p < t->end && digits < most; digits++, t->p++) {
        const int digit = lr_hex_digit(*t->p);
        if (digit < 0)
            break;
        *value = *value * 16 + (uint32_t)digit;
    }
    return digits >= least ? LR_OK : refuse(t, "a bad \\x or \\u");
}

/* \p{..} and \P{..}: general categories whose members we know exactly, and Han. */
static int read_property(translation *t, bool negated, element *e)
{
    static const char known[] =
        " L Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp Cc Han ";
    char name[8] = " ", what[48];
    const char *open = t->p;
    const char *close = open < t->end ? memchr(open, '}', (size_t)(t->end - open)) : NULL;
    if (open == t->end || *open != '{' || close == NULL)
        return refuse(t, "\\p without {name}");
    const bool inverted = open[1] == '^';
    const char *text = open + 1 + inverted;
    const size_t size = (size_t)(close - text);
    snprintf(what, sizeof what, "the property \\p{%.*s}", (int)(size < 24 ? size : 24), text);
    if (size < 1 || size > 3 || memchr(text, ' ', size) != NULL)
        return refuse(t, what);
    memcpy(name + 1, text, size);
    name[size + 1] = ' ';
    if (strstr(known, name) == NULL)
        return refuse(t, what);
    *e = (element){size == 3 ? SET_HAN : SET_CATEGORY, negated != inverted, "", 0};
    if (size < 3)
        memcpy(e->category, text, size);
    t->p = close + 1;
    return LR_OK;
}

/* The escape after a backslash, at t->p; not \b \B \A \z \Z, which stand for no character. */
static int read_escape(translation *t, element *e)
{
    static const char from[] = "tnrfvae", to[] = "\t\n\r\f\v\a\x1B";
    static const char sets[] = "swdh";
    static const set_kind kinds[] = {SET_SPACE, SET_WORD, SET_DIGIT, SET_HEX};
    if (t->p == t->end)
        return refuse(t, "a backslash at its end");
    const char c = *t->p;
    *e = (element){SET_NONE, false, "", 0};
    if ((unsigned char)c >= 0x80) {
        e->c = lr_utf8_next(&t->p);
        return LR_OK;
    }
    t->p++;
    if (c == 'p' || c == 'P')
        return read_property(t, c == 'P', e);
    if (c == 'u')
        return read_hex(t, 4, 4, &e->c);
    if (c == 'x') {
        const bool braces = t->p < t->end && *t->p == '{';
        t->p += braces;
        const int status = read_hex(t, 1, braces ? 6 : 2, &e->c);
        if (status != LR_OK)
            return status;
        if (braces && (t->p == t->end || *t->p++ != '}'))
            return refuse(t, "\\x{ without }");
        if ((!braces && e->c > 0x7F) || e->c > 0x10FFFF || (e->c >= 0xD800 && e->c < 0xE000))
            return refuse(t, "a \\x that is no character");
        return LR_OK;
    }
    const char *at = c != 0 ? strchr(from, c) : NULL;
    if (at != NULL) {
        e->c = (uint32_t)to[at - from];
        return LR_OK;
    }
    const char small = c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
    at = small != 0 ? strchr(sets, small) : NULL;
    if (at != NULL) {
        e->set = kinds[at - sets];
        e->negated = small != c;
        return LR_OK;
    }
    if ((small >= 'a' && small <= 'z') || (c >= '0' && c <= '9')) {
        const char what[] = {'\\', c, 0};
        return refuse(t, what);
    }
    e->c = (unsigned char)c;
    return LR_OK;
}

/* ---- [classes] ------------------------------------------------------------------------------------------------------ */
/* One character or escape inside brackets. */
static int read_class_element(translation *t, element *e)
{
    const char c = *t->p;
    if (c == '[')
        return refuse(t, "brackets within brackets");
    if (c == '&' && t->p + 1 < t->end && t->p[1] == '&')
        return refuse(t, "&& within brackets");
    if (c != '\\') {
        *e = (element){SET_NONE, false, "", lr_utf8_next(&t->p)};
        return LR_OK;
    }
    t->p++;
    if (t->p < t->end && *t->p == 'b') {
        t->p++;
        *e = (element){SET_NONE, false, "", '\b'};
        return LR_OK;
    }
    return read_escape(t, e);
}

/* Reads up to the closing bracket. `members` is for use inside brackets. What brackets cannot hold (\S, \P{L} ...) goes to
 * `others`, as alternatives to them: "|[^..]|[^..]". */
static int read_class(translation *t, lr_string *members, lr_string *others)
{
    translation in = *t, out = *t;
    in.out = members;
    out.out = others;
    for (bool first = true;; first = false) {
        element e, last;
        if (t->p == t->end)
            return refuse(t, "a bracket that is not closed");
        if (*t->p == ']')
            return first ? refuse(t, "an empty pair of brackets") : (t->p++, LR_OK);
        int status = read_class_element(t, &e);
        if (status == LR_OK && e.set == SET_NONE && t->end - t->p >= 2 && t->p[0] == '-' && t->p[1] != ']') {
            t->p++;
            status = read_class_element(t, &last);
            if (status == LR_OK && (last.set != SET_NONE || last.c < e.c))
                return refuse(t, "a bad range within brackets");
            if (status == LR_OK)
                status = put_range(&in, e.c, last.c);
        } else if (status == LR_OK && (e.negated || counts_one_too_many(t, &e))) {
            status = put(&out, "|");
            if (status == LR_OK)
                status = put_element(&out, &e);
        } else if (status == LR_OK) {
            status = put_members(&in, &e);
        }
        if (status != LR_OK)
            return status;
    }
}

static int translate_class(translation *t)
{
    lr_string members = {0}, others = {0};
    const bool negated = t->p < t->end && *t->p == '^';
    t->p += negated;
    int status = read_class(t, &members, &others);
    if (status == LR_OK && others.size == 0) {
        status = put_brackets(t, negated, members.data, members.size);
    } else if (status == LR_OK) {
        status = put(t, negated ? "(?:(?!" : "(?:");
        if (status == LR_OK)
            status = put_brackets(t, false, members.data, members.size);
        if (status == LR_OK)
            status = lr_string_append(t->out, others.data, others.size);
        if (status == LR_OK)
            status = put(t, negated ? ")(?s:.))" : ")");
    }
    lr_string_free(&members);
    lr_string_free(&others);
    return status;
}

/* ---- groups, counts, the whole pattern ------------------------------------------------------------------------------ */
/* After "(": the kind of group. Ruby's (?m) is PCRE2's (?s). */
static int translate_group(translation *t)
{
    static const char *const plain[] = {"?:", "?=", "?!", "?>", "?<=", "?<!"};
    int status = put(t, "(");
    if (status != LR_OK || t->p == t->end || *t->p != '?')
        return status;
    for (size_t i = 0; i < LR_COUNT_OF(plain); i++) {
        const size_t size = strlen(plain[i]);
        if ((size_t)(t->end - t->p) >= size && memcmp(t->p, plain[i], size) == 0) {
            t->p += size;
            return put(t, plain[i]);
        }
    }
    const bool at_start = t->p == t->start + 1;
    for (status = put(t, "?"), t->p++; status == LR_OK && t->p < t->end; t->p++) {
        const char c = *t->p;
        if (c == 'i' || c == '-')
            status = lr_string_append(t->out, &c, 1);
        else if (c == 'm')
            status = put(t, "s");
        else if (c == ':' || (c == ')' && at_start))
            return t->p++, lr_string_append(t->out, &c, 1);
        else
            break;
    }
    return status != LR_OK ? status : refuse(t, "a kind of group (?..)");
}

/* At "{": {n}, {n,}, {n,m}, {,m}, or a plain brace. */
static int translate_brace(translation *t)
{
    char text[32];
    unsigned low = 0, high = 0;
    int size = 0;
    const char *q = t->p + 1;
    const char *close = memchr(q, '}', (size_t)(t->end - q));
    size_t inside = close == NULL ? 0 : (size_t)(close - q);
    if (inside == 0 || inside >= sizeof text || strspn(q, "0123456789,") < inside || (inside == 1 && *q == ','))
        return t->p++, put(t, "\\{");
    memcpy(text, q, inside);
    text[inside] = 0;
    char *comma = strchr(text, ',');
    if (comma != NULL && strchr(comma + 1, ',') != NULL)
        return t->p++, put(t, "\\{");
    const bool open_ended = comma != NULL && comma[1] == 0;
    if (comma != NULL && comma != text)
        size = sscanf(text, "%5u,%5u", &low, &high);
    else
        size = sscanf(comma == text ? text + 1 : text, "%5u", &high);
    if (comma == NULL)
        low = high;
    if (size < 1 || (!open_ended && low > high) || low > 1000 || high > 1000)
        return refuse(t, "a count in braces that is reversed or above 1000");
    t->p = close + 1;
    if (t->p < t->end && (*t->p == '+' || (*t->p == '?' && comma == NULL)))
        return refuse(t, "a count in braces followed by + or ?");
    snprintf(text, sizeof text, open_ended ? "{%u,}" : "{%u,%u}", low, high);
    return put(t, text);
}

static int translate_escape(translation *t)
{
    const char c = t->p < t->end ? *t->p : 0;
    if (c == 'b' || c == 'B')
        return t->p++, put_boundary(t, c == 'B');
    if (c == 'A' || c == 'z' || c == 'Z') {
        const char text[] = {'\\', c, 0};
        return t->p++, put(t, text);
    }
    element e;
    const int status = read_escape(t, &e);
    return status == LR_OK ? put_element(t, &e) : status;
}

int lr_pattern_translate(lr_string *out, const lr_place *at, const char *pattern, size_t size, bool ascii)
{
    translation t = {out, at, pattern, pattern, pattern + size, ascii};
    int status = LR_OK;
    while (t.p < t.end && status == LR_OK) {
        const char c = *t.p;
        if (c == '{') {
            status = translate_brace(&t);
        } else if (c == '[' || c == '(' || c == '\\') {
            t.p++;
            status = c == '[' ? translate_class(&t) : c == '(' ? translate_group(&t) : translate_escape(&t);
        } else if (c != 0 && strchr(")|^$.*+?", c) != NULL) {
            t.p++;
            status = lr_string_append(out, &c, 1);
        } else {
            const element e = {SET_NONE, false, "", lr_utf8_next(&t.p)};
            status = put_element(&t, &e);
        }
    }
    return status;
}
