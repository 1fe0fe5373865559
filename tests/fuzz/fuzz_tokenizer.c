/* tokenizer.json: whatever loads can encode. The input is the file, 0xFF, and a text. */
#include "encode.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t file, text;
    const uint8_t *second = fuzz_split(data, size, &file, &text);
    const int64_t before = fuzz_objects();
    lr_tokenizer *t = NULL;
    if (lr_tokenizer_load(&t, fuzz_file(".json", data, file)) == LR_OK) {
        static const char usual[] = "The quick brown fox's 12 3 jumps\n\n  over\xe4\xb8\xad\xc3\xa9 it. \xc4\xb0";
        fuzz_encode(t, usual, sizeof usual - 1);
        char *copy = fuzz_copy(second, text);
        fuzz_encode(t, copy, text);
        free(copy);
        lr_tokenizer_free(t);
    }
    MUST(fuzz_objects() == before);
    return 0;
}
