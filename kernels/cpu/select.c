/* select.c: choose the kernel table for this machine, once. LORARUN_ISA=baseline|avx2|avx512 lowers the choice, for tests. */
#include "core/op.h"
#include <stdlib.h>
#include <string.h>

const lr_backend *lr_cpu_table_baseline(void);
#ifdef LR_HAVE_X86_LEVELS
const lr_backend *lr_cpu_table_avx2(void);
const lr_backend *lr_cpu_table_avx512(void);
#endif

static const lr_backend *table;
static const char *isa = "baseline";

static void choose(void)
{
    table = lr_cpu_table_baseline();
#ifdef LR_HAVE_X86_LEVELS
    const char *limit = getenv("LORARUN_ISA");
    const bool no_avx512 = limit != NULL && strcmp(limit, "avx512") != 0;
    const bool no_avx2 = no_avx512 && strcmp(limit, "avx2") != 0;
    __builtin_cpu_init();
    if (!no_avx2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
        table = lr_cpu_table_avx2();
        isa = "avx2";
    }
    if (!no_avx512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        table = lr_cpu_table_avx512();
        isa = "avx512";
    }
#endif
}

const lr_backend *lr_cpu_backend(void)
{
    if (table == NULL)
        choose();
    return table;
}

const char *lr_cpu_isa(void)
{
    lr_cpu_backend();
    return isa;
}
