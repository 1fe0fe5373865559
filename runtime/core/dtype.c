/* dtype.c: the table of dtypes. */
#include "core/dtype.h"

static const struct {
    const char *name;
    size_t size;
} DTYPES[LR_DTYPE_COUNT] = {{"f32", 4}, {"bf16", 2}, {"f16", 2}, {"i32", 4}, {"i64", 8}};

const char *lr_dtype_name(int dtype)
{
    return dtype >= 0 && dtype < LR_DTYPE_COUNT ? DTYPES[dtype].name : "unknown dtype";
}

size_t lr_dtype_size(int dtype)
{
    return DTYPES[dtype].size;
}
