/* test_tokenizer.c: tokenizers with bad input, failing allocations and several threads. test_tokenizer.lua compares ids with the
 * reference. */
#include "folder.h"
#include <pthread.h>

static const char *const NAMES[] = {"qwen2", "qwen3_embedding", "roberta", "gpt2",   "llama3", "starcoder",
                                    "bert",  "bert_cased",      "mixed",   "scripts"};

static const char TEXT[] =
    "def f(x):\r\n\treturn x[12] + \"na\xC3\xAFve e\xCC\x81\" # \xE4\xB8\xAD\xE6\x96\x87 \xF0\x9F\x91\x8D"
    "\xE1\xBA\x9B\xCC\xA3 <|endoftext|>  [MASK] <mask> fox ing--``\xEF\xAC\x81  \xC2\xA0 it's WE'LL\n\n";

static const char *golden(const char *name)
{
    static char path[1024];
    snprintf(path, sizeof path, "%s/golden/tokenizer/%s/tokenizer.json", getenv("LORARUN_TESTS"), name);
    return path;
}

static lr_tokenizer *load(const char *name)
{
    lr_tokenizer *tok;
    CHECK_INT(lr_tokenizer_load(&tok, golden(name)), LR_OK);
    return tok;
}

TEST(malformed_files_are_refused_with_their_place)
{
    static const struct {
        const char *text;
        int status;
        const char *message;
    } cases[] = {
        {"", LR_EFORMAT, "t.json is empty"},
        {"{\"model\": {", LR_EFORMAT, "t.json:1:12"},
        {"[]", LR_EFORMAT, "its top is not an object"},
        {"{}", LR_EFORMAT, "\"model\" is missing"},
        {"{\"model\": 5}", LR_EFORMAT, "at model: expected an object, found a number"},
        {"{\"model\": {\"type\": \"WordLevel\"}}", LR_EUNSUPPORTED, "at model: the model \"WordLevel\""},
        {"{\"model\": {\"type\": \"WordPiece\", \"vocab\": []}}", LR_EFORMAT, "at model.vocab: expected an object"},
        {"{\"model\": {\"type\": \"WordPiece\", \"vocab\": {}}}", LR_EFORMAT, "at model.vocab: no tokens"},
        {"{\"model\": {\"type\": \"WordPiece\", \"vocab\": {\"a\": 1e3}}}", LR_EFORMAT,
         "at model.vocab.a: expected a token id"},
        {"{\"model\": {\"type\": \"WordPiece\", \"vocab\": {\"a\": 99999999999}}}", LR_EFORMAT, "at model.vocab.a"},
        {"{\"model\": {\"type\": \"WordPiece\", \"vocab\": {\"a\": 0}, \"unk_token\": \"a\", "
         "\"continuing_subword_prefix\": \"\","
         "\"max_input_chars_per_word\": -1}}",
         LR_EFORMAT, "at model.max_input_chars_per_word: -1 is not an integer"},
        {"{\"truncation\": {}}", LR_EFORMAT, "at truncation: \"max_length\" is missing"},
        {"{\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFC\"}, 3]}}", LR_EFORMAT,
         "at normalizer.normalizers[1]: expected an object, found a number"},
        {"{\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"\\\\p{Lx}\"}, \"behavior\": "
         "\"Isolated\","
         "\"invert\": false}}",
         LR_EUNSUPPORTED, "the property \\p{Lx}"},
        {"{\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"a\"}, \"behavior\": \"Glued\","
         "\"invert\": false}}",
         LR_EUNSUPPORTED, "at pre_tokenizer.behavior: the behavior \"Glued\""},
    };
    for (size_t i = 0; i < LR_COUNT_OF(cases); i++) {
        lr_tokenizer *tok = NULL;
        const char *path = text_in_folder("t.json", cases[i].text);
        CHECK_INT(lr_tokenizer_load(&tok, path), cases[i].status);
        CHECK_HAS(lr_last_error(), cases[i].message);
        CHECK_HAS(lr_last_error(), path);
        CHECK(tok == NULL);
    }
}

TEST(patterns_outside_the_known_syntax_are_refused)
{
    static const char *const patterns[] = {
        "[",       "[]",      "[a",      "\\\\",  "(?<n>a)", "(?x)a",  "a(?i)b", "[[:alpha:]]", "[a&&b]",
        "\\\\1",   "\\\\p",   "\\\\pL",  "(",     ")",       "*",      "a{2,1}", "a{1,9999}",   "a{2}+",
        "\\\\R",   "\\\\X",   "\\\\G",   "\\\\K", "\\\\p{",  "\\\\x{", "[b-a]",  "[a-\\\\s]",   "\\\\x{110000}",
        "\\\\xFF", "\\\\u12", "(?<=a*)b"};
    for (size_t i = 0; i < LR_COUNT_OF(patterns); i++) {
        lr_tokenizer *tok = NULL;
        char text[512];
        (void)snprintf(text, sizeof text,
                       "{\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"%s\"}, \"behavior\":"
                       "\"Isolated\", \"invert\": false}}",
                       patterns[i]);
        const int status = lr_tokenizer_load(&tok, text_in_folder("p.json", text));
        if (status != LR_EUNSUPPORTED)
            LR_TEST_FAIL("the pattern %s: status %d", patterns[i], status);
        CHECK_HAS(lr_last_error(), "at pre_tokenizer: the pattern");
    }
}

TEST(room_and_arguments)
{
    lr_tokenizer *tok = load("qwen3_embedding");
    int32_t all[256], some[256];
    int64_t count = -1, again = -1;
    CHECK_INT(lr_tokenizer_encode(tok, TEXT, sizeof TEXT - 1, 1, 0, all, 256, &count), LR_OK);
    CHECK(count > 20 && count < 256);
    for (int64_t cap = 0; cap <= count; cap++) {
        memset(some, 0x55, sizeof some);
        CHECK_INT(lr_tokenizer_encode(tok, TEXT, sizeof TEXT - 1, 1, 0, some, cap, &again), LR_OK);
        CHECK_INT(again, count);
        CHECK(memcmp(some, all, (size_t)cap * sizeof all[0]) == 0);
        CHECK_INT(some[cap], 0x55555555);
    }
    CHECK_INT(lr_tokenizer_encode(tok, NULL, 0, 0, 0, NULL, 0, &count), LR_OK);
    CHECK_INT(count, 0);
    CHECK_INT(lr_tokenizer_encode(tok, TEXT, -1, 0, 0, some, 1, &count), LR_EINVAL);
    CHECK_INT(lr_tokenizer_encode(tok, TEXT, 1, 0, -1, some, 1, &count), LR_EINVAL);
    CHECK_INT(lr_tokenizer_encode(tok, TEXT, 1, 0, 0, some, -1, &count), LR_EINVAL);
    CHECK_INT(lr_tokenizer_load(NULL, "x"), LR_EINVAL);
    CHECK_INT(lr_tokenizer_load(&tok, NULL), LR_EINVAL);
    lr_tokenizer_free(tok);
    lr_tokenizer_free(NULL);
}

TEST(invalid_utf8_names_its_byte)
{
    static const struct {
        const char *text;
        int at; /* -1: valid */
    } cases[] = {{"\x80", 0},
                 {"ab\xC3", 2},
                 {"ab\xC3(", 2},
                 {"\xC0\x80", 0},
                 {"\xC1\xBF", 0},
                 {"12345678\xE0\x9F\xBF", 8},
                 {"\xE0\xA0\x80", -1},
                 {"x\xED\xA0\x80", 1},
                 {"\xED\x9F\xBF", -1},
                 {"\xEE\x80\x80", -1},
                 {"\xF0\x8F\xBF\xBF", 0},
                 {"\xF0\x90\x80\x80", -1},
                 {"\xF4\x8F\xBF\xBF", -1},
                 {"\xF4\x90\x80\x80", 0},
                 {"\xF5\x80\x80\x80", 0},
                 {"12345678123456\xC3\xA9xxxxxxx\xFF", 23},
                 {"\xF0\x90\x80", 0},
                 {"\xE2\x82", 0}};
    lr_tokenizer *tok = load("bert");
    int32_t ids[64];
    for (size_t i = 0; i < LR_COUNT_OF(cases); i++) {
        int64_t count;
        const int status =
            lr_tokenizer_encode(tok, cases[i].text, (int64_t)strlen(cases[i].text), 1, 0, ids, 64, &count);
        char expected[64];
        snprintf(expected, sizeof expected, "not valid UTF-8 at byte %d ", cases[i].at);
        CHECK_INT(status, cases[i].at < 0 ? LR_OK : LR_EINVAL);
        if (cases[i].at >= 0)
            CHECK_HAS(lr_last_error(), expected);
    }
    lr_tokenizer_free(tok);
}

TEST(loading_survives_every_failing_allocation)
{
    for (size_t i = 0; i < LR_COUNT_OF(NAMES); i++) {
        lr_tokenizer *tok = NULL;
        FAIL_EACH_ALLOCATION(lr_tokenizer_load(&tok, golden(NAMES[i])));
        lr_tokenizer_free(tok);
    }
}

/* The tokenizer keeps an encoder that was made before the failure, so leaks show when the tokenizer is freed. */
TEST(encoding_survives_every_failing_allocation)
{
    static char text[4 * sizeof TEXT + 2000];
    int32_t ids[8192], expected[8192];
    int64_t count, expected_count;
    strcpy(text, TEXT);
    memset(text + strlen(text), 'q', 300); /* long words are encoded differently */
    strcat(text, TEXT);
    for (size_t i = 0; i < LR_COUNT_OF(NAMES); i++) {
        int failures = 0, status = LR_ENOMEM;
        lr_tokenizer *tok = load(NAMES[i]);
        CHECK_INT(lr_tokenizer_encode(tok, text, (int64_t)strlen(text), 1, 0, expected, 8192, &expected_count), LR_OK);
        lr_tokenizer_free(tok);
        for (int64_t n = 0; status != LR_OK; n++) {
            tok = load(NAMES[i]);
            lr_memory_fail(n, 1);
            status = lr_tokenizer_encode(tok, text, (int64_t)strlen(text), 1, 0, ids, 8192, &count);
            lr_memory_fail(-1, 0);
            if (status != LR_OK) {
                CHECK_INT(status, LR_ENOMEM);
                failures++;
                CHECK_INT(lr_tokenizer_encode(tok, text, (int64_t)strlen(text), 1, 0, ids, 8192, &count), LR_OK);
            }
            CHECK_INT(count, expected_count); /* also after a failure */
            CHECK(memcmp(ids, expected, (size_t)count * sizeof ids[0]) == 0);
            lr_tokenizer_free(tok);
        }
        CHECK(failures > 0);
    }
}

/* ---- damaged files -------------------------------------------------------------------------------------------------- */
static uint32_t dice(uint64_t *position, uint32_t sides)
{
    uint32_t words[4];
    lr_random(20240607, 1, 0, (*position)++, words);
    return words[0] % sides;
}

/* Damage the text once, more often in the settings around the vocabulary than in it. Returns the new size. */
static size_t damage(char *text, size_t size, size_t cap, uint64_t *position)
{
    static const char *const values[] = {
        "null", "true",  "false",        "-1",        "0",    "1e99",    "99999999999", "\"\"",         "[]",
        "{}",   "\"x\"", "\"Sequence\"", "\"Regex\"", "[[[[", "\"[a-\"", "\"(\"",       "\"\\\\p{L}\"", "\"\\u0000\""};
    size_t at = dice(position, (uint32_t)size);
    if (dice(position, 3) > 0)
        at = dice(position, 2) ? at % 2000 : size - 1 - at % (size < 400 ? size : 400);
    if (at >= size)
        at = size - 1;
    switch (dice(position, 12)) {
    case 0:
        text[at] = (char)dice(position, 256);
        return size;
    case 1: { /* remove some bytes */
        size_t n = 1 + dice(position, 40);
        n = n < size - at ? n : size - at - 1;
        memmove(text + at, text + at + n, size - at - n);
        return size - n;
    }
    case 2: { /* copy bytes from another place */
        const size_t from = dice(position, (uint32_t)size), n = 1 + dice(position, 60);
        char part[64];
        if (from + n > size || size + n > cap)
            return size;
        memcpy(part, text + from, n);
        memmove(text + at + n, text + at, size - at);
        memcpy(text + at, part, n);
        return size + n;
    }
    default: { /* replace the next plain value */
        const char *value = values[dice(position, (uint32_t)LR_COUNT_OF(values))];
        while (at + 1 < size && (text[at] != ':' || text[at + 1] == '{' || text[at + 1] == '['))
            at++;
        size_t end = at + 1;
        while (end < size && text[end] != ',' && text[end] != '}' && text[end] != ']')
            end++;
        if (end >= size || size + strlen(value) > cap)
            return size;
        memmove(text + at + 1 + strlen(value), text + end, size - end);
        memcpy(text + at + 1, value, strlen(value));
        return size - (end - at - 1) + strlen(value);
    }
    }
}

TEST(damaged_files_never_crash)
{
    enum { ROUNDS = 300 };
    uint64_t position = 0;
    int loaded = 0, refused = 0;
    for (size_t i = 0; i < LR_COUNT_OF(NAMES); i++) {
        char *original, *text;
        int64_t size;
        CHECK_INT(lr_file_read(golden(NAMES[i]), &original, &size), LR_OK);
        const size_t cap = (size_t)size + 4096;
        CHECK((text = lr_alloc(cap)) != NULL);
        for (int round = 0; round < ROUNDS; round++) {
            memcpy(text, original, (size_t)size);
            size_t now = (size_t)size;
            for (uint32_t k = dice(&position, 3) + 1; k > 0; k--)
                now = damage(text, now, cap, &position);
            const char *path = write_in_folder("damaged.json", text, now);
            lr_tokenizer *tok;
            const int status = lr_tokenizer_load(&tok, path);
            if (status == LR_OK) {
                int32_t ids[1024];
                int64_t count;
                const int encoded = lr_tokenizer_encode(tok, TEXT, sizeof TEXT - 1, 1, 0, ids, 1024, &count);
                CHECK(encoded == LR_OK || encoded == LR_EINVAL);
                CHECK(encoded != LR_OK || count < 1024);
                lr_tokenizer_free(tok);
                loaded++;
            } else {
                CHECK(status == LR_EFORMAT || status == LR_EUNSUPPORTED);
                CHECK_HAS(lr_last_error(), path);
                refused++;
            }
        }
        lr_free(original);
        lr_free(text);
    }
    printf("    %d damaged files were loaded, %d refused\n", loaded, refused);
    CHECK(loaded > 100 && refused > 1000); /* both happened often */
}

/* ---- threads -------------------------------------------------------------------------------------------------------- */
enum { THREADS = 4, TEXTS = 200 };

typedef struct work {
    const lr_tokenizer *tok;
    const char *text;
    int64_t size;
    uint64_t sums[TEXTS];
    bool failed;
} work;

/* Encodes TEXTS slices of the text, and sums up the ids of each. */
static void *encode_all(void *argument)
{
    work *w = argument;
    int32_t ids[4096];
    for (int i = 0; i < TEXTS; i++) {
        const int64_t at = w->size / TEXTS * i, size = lr_min64(w->size - at, 10 + 17 * i);
        int64_t count = 0;
        w->failed |=
            lr_tokenizer_encode(w->tok, w->text + at, size, 1, i % 3 == 0 ? 20 : 0, ids, 4096, &count) != LR_OK;
        uint64_t sum = (uint64_t)count;
        for (int64_t k = 0; k < count; k++)
            sum = sum * 1000003 + (uint64_t)ids[k];
        w->sums[i] = sum;
    }
    return NULL;
}

TEST(threads_get_the_same_ids)
{
    char *text;
    int64_t size;
    CHECK_INT(lr_file_read(golden("gpt2"), &text, &size), LR_OK);
    for (int64_t i = 0; i < size; i++) /* any valid UTF-8 that can be cut anywhere will do */
        text[i] = (char)(text[i] & 0x7F);
    for (size_t n = 0; n < LR_COUNT_OF(NAMES); n++) {
        lr_tokenizer *tok = load(NAMES[n]);
        static work works[THREADS + 1];
        pthread_t threads[THREADS];
        for (int i = 0; i <= THREADS; i++)
            works[i] = (work){.tok = tok, .text = text, .size = size};
        for (int i = 0; i < THREADS; i++)
            CHECK_INT(pthread_create(&threads[i], NULL, encode_all, &works[i]), 0);
        for (int i = 0; i < THREADS; i++)
            pthread_join(threads[i], NULL);
        encode_all(&works[THREADS]);
        for (int i = 0; i <= THREADS; i++) {
            CHECK(!works[i].failed);
            CHECK(memcmp(works[i].sums, works[THREADS].sums, sizeof works[i].sums) == 0);
        }
        lr_tokenizer_free(tok);
    }
    lr_free(text);
}

TEST_MAIN()
