/* safetensors_write.c: writing safetensors files, byte for byte as the reference implementation writes the same tensors in the same
 * order. (That one sorts by dtype, then name; here the caller decides.)
 *
 * The header has the place of every tensor, so all are declared before the first byte of data is written. The file appears under
 * its name only when finish() has seen that every declared tensor was written. */
#include "core/tensor.h"
#include "io/file.h"
#include "io/json.h"
#include "io/safetensors.h"
#include <stdio.h>
#include <string.h>

typedef struct declared {
    char *name;
    const lr_safetensors_dtype *dtype;
    int64_t shape[LR_SAFETENSORS_MAX_DIMS];
    int64_t elements, bytes;
    int ndim;
} declared;

struct lr_safetensors_writer {
    lr_atomic file;
    char *path, *metadata;
    declared *entries;
    size_t count, capacity;
    size_t next;  /* the entry whose data comes next */
    bool started; /* the header is written */
    bool broken;  /* a write failed: nothing after it would be in its place */
};

/* A text that grows. */
typedef struct text {
    void *data;
    size_t used, capacity;
} text;

static int text_add(text *t, const char *s)
{
    const size_t n = strlen(s);
    const int status = lr_reserve(&t->data, &t->capacity, t->used + n, 1);
    if (status == LR_OK) {
        memcpy((char *)t->data + t->used, s, n);
        t->used += n;
    }
    return status;
}

/* ---- declaring ------------------------------------------------------------------------------------------------------ */
/* Append a string as JSON. */
static int add_quoted(text *t, const char *string, size_t size)
{
    int status = LR_OK;
    char *quoted = lr_json_quote(string, size, &status);
    if (quoted != NULL)
        status = text_add(t, quoted);
    lr_free(quoted);
    return status;
}

/* The metadata as the header has it: the members of an object of strings, without spaces. */
static int add_metadata(text *t, const lr_json_node *root, const char *path)
{
    lr_json_value v;
    lr_json_value_of(root, &v);
    if (v.kind != LR_JSON_OBJECT)
        return lr_fail(LR_EINVAL, "%s: its metadata is no JSON object", path);
    int status = LR_OK;
    const int64_t count = v.length;
    for (int64_t i = 0; status == LR_OK && i < count; i++) {
        const char *key;
        lr_json_value_of(lr_json_member(root, i, &key), &v);
        if (v.kind != LR_JSON_STRING)
            status = lr_fail(LR_EINVAL, "%s: metadata '%s' is no string", path, key);
        if (status == LR_OK)
            status = text_add(t, i == 0 ? "{" : ",");
        if (status == LR_OK)
            status = add_quoted(t, key, strlen(key));
        if (status == LR_OK)
            status = text_add(t, ":");
        if (status == LR_OK)
            status = add_quoted(t, v.string, (size_t)v.length);
    }
    return status == LR_OK ? text_add(t, count == 0 ? "{}" : "}") : status;
}

static int take_metadata(lr_safetensors_writer *w, const char *metadata)
{
    lr_json *doc;
    int status = lr_json_parse(&doc, metadata, (int64_t)strlen(metadata), "metadata");
    if (status != LR_OK)
        return status;
    text t = {0};
    status = add_metadata(&t, lr_json_root(doc), w->path);
    if (status == LR_OK && (w->metadata = lr_strndup(t.data, t.used)) == NULL)
        status = LR_ENOMEM;
    lr_free(t.data);
    lr_json_free(doc);
    return status;
}

int lr_safetensors_create(lr_safetensors_writer **out, const char *path, const char *metadata)
{
    lr_safetensors_writer *w = lr_calloc(1, sizeof *w);
    if (w == NULL)
        return LR_ENOMEM;
    w->path = lr_strdup(path);
    int status = w->path == NULL ? LR_ENOMEM : LR_OK;
    if (status == LR_OK && metadata != NULL)
        status = take_metadata(w, metadata);
    if (status == LR_OK)
        status = lr_atomic_open(&w->file, path);
    if (status != LR_OK) {
        lr_safetensors_writer_free(w);
        return status;
    }
    *out = w;
    return LR_OK;
}

void lr_safetensors_writer_free(lr_safetensors_writer *w)
{
    if (w == NULL)
        return;
    lr_atomic_abandon(&w->file);
    for (size_t i = 0; i < w->count; i++)
        lr_free(w->entries[i].name);
    lr_free(w->entries);
    lr_free(w->metadata);
    lr_free(w->path);
    lr_free(w);
}

static const declared *find(const lr_safetensors_writer *w, const char *name)
{
    for (size_t i = 0; i < w->count; i++)
        if (strcmp(w->entries[i].name, name) == 0)
            return &w->entries[i];
    return NULL;
}

int lr_safetensors_declare(lr_safetensors_writer *w, const char *name, int dtype, int ndim, const int64_t *shape)
{
    if (w->started)
        return lr_fail(LR_EINVAL, "%s: tensor '%s' is declared after the first was written", w->path, name);
    if (strcmp(name, LR_SAFETENSORS_METADATA) == 0 || find(w, name) != NULL)
        return lr_fail(LR_EINVAL, "%s: tensor '%s' %s", w->path, name,
                       find(w, name) != NULL ? "is declared twice" : "has a reserved name");
    declared d = {.dtype = lr_safetensors_dtype_of(dtype), .ndim = ndim};
    if (d.dtype == NULL)
        return lr_fail(LR_EDTYPE, "%s: tensor '%s': there is no dtype number %d", w->path, name, dtype);
    if (ndim < 0 || ndim > LR_SAFETENSORS_MAX_DIMS)
        return lr_fail(LR_ESHAPE, "%s: tensor '%s' has %d dimensions, at most %d are supported", w->path, name, ndim,
                       LR_SAFETENSORS_MAX_DIMS);
    for (int i = 0; i < ndim; i++) {
        d.shape[i] = shape[i];
        if (shape[i] < 1)
            return lr_fail(LR_ESHAPE, "%s: tensor '%s': dimension %d is %lld; every dimension must be at least 1",
                           w->path, name, i + 1, (long long)shape[i]);
    }
    d.bytes = lr_safetensors_bytes(d.dtype, ndim, d.shape);
    if (d.bytes < 0)
        return lr_fail(LR_ESHAPE, "%s: tensor '%s' has more elements than can be counted", w->path, name);
    d.elements = d.bytes * 8 / d.dtype->bits;
    void *grown = w->entries;
    const int status = lr_reserve(&grown, &w->capacity, w->count + 1, sizeof *w->entries);
    w->entries = grown;
    if (status != LR_OK || (d.name = lr_strdup(name)) == NULL)
        return LR_ENOMEM;
    w->entries[w->count++] = d;
    return LR_OK;
}

/* ---- writing -------------------------------------------------------------------------------------------------------- */
static int header_entry(text *t, const declared *d, int64_t begin)
{
    char number[64];
    int status = add_quoted(t, d->name, strlen(d->name));
    if (status == LR_OK)
        status = text_add(t, ":{\"dtype\":\"");
    if (status == LR_OK)
        status = text_add(t, d->dtype->name);
    if (status == LR_OK)
        status = text_add(t, "\",\"shape\":[");
    for (int i = 0; i < d->ndim && status == LR_OK; i++) {
        snprintf(number, sizeof number, i > 0 ? ",%lld" : "%lld", (long long)d->shape[i]);
        status = text_add(t, number);
    }
    snprintf(number, sizeof number, "],\"data_offsets\":[%lld,%lld]}", (long long)begin, (long long)(begin + d->bytes));
    return status == LR_OK ? text_add(t, number) : status;
}

static int build_header(const lr_safetensors_writer *w, text *t)
{
    int64_t begin = 0;
    int status = text_add(t, "{");
    if (status == LR_OK && w->metadata != NULL)
        status = text_add(t, "\"" LR_SAFETENSORS_METADATA "\":");
    if (status == LR_OK && w->metadata != NULL)
        status = text_add(t, w->metadata);
    for (size_t i = 0; i < w->count && status == LR_OK; i++) {
        if (i > 0 || w->metadata != NULL)
            status = text_add(t, ",");
        if (status == LR_OK)
            status = header_entry(t, &w->entries[i], begin);
        begin += w->entries[i].bytes;
    }
    if (status == LR_OK)
        status = text_add(t, "}");
    while (status == LR_OK && t->used % 8 != 0)
        status = text_add(t, " ");
    if (status == LR_OK && t->used > LR_SAFETENSORS_MAX_HEADER)
        status = lr_fail(LR_EINVAL, "%s: a header of %zu bytes; the format's limit is %d", w->path, t->used,
                         LR_SAFETENSORS_MAX_HEADER);
    return status;
}

static int put(lr_safetensors_writer *w, const void *data, size_t size)
{
    const int status = lr_atomic_write(&w->file, data, size);
    w->broken = w->broken || status != LR_OK;
    return status;
}

static int write_header(lr_safetensors_writer *w)
{
    text t = {0};
    int status = build_header(w, &t);
    if (status == LR_OK) {
        const uint64_t length = t.used;
        status = put(w, &length, sizeof length);
        if (status == LR_OK)
            status = put(w, t.data, t.used);
        w->started = status == LR_OK;
    }
    lr_free(t.data);
    return status;
}

static int write_values(lr_safetensors_writer *w, const lr_tensor *t, int dtype)
{
    const size_t source_size = lr_dtype_size(t->dtype), size = lr_dtype_size(dtype);
    if (t->dtype == dtype && lr_tensor_contiguous(t) && t->device == LR_CPU)
        return put(w, t->data, (size_t)t->elements * size);
    char *source = lr_alloc((size_t)lr_min64(t->elements, LR_SAFETENSORS_CHUNK) * (source_size + size));
    if (source == NULL)
        return LR_ENOMEM;
    char *converted = source + (size_t)lr_min64(t->elements, LR_SAFETENSORS_CHUNK) * source_size;
    int status = LR_OK;
    for (int64_t at = 0; at < t->elements && status == LR_OK; at += LR_SAFETENSORS_CHUNK) {
        const int64_t n = lr_min64(LR_SAFETENSORS_CHUNK, t->elements - at);
        status = lr_tensor_read(t, at, n, source);
        if (status == LR_OK)
            status = lr_convert(converted, dtype, source, t->dtype, n);
        if (status == LR_OK)
            status = put(w, converted, (size_t)n * size);
    }
    lr_free(source);
    return status;
}

/* Is tensor `name` the next one to write, and can t be its values? */
static int check_turn(const lr_safetensors_writer *w, const char *name, const lr_tensor *t)
{
    char shape[96];
    const declared *d = w->next < w->count ? &w->entries[w->next] : NULL;
    if (w->broken)
        return lr_fail(LR_EIO, "%s: tensor '%s': writing failed before; free the writer and begin again", w->path,
                       name);
    if (find(w, name) == NULL)
        return lr_fail(LR_EINVAL, "%s: tensor '%s' was not declared", w->path, name);
    if (d == NULL || strcmp(d->name, name) != 0)
        return lr_fail(LR_EINVAL, "%s: tensor '%s' is out of order: %s%s%s", w->path, name, d != NULL ? "'" : "",
                       d != NULL ? d->name : "all", d != NULL ? "' comes next" : " are written");
    if (t->storage == NULL)
        return lr_fail(LR_EFREED, "%s: tensor '%s': its values '%s' were freed", w->path, name, t->name);
    if (t->packing != NULL || t->device == LR_META)
        return lr_fail(LR_EUNSUPPORTED, "%s: tensor '%s': '%s' %s", w->path, name, t->name,
                       t->packing != NULL ? "is a packed weight" : "is on the meta device and has no values");
    if (d->elements != t->elements)
        return lr_fail(LR_ESHAPE, "%s: tensor '%s' was declared with %lld elements, but '%s' %s has %lld", w->path,
                       name, (long long)d->elements, t->name, lr_shape_text(t, shape), (long long)t->elements);
    if (!lr_safetensors_convertible(t->dtype, d->dtype->dtype))
        return lr_fail(LR_EDTYPE, "%s: tensor '%s' was declared as %s and cannot take %s", w->path, name,
                       d->dtype->name, lr_dtype_name(t->dtype));
    return LR_OK;
}

int lr_safetensors_write(lr_safetensors_writer *w, const char *name, const lr_tensor *t)
{
    int status = check_turn(w, name, t);
    if (status == LR_OK && !w->started)
        status = write_header(w);
    if (status == LR_OK)
        status = write_values(w, t, w->entries[w->next].dtype->dtype);
    if (status == LR_OK)
        w->next++;
    return status;
}

int lr_safetensors_finish(lr_safetensors_writer *w)
{
    if (w->file.temporary == NULL || w->broken)
        return lr_fail(LR_EINVAL, "%s: %s", w->path,
                       w->broken ? "writing failed before; free the writer and begin again" : "already finished");
    if (w->next < w->count)
        return lr_fail(LR_EINVAL, "%s: tensor '%s' was declared and not written", w->path, w->entries[w->next].name);
    const int status = w->started ? LR_OK : write_header(w);
    return status == LR_OK ? lr_atomic_commit(&w->file) : status;
}
