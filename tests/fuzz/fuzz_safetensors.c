/* safetensors: the entries of a file that opens are within it, and small ones can be read. The input is the JSON text of the
 * header, 0xFF, and the data; an input that begins with 0xFF has the whole file after it. */
#include "fuzz.h"

enum { MOST = 1 << 16, READ = 4096 };

static void read_entry(const lr_safetensors *f, int64_t index)
{
    lr_safetensors_entry e;
    MUST(lr_safetensors_get(f, index, &e) == LR_OK);
    MUST(lr_safetensors_find(f, e.name) >= 0);
    MUST(e.ndim >= 0 && e.ndim <= (int)LR_COUNT_OF(e.shape) && e.bytes >= 0 && e.dtype_name != NULL);
    lr_tensor *t = NULL;
    if (e.dtype < 0 || e.ndim < 1 || e.ndim > LR_MAX_DIMS || e.bytes > READ ||
        lr_tensor_new(&t, e.dtype <= LR_F16 ? LR_F32 : e.dtype, e.ndim, e.shape, LR_CPU, "entry") != LR_OK)
        return;
    MUST(lr_safetensors_load(f, index, t) == LR_OK);
    lr_tensor_destroy(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t file[MOST];
    size_t header, data_size;
    const uint8_t *rest = fuzz_split(data, size, &header, &data_size);
    if (size > MOST - 8)
        return -1;
    if (header > 0) {
        for (int i = 0; i < 8; i++)
            file[i] = (uint8_t)((uint64_t)header >> 8 * i);
        memcpy(file + 8, data, header);
        header += 8;
    }
    memcpy(file + header, rest, data_size);
    const int64_t before = fuzz_objects();
    lr_safetensors *f = NULL;
    if (lr_safetensors_open(&f, fuzz_file(".safetensors", file, header + data_size)) == LR_OK) {
        lr_safetensors_metadata(f, "format");
        const int64_t n = lr_safetensors_count(f);
        for (int64_t i = 0; i < n; i++)
            read_entry(f, i);
        lr_safetensors_close(f);
    }
    MUST(fuzz_objects() == before);
    return 0;
}
