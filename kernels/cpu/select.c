/* select.c: the table of kernels for this machine's instruction set is chosen once. LORARUN_ISA=baseline|avx2|avx512|avx512bf16
 * lowers the choice, for tests. */
#include "cpu/select.h"
#include <stdlib.h>
#include <string.h>

const lr_backend *lr_cpu_table_baseline(void);
#ifdef LR_HAVE_X86_LEVELS
const lr_backend *lr_cpu_table_avx2(void);
const lr_backend *lr_cpu_table_avx512(void);
const lr_backend *lr_cpu_table_avx512bf16(void);
#endif

static const lr_backend *table;
static const char *isa = "baseline";

#ifdef LR_HAVE_X86_LEVELS
/* How many levels above baseline this processor has: each includes those before it. */
static int supported_level(void)
{
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2"))
        return 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return 1;
    return __builtin_cpu_supports("avx512bf16") ? 3 : 2;
}
#endif

static void choose(void)
{
    table = lr_cpu_table_baseline();
#ifdef LR_HAVE_X86_LEVELS
    static const struct {
        const char *name;
        const lr_backend *(*table)(void);
    } levels[] = {{"baseline", lr_cpu_table_baseline},
                  {"avx2", lr_cpu_table_avx2},
                  {"avx512", lr_cpu_table_avx512},
                  {"avx512bf16", lr_cpu_table_avx512bf16}};
    const char *limit = getenv("LORARUN_ISA");
    int level = supported_level();
    for (int i = 0; limit != NULL && i < level; i++)
        if (strcmp(limit, levels[i].name) == 0)
            level = i;
    table = levels[level].table();
    isa = levels[level].name;
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
