/* regex.c: compiled patterns and their matches, on PCRE2 with its JIT compiler.
 *
 * Each pattern is compiled twice: for any text, and for text of ASCII alone, where every class is a 256-bit map. Most source
 * code is ASCII, and the second pattern is several times as fast. */
#include "text/text.h"

enum { JIT_STACK_START = 32 << 10, JIT_STACK_MAX = 16 << 20 };
enum { TRANSLATED_MAX = 1 << 20 }; /* bytes of a pattern in PCRE2's syntax; one \\w alone takes 2 KB */

static void *hook_alloc(size_t size, void *unused)
{
    (void)unused;
    return lr_alloc(size);
}

static void hook_free(void *p, void *unused)
{
    (void)unused;
    lr_free(p);
}

static int no_memory(void)
{
    return lr_fail(LR_ENOMEM, "out of host memory in the regular expressions of a tokenizer");
}

static int describe(const lr_place *at, const char *pattern, int error)
{
    PCRE2_UCHAR text[160];
    pcre2_get_error_message(error, text, sizeof text);
    return lr_spec_unsupported(at, "the pattern \"%.200s\": %s", pattern, (const char *)text);
}

static int compile(pcre2_code **out, bool *jit, const lr_place *at, const char *pattern, size_t size, bool ascii,
                   pcre2_compile_context *context)
{
    lr_string text = {0};
    int status = lr_pattern_translate(&text, at, pattern, size, ascii), error = 0;
    PCRE2_SIZE offset;
    if (status == LR_OK && text.size > TRANSLATED_MAX)
        status = lr_spec_unsupported(at, "the pattern \"%.200s\" is too large", pattern);
    if (status == LR_OK) {
        const uint32_t options = PCRE2_MULTILINE | (ascii ? 0 : PCRE2_UTF | PCRE2_NO_UTF_CHECK);
        *out = pcre2_compile((PCRE2_SPTR)text.data, text.size, options, &error, &offset, context);
        if (*out == NULL)
            status = error == PCRE2_ERROR_HEAP_FAILED ? no_memory() : describe(at, pattern, error);
    }
    lr_string_free(&text);
    if (status != LR_OK)
        return status;
    error = pcre2_jit_compile(*out, PCRE2_JIT_COMPLETE);
    if (error == PCRE2_ERROR_NOMEMORY)
        return no_memory();
    *jit = *jit && error == 0; /* a system without JIT has the interpreter */
    return LR_OK;
}

int lr_regex_compile(lr_regex *re, const lr_place *at, const char *pattern, size_t size)
{
    pcre2_general_context *general = pcre2_general_context_create(hook_alloc, hook_free, NULL);
    pcre2_compile_context *context = general == NULL ? NULL : pcre2_compile_context_create(general);
    int status = context == NULL ? no_memory() : LR_OK;
    re->jit = true;
    if (status == LR_OK) {
        re->place = lr_spec_describe(at);
        status = re->place == NULL ? LR_ENOMEM : LR_OK;
    }
    if (status == LR_OK) {
        pcre2_set_newline(context, PCRE2_NEWLINE_LF);
        status = compile(&re->unicode, &re->jit, at, pattern, size, false, context);
    }
    if (status == LR_OK)
        status = compile(&re->ascii, &re->jit, at, pattern, size, true, context);
    pcre2_compile_context_free(context);
    pcre2_general_context_free(general);
    return status;
}

void lr_regex_free(lr_regex *re)
{
    pcre2_code_free(re->unicode);
    pcre2_code_free(re->ascii);
    lr_free(re->place);
    *re = (lr_regex){0};
}

int lr_matcher_init(lr_matcher *m)
{
    pcre2_general_context *general = pcre2_general_context_create(hook_alloc, hook_free, NULL);
    if (general == NULL)
        return no_memory();
    m->data = pcre2_match_data_create(1, general);
    m->context = pcre2_match_context_create(general);
    m->stack = pcre2_jit_stack_create(JIT_STACK_START, JIT_STACK_MAX, general);
    pcre2_general_context_free(general);
    uint32_t has_jit = 0;
    pcre2_config(PCRE2_CONFIG_JIT, &has_jit);
    if (m->data == NULL || m->context == NULL || (has_jit && m->stack == NULL))
        return no_memory();
    if (m->stack != NULL)
        pcre2_jit_stack_assign(m->context, NULL, m->stack);
    return LR_OK;
}

void lr_matcher_free(lr_matcher *m)
{
    pcre2_match_data_free(m->data);
    pcre2_match_context_free(m->context);
    pcre2_jit_stack_free(m->stack);
    *m = (lr_matcher){0};
}

void lr_regex_start(lr_regex_search *s, const lr_regex *re, const char *text, size_t size)
{
    *s = (lr_regex_search){re, lr_utf8_ascii(text, size) ? re->ascii : re->unicode, text, size, 0, 0, false};
}

int lr_regex_next(lr_regex_search *s, lr_matcher *m, size_t *begin, size_t *end)
{
    while (s->from <= s->size) {
        const PCRE2_SPTR text = (PCRE2_SPTR)s->text;
        const int n = s->re->jit
                          ? pcre2_jit_match(s->code, text, s->size, s->from, 0, m->data, m->context)
                          : pcre2_match(s->code, text, s->size, s->from, PCRE2_NO_UTF_CHECK, m->data, m->context);
        if (n == PCRE2_ERROR_NOMATCH) {
            s->from = s->size + 1;
            return 0;
        }
        if (n == PCRE2_ERROR_NOMEMORY)
            return no_memory();
        if (n < 0) {
            PCRE2_UCHAR why[160];
            pcre2_get_error_message(n, why, sizeof why);
            return lr_fail(LR_EINVAL, "%s: the pattern cannot be matched at byte %zu of a text of %zu bytes: %s",
                           s->re->place, s->from, s->size, (const char *)why);
        }
        const PCRE2_SIZE *offsets = pcre2_get_ovector_pointer(m->data);
        if (offsets[0] == offsets[1] && s->any && s->last_end == offsets[1]) {
            /* an empty match right after the last one: look again one character on */
            const char *next = s->text + s->from;
            if (s->from < s->size)
                lr_utf8_next(&next);
            s->from = s->from < s->size ? (size_t)(next - s->text) : s->size + 1;
            continue;
        }
        *begin = offsets[0];
        *end = s->from = s->last_end = offsets[1];
        s->any = true;
        return 1;
    }
    return 0;
}

/* PEFT writes module choices as Python regexes that must match a whole name. PCRE2 agrees with Python in all that such patterns
 * use. */
int lr_regex_fullmatch(const char *pattern, const char *text, int *matched)
{
    int error;
    PCRE2_SIZE at;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                     PCRE2_ANCHORED | PCRE2_ENDANCHORED | PCRE2_UTF, &error, &at, NULL);
    if (code == NULL) {
        PCRE2_UCHAR why[128];
        pcre2_get_error_message(error, why, sizeof why);
        return lr_fail(LR_EINVAL, "regular expression '%s' at character %zu: %s", pattern, (size_t)at + 1,
                       (const char *)why);
    }
    pcre2_match_data *data = pcre2_match_data_create_from_pattern(code, NULL);
    const int n = data == NULL ? PCRE2_ERROR_NOMEMORY
                               : pcre2_match(code, (PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED, 0, 0, data, NULL);
    pcre2_match_data_free(data);
    pcre2_code_free(code);
    if (n == PCRE2_ERROR_NOMEMORY)
        return lr_fail(LR_ENOMEM, "out of host memory in a regular expression");
    if (n < 0 && n != PCRE2_ERROR_NOMATCH)
        return lr_fail(LR_EINVAL, "regular expression '%s' on '%s': PCRE2 error %d", pattern, text, n);
    *matched = n >= 0;
    return LR_OK;
}
