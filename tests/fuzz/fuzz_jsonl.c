#include "rows.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    return fuzz_rows(".jsonl", data, size);
}
