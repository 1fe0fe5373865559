/* safetensors.c: reading safetensors files.
 *
 * Opening a file checks its whole header, by the rules of the reference implementation: every tensor's bytes agree with its dtype
 * and shape, the tensors follow each other without gap or overlap, and they end where the file ends. After that only the disk can
 * fail.
 *
 * All compute threads read the data with pread(), directly into the tensor or, for a GPU, into a pinned buffer from which it is
 * copied while the thread reads on. Values that are converted pass through a small buffer that stays in the core's cache. A disk
 * error, or a file that shrank meanwhile, is an error here; with a memory map it would be a signal (SIGBUS).
 *
 * Invariants
 *   - Entries are in the order of their data. Names, dtype names and metadata point into the parsed header, which lives as long.
 *   - Reading changes nothing in lr_safetensors. */
#include "io/safetensors.h"
#include "core/device.h"
#include "core/tensor.h"
#include "io/file.h"
#include "io/json.h"
#include <errno.h>
#include <omp.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct entry {
    const char *name;
    const lr_safetensors_dtype *dtype;
    int64_t shape[LR_SAFETENSORS_MAX_DIMS];
    int64_t begin, end; /* from the start of the data */
    int64_t elements;
    int ndim;
} entry;

struct lr_safetensors {
    char *path;
    lr_json *header;
    entry *entries;
    size_t count;
    const entry **by_name;        /* sorted, for look-up */
    const lr_json_node *metadata; /* NULL: none */
    int64_t data;                 /* where the data begins in the file */
    int fd;
};

/* ---- dtypes --------------------------------------------------------------------------------------------------------- */
static const lr_safetensors_dtype DTYPES[] = {
    {"BOOL", 8, -1},     {"U8", 8, -1},         {"I8", 8, -1},          {"I16", 16, -1},        {"U16", 16, -1},
    {"F16", 16, LR_F16}, {"BF16", 16, LR_BF16}, {"I32", 32, LR_I32},    {"U32", 32, -1},        {"F32", 32, LR_F32},
    {"F64", 64, -1},     {"I64", 64, LR_I64},   {"U64", 64, -1},        {"C64", 64, -1},        {"F8_E4M3", 8, -1},
    {"F8_E5M2", 8, -1},  {"F8_E8M0", 8, -1},    {"F8_E4M3FNUZ", 8, -1}, {"F8_E5M2FNUZ", 8, -1}, {"F4", 4, -1},
    {"F6_E2M3", 6, -1},  {"F6_E3M2", 6, -1},
};

const lr_safetensors_dtype *lr_safetensors_dtype_named(const char *name)
{
    for (size_t i = 0; i < LR_COUNT_OF(DTYPES); i++)
        if (strcmp(DTYPES[i].name, name) == 0)
            return &DTYPES[i];
    return NULL;
}

const lr_safetensors_dtype *lr_safetensors_dtype_of(int dtype)
{
    for (size_t i = 0; i < LR_COUNT_OF(DTYPES); i++)
        if (DTYPES[i].dtype == dtype && dtype >= 0)
            return &DTYPES[i];
    return NULL;
}

int64_t lr_safetensors_bytes(const lr_safetensors_dtype *dtype, int ndim, const int64_t *shape)
{
    int64_t bits = dtype->bits;
    for (int i = 0; i < ndim; i++)
        if (shape[i] < 0 || __builtin_mul_overflow(bits, shape[i], &bits))
            return -1;
    return bits % 8 == 0 ? bits / 8 : -1;
}

bool lr_safetensors_convertible(int from, int to)
{
    return from == to || (from >= 0 && from <= LR_F16 && to >= 0 && to <= LR_F16);
}

/* ---- the header ----------------------------------------------------------------------------------------------------- */
/* Common files of other formats, by their first bytes. */
static int refuse_kind(const char *path, const char *head, size_t size, uint64_t length)
{
    static const struct {
        const char *magic, *what;
    } KINDS[] = {
        {"PK\3\4", "a PyTorch pickle (zip), which can run code when read; convert it to safetensors"},
        {"\x80\2", "a Python pickle, which can run code when read; convert it to safetensors"},
        {"\x80\4", "a Python pickle, which can run code when read; convert it to safetensors"},
        {"GGUF", "a GGUF file; lorarun reads safetensors"},
    };
    const int status = lr_file_refuse_pointer(path, head, size);
    if (status != LR_OK)
        return status;
    for (size_t i = 0; i < LR_COUNT_OF(KINDS); i++)
        if (size >= strlen(KINDS[i].magic) && memcmp(head, KINDS[i].magic, strlen(KINDS[i].magic)) == 0)
            return lr_fail(LR_EFORMAT, "%s is %s", path, KINDS[i].what);
    if (size < 8)
        return lr_fail(LR_EFORMAT, "%s: %zu bytes are too few for a safetensors file", path, size);
    return lr_fail(LR_EFORMAT, "%s: no safetensors file: its header would have %llu bytes, the limit is %d", path,
                   (unsigned long long)length, LR_SAFETENSORS_MAX_HEADER);
}

/* Read the header: *text has *size bytes and is NUL-terminated. */
static int read_header(lr_safetensors *f, int64_t file_size, char **text, int64_t *size)
{
    char head[64] = {0};
    const size_t n = file_size < (int64_t)sizeof head ? (size_t)file_size : sizeof head;
    if (!lr_file_read_at(f->fd, 0, head, n))
        return lr_fail_errno("%s: cannot read the header", f->path);
    uint64_t length;
    memcpy(&length, head, sizeof length);
    if (n < 8 || length > LR_SAFETENSORS_MAX_HEADER)
        return refuse_kind(f->path, head, n, length);
    if ((int64_t)length > file_size - 8)
        return lr_fail(LR_EFORMAT, "%s: cut off: the header has %llu bytes, the whole file %lld", f->path,
                       (unsigned long long)length, (long long)file_size);
    char *buffer = lr_alloc((size_t)length + 1);
    if (buffer == NULL)
        return LR_ENOMEM;
    if (!lr_file_read_at(f->fd, 8, buffer, (size_t)length)) {
        lr_free(buffer);
        return lr_fail_errno("%s: cannot read the header", f->path);
    }
    buffer[length] = 0;
    if (buffer[0] != '{') {
        lr_free(buffer);
        return lr_fail(LR_EFORMAT, "%s: no safetensors file: its header does not begin with '{'", f->path);
    }
    *text = buffer;
    *size = (int64_t)length;
    return LR_OK;
}

/* The value of a JSON number that is an integer of 0 or more, else -1. */
static int64_t count_of(const lr_json_node *node)
{
    lr_json_value v;
    lr_json_value_of(node, &v);
    return v.kind == LR_JSON_NUMBER && v.integer && v.number >= 0 && v.number <= 0x1p53 ? (int64_t)v.number : -1;
}

static int parse_shape(const lr_safetensors *f, entry *e, const lr_json_node *node)
{
    lr_json_value v;
    lr_json_value_of(node, &v);
    if (v.kind != LR_JSON_ARRAY)
        return lr_fail(LR_EFORMAT, "%s: tensor '%s': its shape is no array", f->path, e->name);
    if (v.length > LR_SAFETENSORS_MAX_DIMS)
        return lr_fail(LR_EFORMAT, "%s: tensor '%s' has %lld dimensions, at most %d are supported", f->path, e->name,
                       (long long)v.length, LR_SAFETENSORS_MAX_DIMS);
    e->ndim = (int)v.length;
    for (int i = 0; i < e->ndim; i++) {
        e->shape[i] = count_of(lr_json_item(node, i));
        if (e->shape[i] < 0)
            return lr_fail(LR_EFORMAT, "%s: tensor '%s': dimension %d of its shape is no count", f->path, e->name,
                           i + 1);
    }
    return LR_OK;
}

static int parse_offsets(const lr_safetensors *f, entry *e, const lr_json_node *node)
{
    lr_json_value v;
    lr_json_value_of(node, &v);
    if (v.kind == LR_JSON_ARRAY && v.length == 2) {
        e->begin = count_of(lr_json_item(node, 0));
        e->end = count_of(lr_json_item(node, 1));
    }
    if (v.kind != LR_JSON_ARRAY || v.length != 2 || e->begin < 0 || e->end < e->begin)
        return lr_fail(LR_EFORMAT, "%s: tensor '%s': its data_offsets are not [begin, end]", f->path, e->name);
    const int64_t bytes = lr_safetensors_bytes(e->dtype, e->ndim, e->shape);
    if (bytes < 0)
        return lr_fail(LR_EFORMAT, "%s: tensor '%s': its dtype and shape give no countable number of bytes", f->path,
                       e->name);
    if (bytes != e->end - e->begin)
        return lr_fail(LR_EFORMAT, "%s: tensor '%s': dtype and shape need %lld bytes, its data_offsets give %lld",
                       f->path, e->name, (long long)bytes, (long long)(e->end - e->begin));
    e->elements = bytes * 8 / e->dtype->bits;
    return LR_OK;
}

static int parse_entry(const lr_safetensors *f, entry *e, const lr_json_node *node)
{
    /* Other fields are allowed, as in the reference implementation. */
    const lr_json_node *dtype = lr_json_get(node, "dtype"), *shape = lr_json_get(node, "shape");
    const lr_json_node *offsets = lr_json_get(node, "data_offsets");
    lr_json_value v;
    if (dtype == NULL || shape == NULL || offsets == NULL)
        return lr_fail(LR_EFORMAT, "%s: tensor '%s': its %s is missing", f->path, e->name,
                       dtype == NULL   ? "dtype"
                       : shape == NULL ? "shape"
                                       : "data_offsets");
    lr_json_value_of(dtype, &v);
    e->dtype = v.kind == LR_JSON_STRING ? lr_safetensors_dtype_named(v.string) : NULL;
    if (e->dtype == NULL)
        return lr_fail(LR_EFORMAT, "%s: tensor '%s': unknown dtype '%s'", f->path, e->name,
                       v.kind == LR_JSON_STRING ? v.string : "(not a string)");
    const int status = parse_shape(f, e, shape);
    return status == LR_OK ? parse_offsets(f, e, offsets) : status;
}

/* ---- opening -------------------------------------------------------------------------------------------------------- */
static int parse_metadata(lr_safetensors *f, const lr_json_node *node)
{
    lr_json_value v;
    lr_json_value_of(node, &v);
    if (v.kind != LR_JSON_OBJECT)
        return lr_fail(LR_EFORMAT, "%s: its __metadata__ is no object", f->path);
    f->metadata = node;
    for (int64_t i = 0, count = v.length; i < count; i++) {
        const char *key;
        lr_json_value_of(lr_json_member(node, i, &key), &v);
        if (v.kind != LR_JSON_STRING)
            return lr_fail(LR_EFORMAT, "%s: __metadata__ '%s' is no string", f->path, key);
    }
    return LR_OK;
}

/* All members of the header, in any order, into f->entries and the metadata. */
static int parse_members(lr_safetensors *f)
{
    const lr_json_node *root = lr_json_root(f->header);
    lr_json_value v;
    lr_json_value_of(root, &v);
    f->entries = lr_calloc((size_t)v.length, sizeof *f->entries);
    f->by_name = lr_calloc((size_t)v.length, sizeof *f->by_name);
    if (f->entries == NULL || f->by_name == NULL)
        return LR_ENOMEM;
    int status = LR_OK;
    for (int64_t i = 0; status == LR_OK && i < v.length; i++) {
        const char *key;
        const lr_json_node *value = lr_json_member(root, i, &key);
        if (strcmp(key, LR_SAFETENSORS_METADATA) == 0) {
            status = parse_metadata(f, value);
        } else {
            f->entries[f->count].name = key;
            status = parse_entry(f, &f->entries[f->count++], value);
        }
    }
    return status;
}

static int compare_offsets(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end != y->end ? (x->end < y->end ? -1 : 1) : strcmp(x->name, y->name);
}

static int compare_entry_names(const void *a, const void *b)
{
    return strcmp((*(const entry *const *)a)->name, (*(const entry *const *)b)->name);
}

/* The tensors follow each other from the first byte of the data to the last. */
static int check_layout(const lr_safetensors *f, int64_t data_bytes)
{
    int64_t end = 0;
    for (size_t i = 0; i < f->count; i++) {
        const entry *e = &f->entries[i];
        if (e->begin < end)
            return lr_fail(LR_EFORMAT, "%s: tensor '%s' begins at byte %lld, inside tensor '%s', which ends at %lld",
                           f->path, e->name, (long long)e->begin, f->entries[i - 1].name, (long long)end);
        if (e->begin > end)
            return lr_fail(LR_EFORMAT, "%s: tensor '%s' begins at byte %lld and leaves a gap from %lld", f->path,
                           e->name, (long long)e->begin, (long long)end);
        if (e->end > data_bytes)
            return lr_fail(LR_EFORMAT,
                           "%s: tensor '%s' ends at byte %lld, but the file has only %lld bytes of data: cut off?",
                           f->path, e->name, (long long)e->end, (long long)data_bytes);
        end = e->end;
    }
    if (end != data_bytes)
        return lr_fail(LR_EFORMAT, "%s: %lld bytes follow the last tensor", f->path, (long long)(data_bytes - end));
    return LR_OK;
}

static int parse_header(lr_safetensors *f, int64_t file_size)
{
    char *text = NULL;
    int64_t size = 0;
    int status = read_header(f, file_size, &text, &size);
    if (status != LR_OK)
        return status;
    f->data = 8 + size;
    status = lr_json_parse(&f->header, text, size, f->path);
    lr_free(text);
    if (status != LR_OK)
        return status;
    status = parse_members(f);
    if (status != LR_OK)
        return status;
    qsort(f->entries, f->count, sizeof *f->entries, compare_offsets);
    for (size_t i = 0; i < f->count; i++)
        f->by_name[i] = &f->entries[i];
    qsort(f->by_name, f->count, sizeof *f->by_name, compare_entry_names);
    return check_layout(f, file_size - f->data);
}

int lr_safetensors_open(lr_safetensors **out, const char *path)
{
    lr_safetensors *f = lr_calloc(1, sizeof *f);
    if (f == NULL)
        return LR_ENOMEM;
    f->fd = -1;
    f->path = lr_strdup(path);
    int64_t size = 0;
    int status = f->path == NULL ? LR_ENOMEM : lr_file_open(path, &f->fd, &size);
    if (status == LR_OK)
        status = parse_header(f, size);
    if (status != LR_OK) {
        lr_safetensors_close(f);
        return status;
    }
    *out = f;
    return LR_OK;
}

void lr_safetensors_close(lr_safetensors *f)
{
    if (f == NULL)
        return;
    if (f->fd >= 0)
        close(f->fd);
    lr_free(f->by_name);
    lr_free(f->entries);
    lr_json_free(f->header);
    lr_free(f->path);
    lr_free(f);
}

/* ---- looking -------------------------------------------------------------------------------------------------------- */
int64_t lr_safetensors_count(const lr_safetensors *f)
{
    return (int64_t)f->count;
}

static int entry_at(const lr_safetensors *f, int64_t index, const entry **out)
{
    if (index < 0 || index >= (int64_t)f->count)
        return lr_fail(LR_EINVAL, "%s: there is no tensor number %lld of %zu", f->path, (long long)index, f->count);
    *out = &f->entries[index];
    return LR_OK;
}

int lr_safetensors_get(const lr_safetensors *f, int64_t index, lr_safetensors_entry *out)
{
    const entry *e = NULL;
    const int status = entry_at(f, index, &e);
    if (status != LR_OK)
        return status;
    *out = (lr_safetensors_entry){.name = e->name,
                                  .dtype = e->dtype->dtype,
                                  .ndim = e->ndim,
                                  .bytes = e->end - e->begin,
                                  .dtype_name = e->dtype->name};
    memcpy(out->shape, e->shape, sizeof out->shape);
    return LR_OK;
}

int64_t lr_safetensors_find(const lr_safetensors *f, const char *name)
{
    const entry key = {.name = name}, *wanted = &key;
    const entry **found =
        f->count == 0 ? NULL : bsearch(&wanted, f->by_name, f->count, sizeof *f->by_name, compare_entry_names);
    return found == NULL ? -1 : *found - f->entries;
}

const char *lr_safetensors_metadata(const lr_safetensors *f, const char *key)
{
    const lr_json_node *text = f->metadata == NULL ? NULL : lr_json_get(f->metadata, key);
    lr_json_value v = {0};
    if (text != NULL)
        lr_json_value_of(text, &v);
    return v.string;
}

/* ---- loading -------------------------------------------------------------------------------------------------------- */
/* A disk serves several reads at once; a thread that waits for it needs no core. */
enum { LEAST_READERS = 4 };

/* A tensor that is being loaded, in chunks of LR_SAFETENSORS_CHUNK elements; one thread takes each. */
typedef struct transfer {
    const lr_safetensors *file;
    const entry *entry;
    lr_tensor *tensor;
    /* Where a chunk is read to, or converted to: into the tensor; into a pinned buffer, from which the device copies it; or, for
     * rows with gaps, into memory of the thread's, from where it is written. */
    enum { INTO_TENSOR, INTO_STAGE, INTO_BUFFER } way;
    char *
        buffers; /* per thread: one chunk as stored, and one as the tensor wants it, where they are needed; else NULL */
    size_t buffer_size;
    atomic_int failed;  /* errno + 1 of a read that failed, 0: none */
    atomic_int refused; /* the status of a copy to the tensor's device that failed, LR_OK: none */
} transfer;

_Static_assert(LR_SAFETENSORS_CHUNK * sizeof(float) <= LR_STAGE_BYTES, "a chunk fits a pinned buffer");

/* A chunk in the dtype of the tensor. */
static bool read_chunk(transfer *x, int64_t from, int64_t n, char *buffer, void *to)
{
    const int stored = x->entry->dtype->dtype;
    const size_t size = lr_dtype_size(stored);
    char *source = stored == x->tensor->dtype ? to : buffer;
    if (!lr_file_read_at(x->file->fd, x->file->data + x->entry->begin + from * (int64_t)size, source,
                         (size_t)n * size)) {
        atomic_store(&x->failed, errno + 1);
        return false;
    }
    if (source != to)
        lr_convert(to, x->tensor->dtype, source, stored, n); /* cannot fail: the pair of dtypes was checked */
    return true;
}

static int stage_chunk(transfer *x, int64_t from, int64_t n, char *buffer)
{
    lr_tensor *t = x->tensor;
    const lr_driver *driver = lr_driver_of(t->device);
    const size_t size = lr_dtype_size(t->dtype), width = (size_t)n * size;
    lr_stage *stage = NULL;
    const int status = lr_stage_take(driver, &stage);
    if (status != LR_OK)
        return status;
    if (!read_chunk(x, from, n, buffer, lr_stage_data(stage))) {
        lr_stage_give_back(stage);
        return LR_OK; /* it is noted */
    }
    const lr_copy copy = {.to = (char *)t->data + (size_t)from * size,
                          .width = width,
                          .to_pitch = width,
                          .rows = 1,
                          .direction = LR_TO_DEVICE};
    return lr_stage_send(driver, driver->compute_stream(), stage, &copy);
}

static void move_chunk(transfer *x, int64_t from, int64_t n, int thread)
{
    lr_tensor *t = x->tensor;
    char *buffer = x->buffers != NULL ? x->buffers + (size_t)thread * x->buffer_size : NULL;
    int status = LR_OK;
    if (x->way == INTO_STAGE) {
        status = stage_chunk(x, from, n, buffer);
    } else if (x->way == INTO_TENSOR) {
        read_chunk(x, from, n, buffer, (char *)t->data + (size_t)from * lr_dtype_size(t->dtype));
    } else {
        char *made = buffer + LR_SAFETENSORS_CHUNK * lr_dtype_size(x->entry->dtype->dtype);
        if (read_chunk(x, from, n, buffer, made))
            status = lr_tensor_write(t, from, n, made);
    }
    if (status != LR_OK)
        atomic_store(&x->refused, status);
}

static int check_load(const lr_safetensors *f, const entry *e, const lr_tensor *t)
{
    char shape[96];
    const int stored = e->dtype->dtype;
    if (t->storage == NULL)
        return lr_fail(LR_EFREED, "%s: tensor '%s' is to be loaded into '%s', which was freed", f->path, e->name,
                       t->name);
    if (t->packing != NULL)
        return lr_fail(LR_EUNSUPPORTED, "%s: tensor '%s' cannot be loaded into '%s', which is a packed weight", f->path,
                       e->name, t->name);
    if (e->elements != t->elements)
        return lr_fail(LR_ESHAPE, "%s: tensor '%s' has %lld elements, but '%s' %s has %lld", f->path, e->name,
                       (long long)e->elements, t->name, lr_shape_text(t, shape), (long long)t->elements);
    if (!lr_safetensors_convertible(stored, t->dtype))
        return lr_fail(LR_EDTYPE, "%s: tensor '%s' is %s and cannot be loaded as %s", f->path, e->name, e->dtype->name,
                       lr_dtype_name(t->dtype));
    return LR_OK;
}

int lr_safetensors_load(const lr_safetensors *f, int64_t index, lr_tensor *t)
{
    const entry *e = NULL;
    int status = entry_at(f, index, &e);
    if (status == LR_OK)
        status = check_load(f, e, t);
    if (status != LR_OK || t->device == LR_META)
        return status;
    const int64_t chunks = (t->elements + LR_SAFETENSORS_CHUNK - 1) / LR_SAFETENSORS_CHUNK;
    int threads = (int)lr_min64(chunks, lr_max64(lr_threads(), LEAST_READERS));
    if (lr_threads_ensure(threads) < threads)
        threads = 1;
    transfer x = {.file = f, .entry = e, .tensor = t};
    x.way = !lr_tensor_contiguous(t) ? INTO_BUFFER : lr_driver_of(t->device)->addressable ? INTO_TENSOR : INTO_STAGE;
    x.buffer_size = LR_SAFETENSORS_CHUNK * (lr_dtype_size(e->dtype->dtype) + lr_dtype_size(t->dtype));
    if ((x.way == INTO_BUFFER || e->dtype->dtype != t->dtype) &&
        (x.buffers = lr_alloc((size_t)threads * x.buffer_size)) == NULL)
        return LR_ENOMEM;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < chunks; i++) {
        const int64_t from = i * LR_SAFETENSORS_CHUNK;
        if (atomic_load(&x.failed) == 0 && atomic_load(&x.refused) == LR_OK)
            move_chunk(&x, from, lr_min64(LR_SAFETENSORS_CHUNK, t->elements - from), omp_get_thread_num());
    }
    lr_free(x.buffers);
    if (x.refused != LR_OK) /* the message was in another thread */
        return lr_fail(x.refused, "%s: tensor '%s' could not be copied to device %s: %s", f->path, e->name,
                       lr_device_name(t->device), lr_status_text(x.refused));
    if (x.failed == 1)
        return lr_fail(LR_EIO, "%s: tensor '%s': the file became shorter while it was read", f->path, e->name);
    if (x.failed != 0) {
        errno = x.failed - 1;
        return lr_fail_errno("%s: tensor '%s'", f->path, e->name);
    }
    return LR_OK;
}
