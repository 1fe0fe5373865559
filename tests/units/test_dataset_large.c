/* test_dataset_large.c: data sets of several chunks. Every number of threads gives the result of a simple model of the file;
 * allocations fail; and the JSON scanner agrees with other parsers on mutated rows. */
#define _GNU_SOURCE
#include "data/dataset.h"
#include "folder.h"
#include <jansson.h>

static const char *const COLUMNS[] = {"text", "score"};
static const int KINDS[] = {LR_COLUMN_TEXT, LR_COLUMN_NUMBER};

static uint32_t draw(uint64_t position)
{
    uint32_t out[4];
    lr_random(7, 1, 0, position, out);
    return out[0];
}

/* What a file should give: row r has the text "r:..." and a line, unless the row is bad. */
typedef struct model {
    char *bytes;
    size_t size, cap;
    int64_t rows, bad, lines, first_bad;
    int64_t *line, *number;
} model;

static void put(model *m, const char *bytes, size_t size)
{
    if (m->size + size > m->cap) {
        m->cap = (m->size + size) * 2;
        m->bytes = realloc(m->bytes, m->cap);
    }
    memcpy(m->bytes + m->size, bytes, size);
    m->size += size;
    for (size_t i = 0; i < size; i++)
        m->lines += bytes[i] == '\n';
}

enum { ROWS = 30000 };

/* About five chunks. bad_every = n: every n-th row is bad; 0: none. quotes: a bad row leaves an odd number of quotes. */
static model make(bool csv, int bad_every, bool quotes)
{
    model m = {0};
    char text[4096], row[8192];
    m.line = calloc(ROWS, sizeof *m.line);
    m.number = calloc(ROWS, sizeof *m.number);
    if (csv)
        put(&m, "score,text\n", 11);
    for (int i = 0; i < ROWS; i++) {
        const uint32_t r = draw((uint64_t)i);
        size_t n = (size_t)snprintf(text, sizeof text, "%d:", i);
        for (uint32_t k = 0; k < r % 40; k++)
            n += (size_t)snprintf(text + n, sizeof text - n, "%s",
                                  (const char *[]){"word ", csv ? "\n" : "\\n", "\xE2\x82\xAC", csv ? "\"\"" : "\\\"",
                                                   ","}[(r >> k % 24) % 5]);
        if (bad_every > 0 && i % bad_every == bad_every - 1) {
            if (m.bad++ == 0)
                m.first_bad = m.lines + 1;
            put(&m, csv ? quotes ? "1,x\"\n" : "x,1\n" : "{\"text\":\n", 5 - (csv && !quotes ? 1 : 0) + (csv ? 0 : 4));
            continue;
        }
        m.line[m.rows] = m.lines + 1;
        m.number[m.rows++] = i;
        n = (size_t)snprintf(row, sizeof row, csv ? "%d,\"%s\"\n" : "{\"score\":%d,\"text\":\"%s\"}\n", i, text);
        put(&m, row, n);
        if (r % 50 == 0)
            put(&m, "\r\n", 2);
    }
    return m;
}

static void model_free(model *m)
{
    free(m->bytes);
    free(m->line);
    free(m->number);
}

static void compare(const lr_dataset *d, const model *m, int64_t rows)
{
    CHECK_INT(lr_dataset_rows(d), rows);
    double *numbers = calloc((size_t)rows, sizeof *numbers);
    CHECK_INT(lr_dataset_numbers(d, 1, numbers), LR_OK);
    for (int64_t r = 0; r < rows; r++) {
        char text[64], expected[32];
        int64_t size;
        CHECK_INT(numbers[r], m->number[r]);
        if (r % 101 == 0 || r == rows - 1) /* it counts from the start of the chunk */
            CHECK_INT(lr_dataset_line(d, r), m->line[r]);
        CHECK_INT(lr_dataset_text(d, r, 0, text, sizeof text, &size), LR_OK);
        const int n = snprintf(expected, sizeof expected, "%lld:", (long long)m->number[r]);
        CHECK(size >= n && memcmp(text, expected, (size_t)n) == 0);
    }
    free(numbers);
}

TEST(threads_do_not_matter)
{
    for (int csv = 0; csv < 2; csv++)
        for (int bad = 0; bad < 3; bad++) {
            model m = make(csv, (int[]){0, 1009, 61}[bad], bad == 2);
            CHECK(m.size > 3 * LR_CHUNK / 2);
            const char *path = write_in_folder(csv ? "m.csv" : "m.jsonl", m.bytes, m.size);
            for (int threads = 1; threads <= 4; threads++) {
                lr_dataset *d = NULL;
                CHECK_INT(lr_threads_set(threads), LR_OK);
                CHECK_INT(lr_dataset_open(&d, path, COLUMNS, KINDS, 2, LR_BAD_ROW_SKIP, 0), LR_OK);
                CHECK_INT(lr_dataset_skipped(d), m.bad);
                compare(d, &m, m.rows);
                lr_dataset_close(d);
                const int64_t some = m.rows * 2 / 3;
                CHECK_INT(lr_dataset_open(&d, path, COLUMNS, KINDS, 2, LR_BAD_ROW_SKIP, some), LR_OK);
                compare(d, &m, some);
                CHECK_INT(lr_dataset_skipped(d), m.number[some - 1] + 1 - some);
                lr_dataset_close(d);
                d = NULL;
                CHECK_INT(lr_dataset_open(&d, path, COLUMNS, KINDS, 2, LR_BAD_ROW_ERROR, 0),
                          m.bad ? LR_EFORMAT : LR_OK);
                char place[64];
                snprintf(place, sizeof place, "%s:%lld: ", path, (long long)m.first_bad);
                if (m.bad)
                    CHECK_HAS(lr_last_error(), place);
                lr_dataset_close(d);
            }
            lr_threads_set(0);
            model_free(&m);
        }
}

TEST(hashes_do_not_depend_on_threads)
{
    model m = make(false, 0, false);
    const char *path = write_in_folder("h.jsonl", m.bytes, m.size);
    uint64_t *one = calloc(ROWS, sizeof *one), *many = calloc(ROWS, sizeof *many);
    lr_dataset *d;
    CHECK_INT(lr_dataset_open(&d, path, COLUMNS, KINDS, 2, LR_BAD_ROW_ERROR, 0), LR_OK);
    lr_threads_set(1);
    CHECK_INT(lr_dataset_hashes(d, 0, one), LR_OK);
    lr_threads_set(4);
    CHECK_INT(lr_dataset_hashes(d, 0, many), LR_OK);
    lr_threads_set(0);
    CHECK(memcmp(one, many, ROWS * sizeof *one) == 0);
    lr_dataset_close(d);
    free(one);
    free(many);
    model_free(&m);
}

TEST(every_allocation_may_fail)
{
    static const char *const files[] = {"f.jsonl", "f.csv"};
    static const char *const contents[] = {"{\"text\":\"a\\n\",\"score\":1}\n{}\n{\"text\":\"b\",\"score\":2}\n",
                                           "text,score\n\"a\"\"\",1\n1\nb,2\n"};
    for (int f = 0; f < 2; f++)
        for (int threads = 1; threads <= 2; threads++) {
            const char *path = text_in_folder(files[f], contents[f]);
            lr_threads_set(threads);
            bool opened = false, hashed = false, peeked = false;
            int64_t failures = 0;
            for (int64_t after = 0; !opened || !hashed || !peeked; after++) {
                lr_memory before, now;
                lr_dataset *d = NULL;
                uint64_t hashes[2];
                char *names = NULL;
                int64_t count;
                lr_memory_stats(LR_CPU, &before);
                lr_memory_fail(after, 1000);
                const int status = lr_dataset_open(&d, path, COLUMNS, KINDS, 2, LR_BAD_ROW_SKIP, 0);
                lr_memory_fail(-1, 0);
                CHECK(status == LR_OK || status == LR_ENOMEM);
                CHECK((status == LR_OK) == (d != NULL));
                opened = status == LR_OK;
                if (d != NULL) {
                    lr_memory_fail(failures, 1000);
                    const int hash = lr_dataset_hashes(d, 0, hashes);
                    lr_memory_fail(-1, 0);
                    CHECK(hash == LR_OK || hash == LR_ENOMEM);
                    hashed = hash == LR_OK;
                    lr_dataset_close(d);
                    failures++;
                }
                lr_memory_fail(after, 1000);
                const int peek = lr_dataset_peek(path, &names, &count);
                lr_memory_fail(-1, 0);
                CHECK(peek == LR_OK || peek == LR_ENOMEM);
                peeked = peek == LR_OK;
                lr_free(names);
                lr_memory_stats(LR_CPU, &now);
                CHECK_INT(now.host_objects, before.host_objects);
                CHECK(after < 100);
            }
            lr_threads_set(0);
        }
}

/* ---- the scanner against jansson --------------------------------------------------------------------------------- */
static const char *const SEEDS[] = {
    "{\"text\":\"some words\",\"score\":1.5,\"more\":[1,-2.5e3,{\"a\":null}]}",
    "{\"a\\\"b\":\"\\u00e9\\uD83D\\uDE00\\n\",\"b\":[],\"c\":{},\"d\":[[true,false],[0.0E+1]]}",
    " { \"k\" : \"caf\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80\" , \"n\" : -0 , \"l\" : [ \"x\" , \"\" ] } ",
    "{\"text\":\"a longer text, of which eight bytes are looked at at once\",\"score\":123456789012345678}",
    "{}",
};

/* A row with one to four bytes replaced, removed, doubled or swapped, from the characters JSON is made of. */
static size_t mutate(uint64_t number, char *row)
{
    static const char alphabet[] =
        "{}[]\",:\\u0123456789abcdefDEn.-+ \t\rtrue\x01\x1f\x7f\x80\xbf\xc3\xa9\xed\xa0\xe2\xf0\xf4\x90\xff";
    uint32_t r[4];
    lr_random(11, 2, 0, number, r);
    const char *seed = SEEDS[r[0] % LR_COUNT_OF(SEEDS)];
    size_t n = strlen(seed);
    memcpy(row, seed, n);
    for (uint32_t k = 0; k <= r[1] % 4; k++) {
        uint32_t q[4];
        lr_random(11, 3, k, number, q);
        const size_t at = q[0] % n;
        switch (q[1] % 4) {
        case 0:
            row[at] = alphabet[q[2] % (sizeof alphabet - 1)];
            break;
        case 1:
            memmove(row + at + 1, row + at, n - at);
            row[at] = alphabet[q[2] % (sizeof alphabet - 1)];
            n++;
            break;
        case 2:
            if (n > 1)
                memmove(row + at, row + at + 1, --n - at);
            break;
        default: {
            const size_t other = q[2] % n;
            const char c = row[at];
            row[at] = row[other];
            row[other] = c;
        }
        }
    }
    return n;
}

TEST(the_scanner_agrees_with_jansson)
{
    const lr_schema any = {0};
    int64_t good = 0, malformed = 0;
    for (uint64_t i = 0; i < 300000; i++) {
        char row[512], why[LR_ROW_WHY];
        const size_t size = mutate(i, row);
        char *exact = malloc(size); /* so that a sanitizer sees a read past the row */
        memcpy(exact, row, size);
        const char *next;
        const lr_row_state state = lr_jsonl_row(&any, exact, exact + size, &next, NULL, why);
        json_error_t error;
        json_t *json = json_loadb(exact, size, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &error);
        const bool object = json_is_object(json);
        const bool overflow = json == NULL && json_error_code(&error) == json_error_numeric_overflow;
        if (state != LR_ROW_BLANK && !overflow && (state == LR_ROW_GOOD) != object)
            LR_TEST_FAIL("row %llu '%.*s': %s, jansson: %s", (unsigned long long)i, (int)size, row,
                         state == LR_ROW_GOOD ? "good" : why, object ? "good" : error.text);
        CHECK(next == exact + size);
        json_decref(json);
        free(exact);
        state == LR_ROW_GOOD ? good++ : malformed++;
    }
    CHECK(good > 10000 && malformed > 10000);
}

/* What Python's json module said of such rows, from tests/golden/make_jsonl.py. */
TEST(the_scanner_agrees_with_python)
{
    const lr_schema any = {0};
    const char *tests = getenv("LORARUN_TESTS");
    char path[1024], *bytes = NULL, why[LR_ROW_WHY];
    int64_t size = 0, rows[2] = {0};
    snprintf(path, sizeof path, "%s/golden/jsonl_rows.txt", tests != NULL ? tests : "tests");
    CHECK_INT(lr_file_read(path, &bytes, &size), LR_OK);
    for (const char *p = bytes, *next; p < bytes + size; p = next) {
        const lr_row_state state = lr_jsonl_row(&any, p + 1, bytes + size, &next, NULL, why);
        if ((state == LR_ROW_GOOD) != (*p == '1'))
            LR_TEST_FAIL("'%.*s' is %s", (int)(next - p - 2), p + 1, state == LR_ROW_GOOD ? "good" : why);
        rows[*p == '1']++;
    }
    lr_free(bytes);
    CHECK(rows[0] > 1000 && rows[1] > 200);
}

TEST(decoding_agrees_with_jansson)
{
    char *names[] = {"text"};
    int kinds[] = {LR_COLUMN_TEXT};
    const lr_schema schema = {.columns = 1, .names = names, .kinds = kinds};
    for (uint64_t i = 0; i < 20000; i++) {
        static const char *const parts[] = {"a",
                                            "word ",
                                            "\\n",
                                            "\\\"",
                                            "\\\\",
                                            "\\/",
                                            "\\b\\f\\r\\t",
                                            "\\u0000",
                                            "\\u007f",
                                            "\\u0080",
                                            "\\u07ff",
                                            "\\u0800",
                                            "\\uFFFF",
                                            "\\uD800\\uDC00",
                                            "\\udbff\\udfff",
                                            "\xC3\xA9",
                                            "\xE2\x82\xAC",
                                            "\xF0\x9F\x98\x80"};
        char row[512] = "{\"text\":\"", text[512], why[LR_ROW_WHY];
        for (uint32_t k = 0; k < draw(i) % 20; k++)
            strcat(row, parts[draw(100000 + 20 * i + k) % LR_COUNT_OF(parts)]);
        strcat(row, "\"}");
        lr_cell cell;
        const char *next;
        CHECK_INT(lr_jsonl_row(&schema, row, row + strlen(row), &next, &cell, why), LR_ROW_GOOD);
        const int64_t size = lr_jsonl_decode(&cell, text, sizeof text);
        json_error_t error;
        json_t *json = json_loads(row, JSON_ALLOW_NUL, &error);
        const json_t *value = json_object_get(json, "text");
        CHECK_INT(size, json_string_length(value));
        CHECK(memcmp(text, json_string_value(value), (size_t)size) == 0);
        json_decref(json);
    }
}

TEST(numbers_are_read_exactly)
{
    for (uint64_t i = 0; i < 200000; i++) {
        uint32_t r[4];
        lr_random(5, 4, 0, i, r);
        char text[64];
        const int exponent = (int)(r[2] % 640) - 330;
        switch (r[3] % 4) {
        case 0:
            snprintf(text, sizeof text, "%d.%u", (int)r[0] / 1000, r[1] % 100000);
            break;
        case 1:
            snprintf(text, sizeof text, "%.17g", (double)r[0] / ((double)r[1] + 1.0));
            break;
        case 2:
            snprintf(text, sizeof text, "%u%ue%d", r[0], r[1], exponent);
            break;
        default:
            snprintf(text, sizeof text, "0.%05u%u", r[0] % 100000, r[1] % 1000);
        }
        double value = NAN;
        const double expected = strtod(text, NULL);
        CHECK(lr_decimal(text, (int64_t)strlen(text), &value) == (isfinite(expected) != 0));
        if (isfinite(expected) && memcmp(&value, &expected, sizeof value) != 0)
            LR_TEST_FAIL("%s is read as %.17g, not %.17g", text, value, expected);
    }
    double value;
    static const char *const none[] = {"",   "-",  "+",   ".",   "-.",  "e5",  "1e", "1e+",
                                       "1 ", " 1", "0x1", "inf", "nan", "1,5", "--1"};
    for (size_t i = 0; i < LR_COUNT_OF(none); i++)
        CHECK(!lr_decimal(none[i], (int64_t)strlen(none[i]), &value));
}

TEST_MAIN()
