/* spec.c: reads members of tokenizer.json's objects. Errors name the file and the place in it: "x/tokenizer.json: at
 * pre_tokenizer.pretokenizers[1].behavior: ...". */
#include "text/text.h"
#include <stdio.h>
#include <string.h>

enum { PLACE_SIZE = 256, MESSAGE_SIZE = 1024 };

/* Writes the place without the file; returns the file. */
static const char *describe(const lr_place *at, char *buf, size_t *used)
{
    if (at->up == NULL)
        return at->key;
    const char *file = describe(at->up, buf, used);
    const size_t room = PLACE_SIZE - *used;
    const int n = at->key == NULL ? snprintf(buf + *used, room, "[%zu]", at->index)
                                  : snprintf(buf + *used, room, "%s%.60s", *used > 0 ? "." : "", at->key);
    *used = (size_t)n < room ? *used + (size_t)n : PLACE_SIZE - 1;
    return file;
}

char *lr_spec_describe(const lr_place *at)
{
    char place[PLACE_SIZE] = "";
    size_t used = 0;
    const char *file = describe(at, place, &used);
    return lr_format("%s: at %s", file, place);
}

static int fail_at(int status, const lr_place *at, const char *fmt, va_list args)
{
    char place[PLACE_SIZE] = "", message[MESSAGE_SIZE];
    size_t used = 0;
    vsnprintf(message, sizeof message, fmt, args);
    const char *file = describe(at, place, &used);
    return used > 0 ? lr_fail(status, "%s: at %s: %s", file, place, message) : lr_fail(status, "%s: %s", file, message);
}

int lr_spec_bad(const lr_place *at, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    const int status = fail_at(LR_EFORMAT, at, fmt, args);
    va_end(args);
    return status;
}

int lr_spec_unsupported(const lr_place *at, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    const int status = fail_at(LR_EUNSUPPORTED, at, fmt, args);
    va_end(args);
    return status;
}

/* ---- values --------------------------------------------------------------------------------------------------------- */
lr_json_value lr_spec_value(const lr_json_node *node)
{
    lr_json_value value = {.kind = LR_JSON_NULL};
    if (node != NULL)
        lr_json_value_of(node, &value);
    return value;
}

size_t lr_spec_length(const lr_json_node *node)
{
    return (size_t)lr_spec_value(node).length;
}

const lr_json_node *lr_spec_item(const lr_json_node *array, size_t index)
{
    return array == NULL ? NULL : lr_json_item(array, (int64_t)index);
}

const lr_json_node *lr_spec_find(const lr_json_node *object, const char *key)
{
    const lr_json_node *value = object == NULL ? NULL : lr_json_get(object, key);
    return lr_spec_value(value).kind == LR_JSON_NULL ? NULL : value;
}

/* ---- members -------------------------------------------------------------------------------------------------------- */
/* The member, of the given lr_json_kind, or NULL with *status set; that is LR_OK if it is missing and not required. */
static const lr_json_node *member(const lr_place *at, const lr_json_node *object, const char *key, bool required,
                                  int kind, int *status)
{
    static const char *const kinds[] = {"null", "false", "true", "a number", "a string", "an array", "an object"};
    *status = LR_OK;
    const int found = lr_spec_value(object).kind;
    if (found != LR_JSON_OBJECT) {
        *status = lr_spec_bad(at, "expected an object, found %s", kinds[found]);
        return NULL;
    }
    const lr_json_node *value = lr_json_get(object, key);
    if (value == NULL || (!required && lr_spec_value(value).kind == LR_JSON_NULL)) {
        if (required)
            *status = lr_spec_bad(at, "\"%s\" is missing", key);
        return NULL;
    }
    const int is = lr_spec_value(value).kind;
    if (is == kind || (kind == LR_JSON_TRUE && is == LR_JSON_FALSE))
        return value;
    *status = lr_spec_bad(&(lr_place){at, key, 0}, "expected %s, found %s",
                          kind == LR_JSON_TRUE ? "true or false" : kinds[kind], kinds[is]);
    return NULL;
}

int lr_spec_bool(const lr_place *at, const lr_json_node *object, const char *key, bool required, bool *out)
{
    int status;
    const lr_json_node *value = member(at, object, key, required, LR_JSON_TRUE, &status);
    if (value != NULL)
        *out = lr_spec_value(value).kind == LR_JSON_TRUE;
    return status;
}

int lr_spec_integer(const lr_place *at, const lr_json_node *object, const char *key, bool required, int64_t low,
                    int64_t high, int64_t *out)
{
    int status;
    const lr_json_node *node = member(at, object, key, required, LR_JSON_NUMBER, &status);
    if (node == NULL)
        return status;
    const lr_json_value value = lr_spec_value(node);
    if (!value.integer || value.number < (double)low || value.number > (double)high)
        return lr_spec_bad(&(lr_place){at, key, 0}, "%.17g is not an integer from %lld to %lld", value.number,
                           (long long)low, (long long)high);
    *out = (int64_t)value.number;
    return LR_OK;
}

int lr_spec_string(const lr_place *at, const lr_json_node *object, const char *key, bool required, const char **out,
                   size_t *size)
{
    int status;
    const lr_json_node *value = member(at, object, key, required, LR_JSON_STRING, &status);
    if (value == NULL)
        return status;
    *out = lr_spec_value(value).string;
    if (size != NULL)
        *size = lr_spec_length(value);
    return LR_OK;
}

int lr_spec_array(const lr_place *at, const lr_json_node *object, const char *key, const lr_json_node **out)
{
    int status;
    *out = member(at, object, key, true, LR_JSON_ARRAY, &status);
    return status;
}

int lr_spec_object(const lr_place *at, const lr_json_node *object, const char *key, const lr_json_node **out)
{
    int status;
    *out = member(at, object, key, true, LR_JSON_OBJECT, &status);
    return status;
}

static bool has_keys(const lr_json_node *object, const lr_spec_kind *kind)
{
    size_t k = 0;
    while (k < LR_COUNT_OF(kind->keys) && kind->keys[k] != NULL && lr_json_get(object, kind->keys[k]) != NULL)
        k++;
    return k > 0 && (k == LR_COUNT_OF(kind->keys) || kind->keys[k] == NULL);
}

static int refuse_kind(const lr_place *at, const lr_spec_kind *const *table, size_t count, const char *what,
                       const char *type)
{
    char supported[MESSAGE_SIZE / 2] = "";
    size_t used = 0;
    for (size_t i = 0; i < count && used < sizeof supported; i++)
        if (!table[i]->refused)
            used += (size_t)snprintf(supported + used, sizeof supported - used, "%s%s", used > 0 ? ", " : "",
                                     table[i]->type);
    return lr_spec_unsupported(at, "the %s \"%.60s\" is not supported, only %s", what, type, supported);
}

int lr_spec_kind_of(const lr_place *at, const lr_json_node *object, const lr_spec_kind *const *table, size_t count,
                    const char *what, const lr_spec_kind **out)
{
    const char *type = NULL;
    const int status = lr_spec_string(at, object, "type", false, &type, NULL);
    if (status != LR_OK)
        return status;
    if (type == NULL && lr_json_get(object, "type") != NULL)
        return lr_spec_bad(&(lr_place){at, "type", 0}, "expected a string, found null");
    for (size_t i = 0; i < count; i++)
        if (type != NULL ? strcmp(type, table[i]->type) == 0 : has_keys(object, table[i])) {
            if (table[i]->refused)
                return refuse_kind(at, table, count, what, table[i]->type);
            *out = table[i];
            return LR_OK;
        }
    return type != NULL ? refuse_kind(at, table, count, what, type)
                        : lr_spec_bad(at, "\"type\" is missing, and the keys are those of no type");
}

int lr_spec_each(const lr_place *at, const lr_json_node *object, const char *key,
                 int (*load)(void *whole, const lr_place *at, const lr_json_node *spec), void *whole)
{
    const lr_json_node *parts = NULL;
    int status = lr_spec_array(at, object, key, &parts);
    const lr_place here = {at, key, 0};
    for (size_t i = 0; status == LR_OK && i < lr_spec_length(parts); i++)
        status = load(whole, &(lr_place){&here, NULL, i}, lr_spec_item(parts, i));
    return status;
}

int lr_spec_depth(const lr_place *at)
{
    int depth = 0;
    for (const lr_place *p = at; p != NULL; p = p->up)
        depth += p->key == NULL; /* one index for each Sequence */
    return depth <= LR_TEXT_DEPTH
               ? LR_OK
               : lr_spec_unsupported(at, "Sequences nested more than %d deep are not supported", LR_TEXT_DEPTH);
}

int lr_spec_id(const lr_place *at, const lr_json_node *node, int32_t *id)
{
    const lr_json_value value = lr_spec_value(node);
    if (value.kind != LR_JSON_NUMBER || !value.integer || value.number < 0 || value.number >= LR_TOKEN_ID_LIMIT)
        return lr_spec_bad(at, "expected a token id, an integer from 0 to %d", LR_TOKEN_ID_LIMIT - 1);
    *id = (int32_t)value.number;
    return LR_OK;
}

int lr_spec_pattern(const lr_place *at, const lr_json_node *object, bool *is_regex, const char **text, size_t *size)
{
    const lr_json_node *pattern = NULL;
    int status = lr_spec_object(at, object, "pattern", &pattern);
    if (status != LR_OK)
        return status;
    const lr_place here = {at, "pattern", 0};
    *is_regex = lr_json_get(pattern, "Regex") != NULL;
    status = lr_spec_string(&here, pattern, *is_regex ? "Regex" : "String", true, text, size);
    if (status == LR_OK && *size == 0)
        return lr_spec_unsupported(&here, "an empty pattern");
    if (status == LR_OK && *size > LR_TEXT_PATTERN_BYTES)
        return lr_spec_unsupported(&here, "a pattern of %zu bytes; at most %d are supported", *size,
                                   LR_TEXT_PATTERN_BYTES);
    return status;
}
