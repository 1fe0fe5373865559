/* JSON: a document that is parsed can be walked, every member is found by its key, and lr_json_quote gives back the same
 * strings. What the strict reader accepts, the one that reads like Python accepts too. */
#include "fuzz.h"
#include "io/json.h"

enum { LOOKED_UP = 20 }; /* members to look up: each look-up walks over all of them */

static void check_string(const lr_json_value *v)
{
    MUST(v->string[v->length] == 0);
    int status = LR_OK;
    char *quoted = lr_json_quote(v->string, (size_t)v->length, &status);
    MUST(quoted != NULL);
    lr_json *doc = NULL;
    MUST(lr_json_parse(&doc, quoted, (int64_t)strlen(quoted), "quoted") == LR_OK);
    lr_json_value again;
    lr_json_value_of(lr_json_root(doc), &again);
    MUST(again.kind == LR_JSON_STRING && again.length == v->length &&
         memcmp(again.string, v->string, (size_t)v->length) == 0);
    lr_json_free(doc);
    lr_free(quoted);
}

static void walk(const lr_json_node *node)
{
    lr_json_value v;
    lr_json_value_of(node, &v);
    if (v.kind == LR_JSON_STRING)
        check_string(&v);
    for (int64_t i = 0; v.kind == LR_JSON_ARRAY && i < v.length; i++)
        walk(lr_json_item(node, i));
    MUST(v.kind != LR_JSON_ARRAY || lr_json_item(node, v.length) == NULL);
    for (int64_t i = 0; v.kind == LR_JSON_OBJECT && i < v.length; i++) {
        const char *key = NULL;
        const lr_json_node *value = lr_json_member(node, i, &key);
        MUST(value != NULL && (i >= LOOKED_UP || lr_json_get(node, key) != NULL));
        walk(value);
    }
}

typedef int parse(lr_json **out, const char *text, int64_t size, const char *name);

static bool try(parse *parse, const uint8_t *data, size_t size)
{
    const int64_t before = fuzz_objects();
    char *text = fuzz_copy(data, size);
    lr_json *doc = NULL;
    const bool ok = parse(&doc, text, (int64_t)size, "input") == LR_OK;
    free(text); /* the document must not need it */
    MUST(ok == (doc != NULL));
    if (ok)
        walk(lr_json_root(doc));
    lr_json_free(doc);
    MUST(fuzz_objects() == before);
    return ok;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const bool strict = try(lr_json_parse, data, size), python = try(lr_json_parse_python, data, size);
    MUST(python || !strict);
    return 0;
}
