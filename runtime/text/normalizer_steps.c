/* normalizer_steps.c: what each kind of normalizer does to the text: normal forms, lower case, stripping, replacing, BERT's
 * cleaning.
 *
 * A step reads the text from where it is, at first the caller's memory, and writes the result to one of two buffers in turn.
 * Steps that a look at the bytes shows to change nothing copy nothing. */
#define _GNU_SOURCE /* memmem */
#include "text/text.h"
#include <string.h>

/* ---- the passage ---------------------------------------------------------------------------------------------------- */
lr_string *lr_passage_output(lr_passage *p)
{
    p->work->text[p->next].size = 0;
    return &p->work->text[p->next];
}

int lr_passage_written(lr_passage *p, int status)
{
    if (status == LR_OK) {
        p->text = p->work->text[p->next].data;
        p->size = p->work->text[p->next].size;
        p->next ^= 1;
    }
    return status;
}

int lr_passage_check_growth(const lr_passage *p, size_t size)
{
    /* A chain of replacements can double the text at each link. */
    if (size / LR_TEXT_GROWTH <= p->original + LR_TEXT_GROWTH)
        return LR_OK;
    return lr_fail(LR_EUNSUPPORTED,
                   "%s: %zu bytes of text become %zu or more; more than %d times as many are not supported", p->place,
                   p->original, size, LR_TEXT_GROWTH);
}

static int normal_form(lr_passage *p, lr_form form)
{
    if (lr_unicode_is_normal(p->text, p->size, form))
        return LR_OK;
    return lr_passage_written(
        p, lr_unicode_normalize(lr_passage_output(p), p->text, p->size, form, &p->work->code_points));
}

static int copy_string(char **out, size_t *size, const lr_place *at, const lr_json_node *spec, const char *key)
{
    const char *text = "";
    const int status = lr_spec_string(at, spec, key, true, &text, size);
    if (status != LR_OK)
        return status;
    *out = lr_strndup(text, *size);
    return *out == NULL ? LR_ENOMEM : LR_OK;
}

/* ---- character by character ----------------------------------------------------------------------------------------- */
static char *put_lower(char *p, uint32_t c)
{
    if (c != 0x130)
        return lr_utf8_put(p, lr_char_lower(c));
    *p++ = 'i'; /* the one character whose lower case is two */
    return lr_utf8_put(p, 0x307);
}

/* Lower case may take more room: at worst 3 bytes for 2. */
static int lowercase(lr_string *out, const char *s, size_t size)
{
    const int status = lr_string_reserve(out, size + size / 2 + 4);
    if (status != LR_OK)
        return status;
    char *p = out->data + out->size;
    for (const char *end = s + size; s < end;) {
        const unsigned char c = (unsigned char)*s;
        if (c < 0x80) {
            *p++ = (char)(c >= 'A' && c <= 'Z' ? c + 32 : c);
            s++;
        } else {
            p = put_lower(p, lr_utf8_next(&s));
        }
    }
    out->size = (size_t)(p - out->data);
    return LR_OK;
}

/* Copies the text without the characters of a class. */
static int drop(lr_string *out, const char *s, size_t size, int class)
{
    const int status = lr_string_reserve(out, size);
    if (status != LR_OK)
        return status;
    char *p = out->data + out->size;
    for (const char *end = s + size; s < end;) {
        const char *at = s;
        if (!lr_char_is(lr_utf8_next(&s), class)) {
            memcpy(p, at, (size_t)(s - at));
            p += s - at;
        }
    }
    out->size = (size_t)(p - out->data);
    return LR_OK;
}

/* ---- normal forms, lower case, accents ------------------------------------------------------------------------------ */
static int run_nfc(const void *unused, lr_passage *p)
{
    (void)unused;
    return normal_form(p, LR_NFC);
}

static int run_nfd(const void *unused, lr_passage *p)
{
    (void)unused;
    return normal_form(p, LR_NFD);
}

static int run_nfkc(const void *unused, lr_passage *p)
{
    (void)unused;
    return normal_form(p, LR_NFKC);
}

static int run_nfkd(const void *unused, lr_passage *p)
{
    (void)unused;
    return normal_form(p, LR_NFKD);
}

static int run_lowercase(const void *unused, lr_passage *p)
{
    (void)unused;
    return lr_passage_written(p, lowercase(lr_passage_output(p), p->text, p->size));
}

static int run_strip_accents(const void *unused, lr_passage *p)
{
    (void)unused;
    return lr_passage_written(p, drop(lr_passage_output(p), p->text, p->size, LR_CHAR_MARK));
}

const lr_normalizer_kind lr_normalizer_nfc = {.kind = {.type = "NFC"}, .run = run_nfc};
const lr_normalizer_kind lr_normalizer_nfd = {.kind = {.type = "NFD"}, .run = run_nfd};
const lr_normalizer_kind lr_normalizer_nfkc = {.kind = {.type = "NFKC"}, .run = run_nfkc};
const lr_normalizer_kind lr_normalizer_nfkd = {.kind = {.type = "NFKD"}, .run = run_nfkd};
const lr_normalizer_kind lr_normalizer_lowercase = {.kind = {.type = "Lowercase"}, .run = run_lowercase};
const lr_normalizer_kind lr_normalizer_strip_accents = {.kind = {.type = "StripAccents"}, .run = run_strip_accents};

/* ---- BERT ----------------------------------------------------------------------------------------------------------- */
typedef struct bert_settings {
    bool clean_text, chinese, accents, lowercase;
} bert_settings;

static int load_bert(void *settings, const lr_place *at, const lr_json_node *spec)
{
    bert_settings *s = settings;
    int status = lr_spec_bool(at, spec, "clean_text", true, &s->clean_text);
    if (status == LR_OK)
        status = lr_spec_bool(at, spec, "handle_chinese_chars", true, &s->chinese);
    if (status == LR_OK)
        status = lr_spec_bool(at, spec, "lowercase", true, &s->lowercase);
    s->accents = s->lowercase; /* unless the file says otherwise */
    return status == LR_OK ? lr_spec_bool(at, spec, "strip_accents", false, &s->accents) : status;
}

static bool is_chinese(uint32_t c)
{
    return c >= 0x3400 &&
           ((c >= 0x4E00 && c <= 0x9FFF) || (c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) ||
            (c >= 0x2A700 && c <= 0x2B73F) || (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) ||
            (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F));
}

static int bert_ascii(const bert_settings *step, lr_string *out, const char *s, size_t size)
{
    const int status = lr_string_reserve(out, size);
    if (status != LR_OK)
        return status;
    char *p = out->data + out->size;
    const char from = step->lowercase ? 'A' : 1, to = step->lowercase ? 'Z' : 0; /* empty range: nothing to lower */
    for (size_t i = 0; i < size; i++) {
        const char c = s[i];
        if (c >= ' ' && c != 0x7F)
            *p++ = (char)(c >= from && c <= to ? c + 32 : c);
        else if (!step->clean_text)
            *p++ = c;
        else if (c == '\t' || c == '\n' || c == '\r')
            *p++ = ' ';
    }
    out->size = (size_t)(p - out->data);
    return LR_OK;
}

/* Cleaning and spaces around Chinese characters, in one pass. */
static int bert_clean(const bert_settings *step, lr_string *out, const char *s, size_t size)
{
    const int status = lr_string_reserve(out, size + 2 * (size / 3) + 2); /* three bytes become five at most */
    if (status != LR_OK)
        return status;
    char *p = out->data + out->size;
    for (const char *end = s + size; s < end;) {
        const char *at = s;
        const uint32_t c = lr_utf8_next(&s);
        const size_t n = (size_t)(s - at);
        if (step->clean_text && lr_char_is(c, LR_CHAR_CONTROL))
            continue;
        if (step->clean_text && lr_char_is(c, LR_CHAR_SPACE)) {
            *p++ = ' ';
        } else if (step->chinese && is_chinese(c)) {
            *p++ = ' ';
            memcpy(p, at, n);
            p += n;
            *p++ = ' ';
        } else {
            memcpy(p, at, n);
            p += n;
        }
    }
    out->size = (size_t)(p - out->data);
    return LR_OK;
}

static int run_bert(const void *settings, lr_passage *p)
{
    const bert_settings *s = settings;
    if (lr_utf8_ascii(p->text, p->size))
        return lr_passage_written(p, bert_ascii(s, lr_passage_output(p), p->text, p->size));
    int status = LR_OK;
    if (s->clean_text || s->chinese)
        status = lr_passage_written(p, bert_clean(s, lr_passage_output(p), p->text, p->size));
    if (status == LR_OK && s->accents)
        status = normal_form(p, LR_NFD);
    if (status == LR_OK && s->accents)
        status = lr_passage_written(p, drop(lr_passage_output(p), p->text, p->size, LR_CHAR_ACCENT));
    if (status == LR_OK && s->lowercase)
        status = lr_passage_written(p, lowercase(lr_passage_output(p), p->text, p->size));
    return status;
}

const lr_normalizer_kind lr_normalizer_bert = {
    .kind = {.type = "BertNormalizer", .keys = {"clean_text", "handle_chinese_chars", "lowercase"}},
    .size = sizeof(bert_settings),
    .load = load_bert,
    .run = run_bert};
const lr_normalizer_kind lr_normalizer_bert_short = {
    .kind = {.type = "Bert"}, .size = sizeof(bert_settings), .load = load_bert, .run = run_bert};

/* ---- Strip ---------------------------------------------------------------------------------------------------------- */
typedef struct strip_settings {
    bool left, right;
} strip_settings;

static int load_strip(void *settings, const lr_place *at, const lr_json_node *spec)
{
    strip_settings *s = settings;
    const int status = lr_spec_bool(at, spec, "strip_left", true, &s->left);
    return status == LR_OK ? lr_spec_bool(at, spec, "strip_right", true, &s->right) : status;
}

static int run_strip(const void *settings, lr_passage *p)
{
    const strip_settings *s = settings;
    const char *begin = p->text, *end = p->text + p->size;
    while (s->left && begin < end) {
        const char *next = begin;
        if (!lr_char_is(lr_utf8_next(&next), LR_CHAR_SPACE))
            break;
        begin = next;
    }
    while (s->right && begin < end) {
        const char *previous = lr_utf8_previous(begin, end), *next = previous;
        if (!lr_char_is(lr_utf8_next(&next), LR_CHAR_SPACE))
            break;
        end = previous;
    }
    p->text = begin;
    p->size = (size_t)(end - begin);
    return LR_OK;
}

const lr_normalizer_kind lr_normalizer_strip = {.kind = {.type = "Strip", .keys = {"strip_left", "strip_right"}},
                                                .size = sizeof(strip_settings),
                                                .load = load_strip,
                                                .run = run_strip};

/* ---- Replace, Prepend ----------------------------------------------------------------------------------------------- */
typedef struct replace_settings {
    char *text; /* what is put in */
    size_t size;
    char *pattern; /* the string to replace, unless is_regex */
    size_t pattern_size;
    bool is_regex;
    lr_regex regex;
} replace_settings;

static int load_replace(void *settings, const lr_place *at, const lr_json_node *spec)
{
    replace_settings *s = settings;
    const char *pattern;
    int status = copy_string(&s->text, &s->size, at, spec, "content");
    if (status == LR_OK)
        status = lr_spec_pattern(at, spec, &s->is_regex, &pattern, &s->pattern_size);
    if (status != LR_OK)
        return status;
    if (s->is_regex)
        return lr_regex_compile(&s->regex, at, pattern, s->pattern_size);
    s->pattern = lr_strndup(pattern, s->pattern_size);
    return s->pattern == NULL ? LR_ENOMEM : LR_OK;
}

static void free_replace(void *settings)
{
    replace_settings *s = settings;
    lr_free(s->text);
    lr_free(s->pattern);
    lr_regex_free(&s->regex);
}

static int replace(const replace_settings *settings, lr_passage *p, lr_string *out)
{
    const char *s = p->text;
    const size_t size = p->size;
    size_t done = 0, begin, end;
    lr_regex_search search;
    if (settings->is_regex)
        lr_regex_start(&search, &settings->regex, s, size);
    for (;;) {
        if (settings->is_regex) {
            const int found = lr_regex_next(&search, &p->work->matcher, &begin, &end);
            if (found < 0)
                return found;
            if (found == 0)
                break;
        } else {
            const char *at = memmem(s + done, size - done, settings->pattern, settings->pattern_size);
            if (at == NULL)
                break;
            begin = (size_t)(at - s);
            end = begin + settings->pattern_size;
        }
        int status = lr_string_append(out, s + done, begin - done);
        if (status == LR_OK)
            status = lr_string_append(out, settings->text, settings->size);
        if (status == LR_OK)
            status = lr_passage_check_growth(p, out->size);
        if (status != LR_OK)
            return status;
        done = end;
    }
    return lr_string_append(out, s + done, size - done);
}

static int run_replace(const void *settings, lr_passage *p)
{
    return lr_passage_written(p, replace(settings, p, lr_passage_output(p)));
}

const lr_normalizer_kind lr_normalizer_replace = {.kind = {.type = "Replace", .keys = {"pattern", "content"}},
                                                  .size = sizeof(replace_settings),
                                                  .load = load_replace,
                                                  .free = free_replace,
                                                  .run = run_replace};

typedef struct prepend_settings {
    char *text;
    size_t size;
} prepend_settings;

static int load_prepend(void *settings, const lr_place *at, const lr_json_node *spec)
{
    prepend_settings *s = settings;
    return copy_string(&s->text, &s->size, at, spec, "prepend");
}

static void free_prepend(void *settings)
{
    lr_free(((prepend_settings *)settings)->text);
}

static int run_prepend(const void *settings, lr_passage *p)
{
    const prepend_settings *s = settings;
    lr_string *out = lr_passage_output(p);
    const int status = lr_string_append(out, s->text, s->size);
    return status == LR_OK ? lr_passage_written(p, lr_string_append(out, p->text, p->size)) : status;
}

const lr_normalizer_kind lr_normalizer_prepend = {.kind = {.type = "Prepend", .keys = {"prepend"}},
                                                  .size = sizeof(prepend_settings),
                                                  .load = load_prepend,
                                                  .free = free_prepend,
                                                  .run = run_prepend};
