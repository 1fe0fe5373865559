/* safetensors.h: what the reader and the writer of the format share.
 *
 * A file is: the header's length (u64, little endian), the header (JSON, padded with spaces to 8 bytes), the data. The header
 * maps each tensor's name to dtype, shape and data_offsets [begin, end), counted from the start of the data; "__metadata__" maps
 * strings to strings. Data is little endian, row-major, without gaps. */
#ifndef LR_IO_SAFETENSORS_H
#define LR_IO_SAFETENSORS_H

#include "core/core.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "safetensors data is little endian and is copied as it is");

enum {
    LR_SAFETENSORS_MAX_HEADER = 100 * 1000 * 1000, /* the reference implementation's limit */
    LR_SAFETENSORS_MAX_DIMS = 8,
    LR_SAFETENSORS_CHUNK = 1 << 19, /* elements moved at once: source and result stay in a core's cache */
};
#define LR_SAFETENSORS_METADATA "__metadata__"

typedef struct lr_safetensors_dtype {
    const char *name;
    int bits;
    int dtype; /* an lr_dtype, or -1 */
} lr_safetensors_dtype;

/* NULL: the format has no such dtype. */
const lr_safetensors_dtype *lr_safetensors_dtype_named(const char *name);
const lr_safetensors_dtype *lr_safetensors_dtype_of(int dtype);
/* Bytes of a tensor, or -1 if they overflow or are no whole number. */
int64_t lr_safetensors_bytes(const lr_safetensors_dtype *dtype, int ndim, const int64_t *shape);
/* May values of dtype `from` be stored as `to`? Floating point is converted; integers are not. */
bool lr_safetensors_convertible(int from, int to);

#endif
