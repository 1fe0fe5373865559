/* test_dataset.c: data sets: what is read, what is refused and with which message, and that the number of threads changes
 * nothing. */
#define _GNU_SOURCE
#include "data/rows.h"
#include "folder.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

static const char *const COLUMNS[] = {"text", "score"};
static const int KINDS[] = {LR_COLUMN_TEXT, LR_COLUMN_NUMBER};

static int open_two(lr_dataset **d, const char *path, int on_bad_row, int64_t max_rows)
{
    return lr_dataset_open(d, path, COLUMNS, KINDS, 2, on_bad_row, max_rows);
}

static const char *text_of(const lr_dataset *d, int64_t row, int column)
{
    static char buf[4096];
    int64_t size = -1;
    if (lr_dataset_text(d, row, column, buf, sizeof buf - 1, &size) != LR_OK || size >= (int64_t)sizeof buf)
        return NULL;
    buf[size] = 0;
    return buf;
}

/* Opening a file with these contents fails with this message, which follows the file's path. */
static void refuse(const char *name, const char *contents, int status, const char *message)
{
    lr_dataset *d = NULL;
    const char *path = text_in_folder(name, contents);
    CHECK_INT(open_two(&d, path, LR_BAD_ROW_ERROR, 0), status);
    CHECK(d == NULL);
    CHECK(strncmp(lr_last_error(), path, strlen(path)) == 0);
    CHECK_STR(lr_last_error() + strlen(path), message);
}

TEST(jsonl_is_read)
{
    lr_dataset *d;
    const char *path = text_in_folder(
        "a.jsonl", "\xEF\xBB\xBF{\"text\": \"first\", \"score\": 1}\r\n"
                   "\n   \t\r\n"
                   " { \"score\" : -2.5e-1, \"other\": [1, {\"a\": [true, false, null]}], \"text\":\"\" } \n"
                   "{\"text\":\"once\",\"score\":7,\"text\":\"twice\",\"sc\\u006fre\":8}\n"
                   "{\"text\":\"a\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\u20AC\\uD83D\\ude00\xC3\xA9\",\"score\":0.1}");
    CHECK_INT(open_two(&d, path, LR_BAD_ROW_ERROR, 0), LR_OK);
    CHECK_INT(lr_dataset_rows(d), 4);
    CHECK_INT(lr_dataset_skipped(d), 0);
    CHECK(lr_dataset_first_skip(d) == NULL);
    CHECK_STR(text_of(d, 0, 0), "first");
    CHECK_STR(text_of(d, 1, 0), "");
    CHECK_STR(text_of(d, 2, 0), "twice");
    CHECK_STR(text_of(d, 3, 0), "a\"\\/\b\f\n\r\t\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\xC3\xA9");
    double numbers[4];
    CHECK_INT(lr_dataset_numbers(d, 1, numbers), LR_OK);
    CHECK(numbers[0] == 1.0 && numbers[1] == -0.25 && numbers[2] == 8.0 && numbers[3] == 0.1);
    CHECK_INT(lr_dataset_line(d, 0), 1);
    CHECK_INT(lr_dataset_line(d, 1), 4);
    CHECK_INT(lr_dataset_line(d, 3), 6);
    lr_dataset_close(d);
}

TEST(a_nul_is_text)
{
    lr_dataset *d;
    CHECK_INT(open_two(&d, text_in_folder("nul.jsonl", "{\"text\":\"a\\u0000b\",\"score\":1}"), LR_BAD_ROW_ERROR, 0),
              LR_OK);
    char buf[3];
    int64_t size;
    CHECK_INT(lr_dataset_text(d, 0, 0, buf, 3, &size), LR_OK);
    CHECK_INT(size, 3);
    CHECK(memcmp(buf, "a\0b", 3) == 0);
    lr_dataset_close(d);
}

TEST(a_text_is_cut_to_the_buffer)
{
    static const char *const files[] = {"cut.jsonl", "cut.csv"};
    static const char *const contents[] = {"{\"text\":\"ab\\u20acd\",\"score\":1}",
                                           "text,score\n\"a\"\"\xE2\x82\xAC\",1"};
    static const char *const whole[] = {"ab\xE2\x82\xAC"
                                        "d",
                                        "a\"\xE2\x82\xAC"};
    for (int f = 0; f < 2; f++) {
        lr_dataset *d;
        CHECK_INT(open_two(&d, text_in_folder(files[f], contents[f]), LR_BAD_ROW_ERROR, 0), LR_OK);
        for (int64_t cap = 0; cap < 8; cap++) {
            char buf[8] = "#######";
            int64_t size = -1;
            CHECK_INT(lr_dataset_text(d, 0, 0, buf, cap, &size), LR_OK);
            CHECK_INT(size, strlen(whole[f]));
            CHECK(memcmp(buf, whole[f], (size_t)lr_min64(cap, size)) == 0);
            for (int64_t i = lr_min64(cap, size); i < 7; i++)
                CHECK_INT(buf[i], '#');
        }
        lr_dataset_close(d);
    }
}

TEST(csv_is_read)
{
    lr_dataset *d;
    const char *path =
        text_in_folder("a.CSV", "\xEF\xBB\xBF\r\nid,\"text\",\"sco\"\"re\",score\r\n"
                                "1,plain,x, 1.5 \r\n"
                                "\r\n"
                                "2,\"quoted, with \"\"comma\"\"\nand a line\r\nor two\",,+.5\n"
                                "3,,\"\",5.\n"
                                "4,\"caf\xC3\xA9 \xE2\x82\xAC, a longer text of many bytes\",\"\",\"-1e2\"");
    CHECK_INT(open_two(&d, path, LR_BAD_ROW_ERROR, 0), LR_OK);
    CHECK_INT(lr_dataset_rows(d), 4);
    CHECK_STR(text_of(d, 0, 0), "plain");
    CHECK_STR(text_of(d, 1, 0), "quoted, with \"comma\"\nand a line\r\nor two");
    CHECK_STR(text_of(d, 2, 0), "");
    CHECK_STR(text_of(d, 3, 0), "caf\xC3\xA9 \xE2\x82\xAC, a longer text of many bytes");
    double numbers[4];
    CHECK_INT(lr_dataset_numbers(d, 1, numbers), LR_OK);
    CHECK(numbers[0] == 1.5 && numbers[1] == 0.5 && numbers[2] == 5.0 && numbers[3] == -100.0);
    CHECK_INT(lr_dataset_line(d, 0), 3);
    CHECK_INT(lr_dataset_line(d, 1), 5);
    CHECK_INT(lr_dataset_line(d, 2), 8);
    lr_dataset_close(d);
}

TEST(bad_json_is_an_error)
{
    static const struct {
        const char *row, *why;
    } cases[] = {
        {"{\"text\":\"a\",\"score\":\"x\"}", "column 'score' is not a number (it is a string)"},
        {"{\"text\":\"a\",\"score\":\"1.5\"}",
         "column 'score' is not a number (it is a string; write it without quotes)"},
        {"{\"text\":\"a\",\"score\":null}", "column 'score' is not a number (it is null)"},
        {"{\"text\":\"a\",\"score\":true}", "column 'score' is not a number (it is true)"},
        {"{\"text\":[],\"score\":1}", "column 'text' is not a string (it is an array)"},
        {"{\"text\":{},\"score\":1}", "column 'text' is not a string (it is an object)"},
        {"{\"text\":5,\"score\":1}", "column 'text' is not a string (it is a number)"},
        {"{\"text\":\"a\",\"score\":1e999}", "column 'score' is not a finite number of double precision (it is 1e999)"},
        {"{\"text\":\"a\",\"score\":NaN}",
         "not valid JSON at byte 21: expected a value (NaN and Infinity are no JSON)"},
        {"{\"text\":\"a\",\"score\":-Infinity}",
         "not valid JSON at byte 22: a number lacks digits (NaN and Infinity are no JSON)"},
        {"{\"current_line\":\"a\",\"score\":1}", "column 'text' is missing; the row has: current_line, score"},
        {"{}", "column 'text' is missing; the row has no columns"},
        {"[{\"text\":1}]", "not valid JSON at byte 1: the line starts an array, expected an object {...} on every line "
                           "(to convert an array: jq -c '.[]')"},
        {"text", "not valid JSON at byte 1: expected an object {...} on every line"},
        {"{", "not valid JSON at byte 2: the line ends inside the object (each row must be whole and on one line)"},
        {"{\"text\":\"a\",",
         "not valid JSON at byte 13: the line ends inside the object (each row must be whole and on one line)"},
        {"{\"text\":",
         "not valid JSON at byte 9: the line ends inside the object (each row must be whole and on one line)"},
        {"{\"text\"",
         "not valid JSON at byte 8: the line ends inside the object (each row must be whole and on one line)"},
        {"{\"text\":\"a\",}", "not valid JSON at byte 13: expected a key in double quotes"},
        {"{\"text\" \"a\"}", "not valid JSON at byte 9: expected ':' after a key"},
        {"{\"text\":\"a\" \"b\"}", "not valid JSON at byte 13: expected ',' or '}' after a value"},
        {"{\"a\":[1 2]}", "not valid JSON at byte 9: expected ',' or ']' after a value"},
        {"{\"a\":[1]} {}",
         "not valid JSON at byte 11: something follows the object (each row must be on a line of its own)"},
        {"{\"text\":\"a", "not valid JSON at byte 11: a string is not closed before the end of the line"},
        {"{\"text\":\"a\\", "not valid JSON at byte 11: a string is not closed"},
        {"{\"text\":\"\\x\"}", "not valid JSON at byte 10: an unknown escape after \\ (write \\\\ for a backslash)"},
        {"{\"text\":\"\\u12g4\"}", "not valid JSON at byte 10: \\u needs four hexadecimal digits"},
        {"{\"text\":\"\\ud800\"}",
         "not valid JSON at byte 10: a lone high surrogate (\\uD800 to \\uDBFF needs a low one after it)"},
        {"{\"text\":\"\\uDC00\"}",
         "not valid JSON at byte 10: a lone low surrogate (\\uDC00 to \\uDFFF must follow a high one)"},
        {"{\"text\":\"a\tb\"}", "not valid JSON at byte 11: a control character in a string must be escaped"},
        {"{\"text\":\"a\xFF\"}", "not valid JSON at byte 11: bytes that are not UTF-8"},
        {"{\"text\":\"\xED\xA0\x80\"}", "not valid JSON at byte 10: bytes that are not UTF-8"},
        {"{\"a\":01}", "not valid JSON at byte 7: a number starts with a superfluous 0"},
        {"{\"a\":1.}", "not valid JSON at byte 8: a number lacks digits after its point"},
        {"{\"a\":1e}", "not valid JSON at byte 8: a number lacks digits in its exponent"},
        {"{\"a\":nul}", "not valid JSON at byte 6: an unknown word (expected true, false or null)"},
    };
    for (size_t i = 0; i < LR_COUNT_OF(cases); i++) {
        char contents[512], message[512];
        snprintf(contents, sizeof contents, "{\"text\":\"\",\"score\":0}\n\n%s\nnever reached", cases[i].row);
        snprintf(message, sizeof message, ":3: %s", cases[i].why);
        refuse("bad.jsonl", contents, LR_EFORMAT, message);
    }
}

TEST(deep_nesting_is_refused)
{
    for (int depth = 255; depth <= 257; depth++) { /* the row itself is the first level */
        char row[1024] = "{\"text\":\"\",\"score\":0,\"a\":";
        size_t n = strlen(row);
        memset(row + n, '[', (size_t)depth);
        memset(row + n + depth, ']', (size_t)depth);
        row[n + 2 * (size_t)depth] = '}';
        lr_dataset *d = NULL;
        const char *path = write_in_folder("deep.jsonl", row, n + 2 * (size_t)depth + 1);
        const int status = open_two(&d, path, LR_BAD_ROW_ERROR, 0);
        CHECK_INT(status, depth < LR_ROW_DEPTH ? LR_OK : LR_EFORMAT);
        if (status != LR_OK)
            CHECK_HAS(lr_last_error(), "values are nested too deeply");
        lr_dataset_close(d);
    }
}

TEST(bad_csv_is_an_error)
{
    static const struct {
        const char *row, *why;
    } cases[] = {
        {"a", "the row has 1 field, the header has 2"},
        {"a,1,", "the row has 3 fields, the header has 2"},
        {"a,", "column 'score' is not a number (it is empty)"},
        {"a,nan", "column 'score' is not a finite number (it is \"nan\")"},
        {"a,1e999", "column 'score' is not a finite number (it is \"1e999\")"},
        {"a,1 2", "column 'score' is not a finite number (it is \"1 2\")"},
        {"a,0x10", "column 'score' is not a finite number (it is \"0x10\")"},
        {"a\"b,1",
         "not valid CSV: a quote inside an unquoted field (put the field in quotes and write the inner quote twice)"},
        {"\"a\"b,1",
         "not valid CSV: text after the closing quote of a field (a quote inside a quoted field is written twice)"},
        {"a\rb,1",
         "not valid CSV: a carriage return without a line feed (convert line ends with dos2unix, or quote the field)"},
        {"a\xFF,1", "not valid CSV: bytes that are not UTF-8"},
        {"\"a\xFF\",1", "not valid CSV: bytes that are not UTF-8"},
        {"\"a,1", "not valid CSV: a quoted field is not closed"},
    };
    for (size_t i = 0; i < LR_COUNT_OF(cases); i++) {
        char contents[512], message[512];
        snprintf(contents, sizeof contents, "text,score\n\"two\nlines\",1\n%s\n,", cases[i].row);
        snprintf(message, sizeof message, ":4: %s", cases[i].why);
        refuse("bad.csv", contents, LR_EFORMAT, message);
    }
    refuse("h.csv", "text,points\na,1\n", LR_EFORMAT, ":1: column 'score' is missing; the header has: text, points");
    refuse("h.csv", "text;score\na;1\n", LR_EFORMAT,
           ":1: column 'text' is missing; the header has: text;score (fields must be separated by commas)");
    refuse("h.csv", "\n\ntext,score,text\n", LR_EFORMAT, ":3: the header has column 'text' twice");
    refuse("h.csv", "text,\"score\n", LR_EFORMAT, ":2: not valid CSV: a quoted field is not closed");
    refuse("h.csv", "text,score\n", LR_EFORMAT, " has no rows");
    refuse("h.csv", "\r\n\n", LR_EFORMAT, " has no header line");
    lr_dataset *d = NULL;
    const char nul[] = "text,score\na\0b,1\n";
    CHECK_INT(open_two(&d, write_in_folder("nul.csv", nul, sizeof nul - 1), LR_BAD_ROW_ERROR, 0), LR_EFORMAT);
    CHECK_HAS(lr_last_error(), "nul.csv:2: not valid CSV: a NUL byte");
}

TEST(files_that_are_no_data)
{
    refuse("e.jsonl", "", LR_EFORMAT, " is empty");
    refuse("e.jsonl", "\n \r\n\n", LR_EFORMAT, " has no rows");
    refuse("e.jsonl", "\xEF\xBB\xBF", LR_EFORMAT, " has no rows");
    refuse("e.jsonl", "\xFF\xFE{", LR_EFORMAT,
           " is UTF-16 text, expected JSON Lines in UTF-8 (convert it: iconv -f UTF-16 -t UTF-8)");
    refuse("e.csv", "\x1F\x8B!", LR_EFORMAT, " is compressed with gzip, expected CSV in UTF-8 (unpack it: gunzip)");
    refuse("e.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n", LR_EFORMAT,
           " is a git-lfs pointer, not the file itself; fetch it with: git lfs pull");
    refuse("e.parquet", "PAR1", LR_EFORMAT,
           " is a Parquet file, expected JSON Lines in UTF-8 (export it as JSON Lines)");
    lr_dataset *d = NULL;
    CHECK_INT(open_two(&d, in_folder("missing.jsonl"), LR_BAD_ROW_ERROR, 0), LR_ENOTFOUND);
    CHECK_HAS(lr_last_error(), "missing.jsonl: No such file or directory");
    CHECK_INT(open_two(&d, lr_test_folder, LR_BAD_ROW_ERROR, 0), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "is a directory, expected a JSON Lines or CSV file");
    CHECK_INT(mkfifo(in_folder("fifo"), 0600), 0);
    CHECK_INT(open_two(&d, in_folder("fifo"), LR_BAD_ROW_ERROR, 0), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "is no regular file; copy its contents into one");
    CHECK(d == NULL);
}

TEST(wrong_arguments)
{
    static const char *const twice[] = {"text", "text"}, *const unnamed[] = {"text", ""};
    static const int odd[] = {LR_COLUMN_TEXT, 7};
    lr_dataset *d = NULL;
    const char *path = text_in_folder("w.jsonl", "{\"text\":\"a\",\"score\":1}");
    CHECK_INT(lr_dataset_open(&d, path, COLUMNS, KINDS, 0, 0, 0), LR_EINVAL);
    CHECK_INT(lr_dataset_open(&d, path, twice, KINDS, 2, 0, 0), LR_EINVAL);
    CHECK_STR(lr_last_error(), "column 'text' is asked for twice");
    CHECK_INT(lr_dataset_open(&d, path, unnamed, KINDS, 2, 0, 0), LR_EINVAL);
    CHECK_INT(lr_dataset_open(&d, path, COLUMNS, odd, 2, 0, 0), LR_EINVAL);
    CHECK_INT(lr_dataset_open(&d, path, COLUMNS, KINDS, 2, 2, 0), LR_EINVAL);
    CHECK_INT(lr_dataset_open(&d, path, COLUMNS, KINDS, 2, 0, -1), LR_EINVAL);
    CHECK(d == NULL);
    CHECK_INT(open_two(&d, path, LR_BAD_ROW_ERROR, 0), LR_OK);
    char buf[8];
    int64_t size;
    double number;
    uint64_t hash;
    CHECK_INT(lr_dataset_text(d, 1, 0, buf, 8, &size), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "there is no row 1, it has 1");
    CHECK_INT(lr_dataset_text(d, -1, 0, buf, 8, &size), LR_EINVAL);
    CHECK_INT(lr_dataset_text(d, 0, 1, buf, 8, &size), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "column 'score' was opened as numbers, it has no texts");
    CHECK_INT(lr_dataset_numbers(d, 0, &number), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "column 'text' was opened as texts, it has no numbers");
    CHECK_INT(lr_dataset_hashes(d, 2, &hash), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "there is no column 2, it was opened with 2");
    CHECK_INT(lr_dataset_line(d, 1), LR_EINVAL);
    lr_dataset_close(d);
}

TEST(bad_rows_are_skipped_on_request)
{
    static const char *const files[] = {"skip.jsonl", "skip.csv"};
    static const char *const contents[] = {
        "{\"text\":\"a\",\"score\":1}\n{\"text\":1}\nxx\n{\"text\":\"b\",\"score\":2}\n{}\n{\"text\":\"c\",\"score\":3}"
        "\n{",
        "text,score\na,1\n1\n\"x\"x\nb,2\nz,\nc,3\n\"",
    };
    static const char *const first[] = {":2: column 'text' is not a string (it is a number)",
                                        ":3: the row has 1 field, the header has 2"};
    for (int f = 0; f < 2; f++) {
        const char *path = text_in_folder(files[f], contents[f]);
        static const int64_t skipped[] = {4, 0, 2, 3, 4}; /* among the rows up to the last wanted one */
        for (int64_t max = 0; max <= 4; max++) {
            lr_dataset *d;
            CHECK_INT(open_two(&d, path, LR_BAD_ROW_SKIP, max), LR_OK);
            const int64_t rows = max == 0 ? 3 : lr_min64(max, 3);
            CHECK_INT(lr_dataset_rows(d), rows);
            CHECK_INT(lr_dataset_skipped(d), skipped[max]);
            if (skipped[max] > 0)
                CHECK_HAS(lr_dataset_first_skip(d), first[f]);
            CHECK_STR(text_of(d, rows - 1, 0), rows == 1 ? "a" : rows == 2 ? "b" : "c");
            lr_dataset_close(d);
        }
    }
    lr_dataset *d = NULL;
    CHECK_INT(open_two(&d, text_in_folder("none.jsonl", "{}\n{}\n"), LR_BAD_ROW_SKIP, 0), LR_EFORMAT);
    CHECK_HAS(lr_last_error(), "none.jsonl: none of its 2 rows can be used; the first: ");
    CHECK_HAS(lr_last_error(), "none.jsonl:1: column 'text' is missing; the row has no columns");
}

TEST(rows_after_the_last_wanted_one_are_not_checked)
{
    lr_dataset *d;
    const char *path = text_in_folder("max.jsonl", "{\"text\":\"a\",\"score\":1}\n{\"text\":\"b\",\"score\":1}\nbad\n");
    CHECK_INT(open_two(&d, path, LR_BAD_ROW_ERROR, 2), LR_OK);
    CHECK_INT(lr_dataset_rows(d), 2);
    lr_dataset_close(d);
    CHECK_INT(open_two(&d, path, LR_BAD_ROW_ERROR, 3), LR_EFORMAT);
}

TEST(rows_beyond_the_limit_are_refused)
{
    const size_t limit = LR_ROW_BYTES;
    for (int csv = 0; csv < 2; csv++)
        for (int over = 0; over < 2; over++) {
            const char *head = csv ? "score,text\n1,\"" : "{\"score\":1,\"text\":\"", *tail = csv ? "\"" : "\"}";
            const char *rest = csv ? "\n2,x\n" : "\n{\"score\":2,\"text\":\"x\"}\n";
            const size_t row = limit + (size_t)over, all = row + (csv ? 11 : 0) + strlen(rest);
            char *bytes = malloc(all);
            memset(bytes, 'a', all);
            memcpy(bytes, head, strlen(head));
            memcpy(bytes + all - strlen(rest) - strlen(tail), tail, strlen(tail));
            memcpy(bytes + all - strlen(rest), rest, strlen(rest));
            const char *path = write_in_folder(csv ? "long.csv" : "long.jsonl", bytes, all);
            free(bytes);
            lr_dataset *d = NULL;
            const int status = open_two(&d, path, LR_BAD_ROW_ERROR, 0);
            CHECK_INT(status, over ? LR_EFORMAT : LR_OK);
            if (over)
                CHECK_HAS(lr_last_error(), csv ? ":2: the row has more than 16777216 bytes (is a quote not closed?)"
                                               : ":1: the row has 16777217 bytes, at most 16777216 are allowed");
            else
                CHECK_INT(lr_dataset_rows(d), 2);
            lr_dataset_close(d);
            CHECK_INT(open_two(&d, path, LR_BAD_ROW_SKIP, 0), LR_OK);
            CHECK_INT(lr_dataset_rows(d), 2 - over);
            CHECK_INT(lr_dataset_skipped(d), over);
            lr_dataset_close(d);
        }
}

TEST(a_changed_file_is_noticed)
{
    lr_dataset *d;
    const char *path = text_in_folder("change.jsonl", "{\"text\":\"a\",\"score\":1}\n{\"text\":\"b\",\"score\":1}\n");
    CHECK_INT(open_two(&d, path, LR_BAD_ROW_ERROR, 0), LR_OK);
    FILE *f = fopen(path, "r+b");
    CHECK(f != NULL && fputs("{[", f) >= 0 && fclose(f) == 0);
    char buf[8];
    int64_t size;
    uint64_t hashes[2];
    CHECK_INT(lr_dataset_text(d, 0, 0, buf, 8, &size), LR_EIO);
    CHECK_HAS(lr_last_error(), "row 0 is not what it was when the data set was opened: the file has changed");
    CHECK_INT(lr_dataset_hashes(d, 0, hashes), LR_EIO);
    CHECK_STR(text_of(d, 1, 0), "b");
    lr_dataset_close(d);
}

/* Pages that the file no longer has raise SIGBUS; the rest of its last page is zeros. */
TEST(a_file_cut_short_is_an_error)
{
    enum { ROWS = 2000, ROW = 28, KEPT = 4096 + 100 };
    static char text[ROWS * ROW + 1];
    for (int csv = 0; csv < 2; csv++) {
        size_t used = csv ? (size_t)snprintf(text, sizeof text, "text,score\n") : 0;
        for (int i = 0; i < ROWS - 1; i++)
            used += (size_t)snprintf(text + used, sizeof text - used,
                                     csv ? "t%05d0123456789,1\n" : "{\"text\":\"%05d\",\"score\":1}\n", i);
        lr_dataset *d;
        const char *path = write_in_folder(csv ? "cut.csv" : "cut.jsonl", text, used);
        CHECK_INT(open_two(&d, path, LR_BAD_ROW_ERROR, 0), LR_OK);
        const int64_t rows = lr_dataset_rows(d);
        CHECK_INT(rows, ROWS - 1);
        CHECK(text_of(d, rows - 1, 0) != NULL);
        CHECK(truncate(path, KEPT) == 0);
        char buf[32];
        int64_t size;
        CHECK(text_of(d, 0, 0) != NULL);
        for (int64_t row = KEPT / 28 + 1; row < KEPT / 14; row++)
            if (lr_dataset_text(d, row, 0, buf, sizeof buf, &size) == LR_OK)
                CHECK(memchr(buf, 0, (size_t)size) == NULL);
        CHECK_INT(lr_dataset_text(d, rows - 1, 0, buf, sizeof buf, &size), LR_EIO);
        CHECK_HAS(lr_last_error(),
                  csv ? "cut.csv was cut short while it was read" : "cut.jsonl was cut short while it was read");
        uint64_t hashes[ROWS];
        CHECK_INT(lr_dataset_hashes(d, 0, hashes), LR_EIO);
        CHECK_HAS(lr_last_error(), "was cut short");
        CHECK(lr_dataset_line(d, rows - 1) < 0);
        lr_dataset_close(d);
    }
}

/* `kill -BUS` ends the program as if it had no handler. */
TEST(a_bus_error_that_is_sent_is_no_cut_file)
{
    lr_dataset *d;
    CHECK_INT(open_two(&d, text_in_folder("sent.csv", "text,score\na,1\n"), LR_BAD_ROW_ERROR, 0), LR_OK);
    const pid_t child = fork();
    if (child == 0) {
        const struct rlimit none = {0, 0};
        (void)setrlimit(RLIMIT_CORE, &none);
        (void)kill(getpid(), SIGBUS);
        _exit(0);
    }
    int how = 0;
    CHECK(child > 0 && waitpid(child, &how, 0) == child);
    CHECK(!WIFEXITED(how) || WEXITSTATUS(how) != 0);
    CHECK_STR(text_of(d, 0, 0), "a");
    lr_dataset_close(d);
}

static atomic_bool cutting;

static void *cut_again_and_again(void *path)
{
    while (atomic_load(&cutting)) {
        (void)!truncate(path, 100);
        (void)!truncate(path, 1 << 20);
    }
    return NULL;
}

/* Never more than an error: the file is cut and grows again while it is opened. */
TEST(a_file_may_be_cut_while_it_is_opened)
{
    static char text[1 << 20];
    memset(text, ' ', sizeof text);
    memcpy(text, "{\"text\":\"a\",\"score\":1}\n", 23);
    const char *path = write_in_folder("cutting.jsonl", text, sizeof text);
    pthread_t thread;
    atomic_store(&cutting, true);
    CHECK_INT(pthread_create(&thread, NULL, cut_again_and_again, (void *)(uintptr_t)path), 0);
    for (int i = 0; i < 100; i++) {
        lr_dataset *d = NULL;
        const int status = open_two(&d, path, LR_BAD_ROW_ERROR, 0);
        CHECK((status == LR_OK) == (d != NULL));
        if (status == LR_OK)
            (void)text_of(d, 0, 0);
        else
            CHECK(strstr(lr_last_error(), "cutting.jsonl") != NULL);
        lr_dataset_close(d);
    }
    atomic_store(&cutting, false);
    (void)pthread_join(thread, NULL);
}

TEST(equal_texts_have_equal_hashes)
{
    lr_dataset *d;
    uint64_t h[8], c[3];
    const char *path = text_in_folder(
        "hash.jsonl", "{\"text\":\"abcdefghij\",\"score\":1}\n{\"text\":\"abc\\u0064efghij\",\"score\":1}\n"
                      "{\"text\":\"abcdefghi\",\"score\":1}\n{\"text\":\"abcdefghij\\u0000\",\"score\":1}\n"
                      "{\"text\":\"\",\"score\":1}\n{\"text\":\"\\u0000\",\"score\":1}\n"
                      "{\"text\":\"say \\\"x\\\"\",\"score\":1}\n{\"text\":\"bbcdefghij\",\"score\":1}\n");
    CHECK_INT(open_two(&d, path, LR_BAD_ROW_ERROR, 0), LR_OK);
    CHECK_INT(lr_dataset_hashes(d, 0, h), LR_OK);
    lr_dataset_close(d);
    CHECK(h[0] == h[1]);
    for (int i = 1; i < 8; i++)
        for (int k = i + 1; k < 8; k++)
            CHECK(h[i] != h[k]);
    CHECK_INT(open_two(&d, text_in_folder("hash.csv", "text,score\nabcdefghij,1\n,1\n\"say \"\"x\"\"\",1\n"), 0, 0),
              LR_OK);
    CHECK_INT(lr_dataset_hashes(d, 0, c), LR_OK); /* the format does not matter */
    lr_dataset_close(d);
    CHECK(c[0] == h[0] && c[1] == h[4] && c[2] == h[6]);
}

TEST(columns_can_be_peeked_at)
{
    char *names;
    int64_t count;
    const char *path =
        text_in_folder("peek.jsonl", "\nbad\n{\"a\":[{\"x\":1}],\"b\\u00e9\":\"}\",\"\":null}\n{\"c\":1}\n");
    CHECK_INT(lr_dataset_peek(path, &names, &count), LR_OK);
    CHECK_INT(count, 3);
    CHECK(memcmp(names, "a\0b\xC3\xA9\0\0", 6) == 0);
    lr_free(names);
    CHECK_INT(lr_dataset_peek(text_in_folder("peek.csv", "\n\"a \"\"b\"\"\",c\n1,2\n"), &names, &count), LR_OK);
    CHECK_INT(count, 2);
    CHECK(memcmp(names, "a \"b\"\0c\0", 8) == 0);
    lr_free(names);
    CHECK_INT(lr_dataset_peek(text_in_folder("peek.jsonl", "{}\n"), &names, &count), LR_OK);
    CHECK_INT(count, 0);
    lr_free(names);
    CHECK_INT(lr_dataset_peek(text_in_folder("peek.jsonl", "\nbad\nworse"), &names, &count), LR_EFORMAT);
    CHECK_HAS(lr_last_error(), "peek.jsonl:2: not valid JSON at byte 1");
    CHECK_INT(lr_dataset_peek(in_folder("missing"), &names, &count), LR_ENOTFOUND);
}

TEST_MAIN()
