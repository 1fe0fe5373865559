/* fullmatch.c: one regular expression against one short text. PEFT writes module choices as Python regexes that must match a
 * whole name; PCRE2's syntax agrees with Python's in all that such patterns use. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "core/core.h"
#include <pcre2.h>

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
