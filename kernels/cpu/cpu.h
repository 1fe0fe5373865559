/* cpu.h: what the CPU kernels share.
 *
 * Every file of this folder is compiled once per instruction set (baseline, AVX2, AVX-512, AVX-512 with bf16 products) and the table is chosen when the
 * program starts, so one binary serves every x86-64 and uses all of it. LR_CPU(name) gives a symbol its instruction set's
 * suffix. Loops are plain C that the compiler vectorises; "omp simd" says where it must.
 *
 * Kernels run on exec->threads OpenMP threads, the same pool as oneDNN's, split work by rows, never by reduction order that
 * depends on timing: equal inputs and thread counts give equal bits. */
#ifndef LR_CPU_H
#define LR_CPU_H

#include "core/op.h"

#ifndef LR_CPU_SUFFIX
#define LR_CPU_SUFFIX baseline
#endif
#define LR_CPU_PASTE_(name, suffix) lr_cpu_##name##_##suffix
#define LR_CPU_PASTE(name, suffix) LR_CPU_PASTE_(name, suffix)
#define LR_CPU(name) LR_CPU_PASTE(name, LR_CPU_SUFFIX)

#include "lr_ops_cpu_kernels.h"

#endif
