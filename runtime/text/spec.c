/* spec.c: members of tokenizer.json's objects, with errors that name file and place: "x/tokenizer.json: at
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

static const char *kind_of(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        return "null";
    }
    return "unknown";
}

/* The member, or NULL with *status set: LR_OK where it may be missing. */
static const json_t *member(const lr_place *at, const json_t *object, const char *key, bool required, int *status)
{
    *status = LR_OK;
    if (!json_is_object(object)) {
        *status = lr_spec_bad(at, "expected an object, found %s", object == NULL ? "nothing" : kind_of(object));
        return NULL;
    }
    const json_t *value = json_object_get(object, key);
    if (value != NULL && (required || !json_is_null(value)))
        return value;
    if (required)
        *status = lr_spec_bad(at, "\"%s\" is missing", key);
    return NULL;
}

static int wrong_kind(const lr_place *at, const char *key, const char *expected, const json_t *value)
{
    return lr_spec_bad(&(lr_place){at, key, 0}, "expected %s, found %s", expected, kind_of(value));
}

int lr_spec_bool(const lr_place *at, const json_t *object, const char *key, bool required, bool *out)
{
    int status;
    const json_t *value = member(at, object, key, required, &status);
    if (value == NULL)
        return status;
    if (!json_is_boolean(value))
        return wrong_kind(at, key, "true or false", value);
    *out = json_is_true(value);
    return LR_OK;
}

int lr_spec_integer(const lr_place *at, const json_t *object, const char *key, bool required, int64_t low, int64_t high,
                    int64_t *out)
{
    int status;
    const json_t *value = member(at, object, key, required, &status);
    if (value == NULL)
        return status;
    if (!json_is_integer(value))
        return wrong_kind(at, key, "an integer", value);
    const int64_t n = json_integer_value(value);
    if (n < low || n > high)
        return lr_spec_bad(&(lr_place){at, key, 0}, "%lld is not within %lld and %lld", (long long)n, (long long)low,
                           (long long)high);
    *out = n;
    return LR_OK;
}

int lr_spec_string(const lr_place *at, const json_t *object, const char *key, bool required, const char **out,
                   size_t *size)
{
    int status;
    const json_t *value = member(at, object, key, required, &status);
    if (value == NULL)
        return status;
    if (!json_is_string(value))
        return wrong_kind(at, key, "a string", value);
    *out = json_string_value(value);
    if (size != NULL)
        *size = json_string_length(value);
    return LR_OK;
}

int lr_spec_array(const lr_place *at, const json_t *object, const char *key, const json_t **out)
{
    int status;
    const json_t *value = member(at, object, key, true, &status);
    if (value == NULL)
        return status;
    if (!json_is_array(value))
        return wrong_kind(at, key, "an array", value);
    *out = value;
    return LR_OK;
}

int lr_spec_object(const lr_place *at, const json_t *object, const char *key, const json_t **out)
{
    int status;
    const json_t *value = member(at, object, key, true, &status);
    if (value == NULL)
        return status;
    if (!json_is_object(value))
        return wrong_kind(at, key, "an object", value);
    *out = value;
    return LR_OK;
}

int lr_spec_type(const lr_place *at, const json_t *object, const char **out)
{
    return lr_spec_string(at, object, "type", true, out, NULL);
}

int lr_spec_pattern(const lr_place *at, const json_t *object, bool *is_regex, const char **text, size_t *size)
{
    const json_t *pattern = NULL;
    int status = lr_spec_object(at, object, "pattern", &pattern);
    if (status != LR_OK)
        return status;
    const lr_place here = {at, "pattern", 0};
    *is_regex = json_object_get(pattern, "Regex") != NULL;
    status = lr_spec_string(&here, pattern, *is_regex ? "Regex" : "String", true, text, size);
    if (status == LR_OK && *size == 0)
        return lr_spec_unsupported(&here, "an empty pattern");
    return status;
}
