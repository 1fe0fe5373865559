/* table.c: the table of this instruction set's kernels. One row per op of ops.def; a missing kernel is a link error. */
#include "cpu/cpu.h"
#include "lr_ops_table.inc"

const lr_backend *LR_CPU(table)(void);

const lr_backend *LR_CPU(table)(void)
{
    return &LR_TABLE;
}
