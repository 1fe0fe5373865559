/* normalizer.c: what is done to the text before it is split: normal forms, lower case, stripping, replacing, BERT's
 * cleaning.
 *
 * Steps read one of the encoder's two buffers (at first: the caller's text) and write the other. A step that would
 * change nothing is passed over where one look at the bytes shows it. */
#define _GNU_SOURCE /* memmem */
#include "text/text.h"
#include <string.h>

typedef enum step_kind {
    STEP_NFC = LR_NFC,
    STEP_NFD = LR_NFD,
    STEP_NFKC = LR_NFKC,
    STEP_NFKD = LR_NFKD,
    STEP_LOWERCASE,
    STEP_STRIP_ACCENTS,
    STEP_BERT,
    STEP_STRIP,
    STEP_REPLACE,
    STEP_PREPEND
} step_kind;

struct lr_normalizer_step {
    step_kind kind;
    bool clean_text, chinese, accents, lowercase; /* BERT */
    bool left, right;                             /* Strip */
    char *text;                                   /* Prepend; Replace: what is put in */
    size_t size;
    char *pattern; /* Replace with a string */
    size_t pattern_size;
    bool is_regex; /* Replace with a pattern */
    lr_regex regex;
};

/* ---- loading -------------------------------------------------------------------------------------------------------- */
static int load_bert(lr_normalizer_step *s, const lr_place *at, const lr_json_node *spec)
{
    int status = lr_spec_bool(at, spec, "clean_text", true, &s->clean_text);
    if (status == LR_OK)
        status = lr_spec_bool(at, spec, "handle_chinese_chars", true, &s->chinese);
    if (status == LR_OK)
        status = lr_spec_bool(at, spec, "lowercase", true, &s->lowercase);
    s->accents = s->lowercase; /* unless told otherwise */
    return status == LR_OK ? lr_spec_bool(at, spec, "strip_accents", false, &s->accents) : status;
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

static int load_replace(lr_normalizer_step *s, const lr_place *at, const lr_json_node *spec)
{
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

static int load_step(lr_normalizer *n, const lr_place *at, const lr_json_node *spec, const char *type)
{
    static const struct {
        const char *type;
        step_kind kind;
    } kinds[] = {{"NFC", STEP_NFC},
                 {"NFD", STEP_NFD},
                 {"NFKC", STEP_NFKC},
                 {"NFKD", STEP_NFKD},
                 {"Lowercase", STEP_LOWERCASE},
                 {"StripAccents", STEP_STRIP_ACCENTS},
                 {"BertNormalizer", STEP_BERT},
                 {"Bert", STEP_BERT},
                 {"Strip", STEP_STRIP},
                 {"Replace", STEP_REPLACE},
                 {"Prepend", STEP_PREPEND}};
    size_t k = 0;
    while (k < LR_COUNT_OF(kinds) && strcmp(kinds[k].type, type) != 0)
        k++;
    if (k == LR_COUNT_OF(kinds))
        return lr_spec_unsupported(at, "the normalizer \"%.60s\" is not supported", type);
    if (n->count == LR_TEXT_STEPS)
        return lr_spec_unsupported(at, "more than %d normalizers are not supported", LR_TEXT_STEPS);
    int status = lr_reserve((void **)&n->steps, &n->cap, n->count + 1, sizeof n->steps[0]);
    if (status != LR_OK)
        return status;
    lr_normalizer_step *s = &n->steps[n->count++];
    *s = (lr_normalizer_step){.kind = kinds[k].kind};
    switch (s->kind) {
    case STEP_BERT:
        return load_bert(s, at, spec);
    case STEP_STRIP:
        status = lr_spec_bool(at, spec, "strip_left", true, &s->left);
        return status == LR_OK ? lr_spec_bool(at, spec, "strip_right", true, &s->right) : status;
    case STEP_REPLACE:
        return load_replace(s, at, spec);
    case STEP_PREPEND:
        return copy_string(&s->text, &s->size, at, spec, "prepend");
    default:
        return LR_OK;
    }
}

int lr_normalizer_load(lr_normalizer *n, const lr_place *at, const lr_json_node *spec)
{
    static const lr_spec_kind kinds[] = {{"BertNormalizer", {"clean_text", "handle_chinese_chars", "lowercase"}},
                                         {"Strip", {"strip_left", "strip_right"}},
                                         {"Sequence", {"normalizers"}},
                                         {"Replace", {"pattern", "content"}},
                                         {"Prepend", {"prepend"}}};
    const char *type = NULL;
    int status = lr_spec_depth(at);
    if (status == LR_OK)
        status = lr_spec_type_or_keys(at, spec, kinds, LR_COUNT_OF(kinds), &type);
    if (status != LR_OK || strcmp(type, "Sequence") != 0)
        return status != LR_OK ? status : load_step(n, at, spec, type);
    const lr_json_node *parts = NULL;
    status = lr_spec_array(at, spec, "normalizers", &parts);
    const lr_place here = {at, "normalizers", 0};
    for (size_t i = 0; status == LR_OK && i < lr_spec_length(parts); i++)
        status = lr_normalizer_load(n, &(lr_place){&here, NULL, i}, lr_spec_item(parts, i));
    return status;
}

void lr_normalizer_free(lr_normalizer *n)
{
    for (size_t i = 0; i < n->count; i++) {
        lr_free(n->steps[i].text);
        lr_free(n->steps[i].pattern);
        lr_regex_free(&n->steps[i].regex);
    }
    lr_free(n->steps);
    *n = (lr_normalizer){0};
}

/* ---- character by character ----------------------------------------------------------------------------------------- */
static char *put_lower(char *p, uint32_t c)
{
    if (c != 0x130)
        return lr_utf8_put(p, lr_char_lower(c));
    *p++ = 'i'; /* the one character whose lower case is two */
    return lr_utf8_put(p, 0x307);
}

/* Lower case may take more room: 3 bytes for 2 at worst. */
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

/* Without the characters of a class. */
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

/* ---- BERT ----------------------------------------------------------------------------------------------------------- */
static bool is_chinese(uint32_t c)
{
    return c >= 0x3400 &&
           ((c >= 0x4E00 && c <= 0x9FFF) || (c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) ||
            (c >= 0x2A700 && c <= 0x2B73F) || (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) ||
            (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F));
}

static int bert_ascii(const lr_normalizer_step *step, lr_string *out, const char *s, size_t size)
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
static int bert_clean(const lr_normalizer_step *step, lr_string *out, const char *s, size_t size)
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

/* ---- the rest ------------------------------------------------------------------------------------------------------- */
/* A chain of replacements can double the text at each link. */
static int check_growth(const lr_encoder *e, size_t now, size_t before)
{
    if (now / LR_TEXT_GROWTH <= before + LR_TEXT_GROWTH)
        return LR_OK;
    return lr_fail(
        LR_EUNSUPPORTED,
        "%s: at normalizer: %zu bytes of text become %zu or more; more than %d times as many are not supported",
        e->tokenizer->path, before, now, LR_TEXT_GROWTH);
}

static int replace(const lr_normalizer_step *step, lr_encoder *e, lr_string *out, const char *s, size_t size)
{
    size_t done = 0, begin, end;
    lr_regex_search search;
    if (step->is_regex)
        lr_regex_start(&search, &step->regex, s, size);
    for (;;) {
        if (step->is_regex) {
            const int found = lr_regex_next(&search, &e->matcher, &begin, &end);
            if (found < 0)
                return found;
            if (found == 0)
                break;
        } else {
            const char *at = memmem(s + done, size - done, step->pattern, step->pattern_size);
            if (at == NULL)
                break;
            begin = (size_t)(at - s);
            end = begin + step->pattern_size;
        }
        int status = lr_string_append(out, s + done, begin - done);
        if (status == LR_OK)
            status = lr_string_append(out, step->text, step->size);
        if (status == LR_OK)
            status = check_growth(e, out->size, size);
        if (status != LR_OK)
            return status;
        done = end;
    }
    return lr_string_append(out, s + done, size - done);
}

static void strip(const lr_normalizer_step *step, const char **s, size_t *size)
{
    const char *begin = *s, *end = *s + *size;
    while (step->left && begin < end) {
        const char *p = begin;
        if (!lr_char_is(lr_utf8_next(&p), LR_CHAR_SPACE))
            break;
        begin = p;
    }
    while (step->right && begin < end) {
        const char *previous = lr_utf8_previous(begin, end), *p = previous;
        if (!lr_char_is(lr_utf8_next(&p), LR_CHAR_SPACE))
            break;
        end = previous;
    }
    *s = begin;
    *size = (size_t)(end - begin);
}

/* The text being normalised, and where the next step may write. */
typedef struct passage {
    lr_encoder *e;
    const char *text;
    size_t size;
    int next;
} passage;

static lr_string *output(passage *p)
{
    p->e->text[p->next].size = 0;
    return &p->e->text[p->next];
}

static int written(passage *p, int status)
{
    if (status == LR_OK) {
        p->text = p->e->text[p->next].data;
        p->size = p->e->text[p->next].size;
        p->next ^= 1;
    }
    return status;
}

static int normal_form(passage *p, lr_form form)
{
    if (lr_unicode_is_normal(p->text, p->size, form))
        return LR_OK;
    return written(p, lr_unicode_normalize(output(p), p->text, p->size, form, &p->e->code_points));
}

static int bert(const lr_normalizer_step *s, passage *p)
{
    if (lr_utf8_ascii(p->text, p->size))
        return written(p, bert_ascii(s, output(p), p->text, p->size));
    int status = LR_OK;
    if (s->clean_text || s->chinese)
        status = written(p, bert_clean(s, output(p), p->text, p->size));
    if (status == LR_OK && s->accents)
        status = normal_form(p, LR_NFD);
    if (status == LR_OK && s->accents)
        status = written(p, drop(output(p), p->text, p->size, LR_CHAR_ACCENT));
    if (status == LR_OK && s->lowercase)
        status = written(p, lowercase(output(p), p->text, p->size));
    return status;
}

static int run_step(const lr_normalizer_step *s, passage *p)
{
    switch (s->kind) {
    case STEP_NFC:
    case STEP_NFD:
    case STEP_NFKC:
    case STEP_NFKD:
        return normal_form(p, (lr_form)s->kind);
    case STEP_LOWERCASE:
        return written(p, lowercase(output(p), p->text, p->size));
    case STEP_STRIP_ACCENTS:
        return written(p, drop(output(p), p->text, p->size, LR_CHAR_MARK));
    case STEP_BERT:
        return bert(s, p);
    case STEP_STRIP:
        strip(s, &p->text, &p->size);
        return LR_OK;
    case STEP_REPLACE:
        return written(p, replace(s, p->e, output(p), p->text, p->size));
    case STEP_PREPEND: {
        lr_string *out = output(p);
        const int status = lr_string_append(out, s->text, s->size);
        return status == LR_OK ? written(p, lr_string_append(out, p->text, p->size)) : status;
    }
    }
    return LR_OK;
}

int lr_normalizer_run(const lr_normalizer *n, lr_encoder *e, const char **text, size_t *size)
{
    passage p = {e, *text, *size, 0};
    for (size_t i = 0; i < n->count && p.size > 0; i++) {
        int status = run_step(&n->steps[i], &p);
        if (status == LR_OK)
            status = check_growth(e, p.size, *size);
        if (status != LR_OK)
            return status;
    }
    *text = p.text;
    *size = p.size;
    return LR_OK;
}
