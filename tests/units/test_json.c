/* test_json.c: the JSON reader in C: order, numbers of every size, errors with their place, allocations that fail. */
#include "core/hash.h"
#include "folder.h"
#include "io/json.h"

static int parse(lr_json **doc, const char *text)
{
    return lr_json_parse(doc, text, (int64_t)strlen(text), "f.json");
}

/* The only number in the text [x], with its integer flag. */
static lr_json_value number_of(const char *text)
{
    lr_json *doc;
    lr_json_value v = {0};
    CHECK_INT(parse(&doc, text), LR_OK);
    lr_json_value_of(lr_json_item(lr_json_root(doc), 0), &v);
    lr_json_free(doc);
    CHECK_INT(v.kind, LR_JSON_NUMBER);
    return v;
}

TEST(members_keep_their_order)
{
    lr_json *doc;
    lr_json_value v;
    const char *keys[4];
    const lr_json_node *values[4];
    CHECK_INT(parse(&doc, "{\"z\": null, \"a\": [true, false], \"m\": \"x\\u0000y\", \"b\": {}}"), LR_OK);
    lr_json_value_of(lr_json_root(doc), &v);
    CHECK_INT(v.kind, LR_JSON_OBJECT);
    CHECK_INT(v.length, 4);
    CHECK_INT(lr_json_members(lr_json_root(doc), keys, values), LR_OK);
    CHECK_STR(keys[0], "z");
    CHECK_STR(keys[1], "a");
    CHECK_STR(keys[2], "m");
    CHECK_STR(keys[3], "b");
    lr_json_value_of(values[0], &v);
    CHECK_INT(v.kind, LR_JSON_NULL);
    lr_json_value_of(values[1], &v);
    CHECK_INT(v.kind, LR_JSON_ARRAY);
    CHECK_INT(v.length, 2);
    lr_json_value_of(lr_json_item(values[1], 0), &v);
    CHECK_INT(v.kind, LR_JSON_TRUE);
    lr_json_value_of(lr_json_item(values[1], 1), &v);
    CHECK_INT(v.kind, LR_JSON_FALSE);
    CHECK(lr_json_item(values[1], 2) == NULL);
    CHECK(lr_json_item(values[1], -1) == NULL);
    lr_json_value_of(values[2], &v);
    CHECK_INT(v.length, 3);
    CHECK_INT(memcmp(v.string, "x\0y", 4), 0);
    CHECK_INT(lr_json_members(values[1], keys, values), LR_EINVAL);
    lr_json_free(doc);
}

TEST(numbers)
{
    CHECK(number_of("[0]").integer && number_of("[-7]").number == -7);
    CHECK(!number_of("[1.0]").integer && number_of("[1.5e3]").number == 1500);
    CHECK(number_of("[9223372036854775807]").integer);
    CHECK(number_of("[9223372036854775808]").integer);
    CHECK(number_of("[9223372036854775808]").number == 0x1p63);
    CHECK(number_of("[-1000000000000000019884624838656]").number == -1e30);
    CHECK(number_of("[1e300]").number == 1e300);
    /* A number beyond 64 bits changes nothing else. */
    CHECK(number_of("[7, 1000000000000000019884624838656]").integer);
    CHECK(number_of("[0.1000000000000000055511151231257827, 1000000000000000019884624838656]").number == 0.1);
    CHECK(number_of("[1e-0000000000000000000000005, 1000000000000000019884624838656]").number == 1e-5);
    CHECK(number_of("[12345678901234567890123.5, 1000000000000000019884624838656]").number ==
          12345678901234567890123.5);
}

/* The string in ["..."] must be `expected`. */
static void check_string(const char *text, const char *expected)
{
    lr_json *doc;
    lr_json_value v;
    CHECK_INT(parse(&doc, text), LR_OK);
    lr_json_value_of(lr_json_item(lr_json_root(doc), 0), &v);
    const bool equal =
        v.kind == LR_JSON_STRING && v.length == (int64_t)strlen(expected) && strcmp(v.string, expected) == 0;
    lr_json_free(doc);
    CHECK(equal);
}

TEST(strings)
{
    check_string("[\"\"]", "");
    check_string("[\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"]", "\"\\/\b\f\n\r\t");
    check_string("[\"\\u0041\\u00e9\\u20AC\\ud83d\\ude00\"]", "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
    check_string("[\"A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"]", "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
}

TEST(errors_name_the_place)
{
    static const struct {
        const char *text, *message;
    } BAD[] = {
        {"", "f.json is empty"},
        {"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n", "f.json is a git-lfs pointer"},
        {" \n ", "f.json:2:2: not valid JSON: the text ends"},
        {"{\"a\": 1,\n \"a\": 2}", "f.json:2:2: not valid JSON: the key 'a' occurs twice"},
        {"[1,\n2,\n]", "f.json:3:1: not valid JSON: ']' where a value is expected"},
        {"[1", "f.json:1:3: not valid JSON: the text ends where ',' or ']' is expected"},
        {"{\"a\":1", "f.json:1:7: not valid JSON: the text ends where ',' or '}' is expected"},
        {"[1] 2", "f.json:1:5: not valid JSON: '2' where the end is expected"},
        {"[NaN]", "f.json:1:2: not valid JSON: 'N' where a value is expected"},
        {"[nul]", "f.json:1:2"},
        {"[1e999]", "f.json:1:2: not valid JSON: a number beyond 1.8e308"},
        {"[\"a\xff\"]", "f.json:1:4: not valid JSON: bytes that are not UTF-8"},
        {"[\"\xc0\x80\"]", "not UTF-8"},
        {"[\"\xed\xa0\x80\"]", "not UTF-8"},
        {"[\"\xf4\x90\x80\x80\"]", "not UTF-8"},
        {"[\"\xe2\x82\"]", "not UTF-8"},
        {"[\"\\ud800\"]", "f.json:1:3: not valid JSON: half of a surrogate pair"},
        {"[\"\\ud800\\u0041\"]", "half of a surrogate pair"},
        {"[\"\\udc00\"]", "half of a surrogate pair"},
        {"[\"\\u12g4\"]", "begins no escape sequence"},
        {"[\"\\x\"]", "begins no escape sequence"},
        {"[\"\\u12\"]", "begins no escape sequence"},
        {"[\"a\tb\"]", "f.json:1:4: not valid JSON: a control character"},
        {"[\"abc", "f.json:1:2: not valid JSON: a string without its closing quote"},
        {"[\"abc\\\"", "a string without its closing quote"},
        {"[01]", "f.json:1:2: not valid JSON: a number that begins with 0"},
        {"[-]", "f.json:1:3: not valid JSON: ']' where a digit is expected"},
        {"[1.]", "f.json:1:4"},
        {"[.5]", "f.json:1:2"},
        {"[1e+]", "f.json:1:5"},
        {"[+1]", "f.json:1:2"},
        {"['a']", "f.json:1:2"},
        {"{a:1}", "f.json:1:2: not valid JSON: 'a' where a key in double quotes is expected"},
        {"{\"a\" 1}", "f.json:1:6: not valid JSON: '1' where ':' is expected"},
        {"{\"a\\u0000\":1}", "a key with a NUL"},
        {"{\"a\":1,}", "f.json:1:8"},
        {"\xef\xbb\xbf[]", "f.json: not valid JSON: it begins with a byte order mark"},
    };
    lr_json *doc;
    for (size_t i = 0; i < LR_COUNT_OF(BAD); i++) {
        CHECK_INT(parse(&doc, BAD[i].text), LR_EFORMAT);
        CHECK_HAS(lr_last_error(), BAD[i].message);
    }
    CHECK_INT(lr_json_parse(&doc, "[]", -1, "f.json"), LR_EINVAL);
}

/* The text of an object with n members "k0": 0, "k1": 1 ..., the last key being `last`. */
static char *object_text(int n, const char *last)
{
    char *text = lr_alloc((size_t)n * 24 + 24), *out = text;
    CHECK(text != NULL);
    *out++ = '{';
    for (int i = 0; i < n - 1; i++)
        out += sprintf(out, "\"k%d\": %d, ", i, i);
    sprintf(out, "\"%s\": %d}", last, n - 1);
    return text;
}

TEST(objects_of_every_size_refuse_a_second_key)
{
    for (int n = 2; n < 3000; n = n < 70 ? n + 1 : n * 3) {
        lr_json *doc;
        lr_json_value v;
        char *text = object_text(n, "other");
        int status = parse(&doc, text);
        lr_free(text);
        CHECK_INT(status, LR_OK);
        lr_json_value_of(lr_json_root(doc), &v);
        lr_json_free(doc);
        CHECK_INT(v.length, n);
        text = object_text(n, "k0");
        status = parse(&doc, text);
        lr_free(text);
        CHECK_INT(status, LR_EFORMAT);
        CHECK_HAS(lr_last_error(), "the key 'k0' occurs twice");
    }
}

/* Python's json keeps the last value of a key, at the place of the first one. */
TEST(python_takes_the_last_of_equal_keys)
{
    for (int n = 3; n < 3000; n = n < 40 ? n + 1 : n * 3) {
        lr_json *doc;
        lr_json_value v;
        const char *key = NULL;
        char *text = object_text(n, "k1");
        const int status = lr_json_parse_python(&doc, text, (int64_t)strlen(text), "f.json");
        lr_free(text);
        CHECK_INT(status, LR_OK);
        const lr_json_node *root = lr_json_root(doc);
        lr_json_value_of(root, &v);
        CHECK_INT(v.length, n - 1);
        lr_json_value_of(lr_json_member(root, 1, &key), &v);
        CHECK_STR(key, "k1");
        CHECK(v.number == n - 1);
        lr_json_member(root, n - 2, &key);
        CHECK(n == 3 || strcmp(key, "k1") != 0);
        lr_json_free(doc);
    }
}

/* Texts with bytes changed, cut or doubled: an error or a document, never a crash (the sanitizers watch). */
TEST(mutations)
{
    static const char SEED[] =
        "{\"a\": [1, -2.5e3, true, null, \"t\\u00e9\\ud83d\\ude00\xc3\xa9\"], \"b\": {\"c\": {}, \"d\": []}}";
    static const char BYTES[] = "{}[]\",:\\u0e-.\xff\xc3\0 9";
    uint64_t random = 12345;
    int good = 0, bad = 0;
    for (int round = 0; round < 20000; round++) {
        char text[sizeof SEED + 8];
        size_t size = sizeof SEED - 1;
        memcpy(text, SEED, size);
        for (int change = 0; change < 1 + round % 3; change++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            const size_t at = (size_t)(random >> 33) % size, kind = (size_t)(random >> 20) % 3;
            if (kind == 0) {
                text[at] = BYTES[(random >> 50) % (sizeof BYTES - 1)];
            } else if (kind == 1) {
                size = at + 1;
            } else if (size < sizeof text) {
                memmove(text + at + 1, text + at, size - at);
                size++;
            }
        }
        char *exact = lr_alloc(size); /* so that a sanitizer sees a read past the end */
        CHECK(exact != NULL);
        memcpy(exact, text, size);
        lr_json *doc;
        const int status = lr_json_parse(&doc, exact, (int64_t)size, "f.json");
        lr_free(exact);
        if (status == LR_OK)
            lr_json_free(doc);
        status == LR_OK ? good++ : bad++;
        CHECK(status == LR_OK || status == LR_EFORMAT);
    }
    CHECK(good > 100 && bad > 1000);
}

TEST(nesting_is_bounded)
{
    enum { DEPTH = 100000 };
    char *text = lr_alloc(DEPTH);
    CHECK(text != NULL);
    memset(text, '[', DEPTH);
    lr_json *doc;
    const int status = lr_json_parse(&doc, text, DEPTH, "f.json");
    lr_free(text);
    CHECK_INT(status, LR_EFORMAT);
    CHECK_HAS(lr_last_error(), "f.json:1:1001: not valid JSON: nested more than 1000 levels");
}

TEST(quoting)
{
    int status = LR_OK;
    char *quoted = lr_json_quote("a\"\\\n\x01/\xc3\xa9", 8, &status);
    CHECK_STR(quoted, "\"a\\\"\\\\\\n\\u0001/\xc3\xa9\"");
    lr_free(quoted);
    CHECK(lr_json_quote("\xff", 1, &status) == NULL);
    CHECK_INT(status, LR_EINVAL);
}

static int parse_only(const char *text)
{
    lr_json *doc;
    const int status = parse(&doc, text);
    if (status == LR_OK)
        lr_json_free(doc);
    return status;
}

static int quote_only(const char *text)
{
    int status = LR_OK;
    lr_free(lr_json_quote(text, strlen(text), &status));
    return status;
}

TEST(every_allocation_may_fail)
{
    FAIL_EACH_ALLOCATION(
        parse_only("{\"a\": [1, 2.5, true, null, \"text\"], \"b\": {\"c\": {}}, \"long key, longer than a buffer\": 1,"
                   "\"d\": 1000000000000000019884624838656, \"e\": [[[[\"\\u00e9\"]]]]}"));
    FAIL_EACH_ALLOCATION(quote_only("a name that needs \"quotes\" and more room than sixteen bytes"));
}

/* ---- the hash of keys ------------------------------------------------------------------------------------------------- */
/* Keys that collide under a known hash, FNV-1a, do not collide here. */
TEST(keys_cannot_be_made_to_collide)
{
    enum { KEYS = 64 };
    char text[KEYS * 24] = "{", key[16];
    size_t used = 1;
    int found = 0, together = 0;
    uint64_t first = 0;
    for (unsigned n = 0; found < KEYS; n++) {
        const int size = snprintf(key, sizeof key, "k%u", n);
        uint64_t known = 0xcbf29ce484222325u;
        for (int i = 0; i < size; i++)
            known = (known ^ (unsigned char)key[i]) * 0x100000001b3u;
        if (((known ^ known >> 32) & 0xfff) != 0)
            continue;
        const uint64_t ours = lr_hash_more(LR_HASH_START, key, (size_t)size) & 0xfff;
        first = found == 0 ? ours : first;
        together += ours == first;
        used += (size_t)snprintf(text + used, sizeof text - used, "%s\"%s\": 1", found > 0 ? "," : "", key);
        found++;
    }
    used += (size_t)snprintf(text + used, sizeof text - used, "}");
    CHECK(together < 8);
    lr_json *doc = NULL;
    CHECK_INT(lr_json_parse(&doc, text, (int64_t)used, "keys"), LR_OK);
    lr_json_free(doc);
}

TEST(the_hash_differs_from_process_to_process)
{
    if (getenv("PRINT_SECRET") != NULL) {
        printf("secret %llx %llx\n", (unsigned long long)lr_hash_secret.start,
               (unsigned long long)lr_hash_secret.factor);
        return;
    }
    char command[128], line[128];
    unsigned long long start = 0, factor = 0;
    (void)snprintf(command, sizeof command, "PRINT_SECRET=1 /proc/%d/exe the_hash_differs", (int)getpid());
    FILE *other = popen(command, "r");
    CHECK(other != NULL);
    while (fgets(line, sizeof line, other) != NULL)
        (void)sscanf(line, "secret %llx %llx", &start, &factor);
    CHECK_INT(pclose(other), 0);
    CHECK(factor != 0 && factor % 2 == 1);
    CHECK(start != lr_hash_secret.start && factor != lr_hash_secret.factor);
    CHECK_INT(
        (int)(lr_hash_more(lr_hash_more(LR_HASH_START, "a", 1), "bc", 2) != lr_hash_more(LR_HASH_START, "abc", 3)), 0);
}

TEST_MAIN()
