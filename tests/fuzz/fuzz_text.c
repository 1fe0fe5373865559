/* Texts for the tokenizers of tests/golden, which are of every kind. The first byte chooses one. */
#include "encode.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const folders[] = {"tokenizer/bert",    "tokenizer/bert_cased", "tokenizer/gpt2",
                                          "tokenizer/llama3",  "tokenizer/mixed",      "tokenizer/qwen2",
                                          "tokenizer/roberta", "tokenizer/scripts",    "tokenizer/starcoder"};
    static lr_tokenizer *tokenizers[LR_COUNT_OF(folders)];
    if (size < 1)
        return -1;
    lr_tokenizer **t = &tokenizers[data[0] % LR_COUNT_OF(folders)];
    if (*t == NULL) {
        char path[1024];
        snprintf(path, sizeof path, "%s/golden/%s", LORARUN_TESTS, folders[data[0] % LR_COUNT_OF(folders)]);
        MUST(lr_tokenizer_load(t, path) == LR_OK);
    }
    char *text = fuzz_copy(data + 1, size - 1);
    fuzz_encode(*t, text, size - 1);
    free(text);
    return 0;
}
