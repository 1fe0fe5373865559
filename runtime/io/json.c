/* json.c: reading JSON, with jansson below.
 *
 * A node is jansson's json_t and a document owns the root, so reading costs no second tree. Members keep the order of
 * the file; a key that occurs twice is refused, because one of the two values would be lost in silence.
 *
 * jansson forgets to check some of its allocations and would return a shortened string. Its allocator hook therefore
 * notes every failure in a thread-local flag, and a parse during which the flag was raised is LR_ENOMEM whatever
 * jansson says. */
#include "io/json.h"
#include <jansson.h>
#include <pthread.h>
#include <string.h>

struct lr_json {
    json_t *root;
};

static _Thread_local bool ran_out;

static void *hook_alloc(size_t size)
{
    void *p = lr_alloc(size);
    if (p == NULL)
        ran_out = true;
    return p;
}

static void install_hooks(void)
{
    json_set_alloc_funcs(hook_alloc, lr_free);
}

void lr_json_use_allocator(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install_hooks);
}

static int out_of_memory(const char *name)
{
    return lr_fail(LR_ENOMEM, "out of host memory reading %s", name);
}

/* ---- integers beyond 64 bits
 * ------------------------------------------------------------------------------------------ tokenizer_config.json says
 * "model_max_length": 1000000000000000019884624838656. jansson refuses such an integer but reads the same digits
 * followed by ".0": rewrite them so, in a copy, when a text needs it. */
enum { INT64_DIGITS = 19 };

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static int widen_integers(const char *text, size_t size, char **out, size_t *out_size)
{
    char *copy = lr_alloc(size + size / INT64_DIGITS * 2 + 2); /* two more bytes for each run of that many digits */
    if (copy == NULL)
        return LR_ENOMEM;
    size_t used = 0;
    bool in_string = false;
    for (size_t i = 0; i < size;) {
        size_t end = i + 1;
        if (in_string) {
            if (text[i] == '\\' && end < size)
                end++;
            in_string = text[i] != '"';
        } else if (is_digit(text[i])) {
            while (end < size && is_digit(text[end]))
                end++;
        } else {
            in_string = text[i] == '"';
        }
        memcpy(copy + used, text + i, end - i);
        used += end - i;
        /* Digits after a point or an exponent belong to a number that is read as a double anyway. */
        const bool fraction = i > 0 && strchr(".eE+", text[i - 1]) != NULL;
        const bool exponent = i > 1 && text[i - 1] == '-' && strchr("eE", text[i - 2]) != NULL;
        const bool more = end < size && strchr(".eE", text[end]) != NULL;
        if (end - i >= INT64_DIGITS && !fraction && !exponent && !more) {
            memcpy(copy + used, ".0", 2);
            used += 2;
        }
        i = end;
    }
    *out = copy;
    *out_size = used;
    return LR_OK;
}

/* ---- parsing
 * ---------------------------------------------------------------------------------------------------------- */
enum { FLAGS = JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL };

int lr_json_parse(lr_json **out, const char *text, int64_t size, const char *name)
{
    lr_json_use_allocator();
    if (size < 0)
        return lr_fail(LR_EINVAL, "%s: a JSON text of %lld bytes", name, (long long)size);
    lr_json *doc = lr_calloc(1, sizeof *doc);
    if (doc == NULL)
        return LR_ENOMEM;
    json_error_t error = {0};
    ran_out = false;
    doc->root = json_loadb(text, (size_t)size, FLAGS, &error);
    if (doc->root == NULL && !ran_out && json_error_code(&error) == json_error_numeric_overflow) {
        char *widened;
        size_t widened_size;
        if (widen_integers(text, (size_t)size, &widened, &widened_size) != LR_OK) {
            lr_free(doc);
            return LR_ENOMEM;
        }
        doc->root = json_loadb(widened, widened_size, FLAGS, &error);
        lr_free(widened);
    }
    if (doc->root == NULL || ran_out) {
        json_decref(doc->root);
        lr_free(doc);
        return ran_out
                   ? out_of_memory(name)
                   : lr_fail(LR_EFORMAT, "%s:%d:%d: not valid JSON: %s", name, error.line, error.column, error.text);
    }
    *out = doc;
    return LR_OK;
}

void lr_json_free(lr_json *doc)
{
    if (doc == NULL)
        return;
    json_decref(doc->root);
    lr_free(doc);
}

/* ---- looking
 * ---------------------------------------------------------------------------------------------------------- */
static const lr_json_node *node_of(const json_t *json)
{
    return (const lr_json_node *)json;
}

static const json_t *json_of(const lr_json_node *node)
{
    return (const json_t *)node;
}

const lr_json_node *lr_json_root(const lr_json *doc)
{
    return node_of(doc->root);
}

void lr_json_value_of(const lr_json_node *node, lr_json_value *out)
{
    const json_t *json = json_of(node);
    *out = (lr_json_value){0};
    switch (json_typeof(json)) {
    case JSON_NULL:
        out->kind = LR_JSON_NULL;
        break;
    case JSON_FALSE:
        out->kind = LR_JSON_FALSE;
        break;
    case JSON_TRUE:
        out->kind = LR_JSON_TRUE;
        break;
    case JSON_INTEGER:
        out->kind = LR_JSON_NUMBER;
        out->integer = 1;
        out->number = (double)json_integer_value(json);
        break;
    case JSON_REAL:
        out->kind = LR_JSON_NUMBER;
        out->number = json_real_value(json);
        break;
    case JSON_STRING:
        out->kind = LR_JSON_STRING;
        out->string = json_string_value(json);
        out->length = (int64_t)json_string_length(json);
        break;
    case JSON_ARRAY:
        out->kind = LR_JSON_ARRAY;
        out->length = (int64_t)json_array_size(json);
        break;
    case JSON_OBJECT:
        out->kind = LR_JSON_OBJECT;
        out->length = (int64_t)json_object_size(json);
        break;
    }
}

const lr_json_node *lr_json_item(const lr_json_node *array, int64_t index)
{
    return index < 0 ? NULL : node_of(json_array_get(json_of(array), (size_t)index));
}

int lr_json_members(const lr_json_node *object, const char **keys, const lr_json_node **values)
{
    if (!json_is_object(json_of(object)))
        return lr_fail(LR_EINVAL, "this JSON value is no object");
    json_t *json = (json_t *)(uintptr_t)object; /* the iterator is not const, but only looks */
    size_t i = 0;
    for (void *at = json_object_iter(json); at != NULL; at = json_object_iter_next(json, at), i++) {
        keys[i] = json_object_iter_key(at);
        values[i] = node_of(json_object_iter_value(at));
    }
    return LR_OK;
}

/* ---- writing
 * ---------------------------------------------------------------------------------------------------------- */
char *lr_json_quote(const char *text, int *status)
{
    lr_json_use_allocator();
    ran_out = false;
    json_t *string = json_string(text);
    char *quoted = string == NULL ? NULL : json_dumps(string, JSON_ENCODE_ANY);
    json_decref(string);
    if (quoted != NULL && !ran_out)
        return quoted;
    lr_free(quoted);
    *status = ran_out ? out_of_memory("a name") : lr_fail(LR_EINVAL, "'%s' is not valid UTF-8", text);
    return NULL;
}
