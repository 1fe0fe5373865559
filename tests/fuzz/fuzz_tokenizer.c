/* tokenizer.json: a tokenizer that loads can encode. The input is the file, 0xFF and a text; after another 0xFF there may be an
 * object that replaces parts of the file. */
#include "encode.h"

static void use(lr_tokenizer *t, const uint8_t *text, size_t size)
{
    static const char usual[] = "The quick brown fox's 12 3 jumps\n\n  over\xe4\xb8\xad\xc3\xa9 it. \xc4\xb0";
    fuzz_encode(t, usual, sizeof usual - 1);
    char *copy = fuzz_copy(text, size);
    fuzz_encode(t, copy, size);
    free(copy);
    lr_tokenizer_free(t);
}

static void load_changed(const uint8_t *file, size_t file_size, const uint8_t *changes, size_t changes_size,
                         const uint8_t *text, size_t size)
{
    lr_json *docs[2] = {NULL, NULL};
    lr_tokenizer *t = NULL;
    if (lr_json_parse_python(&docs[0], (const char *)file, (int64_t)file_size, "file") == LR_OK &&
        lr_json_parse(&docs[1], (const char *)changes, (int64_t)changes_size, "changes") == LR_OK &&
        lr_tokenizer_load_changed(&t, docs[0], "file", docs[1], "changes") == LR_OK)
        use(t, text, size);
    lr_json_free(docs[0]);
    lr_json_free(docs[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t file, rest, text, changes;
    const uint8_t *second = fuzz_split(data, size, &file, &rest), *third = fuzz_split(second, rest, &text, &changes);
    const int64_t before = fuzz_objects();
    lr_tokenizer *t = NULL;
    if (text < rest)
        load_changed(data, file, third, changes, second, text);
    else if (lr_tokenizer_load(&t, fuzz_file(".json", data, file)) == LR_OK)
        use(t, second, text);
    MUST(fuzz_objects() == before);
    return 0;
}
