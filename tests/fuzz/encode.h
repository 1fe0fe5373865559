/* encode.h: encodes a text and checks the rules that hold for every tokenizer and text. */
#include "fuzz.h"
#include "text/unicode.h"

enum { FUZZ_IDS = 512, FUZZ_LIMIT = 7 };

static void fuzz_encode(const lr_tokenizer *t, const char *text, size_t size)
{
    static int32_t ids[FUZZ_IDS], again[FUZZ_IDS], cut[FUZZ_IDS];
    int64_t count = 0, count_again = 0, count_cut = 0;
    const int status = lr_tokenizer_encode(t, text, (int64_t)size, 0, 0, ids, FUZZ_IDS, &count);
    bool ascii;
    MUST(status == LR_OK || lr_utf8_check(text, size, &ascii) < size || status == LR_EUNSUPPORTED ||
         status == LR_EFORMAT);
    if (status != LR_OK)
        return;
    MUST(lr_tokenizer_encode(t, text, (int64_t)size, 0, 0, again, FUZZ_IDS, &count_again) == LR_OK);
    const size_t n = (size_t)lr_min64(count, FUZZ_IDS);
    MUST(count >= 0 && count_again == count && memcmp(again, ids, n * sizeof *ids) == 0);
    for (size_t i = 0; i < n; i++)
        MUST(ids[i] >= 0 && ids[i] < lr_tokenizer_vocab_size(t) && lr_tokenizer_token(t, ids[i]) != NULL);
    /* A limit keeps that many ids. */
    MUST(lr_tokenizer_encode(t, text, (int64_t)size, 0, FUZZ_LIMIT, cut, FUZZ_IDS, &count_cut) == LR_OK);
    MUST(count_cut == lr_min64(count, FUZZ_LIMIT));
    /* Special tokens only add ids. */
    MUST(lr_tokenizer_encode(t, text, (int64_t)size, 1, 0, cut, FUZZ_IDS, &count_cut) == LR_OK && count_cut >= count);
}
