/* select.h: the table of kernels for this machine's instruction set. See select.c. */
#ifndef LR_CPU_SELECT_H
#define LR_CPU_SELECT_H

#include "core/op.h"

/* Chosen at the first call, for good. */
const lr_backend *lr_cpu_backend(void);
const char *lr_cpu_isa(void); /* "avx512bf16", "avx512", "avx2" or "baseline" */

#endif
