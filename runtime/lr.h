/* lr.h: the C API of lorarun, and the only public header.
 *
 * The same text is LuaJIT's ffi.cdef: the build runs the preprocessor over this file with LR_CDEF defined and embeds the
 * result, so the two cannot differ. So there are only enums, structs and functions here.
 *
 * Conventions
 *   - A function returns LR_OK (0) or a negative lr_status. On failure outputs are untouched and lr_last_error() holds one
 *     line, thread-local, that names the values that were wrong.
 *   - Handles are opaque. lr_x_free accepts NULL.
 *   - Nothing here calls exit() or abort(), and nothing throws.
 *   - Text is UTF-8. Lengths and memory are in bytes, times in seconds, unless it says otherwise. Indices count from 0, sizes
 *     and indices have 64 bits, shapes are in elements, the outermost dimension first.
 *   - A tensor is row-major. Its last dimension is contiguous; a 2-D tensor may have a row stride (ld) above its width, which
 *     is how column slices of a fused projection are views. */
#ifndef LR_H
#define LR_H
#ifndef LR_CDEF
#include <stddef.h>
#include <stdint.h>
#pragma GCC visibility push(default)
#ifdef __cplusplus
extern "C" {
#endif
#endif

/* ---- errors (core/error.c) ------------------------------------------------------------------------------------------- */
typedef enum lr_status {
#define LR_STATUS(code, name, text) LR_##name = code,
#include "core/status.def"
#undef LR_STATUS
    LR_STATUS_LAST = -1000
} lr_status;

enum { LR_ABI_VERSION = 1 };
enum {
    LR_MOST_THREADS = 4096, /* compute threads of a process */
    LR_MOST_TOKENS = 65535  /* tokens of a text in a batch: the loader keeps a position in 16 bits */
};
int lr_abi_version(void);                       /* to be compared with LR_ABI_VERSION before anything else is called */
int lr_library_versions(char *buf, size_t cap); /* one line: "oneDNN 2.6.3, libsodium 1.0.18, ..."; core/libraries.c */
const char *lr_cuda_version(void);              /* of the CUDA toolkit it was built with, "13.0.88"; NULL: without */
const char *lr_version(void);                   /* "0.1.0" */
/* Text for a terminal or a log: control characters (except line feeds and tabs), ANSI escapes, bidirectional marks and bytes
 * that are not UTF-8 are written as their numbers. *out: to be freed with lr_free. */
int lr_text_visible(const char *text, int64_t size, char **out);
const char *lr_last_error(void);      /* one line, valid until this thread's next call that fails; never NULL */
const char *lr_status_name(int code); /* "ENOMEM" */
const char *lr_status_text(int code); /* "out of memory" */

/* ---- memory (core/memory.c, pools.c, memory_report.c, alloc.c) ------------------------------------------------------- */
typedef enum lr_device { LR_CPU = 0, LR_CUDA = 1, LR_META = 2, LR_DEVICE_COUNT = 3 } lr_device;

typedef struct lr_memory {
    int64_t live_bytes;     /* of tensors now */
    int64_t live_storages;  /* the number of buffers that these are in */
    int64_t peak_bytes;     /* highest live_bytes since lr_memory_reset_peak */
    int64_t reserved_bytes; /* what the device gave: live, or kept for reuse */
    int64_t scratch_bytes;  /* working memory of ops, not counted as live */
    int64_t host_objects; /* small allocations that are alive (files, tokenizers, handles); the same for all devices */
} lr_memory;
int lr_memory_stats(int device, lr_memory *out);
/* peak_bytes = live_bytes. On the meta device scratch_bytes = 0, too, so that each step's own is counted. */
int lr_memory_reset_peak(int device);
/* Give what is kept for reuse, and the working memory of ops, back to the system. */
int lr_memory_release_cached(int device);
/* Let the tensors of a device take at most `bytes`; more is LR_ENOMEM. Memory that is kept for reuse is given back where it would
 * exceed that. 0, the default: no limit. */
int lr_memory_limit(int device, int64_t bytes);
/* Bytes of addresses that tensors may still take: more than there is memory, unless addresses are limited (ulimit -v). A negative
 * status where there is no such device. */
int64_t lr_memory_addresses_left(int device);
/* What holds the memory: one "name\tbuffers\tbytes\n" line per name, largest first, at most `lines`, into buf (NUL-terminated).
 * The buffers of all layers are added up: a number between dots becomes *. */
int lr_memory_holders(int device, int lines, char *buf, size_t cap);
/* For tests: let `after` more allocations succeed, then let `times` of them fail. after < 0 turns this off. */
void lr_memory_fail(int64_t after, int64_t times);
int64_t lr_memory_attempts(void); /* allocations that this process has tried so far */

/* ---- tensors (core/tensor.c) ----------------------------------------------------------------------------------------- */
typedef enum lr_dtype { LR_F32 = 0, LR_BF16 = 1, LR_F16 = 2, LR_I32 = 3, LR_I64 = 4, LR_DTYPE_COUNT = 5 } lr_dtype;
enum { LR_MAX_DIMS = 4 };
typedef struct lr_tensor lr_tensor;

typedef struct lr_tensor_info {
    int32_t dtype, device, ndim;
    int32_t packed; /* 0 plain, 1 packed for linear, 2 packed for linear_backward */
    int64_t shape[4];
    int64_t ld;       /* row stride of a 2-D tensor in elements; its width where it is contiguous */
    int64_t elements; /* product of the shape */
    int32_t freed;    /* 1 after lr_tensor_free */
} lr_tensor_info;

/* A new tensor with undefined contents. shape: ndim (1..4) sizes, each >= 1. name: what it is, for error messages and the
 * table of memory holders; copied, may be NULL. LR_ENOMEM, LR_ESHAPE, LR_EDTYPE, LR_EDEVICE. */
int lr_tensor_new(lr_tensor **out, int dtype, int ndim, const int64_t *shape, int device, const char *name);
/* A view of the same bytes, from element `offset` on, with a shape of its own and, for 2-D, a row stride ld in elements (0:
 * contiguous). The bytes live until the original and all views are freed. LR_ESHAPE where it does not lie within t. */
int lr_tensor_view(lr_tensor **out, const lr_tensor *t, int64_t offset, int ndim, const int64_t *shape, int64_t ld);
/* Free the bytes. The handle stays valid for lr_tensor_describe, lr_tensor_name and error messages; any other use is LR_EFREED. */
void lr_tensor_free(lr_tensor *t);
void lr_tensor_destroy(lr_tensor *t); /* free the bytes and the handle */
int lr_tensor_describe(const lr_tensor *t, lr_tensor_info *out);
const char *lr_tensor_name(const lr_tensor *t);
/* Copy `count` elements, from element `offset` in row order on, between a tensor and host memory of the same dtype. On the meta
 * device writing does nothing, and reading is LR_EUNSUPPORTED. LR_ESHAPE where the tensor has fewer elements. */
int lr_tensor_read(const lr_tensor *t, int64_t offset, int64_t count, void *dst);
int lr_tensor_write(lr_tensor *t, int64_t offset, int64_t count, const void *src);
int lr_tensor_fill(lr_tensor *t, double value); /* every element becomes value, rounded to the dtype */
/* Fill a contiguous f32 tensor with uniform values in [lo, hi), a pure function of (seed, purpose, element index): the same on
 * every device and rank. LR_EDTYPE for other tensors. */
int lr_tensor_uniform(lr_tensor *t, uint64_t seed, uint32_t purpose, double lo, double hi);
/* A copy of a plain frozen weight w[N,K] in the layout that is best for products. direction 1: for y = x w^T (op linear); 2: for
 * dx = dy w (op linear_backward). dtype: of the packed copy and of the activations it will meet. On a GPU it shares w's bytes
 * where w has that dtype, also those of a view of columns. */
int lr_tensor_pack(lr_tensor **out, const lr_tensor *w, int direction, int dtype);
/* The meta device has no bytes. Sizes that depend on the device, of packed weights and of the working memory of ops, are those
 * of the device that it is like: LR_CPU by default. LR_EINVAL where there is no such device. */
int lr_meta_like(int device);
int lr_device_like(int device); /* device; for LR_META the one that it is like */
const char *lr_dtype_name(int dtype);

/* ---- devices and threads (core/device.c, threads.c, interrupt.c, clock.c) -------------------------------------------- */
int lr_device_available(int device); /* 1 or 0; the first question about a GPU starts it */
int lr_device_count(int device);     /* the number of such devices that this process sees; starts none */
/* Of several GPUs, use this one. To be called before lr_device_available and any use; LR_EINVAL after that, LR_EDEVICE where
 * there are fewer. */
int lr_device_choose(int device, int index);
const char *lr_device_missing(int device); /* why a device is not available; NULL where it is available */
const char *lr_device_name(int device);    /* "cpu" */
/* One line: model, memory; of the CPU also the instruction set in use and the threads. */
int lr_device_describe(int device, char *buf, size_t cap);
/* "GPU-...": the name that a GPU has everywhere in the world. index: of those of the kind that this process sees; -1: the one it
 * uses. LR_EDEVICE where it sees none, LR_EUNSUPPORTED for a kind that has no such names. */
int lr_device_uuid(int device, int index, char *buf, size_t cap);
/* What a kind of device does in its own way, where the choice is Lua's. */
typedef struct lr_device_traits {
    const char *noun;     /* what messages call one: "CPU", "GPU" */
    int32_t own_memory;   /* 1: its memory is not the machine's, and lr_device_memory reports how much of it is free */
    int32_t asynchronous; /* 1: an op is queued, and the call returns before it is done */
    int32_t fp16;         /* 1: it has products in fp16 */
    int32_t residual_in_product; /* 1: op linear adds the residual stream (its r) faster than the norm does */
    int32_t plain_weights;       /* 1: a packed weight is a plain matrix, so adapters may lie beside it */
} lr_device_traits;
int lr_device_traits_of(int device, lr_device_traits *out); /* of LR_META: those of the device that it is like */
int lr_device_memory(int device, int64_t *free_bytes, int64_t *total_bytes); /* of the whole device, all processes */
int lr_device_wait(int device); /* until all its work is done; a failure of that work is reported here */
/* 1, the default: equal inputs give equal bits in every run on the same kind of GPU. 0: the fastest algorithms, whose bits may
 * differ from run to run. On the CPU the bits are always equal. */
void lr_deterministic(int on);
/* 0, the default: products of f32 are computed in f32. 1: on a GPU they may be computed in TF32, which rounds the factors to 10
 * bits and is several times as fast. -1 changes nothing. Returns the setting that holds now. */
int lr_tf32(int on);
int lr_cores(void);        /* the number that this process may use */
int lr_threads_set(int n); /* compute threads; 0: OMP_NUM_THREADS, or else one per core */
int lr_threads(void);
/* Start the threads now. LR_EIO where a limit forbids it; the first op that needs them would end the process instead. */
int lr_threads_start(void);
double lr_time(void); /* seconds, monotonic */
/* With interrupts on, an op that finds the flag raised clears it and returns LR_EINTERRUPTED. lr_interrupt_raise may be called by a
 * signal handler. */
void lr_interrupt_enable(int on);
int lr_interrupt_enabled(void); /* 1 at the prompt, where Ctrl-C ends the statement and not the program */
void lr_interrupt_raise(void);
int lr_interrupt_take(void); /* 1 if it was raised and interrupts are on; clears it */

/* ---- limits of the system (core/limits.c) ---------------------------------------------------------------------------- */
typedef enum lr_limit_kind {
    LR_LIMIT_ADDRESSES = 0, /* bytes: ulimit -v */
    LR_LIMIT_DATA = 1,      /* bytes: -d */
    LR_LIMIT_FILE_SIZE = 2, /* bytes: -f */
    LR_LIMIT_FILES = 3,     /* open at a time: -n */
    LR_LIMIT_PROCESSES = 4, /* and threads, of the user: -u */
    LR_LIMIT_STACK = 5,     /* bytes: -s */
    LR_LIMIT_SECONDS = 6,   /* of processor time: -t */
    LR_LIMIT_KINDS = 7
} lr_limit_kind;
int64_t lr_limit(int kind); /* of this process; -1: none */
typedef struct lr_memory_bound {
    int64_t left;   /* bytes; INT64_MAX: no limit */
    char what[256]; /* "the control group /job allows 2.0 GB": what sets it */
} lr_memory_bound;
/* What this process's control group and those above it allow it to take, by the tightest of them. */
int lr_memory_left_by_group(lr_memory_bound *out);
/* What ulimit -d allows tensors to take. */
int lr_memory_left_by_data(lr_memory_bound *out);
/* A file of this process's control group (level 0) or one above it (1, ...): `name` in version 2, `name_1` in version 1. Its
 * text goes to `out`, the group's path to `where`. LR_ENOTFOUND: the group has no such file; LR_EEND: there is no such level. */
int lr_group_file(const char *controller, int level, const char *name, const char *name_1, char *out, int64_t cap,
                  char *where, int64_t where_cap);
int lr_limits_root(const char *path); /* for tests: put before /proc and /sys; "" by default */

/* ---- GPUs as NVIDIA's driver reports them (kernels/cuda/nvml.c) ------------------------------------------------------ */
/* NVML comes with the driver and is opened at the first call; without it these functions return LR_EUNSUPPORTED. It numbers all
 * GPUs of the machine in an order of its own, including those that CUDA_VISIBLE_DEVICES hides from CUDA. Nothing here starts a
 * GPU or waits for its work. A value that the driver or the GPU does not report is -1, or "". */
typedef struct lr_gpu {
    char name[96];           /* "NVIDIA H100 80GB HBM3" */
    char uuid[96];           /* "GPU-..." */
    int32_t major, minor;    /* compute capability */
    int32_t nvlinks;         /* the number that are up */
    int64_t ecc_uncorrected; /* uncorrected memory errors since the driver started */
} lr_gpu;
typedef struct lr_gpu_load {
    int64_t used_bytes, free_bytes, total_bytes; /* of all processes */
    int32_t utilization;                         /* percent of the last moments during which a kernel ran */
} lr_gpu_load;
typedef struct lr_gpu_process {
    int64_t pid, used_bytes;
} lr_gpu_process;
int lr_gpu_count(int *out);
int lr_gpu_blas_version(int *out);                       /* of cuBLASLt, which this loads: 130101 is 13.1.1 */
int lr_gpu_driver(char *version, size_t cap, int *cuda); /* "580.65.06", and the newest CUDA it runs: 13000 is 13.0 */
int lr_gpu_of_device(int device_index,
                     int *out); /* device_index: as for lr_device_choose; -1: the one this process uses */
int lr_gpu_describe(int gpu, lr_gpu *out);
int lr_gpu_load_now(int gpu, lr_gpu_load *out); /* a few system calls */
/* The processes that compute on it: *count is their number, the first `cap` of them are written. */
int lr_gpu_processes(int gpu, lr_gpu_process *out, int cap, int *count);
/* Can `from` read and write the memory of `to`? 1, 0, or -1 where unknown. peer: over PCIe or NVLink; nvlink: over NVLink. */
int lr_gpu_link(int from, int to, int *peer, int *nvlink);

/* ---- random numbers (core/random.c) ---------------------------------------------------------------------------------- */
/* Philox4x32-10 (Salmon et al., SC'11), key = seed, counter = (position, step, purpose): four independent 32-bit words. */
void lr_random(uint64_t seed, uint32_t purpose, uint32_t step, uint64_t position, uint32_t out[4]);

/* ---- files (io/fs.c) ------------------------------------------------------------------------------------------------- */
typedef enum lr_file_kind { LR_FILE_REGULAR = 0, LR_FILE_DIRECTORY = 1, LR_FILE_OTHER = 2 } lr_file_kind;
typedef struct lr_stat {
    int32_t kind;
    int32_t mode;    /* permission bits, 0 to 07777 */
    int64_t size;    /* bytes */
    double modified; /* seconds since the epoch */
} lr_stat;
int lr_file_stat(const char *path, lr_stat *out); /* follows links; LR_ENOTFOUND where there is none */
/* Names in a directory, sorted bytewise, without . and .., each NUL-terminated, in one block to be freed with lr_free. */
int lr_dir_list(const char *path, char **names, int64_t *count);
int lr_dir_make(const char *path);                              /* with parents; an existing directory is no error */
int lr_file_read(const char *path, char **data, int64_t *size); /* whole file, NUL added after it; free with lr_free */
/* Write all of data under a temporary name beside path, fsync, rename, fsync the directory: readers see the old file or the
 * new one, never a part. */
int lr_file_write(const char *path, const char *data, int64_t size);
int lr_file_append(const char *path, const char *data, int64_t size); /* one write() in O_APPEND mode */
/* Create an empty file where there is none; from now on only its owner may read and write it. */
int lr_file_private(const char *path);
int lr_file_copy(const char *from, const char *to);   /* atomic, like lr_file_write */
int lr_file_rename(const char *from, const char *to); /* and fsync both directories */
int lr_tree_remove(const char *path);                 /* a file or a folder with all in it; never follows links */
int lr_path_real(const char *path, char **out);       /* absolute, links resolved; free with lr_free */
int64_t lr_disk_free(const char *path); /* bytes that a user may still write there, or a negative status */
void lr_free(void *p);
/* CRC-32C (Castagnoli): of a file's bytes; of `size` bytes after bytes whose checksum is crc (0 for none). */
int lr_file_crc32c(const char *path, uint32_t *out);
uint32_t lr_crc32c(uint32_t crc, const void *data, size_t size);

/* ---- lock files (io/lock.c) ------------------------------------------------------------------------------------------ */
typedef enum lr_lock_state {
    LR_LOCK_MADE = 0, /* the caller made the file, and holds it */
    /* The caller holds it; its text is of a holder that has ended, or of one on another machine, which cannot be seen from here. */
    LR_LOCK_LEFT = 1,
    LR_LOCK_HELD = 2, /* another process holds it: no handle */
    /* The file existed, and this file system cannot tell whether a process holds it: the handle holds nothing. */
    LR_LOCK_UNKNOWN = 3
} lr_lock_state;
typedef struct lr_lock lr_lock;                                /* a file that one process at a time holds */
int lr_lock_take(lr_lock **out, const char *path, int *state); /* never waits; *state is an lr_lock_state */
int lr_lock_write(lr_lock *lock, const char *text, int64_t size);
void lr_lock_free(lr_lock *lock,
                  int remove); /* remove 1: remove the file as well, unless another one has taken its place */

/* ---- JSON (io/json.c) ------------------------------------------------------------------------------------------------ */
typedef enum lr_json_kind {
    LR_JSON_NULL = 0,
    LR_JSON_FALSE = 1,
    LR_JSON_TRUE = 2,
    LR_JSON_NUMBER = 3,
    LR_JSON_STRING = 4,
    LR_JSON_ARRAY = 5,
    LR_JSON_OBJECT = 6
} lr_json_kind;
typedef struct lr_json lr_json;           /* a parsed document */
typedef struct lr_json_node lr_json_node; /* a value inside it; lives as long as the document */
typedef struct lr_json_value {
    int32_t kind;
    int32_t integer; /* 1: the number was written without fraction and exponent */
    double number;
    const char *string; /* NUL-terminated; may contain other NULs */
    int64_t length;     /* bytes of string, elements of array, members of object */
} lr_json_value;
/* Parse one JSON text, strictly: RFC 8259, and no key twice. LR_EFORMAT names `name` (a path), line and column. */
int lr_json_parse(lr_json **out, const char *text, int64_t size, const char *name);
/* The same, as Python's json reads it: NaN, Infinity and -Infinity are numbers, a number beyond 1.8e308 is infinite, and of a key
 * that occurs twice the last value counts, at the place of the first. */
int lr_json_parse_python(lr_json **out, const char *text, int64_t size, const char *name);
const lr_json_node *lr_json_root(const lr_json *doc);
void lr_json_value_of(const lr_json_node *node, lr_json_value *out);
const lr_json_node *lr_json_item(const lr_json_node *array, int64_t index); /* NULL past the end */
/* The value of a member, or NULL where `object` is not an object or has no such key. Searches the keys one by one. */
const lr_json_node *lr_json_get(const lr_json_node *object, const char *key);
/* All members of an object in the order written: keys[i], values[i], i < length. */
int lr_json_members(const lr_json_node *object, const char **keys, const lr_json_node **values);
void lr_json_free(lr_json *doc);

/* ---- YAML (io/yaml.c) ------------------------------------------------------------------------------------------------ */
/* A text as a sequence of events; lua/lorarun/base/yaml.lua makes values of them. */
typedef enum lr_yaml_kind {
    LR_YAML_OTHER = 0, /* begin and end of stream, end of document: nothing to do */
    LR_YAML_DOCUMENT = 1,
    LR_YAML_SCALAR = 2,
    LR_YAML_SEQUENCE = 3, /* up to its LR_YAML_END */
    LR_YAML_MAPPING = 4,  /* key, value, key, value ... until its LR_YAML_END */
    LR_YAML_END = 5,
    LR_YAML_ALIAS = 6 /* means the value that has this anchor */
} lr_yaml_kind;
typedef struct lr_yaml lr_yaml;
typedef struct lr_yaml_event {
    int32_t kind;
    int32_t plain; /* 1: a scalar without quotes, whose form decides its type */
    int64_t line, column;
    const char *text; /* of a scalar, NUL-terminated; this and the pointers below are valid until the next call */
    int64_t length;
    const char *anchor, *tag; /* NULL where there is none */
} lr_yaml_event;
/* text must live as long as the parser. LR_EFORMAT where it has more than 1 MiB. Errors have `name` (a path), line and column. */
int lr_yaml_open(lr_yaml **out, const char *text, int64_t size, const char *name);
int lr_yaml_next(lr_yaml *y, lr_yaml_event *out); /* LR_EEND after the last */
void lr_yaml_close(lr_yaml *y);

/* ---- safetensors (io/safetensors.c) ---------------------------------------------------------------------------------- */
typedef struct lr_safetensors lr_safetensors; /* one open file */
typedef struct lr_safetensors_entry {
    const char *name;
    int32_t dtype; /* an lr_dtype, or -1 for a dtype that lorarun does not have; see dtype_name */
    int32_t ndim;
    int64_t shape[8];
    int64_t bytes;
    const char *dtype_name; /* as written: "F32", "BF16", "U8" ... */
} lr_safetensors_entry;
int lr_safetensors_open(lr_safetensors **out,
                        const char *path); /* the whole header is checked: sizes, overlaps, bounds */
int64_t lr_safetensors_count(const lr_safetensors *f);
int lr_safetensors_get(const lr_safetensors *f, int64_t index, lr_safetensors_entry *out);
int64_t lr_safetensors_find(const lr_safetensors *f, const char *name);        /* index, or -1 */
const char *lr_safetensors_metadata(const lr_safetensors *f, const char *key); /* NULL where there is no such key */
/* Copy entry `index` into t (same number of elements), converting between F32, F16 and BF16; I32 and I64 are copied only
 * to their own dtype (LR_EDTYPE). */
int lr_safetensors_load(const lr_safetensors *f, int64_t index, lr_tensor *t);
void lr_safetensors_close(lr_safetensors *f);

typedef struct lr_safetensors_writer lr_safetensors_writer;
/* Declare every tensor, then write them in the same order. lr_safetensors_finish syncs the file and renames it to path;
 * lr_safetensors_writer_free without it removes the temporary file. metadata: the text of a JSON object, or NULL. */
int lr_safetensors_create(lr_safetensors_writer **out, const char *path, const char *metadata);
int lr_safetensors_declare(lr_safetensors_writer *w, const char *name, int dtype, int ndim, const int64_t *shape);
/* The values are converted to the declared dtype. */
int lr_safetensors_write(lr_safetensors_writer *w, const char *name, const lr_tensor *t);
int lr_safetensors_finish(lr_safetensors_writer *w);
void lr_safetensors_writer_free(lr_safetensors_writer *w);

/* ---- tokenizers (text/) ---------------------------------------------------------------------------------------------- */
typedef struct lr_tokenizer lr_tokenizer; /* immutable after loading: any number of threads may encode with it */
/* path: a tokenizer.json, or the folder that holds one. */
int lr_tokenizer_load(lr_tokenizer **out, const char *path);
/* The same for a tokenizer.json that is parsed already (path: its name), with changes: each member of the object `changes` replaces
 * the file's. Members, all optional: normalizer, pre_tokenizer, post_processor, added_tokens, as in the file (but
 * these added tokens have the ids that the list gives them);
 * truncation_side, "right" or "left": the end at which a text that is too long is cut; split_special_tokens: special tokens
 * within a text are plain text. Errors about the changes have changes_name. */
int lr_tokenizer_load_changed(lr_tokenizer **out, const lr_json *file, const char *path, const lr_json *changes,
                              const char *changes_name);
void lr_tokenizer_free(lr_tokenizer *tok);
int64_t lr_tokenizer_vocab_size(const lr_tokenizer *tok);            /* highest id + 1 */
int32_t lr_tokenizer_id(const lr_tokenizer *tok, const char *token); /* -1 where unknown */
const char *lr_tokenizer_token(const lr_tokenizer *tok, int32_t id); /* as in tokenizer.json; NULL where none */
int64_t lr_tokenizer_file_max_length(const lr_tokenizer *tok);       /* its own truncation, 0 where none */
/* Token ids of text. LR_EINVAL, with the byte, where it is not UTF-8. At most max_length ids are kept (0: no limit), as Hugging
 * Face truncates: the text is cut first, then special tokens are added. At most cap ids are written; *count is the number that
 * there are: where *count > cap, call again with more room. */
int lr_tokenizer_encode(const lr_tokenizer *tok, const char *text, int64_t size, int add_special_tokens,
                        int64_t max_length, int32_t *ids, int64_t cap, int64_t *count);

/* ---- regular expressions (text/regex.c) ------------------------------------------------------------------------------ */
/* Does pattern (PCRE2, close to Python's re) match the whole text? For PEFT's target_modules. LR_EINVAL: a bad pattern. */
int lr_regex_fullmatch(const char *pattern, const char *text, int *matched);

/* ---- data sets (data/dataset.c) -------------------------------------------------------------------------------------- */
typedef struct lr_dataset lr_dataset; /* JSONL or CSV files, memory-mapped; only an index of the rows is in memory */
typedef enum lr_bad_row { LR_BAD_ROW_ERROR = 0, LR_BAD_ROW_SKIP = 1 } lr_bad_row;
typedef enum lr_column_kind { LR_COLUMN_TEXT = 0, LR_COLUMN_NUMBER = 1 } lr_column_kind;
/* columns, kinds: the n columns that every row must have. Every row is checked on opening (JSON, columns, kinds, UTF-8); a bad
 * row is LR_EFORMAT "file:line: ..." or, with LR_BAD_ROW_SKIP, counted. A *.csv has a header line (quoting as in RFC 4180), any
 * other file is JSONL. max_rows: only the first max_rows good rows count; 0: all. */
int lr_dataset_open(lr_dataset **out, const char *path, const char *const *columns, const int *kinds, int n,
                    int on_bad_row, int64_t max_rows);
/* The names of the columns a file has, from its header or its first well-formed row: each NUL-terminated, in one block to be
 * freed with lr_free. */
int lr_dataset_peek(const char *path, char **names, int64_t *count);
int64_t lr_dataset_rows(const lr_dataset *d);
int64_t lr_dataset_skipped(const lr_dataset *d);
const char *lr_dataset_first_skip(const lr_dataset *d); /* why the first bad row was skipped, or NULL */
/* All values of a number column, in row order, into out[rows]. */
int lr_dataset_numbers(const lr_dataset *d, int column, double *out);
/* One text, decoded. At most cap bytes are written, *size is its whole length. Several threads may call this at the same time. */
int lr_dataset_text(const lr_dataset *d, int64_t row, int column, char *buf, int64_t cap, int64_t *size);
/* 64-bit hash of each row's text in a column into out[rows]: equal texts, equal hashes. */
int lr_dataset_hashes(const lr_dataset *d, int column, uint64_t *out);
int64_t lr_dataset_line(const lr_dataset *d, int64_t row); /* line in the file, from 1, for messages */
void lr_dataset_close(lr_dataset *d);

/* ---- balancing over ranks (data/balance.c) --------------------------------------------------------------------------- */
/* Distribute n items evenly by weight: owner[i] is the rank that gets item i. The heaviest come first, each goes to the rank
 * that has the least so far; ties go to the lower index and the lower rank, so that every rank computes the same answer. */
int lr_balance(int64_t n, const int64_t *weights, int world, int32_t *owner);

/* ---- the prefetching loader (data/loader.c) -------------------------------------------------------------------------- */
/* Threads that read, tokenise and pack batches ahead of training. The caller decides: it submits the texts of each batch, and the
 * batches come back in the order submitted. */
typedef struct lr_loader lr_loader;
typedef struct lr_batch {
    int64_t tokens;            /* T */
    int64_t sequences;         /* B */
    int64_t max_length;        /* longest sequence */
    int64_t truncated;         /* sequences submitted that were cut to max_length */
    const int32_t *ids;        /* [T] */
    const int32_t *positions;  /* [T], from 0 in each sequence */
    const int32_t *cu_seqlens; /* [B+1] */
    const int64_t *keys;       /* [T]: key of the sequence << 16 | position; what dropout masks depend on */
    double wait;               /* seconds that the caller waited for this batch */
    /* After lr_loader_balance, of the whole batch, of which the above is this rank's share; else NULL. */
    const int32_t *owner;       /* [groups]: the rank that gets each group */
    const int32_t *lengths;     /* [sequences submitted]: the tokens of each */
    const int64_t *rank_tokens; /* [world]: T of every rank */
} lr_batch;
/* prefixes: per column, a text put before each of its texts (a prompt), or NULL. queue: batches ahead, >= 1. */
int lr_loader_new(lr_loader **out, const lr_dataset *d, const lr_tokenizer *tok, int64_t max_length,
                  const char *const *prefixes, int threads, int queue);
/* Distribute each batch over `world` ranks by tokens (see lr_balance) and return the share of `rank`. The n sequences of a batch
 * are `width` runs of n / width, and those in the same place of each run stay together: group i is i, i + n / width, ... A share
 * keeps the order, and has no sequence where there are fewer groups than ranks. All ranks submit the same. To be called before
 * lr_loader_submit. */
int lr_loader_balance(lr_loader *l, int64_t width, int world, int rank);
/* A batch of n sequences: the text in column columns[i] of row rows[i], with key keys[i]. Never blocks; LR_EINVAL when the queue is
 * full. */
int lr_loader_submit(lr_loader *l, int64_t n, const int64_t *rows, const int32_t *columns, const int64_t *keys);
int64_t lr_loader_room(const lr_loader *l); /* the number of batches that may be submitted now */
/* Blocks until a batch is ready; *out is valid until the next call. LR_EEND when none is submitted. */
int lr_loader_next(lr_loader *l, lr_batch *out);
void lr_loader_free(lr_loader *l);
/* Pack the texts given here, on the calling thread: for encode() and tests. */
int lr_loader_pack(lr_loader **out, const lr_tokenizer *tok, int64_t n, const char *const *texts, const int64_t *sizes,
                   int64_t max_length, lr_batch *batch);

/* ---- the store of a job (dist/store_*.c) ----------------------------------------------------------------------------- */
/* Small values by key over TCP, by which ranks and launchers find each other. The launcher of the first machine serves the
 * store, or rank 0 where a scheduler started the ranks. A member is admitted when it connects, if it has the same lorarun
 * version, world size and generation, a rank that no other member has, and, where there is a secret, proves that it knows it
 * (the secret itself is never sent). A member that knows the secret and differs in anything else fails the whole job, so that
 * every side learns of it. One that does not know the secret is refused, and changes nothing. */
enum { LR_STORE_OBSERVER = -1 }; /* the rank of a launcher, which is a member and no rank */
typedef struct lr_store_member {
    const char *secret; /* NULL: none */
    int32_t rank;       /* 0..world_size-1, or LR_STORE_OBSERVER */
    int32_t world_size;
    int32_t generation; /* 0 at first, plus 1 after each restart of the group */
} lr_store_member;
typedef struct lr_store_server lr_store_server;
/* Take a variable out of the environment and overwrite it there. *value: its value, to be freed with lr_free, or NULL where it
 * is not set. */
int lr_secret_take(const char *variable, char **value);
/* Serve from a thread of its own. host: an address or name of this machine (0.0.0.0 or ::, all of them); any but loopback
 * needs a secret (LR_EINVAL). port 0: any free port; a port that is in use is LR_EIO. */
int lr_store_serve(lr_store_server **out, const char *host, int port, const char *secret, int world_size);
int lr_store_server_port(const lr_store_server *s);
/* Begin again for a restarted group: all keys, members and the failure are forgotten, and other generations are refused from now
 * on. The earlier members are disconnected: LR_EPEER. */
int lr_store_server_reset(lr_store_server *s, int generation);
void lr_store_server_stop(lr_store_server *s);

/* A connection, used by one thread at a time. A rank is free again when its connection ends. Any call is LR_EPEER once the job
 * has failed (with the reason) or the connection is lost. Keys have 1 to 1024 bytes, values at most 16 MiB. */
typedef struct lr_store lr_store;
/* Connect, trying again until the store is served or `timeout` seconds are over (LR_ETIMEOUT). LR_EREFUSED with the server's
 * reason; LR_EPEER where the job has failed already. A raised interrupt ends this call, and a get that waits: LR_EINTERRUPTED. */
int lr_store_connect(lr_store **out, const char *host, int port, const lr_store_member *who, double timeout);
/* The seconds that the server may take for an answer that depends on no other member (30 unless set); then LR_ETIMEOUT. */
void lr_store_set_patience(lr_store *s, double seconds);
int lr_store_set(lr_store *s, const char *key, const void *value, int64_t size);
/* Wait at most `timeout` seconds until the key exists (0: do not wait); LR_ETIMEOUT names the key. *value is NUL-terminated, to
 * be freed with lr_free. */
int lr_store_get(lr_store *s, const char *key, double timeout, char **value, int64_t *size);
/* A missing key counts as 0; the sum is the key's value, as decimal text. */
int lr_store_add(lr_store *s, const char *key, int64_t amount, int64_t *sum);
/* Fail the job: every call of a member, from now on and those that wait now, is LR_EPEER with this text. The first text stays. */
int lr_store_fail(lr_store *s, const char *why);
void lr_store_close(lr_store *s);

/* ---- collectives (dist/comm.c) --------------------------------------------------------------------------------------- */
/* Operations of all ranks together. Tensors on the CPU are sent over TCP (Gloo's transport), tensors on CUDA through NCCL; with
 * one rank every operation is an identity that needs neither.
 *
 * Every rank makes the same calls in the same order. Each call first compares the arguments of all ranks. Where they differ, or
 * where one rank has an unsuitable tensor, every rank gets the same error, which names the ranks; nothing is changed, and the
 * next call works. After any other failure (a lost rank, a timeout, an interrupt) the communicator cannot be used any more and
 * its connections are closed, so that the other ranks notice at once; the values of that call's tensor are then undefined.
 *   LR_EPEER     a rank is lost, or refused its part LR_ETIMEOUT  a rank did not make the call within the timeout
 * Equal inputs give equal bits, on all ranks and in every run with the same number of ranks. */
typedef struct lr_comm lr_comm; /* used by one thread at a time, except for lr_comm_abort */
typedef enum lr_reduce { LR_SUM = 0, LR_MAX = 1, LR_MIN = 2, LR_REDUCE_COUNT = 3 } lr_reduce;
typedef struct lr_comm_options {
    /* Tells it apart from others made over the same store; the same on all ranks, at most 64 bytes. */
    const char *group;
    const char *host; /* of the store: the address of this machine that leads there is where it listens */
    double timeout;   /* seconds a collective may take, and joining */
    int32_t rank, world_size;
} lr_comm_options;
/* Returns when all ranks are connected. The store is not used after that, and may be NULL with one rank. */
int lr_comm_new(lr_comm **out, lr_store *store, const lr_comm_options *options);
/* In place, element by element, for contiguous tensors of every dtype. 16-bit floats are rounded after each of the world_size - 1
 * additions; integers wrap around; where one operand of max or min is NaN, so is the result. */
int lr_comm_all_reduce(lr_comm *c, lr_tensor *t, int reduce);
/* The elements of all ranks' `in`, in rank order, into out, which has exactly as many elements as all of them. Ranks may give
 * different numbers of elements; in NULL: none. */
int lr_comm_all_gather(lr_comm *c, lr_tensor *out, const lr_tensor *in);
int lr_comm_broadcast(lr_comm *c, lr_tensor *t, int root);
int lr_comm_barrier(lr_comm *c);
/* Host memory. sizes: [world_size]; *out: all ranks' bytes, one after the other, and a NUL; to be freed
 * with lr_free. */
int lr_comm_all_gather_bytes(lr_comm *c, const void *data, int64_t size, char **out, int64_t *sizes);
/* data and size are used on the root only. *out as above. */
int lr_comm_broadcast_bytes(lr_comm *c, const void *data, int64_t size, int root, char **out, int64_t *out_size);
/* End the collective that waits now, and make all later ones fail: LR_EPEER with this text. May be called from any thread. */
void lr_comm_abort(lr_comm *c, const char *why);
int lr_comm_nccl_version(int *out); /* 22809 is 2.28.9; LR_EUNSUPPORTED where there is none */
int lr_comm_loadable(void); /* LR_EUNSUPPORTED, with the reason, where several ranks could not talk on the CPU */
int lr_comm_connected(const lr_comm *c); /* 0: after a failure, when the connections are closed */
void lr_comm_free(lr_comm *c);

/* ---- the launcher's group of processes (dist/group.c) ---------------------------------------------------------------- */
/* The ranks of a job on this machine. They run this same program; their output is read, they are sent signals, and in the end
 * they and all that they started are killed, also where the launcher itself is killed. There is one group at a time, used by the
 * thread that made it. While it exists, the launcher's signals are events (SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1; those that
 * the program was started to ignore stay ignored), SIGTSTP stops and continues the ranks with the launcher, and SIGPIPE is
 * ignored. */
typedef struct lr_group lr_group;
typedef enum lr_event_kind {
    LR_EVENT_NONE = 0,   /* nothing until the timeout */
    LR_EVENT_OUTPUT = 1, /* process wrote data[size] to stream */
    LR_EVENT_EXIT = 2,   /* process has ended: status is its exit status, or minus the signal that killed it. The events
                          * of all its output came before, and the processes that it started are killed. */
    LR_EVENT_SIGNAL = 3  /* the launcher got signal `status`; SIGCONT: it was stopped and continues, with its ranks */
} lr_event_kind;
typedef struct lr_event {
    int32_t kind;
    int32_t process; /* 0..processes-1 */
    int32_t stream;  /* 1 standard output, 2 standard error */
    int32_t status;
    const char *data; /* valid until the next call */
    int64_t size;
} lr_event;
typedef struct lr_rank_state { /* what a rank reported: see lr_rank_report, lr_rank_waits, lr_rank_failed */
    int64_t step, total;       /* of the training loop; total 0: it has not begun */
    int64_t collectives;       /* finished */
    double waiting;            /* seconds in the current collective; < 0: it is in none */
    double failed;             /* seconds since it failed; < 0: it did not */
    int32_t consequence;       /* 1: it failed because of another rank */
    char collective[32];       /* the current one, or the last one */
    char phase[64];            /* "training" */
    char failure[512];         /* why it failed */
} lr_rank_state;
int lr_group_new(lr_group **out, int processes);
/* Start process `index`, which must not run: argv (argv[0] included, NULL at the end) and, over the launcher's own environment,
 * "NAME=value" settings (NULL at the end). Its standard input is input[size], or empty. Its standard output is discarded until
 * it calls lr_rank_show; from then on that and its standard error are events. It ignores SIGUSR1 until it catches it. size below
 * 0, for a prompt: it has the launcher's own standard input, output and error, gets the terminal's Ctrl-C, and its output is no
 * event. */
int lr_group_spawn(lr_group *g, int index, const char *const *argv, const char *const *settings, const char *input,
                   int64_t size);
int lr_group_wait(lr_group *g, double timeout, lr_event *out);
/* 0: the output of running processes gives no events until 1; they wait when their pipes are full. */
void lr_group_listen(lr_group *g, int on);
/* Send a signal to one process (-1: to all that run); SIGKILL, SIGSTOP and SIGCONT also to the processes that it started. */
int lr_group_signal(lr_group *g, int index, int signal);
int lr_group_process(const lr_group *g, int index); /* its process id, or 0 where it does not run */
int lr_group_state(const lr_group *g, int index, lr_rank_state *out);
void lr_group_free(lr_group *g); /* kills the processes that still run */

/* ---- the launcher's output (dist/outlet.c) --------------------------------------------------------------------------- */
/* Standard output (1) and error (2), written without waiting for their reader: what cannot be written now is kept, in order. */
typedef struct lr_outlet lr_outlet;
int lr_outlet_new(lr_outlet **out);
/* LR_EIO, once: the stream can no longer be written; from now on its data is dropped without an error. */
int lr_outlet_write(lr_outlet *o, int stream, const char *data, int64_t size);
/* Write what is kept, for at most `timeout` seconds. *left: the bytes that are still kept, set even on LR_EIO. */
int lr_outlet_flush(lr_outlet *o, double timeout, int64_t *left);
void lr_outlet_free(lr_outlet *o); /* what is kept is lost */

/* ---- a rank's reports to its launcher (dist/rank.c) ------------------------------------------------------------------ */
int lr_rank_launched(void); /* 1: lr_group_spawn started this process */
int lr_rank_mute(void);     /* standard output is discarded from now on: for ranks that a scheduler started */
/* These do nothing in a process that no launcher started. */
int lr_rank_show(void); /* its standard output reaches the launcher from now on; flush before the call */
void lr_rank_report(int64_t step, int64_t total, const char *phase);
void lr_rank_waits(const char *collective);            /* it waits for the others in this collective; NULL: no longer */
void lr_rank_failed(const char *why, int consequence); /* only the first call counts */

/* ---- the host program (host/) ---------------------------------------------------------------------------------------- */
int lr_terminal_width(int fd); /* columns, or 0 where fd is not a terminal; in a launched rank, of the launcher's */
/* The SIGINT, SIGTERM or SIGUSR1 that has arrived since the last call, or 0 (see lr_signal_catch). */
int lr_signal_pending(void);
/* 1: lr_signal_pending reports SIGINT and SIGTERM (finish the step, save, end) and SIGUSR1 (save, continue). A second SIGINT or
 * SIGTERM ends the process, except in a launched rank, which its launcher ends. */
int lr_signal_catch(int on);

/* ---- the ops ----------------------------------------------------------------------------------------------------------
 * Generated from kernels/ops.def: int lr_op_NAME(outputs..., inputs..., numbers...). */
#include "lr_ops.h" /* generated */

#ifndef LR_CDEF
#ifdef __cplusplus
}
#endif
#pragma GCC visibility pop
#endif
#endif
