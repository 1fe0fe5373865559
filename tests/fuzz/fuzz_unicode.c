/* Normal forms: they are UTF-8 and do not change when normalised again; the composed and the decomposed form of a text give each
 * other. */
#include "fuzz.h"
#include "text/unicode.h"

static lr_string form_of(const char *text, size_t size, lr_form form)
{
    lr_string out = {0};
    lr_code_points work = {0};
    MUST(lr_unicode_normalize(&out, text, size, form, &work) == LR_OK);
    bool ascii;
    MUST(lr_utf8_check(out.data, out.size, &ascii) == out.size);
    lr_free(work.data);
    return out;
}

/* The normal form of text must be `expected`. */
static void check_form(const char *text, size_t size, lr_form form, const lr_string *expected)
{
    lr_string out = form_of(text, size, form);
    MUST(out.size == expected->size && (out.size == 0 || memcmp(out.data, expected->data, out.size) == 0));
    lr_string_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bool ascii;
    char *text = fuzz_copy(data, size);
    if (lr_utf8_check(text, size, &ascii) < size) {
        free(text);
        return -1;
    }
    lr_unicode_init();
    const int64_t before = fuzz_objects();
    lr_string forms[4];
    for (lr_form f = LR_NFC; f <= LR_NFKD; f++) {
        forms[f] = form_of(text, size, f);
        check_form(forms[f].data, forms[f].size, f, &forms[f]);
        if (lr_unicode_is_normal(text, size, f))
            MUST(forms[f].size == size && (size == 0 || memcmp(forms[f].data, text, size) == 0));
    }
    check_form(forms[LR_NFD].data, forms[LR_NFD].size, LR_NFC, &forms[LR_NFC]);
    check_form(forms[LR_NFC].data, forms[LR_NFC].size, LR_NFD, &forms[LR_NFD]);
    check_form(forms[LR_NFKD].data, forms[LR_NFKD].size, LR_NFKC, &forms[LR_NFKC]);
    for (lr_form f = LR_NFC; f <= LR_NFKD; f++)
        lr_string_free(&forms[f]);
    MUST(fuzz_objects() == before);
    free(text);
    return 0;
}
