/* Patterns of tokenizers and of PEFT: matches follow one another within the text. The input is a pattern, 0xFF, and a text. */
#include "fuzz.h"
#include "text/text.h"

static void search(const lr_regex *re, const char *text, size_t size)
{
    lr_matcher m = {0};
    MUST(lr_matcher_init(&m) == LR_OK);
    lr_regex_search s;
    lr_regex_start(&s, re, text, size);
    size_t begin = 0, end = 0, last = 0, found = 0;
    while (lr_regex_next(&s, &m, &begin, &end) == 1) {
        MUST(begin >= last && end >= begin && end <= size && ++found <= size + 1);
        last = end;
    }
    lr_matcher_free(&m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t first, second;
    const uint8_t *rest = fuzz_split(data, size, &first, &second);
    bool ascii;
    if (lr_utf8_check((const char *)data, first, &ascii) < first ||
        lr_utf8_check((const char *)rest, second, &ascii) < second)
        return -1;
    lr_unicode_init();
    const int64_t before = fuzz_objects();
    char *pattern = fuzz_string(data, first), *text = fuzz_copy(rest, second);
    lr_regex re = {0};
    if (lr_regex_compile(&re, &(lr_place){NULL, "input", 0}, pattern, first) == LR_OK)
        search(&re, text, second);
    lr_regex_free(&re);
    if (strlen(pattern) == first && memchr(text, 0, second) == NULL) {
        char *word = fuzz_string(rest, second);
        int matched = 0;
        lr_regex_fullmatch(pattern, word, &matched);
        free(word);
    }
    free(pattern);
    free(text);
    MUST(fuzz_objects() == before);
    return 0;
}
